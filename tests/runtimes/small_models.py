"""A small classifier for onnxruntime: the device sends uint8 NHWC, the artifact takes uint8 NCHW."""

from __future__ import annotations

from pathlib import Path

import numpy as np

DEVICE_SHAPE, ARTIFACT_SHAPE, CLASSES, VECTORS = (1, 2, 2, 3), (1, 3, 2, 2), 4, 6


def write_artifact(path: Path, *, shift: float = 0.0) -> None:
    """softmax(flatten(x) @ W): uint8 NCHW in, float32 [1, 4] out; `shift` moves one weight."""
    from onnx import TensorProto, helper, numpy_helper, save

    weights = np.random.default_rng(5).normal(size=(12, CLASSES)).astype(np.float32) / 100
    weights[0, 0] += shift
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["f"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["y"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ARTIFACT_SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, CLASSES))],
        [numpy_helper.from_array(weights, "w")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
