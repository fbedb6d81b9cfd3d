"""What was measured of bundles on one machine: by `edgeops measure`, for people and for the compiler's choice."""

from __future__ import annotations

import msgspec

from edgeops.contracts.evidence import Latency, Source
from edgeops.contracts.wire import Wire


class Measured(Wire, frozen=True, kw_only=True):
    """What was measured of one bundle.

    Args:
        load_ms: From nothing loaded to a session, the runtime's import included.
        latency: Of one inference on the first golden vector.
        peak_memory_mib: Peak resident memory of a process that only loads and runs it.
        provider: What ran it.
        golden_vectors: How many were replayed within their tolerances.
        source_min_cosine: Of the output that is least like the float source's.
        own_max_abs: Largest difference from the artifact's own answers on the compile host.
    """

    load_ms: float
    latency: Latency
    peak_memory_mib: float
    provider: str
    golden_vectors: int
    source_min_cosine: float
    own_max_abs: float


class BundleFigures(Wire, frozen=True, kw_only=True):
    """One bundle's figures, or why there are none.

    Args:
        digest: The bundle.
        artifact_sha256: Its artifact's file: what a candidate of a compile is known by.
        model: Its model.
        profile: Its device profile.
        scheme: How it was made.
        runtime: Its backend.
        runtime_version: The version that ran it; empty: it is not installed.
        measured: The figures; None: it could not be run.
        failure: Code and cause, where it could not.
    """

    digest: str
    artifact_sha256: str
    model: str
    profile: str
    scheme: str
    runtime: str
    runtime_version: str = ""
    measured: Measured | None = None
    failure: str = ""


class Measurements(Wire, frozen=True, kw_only=True):
    """Everything that was measured in one go on one machine.

    Args:
        source: How the figures were obtained.
        device: The machine's name.
        arch: Its processor architecture.
        processor: Its processor's name, if it says so.
        threads: Inference threads.
        at_s: When, seconds since 1970.
        bundles: In the order in which they were given.
    """

    source: Source
    device: str
    arch: str
    processor: str
    threads: int
    at_s: float
    bundles: tuple[BundleFigures, ...]
    schema_version: int = msgspec.field(default=1, name="schema")
