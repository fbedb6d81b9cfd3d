"""Golden vectors: which samples are chosen, how tight the tolerance is, and what the drift reference holds."""

from __future__ import annotations

import numpy as np
import pytest

from edgeops.compiler import golden
from edgeops.contracts.bundle import Binding
from edgeops.contracts.tensors import TensorSpec

PLAIN = Binding(device="y", artifact=TensorSpec(name="y", dtype="float32", shape=(1, 2)))
STEPPED = Binding(device="y", artifact=TensorSpec(name="y", dtype="int8", shape=(1, 2)), scale=0.01, zero_point=0)


def probabilities(margins: np.ndarray) -> np.ndarray:
    return np.stack([0.5 + margins / 2, 0.5 - margins / 2], axis=1)[:, None, :]


def test_half_of_the_vectors_are_where_the_artifact_is_unsure_but_not_where_rounding_decides():
    margins = np.linspace(0.9, 0.1, 200)
    chosen = golden.golden_indices(200, 100, {"y": probabilities(margins)}, {"y": "probabilities"})
    assert len(chosen) == golden.GOLDEN_COUNT
    assert sum(180 <= index < 190 for index in chosen) >= golden.GOLDEN_COUNT // 2
    assert not [index for index in chosen if index >= 190]
    assert 0 in chosen


def test_large_tensors_get_fewer_vectors_and_few_samples_all():
    margins = {"y": probabilities(np.linspace(0.9, 0.1, 50))}
    assert len(golden.golden_indices(50, 1 << 20, margins, {"y": "probabilities"})) == 4
    assert len(golden.golden_indices(50, 1 << 30, margins, {"y": "values"})) == golden.MIN_GOLDEN_COUNT
    assert golden.golden_indices(3, 10, {"y": margins["y"][:3]}, {"y": "values"}) == [0, 1, 2]


@pytest.mark.parametrize(
    ("deviation", "binding", "quantized", "allowed", "reason"),
    [
        (0.0, PLAIN, False, 2e-5, "rounding of float32"),
        (1e-5, PLAIN, False, 8e-5, "other kernels"),
        (0.003, PLAIN, True, 0.006, "other kernels"),
        (0.001, STEPPED, True, 0.02, "2 steps"),
        (0.02, STEPPED, True, 0.04, "other kernels"),
    ],
)
def test_tolerance_is_what_was_measured_or_two_steps(deviation, binding, quantized, allowed, reason):
    values = np.array([[[0.25, 1.0]]], np.float32)
    found = golden.tolerance(values, 0.998, deviation, binding, quantized=quantized)
    assert found.artifact_max_abs == pytest.approx(allowed)
    assert reason in found.reason
    assert found.source_min_cosine == pytest.approx(0.988)


def test_tolerance_does_not_follow_the_last_bits_of_a_measurement():
    values = np.ones((1, 1, 2), np.float32)
    found = {
        golden.tolerance(values, 0.99, x, PLAIN, quantized=False).artifact_max_abs for x in (1.01e-4, 1.0100003e-4)
    }
    assert len(found) == 1


def test_classes_are_exact():
    found = golden.tolerance(np.array([[1], [2]], np.int64), 1.0, 0.0, PLAIN, quantized=True)
    assert found.artifact_max_abs == 0


def test_drift_reference_counts_every_sample_once():
    rng = np.random.default_rng(0)
    inputs = {"image": rng.integers(0, 256, (50, 1, 32, 32, 3), dtype=np.uint8)}
    outputs = {"y": probabilities(rng.random(50)), "z": rng.normal(size=(50, 3))}
    found = golden.drift_reference(inputs, outputs, {"y": "probabilities", "z": "values"})
    assert found.samples == 50
    assert sum(found.inputs["image"].counts) == 50 * golden.DRIFT_ELEMENTS
    assert sum(found.outputs["z"].counts) == 150
    assert found.confidence is not None
    assert sum(found.confidence.counts) == sum(found.class_mix) == 50
    for histogram in (*found.inputs.values(), *found.outputs.values()):
        assert len(histogram.counts) == len(histogram.edges) + 1
        assert list(histogram.edges) == sorted(set(histogram.edges))


def test_data_that_never_vary_still_have_bins():
    found = golden.drift_reference({"x": np.full((5, 1, 4), 7.0, np.float32)}, {"y": np.zeros((5, 1))}, {"y": "values"})
    assert sum(found.inputs["x"].counts) == 20
    assert len(set(found.inputs["x"].edges)) == len(found.inputs["x"].edges)
