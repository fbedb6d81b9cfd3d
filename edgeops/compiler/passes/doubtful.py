"""Operators that have no one right answer to hold an artifact against: they are refused, not compiled wrongly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from edgeops.compiler import graphs

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def without_one_answer(model: Any) -> str:
    """Say which operator has no one right answer: it is random, or onnxruntime disagrees with ONNX; "" if none.

    ONNX's conformance models show where onnxruntime, whose answers stand for the source's, gives others than ONNX says.
    """
    constants = _constants(model)
    for node in _nodes(model):
        if node.op_type in _RANDOM:
            return f"{node.op_type} {_name(node)!r} answers at random"
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            training = constants.get(node.input[2])
            if training is None or bool(training.any()):
                return f"Dropout {_name(node)!r} is in training mode: it answers at random"
        if node.op_type == "MaxUnpool" and len(node.input) > 2 and node.input[2]:
            return f"MaxUnpool {_name(node)!r} with an output shape: onnxruntime does not answer as ONNX says"
    return ""


def between_pixels(model: Any) -> str:
    """Say which Resize with aligned corners may not give a whole size; "" if none does. Shapes must be inferred.

    ONNX aligns the corners of the size before rounding, onnxruntime those of the size after it.
    """
    constants = _constants(model)
    shapes = {
        item.name: [axis.dim_value for axis in item.type.tensor_type.shape.dim]
        for item in (*model.graph.value_info, *model.graph.input)
    }
    for node in _nodes(model):
        modes = {item.name: item.s for item in node.attribute}
        if node.op_type != "Resize" or modes.get("coordinate_transformation_mode") != b"align_corners":
            continue
        if len(node.input) < 3 or not node.input[2]:
            continue
        scales = constants.get(node.input[2])
        if scales is None:
            return f"Resize {_name(node)!r} aligns corners by scales that are not known before it runs"
        for size, scale in zip(shapes.get(node.input[0], ()), scales, strict=False):
            whole = size * float(scale)
            if not math.isclose(whole, round(whole), rel_tol=1e-6):
                return (
                    f"Resize {_name(node)!r} aligns corners and makes {size} into {whole:g}: "
                    "onnxruntime does not answer as ONNX says"
                )
    return ""


def _name(node: Any) -> str:
    return str(node.name or node.output[0])


def _nodes(model: Any) -> Iterator[Any]:
    for graph in graphs.graphs(model.graph):
        yield from graph.node


def _constants(model: Any) -> dict[str, Any]:
    from onnx import numpy_helper

    found = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found
