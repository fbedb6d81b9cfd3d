"""The layout adapter: clients see the device's tensors, whatever the artifact's own look like."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from conftest import DEVICE_SHAPE

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.tensors import TensorSpec
from edgeops.releases.bundles import Bundle
from edgeops.runtimes.bundle_session import BundleSession, open_session


class Recorder:
    """A session that keeps what it was fed and answers with int8 [1, 3, 2]."""

    provider = "recorder"
    inputs = (TensorSpec(name="q", dtype="int8", shape=(1, 3, 4)),)
    outputs = (TensorSpec(name="r", dtype="int8", shape=(1, 3, 2)),)

    def run(self, feeds):
        self.fed = feeds["q"]
        return {"r": np.arange(-3, 3, dtype=np.int8).reshape(1, 3, 2)}

    def close(self):
        pass


def quantized_manifest(bundle: Bundle):
    """float32 [1, 4, 3] at the device, int8 [1, 3, 4] in the artifact, both ways quantized."""
    manifest = bundle.manifest
    binding, out = manifest.input_bindings[0], manifest.output_bindings[0]
    return msgspec.structs.replace(
        manifest,
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 4, 3)),),
        outputs=(
            msgspec.structs.replace(manifest.outputs[0], tensor=TensorSpec(name="y", dtype="float32", shape=(1, 2, 3))),
        ),
        input_bindings=(
            msgspec.structs.replace(
                binding, device="x", artifact=Recorder.inputs[0], transpose=(0, 2, 1), scale=0.5, zero_point=-1
            ),
        ),
        output_bindings=(
            msgspec.structs.replace(
                out, device="y", artifact=Recorder.outputs[0], transpose=(0, 2, 1), scale=0.25, zero_point=2
            ),
        ),
    )


def test_quantized_and_transposed_tensors_arrive_as_the_device_means_them(bundle: Bundle):
    recorder = Recorder()
    session = BundleSession(recorder, quantized_manifest(bundle))
    x = np.linspace(-100, 100, 12, dtype=np.float32).reshape(1, 4, 3)
    y = session.run({"x": x})["y"]
    expected = np.clip(np.rint(x.transpose(0, 2, 1) / 0.5) - 1, -128, 127).astype(np.int8)
    np.testing.assert_array_equal(recorder.fed, expected)
    raw = np.arange(-3, 3).reshape(1, 3, 2)
    np.testing.assert_array_equal(y, ((raw - 2) * 0.25).transpose(0, 2, 1).astype(np.float32))


def test_wrong_device_tensor_is_refused(bundle: Bundle):
    with open_session(bundle.directory, bundle.manifest) as session:
        for bad in (np.zeros((1, 3, 2, 2), np.uint8), np.zeros(DEVICE_SHAPE, np.float32)):
            with pytest.raises(EdgeopsError) as caught:
                session.run({"image": bad})
            assert caught.value.code == "E-RUNTIME-INPUT"


def test_a_manifest_that_names_other_tensors_is_refused_at_load(bundle: Bundle):
    binding = bundle.manifest.input_bindings[0]
    other = msgspec.structs.replace(binding, artifact=msgspec.structs.replace(binding.artifact, name="z"))
    with pytest.raises(EdgeopsError) as caught:
        open_session(bundle.directory, msgspec.structs.replace(bundle.manifest, input_bindings=(other,)))
    assert caught.value.code == "E-RUNTIME-LOAD"
