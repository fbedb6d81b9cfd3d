"""A small sealed bundle on onnxruntime: the device sends uint8 NHWC, the artifact takes float NCHW."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models import ARTIFACT_SHAPE, CLASSES, DEVICE_SHAPE, VECTORS, write_artifact

from edgeops.contracts.bundle import Binding, BundleManifest, Golden, OutputInfo, OutputTolerance
from edgeops.contracts.profile import Precision
from edgeops.contracts.tensors import TensorSpec
from edgeops.releases.bundles import Bundle, seal
from edgeops.runtimes.bundle_session import open_session


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    folder = tmp_path / "bundle"
    (folder / "golden").mkdir(parents=True)
    write_artifact(folder / "model.onnx")
    manifest = BundleManifest(
        model="small", profile="generic-x86-64", arch="x86_64", runtime="onnxruntime", runtime_min="1.18.0",
        precision=Precision.FLOAT32, scheme="fp32", artifact="model.onnx", files={},
        inputs=(TensorSpec(name="image", dtype="uint8", shape=DEVICE_SHAPE),),
        outputs=(OutputInfo(tensor=TensorSpec(name="p", dtype="float32", shape=(1, CLASSES)), kind="probabilities"),),
        input_bindings=(
            Binding(
                device="image",
                artifact=TensorSpec(name="x", dtype="uint8", shape=ARTIFACT_SHAPE),
                transpose=(0, 3, 1, 2),
            ),
        ),
        output_bindings=(Binding(device="p", artifact=TensorSpec(name="y", dtype="float32", shape=(1, CLASSES))),),
        golden=Golden(
            count=VECTORS, inputs={"image": "golden/image.npy"}, source_outputs={"p": "golden/source-p.npy"},
            artifact_outputs={"p": "golden/p.npy"},
            tolerances={
                "p": OutputTolerance(artifact_max_abs=1e-4, source_min_cosine=0.999, reason="float32 rounding"),
            },
        ),
    )  # fmt: skip
    images = np.random.default_rng(6).integers(0, 256, (VECTORS, *DEVICE_SHAPE), np.uint8)
    for name in ("golden/image.npy", "golden/p.npy", "golden/source-p.npy"):
        np.save(folder / name, images if "image" in name else np.zeros((VECTORS, 1, CLASSES), np.float32))
    first = seal(folder, manifest)
    with open_session(folder, first.manifest) as session:
        answers = np.stack([session.run({"image": image})["p"] for image in images])
    np.save(folder / "golden/p.npy", answers)
    np.save(folder / "golden/source-p.npy", answers)
    return seal(folder, manifest)
