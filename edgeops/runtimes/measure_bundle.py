"""What is measured of one bundle on this machine, as a record: the same for a person, the compiler and the fleet."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

from edgeops.contracts.bundle import BundleManifest
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.measurement import BundleFigures
from edgeops.runtimes.measure import MeasureRequest, measure_apart

_WARMUP = 10
_CPUINFO = Path("/proc/cpuinfo")
_CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_POWER_MODE = re.compile(r"^NV Power Mode:(.*)$", re.MULTILINE)
_ASK_WITHIN_S = 10.0
_MAX_SAID = 100


def figures_of(
    directory: Path,
    digest: str,
    manifest: BundleManifest,
    *,
    threads: int,
    runs: int,
    versions: Mapping[str, str],
    memory_mib: int = 8192,
    cancelled: threading.Event | None = None,
) -> BundleFigures:
    """Measure a bundle that was checked, in a process of its own; why that was not possible is a result too.

    Args:
        directory: Where it lies.
        digest: Its digest.
        manifest: Its manifest.
        threads: Inference threads.
        runs: Timed inferences.
        versions: Runtimes that are here: name → version.
        memory_mib: What the process may take.
        cancelled: Gives it up.

    Raises:
        MeasuringCancelledError: As asked.
    """
    measured, failure = None, ""
    request = MeasureRequest(bundle=str(directory.resolve()), threads=threads, warmup=min(_WARMUP, runs), runs=runs)
    try:
        measured = measure_apart(request, memory_mib=memory_mib, cancelled=cancelled)
    except EdgeopsError as error:
        failure = f"{error.code}: {error.what}"
    return BundleFigures(
        digest=digest,
        artifact_sha256=manifest.files[manifest.artifact].sha256,
        model=manifest.model,
        profile=manifest.profile,
        scheme=manifest.scheme,
        runtime=manifest.runtime,
        runtime_version=versions.get(manifest.runtime, ""),
        measured=measured,
        failure=failure,
    )


def processor() -> str:
    """Return the processor's name as Linux tells it; empty where it does not."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else ""


def power_mode() -> str:
    """Return the power mode that a Jetson's nvpmodel tells; empty elsewhere. A latency holds in that mode."""
    program = shutil.which("nvpmodel") or shutil.which("nvpmodel", path="/usr/sbin")
    if program is None:
        return ""
    try:
        said = subprocess.run(
            [program, "-q"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_ASK_WITHIN_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = _POWER_MODE.search(said.decode(errors="replace"))
    return found[1].strip()[:_MAX_SAID] if found else ""


def clocks() -> str:
    """Return governor and frequencies of the processor's clock as Linux tells them; empty where it does not."""
    governor = _read(_CPUFREQ / "scaling_governor")
    khz = [_read(_CPUFREQ / name) for name in ("scaling_cur_freq", "scaling_max_freq")]
    if not governor:
        return ""
    if not all(one.isdecimal() for one in khz):
        return governor
    now, most = (int(one) // 1000 for one in khz)
    return f"{governor}, {now} of at most {most} MHz"


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()[:_MAX_SAID]
    except OSError:
        return ""
