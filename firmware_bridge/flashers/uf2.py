"""An image by a drive that a boot loader shows (RP2040 and others): blocks of 512 bytes, each with its address.

Format: the UF2 specification of Microsoft's MakeCode.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge.flashers import NO_OPTIONS, Found, Options

INFO_FILE, IMAGE_FILE = "INFO_UF2.TXT", "FIRMWARE.UF2"
BLOCK, PAYLOAD = 512, 256
_START, _SECOND, _END = 0x0A324655, 0x9E5D5157, 0x0AB16F30
_FAMILY_PRESENT = 0x00002000
_HEAD = struct.Struct("<8I")
# Board-ID in INFO_UF2.TXT begins so → family number of the specification's registry.
FAMILIES = {"RPI-RP2": 0xE48BFF56}
_FLASH_BEGINS = {"RPI-RP2": 0x10000000}


class Uf2Drive:
    """A mounted drive.

    Args:
        drive: Where it is mounted.
        options: Address of the image; 0: where the board's flash begins.
    """

    def __init__(self, drive: str, options: Options = NO_OPTIONS) -> None:
        self._drive, self._address = Path(drive), options.address

    def probe(self) -> Found:
        """Read the drive's description; see `Flasher.probe`."""
        try:
            text = (self._drive / INFO_FILE).read_text(errors="replace")[:4096]
        except OSError as error:
            raise EdgeopsError(
                "E-MCU-PORT",
                f"{self._drive}: {error.strerror}",
                "Hold BOOTSEL while you plug the board in, and mount it.",
            ) from error
        facts = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
        board = facts.get("Board-ID", "")
        if not board:
            raise EdgeopsError("E-MCU-ANSWER", f"{self._drive}/{INFO_FILE} names no board")
        return Found(board, facts)

    def plan(self, image: bytes) -> list[str]:
        """Say what is written; see `Flasher.plan`."""
        count = sum(1 for _ in blocks(image, self._address, 0))
        return [f"write {len(image)} bytes as {count} blocks to {self._drive / IMAGE_FILE}"]

    def write(self, image: bytes, *, on_progress: Callable[[int, int], object] = lambda _done, _all: None) -> None:
        """Copy the blocks; the board starts by itself when it has the last one."""
        board = self.probe().board
        family = next((number for name, number in FAMILIES.items() if board.startswith(name)), None)
        if family is None:
            known = ", ".join(FAMILIES)
            raise EdgeopsError("E-MCU-REFUSED", f"board {board} is of no known family; known: {known}")
        begins = next(number for name, number in _FLASH_BEGINS.items() if board.startswith(name))
        data = b"".join(blocks(image, self._address or begins, family))
        try:
            with (self._drive / IMAGE_FILE).open("wb", buffering=0) as out:
                for offset in range(0, len(data), 64 * BLOCK):
                    out.write(data[offset : offset + 64 * BLOCK])
                    on_progress(min(offset + 64 * BLOCK, len(data)), len(data))
                os.fsync(out.fileno())
        except OSError as error:
            # The drive goes away with the last block: the board starts then.
            if (self._drive / INFO_FILE).exists():
                raise EdgeopsError("E-MCU-PORT", f"{self._drive}: {error.strerror}") from error

    def verify(self, image: bytes) -> None:
        """Nothing can be read back: a boot loader that took the last block starts the image, and its drive is gone."""
        if (self._drive / INFO_FILE).exists():
            raise EdgeopsError("E-MCU-ANSWER", f"{self._drive} is still there: the board did not take the image")

    def reset(self) -> None:
        """Nothing is to be done: the board starts when it has the image."""


def blocks(image: bytes, address: int, family: int) -> Iterator[bytes]:
    """Give an image as UF2 blocks.

    Args:
        image: Bytes; the last block is filled with zeros.
        address: Of the first byte, a multiple of 256.
        family: Number of the board's family.

    Raises:
        EdgeopsError: E-MCU-BLOB; nothing to write, or an address that no block begins at, or past the last one.
    """
    if not image or address % PAYLOAD or not 0 <= address <= (1 << 32) - len(image):
        raise EdgeopsError("E-MCU-BLOB", f"{len(image)} bytes at {address:#x} are no UF2 image")
    count = -(-len(image) // PAYLOAD)
    for number in range(count):
        part = image[number * PAYLOAD : (number + 1) * PAYLOAD].ljust(PAYLOAD, b"\0")
        place = address + number * PAYLOAD
        head = _HEAD.pack(_START, _SECOND, _FAMILY_PRESENT, place, PAYLOAD, number, count, family)
        yield (head + part).ljust(BLOCK - 4, b"\0") + struct.pack("<I", _END)
