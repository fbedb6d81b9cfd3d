"""An ESP32 in download mode, as the boot loader in its ROM and the stub that esptool loads into it answer.

Protocol: Espressif's documentation of esptool, "Serial Protocol": SLIP frames, commands with a checksum, registers,
memory, and a flash that is written deflated. What esptool uploads as its stub is kept, not run: from then on the
answers are the stub's.
"""

from __future__ import annotations

import hashlib
import os
import select
import struct
import threading
import tty
import zlib
from collections.abc import Iterator

END, ESC, ESC_END, ESC_ESC = 0xC0, 0xDB, 0xDC, 0xDD
FLASH_SIZE = 4 * 1024 * 1024
(
    FLASH_BEGIN, FLASH_DATA, FLASH_END, MEM_BEGIN, MEM_END, MEM_DATA, SYNC, WRITE_REG, READ_REG, SPI_PARAMS,
    SPI_ATTACH, BAUD, DEFL_BEGIN, DEFL_DATA, DEFL_END, MD5,
) = (0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0A, 0x0B, 0x0D, 0x0F, 0x10, 0x11, 0x12, 0x13)  # fmt: skip
# What an ESP32 has in the register that tells chips apart; and what its SPI flash, of 4 MB, says it is.
REGISTERS = {0x40001000: 0x00F01D83, 0x3FF42080: 0x001640EF}
UNKNOWN, CHECKSUM = 0x05, 0x07


def unframed(data: bytearray) -> Iterator[bytes]:
    """Take whole frames out of what has come."""
    while END in data:
        first = data.index(END)
        try:
            last = data.index(END, first + 1)
        except ValueError:
            del data[:first]
            return
        raw = bytes(data[first + 1 : last])
        del data[: last if not raw else last + 1]
        if raw:
            yield raw.replace(bytes((ESC, ESC_END)), bytes((END,))).replace(bytes((ESC, ESC_ESC)), bytes((ESC,)))


def framed(data: bytes) -> bytes:
    body = data.replace(bytes((ESC,)), bytes((ESC, ESC_ESC))).replace(bytes((END,)), bytes((ESC, ESC_END)))
    return bytes((END,)) + body + bytes((END,))


class Esp32Rom:
    """The chip on a pseudo terminal.

    Args:
        flips: Places in the flash where a bit is written wrongly.
    """

    def __init__(self, *, flips: tuple[int, ...] = ()) -> None:
        self.flash = bytearray(b"\xff" * FLASH_SIZE)
        self.stub = b""
        self.commands: list[int] = []
        self._flips = flips
        self._has_stub = False
        self._place = self._left = 0
        self._inflate = zlib.decompressobj()
        self._line, self._end = os.openpty()
        tty.setraw(self._line)
        tty.setraw(self._end)
        self.port = os.ttyname(self._end)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Esp32Rom:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(60)
        os.close(self._line)
        os.close(self._end)

    def _run(self) -> None:
        data = bytearray()
        while not self._stopped.is_set():
            ready, _, _ = select.select([self._line], [], [], 0.02)
            if ready:
                data += os.read(self._line, 4096)
                for frame in unframed(data):
                    self._take(frame)

    def _take(self, frame: bytes) -> None:
        direction, command, size, checksum = struct.unpack_from("<BBHI", frame)
        body = frame[8:]
        assert (direction, size) == (0, len(body))
        self.commands.append(command)
        if command == SYNC:
            for _ in range(8):
                self._answer(command, value=0x07071220)
        elif command == READ_REG:
            (address,) = struct.unpack("<I", body)
            self._answer(command, value=REGISTERS.get(address, 0))
        elif command == MD5:
            place, length = struct.unpack_from("<II", body)
            digest = hashlib.md5(self.flash[place : place + length])
            self._answer(command, digest.digest() if self._has_stub else digest.hexdigest().encode())
        elif command in (MEM_DATA, FLASH_DATA, DEFL_DATA):
            data = body[16:]
            total = 0xEF
            for byte in data:
                total ^= byte
            if total != checksum:
                self._answer(command, error=CHECKSUM)
                return
            self._keep(command, data)
            self._answer(command)
        elif command in (FLASH_BEGIN, DEFL_BEGIN):
            self._left, _, _, self._place = struct.unpack_from("<IIII", body)
            self._inflate = zlib.decompressobj()
            self._answer(command)
        elif command in (MEM_BEGIN, WRITE_REG, SPI_PARAMS, SPI_ATTACH, BAUD, FLASH_END, DEFL_END):
            self._answer(command)
        elif command == MEM_END:
            self._answer(command)
            self._has_stub = True
            os.write(self._line, framed(b"OHAI"))
        else:
            self._answer(command, error=UNKNOWN)

    def _keep(self, command: int, data: bytes) -> None:
        if command == MEM_DATA:
            self.stub += data
            return
        if command == DEFL_DATA:
            data = self._inflate.decompress(data)
        data = data[: self._left]
        self.flash[self._place : self._place + len(data)] = data
        for place in self._flips:
            if self._place <= place < self._place + len(data):
                self.flash[place] ^= 1
        self._place += len(data)
        self._left -= len(data)

    def _answer(self, command: int, data: bytes = b"", *, value: int = 0, error: int = 0) -> None:
        status = bytes((1 if error else 0, error)) + (b"" if self._has_stub else bytes(2))
        body = data + status
        os.write(self._line, framed(struct.pack("<BBHI", 1, command, len(body), value) + body))
