"""Telemetry that the broker does not have yet: an append-only log of bounded size, thinned before anything is lost.

The log is a folder of files. A window is appended to the newest file as one line, length and checksum before it, and
made durable; a file is removed once none of its windows is waited for. A cut within a line loses that window and no
other. What was removed from a file that is still there is told again after a restart: whoever has it knows it by boot
and sequence number, so each counts once.

Where there is no room, the oldest windows give up their histograms first: what they counted and how fast it was stays.
Once all have, the oldest give way, and the next window says how many did.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.telemetry import ModelWindow, Telemetry
from edgeops.contracts.wire import decode, encode

log = logging.getLogger(__name__)

MAX_BYTES = 8 << 20
# A file is full then; with a full log there are about this many of it.
_FILES = 64
_DISK_ERRORS = frozenset({"E-DISK-FULL", "E-DISK-WRITE"})
_SUFFIX, _OLD_SUFFIX = ".log", ".json"


class _Line(NamedTuple):
    """Where a window lies: its file, the place in it, its length, and whether its histograms were given up."""

    file: int
    offset: int
    length: int
    thinned: bool


class TelemetryQueue:
    """The log.

    Args:
        directory: Where it lies; made if it is not there.
        limit: How many windows are kept.
        max_bytes: How much they take.

    Raises:
        EdgeopsError: E-DISK-WRITE.
    """

    def __init__(self, directory: Path, limit: int, max_bytes: int = MAX_BYTES) -> None:
        durable.make_private_dir(directory)
        self._directory, self._limit, self._max_bytes = directory, limit, max_bytes
        self._lines: dict[int, _Line] = {}
        self._next = 1
        self._damaged = 0
        self._open: int | None = None
        self._open_bytes = 0
        for path in sorted(directory.iterdir(), key=lambda path: path.stem):
            if path.suffix in (_SUFFIX, _OLD_SUFFIX) and path.stem.isdigit():
                self._read_file(path)
        # More than there is room for were told or dropped, and counted, before: their file has others.
        while len(self) > limit or self.size > max_bytes:
            self.remove(min(self._lines))

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, number: int) -> bool:
        return number in self._lines

    @property
    def size(self) -> int:
        """Bytes of the windows that are kept."""
        return sum(line.length for line in self._lines.values())

    @property
    def is_full(self) -> bool:
        """Whether the next window has older ones thinned or dropped."""
        return len(self) >= self._limit or self.size >= self._max_bytes

    def put(self, window: Telemetry) -> int:
        """Keep a window; return its number. Where there is no room, older ones are thinned, then dropped and counted.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE; it is not kept, and the next one says so.
        """
        length = len(_framed(window))
        self._thin_until_room_for(length)
        # Counted first, dropped then: a cut between the two has a window too many, and none that nobody knows of.
        doomed = self._too_many(length)
        dropped = sum(1 + (gone.dropped_windows if (gone := self.read(number)) is not None else 0) for number in doomed)
        counted = window.dropped_windows + self._damaged + dropped
        try:
            number = self._append(msgspec.structs.replace(window, dropped_windows=counted))
        except EdgeopsError:
            self._damaged += 1
            raise
        self._damaged = 0
        for old in doomed:
            self.remove(old)
        return number

    def waiting(self, most: int) -> list[int]:
        """Return the numbers of the oldest windows."""
        return sorted(self._lines)[:most]

    def read(self, number: int) -> Telemetry | None:
        """Return a window; None if it is damaged."""
        line = self._lines[number]
        path = self._path(line.file)
        try:
            with path.open("rb") as file:
                file.seek(line.offset)
                return _window(file.read(line.length), str(path))
        except (OSError, EdgeopsError) as error:
            log.error("E-STATE-CORRUPT: %s: %s", path, error)
            return None

    def remove(self, number: int) -> None:
        """Forget a window: the broker has it. If the disk refuses, a restart sends it once more; each counts once."""
        line = self._lines.pop(number)
        if all(other.file != line.file for other in self._lines.values()):
            if line.file == self._open:
                self._open = None
            try:
                durable.remove_tree(self._path(line.file))
            except EdgeopsError as error:
                log.error("telemetry that is told could not be removed: %s", error)

    # Steps

    def _append(self, window: Telemetry) -> int:
        data, number = _framed(window), self._next
        if self._open is None or self._open_bytes + len(data) > self._max_bytes // _FILES:
            self._open, self._open_bytes = number, 0
        try:
            durable.append(self._path(self._open), data, mode=0o600)
        except EdgeopsError:
            # Whatever of it is there: nothing is put after it.
            self._open = None
            raise
        self._lines[number] = _Line(self._open, self._open_bytes, len(data), window.thinned)
        self._open_bytes += len(data)
        self._next += 1
        return number

    def _thin_until_room_for(self, length: int) -> None:
        """Thin the oldest windows until one more of this length fits, or none has detail."""
        while self.size + length > self._max_bytes:
            detailed = next((line.file for _, line in sorted(self._lines.items()) if not line.thinned), None)
            if detailed is None:
                return
            if detailed == self._open:
                self._open = None
            self._thin(detailed)

    def _too_many(self, length: int) -> list[int]:
        """Return the oldest windows that one more of this length leaves no room for."""
        oldest, room = sorted(self._lines), self._max_bytes - self.size - length
        doomed: list[int] = []
        for number in oldest:
            if room >= 0 and len(oldest) - len(doomed) < self._limit:
                break
            doomed.append(number)
            room += self._lines[number].length
        return doomed

    def _thin(self, file: int) -> None:
        """Write a file anew, in one step, without the histograms of its windows."""
        data, lines = b"", {}
        for number in [number for number, line in sorted(self._lines.items()) if line.file == file]:
            window = self.read(number)
            if window is None:
                self._damaged += 1
                del self._lines[number]
                continue
            framed = _framed(thinned(window))
            lines[number] = _Line(file, len(data), len(framed), thinned=True)
            data += framed
        if lines:
            durable.write_file(self._path(file), data, mode=0o600)
            self._lines |= lines
        else:
            durable.remove_tree(self._path(file))

    def _read_file(self, path: Path) -> None:
        """Take in what an earlier life of the agent has kept; versions before the log kept one window a file."""
        try:
            data = path.read_bytes()
        except OSError as error:
            log.error("E-STATE-CORRUPT: %s: %s", path, error)
            return
        if path.suffix == _OLD_SUFFIX:
            self._take_over(path, data)
            return
        file = int(path.stem)
        self._next = max(self._next, file)
        for offset, length in _lines_in(data):
            try:
                window = _window(data[offset : offset + length], str(path))
            except EdgeopsError as error:
                log.error("E-STATE-CORRUPT: %s", error)
                continue
            self._lines[self._next] = _Line(file, offset, length, window.thinned)
            self._next += 1
        if not any(line.file == file for line in self._lines.values()):
            self._next = max(self._next, file + 1)
            self._discard(path)

    def _take_over(self, path: Path, data: bytes) -> None:
        """Bring a window of an older agent into the log."""
        try:
            self._append(decode(data, Telemetry, what=str(path)))
        except EdgeopsError as error:
            log.error("%s: %s", path, error)
            if error.code in _DISK_ERRORS:
                return  # it stays, for a better day
        self._discard(path)

    @staticmethod
    def _discard(path: Path) -> None:
        try:
            durable.remove_tree(path)
        except EdgeopsError as error:
            log.error("%s", error)

    def _path(self, file: int) -> Path:
        return self._directory / f"{file:012d}{_SUFFIX}"


def thinned(window: Telemetry) -> Telemetry:
    """Return a window without its histograms: counts, errors and latencies stay."""

    def plain(model: ModelWindow) -> ModelWindow:
        return msgspec.structs.replace(model, sampled=0, inputs={}, outputs={}, confidence=(), class_mix=())

    return msgspec.structs.replace(window, models=tuple(plain(model) for model in window.models), thinned=True)


def count_waiting(directory: Path) -> int:
    """Return how many windows a folder holds, whoever uses it."""
    if not directory.is_dir():
        return 0
    logs = (path.read_bytes() for path in directory.glob(f"*{_SUFFIX}"))
    return sum(1 for data in logs for _ in _lines_in(data)) + len(list(directory.glob(f"*{_OLD_SUFFIX}")))


def _framed(window: Telemetry) -> bytes:
    """Return a window as a line: length and checksum in hexadecimal, and JSON, which has no line break."""
    body = encode(window)
    return b"%08x %08x %b\n" % (len(body), zlib.crc32(body), body)


def _lines_in(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield offset and length of each line that ends; what a cut has left of the last one is passed over."""
    offset = 0
    while (end := data.find(b"\n", offset)) >= 0:
        yield offset, end + 1 - offset
        offset = end + 1


def _window(line: bytes, what: str) -> Telemetry:
    """Read a line.

    Raises:
        EdgeopsError: E-WIRE-MALFORMED; it is damaged.
    """
    head, body = line[:18], line[18:-1]
    if head != b"%08x %08x " % (len(body), zlib.crc32(body)):
        raise EdgeopsError("E-WIRE-MALFORMED", f"{what}: a line whose checksum is another one")
    return decode(body, Telemetry, what=what)
