"""Releases that are whole and signed, around files that no runtime opens: for tests of everything but inference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeops.contracts.bundle import Binding, BundleManifest, Golden, OutputInfo, OutputTolerance
from edgeops.contracts.profile import Precision
from edgeops.contracts.tensors import TensorSpec
from edgeops.releases import assemble, publish
from edgeops.releases.bundles import seal


def publish_sealed_release(home: Path, directory: Path, model: str, version: str, profiles: Sequence[str]) -> None:
    """Publish such a release.

    Args:
        home: The fleet's home, with its keys.
        directory: A new folder for its bundles.
        model: The model's name.
        version: The release's version.
        profiles: It gets a bundle for each.
    """
    bundles = []
    for profile in profiles:
        bundle = directory / profile
        bundle.mkdir(parents=True)
        (bundle / "model.bin").write_bytes(f"{version} {profile} ".encode() * 4096)
        (bundle / "golden.npy").write_bytes(b"golden")
        seal(bundle, _manifest(model, profile))
        bundles.append(bundle)
    assemble.create(home, bundles, version=version)
    publish.publish(home, model, version)


def _manifest(model: str, profile: str) -> BundleManifest:
    image, label = (
        TensorSpec(name="image", dtype="uint8", shape=(1, 4)),
        TensorSpec(name="label", dtype="float32", shape=(1, 2)),
    )
    golden = {"image": "golden.npy"}, {"label": "golden.npy"}
    return BundleManifest(
        model=model,
        profile=profile,
        arch="x86_64",
        runtime="onnxruntime",
        runtime_min="1.18",
        precision=Precision.FLOAT32,
        scheme="float",
        artifact="model.bin",
        inputs=(image,),
        outputs=(OutputInfo(tensor=label, kind="logits"),),
        input_bindings=(Binding(device="image", artifact=image),),
        output_bindings=(Binding(device="label", artifact=label),),
        golden=Golden(
            count=1,
            inputs=golden[0],
            source_outputs=golden[1],
            artifact_outputs=golden[1],
            tolerances={"label": OutputTolerance(artifact_max_abs=0.0, source_min_cosine=1.0, reason="exact")},
        ),
        files={},
    )
