"""A disk that fails: every change of a folder is counted, and from a chosen one on it is refused with a chosen error.

Sees what `power.recording` sees: `os` and `open`, so `pathlib`, `shutil` and `zipfile` too; no native libraries.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import math
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock


class FailingDisk:
    """Counts changes below a folder and refuses some.

    Args:
        root: The folder.
        error: `errno` of what is refused: ENOSPC, EROFS, EIO.
        first: Number of the first change that is refused, from 0.
        count: How many are refused from there on.
    """

    def __init__(self, root: Path, error: int, first: float = 0, count: float = math.inf) -> None:
        self._root, self._error, self._first, self._count = Path(os.path.realpath(root)), error, first, count
        self.changes = 0
        self.refused = 0
        self._lock = threading.Lock()

    def admit(self) -> None:
        """Count a change.

        Raises:
            OSError: It is refused.
        """
        with self._lock:
            number = self.changes
            self.changes += 1
            if self._first <= number < self._first + self._count:
                self.refused += 1
                raise OSError(self._error, os.strerror(self._error))

    def holds(self, path: Any, dir_fd: int | None = None) -> bool:
        """Say whether a path, or an open file, lies below the folder."""
        if isinstance(path, int):
            path = f"/proc/self/fd/{path}"
        elif dir_fd is not None and not os.fsdecode(path).startswith("/"):
            path = f"/proc/self/fd/{dir_fd}/{os.fsdecode(path)}"
        real = Path(os.path.realpath(path))
        return real == self._root or self._root in real.parents


class _FailingFile(io.FileIO):
    disk: FailingDisk

    def write(self, data: Any) -> int:
        self.disk.admit()
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        self.disk.admit()
        return super().truncate(size)


@contextlib.contextmanager
def failing(disk: FailingDisk) -> Iterator[FailingDisk]:
    """Let changes of this process, all its threads, below the disk's folder pass by it."""
    real_open, real_io_open = os.open, io.open

    def on_path(real: Callable[..., Any], dir_fd_name: str = "dir_fd") -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **named: Any) -> Any:
            if disk.holds(path, named.get(dir_fd_name)):
                disk.admit()
            return real(path, *rest, **named)

        return call

    def open_fd(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and disk.holds(path, dir_fd):
            disk.admit()
        return real_open(path, flags, mode, dir_fd=dir_fd)

    def open_file(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+") or not disk.holds(file):
            return real_io_open(file, mode, buffering, *rest, **named)
        disk.admit()
        raw = _FailingFile(file, mode.replace("b", "").replace("t", ""), opener=named.pop("opener", None))
        raw.disk = disk
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **named)

    with contextlib.ExitStack() as stack:
        for name in ("write", "ftruncate", "sendfile", "fsync", "fdatasync", "unlink", "remove", "rmdir", "mkdir"):
            stack.enter_context(mock.patch.object(os, name, on_path(getattr(os, name))))
        for name in ("rename", "replace"):
            stack.enter_context(mock.patch.object(os, name, on_path(getattr(os, name), "src_dir_fd")))
        for name in ("chmod", "symlink"):
            stack.enter_context(mock.patch.object(os, name, on_path(getattr(os, name))))
        stack.enter_context(mock.patch.object(os, "open", open_fd))
        for module in (io, builtins):
            stack.enter_context(mock.patch.object(module, "open", open_file))
        yield disk
