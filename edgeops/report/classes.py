"""What is told of classes and of the worst samples: rows from counts, with labels for numbers. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.examination import Confusion, Examination, Why, WorstSample
from edgeops.report.model import Classes, ClassRow, Matrix, Mistake, Sample

MAX_ROWS = 40
MAX_MATRIX = 24
MAX_MISTAKES = 15
MAX_WORST = 24
MAX_PICTURE_BYTES = 64 << 10
_PNG = b"\x89PNG\r\n\x1a\n"
_WHY = {
    Why.CHANGED: "the model that was handed over does better here",
    Why.WRONG: "wrong before and after",
    Why.FAR: "far from the model that was handed over",
    Why.UNKNOWN: "",
}


def rows(seen: Examination, labels: Sequence[str]) -> Classes | None:
    """Return the figures per class; None: decisions were not held against true classes.

    Raises:
        EdgeopsError: E-WIRE-MALFORMED; the counts contradict each other.
    """
    before, after = seen.source, seen.artifact
    if before is None or after is None:
        return None
    for table in (before, after):
        _check(table)
    number = max(len(before.support), len(after.support))
    names = [_label(index, labels) for index in range(number)]
    every = [_row(index, names[index], before, after) for index in range(number)]
    known = [row for row in every if row.support or row.artifact_precision is not None]
    shown = known if len(known) <= MAX_ROWS else sorted(known, key=_lowest_first)[:MAX_ROWS]
    return Classes(
        output=seen.output,
        rows=tuple(shown),
        hidden=len(known) - len(shown),
        matrix=_matrix(after, names) if number <= MAX_MATRIX and not after.left_out else None,
        mistakes=tuple(
            Mistake(truth=names[true], decided=names[said], count=count)
            for true, said, count in after.pairs[:MAX_MISTAKES]
        ),
    )


def worst(seen: Examination, labels: Sequence[str]) -> tuple[Sample, ...]:
    """Return the worst samples in words; a picture that is no PNG, or a large one, is left out."""
    classed = seen.kind in ("probabilities", "logits") and seen.metric != "mae"
    return tuple(_sample(one, labels if classed else None) for one in seen.worst[:MAX_WORST])


def _sample(one: WorstSample, labels: Sequence[str] | None) -> Sample:
    def said(value: float | None) -> str:
        if value is None:
            return ""
        return f"{value:.4g}" if labels is None else _label(int(value), labels)

    fits = one.picture.startswith(_PNG) and len(one.picture) <= MAX_PICTURE_BYTES
    return Sample(
        index=one.index,
        why=_WHY[one.why],
        truth=said(one.truth),
        source=said(one.source),
        artifact=said(one.artifact),
        confidence=one.confidence,
        wrong=one.wrong,
        error=one.error,
        picture=one.picture if fits else b"",
        trace=one.trace,
    )


def _row(index: int, label: str, before: Confusion, after: Confusion) -> ClassRow:
    support = _at(before.support, index)
    return ClassRow(
        label=label,
        support=support,
        source_recall=_share(_at(before.right, index), support),
        source_precision=_share(_at(before.right, index), _at(before.decided, index)),
        artifact_recall=_share(_at(after.right, index), support),
        artifact_precision=_share(_at(after.right, index), _at(after.decided, index)),
    )


def _matrix(table: Confusion, names: Sequence[str]) -> Matrix:
    counts = [[0] * len(names) for _ in names]
    for index, right in enumerate(table.right):
        counts[index][index] = right
    for true, said, count in table.pairs:
        counts[true][said] = count
    return Matrix(labels=tuple(names), counts=tuple(tuple(row) for row in counts))


def _check(table: Confusion) -> None:
    number = len(table.support)
    fits = len(table.decided) == len(table.right) == number and all(
        0 <= true < number and 0 <= said < number and count >= 0 for true, said, count in table.pairs
    )
    if not fits or min((*table.support, *table.decided, *table.right), default=0) < 0:
        raise EdgeopsError("E-WIRE-MALFORMED", "evidence: its counts of classes contradict each other")


def _label(index: int, labels: Sequence[str]) -> str:
    return labels[index] if 0 <= index < len(labels) else str(index)


def _lowest_first(row: ClassRow) -> float:
    return 2.0 if row.artifact_recall is None else row.artifact_recall


def _at(values: Sequence[int], index: int) -> int:
    return values[index] if index < len(values) else 0


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
