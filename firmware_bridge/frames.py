"""Frames of the serial line: bytes in, packets out, and back. `SPEC.md`, "Frame"."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator
from typing import NamedTuple

PACKET_MAX = 2048
PACKET_HEADER = 8
_FIRST = b"\x06\x09"
_CONTINUE = b"\x04\x14"
_LINE_MAX = 127
_CHARACTERS_PER_LINE = (_LINE_MAX - 3) // 4 * 4
_FRAME_MAX = 2 + PACKET_MAX + 2


def encode(packet: bytes) -> bytes:
    """Return a packet as a frame: lines of at most 127 bytes."""
    body = struct.pack(">H", len(packet) + 2) + packet + struct.pack(">H", binascii.crc_hqx(packet, 0))
    text = base64.b64encode(body)
    lines = [text[at : at + _CHARACTERS_PER_LINE] for at in range(0, len(text), _CHARACTERS_PER_LINE)]
    return b"".join((_CONTINUE if number else _FIRST) + line + b"\n" for number, line in enumerate(lines))


class Counts(NamedTuple):
    """Frames that came whole, were damaged, or were too large."""

    frames: int = 0
    damaged: int = 0
    oversized: int = 0


class FrameReceiver:
    """Takes bytes as they come and gives whole packets; damage costs the frame that it is in and no other."""

    def __init__(self) -> None:
        self._line: bytearray | None = None
        self._mark = 0
        self._body: bytearray | None = None
        self._padded = False
        self.counts = Counts()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes; yield each packet that they complete."""
        for byte in data:
            packet = self._take(byte)
            if packet is not None:
                yield packet

    def _take(self, byte: int) -> bytes | None:
        if byte == _FIRST[0]:
            self._mark, self._line = byte, None
        elif self._mark == _FIRST[0]:
            self._drop("damaged")
            if byte == _FIRST[1]:
                self._body, self._padded, self._line = bytearray(), False, bytearray()
        elif self._mark == _CONTINUE[0]:
            self._mark = 0
            self._line = bytearray() if byte == _CONTINUE[1] and self._body is not None else None
        elif self._line is None:
            self._mark = byte if byte == _CONTINUE[0] else 0
        elif byte == ord("\n"):
            return self._end_line()
        elif byte != ord("\r"):
            self._line.append(byte)
            if len(self._line) == 4:
                self._take_group(bytes(self._line))
        return None

    def _drop(self, reason: str) -> None:
        if self._body is not None:
            self.counts = self.counts._replace(**{reason: getattr(self.counts, reason) + 1})
        self._body, self._line, self._mark = None, None, 0

    def _take_group(self, group: bytes) -> None:
        assert self._body is not None
        try:
            # The device's decoder ignores the bits that padding leaves over, and so does this one.
            data = base64.b64decode(group, validate=True)
        except binascii.Error:
            data = b""
        if not data or self._padded:
            return self._drop("damaged")
        self._line, self._padded = bytearray(), group.endswith(b"=")
        self._body += data
        announced = self._announced
        if announced is None:
            return None
        if len(self._body) > _FRAME_MAX or announced > PACKET_MAX + 2:
            return self._drop("oversized")
        if announced < PACKET_HEADER + 2 or len(self._body) > announced + 2:
            return self._drop("damaged")
        return None

    @property
    def _announced(self) -> int | None:
        body = self._body or b""
        return int.from_bytes(body[:2], "big") if len(body) >= 2 else None

    def _end_line(self) -> bytes | None:
        unfinished, self._line = bool(self._line), None
        announced = self._announced
        if unfinished:
            self._drop("damaged")
        elif announced is None or self._body is None or len(self._body) < announced + 2:
            if self._padded:
                self._drop("damaged")
        elif binascii.crc_hqx(bytes(self._body[2:]), 0) != 0:  # the crc of data with its crc is 0
            self._drop("damaged")
        else:
            packet = bytes(self._body[2:-2])
            self._body = None
            self.counts = self.counts._replace(frames=self.counts.frames + 1)
            return packet
        return None
