"""Bundles of a microcontroller's model, written by hand: y = x + add on four numbers, int8 with scale 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from model_code import adder

from edgeops.contracts.bundle import Binding, BundleManifest, Golden, OutputInfo, OutputTolerance
from edgeops.contracts.profile import Budgets, Precision
from edgeops.contracts.tensors import TensorSpec
from edgeops.releases.bundles import Bundle, seal
from firmware_bridge import blobs

MODEL = "mcu-adder"
SIZE, VECTORS = 64, 4


def mcu_bundle(
    directory: Path,
    *,
    cpu: blobs.Cpu = blobs.Cpu.CORTEX_M4,
    profile: str = "cortex-m4",
    add: int = 1,
    lie: float = 0.0,
    extra: str = "",
    padding: int = 0,
    model: str = MODEL,
    budgets: Budgets | None = None,
) -> Bundle:
    """Make a bundle.

    Args:
        directory: Where to.
        cpu: Of the blob.
        profile: Of the bundle.
        add: What the model adds.
        lie: What its golden vectors are wrong by.
        extra: C statements of the model.
        padding: Bytes that make the blob larger.
    """
    (directory / "golden").mkdir(parents=True)
    blob = adder(directory.parent, cpu, add=add, size=SIZE, extra=extra)
    if padding:
        code = blob[blobs.HEADER_SIZE :] + np.random.default_rng(add).bytes(padding)
        blob = blobs.pack(blobs.read(blob), code)
    (directory / "model.blob").write_bytes(blob)
    shape = (1, SIZE)
    x = np.random.default_rng(1).integers(-50, 50, (VECTORS, *shape)).astype(np.float32)
    np.save(directory / "golden" / "x.npy", x)
    np.save(directory / "golden" / "y.npy", x + np.float32(add + lie))
    inside, outside = (TensorSpec(name=name, dtype="float32", shape=shape) for name in ("x", "y"))
    ends = [
        Binding(device=spec.name, artifact=TensorSpec(name=name, dtype="int8", shape=shape), scale=1.0, zero_point=0)
        for spec, name in ((inside, "input"), (outside, "output"))
    ]
    manifest = BundleManifest(
        model=model,
        profile=profile,
        arch="armv7e-m",
        runtime="mcu",
        runtime_min="1",
        precision=Precision.INT8,
        scheme="mcu-int8",
        artifact="model.blob",
        inputs=(inside,),
        outputs=(OutputInfo(tensor=outside, kind="values"),),
        input_bindings=(ends[0],),
        output_bindings=(ends[1],),
        golden=Golden(
            count=VECTORS,
            inputs={"x": "golden/x.npy"},
            source_outputs={"y": "golden/y.npy"},
            artifact_outputs={"y": "golden/y.npy"},
            tolerances={"y": OutputTolerance(artifact_max_abs=0.0, source_min_cosine=0.9, reason="test")},
        ),
        budgets=budgets or Budgets(),
        options={"cpu": "cortex-m4"},
        files={},
    )
    return seal(directory, manifest)
