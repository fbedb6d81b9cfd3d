"""Worker processes under limits: a crash, a hang or a hunger for memory ends one step, not the compile."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from edgeops.compiler.store import Failure
from edgeops.compiler.worker import RESPONSE_NAME, Request, Response
from edgeops.contracts.wire import decode, encode

_POLL_S = 0.02
MEMORY_POLL_S = 0.2
_LOG_TAIL_BYTES = 2000
_PROCESSES = Path("/proc")


class Limits(NamedTuple):
    """What a process may take: wall-clock seconds, and resident memory of it and its children."""

    timeout_s: float
    memory_mib: float


class Ended(NamedTuple):
    """How a process ended: its exit status (negative: the signal), or why it was ended; and its last words."""

    status: int
    ended_because: str | None
    log_tail: str

    @property
    def reason(self) -> str | None:
        """Why this is a failure, or None."""
        if self.ended_because is not None:
            return self.ended_because
        if self.status < 0:
            return f"crashed ({signal.Signals(-self.status).name})"
        if self.status > 0:
            last = self.log_tail.strip().splitlines()[-1:]
            return f"ended with status {self.status}: {' '.join(last)[:300]}"
        return None


class CancelledError(Exception):
    """The compile was interrupted."""


# Numeric libraries take all cores by default, and their results may depend on how many there are.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TQDM_DISABLE": "1",
}


def run_limited(
    command: Sequence[str],
    *,
    limits: Limits,
    log: Path,
    environment: Mapping[str, str] = {},
    cancel: threading.Event | None = None,
    cwd: Path | None = None,
    own_group: bool = True,
    on_memory: Callable[[float], None] = lambda _: None,
) -> Ended:
    """Run a program and end it when it breaks a limit.

    Args:
        command: Program and arguments.
        limits: What it may take.
        log: File for its output.
        environment: Added to this process's.
        cancel: Ends it when set.
        cwd: Its working directory.
        own_group: Give it a process group and end that, children and all. False inside a worker: the worker's own
            group holds everything that it starts.
        on_memory: Told a few times a second what it and its children have resident, in MiB.

    Raises:
        CancelledError: `cancel` was set; the group is ended.
        OSError: The program cannot be started.
    """
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            # A pipe that ends with this process, however that ends.
            stdin=subprocess.PIPE if own_group else subprocess.DEVNULL,
            start_new_session=own_group,
            env={**os.environ, **ENVIRONMENT, **environment},
            cwd=cwd,
        )
    because: str | None = None
    try:
        because = _watch(process, limits, cancel, on_memory)
    finally:
        if own_group:
            # Children of a converter may outlive it.
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
    return Ended(process.returncode, because, tail_of(log))


def tail_of(log: Path) -> str:
    """Return the last words of a file."""
    with log.open("rb") as source:
        source.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        return source.read().decode(errors="replace")


def run_worker(
    request: Request,
    limits: Limits,
    *,
    cancel: threading.Event | None = None,
    on_memory: Callable[[float], None] = lambda _: None,
) -> Response:
    """Run a step in a worker process, which ends when this process does.

    Returns:
        Its response; where it broke a limit or crashed, a response with `error`.

    Raises:
        CancelledError: `cancel` was set.
    """
    with tempfile.TemporaryDirectory(prefix="edgeops-worker-") as folder:
        path = Path(folder) / "request.json"
        path.write_bytes(encode(request))
        ended = run_limited(
            [sys.executable, "-m", "edgeops.compiler.worker", str(path)],
            limits=limits,
            log=Path(folder) / "log",
            cancel=cancel,
            cwd=Path(folder),
            on_memory=on_memory,
        )
        return responded(ended, Path(folder))


def responded(ended: Ended, folder: Path) -> Response:
    """Return the response that an ended worker left; where it broke a limit or crashed, one with `error`."""
    if ended.reason is not None:
        return Response(error=Failure(code="E-COMPILE-CANDIDATE", what=ended.reason))
    return decode((folder / RESPONSE_NAME).read_bytes(), Response, what="response of a worker")


def default_memory_mib(parallel: int) -> float:
    """Return how much memory each of `parallel` workers may take: an even share of four fifths of all there is."""
    return max(1024.0, 0.8 * _total_mib() / max(1, parallel))


def available_mib() -> float:
    """Return how much memory could be taken now: of the machine, and of the control group this process is in."""
    import psutil

    machine = float(psutil.virtual_memory().available) / 2**20
    allowed, taken = _group_mib("memory.max"), _group_mib("memory.current")
    return machine if allowed is None or taken is None else min(machine, allowed - taken)


def _total_mib() -> float:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    allowed = _group_mib("memory.max")
    return machine if allowed is None else min(machine, allowed)


def _group_mib(name: str) -> float | None:
    """Return a figure of the control group (version 2), None where there is none or no limit."""
    try:
        path = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip().lstrip("/")
        return int((Path("/sys/fs/cgroup") / path / name).read_text()) / 2**20
    except (OSError, ValueError):
        return None


def _watch(
    process: subprocess.Popen[bytes],
    limits: Limits,
    cancel: threading.Event | None,
    on_memory: Callable[[float], None],
) -> str | None:
    start = time.monotonic()
    next_memory = start + MEMORY_POLL_S
    # The zombie is left until its group is ended: its id cannot be given to another process before.
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        now = time.monotonic()
        if cancel is not None and cancel.is_set():
            raise CancelledError
        if now - start > limits.timeout_s:
            return f"took more than {limits.timeout_s:.0f} s"
        if now >= next_memory:
            next_memory = now + MEMORY_POLL_S
            used = resident_mib(process.pid)
            on_memory(used)
            if used > limits.memory_mib:
                return f"took more than {limits.memory_mib:.0f} MiB of memory"
        time.sleep(_POLL_S)
    return None


def resident_mib(pid: int) -> float:
    """Return what a process and all that it started have resident."""
    pages, family = 0, [pid]
    while family:
        member = family.pop()
        # One that ends meanwhile takes nothing.
        with contextlib.suppress(OSError, IndexError):
            pages += int((_PROCESSES / str(member) / "statm").read_text().split()[1])
            family += _children(member)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _children(pid: int) -> list[int]:
    """Return what a process started itself: from the kernel, or, where it keeps no such list, from all processes."""
    tasks = _PROCESSES / str(pid) / "task"
    lists = list(tasks.glob("*/children"))
    if lists or not tasks.exists():
        return [int(child) for one in lists for child in one.read_text().split()]
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []
