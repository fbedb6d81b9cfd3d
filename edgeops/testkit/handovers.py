"""Small hand-overs that are real: a model that was fitted to its data, labels it gets right, margins that vary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = 4
SIDE = 8
LABELS = ("circle", "square", "cross", "dots")

_HANDOVER = """\
schema = 1

[model]
name = "shapes"
file = "model.onnx"

[[inputs]]
name = "image"
dtype = "uint8"
shape = [1, 8, 8, 1]
model_input = "x"
preprocess = [
  { step = "cast" },
  { step = "normalize", mean = [127.5], std = [127.5] },
  { step = "layout", change = "NHWC->NCHW" },
]

[[outputs]]
name = "shape"
model_output = "y"
kind = "probabilities"
labels = ["circle", "square", "cross", "dots"]

[calibration]
file = "calibration.npz"

[evaluation]
file = "evaluation.npz"
"""


def shapes(count: int, *, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw noisy 8x8 pictures of four shapes: images [count, 8, 8, 1] and their classes [count]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    noise = rng.normal(0, 85, (count, SIDE, SIDE)) + rng.uniform(-25, 25, (count, 1, 1))
    images = _prototypes()[labels] * rng.uniform(0.5, 1.0, (count, 1, 1)) + noise
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)[..., None], labels.astype(np.int64)


def shapes_model(*, opset: int = 17, outlier: float = 1.0) -> Any:
    """Return the classifier as an ONNX model: two convolutions, and a linear layer fitted by least squares.

    Args:
        opset: Of the default domain.
        outlier: One channel between the convolutions is so many times larger, and its weights so many times smaller:
            the same answers in float, but one int8 range for all channels cannot hold them.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    first = rng.normal(0, 0.35, (16, 1, 3, 3)).astype(np.float32)
    second = rng.normal(0, 0.12, (16, 16, 3, 3)).astype(np.float32)
    images, labels = shapes(1500, seed=1)
    x = (images.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
    features = _relu_conv(_relu_conv(x, first), second).reshape(len(x), -1)
    design = np.concatenate([features, np.ones((len(features), 1), np.float32)], axis=1)
    targets = np.eye(CLASSES)[labels] * 8 - 4
    fitted = np.linalg.solve(design.T @ design + 1.0 * np.eye(design.shape[1]), design.T @ targets).astype(np.float32)
    first[0] *= outlier
    second[:, 0] /= outlier
    constants = {"w1": first, "w2": second, "w3": fitted[:-1], "b3": fitted[-1], "flat": np.array([1, -1], np.int64)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Reshape", ["r2", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["l"]),
        helper.make_node("Softmax", ["l"], ["y"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "shapes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def write_shapes_handover(folder: Path, *, calibration: int = 64, evaluation: int = 400, outlier: float = 1.0) -> Path:
    """Write a whole hand-over into `folder`: `handover.toml`, the model (see `shapes_model`) and labelled data."""
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(shapes_model(outlier=outlier), folder / "model.onnx")
    np.savez(folder / "calibration.npz", image=shapes(calibration, seed=2)[0])
    images, labels = shapes(evaluation, seed=3)
    np.savez(folder / "evaluation.npz", image=images, labels=labels)
    (folder / "handover.toml").write_text(_HANDOVER)
    return folder


def _prototypes() -> NDArray[np.float64]:
    rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    radius = np.hypot(rows, columns)
    edge = np.maximum(np.abs(rows), np.abs(columns))
    masks = (
        np.abs(radius - 3) < 0.8,
        np.abs(edge - 2.5) < 0.6,
        np.abs(np.abs(rows) - np.abs(columns)) < 0.5,
        (rows % 3 < 1) & (columns % 3 < 1),
    )
    return np.stack(masks).astype(np.float64) * 255


def _relu_conv(x: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    sums: NDArray[np.float32] = np.einsum("nchwij,ocij->nohw", windows, weights, optimize=True)
    return np.maximum(sums, np.float32(0))
