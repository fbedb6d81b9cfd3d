"""A CNN of 8 KB for microcontrollers, on MNIST: two convolutions and a linear layer."""

from __future__ import annotations

from pathlib import Path

from benchmarks.models.mnist_cnn import learn


def make(folder: Path) -> None:
    """Train the network and write the hand-over."""
    from torch import nn

    learn(
        folder,
        "mnist-mcu",
        nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * 7 * 7, 10),
        ),
        taught=20_000, epochs=3, calibration=128, evaluation=1000,
    )  # fmt: skip
