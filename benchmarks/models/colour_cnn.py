"""A small CNN on colour pictures of 96 by 96, 110 KB as float32: for timing only, its weights are drawn, not learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.models.folder import SEED, write

SIDE = 96
# Channels before and after, and stride: 44 million multiplications.
_LAYERS = ((3, 32, 2), (32, 64, 2), (64, 64, 1), (64, 128, 2))
_SAMPLES = 64
_HANDOVER = f"""\
schema = 1

[model]
name = "colour-cnn"
file = "model.onnx"

[[inputs]]
name = "image"
dtype = "float32"
shape = [1, 3, {SIDE}, {SIDE}]
model_input = "x"

[[outputs]]
name = "scores"
model_output = "y"
kind = "logits"
labels = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]

[calibration]
file = "calibration.npz"

[evaluation]
file = "evaluation.npz"
metric = "none"
"""


def make(folder: Path) -> None:
    """Write the hand-over."""
    pictures = np.random.default_rng(SEED).uniform(0, 1, (_SAMPLES, 3, SIDE, SIDE)).astype(np.float32)
    write(folder, _HANDOVER, _network(), {"image": pictures[:, None]}, {"image": pictures[:, None]})


def _network() -> bytes:
    """Return the convolutions, their mean, and a linear layer."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(SEED)
    nodes, weights, last = [], [], "x"
    for place, (before, after, stride) in enumerate(_LAYERS):
        kernel = rng.normal(0, (2 / (9 * before)) ** 0.5, (after, before, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"k{place}"))
        nodes += [
            helper.make_node("Conv", [last, f"k{place}"], [f"c{place}"], pads=[1, 1, 1, 1], strides=[stride, stride]),
            helper.make_node("Relu", [f"c{place}"], [f"r{place}"]),
        ]
        last = f"r{place}"
    weights.append(numpy_helper.from_array(rng.normal(0, 1, (_LAYERS[-1][1], 10)).astype(np.float32), "w"))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, SIDE, SIDE))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 10))],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
