"""What is measured of one bundle on this machine, as a record: the same for a person, the compiler and the fleet."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from edgeops.contracts.bundle import BundleManifest
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.measurement import BundleFigures
from edgeops.runtimes.measure import MeasureRequest, measure_apart

_WARMUP = 10
_CPUINFO = Path("/proc/cpuinfo")


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
