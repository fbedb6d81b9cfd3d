"""The layout adapter: clients see the device's tensors, whatever the artifact's own look like."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from small_models import DEVICE_SHAPE

from edgeops.contracts.bundle import Binding
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


class Echo:
    """A session that answers with what it was fed."""

    provider = "echo"

    def __init__(self, spec: TensorSpec) -> None:
        self.inputs = (spec,)
        self.outputs = (msgspec.structs.replace(spec, name="r"),)

    def run(self, feeds):
        return {"r": feeds[self.inputs[0].name]}

    def close(self):
        pass


def echo_manifest(bundle: Bundle, device: TensorSpec, artifact: TensorSpec, **binding):
    """One input and one output, both of the device's form, bound alike."""
    out = msgspec.structs.replace(device, name="y")
    bound = Binding(device=device.name, artifact=artifact, **binding)
    return msgspec.structs.replace(
        bundle.manifest,
        inputs=(device,),
        outputs=(msgspec.structs.replace(bundle.manifest.outputs[0], tensor=out),),
        input_bindings=(bound,),
        output_bindings=(
            msgspec.structs.replace(bound, device="y", artifact=msgspec.structs.replace(artifact, name="r")),
        ),
    )


def test_a_scalar_stays_a_scalar(bundle: Bundle):
    spec = TensorSpec(name="rate", dtype="int64", shape=())
    session = BundleSession(Echo(spec), echo_manifest(bundle, spec, spec))
    answer = session.run({"rate": np.array(16000)})["y"]
    assert (answer.shape, answer.dtype, int(answer)) == ((), np.int64, 16000)


def test_a_scalar_that_is_taken_out_of_an_array_reaches_the_runtime_as_one(bundle: Bundle):
    """As golden vectors give it: numpy's own number has dtype and shape, but runtimes refuse it."""
    spec = TensorSpec(name="rate", dtype="int64", shape=())
    seen: list[object] = []

    class Watched(Echo):
        def run(self, feeds):
            seen.extend(feeds.values())
            return super().run(feeds)

    BundleSession(Watched(spec), echo_manifest(bundle, spec, spec)).run({"rate": np.array([16000, 8000])[0]})
    assert [(type(value), int(value)) for value in seen] == [(np.ndarray, 16000)]


@pytest.mark.parametrize(
    ("device", "artifact", "binding"),
    [
        (("float32", (2, 3)), ("float32", (2, 4)), {}),
        (("float32", (2, 3)), ("uint8", (2, 3)), {}),
        (("float32", (2, 3)), ("float32", (2, 3)), {"scale": 0.5, "zero_point": 0}),
        (("float32", (2, 3)), ("int8", (2, 3)), {"scale": 0.0, "zero_point": 0}),
        (("float32", (2, 3)), ("int8", (2, 3)), {"scale": float("nan"), "zero_point": 0}),
        (("float32", (2, 3)), ("float32", (3, 2)), {"transpose": (0, 0)}),
        (("float32", (2, 3)), ("float32", (3, 2)), {"transpose": (1, 0, 2)}),
    ],
    ids=["elements", "cast", "scaled-float", "no-step", "nan-step", "axis-twice", "axes"],
)
def test_a_binding_that_cannot_be_applied_is_refused_at_load(bundle: Bundle, device, artifact, binding):
    """Before the first request, and never by changing values silently."""
    specs = [TensorSpec(name="x", dtype=dtype, shape=shape) for dtype, shape in (device, artifact)]
    with pytest.raises(EdgeopsError) as caught:
        BundleSession(Echo(specs[1]), echo_manifest(bundle, *specs, **binding))
    assert caught.value.code == "E-BUNDLE-INVALID"


def test_an_input_that_the_manifest_leaves_free_is_refused_at_load(bundle: Bundle):
    spec = TensorSpec(name="x", dtype="float32", shape=(1,))
    echo = Echo(spec)
    echo.inputs = (spec, msgspec.structs.replace(spec, name="state"))
    with pytest.raises(EdgeopsError, match="'state'") as caught:
        BundleSession(echo, echo_manifest(bundle, spec, spec))
    assert caught.value.code == "E-RUNTIME-LOAD"
