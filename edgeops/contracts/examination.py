"""What a bundle got right and wrong on the sample data, in detail: a part of the evidence, written for the report."""

from __future__ import annotations

from edgeops.contracts.wire import Wire, WireEnum


class Why(WireEnum):
    """Why a sample is among the worst."""

    CHANGED = "changed"  # the source was right, or nearer; the artifact is not
    WRONG = "wrong"  # both are wrong
    FAR = "far"  # no true answer is known: the artifact is far from the source
    UNKNOWN = "unknown"


class Confusion(Wire, frozen=True, kw_only=True):
    """Decisions against the true classes; all counts are of decisions, by class number.

    Args:
        support: How often a class is the true one.
        decided: How often it was decided for.
        right: How often it was both.
        pairs: Wrong decisions as (true, decided, count), the most frequent first.
        left_out: Wrong decisions that `pairs` does not list.
    """

    support: tuple[int, ...]
    decided: tuple[int, ...]
    right: tuple[int, ...]
    pairs: tuple[tuple[int, int, int], ...]
    left_out: int = 0


class WorstSample(Wire, frozen=True, kw_only=True):
    """One of the samples on which the artifact does worst.

    Classes are numbers; of a sample with several decisions or values it is the worst of them that is told.

    Args:
        index: Place in the data, from 0.
        why: Why it is here.
        truth: True class or value; None: not known.
        source: What the source answers.
        artifact: What the artifact answers.
        confidence: The artifact's share for its class.
        wrong: Wrong decisions, where there are several.
        error: Mean distance of values from what they should be, or of the artifact from the source.
        input: The input that is shown.
        picture: It as a PNG file, at most `MAX_PICTURE_SIDE` wide and high; empty: it is no picture.
        trace: It as lines of at most `MAX_TRACE_POINTS` points, one per channel; empty: it is not shown so.
    """

    index: int
    why: Why
    truth: float | None = None
    source: float | None = None
    artifact: float | None = None
    confidence: float | None = None
    wrong: int = 0
    error: float | None = None
    input: str = ""
    picture: bytes = b""
    trace: tuple[tuple[float, ...], ...] = ()


MAX_PICTURE_SIDE = 96
MAX_TRACE_POINTS = 128


class Examination(Wire, frozen=True, kw_only=True):
    """The judged output of source and artifact, sample by sample.

    Args:
        output: Its name.
        kind: Its kind, as in the hand-over.
        metric: `accuracy`, `mae` or `none`.
        data: Which data: `evaluation` or `calibration`.
        samples: How many.
        decisions: Class decisions per sample.
        source: The source's decisions; None: there are no true classes, or too many.
        artifact: The artifact's.
        worst: The worst samples, the worst first.
    """

    output: str
    kind: str
    metric: str
    data: str
    samples: int
    decisions: int = 1
    source: Confusion | None = None
    artifact: Confusion | None = None
    worst: tuple[WorstSample, ...] = ()


class HandedOver(Wire, frozen=True, kw_only=True):
    """What was handed over.

    Args:
        digest: Of all of it.
        file: The model's file.
        description: For people.
        files: File → hex SHA-256.
        opsets: Operator sets by domain.
        operators: Operator → how often.
        weights_bytes: Size of the weights.
    """

    digest: str
    file: str
    description: str = ""
    files: dict[str, str] = {}
    opsets: dict[str, int] = {}
    operators: dict[str, int] = {}
    weights_bytes: int = 0
