"""Golden vectors: which samples, what tolerance, and what inputs and outputs look like. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.compiler.calibration import calibrate
from edgeops.compiler.passes.samples import spread
from edgeops.contracts.bundle import Binding, DriftCalibration, DriftReference, Histogram, OutputTolerance

GOLDEN_COUNT = 16
# Golden inputs are part of every bundle: large tensors get fewer vectors.
MAX_GOLDEN_BYTES = 4 << 20
MIN_GOLDEN_COUNT = 2
DRIFT_BINS = 16
DRIFT_ELEMENTS = 256
_ELEMENTS_PER_REQUEST, _INPUTS_PER_ELEMENT, _MIN_SHARE = 24, 256, 0.01
# What a counted request costs beside its elements, in elements.
_REQUEST_IN_ELEMENTS = 40
_COSINE_SLACK = 0.01
_TOO_UNSURE = 0.05
_FLOAT_MARGIN = 8.0
_QUANTIZED_MARGIN = 2.0
_FLOAT_FLOOR = 2e-5
_CLASS_KINDS = ("probabilities", "logits")


def golden_indices(
    count: int, sample_bytes: int, outputs: Mapping[str, NDArray[Any]], kinds: Mapping[str, str]
) -> list[int]:
    """Choose samples: half spread evenly, half where the artifact is not sure of its class (they show damage first).

    The very least sure are left out: there other kernels alone change the answer, and the tolerance that allows for
    them would hide damage. Measured on the OCR line classifier, int8: leaving out one in twenty brought the largest
    change by other kernels from 0.14 down to 0.01 (LiteRT) and from 0.11 to 0.05 (onnxruntime).

    Args:
        count: Samples there are.
        sample_bytes: Size of one sample's inputs and outputs.
        outputs: The artifact's outputs [n, ...].
        kinds: Output → kind.
    """
    room = max(MIN_GOLDEN_COUNT, min(GOLDEN_COUNT, MAX_GOLDEN_BYTES // max(1, sample_bytes)))
    if count <= room:
        return list(range(count))
    unsure = _least_sure(outputs, kinds, count)
    left_out = round(count * _TOO_UNSURE)
    chosen = set(spread(count, room - room // 2).tolist()) - set(unsure[:left_out])
    for index in unsure[left_out:]:
        if len(chosen) >= room:
            break
        chosen.add(index)
    return sorted(chosen)


def tolerance(
    artifact: NDArray[Any],
    similarity: float,
    deviation: float,
    binding: Binding,
    *,
    quantized: bool,
) -> OutputTolerance:
    """Return how far an output may be from its golden vector.

    Args:
        artifact: The artifact's golden outputs.
        similarity: Their mean cosine to the source's.
        deviation: How far other kernels and thread counts moved them on this host.
        binding: Of this output.
        quantized: Activations are integers: rounding steps add up through the layers.
    """
    largest = float(np.abs(artifact.astype(np.float64)).max(initial=0.0))
    margin = _QUANTIZED_MARGIN if quantized else _FLOAT_MARGIN
    floor = _FLOAT_FLOOR * (largest or 1.0)
    said = f"{margin:g} × {deviation:.3g}, what other kernels and thread counts changed on the compile host"
    allowed = max(margin * deviation, floor)
    if allowed == floor:
        said = f"rounding of float32: {_FLOAT_FLOOR:g} of the largest value"
    if binding.scale is not None and 2 * binding.scale > allowed:
        allowed, said = 2 * binding.scale, "2 steps of the quantized output"
    elif artifact.dtype.kind in "iub":
        # Classes and counts are exact unless the kernels themselves disagree.
        allowed, said = margin * deviation, said if deviation else "exact"
    least = math.floor((similarity - _COSINE_SLACK) * 1e4) / 1e4
    return OutputTolerance(artifact_max_abs=_two_digits_up(allowed), source_min_cosine=max(-1.0, least), reason=said)


def drift_reference(
    inputs: Mapping[str, NDArray[Any]],
    outputs: Mapping[str, NDArray[Any]],
    kinds: Mapping[str, str],
    limits: Callable[[Mapping[str, NDArray[np.int64]]], DriftCalibration | None] = calibrate,
) -> DriftReference:
    """Summarize what inputs, outputs and confidence look like, in bins that stay fixed for the bundle's life.

    Args:
        inputs: Tensor → values, [samples, …].
        outputs: Tensor → values, [samples, …].
        kinds: Output → what it is.
        limits: Finds the limits of drift; see `calibration.calibrate`.
    """
    count = len(next(iter(inputs.values())))
    tables: dict[str, NDArray[np.int64]] = {}
    edges: dict[str, tuple[float, ...]] = {}
    for kind, group in (("input", inputs), ("output", outputs)):
        for name, values in group.items():
            picked = np.stack([sample_elements(row) for row in values])
            edges[f"{kind} {name}"] = _fixed_edges(values.dtype, picked)
            tables[f"{kind} {name}"] = _per_sample(picked, edges[f"{kind} {name}"])
    classed = [name for name, kind in kinds.items() if kind in _CLASS_KINDS]
    if classed:
        rows = outputs[classed[0]].reshape(count, -1, outputs[classed[0]].shape[-1]).astype(np.float64)
        shares = _softmax(rows) if kinds[classed[0]] == "logits" else rows
        edges["confidence"] = tuple(float(edge) for edge in np.linspace(0, 1, DRIFT_BINS + 1)[1:-1])
        tables["confidence"] = _per_sample(shares.max(axis=-1), edges["confidence"])
        tables["classes"] = _counts(rows.argmax(axis=-1), rows.shape[-1])

    def told(name: str) -> Histogram:
        return Histogram(edges=edges[name], counts=tuple(int(number) for number in tables[name].sum(axis=0)))

    elements = sum(min(DRIFT_ELEMENTS, values[0].size) for group in (inputs, outputs) for values in group.values())
    elements += tables["classes"].shape[1] if classed else 0
    return DriftReference(
        samples=count,
        elements_per_sample=DRIFT_ELEMENTS,
        inputs={name: told(f"input {name}") for name in sorted(inputs)},
        outputs={name: told(f"output {name}") for name in sorted(outputs)},
        confidence=told("confidence") if classed else None,
        class_mix=tuple(int(number) for number in tables["classes"].sum(axis=0)) if classed else (),
        request_share=request_share(elements, sum(values[0].size for values in inputs.values())),
        calibration=limits(tables),
    )


def request_share(elements: int, input_elements: int) -> float:
    """Return which share of the requests a device is to count, so that counting stays small beside inferring.

    A counted element takes about 25 ns on the build host, and an inference longer the more it is given.

    Args:
        elements: What is counted of one request.
        input_elements: What a model is given.
    """
    allowed = _ELEMENTS_PER_REQUEST + input_elements / _INPUTS_PER_ELEMENT
    return min(1.0, max(_MIN_SHARE, round(allowed / (_REQUEST_IN_ELEMENTS + elements), 2)))


def sample_elements(values: NDArray[Any], most: int = DRIFT_ELEMENTS) -> NDArray[np.float64]:
    """Return at most `most` elements of one tensor, at evenly spread places of its flat form: always the same ones."""
    flat = values.reshape(-1)
    return flat[spread(flat.size, most)].astype(np.float64)


def _per_sample(values: NDArray[Any], edges: tuple[float, ...]) -> NDArray[np.int64]:
    """Count the values of each row per bin; see `contracts.bundle.Histogram`."""
    return _counts(np.searchsorted(np.asarray(edges), values, side="right"), len(edges) + 1)


def _counts(places: NDArray[np.intp], bins: int) -> NDArray[np.int64]:
    """Count how often each number below `bins` comes in each row: [rows, bins]."""
    rows = np.repeat(np.arange(len(places)), places[0].size)
    flat = np.bincount(rows * bins + places.reshape(-1), minlength=len(places) * bins)
    return flat.reshape(len(places), bins)


def _fixed_edges(dtype: np.dtype[Any], picked: NDArray[np.float64]) -> tuple[float, ...]:
    if dtype == np.bool_ or dtype == np.uint8:
        top = 1.0 if dtype == np.bool_ else 256.0
        edges = np.linspace(0, top, DRIFT_BINS + 1)[1:-1]
    else:
        low, high = np.quantile(picked, [0.005, 0.995])
        if not high > low:
            # Data that never varies: a new value is seen on either side.
            low, high = low - max(1.0, abs(low)) * 1e-3, low + max(1.0, abs(low)) * 1e-3
        edges = np.linspace(low, high, DRIFT_BINS - 1)
    return tuple(float(f"{edge:.9g}") for edge in edges)


def _least_sure(outputs: Mapping[str, NDArray[Any]], kinds: Mapping[str, str], count: int) -> list[int]:
    margins = np.zeros(count)
    for name, kind in kinds.items():
        if kind in _CLASS_KINDS and outputs[name].shape[-1] > 1:
            best = np.sort(outputs[name].reshape(count, -1, outputs[name].shape[-1]).astype(np.float64), axis=-1)
            margins += (best[..., -1] - best[..., -2]).min(axis=1)
    return [int(index) for index in np.argsort(margins, kind="stable")]


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def _two_digits_up(value: float) -> float:
    """Round up to two significant digits, so that the last bits of a measurement do not change a digest."""
    if value == 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step - 1e-9) * step:.6g}")
