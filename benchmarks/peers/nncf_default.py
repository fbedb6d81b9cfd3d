"""NNCF post-training quantization for OpenVINO with its defaults, as in its documentation's first example."""

from __future__ import annotations

import sys
from pathlib import Path

import nncf
import numpy as np
import openvino


def main() -> None:
    """Quantize `KIT/model.onnx` to `OUT/model.xml`."""
    kit, out = Path(sys.argv[1]), Path(sys.argv[2])
    with np.load(kit / "calibration.npz") as arrays:
        samples = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(samples.values())))
    feeds = [{name: values[index] for name, values in samples.items()} for index in range(count)]
    model = openvino.convert_model(str(kit / "model.onnx"))
    quantized = nncf.quantize(model, nncf.Dataset(feeds))
    openvino.save_model(quantized, out / "model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main()
