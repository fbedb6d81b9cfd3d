"""One user at a time for each board: a lock that the kernel gives back when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
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


def resource_of(rig: Rig, board: BoardSpec) -> str:
    """Return what a board occupies: two rigs that name one piece of hardware share it."""
    if isinstance(board, LocalSpec | Arm64UserSpec):
        return kind_of(board)
    if isinstance(board, SshSpec):
        return f"ssh {board.host}:{board.port}"
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
        self._path = folder / f"{hashlib.sha256(resource.encode()).hexdigest()[:16]}.lock"
        self._resource = resource
        self._file = self._path.open("a+")
        deadline_s = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    holder = self._holder()
                    self._file.close()
                    raise EdgeopsError(
                        "E-HIL-BUSY", f"{resource} is in use by {holder}", "Wait for it to end, or give --wait."
                    ) from None
                time.sleep(0.2)
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": platform.node(), "since_s": time.time()}))
        self._file.flush()

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give it back."""
        self._file.close()

    def _holder(self) -> str:
        try:
            said = json.loads(self._path.read_text())
            return f"process {int(said['pid'])}, for {time.time() - float(said['since_s']):.0f} s"
        except (ValueError, KeyError, TypeError):
            return "another run"


def lock_folder() -> Path:
    """Return where the locks lie."""
    return cache_dir() / "hil" / "locks"
