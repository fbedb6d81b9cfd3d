"""TFLite models as files: their operators, their quantized ends, and their answers as real numbers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.compiler.passes.running import as_float, run_artifact
from edgeops.runtimes.litert_backend import ends

MODEL_NAME = "model.tflite"
_HEAVY = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL", "CONV_3D"})
_MAX_TURNED_AXES = 5


def open_interpreter(model: Path, *, every_tensor: bool = False) -> Any:
    """Return an interpreter with the built-in kernels; with `every_tensor` none gives up its memory to another."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    return Interpreter(
        model_path=str(model),
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=every_tensor,
    )


def named_ends(model: Path) -> tuple[list[str], list[str]]:
    """Return the names of inputs and outputs, as sessions speak of them."""
    inputs, outputs = ends(open_interpreter(model))
    return [name for name, _ in inputs], [name for name, _ in outputs]


def operators(model: Path) -> list[tuple[list[str], bool]]:
    """Return each operator in order: names of its outputs, and whether it is a convolution or matrix product."""
    interpreter = open_interpreter(model)
    tensors = {item["index"]: item["name"] for item in interpreter.get_tensor_details()}
    return [
        ([tensors[index] for index in item["outputs"] if index in tensors], item["op_name"] in _HEAVY)
        for item in operator_details(interpreter)
    ]


def operator_details(interpreter: Any) -> list[dict[str, Any]]:
    """Return what LiteRT says of each operator in order: `op_name`, and `inputs` and `outputs` as tensor indices."""
    # It has no public name.
    return [item for item in interpreter._get_ops_details() if item["op_name"] != "DELEGATE"]


def quantized_ends(model: Path) -> dict[str, dict[str, float | int]]:
    """Return scale and zero point of each input and output that is quantized, by every name that it has."""
    interpreter = open_interpreter(model)
    found = {detail["name"]: detail for detail in (*interpreter.get_input_details(), *interpreter.get_output_details())}
    # Sessions name tensors by the signature where a model has one.
    for signature in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(signature)
        found |= {**runner.get_input_details(), **runner.get_output_details()}
    return {
        name: {"scale": float(scale), "zero_point": int(zero_point)}
        for name, (scale, zero_point) in ((name, detail["quantization"]) for name, detail in found.items())
        if scale
    }


def run_real(model: Path, samples: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a model on samples [n, *shape] in real numbers; returns output → [n, *shape], in its own order, likewise.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; the runtime refuses the model, or fails.
    """
    inputs, outputs = map(dict, ends(open_interpreter(model)))
    feeds = {name: to_stored(values, inputs[name]) if name in inputs else values for name, values in samples.items()}
    return {name: to_real(values, outputs[name]) for name, values in run_artifact("litert", model, feeds).items()}


def run_as_handed_over(model: Path, samples: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a model on samples [n, *shape] whose integers are the stored ones; returns its outputs in real numbers.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; the runtime refuses the model, or fails.
    """
    inputs, outputs = map(dict, ends(open_interpreter(model)))
    feeds = {
        name: values if values.dtype == inputs[name]["dtype"] else to_stored(values, inputs[name])
        for name, values in samples.items()
    }
    return {name: to_real(values, outputs[name]) for name, values in run_artifact("litert", model, feeds).items()}


def to_stored(values: NDArray[Any], detail: Mapping[str, Any]) -> NDArray[Any]:
    """Return real numbers as a tensor stores them; `detail` is what the interpreter says of it."""
    scale, zero_point = detail["quantization"]
    if not scale:
        return as_float(values, detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    return np.asarray(np.clip(np.rint(values / scale) + zero_point, limits.min, limits.max)).astype(detail["dtype"])


def to_real(values: NDArray[Any], detail: Mapping[str, Any]) -> NDArray[Any]:
    """Return what a tensor stores as real numbers."""
    scale, zero_point = detail["quantization"]
    if not scale:
        return values
    return (values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


def turned(
    model: Path, samples: Mapping[str, NDArray[Any]], transposes: Mapping[str, Sequence[int]]
) -> dict[str, NDArray[Any]]:
    """Return samples [n, *shape] of the device's inputs in the order in which the artifact's inputs want them.

    Args:
        model: The artifact.
        samples: By input.
        transposes: Input → the order of its axes, without the first; what is not in it is left as it is.
    """
    if not transposes:
        return dict(samples)
    shapes = {name: tuple(map(int, detail["shape"])) for name, detail in ends(open_interpreter(model))[0]}
    return {
        name: turn(values, transposes[name]).reshape(-1, *shapes[name]) if name in transposes else values
        for name, values in samples.items()
    }


def axes_back(reference: NDArray[Any], values: NDArray[Any]) -> list[int] | None:
    """Return the order of axes that brings the values [n, *shape] nearest to the reference's; None: none fits.

    Axes are counted without the first. Where two do as well, axes that are not turned come first.
    """
    rank = values.ndim - 1
    fits = []
    for axes in itertools.permutations(range(rank)) if rank <= _MAX_TURNED_AXES else [tuple(range(rank))]:
        turned = turn(values, axes)
        if turned.shape == reference.shape:
            fits.append((float(np.abs(turned.astype(np.float64) - reference).max(initial=0)), axes))
    return list(min(fits, key=lambda fit: fit[0])[1]) if fits else None


def turn(values: NDArray[Any], axes: Sequence[int]) -> NDArray[Any]:
    """Return the values [n, *shape] with the axes of `shape` in this order."""
    return values.transpose(0, *(axis + 1 for axis in axes))
