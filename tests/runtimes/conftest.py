"""A small sealed bundle on onnxruntime: the device sends uint8 NHWC, the artifact takes float NCHW."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeops.contracts.bundle import Binding, BundleManifest, Golden, OutputInfo, OutputTolerance
from edgeops.contracts.profile import Precision
from edgeops.contracts.tensors import TensorSpec
from edgeops.releases.bundles import Bundle, seal
from edgeops.runtimes.bundle_session import open_session

DEVICE_SHAPE, ARTIFACT_SHAPE, CLASSES, VECTORS = (1, 2, 2, 3), (1, 3, 2, 2), 4, 6


def write_artifact(path: Path, *, shift: float = 0.0) -> None:
    """softmax(flatten(x) @ W): uint8 NCHW in, float32 [1, 4] out; `shift` moves one weight."""
    from onnx import TensorProto, helper, numpy_helper, save

    weights = np.random.default_rng(5).normal(size=(12, CLASSES)).astype(np.float32) / 100
    weights[0, 0] += shift
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["f"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["y"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ARTIFACT_SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, CLASSES))],
        [numpy_helper.from_array(weights, "w")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


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
