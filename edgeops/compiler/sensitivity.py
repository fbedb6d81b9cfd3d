"""Which parts of a graph must stay float: ranked by what they do to the whole model's answers. Pure.

Local figures mislead: a layer with a poor signal-to-noise ratio may not matter at the output, and the reverse.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.evidence import OutputError
from edgeops.contracts.wire import Wire
from edgeops.runtimes import compare

# Quality on calibration samples is asked to be this much better than the gates, which judge other samples.
ENOUGH = 0.65
GROUPS = 8
SEGMENTS = 24
# Fewer class decisions than this say too little about a share near 1.
_LEAST_DECISIONS = 200


class Aim(Wire, frozen=True, kw_only=True):
    """The quality that is asked for: the hand-over's gates, and each model output's kind."""

    cosine_min: float
    sqnr_min_db: float
    agreement_min: float
    kinds: dict[str, str]


def shortfall(aim: Aim, reference: Mapping[str, NDArray[Any]], got: Mapping[str, NDArray[Any]]) -> float:
    """Return how far answers are from what is asked for: 0 is perfect, below 1 passes; the worst output counts.

    Args:
        aim: What is asked for.
        reference: Model output → float answers [n, ...].
        got: The same from the quantized model.
    """
    worst = 0.0
    for name, kind in aim.kinds.items():
        error = compare.output_error(name, kind, reference[name], got[name])
        decisions = reference[name].size // max(1, reference[name].shape[-1])
        if decisions < _LEAST_DECISIONS:
            error = msgspec.structs.replace(error, agreement=None)
        worst = max(worst, error_shortfall(error, aim.cosine_min, aim.sqnr_min_db, aim.agreement_min))
    return worst


def error_shortfall(error: OutputError, cosine_min: float, sqnr_min_db: float, agreement_min: float) -> float:
    """Return how far one output's errors are from what is asked for: 0 is perfect, up to 1 passes."""
    agreement = 1.0 if error.agreement is None else error.agreement
    return max(
        (1 - error.cosine) / max(1 - cosine_min, 1e-9),
        10 ** ((sqnr_min_db - error.sqnr_db) / 20),
        (1 - agreement) / max(1 - agreement_min, 1e-9),
    )


def keep_float(costs: Sequence[float], score: Callable[[frozenset[int]], float]) -> frozenset[int]:
    """Choose the segments that stay float: few that bring the whole model to `ENOUGH`, else the best that was found.

    Neighbours are tried together first, group by group; groups join in the order of what they gain alone, as long as
    they gain more. If that is not enough, pairs of neighbouring groups are tried so too: a tensor between two groups
    is float only if both are. Then each segment goes back to int8 if the model stays good enough without it, those
    that compute most first.

    Args:
        costs: How much each segment of the graph computes, in order and in any unit.
        score: Shortfall of the model whose given segments are float; infinite where it cannot be built.
    """
    count = len(costs)
    best, least = frozenset[int](), score(frozenset())
    if least <= ENOUGH or count < 2:
        return best
    groups = [frozenset(group.tolist()) for group in np.array_split(np.arange(count), min(GROUPS, count))]
    pairs = [first | second for first, second in itertools.pairwise(groups)]
    for round_ in (groups, pairs):
        best, least = _join(round_, best, least, score)
        if least <= ENOUGH:
            break
    if least <= ENOUGH:
        for index in sorted(best, key=lambda index: (-costs[index], -index)):
            if len(best) > 1 and score(best - {index}) <= ENOUGH:
                best -= {index}
    return best


def _join(
    groups: Sequence[frozenset[int]], best: frozenset[int], least: float, score: Callable[[frozenset[int]], float]
) -> tuple[frozenset[int], float]:
    """Add groups in the order of what each gains on its own; return the best choice and its shortfall."""
    alone = {group: score(best | group) for group in groups if not group <= best}
    start = best
    # What is left of a graph without more is a float model that pays for conversions.
    for group in sorted(alone, key=lambda group: alone[group])[: max(1, 3 * len(groups) // 4)]:
        joined = best | group
        found = alone[group] if best == start else score(joined)
        if found < least:
            best, least = joined, found
        if least <= ENOUGH:
            break
    return best, least


def segments(heavy: Sequence[bool], count: int = SEGMENTS) -> list[list[int]]:
    """Cut operators, in their order, into contiguous segments with about equally many heavy ones.

    A segment begins at a heavy operator (a convolution or matrix product), so that it is never parted from the
    activation and scaling that follow it and are fused with it.

    Args:
        heavy: Whether each operator is a heavy one.
        count: Most segments.

    Returns:
        Indices of operators per segment; every operator is in one.
    """
    places = [index for index, one in enumerate(heavy) if one]
    if not places:
        return [list(range(len(heavy)))] if heavy else []
    starts = [int(chunk[0]) for chunk in np.array_split(places, min(count, len(places)))]
    starts[0] = 0
    return [list(range(start, end)) for start, end in zip(starts, [*starts[1:], len(heavy)], strict=True)]
