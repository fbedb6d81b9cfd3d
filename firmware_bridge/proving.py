"""Run a blob on an emulated board of its processor, without a release: what it answers, and how many instructions."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge import blobs
from firmware_bridge.build import EMULATED_BOARDS, SECTOR_SIZE, SLOT_SECTORS
from firmware_bridge.emulated import FLASH_SIZE, Board, HostBoard, QemuBoard
from firmware_bridge.flash_image import flash_image
from firmware_bridge.link import SmpLink
from firmware_bridge.ports import SerialPort

# Only firmware that is built here, for a board that is not there, accepts this key: it signs nothing that ships.
_SECRET = hashlib.sha256(b"edgeops: blobs on a proving board").digest()
_INSTRUCTIONS_PER_S = 1_000_000_000
_ANSWER_WITHIN_S = 30.0


class Proved(NamedTuple):
    """An output, and the instructions that it took; 0 where they were not counted."""

    output: bytes
    instructions: int


class ProvingBoard:
    """A board that leaves the factory with one blob.

    Args:
        blob: Header and code.
        count_instructions: Count them; it is slower.

    Raises:
        EdgeopsError: E-DEPENDENCY; a compiler, the emulator or cryptography is missing. E-MCU-BLOB; it is no blob, or
            the board refuses it. E-NET-UNREACHABLE; the firmware's crypto library cannot be fetched.
    """

    def __init__(self, blob: bytes, *, count_instructions: bool = False) -> None:
        self.header = blobs.read(blob)
        self._counts = count_instructions and self.header.cpu is not blobs.Cpu.X86_64
        self._folder = Path(tempfile.mkdtemp(prefix="edgeops-board-"))
        self._board: Board | None = None
        self._link: SmpLink | None = None
        try:
            self._start(blob)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ProvingBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The board's name."""
        return _machine(self.header.cpu) or "host"

    def close(self) -> None:
        """Take the power and remove the board's files."""
        if self._link is not None:
            self._link.close()
        if self._board is not None:
            self._board.close()
        self._link = self._board = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def infer(self, data: bytes) -> Proved:
        """Run one inference.

        Raises:
            EdgeopsError: As `SmpLink.infer`.
        """
        if self._link is None:
            raise EdgeopsError("E-MCU-SILENT", "the proving board is switched off")
        found = self._link.infer(data)
        instructions = found.ticks * _INSTRUCTIONS_PER_S // found.ticks_hz if self._counts else 0
        return Proved(found.output, instructions)

    def _start(self, blob: bytes) -> None:
        try:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        except ImportError as error:
            raise EdgeopsError("E-DEPENDENCY", "cryptography is not installed", "pip install 'edgeops[mcu]'") from error
        secret = Ed25519PrivateKey.from_private_bytes(_SECRET)
        public = secret.public_key().public_bytes_raw()
        signed = blob + blobs.sign(blob, version="proving", counter=1, public_key=public, signer=secret.sign)
        content = flash_image(signed, sector_size=SECTOR_SIZE, slot_sectors=SLOT_SECTORS)
        flash = self._folder / "flash.bin"
        machine = _machine(self.header.cpu)
        if machine is None:
            flash.write_bytes(content)
            self._board = HostBoard(flash, [public])
        else:
            flash.write_bytes(content.ljust(FLASH_SIZE, b"\xff"))
            self._board = QemuBoard(machine, flash, [public], count_instructions=self._counts)
        self._board.power_on()
        self._link = SmpLink(SerialPort(self._board.url), answer_within_s=_ANSWER_WITHIN_S)
        if self._link.model_info().hash != blobs.identity(signed):
            raise EdgeopsError(
                "E-MCU-BLOB",
                f"board {self.name} refuses the blob: {self.header.ram_size} bytes of RAM, {len(signed)} of flash",
            )


def _machine(cpu: blobs.Cpu) -> str | None:
    """Return the emulated board of a processor; None for this machine's own."""
    wanted = cpu.name.lower().replace("_", "-")
    return next((board.machine for board in EMULATED_BOARDS.values() if board.cpu == wanted), None)
