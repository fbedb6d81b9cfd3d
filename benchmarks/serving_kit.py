"""What `benchmarks/serving.py` serves: two models, compiled once, and for each a request and its right answer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import models
from edgeops import compiler, durable
from edgeops.intake.cache import cache_dir
from edgeops.releases.bundles import Bundle, open_bundle

NAMES = ("digits-mlp", "colour-cnn")
# One runtime, one precision, one thread: what every peer runs too.
_PROFILE = """\
extends = "generic-x86-64"
name = "bench-serving"
title = "Serving benchmark: one thread of onnxruntime"

[[runtimes]]
name = "onnxruntime"
runtime_min = "1.18.0"
onnx_ir_max = 10
onnx_opset_max = 21
precisions = ["fp32"]
source = "chosen for the benchmark"

[serving]
threads = 1
"""


class Kit(NamedTuple):
    """One model.

    Args:
        name: Its name.
        bundle: As a device gets it.
        artifact: The ONNX file in it, which peers run.
        tensor: One input, as the device and the artifact take it.
        expected: Its output.
    """

    name: str
    bundle: Bundle
    artifact: Path
    tensor: NDArray[np.float32]
    expected: NDArray[np.float32]

    @property
    def input(self) -> str:
        """The input's name to clients of a device."""
        return self.bundle.manifest.inputs[0].name

    @property
    def output(self) -> str:
        """The output's name to clients of a device."""
        return self.bundle.manifest.outputs[0].tensor.name

    def session(self) -> Any:
        """Return the bare runtime with the artifact, one thread, the artifact's own signature."""
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(str(self.artifact), settings, providers=["CPUExecutionProvider"])


def make(name: str) -> Kit:
    """Return a model's kit; it is compiled where the cache has it not."""
    handover = models.handover(name)
    folder = cache_dir() / "bench-serving" / handover.parent.name / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            profile = Path(made) / "bench-serving.toml"
            profile.write_text(_PROFILE)
            compiler.compile(handover, [str(profile)], Path(made) / "built")
            durable.rename(Path(made) / "built" / "bench-serving" / "bundle", folder)
    bundle = open_bundle(folder)
    given = np.load(folder / next(iter(bundle.manifest.golden.inputs.values())))[0]
    kit = Kit(name, bundle, folder / bundle.manifest.artifact, given, given)
    session = kit.session()
    own = session.get_inputs()[0]
    if list(given.shape) != own.shape or given.dtype != np.float32:
        raise SystemExit(f"{name}: peers cannot take {given.dtype}{given.shape}, the artifact wants {own.shape}")
    return kit._replace(expected=session.run(None, {own.name: given})[0])
