"""Classifiers of scikit-learn on its own labelled digits, as ONNX with plain probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models.folder import SEED, write

_CALIBRATION = 200


def make(folder: Path, name: str, estimator: Any) -> None:
    """Fit an estimator to half of the digits and write it as a hand-over, judged on the other half.

    Args:
        folder: Where.
        name: The model's name.
        estimator: A classifier of scikit-learn, not fitted.
    """
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data, labels = load_digits(return_X_y=True)
    data = data.astype(np.float32)
    train, test, train_labels, test_labels = train_test_split(
        data, labels, test_size=0.5, random_state=SEED, stratify=labels
    )
    estimator.fit(train, train_labels)
    model = to_onnx(estimator, train[:1], options={"zipmap": False}, target_opset={"": 17, "ai.onnx.ml": 3})
    write(
        folder,
        _handover(name),
        model.SerializeToString(),
        {"pixels": train[:_CALIBRATION, None]},
        {"pixels": test[:, None], "labels": test_labels.astype(np.int64)},
    )


def _handover(name: str) -> str:
    return f"""\
schema = 1

[model]
name = "{name}"
file = "model.onnx"

[[inputs]]
name = "pixels"
dtype = "float32"
shape = [1, 64]
model_input = "X"

[[outputs]]
name = "digit"
model_output = "probabilities"
kind = "probabilities"
labels = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]

[calibration]
file = "calibration.npz"

[evaluation]
file = "evaluation.npz"
"""
