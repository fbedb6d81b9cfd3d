"""What a report says, as values: the JSON form, and all that the page and the Markdown are written from."""

from __future__ import annotations

import msgspec

from edgeops.contracts.rigs import RigResult
from edgeops.contracts.wire import Wire


class Fact(Wire, frozen=True, kw_only=True):
    """One line of a table: what, and what it is."""

    what: str
    value: str


class Figure(Wire, frozen=True, kw_only=True):
    """One figure with its unit, its limit if there is one, and how it was obtained."""

    what: str
    value: float | None
    unit: str
    how: str
    limit: float | None = None


class Estimate(Wire, frozen=True, kw_only=True):
    """A value with its confidence interval; None: not known."""

    value: float
    low: float | None = None
    high: float | None = None


class Quality(Wire, frozen=True, kw_only=True):
    """The task's metric on `samples` samples: the model that was handed over, the artifact, and the drop (paired)."""

    metric: str
    source: Estimate
    artifact: Estimate
    drop: Estimate
    confidence: float
    samples: int


class ClassRow(Wire, frozen=True, kw_only=True):
    """One class: how often it is true, and which share is found (recall) and right (precision); None: no such case."""

    label: str
    support: int
    source_recall: float | None
    source_precision: float | None
    artifact_recall: float | None
    artifact_precision: float | None


class Mistake(Wire, frozen=True, kw_only=True):
    """How often one class was taken for another."""

    truth: str
    decided: str
    count: int


class Matrix(Wire, frozen=True, kw_only=True):
    """The confusion matrix: a row per true class, a column per decision."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class Classes(Wire, frozen=True, kw_only=True):
    """Decisions by class.

    Args:
        output: The judged output.
        rows: Of the classes, those with the lowest recall first where not all are shown.
        hidden: Classes that are not shown.
        matrix: Of the artifact; None: too many classes.
        mistakes: Of the artifact, the most frequent first.
    """

    output: str
    rows: tuple[ClassRow, ...]
    hidden: int = 0
    matrix: Matrix | None = None
    mistakes: tuple[Mistake, ...] = ()


class Apart(Wire, frozen=True, kw_only=True):
    """How far one output is from its reference: `step` says which of both steps, or both together."""

    output: str
    step: str
    cosine: float
    sqnr_db: float
    max_abs: float
    agreement: float | None
    samples: int


class GateRow(Wire, frozen=True, kw_only=True):
    """A gate: what was measured, the limit, and whether it decides or only informs."""

    gate: str
    measured: float | None
    limit: float
    passed: bool
    binding: bool
    detail: str


class CandidateRow(Wire, frozen=True, kw_only=True):
    """A candidate of the compile.

    `error` is 1 - cosine of its worst output; `ratio` its median latency over that of float on the same runtime,
    measured in turns with it.
    """

    scheme: str
    runtime: str
    precision: str
    size_bytes: int
    latency_ms: float | None
    ratio: float | None
    error: float | None
    metric: float | None
    pareto: bool
    passed: bool
    chosen: bool
    reason: str
    how: str


class Sample(Wire, frozen=True, kw_only=True):
    """One of the worst samples, with its picture (PNG) or its lines."""

    index: int
    why: str
    truth: str
    source: str
    artifact: str
    confidence: float | None = None
    wrong: int = 0
    error: float | None = None
    picture: bytes = b""
    trace: tuple[tuple[float, ...], ...] = ()


class Spread(Wire, frozen=True, kw_only=True):
    """What a tensor's values looked like: counts between edges, the first below and the last above all edges."""

    tensor: str
    role: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Change(Wire, frozen=True, kw_only=True):
    """One difference; `better` None: neither. `breaking`: what clients send or get is not what it was."""

    what: str
    before: str
    after: str
    better: bool | None = None
    breaking: bool = False


class Differences(Wire, frozen=True, kw_only=True):
    """What changes on devices that hold another release; `against` says which, in words."""

    against: str
    same: bool
    changes: tuple[Change, ...]


class ProfileReport(Wire, frozen=True, kw_only=True):
    """All about one bundle.

    Args:
        verdict: `passed`, `failed`, or `unknown` where there is no evidence.
        reason: Why it was chosen, or why it fails.
        data: On which data quality was judged.
    """

    profile: str
    digest: str
    verdict: str
    reason: str
    runtime: str
    precision: str
    scheme: str
    arch: str
    data: str
    facts: tuple[Fact, ...]
    figures: tuple[Figure, ...] = ()
    quality: Quality | None = None
    classes: Classes | None = None
    apart: tuple[Apart, ...] = ()
    gates: tuple[GateRow, ...] = ()
    candidates: tuple[CandidateRow, ...] = ()
    worst: tuple[Sample, ...] = ()
    drift: tuple[Spread, ...] = ()
    drift_samples: int = 0
    lineage: tuple[Fact, ...] = ()
    differences: Differences | None = None


class Report(Wire, frozen=True, kw_only=True):
    """A report: of a bundle, of a compile's bundles, or of a release with its version and number.

    `rigs` is what rigs of boards found of the release, by rigs that the fleet trusts.
    """

    model: str
    version: str
    made_at_s: float
    edgeops: str
    handed_over: tuple[Fact, ...]
    profiles: tuple[ProfileReport, ...]
    lineage: tuple[Fact, ...]
    rigs: tuple[RigResult, ...] = ()
    schema_version: int = msgspec.field(default=1, name="schema")
