"""Evidence: measurements about a bundle. Signed apart; it never changes a digest."""

from __future__ import annotations

import enum

import msgspec

from edgeops.contracts.examination import Examination, HandedOver
from edgeops.contracts.wire import Wire


class Source(enum.Enum):
    """How a figure was obtained."""

    MEASURED_HOST = "measured on this host"
    MEASURED_DEVICE = "measured on device"
    ESTIMATED = "estimated"


class Latency(Wire, frozen=True, kw_only=True):
    """Latency of one inference in milliseconds over `runs` runs."""

    p50_ms: float
    p95_ms: float
    runs: int


class OutputError(Wire, frozen=True, kw_only=True):
    """How one output differs from its reference, over `samples` samples."""

    output: str
    cosine: float
    sqnr_db: float
    max_abs: float
    agreement: float | None
    samples: int


class Metric(Wire, frozen=True, kw_only=True):
    """The metric of the source and of the artifact, and the confidence interval of the drop (paired).

    The intervals of either alone have the same confidence; None: written by an edgeops that did not tell them.
    """

    name: str
    source: float
    artifact: float
    drop: float
    drop_low: float
    drop_high: float
    confidence: float
    samples: int
    source_interval: tuple[float, float] | None = None
    artifact_interval: tuple[float, float] | None = None


class GateResult(Wire, frozen=True, kw_only=True):
    """One gate: what was measured, the limit, and whether it decides (`binding`) or only informs."""

    gate: str
    measured: float | None
    limit: float
    passed: bool
    binding: bool
    detail: str = ""


class Setting(Wire, frozen=True, kw_only=True):
    """A limit that fails a candidate, and the nearest value of it that would not.

    Args:
        setting: As written in `handover.toml`: `gates.NAME`, or `budgets.NAME` of hand-over and profile.
        now: The limit.
        needed: The nearest limit that passes, rounded away from it to four digits.
    """

    setting: str
    now: float
    needed: float


class Opening(Wire, frozen=True, kw_only=True):
    """The layer at which an output's error opens.

    Args:
        output: The model's output that is worse than asked for.
        node: The layer's name, in the graph without the error.
        operator: Its operator.
        tensor: What it writes: the first bad tensor on the way to the output.
        unseen: Layers right before it whose tensors the artifact does not have, fused or folded: it may be one of them.
        before: The worst of what these read, over `samples`; None: it reads nothing that could be compared.
        after: What it writes.
    """

    output: str
    node: str
    operator: str
    tensor: str
    unseen: tuple[str, ...]
    before: OutputError | None
    after: OutputError


class OnBoard(Wire, frozen=True, kw_only=True):
    """What a microcontroller's blob did on an emulated board: every output equals the interpreter's, byte for byte.

    Args:
        board: The emulated board.
        vectors: Golden vectors that were run.
        output_bytes: Bytes that were compared, all of them equal.
        instructions: Of one inference: the median, counted.
        flash_bytes: Of the blob, without its signature.
        arena_bytes: RAM for activations and scratch.
        ram_bytes: RAM with input and output.
        interpreter_arena_bytes: What TensorFlow Lite for Microcontrollers plans for the same model on this host.
        kernels: CMSIS-NN, or portable C.
        compiler: Its version.
    """

    board: str
    vectors: int
    output_bytes: int
    instructions: int
    flash_bytes: int
    arena_bytes: int
    ram_bytes: int
    interpreter_arena_bytes: int
    kernels: str
    compiler: str


class CandidateEvidence(Wire, frozen=True, kw_only=True):
    """One candidate: what it is, what was measured, and why it was or was not chosen.

    `would_pass_with` holds the settings that, all together, let one that fails pass; empty where no setting does.
    `opens` is filled by `compile --explain`: of the conversion error for a float candidate, else of the quantization
    error. `not_explained` says why a candidate could not be looked into. `measured_on` names the device whose latency
    and memory these are; empty: this host's. `on_board` is there for the blob of a microcontroller that was packaged.
    """

    scheme: str
    runtime: str
    precision: str
    size_bytes: int
    conversion: tuple[OutputError, ...] = ()
    quantization: tuple[OutputError, ...] = ()
    end_to_end: tuple[OutputError, ...] = ()
    metric: Metric | None = None
    latency: Latency | None = None
    float_latency: Latency | None = None
    peak_memory_mib: float | None = None
    gates: tuple[GateResult, ...] = ()
    passed: bool = False
    chosen: bool = False
    pareto: bool = False
    reason: str = ""
    would_pass_with: tuple[Setting, ...] = ()
    opens: tuple[Opening, ...] = ()
    not_explained: str = ""
    source: Source = Source.MEASURED_HOST
    measured_on: str = ""
    on_board: OnBoard | None = None


class Host(Wire, frozen=True, kw_only=True):
    """The machine that measured: architecture, CPU model, cores and the tools' versions."""

    arch: str
    cpu: str
    cores: int
    python: str
    tools: dict[str, str] = {}


class FiguresOrigin(Wire, frozen=True, kw_only=True):
    """Where a device's figures come from that decided in place of this host's.

    Args:
        device: The device that measured.
        at_s: When, seconds since 1970 by its clock.
        sha256: Of the statement: the envelope that the device signed, or the file.
        signed_by: SHA-256 of the certificate of the device whose key signed it; empty: a file that nobody signed.
    """

    device: str
    at_s: float
    sha256: str
    signed_by: str = ""


class Evidence(Wire, frozen=True, kw_only=True):
    """All measurements of one compile for one profile. `bundle` is the digest that it speaks of.

    `examination` is of that bundle, and `arch` the profile's architecture: the host may have another. An edgeops before
    them wrote neither, nor what was handed over. `figures` says where the latency and memory come from that decided;
    None: measured on this host.
    """

    bundle: str
    model: str
    profile: str
    host: Host
    candidates: tuple[CandidateEvidence, ...]
    calibration_samples: int
    evaluation_samples: int
    created_at_s: float
    arch: str = ""
    handed_over: HandedOver | None = None
    examination: Examination | None = None
    figures: FiguresOrigin | None = None
    schema_version: int = msgspec.field(default=1, name="schema")
