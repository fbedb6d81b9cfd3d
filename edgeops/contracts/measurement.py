"""What was measured of bundles on one machine, for people and for the compiler's choice; and how a device is asked."""

from __future__ import annotations

import msgspec

from edgeops.contracts.evidence import Latency, Source
from edgeops.contracts.wire import Wire

MAX_CANDIDATES = 64
MAX_RUNS = 1000
MAX_THREADS = 64
# How long a device may be asked for; it also remembers for so long what it has answered.
MAX_VALID_S = 86400.0

# Where candidates lie among a model's targets: no version of a release has this form.
CANDIDATES = "candidates"


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
        power_mode: What a Jetson's nvpmodel says; empty: it has none. Latencies hold in this mode.
        clocks: Governor and frequencies of the processor's clock, if it tells.
    """

    source: Source
    device: str
    arch: str
    processor: str
    threads: int
    at_s: float
    bundles: tuple[BundleFigures, ...]
    power_mode: str = ""
    clocks: str = ""
    schema_version: int = msgspec.field(default=1, name="schema")


def candidate_path(model: str, digest: str) -> str:
    """Return the TUF target path of a candidate: a bundle that is published to be measured, and no release."""
    return f"{model}/{CANDIDATES}/{digest.removeprefix('sha256:')}.edgeops"


class Candidate(Wire, frozen=True, kw_only=True):
    """A bundle to measure: its TUF target path, and its digest."""

    target: str
    digest: str


class MeasureCommand(Wire, frozen=True, kw_only=True):
    """Asks one device to measure candidates, signed by the key of desired state.

    Args:
        fleet: The fleet.
        connection: The device that is meant, and no other.
        unit: `self`.
        id: Of this command: the device answers it once, however often it comes.
        issued_at_s: Control plane's clock.
        expires_at_s: Nothing is begun after this.
        bundles: What to measure, in this order.
        threads: Inference threads; 0: as many as the device's profile serves with.
        runs: Timed inferences of each.
    """

    fleet: str
    connection: str
    unit: str
    id: str
    issued_at_s: float
    expires_at_s: float
    bundles: tuple[Candidate, ...]
    threads: int
    runs: int
    schema_version: int = msgspec.field(default=1, name="schema")


class MeasureAnswer(Wire, frozen=True, kw_only=True):
    """A device's answer to a command, signed by its key: the figures, or why there are none (code and cause)."""

    fleet: str
    connection: str
    unit: str
    id: str
    measurements: Measurements | None = None
    code: str = ""
    what: str = ""
    schema_version: int = msgspec.field(default=1, name="schema")
