"""The search for what must stay float: by the whole model's answers, few segments, never worse than nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeops.compiler.passes.openvino import front_of
from edgeops.compiler.sensitivity import ENOUGH, GROUPS, SEGMENTS, Aim, keep_float, segments, shortfall
from edgeops.contracts.errors import EdgeopsError

EVEN = [1.0] * SEGMENTS
AIM = Aim(cosine_min=0.99, sqnr_min_db=15.0, agreement_min=0.97, kinds={"y": "values"})


@given(heavy=st.lists(st.booleans(), max_size=80))
def test_segments_cover_every_operator_once_and_in_order(heavy: list[bool]):
    parts = segments(heavy)
    assert [index for part in parts for index in part] == list(range(len(heavy)))
    assert len(parts) <= SEGMENTS
    for part in parts[1:]:
        assert heavy[part[0]]


@given(damage=st.lists(st.floats(0, 3), min_size=2, max_size=SEGMENTS))
def test_result_is_never_worse_than_all_int8_and_enough_where_it_can_be(damage: list[float]):
    def score(kept: frozenset[int]) -> float:
        return sum(value for index, value in enumerate(damage) if index not in kept)

    kept = keep_float([1.0] * len(damage), score)
    assert score(kept) <= score(frozenset())
    if score(frozenset()) <= ENOUGH:
        assert kept == frozenset()


def test_one_bad_segment_is_found_and_nothing_else_is_kept():
    for bad in range(SEGMENTS):
        assert keep_float(EVEN, lambda kept, bad=bad: 0.1 if bad in kept else 9.0) == {bad}


def test_two_bad_segments_far_apart_are_found():
    kept = keep_float(EVEN, lambda kept: 0.1 + 5.0 * len({2, 21} - kept))
    assert kept == {2, 21}


def test_neighbours_that_help_only_together_are_found():
    """A tensor between two segments is float only if both are."""
    assert keep_float(EVEN, lambda kept: 0.1 if {11, 12} <= kept else 9.0) == {11, 12}


def test_search_asks_for_few_runs():
    asked = []
    keep_float(EVEN, lambda kept: asked.append(kept) or 9.0 - len(kept) / 100)
    assert len(asked) <= 4 * GROUPS


def test_variants_that_cannot_be_built_are_passed_over():
    kept = keep_float(EVEN[:8], lambda kept: 0.1 if 5 in kept else math.inf if 3 in kept else 9.0)
    assert kept == {5}


@pytest.mark.parametrize(("noise", "passes"), [(0.0, True), (0.01, True), (0.5, False)])
def test_shortfall_is_below_one_where_the_gates_pass(noise: float, passes: bool):
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(20, 50))
    got = reference + rng.normal(0, noise, reference.shape)
    assert (shortfall(AIM, {"y": reference}, {"y": got}) < 1) == passes


def test_class_decisions_count_where_there_are_enough():
    reference = np.zeros((300, 2))
    reference[:, 0] = 0.51
    reference[:, 1] = 0.49
    got = reference.copy()
    got[:15] = got[:15, ::-1]
    classed = Aim(cosine_min=0.5, sqnr_min_db=-50, agreement_min=0.97, kinds={"y": "probabilities"})
    assert shortfall(classed, {"y": reference}, {"y": got}) == pytest.approx(0.05 / 0.03)
    assert shortfall(classed, {"y": reference[:100]}, {"y": got[:100]}) < 1


def test_of_two_ways_the_one_that_computes_less_in_float_is_kept():
    """Either neighbour would do; their group is found first, and the costlier one goes back to int8."""
    for costly in (0, 1):
        costs = [1.0] * SEGMENTS
        costs[costly] = 100.0
        assert keep_float(costs, lambda kept: 0.1 if kept & {0, 1} else 9.0) == {1 - costly}


def test_a_float_front_is_so_many_products_from_the_inputs_on_and_never_all():
    import openvino
    from openvino import opset13

    one = opset13.parameter([1, 4], np.float32)
    layers = [opset13.relu(one)]
    for _ in range(8):
        product = opset13.matmul(layers[-1], opset13.constant(np.ones((4, 4), np.float32)), False, False)
        layers += [product, opset13.relu(product)]
    model = openvino.Model([layers[-1]], [one])
    kept = front_of(model, 0.25)
    assert kept == [layer.get_friendly_name() for layer in layers[:5]]
    with pytest.raises(EdgeopsError) as caught:
        front_of(model, 1.0)
    assert caught.value.code == "E-COMPILE-CANDIDATE"
