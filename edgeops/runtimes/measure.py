"""The one measuring harness of compiler and agent: latency, load time and peak memory, in process or apart.

`python -m edgeops.runtimes.measure` reads one JSON request on stdin and answers with one JSON line: native code that
crashes, hangs or eats memory then costs one measurement and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeops.contracts.bundle import MANIFEST_NAME, BundleManifest
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Latency
from edgeops.contracts.measurement import Measured
from edgeops.contracts.wire import Wire, decode, encode
from edgeops.runtimes import golden
from edgeops.runtimes.bundle_session import open_session
from edgeops.runtimes.registry import backend

_KIB = 1024
# Exit status of a measuring process that says why; 1 is Python's own for an exception.
_REFUSED = 3
_STATUS = Path("/proc/self/status")
_OOM_SCORE = Path("/proc/self/oom_score_adj")
OOM_SCORE_ADJ = 800
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.05


class MeasuringCancelledError(Exception):
    """A measurement was given up because its `cancelled` event was set."""


class MeasureRequest(Wire, frozen=True, kw_only=True):
    """What to measure, and how.

    Args:
        bundle: Directory of a bundle that was checked.
        threads: Inference threads.
        warmup: Untimed runs.
        runs: Timed runs.
    """

    bundle: str
    threads: int = 1
    warmup: int = 3
    runs: int = 30


def latency(run: Callable[[], object], *, warmup: int, runs: int) -> Latency:
    """Time `run` after `warmup` untimed calls; medians and p95 over `runs` calls, in milliseconds of wall time."""
    for _ in range(warmup):
        run()
    return _summary([_time_ms(run) for _ in range(runs)])


def interleaved(
    first: Callable[[], object], second: Callable[[], object], *, warmup: int, runs: int
) -> tuple[Latency, Latency]:
    """Time two functions in turns, so that both see the same noise; which goes first alternates."""
    for _ in range(warmup):
        first()
        second()
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(runs):
        for which in ((0, 1), (1, 0))[turn % 2]:
            times[which].append(_time_ms((first, second)[which]))
    return _summary(times[0]), _summary(times[1])


def peak_memory_mib() -> float:
    """Return the peak resident memory of this process so far, in MiB, without that of its children.

    From /proc where there is one: `ru_maxrss` of a started program begins at the peak of the process that started it.
    """
    peak_mib = _status_mib("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB if peak_mib is None else peak_mib


def data_segment_mib() -> float:
    """Return what counts against the limit RLIMIT_DATA of this process, in MiB; 0 where the kernel does not tell."""
    return _status_mib("VmData") or 0.0


def _status_mib(name: str) -> float | None:
    """Return a figure that the kernel keeps of this process; None: it does not tell."""
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / _KIB
    return None


def measure_apart(
    request: MeasureRequest,
    *,
    timeout_s: float = 120,
    memory_mib: int = 8192,
    cancelled: threading.Event | None = None,
) -> Measured:
    """Measure a bundle in a process of its own: load time, latency, memory, and its golden vectors.

    That process ends with the thread that calls this, and is what the kernel ends first where memory runs out.

    Args:
        request: What and how.
        timeout_s: After this the process is killed.
        memory_mib: Limit of its data segment.
        cancelled: Gives it up.

    Raises:
        EdgeopsError: What the bundle's runtime raised; E-RUNTIME-RUN if the process died or hung.
        MeasuringCancelledError: As asked.
    """
    command = [sys.executable, "-m", "edgeops.runtimes.measure", str(memory_mib), str(os.getpid())]
    deadline_s = time.monotonic() + timeout_s
    asked: bytes | None = encode(request)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            while True:
                try:
                    said, complaints = process.communicate(asked, timeout=_POLL_S)
                    break
                except subprocess.TimeoutExpired as error:
                    asked = None  # it is on its way
                    if cancelled is not None and cancelled.is_set():
                        raise MeasuringCancelledError from error
                    if time.monotonic() > deadline_s:
                        what = f"{request.bundle}: no answer in {timeout_s:.0f} s"
                        raise EdgeopsError("E-RUNTIME-RUN", what) from error
        finally:
            process.kill()
    lines = said.decode(errors="replace").strip().splitlines()
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise EdgeopsError("E-RUNTIME-RUN", f"{request.bundle}: the runtime's process died of {name}")
    if not lines or process.returncode not in (0, _REFUSED):
        raise EdgeopsError("E-RUNTIME-RUN", f"{request.bundle}: {complaints.decode(errors='replace')[-400:]}")
    if process.returncode == _REFUSED:
        code, what, next_step = json.loads(lines[-1])
        raise EdgeopsError(code, what, next_step)
    return decode(lines[-1], Measured, what="measurement")


def main() -> int:
    """Answer one request from stdin; return the exit status.

    Prints the measurement, or `[code, what, next step]` with status 3.
    """
    if len(sys.argv) > 2:
        _end_with(int(sys.argv[2]))
    # Native libraries print to stdout as they please: the answer has a channel of its own.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        status, answer = _answer()
        print(answer, file=answers)
    return status


def _answer() -> tuple[int, str]:
    limit = int(sys.argv[1]) << 20
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        request = decode(sys.stdin.buffer.read(), MeasureRequest, what="measure request")
        directory = Path(request.bundle)
        manifest = decode((directory / MANIFEST_NAME).read_bytes(), BundleManifest, what=str(directory))
        # Before the limit holds: without memory the plugin would be said not to exist.
        backend(manifest.runtime)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        answer = _measure(request, directory, manifest)
    except EdgeopsError as error:
        return _REFUSED, json.dumps([error.code, error.what, error.next_step])
    except MemoryError:
        return _REFUSED, json.dumps(
            ["E-RUNTIME-RUN", f"more than {limit >> 20} MiB of memory", "Measure it with a larger limit."]
        )
    return 0, encode(answer).decode()


def _end_with(parent_pid: int) -> None:
    """Have the kernel end this process with the one that wants the figures, and before any other for want of memory."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(_REFUSED)
    with contextlib.suppress(OSError):  # some containers forbid it
        _OOM_SCORE.write_text(f"{OOM_SCORE_ADJ}\n")


def _measure(request: MeasureRequest, directory: Path, manifest: BundleManifest) -> Measured:
    """Measure in this process."""
    vectors = golden.load(directory, manifest)
    feeds = {name: array[0] for name, array in vectors.inputs.items()}
    start = time.perf_counter_ns()
    with open_session(directory, manifest, threads=request.threads) as session:
        load_ms = (time.perf_counter_ns() - start) / 1e6
        timed = latency(lambda: session.run(feeds), warmup=request.warmup, runs=request.runs)
        peak = peak_memory_mib()
        replayed = golden.replay(session, manifest, vectors)
        return Measured(
            load_ms=load_ms,
            latency=timed,
            peak_memory_mib=peak,
            provider=session.provider,
            golden_vectors=replayed.vectors,
            source_min_cosine=replayed.min_cosine,
            own_max_abs=replayed.max_abs_diff,
        )


def _time_ms(run: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) / 1e6


def _summary(times_ms: list[float]) -> Latency:
    p50, p95 = np.percentile(times_ms, (50, 95))
    return Latency(p50_ms=float(p50), p95_ms=float(p95), runs=len(times_ms))


if __name__ == "__main__":
    sys.exit(main())
