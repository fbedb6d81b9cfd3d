"""Small bundles whose artifact is only bytes: what the release rooms check is everything but running it."""

from __future__ import annotations

from pathlib import Path

from edgeops.contracts.bundle import Binding, BundleManifest, Golden, OutputInfo, OutputTolerance
from edgeops.contracts.profile import Precision
from edgeops.contracts.tensors import TensorSpec
from edgeops.releases.bundles import Bundle, seal


def make_bundle(
    directory: Path,
    *,
    model: str = "adder",
    profile: str = "intel-nuc",
    artifact: bytes = b"weights" * 40,
    runtime: str = "onnxruntime",
) -> Bundle:
    (directory / "golden").mkdir(parents=True)
    (directory / "model.bin").write_bytes(artifact)
    for name in ("in", "source", "out"):
        (directory / "golden" / f"{name}.npy").write_bytes(name.encode() * 9)
    spec = TensorSpec(name="x", dtype="uint8", shape=(1, 4))
    manifest = BundleManifest(
        model=model,
        profile=profile,
        arch="x86_64",
        runtime=runtime,
        runtime_min="1.18",
        precision=Precision.FLOAT32,
        scheme="float",
        artifact="model.bin",
        inputs=(spec,),
        outputs=(OutputInfo(tensor=spec, kind="raw"),),
        input_bindings=(Binding(device="x", artifact=spec),),
        output_bindings=(Binding(device="x", artifact=spec),),
        golden=Golden(
            count=1,
            inputs={"x": "golden/in.npy"},
            source_outputs={"x": "golden/source.npy"},
            artifact_outputs={"x": "golden/out.npy"},
            tolerances={"x": OutputTolerance(artifact_max_abs=1, source_min_cosine=0.9, reason="test")},
        ),
        files={},
    )
    return seal(directory, manifest)
