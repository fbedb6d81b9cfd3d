"""Control groups (v2) for workers, where a group of the agent's own was delegated to it: by systemd, or by a container.

A limit of a process counts its own private memory only. A group counts what a worker shares and starts, too, and
nothing in it outlives its worker. Where there is none, workers have the limits of processes alone.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst; systemd, Control Group APIs and Delegation.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)

MAX_PROCESSES = 512
# The kernel ends what is in a group and empties it a moment later.
_EMPTY_WITHIN_S = 2.0
# A group has processes or groups, never both: the agent itself moves into this one.
_AGENT, _WORKER = "agent", "worker-"
_WANTED = ("memory", "pids")


class Group:
    """One worker's group."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def end(self) -> None:
        """End what is left in it, and remove it."""
        with contextlib.suppress(OSError):  # before Linux 5.14; the worker itself has ended
            (self._path / "cgroup.kill").write_text("1")
        deadline_s = time.monotonic() + _EMPTY_WITHIN_S
        while not _removed(self._path) and time.monotonic() < deadline_s:
            time.sleep(0.01)


class Groups:
    """The groups below one that is the agent's own.

    Args:
        base: The group; it has no processes of its own any more.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        for leftover in base.glob(f"{_WORKER}*"):
            Group(leftover).end()

    def enclose(self, pid: int, memory_mib: float) -> Group | None:
        """Put a process that was just started into a group of its own; None: it could not be done, which is logged.

        Args:
            pid: The process.
            memory_mib: What all in the group may have together.
        """
        path = self._base / f"{_WORKER}{pid}"
        try:
            path.mkdir()
            _limit(path, "memory.max", str(int(memory_mib * (1 << 20))))
            _limit(path, "memory.oom.group", "1")
            _limit(path, "pids.max", str(MAX_PROCESSES))
            (path / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            log.warning("worker %d has no control group: %s", pid, error)
            _removed(path)
            return None
        return Group(path)


def find(*, with_parent: bool, root: Path = Path("/")) -> Groups | None:
    """Return the groups for workers; None where this agent has no group for itself alone, or may not divide it.

    Args:
        with_parent: The process that started this one is the agent, too.
        root: Where `proc` and the group file system lie.
    """
    ours = {os.getpid(), os.getppid()} if with_parent else {os.getpid()}
    try:
        own = own_group(root)
        if own is None:
            return None
        base = own.parent if own.name == _AGENT else own
        there = (base / "cgroup.controllers").read_text().split()
        # Whoever else is in it was not given to us; and who has no limits to give needs no groups.
        if "memory" not in there or not _processes(own) <= ours or not _processes(base) <= ours:
            return None
        (base / _AGENT).mkdir(exist_ok=True)
        for pid in sorted(_processes(base)):
            (base / _AGENT / "cgroup.procs").write_text(str(pid))
        (base / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in _WANTED if name in there))
    except OSError as error:
        log.info("workers have no control groups: %s", error)
        return None
    return Groups(base)


def own_group(root: Path = Path("/")) -> Path | None:
    """Return the directory of this process's group; None: there is no second version here.

    Raises:
        OSError: `proc` cannot be read.
    """
    line = next((line for line in (root / "proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), None)
    # ID PARENT MAJOR:MINOR ROOT MOUNT-POINT OPTIONS ... - TYPE SOURCE ...
    mounts = (line.split() for line in (root / "proc/self/mountinfo").read_text().splitlines())
    mount = next((words for words in mounts if words[words.index("-") + 1] == "cgroup2"), None)
    if line is None or mount is None:
        return None
    below, seen = line.removeprefix("0::"), mount[3].rstrip("/")
    return root / mount[4].lstrip("/") / below.removeprefix(seen).lstrip("/")


def limit_own(memory_mib: float, root: Path = Path("/")) -> None:
    """Limit the memory of the group that this worker is in, if it is in one of its own."""
    try:
        own = own_group(root)
        if own is not None and own.name.startswith(_WORKER):
            _limit(own, "memory.max", str(int(memory_mib * (1 << 20))))
    except OSError as error:
        log.info("the control group keeps its limit: %s", error)


def _processes(group: Path) -> set[int]:
    return {int(pid) for pid in (group / "cgroup.procs").read_text().split()}


def _limit(group: Path, name: str, value: str) -> None:
    """Set a limit, where the kernel has such a one."""
    if (group / name).exists():
        (group / name).write_text(value)


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
