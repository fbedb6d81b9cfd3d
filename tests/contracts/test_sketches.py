"""The quantile sketch: within 1% of the true value, and merging is exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ddsketch import DDSketch
from hypothesis import given
from hypothesis import strategies as st
from river.stats import Max, Mean, RollingQuantile

from edgeops.contracts.sketches import RELATIVE_ACCURACY, QuantileSketch

values = st.lists(st.floats(min_value=0, max_value=1e6, allow_subnormal=False), max_size=60)


@given(values, values)
def test_merging_equals_the_sketch_of_the_pooled_values(a: list[float], b: list[float]):
    merged, pooled = QuantileSketch.of(a).merge(QuantileSketch.of(b)), QuantileSketch.of(a + b)
    assert (merged.bins, merged.zeros, merged.maximum) == (pooled.bins, pooled.zeros, pooled.maximum)
    assert merged.total == pytest.approx(pooled.total)


@given(values.filter(bool), st.floats(min_value=0, max_value=1))
def test_quantiles_are_within_the_stated_accuracy(sample: list[float], q: float):
    exact = sorted(sample)[math.floor(q * (len(sample) - 1))]
    got = QuantileSketch.of(sample).quantile(q)
    assert got is not None
    assert abs(got - exact) <= RELATIVE_ACCURACY * exact * (1 + 1e-9)


def test_agrees_with_the_reference_implementation():
    sample = np.random.default_rng(3).lognormal(size=2000)
    oracle = DDSketch(RELATIVE_ACCURACY)
    for value in sample:
        oracle.add(float(value))
    ours = QuantileSketch.of(sample.tolist())
    for q in (0.01, 0.5, 0.95, 0.99):
        assert ours.quantile(q) == pytest.approx(oracle.get_quantile_value(q), rel=2.1 * RELATIVE_ACCURACY)


@given(st.lists(values, min_size=1, max_size=4).filter(any), st.floats(min_value=0, max_value=1))
def test_windows_merged_are_what_river_says_of_the_whole_stream(parts: list[list[float]], q: float):
    """river sees the values one by one, and keeps them; it interpolates between two neighbours."""
    whole = [value for part in parts for value in part]
    exact, largest, mean = RollingQuantile(q, len(whole)), Max(), Mean()
    for value in whole:
        exact.update(value)
        largest.update(value)
        mean.update(value)
    merged = QuantileSketch()
    for part in parts:
        merged = merged.merge(QuantileSketch.of(part))
    assert merged.count == mean.n
    assert merged.maximum == largest.get()
    assert merged.total / merged.count == pytest.approx(mean.get(), rel=1e-9, abs=1e-9)
    got, between = merged.quantile(q), exact.get()
    ordered = sorted(whole)
    place = q * (len(whole) - 1)
    lower, upper = ordered[math.floor(place)], ordered[math.ceil(place)]
    assert got is not None
    assert between is not None
    assert abs(got - between) <= (upper - lower) + RELATIVE_ACCURACY * lower + 1e-9 * upper


def test_nothing_measured_has_no_quantile():
    assert QuantileSketch().quantile(0.5) is None


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_impossible_measurements_are_refused(bad: float):
    with pytest.raises(ValueError):
        QuantileSketch.of([bad])
