"""Olive's static int8 workflow: its documented passes and their defaults, with per-channel weights as it recommends.

Runs in an environment of its own (`environment.py`), with Olive's telemetry off, and imports nothing of edgeops.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

# Before Olive is imported.
os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"

import numpy as np
from olive import run
from olive.data.component.dataset import BaseDataset
from olive.data.registry import Registry


@Registry.register_dataset()
def kit_calibration(data_dir: str, **_: object) -> BaseDataset:
    """Return the calibration samples of a kit; the label is one that no pass reads."""
    with np.load(Path(data_dir) / "calibration.npz") as arrays:
        samples = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(samples.values())))
    return BaseDataset([({name: values[index] for name, values in samples.items()}, 0) for index in range(count)])


def main() -> None:
    """Quantize `KIT/model.onnx` to `OUT/model.onnx`."""
    kit, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    data = {
        "name": "calibration",
        "user_script": str(Path(__file__).resolve()),
        "load_dataset_config": {"type": "kit_calibration", "params": {"data_dir": str(kit)}},
        "dataloader_config": {"type": "no_auto_batch_dataloader"},
    }
    accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    quantize = {
        "type": "OnnxStaticQuantization",
        "data_config": "calibration",
        "per_channel": True,
        # As for plain onnxruntime: without it per-channel weights fail on some graphs.
        "extra_options": {"QDQDisableWeightAdjustForInt32Bias": True},
    }
    run(
        {
            "input_model": {"type": "ONNXModel", "model_path": str(kit / "model.onnx")},
            "systems": {"local": {"type": "LocalSystem", "accelerators": [accelerator]}},
            "data_configs": [data],
            "passes": {"quantize": quantize},
            "host": "local",
            "target": "local",
            "evaluate_input_model": False,
            "cache_dir": str(out / "cache"),
            "output_dir": str(out / "olive"),
        }
    )
    made = sorted((out / "olive").rglob("*.onnx"))
    if len(made) != 1:
        raise SystemExit(f"Olive wrote {len(made)} models")
    for path in made[0].parent.glob("*"):
        if path.suffix in (".onnx", ".data"):
            shutil.copyfile(path, out / ("model.onnx" if path == made[0] else path.name))
    shutil.rmtree(out / "cache")
    shutil.rmtree(out / "olive")


if __name__ == "__main__":
    main()
