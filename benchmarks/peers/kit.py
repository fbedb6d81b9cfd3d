"""What every peer gets: a clean float graph, and data that is preprocessed already.

The graph is the source with fixed shapes and an opset of 17 or newer: without that, per-channel int8 of older exports
does not load at all. So peers start from what edgeops starts from, and are spared the preprocessing that edgeops bakes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.compiler.engine import Step, run_step
from edgeops.compiler.store import Product, Store, Stored
from edgeops.contracts.handover import Handover
from edgeops.intake.handover import read
from edgeops.runtimes.steps import apply

MODERN_OPSET = 17


class Kit(NamedTuple):
    """A model for peers.

    Args:
        folder: Has `model.onnx`, what peers quantize; `calibration.npz`, its inputs; `baked.onnx`, with preprocessing.
        handover: What was declared.
        device: Device tensors on which quality is judged [n, *shape].
        judged: The same, preprocessed, by the model's own input names.
        reference: The untouched source's answers by the model's own output names.
    """

    folder: Path
    handover: Handover
    device: dict[str, NDArray[Any]]
    judged: dict[str, NDArray[Any]]
    reference: dict[str, NDArray[Any]]


def make_kit(handover_dir: Path, folder: Path) -> Kit:
    """Prepare a hand-over for peers in `folder`."""
    from edgeops.compiler.passes.running import run_artifact

    loaded = read(handover_dir)
    handover = loaded.handover
    device = loaded.calibration if loaded.evaluation is None else loaded.evaluation.inputs
    device = {spec.name: device[spec.name] for spec in handover.inputs}
    fed = {spec.model_input or spec.name: spec for spec in handover.inputs}

    def preprocessed(samples: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {
            name: np.stack([apply(spec.preprocess, row) for row in samples[spec.name]]) for name, spec in fed.items()
        }

    calibration, judged = preprocessed(loaded.calibration), preprocessed(device)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "calibration.npz", **calibration)
    outputs = list(dict.fromkeys(item.model_output or item.name for item in handover.outputs))
    shapes = {name: list(values.shape[1:]) for name, values in calibration.items()}
    answers = run_artifact("onnxruntime", loaded.model_path, judged)
    reference = {name: answers[name] for name in outputs}
    seen = {name: list(values.shape[1:]) for name, values in reference.items()}
    repair = {"shapes": shapes, "outputs": seen, "opset": MODERN_OPSET, "opset_max": None, "ir_max": None}
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch))
        current = Stored(loaded.model_path.parent, Product(facts=("file",)))
        for name, parameters in (
            ("ingest", {"file": loaded.model_path.name, "outputs": outputs}),
            ("repair", repair),
            ("bake", {"inputs": msgspec.to_builtins(handover.inputs)}),
        ):
            current = run_step(store, Step(name=name, parameters=parameters), current, {})
            if current.product.failure is not None:
                raise RuntimeError(f"{handover.model.name}: {name}: {current.product.failure.what}")
            target = {"repair": "model.onnx", "bake": "baked.onnx"}.get(name)
            if target is not None:
                (folder / target).write_bytes((current.path / "model.onnx").read_bytes())
    return Kit(folder, handover, device, judged, reference)
