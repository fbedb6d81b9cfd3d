"""A network for the full labelled MNIST that takes a tenth of a millisecond: all overhead, on a computer."""

from __future__ import annotations

from pathlib import Path

from benchmarks.models.mnist_cnn import learn


def make(folder: Path) -> None:
    """Train the network and write the hand-over."""
    from torch import nn

    learn(
        folder,
        "mnist-small",
        nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU6(), nn.Conv2d(32, 64, 1), nn.ReLU6(),
            nn.Conv2d(64, 64, 3, padding=1, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(64, 10),
        ),
    )  # fmt: skip
