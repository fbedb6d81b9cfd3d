"""The agent's log as lines of JSON in its state directory, within a bound: what a person reads on a device."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import logging.handlers
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_DIRECTORY, _FILE = "log", "agent.jsonl"
# With two files the log takes four mebibytes at most: weeks of a device that is well.
_FILE_BYTES, _OLDER_FILES = 2 << 20, 1
_POLL_S = 0.25


class _JsonLines(logging.Formatter):
    """Time, level, part of the agent, text, and the traceback of a defect."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        said: dict[str, Any] = {
            "at_s": round(record.created, 3),
            "level": record.levelname.lower(),
            "part": record.name.removeprefix("edgeops."),
            "text": record.getMessage(),
        }
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


class _Handler(logging.handlers.RotatingFileHandler):
    def _open(self) -> Any:
        # Other users of the machine need not know what the device does.
        return os.fdopen(os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), self.mode)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Go on: a full or read-only disk costs the line, never the agent."""

    def close(self) -> None:
        """Close the file; what a full disk still holds back is lost."""
        with contextlib.suppress(OSError):
            super().close()


def open_logbook(root: Path) -> None:
    """Have everything from INFO on written to the state directory's log; without effect where that is impossible."""
    try:
        (root / _DIRECTORY).mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = _Handler(root / _DIRECTORY / _FILE, maxBytes=_FILE_BYTES, backupCount=_OLDER_FILES)
    except OSError as error:
        logging.getLogger(__name__).error("no log is kept in %s: %s", root / _DIRECTORY, error)
        return
    handler.setFormatter(_JsonLines())
    handler.setLevel(logging.INFO)
    for other in logging.getLogger().handlers:
        other.setLevel(max(other.level, logging.getLogger().level))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(min(logging.INFO, logging.getLogger().level))


def read_logbook(root: Path, count: int) -> list[dict[str, Any]]:
    """Return the newest lines, oldest first; a line that a cut left half-written is passed over."""
    lines: collections.deque[str] = collections.deque(maxlen=count)
    for number in range(_OLDER_FILES, -1, -1):
        path = root / _DIRECTORY / (_FILE if number == 0 else f"{_FILE}.{number}")
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                lines.extend(file)
        except OSError:
            continue
    return [said for said in map(_read, lines) if said is not None]


def follow(root: Path) -> Iterator[dict[str, Any]]:
    """Yield lines as they are written, from now on, also after the file was begun anew."""
    path = root / _DIRECTORY / _FILE
    inode, place, rest = _inode(path), path.stat().st_size if path.exists() else 0, ""
    while True:
        if path.exists():
            if _inode(path) != inode:
                inode, place, rest = _inode(path), 0, ""
            with path.open(encoding="utf-8", errors="replace") as file:
                file.seek(place)
                rest += file.read()
                place = file.tell()
            *whole, rest = rest.split("\n")
            yield from (said for said in map(_read, whole) if said is not None)
        time.sleep(_POLL_S)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _read(line: str) -> dict[str, Any] | None:
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and "text" in said else None
