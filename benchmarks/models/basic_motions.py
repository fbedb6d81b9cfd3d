"""A sensor classifier: four activities from a smart watch's accelerometer and gyroscope (BasicMotions of aeon)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.models.folder import write
from benchmarks.models.torch_export import onnx_bytes, trained
from edgeops.cli.demo.packages import Member, Package, fetch

_AEON = Package("aeon==1.6.0", "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409")
_FOLDER = "aeon/datasets/data/BasicMotions"
TRAIN = Member(
    _AEON, f"{_FOLDER}/BasicMotions_TRAIN.ts", "8dc43cc6306cb679c888c01e26f91772ac4441a916da43bac8b79734a538b9d6"
)
TEST = Member(
    _AEON, f"{_FOLDER}/BasicMotions_TEST.ts", "79213102bc6fca1a398ad98ce1185dff0208fa3d1465e687f48288946b0ff8dc"
)
CLASSES = ("Standing", "Running", "Walking", "Badminton")
_WINDOW, _STRIDE = 50, 5
_HANDOVER = f"""\
schema = 1

[model]
name = "basic-motions"
file = "model.onnx"

[[inputs]]
name = "window"
dtype = "float32"
shape = [1, 6, {_WINDOW}]
model_input = "x"

[[outputs]]
name = "activity"
model_output = "logits"
kind = "logits"
labels = ["Standing", "Running", "Walking", "Badminton"]

[calibration]
file = "calibration.npz"

[evaluation]
file = "evaluation.npz"
"""


def make(folder: Path) -> None:
    """Train the network on windows of the training series and write the hand-over, judged on the test series."""
    train, labels = windows(TRAIN)
    test, test_labels = windows(TEST)
    network = trained(_network(), train, labels, epochs=30, batch=32)
    write(
        folder,
        _HANDOVER,
        onnx_bytes(network, train[:1]),
        {"window": train[::3][:, None]},
        {"window": test[:, None], "labels": test_labels},
    )


def _network() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv1d(6, 24, 7, padding=3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(24, 32, 5, padding=2), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, len(CLASSES)),
    )  # fmt: skip


def windows(member: Member) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return windows float32 [n, 6, 50] and classes int64 [n] of a `.ts` file: a series a line, channels by colons."""
    found, labels = [], []
    lines = fetch(member).read_text().partition("@data\n")[2].splitlines()
    for line in filter(None, lines):
        *channels, label = line.split(":")
        series = np.array([channel.split(",") for channel in channels], np.float32)
        for start in range(0, series.shape[1] - _WINDOW + 1, _STRIDE):
            found.append(series[:, start : start + _WINDOW])
            labels.append(CLASSES.index(label.strip()))
    return np.stack(found), np.array(labels, np.int64)
