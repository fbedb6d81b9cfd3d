"""Writes what every hand-over has: a model, its samples, and `handover.toml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 7


def write(
    folder: Path,
    declared: str,
    model: bytes,
    calibration: dict[str, NDArray[Any]],
    evaluation: dict[str, NDArray[Any]],
) -> None:
    """Write a hand-over.

    Args:
        folder: Where; it must not be there.
        declared: The content of `handover.toml`.
        model: The ONNX file's bytes, written as `model.onnx`.
        calibration: Input → samples along the first axis.
        evaluation: The same, with the true answers as `labels` where there are any.
    """
    folder.mkdir(parents=True)
    (folder / "handover.toml").write_text(declared)
    (folder / "model.onnx").write_bytes(model)
    np.savez(folder / "calibration.npz", **calibration)
    np.savez(folder / "evaluation.npz", **evaluation)
