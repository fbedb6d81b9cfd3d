"""One user at a time for each board: locks that the kernel gives back when their holder ends, however it ends.

A lock file is for all who share a cache. A board that is there once, whoever uses it, has a name in the kernel beside
it: a CI's own account and a person never have it at once.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import socket
import struct
import time
from pathlib import Path
from types import TracebackType

from edgeops.contracts.errors import EdgeopsError
from edgeops.intake.cache import cache_dir
from hil.rig import (
    Arm64UserSpec,
    BoardSpec,
    LabgridMcuSpec,
    LabgridSpec,
    LocalSpec,
    Rig,
    SerialMcuSpec,
    SshSpec,
    kind_of,
)

# Boards that are not this cache's own: a host, a line, a target.
_THERE_ONCE = ("ssh ", "serial ", "labgrid ")
_CREDENTIALS = "3i"  # struct ucred

_held: list[Reservation] = []


def resource_of(rig: Rig, board: BoardSpec) -> str:
    """Return what a board occupies: two rigs that name one piece of hardware share it."""
    if isinstance(board, LocalSpec | Arm64UserSpec):
        return kind_of(board)
    if isinstance(board, SshSpec):
        return f"ssh {board.host.lower()}:{board.port}"
    if isinstance(board, SerialMcuSpec):
        return f"serial {board.port if '://' in board.port else os.path.realpath(board.port)}"
    if isinstance(board, LabgridSpec | LabgridMcuSpec):
        return f"labgrid {os.path.realpath(Path(board.environment).expanduser())} {board.target}"
    return f"emulated {rig.name} {board.name}"


class Reservation:
    """Holds a board as long as the context lasts.

    Args:
        resource: See `resource_of`.
        wait_s: How long to wait for who has it.

    Raises:
        EdgeopsError: E-HIL-BUSY; another run has it, which is named.
    """

    def __init__(self, resource: str, wait_s: float = 0.0) -> None:
        folder = lock_folder()
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(resource.encode()).hexdigest()[:16]
        self._path, self._name = folder / f"{name}.lock", b"\0edgeops-hil-" + name.encode()
        self._is_one = resource.startswith(_THERE_ONCE)
        self._claim: socket.socket | None = None
        self._file = self._path.open("a+")
        deadline_s = time.monotonic() + wait_s
        while (holder := self._take()) is not None:
            if time.monotonic() >= deadline_s:
                self._file.close()
                raise EdgeopsError(
                    "E-HIL-BUSY", f"{resource} is in use by {holder}", "Wait for it to end, or give --wait."
                )
            time.sleep(0.2)
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": platform.node(), "since_s": time.time()}))
        self._file.flush()
        _held.append(self)

    def _take(self) -> str | None:
        """Take the locks; return who has them, None: we do."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._holder()
        if not self._is_one:
            return None
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(self._name)
            claim.listen(8)
        except OSError as error:
            claim.close()
            if error.errno != errno.EADDRINUSE:
                raise
            fcntl.flock(self._file, fcntl.LOCK_UN)
            return self._claimant()
        self._claim = claim
        return None

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give it back."""
        if self in _held:
            _held.remove(self)
        if self._claim is not None:
            self._claim.close()
        self._file.close()

    @property
    def files(self) -> tuple[int, ...]:
        """Its open files: a process that inherits them shares it, and gives its share back by its end."""
        return (self._file.fileno(), *(() if self._claim is None else (self._claim.fileno(),)))

    def _holder(self) -> str:
        try:
            said = json.loads(self._path.read_text())
            return f"process {int(said['pid'])}, for {time.time() - float(said['since_s']):.0f} s"
        except (ValueError, KeyError, TypeError):
            return "another run"

    def _claimant(self) -> str:
        """Return who has the name: a run of another user, or of this one with another cache."""
        try:
            with socket.socket(socket.AF_UNIX) as asking:
                asking.settimeout(1.0)
                asking.connect(self._name)
                pid, uid, _ = struct.unpack(_CREDENTIALS, asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError:
            return "another run"
        return f"process {pid} of user {uid}"


def shared_locks() -> tuple[int, ...]:
    """Return the open files of all that this process has reserved."""
    return tuple(file for reservation in _held for file in reservation.files)


def lock_folder() -> Path:
    """Return where the locks lie."""
    return cache_dir() / "hil" / "locks"
