"""Confidence intervals of the metric's drop: against published figures, and honest where data are few."""

from __future__ import annotations

import numpy as np
import pytest

from edgeops.compiler.metrics import accuracy_metric, error_metric, paired_difference, samples_to_prove


def pairs(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    before = np.repeat([True, True, False, False], [both, first, second, neither])
    after = np.repeat([True, False, True, False], [both, first, second, neither])
    return before, after


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Newcombe 1998, examples for method 10: e, f, g, h and the 95% interval.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((36, 14, 0, 0), 0.1528, 0.4167),
    ],
)
def test_interval_is_newcombes_method_10(table, low, high):
    found = paired_difference(*pairs(*table), 0.95)
    assert found == pytest.approx((low, high), abs=2e-4)


def test_interval_of_no_change_shrinks_with_samples_and_never_vanishes():
    bounds = [paired_difference(np.ones(n, bool), np.ones(n, bool), 0.95)[1] for n in (10, 100, 1000)]
    assert bounds[0] > bounds[1] > bounds[2] > 0
    needed = samples_to_prove(0.02, 0.95)
    assert needed is not None
    assert paired_difference(np.ones(needed, bool), np.ones(needed, bool), 0.95)[1] <= 0.02
    assert paired_difference(np.ones(needed - 1, bool), np.ones(needed - 1, bool), 0.95)[1] > 0.02
    assert samples_to_prove(0.0, 0.95) is None


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        before = rng.random(150) < 0.95
        after = np.where(rng.random(150) < 0.06, ~before, before)
        # P(before) - P(after) of this process.
        truth = 0.95 - (0.95 * 0.94 + 0.05 * 0.06)
        low, high = paired_difference(before, after, 0.95)
        covered += low <= truth <= high
    assert covered / 400 >= 0.92


def test_accuracy_counts_decisions():
    found = accuracy_metric(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]), np.array([0, 1, 1, 1]), confidence=0.9)
    assert (found.source, found.artifact, found.drop, found.samples) == (0.75, 0.5, 0.25, 4)
    assert found.drop_low < 0.25 < found.drop_high


def test_error_growth_is_relative_to_the_source_and_repeatable():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(200, 3))
    source = truth + 0.1
    first = error_metric(source, truth + 0.11, truth, confidence=0.95)
    assert first.drop == pytest.approx(0.1)
    assert first == error_metric(source, truth + 0.11, truth, confidence=0.95)
    noisy = error_metric(source, truth + 0.1 + rng.normal(0, 0.05, truth.shape), truth, confidence=0.95)
    assert noisy.drop_low < noisy.drop < noisy.drop_high
