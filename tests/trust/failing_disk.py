"""A disk that fails: the k-th call that changes it below a folder ends with an error, or with half of the bytes."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock


class FailingDisk:
    """Counts the calls that `durable` makes to change files below a folder; from the armed one on, all of them fail.

    Args:
        folder: What lies on the disk.
        code: What the calls fail with: ENOSPC, EROFS or EIO.
    """

    def __init__(self, folder: Path, code: int = errno.ENOSPC) -> None:
        self._folder, self._code = str(folder.resolve()), code
        self.calls, self._fail_from = 0, 0
        self._open: set[int] = set()

    @contextlib.contextmanager
    def failing_from(self, call: int) -> Iterator[None]:
        """Let this and all following calls fail; 0: count only."""
        self.calls, self._fail_from = 0, call
        with contextlib.ExitStack() as stack:
            for name in ("open", "write", "fsync", "rename"):
                stack.enter_context(mock.patch.object(os, name, self._wrapped(name, getattr(os, name))))
            yield

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **named: Any) -> Any:
            if isinstance(first, int):
                concerned = first in self._open
            else:
                concerned = str(first).startswith(self._folder)
                if name == "open" and not rest[0] & (os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY):
                    concerned = False
            if not concerned:
                return real(first, *rest, **named)
            self.calls += 1
            if self._fail_from and self.calls >= self._fail_from:
                if name == "write" and self._code == errno.ENOSPC and len(rest[0]) > 1:
                    real(first, bytes(rest[0])[: len(rest[0]) // 2])
                raise OSError(self._code, os.strerror(self._code))
            result = real(first, *rest, **named)
            if name == "open":
                self._open.add(result)
            return result

        return call
