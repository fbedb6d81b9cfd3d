"""Limits of drift: what chance alone does to windows of so many requests, found by resampling the evaluation data.

With few requests the distance of two histograms is far from 0 without any drift, and of many tensors the largest is
farther. So the limits are found for numbers of requests, and jointly: for each level, windows are drawn from the
samples, and beside each window a reference as large as the bundle's, since that is a sample too. A tensor's limit is
its own quantile, at the one level of significance at which the stated share of all windows goes beyond any limit of
any tensor (Westfall and Young, Resampling-Based Multiple Testing, 1993: the smallest p-value of each window).

A request counts as one draw, with all elements of its tensors: they are not independent of each other. That requests
themselves are is assumed: frames of one camera in a row are not, and such windows go beyond the limits more often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.compiler.passes.samples import spread
from edgeops.contracts.bundle import DriftCalibration, DriftLevel

FALSE_ALARM = 0.01
RESAMPLES = 2000
LEVELS = (30, 60, 125, 250, 500, 1000, 4000, 16000)
# Fewer samples do not say what chance does; of more than so many, windows are drawn from some.
MIN_SAMPLES, MAX_SAMPLES = 30, 1000
_SEED = 20_240_607
_PRIOR = 0.5


def draw(count: int, resamples: int = RESAMPLES) -> list[NDArray[Any]]:
    """Return how often each sample is in each reference, then in each window of each level, the largest level first.

    Args:
        count: Samples there are: as many as the bundle's reference has.
        resamples: References, and windows of each level, to draw.

    Returns:
        Unsigned integers, [resamples, samples]; of more than `MAX_SAMPLES` samples only those of `spread` count.
    """
    chance, rows = np.random.default_rng(_SEED), min(count, MAX_SAMPLES)
    shares = np.full(rows, 1.0 / rows)
    dtype = np.min_scalar_type(max(count, *LEVELS))
    sizes = (count, *reversed(LEVELS))
    return [chance.multinomial(size, shares, size=resamples).astype(dtype) for size in sizes]


def calibrate(
    per_sample: Mapping[str, NDArray[np.int64]],
    *,
    false_alarm: float = FALSE_ALARM,
    resamples: int = RESAMPLES,
    drawn: Sequence[NDArray[Any]] | None = None,
) -> DriftCalibration | None:
    """Return the limits; None: there are too few samples.

    Args:
        per_sample: Name of a tensor → counts per bin of each sample, [samples, bins].
        false_alarm: Share of windows without drift that may go beyond a limit of any tensor, in (0, 1).
        resamples: Windows to draw for each level.
        drawn: What `draw` gave for as many samples and resamples; None: it is drawn here.
    """
    if not per_sample:
        return None
    count = len(next(iter(per_sample.values())))
    if count < MIN_SAMPLES:
        return None
    names = sorted(per_sample)
    bins = [per_sample[name].shape[1] for name in names]
    # Bins that no sample is in, most classes of a large alphabet, are in no window either and add nothing.
    filled = [per_sample[name][:, per_sample[name].any(axis=0)] for name in names]
    # One matrix for all tensors: a window takes the same samples of each.
    table = np.concatenate(filled, axis=1).astype(np.float64)
    table = table[spread(count, MAX_SAMPLES)]
    cuts = np.cumsum([part.shape[1] for part in filled])[:-1]
    drawn = draw(count, resamples) if drawn is None else drawn
    references = np.split(drawn[0] @ table, cuts, axis=1)
    limits = np.zeros(2 * len(names))
    levels = []
    for requests, picked in zip(reversed(LEVELS), drawn[1:], strict=True):
        windows = np.split(picked @ table, cuts, axis=1)
        weight = min(count, requests)
        distances = [
            _psi(one, other, weight, number) for one, other, number in zip(references, windows, bins, strict=True)
        ]
        distances += [_jensen_shannon(one, other) for one, other in zip(references, windows, strict=True)]
        # Chance does less with more requests; where two draws have it otherwise, the wider limit holds for both.
        limits = np.maximum(limits, _joint_limits(np.stack(distances), false_alarm))
        told = [_up(float(limit)) for limit in limits]
        levels.append(
            DriftLevel(
                requests=requests,
                psi=dict(zip(names, told[: len(names)], strict=True)),
                js=dict(zip(names, told[len(names) :], strict=True)),
            )
        )
    return DriftCalibration(false_alarm=false_alarm, resamples=resamples, levels=tuple(reversed(levels)))


def _joint_limits(distances: NDArray[np.float64], false_alarm: float) -> NDArray[np.float64]:
    """Return a limit for each distance [distances, resamples], so that a share of resamples goes beyond any."""
    resamples = distances.shape[1]
    ordered = np.sort(distances, axis=1)
    # p-value of each value among its own kind: how many are at least as large.
    at_least = np.stack(
        [resamples - np.searchsorted(row, values, side="left") for row, values in zip(ordered, distances, strict=True)]
    )
    smallest = np.sort(at_least.min(axis=0))
    allowed = smallest[max(0, math.ceil(false_alarm * resamples) - 1)]
    # The limit is the largest value that may not alarm: one is beyond it if fewer than `allowed` are as large.
    limits: NDArray[np.float64] = ordered[:, resamples - allowed]
    return limits


def _psi(reference: NDArray[np.float64], seen: NDArray[np.float64], weight: int, bins: int) -> NDArray[np.float64]:
    """Return the population stability index of each row, as `contracts.drift.psi`; `bins` counts the empty ones too."""
    expected, found = _smoothed(reference, weight, bins), _smoothed(seen, weight, bins)
    index: NDArray[np.float64] = ((found - expected) * np.log(found / expected)).sum(axis=1)
    return index


def _jensen_shannon(reference: NDArray[np.float64], seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Jensen-Shannon divergence of each row, as `contracts.drift.jensen_shannon`."""
    p = reference / np.maximum(1, reference.sum(axis=1, keepdims=True))
    q = seen / np.maximum(1, seen.sum(axis=1, keepdims=True))
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log2(p / middle), 0) + np.where(q > 0, q * np.log2(q / middle), 0)
    divergence: NDArray[np.float64] = np.clip(terms.sum(axis=1) / 2, 0, 1)
    return divergence


def _smoothed(counts: NDArray[np.float64], weight: int, bins: int) -> NDArray[np.float64]:
    total = np.maximum(1, counts.sum(axis=1, keepdims=True))
    shares: NDArray[np.float64] = (weight * counts / total + _PRIOR) / (weight + _PRIOR * bins)
    return shares


def _up(value: float) -> float:
    """Round up to three significant digits, so that the last bits of a sum do not change a digest."""
    if value <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / step - 1e-6) * step:.6g}")
