"""Plain `onnxruntime.quantization`: pre-processing, then static QDQ int8 per channel, as its documentation describes.

The bias option is no tuning: without it the 1.32 release fails on per-channel weights ("truth value of an array").
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):
    """All calibration samples, in order."""

    def __init__(self, data: Path) -> None:
        with np.load(data) as arrays:
            self._samples = {name: arrays[name] for name in arrays.files}
        self._feeds = self._iterate()

    def _iterate(self) -> Iterator[dict[str, Any]]:
        for index in range(len(next(iter(self._samples.values())))):
            yield {name: values[index] for name, values in self._samples.items()}

    def get_next(self) -> dict[str, Any] | None:
        """Return the next feeds, None at the end."""
        return next(self._feeds, None)


def main() -> None:
    """Quantize `KIT/model.onnx` to `OUT/model.onnx`."""
    kit, out = Path(sys.argv[1]), Path(sys.argv[2])
    prepared = out / "prepared.onnx"
    try:
        quant_pre_process(str(kit / "model.onnx"), str(prepared))
    except (AssertionError, AttributeError, ValueError, RuntimeError, TypeError):
        # Its documentation's way where symbolic shape inference fails; shapes are fixed here anyway.
        quant_pre_process(str(kit / "model.onnx"), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(out / "model.onnx"),
        Reader(kit / "calibration.npz"),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"QDQDisableWeightAdjustForInt32Bias": True},
    )
    prepared.unlink()


if __name__ == "__main__":
    main()
