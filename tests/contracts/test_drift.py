"""PSI and Jensen-Shannon beside SciPy and river, and by which level a window is judged."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from river.stats import Entropy
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from edgeops.contracts.bundle import DriftCalibration, DriftLevel
from edgeops.contracts.drift import jensen_shannon, level_for, psi, shifts

pairs = st.integers(2, 12).flatmap(
    lambda bins: st.tuples(
        *(st.lists(st.integers(0, 1000), min_size=bins, max_size=bins).filter(any) for _ in range(2))
    )
)


@given(pairs)
def test_jensen_shannon_is_scipys_distance_squared(pair: tuple[list[int], list[int]]) -> None:
    assert jensen_shannon(*pair) == pytest.approx(float(jensenshannon(*pair, base=2)) ** 2, abs=1e-9)


@given(pairs, st.integers(1, 10_000))
def test_psi_is_the_divergence_both_ways_of_the_smoothed_shares(pair: tuple[list[int], list[int]], weight: int) -> None:
    p, q = (weight * np.asarray(side) / sum(side) + 0.5 for side in pair)
    assert psi(*pair, weight) == pytest.approx(float(entropy(p, q) + entropy(q, p)), rel=1e-9, abs=1e-12)


@given(pairs, st.integers(1, 1000))
def test_both_are_symmetric_and_zero_only_of_what_is_alike(pair: tuple[list[int], list[int]], weight: int) -> None:
    one, other = pair
    assert psi(one, other, weight) == pytest.approx(psi(other, one, weight))
    assert jensen_shannon(one, other) == pytest.approx(jensen_shannon(other, one))
    assert psi(one, one, weight) == 0.0
    assert jensen_shannon(one, one) == pytest.approx(0.0, abs=1e-12)
    assert 0 <= jensen_shannon(one, other) <= 1


@given(st.lists(st.tuples(*[st.integers(0, 7)] * 2), min_size=1, max_size=60))
def test_jensen_shannon_is_what_rivers_entropy_loses_in_the_pool(streams: list[tuple[int, int]]) -> None:
    """Two streams of one length: the entropy of both together, less the mean of theirs; river sees value by value."""
    first, second, pool = (Entropy() for _ in range(3))
    for one, other in streams:
        first.update(one)
        second.update(other)
        pool.update(one)
        pool.update(other)
    lost = (pool.get() - (first.get() + second.get()) / 2) / math.log(2)
    counts = [np.bincount(side, minlength=8).tolist() for side in zip(*streams, strict=True)]
    assert jensen_shannon(*counts) == pytest.approx(lost, abs=1e-5)


def test_limits_between_two_levels_shrink_as_chance_does() -> None:
    levels = tuple(DriftLevel(requests=n, psi={"x": 3 / n + 0.1}, js={"x": 1 / n}) for n in (300, 30, 100))
    found = DriftCalibration(false_alarm=0.01, resamples=10, levels=levels)
    for requests in (30, 31, 64, 99, 100, 250, 300):
        level = level_for(found, requests)
        assert level is not None
        assert level.psi["x"] == pytest.approx(3 / requests + 0.1)
        assert level.js["x"] == pytest.approx(1 / requests)
    assert level_for(found, 29) is None
    assert level_for(found, 10_000) == levels[0]
    assert level_for(None, 50) is None


def test_tensors_that_cannot_be_compared_are_left_out() -> None:
    reference = {"a": [1, 2], "b": [0, 0], "c": [1, 1], "d": [3, 3]}
    seen = {"a": [2, 1], "b": [1, 1], "c": [1, 1, 1], "d": [0, 0]}
    assert [shift.name for shift in shifts(reference, 3, seen, 3, None)] == ["a"]
    assert shifts(reference, 3, seen, 0, None) == []
