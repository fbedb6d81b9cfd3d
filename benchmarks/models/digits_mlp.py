"""A multilayer perceptron on scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

from benchmarks.models import digits
from benchmarks.models.folder import SEED


def make(folder: Path) -> None:
    """Write the hand-over."""
    from sklearn.neural_network import MLPClassifier

    digits.make(folder, "digits-mlp", MLPClassifier(hidden_layer_sizes=(64, 32), max_iter=400, random_state=SEED))
