"""The one measuring harness of compiler and agent: latency, load time and peak memory, in process or apart.

`python -m edgeops.runtimes.measure` reads one JSON request on stdin and answers with one JSON line: native code that
crashes, hangs or eats memory then costs one measurement and nothing else.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
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


def measure_apart(request: MeasureRequest, *, timeout_s: float = 120, memory_mib: int = 8192) -> Measured:
    """Measure a bundle in a process of its own: load time, latency, memory, and its golden vectors.

    Args:
        request: What and how.
        timeout_s: After this the process is killed.
        memory_mib: Limit of its data segment.

    Raises:
        EdgeopsError: What the bundle's runtime raised; E-RUNTIME-RUN if the process died or hung.
    """
    command = [sys.executable, "-m", "edgeops.runtimes.measure", str(memory_mib)]
    try:
        done = subprocess.run(command, input=encode(request), capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise EdgeopsError("E-RUNTIME-RUN", f"{request.bundle}: no answer in {timeout_s:.0f} s") from error
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise EdgeopsError("E-RUNTIME-RUN", f"{request.bundle}: the runtime's process died of {name}")
    if not lines or done.returncode not in (0, _REFUSED):
        raise EdgeopsError("E-RUNTIME-RUN", f"{request.bundle}: {done.stderr.decode(errors='replace')[-400:]}")
    if done.returncode == _REFUSED:
        code, what, next_step = json.loads(lines[-1])
        raise EdgeopsError(code, what, next_step)
    return decode(lines[-1], Measured, what="measurement")


def main() -> int:
    """Answer one request from stdin; return the exit status.

    Prints the measurement, or `[code, what, next step]` with status 3.
    """
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
