"""The task's own metric, and how sure its drop is. Pure."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.evidence import Metric

_RESAMPLES = 2000
_SEED = 20240607


def accuracy_metric(source: NDArray[Any], artifact: NDArray[Any], labels: NDArray[Any], *, confidence: float) -> Metric:
    """Compare the class decisions of source and artifact with the true ones.

    Args:
        source: Source's class decisions.
        artifact: Artifact's, as many.
        labels: True classes, as many.
        confidence: Of the two-sided interval of the drop.
    """
    truth = labels.reshape(-1)
    before, after = source.reshape(-1) == truth, artifact.reshape(-1) == truth
    low, high = paired_difference(before, after, confidence)
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    return Metric(
        name="accuracy",
        source=float(before.mean()),
        artifact=float(after.mean()),
        drop=float(before.mean() - after.mean()),
        drop_low=low,
        drop_high=high,
        confidence=confidence,
        samples=len(truth),
        source_interval=_wilson(float(before.mean()), len(truth), z),
        artifact_interval=_wilson(float(after.mean()), len(truth), z),
    )


def error_metric(source: NDArray[Any], artifact: NDArray[Any], labels: NDArray[Any], *, confidence: float) -> Metric:
    """Compare mean absolute errors; the drop is the growth of the error relative to the source's.

    Args:
        source: Source's output [n, ...].
        artifact: Artifact's output, same shape.
        labels: True values, as many.
        confidence: Of the two-sided percentile bootstrap interval over samples (paired; fixed seed).
    """
    truth = labels.reshape(source.shape).astype(np.float64)
    axes = tuple(range(1, source.ndim))
    before = np.abs(source - truth).mean(axis=axes) if axes else np.abs(source - truth)
    after = np.abs(artifact - truth).mean(axis=axes) if axes else np.abs(artifact - truth)
    # A perfect source has no error to grow: then the labels' own spread is the unit.
    unit = float(before.mean()) or float(np.abs(truth - truth.mean()).mean()) or 1.0
    rng = np.random.default_rng(_SEED)
    growth = (after - before) / unit
    drawn = rng.integers(0, len(growth), (_RESAMPLES, len(growth)))
    bounds = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(growth[drawn].mean(axis=1), bounds)

    def interval(errors: NDArray[np.float64]) -> tuple[float, float]:
        below, above = np.quantile(errors[drawn].mean(axis=1), bounds)
        return float(below), float(above)

    return Metric(
        name="mae",
        source=float(before.mean()),
        artifact=float(after.mean()),
        drop=float(growth.mean()),
        drop_low=float(low),
        drop_high=float(high),
        confidence=confidence,
        samples=len(growth),
        source_interval=interval(before),
        artifact_interval=interval(after),
    )


def paired_difference(before: NDArray[np.bool_], after: NDArray[np.bool_], confidence: float) -> tuple[float, float]:
    """Return the two-sided interval of mean(before) - mean(after) for paired yes/no outcomes.

    It keeps its coverage for few samples and for shares near 0 and 1, also where no pair differs.

    Source: Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired
    data, Statistics in Medicine 17 (1998), method 10 (score intervals, correlation with continuity correction).
    """
    n = len(before)
    both, first = int((before & after).sum()), int((before & ~after).sum())
    second, neither = int((~before & after).sum()), int((~before & ~after).sum())
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share1, share2 = (both + first) / n, (both + second) / n
    low1, high1 = _wilson(share1, n, z)
    low2, high2 = _wilson(share2, n, z)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    correlation = 0.0
    if margins:
        excess = float(both * neither - first * second)
        if excess > n / 2:
            excess = excess - n / 2
        elif excess >= 0:
            excess = 0.0
        correlation = excess / math.sqrt(margins)
    difference = share1 - share2
    below = _hybrid(share1 - low1, high2 - share2, correlation)
    above = _hybrid(high1 - share1, share2 - low2, correlation)
    return max(-1.0, difference - below), min(1.0, difference + above)


def samples_to_prove(drop_max: float, confidence: float, *, most: int = 1_000_000) -> int | None:
    """Return how many samples could prove that accuracy falls by less than `drop_max`, if no answer changes.

    This is for the worst case, a source that is right everywhere; None: more than `most`.
    """
    if drop_max <= 0:
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        _, bound = paired_difference(np.ones(middle, bool), np.ones(middle, bool), confidence)
        low, high = (low, middle) if bound <= drop_max else (middle + 1, high)
    return low if low < most else None


def _hybrid(first: float, second: float, correlation: float) -> float:
    return math.sqrt(max(0.0, first**2 - 2 * correlation * first * second + second**2))


def _wilson(share: float, n: int, z: float) -> tuple[float, float]:
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)
