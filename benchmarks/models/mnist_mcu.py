"""A CNN of 8 KB for microcontrollers, on MNIST: two convolutions and a linear layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models.folder import write
from benchmarks.models.mnist_cnn import digits
from benchmarks.models.torch_export import onnx_bytes, trained

_HANDOVER = """\
schema = 1

[model]
name = "mnist-mcu"
file = "model.onnx"

[[inputs]]
name = "image"
dtype = "uint8"
shape = [1, 28, 28, 1]
model_input = "x"
preprocess = [
  { step = "cast" },
  { step = "scale", by = 0.00392156862745098 },
  { step = "layout", change = "NHWC->NCHW" },
]

[[outputs]]
name = "digit"
model_output = "logits"
kind = "logits"
labels = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]

[calibration]
file = "calibration.npz"

[evaluation]
file = "evaluation.npz"
"""
_TRAINED_ON, _CALIBRATION, _EVALUATION = 20_000, 128, 1000


def make(folder: Path) -> None:
    """Train the network and write the hand-over."""
    images, labels = digits("train")
    test_images, test_labels = digits("t10k")
    x = (images[:_TRAINED_ON, :, :, 0].astype(np.float32) / 255)[:, None]
    network = trained(_network(), x, labels[:_TRAINED_ON], epochs=3)
    write(
        folder,
        _HANDOVER,
        onnx_bytes(network, x[:1]),
        {"image": images[:_CALIBRATION]},
        {"image": test_images[:_EVALUATION], "labels": test_labels[:_EVALUATION]},
    )


def _network() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 7 * 7, 10),
    )  # fmt: skip
