"""The judged output sample by sample: who is mistaken for whom, and where the artifact does worst. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.compiler.pictures import picture, trace
from edgeops.contracts.examination import Confusion, Examination, Why, WorstSample
from edgeops.runtimes.compare import classes

WORST_COUNT = 12
# Bounds of what the evidence holds, whatever the model: see catalog.MAX_EVIDENCE_BYTES.
MAX_CLASSES = 4096
MAX_PAIRS = 2000
_CLASS_KINDS = ("probabilities", "logits")


class Judged(NamedTuple):
    """What is examined.

    Args:
        output: The output's name.
        kind: Its kind.
        metric: `accuracy`, `mae` or `none`.
        source: The source's values [n, ...].
        artifact: The artifact's, same shape.
        labels: True answers, n along the first axis; None: there are none.
        inputs: Input name → [n, *shape].
    """

    output: str
    kind: str
    metric: str
    source: NDArray[Any]
    artifact: NDArray[Any]
    labels: NDArray[Any] | None
    inputs: Mapping[str, NDArray[Any]]


def examine(judged: Judged, *, data: str, pictures: bool) -> Examination:
    """Look at every sample.

    Args:
        judged: Source, artifact, truth and inputs.
        data: What the samples are: `evaluation` or `calibration`.
        pictures: Show the worst samples; otherwise only what was answered is kept.
    """
    count = len(judged.source)
    if judged.metric == "accuracy" or (judged.metric == "none" and judged.kind in _CLASS_KINDS):
        before, after = (classes(values, judged.kind).reshape(count, -1) for values in (judged.source, judged.artifact))
        truth = None if judged.labels is None else judged.labels.reshape(count, -1)
        worst = _worst_decisions(judged, before, after, truth)
        tables = (None, None) if truth is None else (confusion(truth, before), confusion(truth, after))
        decisions = before.shape[1]
    else:
        worst, tables, decisions = _worst_values(judged), (None, None), 1
    if pictures:
        name = next(iter(judged.inputs))
        worst = tuple(_shown(sample, name, np.asarray(judged.inputs[name][sample.index])) for sample in worst)
    return Examination(
        output=judged.output,
        kind=judged.kind,
        metric=judged.metric,
        data=data,
        samples=count,
        decisions=decisions,
        source=tables[0],
        artifact=tables[1],
        worst=worst,
    )


def confusion(truth: NDArray[Any], decided: NDArray[Any]) -> Confusion | None:
    """Count decisions against true classes, any shape; None: too many classes, or a negative one."""
    true, said = truth.reshape(-1).astype(np.int64), decided.reshape(-1).astype(np.int64)
    number = int(max(true.max(initial=0), said.max(initial=0))) + 1
    if number > MAX_CLASSES or min(true.min(initial=0), said.min(initial=0)) < 0:
        return None
    wrong = true != said
    keys, counts = np.unique(true[wrong] * number + said[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    kept = order[:MAX_PAIRS]

    def tally(values: NDArray[np.int64]) -> tuple[int, ...]:
        return tuple(int(one) for one in np.bincount(values, minlength=number))

    return Confusion(
        support=tally(true),
        decided=tally(said),
        right=tally(true[~wrong]),
        pairs=tuple((int(keys[at]) // number, int(keys[at]) % number, int(counts[at])) for at in kept),
        left_out=int(counts[order[MAX_PAIRS:]].sum()),
    )


def _worst_decisions(
    judged: Judged, before: NDArray[Any], after: NDArray[Any], truth: NDArray[Any] | None
) -> tuple[WorstSample, ...]:
    """Return the samples with wrong decisions: first where the source was right, then the surest of the wrong ones."""
    target = before if truth is None else truth
    wrong, source_wrong = after != target, before != target
    shares = _shares(judged.artifact, judged.kind).reshape(wrong.shape)
    newly = (wrong & ~source_wrong).sum(axis=1)
    sureness = np.where(wrong, shares, 0.0).max(axis=1)
    # The last key sorts first.
    order = np.lexsort((-sureness, -wrong.sum(axis=1), -newly))
    found = []
    for index in (int(at) for at in order[:WORST_COUNT] if wrong[at].any()):
        fresh = wrong[index] & ~source_wrong[index]
        candidates = fresh if fresh.any() else wrong[index]
        place = int(np.where(candidates, shares[index], -1.0).argmax())
        why = Why.FAR if truth is None else Why.CHANGED if fresh.any() else Why.WRONG
        found.append(
            WorstSample(
                index=index,
                why=why,
                truth=None if truth is None else float(truth[index, place]),
                source=float(before[index, place]),
                artifact=float(after[index, place]),
                confidence=round(float(shares[index, place]), 6),
                wrong=int(wrong[index].sum()),
            )
        )
    return tuple(found)


def _worst_values(judged: Judged) -> tuple[WorstSample, ...]:
    """Return the samples whose values are farthest from the truth, or from the source where no truth is known."""
    count = len(judged.source)
    source, artifact = (values.reshape(count, -1).astype(np.float64) for values in (judged.source, judged.artifact))
    known = judged.metric == "mae" and judged.labels is not None
    target = judged.labels.reshape(count, -1).astype(np.float64) if known and judged.labels is not None else source
    apart, source_apart = np.abs(artifact - target), np.abs(source - target)
    errors = apart.mean(axis=1)
    found = []
    for index in (int(at) for at in np.argsort(-errors, kind="stable")[:WORST_COUNT] if errors[at] > 0):
        place = int(apart[index].argmax())
        nearer = source_apart[index].mean() < errors[index]
        why = Why.FAR if not known else Why.CHANGED if nearer else Why.WRONG
        found.append(
            WorstSample(
                index=index,
                why=why,
                truth=float(target[index, place]) if known else None,
                source=float(source[index, place]),
                artifact=float(artifact[index, place]),
                error=float(errors[index]),
            )
        )
    return tuple(found)


def _shares(values: NDArray[Any], kind: str) -> NDArray[np.float64]:
    """Return the share of the class that was decided for, per decision; see `compare.classes`."""
    real = values.astype(np.float64)
    if values.ndim < 2 or values.shape[-1] == 1:
        one = real if kind == "probabilities" else 1 / (1 + np.exp(-np.clip(real, -500, 500)))
        yes: NDArray[np.float64] = np.maximum(one, 1 - one)
        return yes
    if kind == "probabilities":
        most: NDArray[np.float64] = real.max(axis=-1)
        return most
    top: NDArray[np.float64] = 1 / np.exp(real - real.max(axis=-1, keepdims=True)).sum(axis=-1)
    return top


def _shown(sample: WorstSample, name: str, values: NDArray[Any]) -> WorstSample:
    image = picture(values)
    return msgspec.structs.replace(sample, input=name, picture=image, trace=() if image else trace(values))
