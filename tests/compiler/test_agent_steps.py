"""What an artifact cannot hold is done by whoever runs the bundle, is proved with it, and cannot be lost."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgeops import compiler
from edgeops.agent.worker.oip import InferCodec
from edgeops.client.inference_local import LocalModel
from edgeops.compiler.holding import held_by, split_input, split_results
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.handover import ArgMax, Cast, Input, LogMel, Softmax
from edgeops.contracts.tensors import MAX_VARYING_ELEMENTS, TensorSpec
from edgeops.releases.bundles import open_bundle
from edgeops.runtimes import golden
from edgeops.runtimes.bundle_session import open_session
from edgeops.testkit.handovers import shapes, write_shapes_handover

_BEST = """
[[outputs]]
name = "best"
model_output = "y"
kind = "classes"
labels = ["circle", "square", "cross", "dots"]
postprocess = [{ step = "argmax" }]

[[outputs]]
name = "two"
model_output = "y"
postprocess = [{ step = "top-k", k = 2, give = "values" }]

[calibration]"""


def enlarged(images: np.ndarray, side: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(one[:, :, 0]).resize((side, side)))[:, :, None] for one in images])


def with_results(folder: Path) -> Path:
    path = folder / "handover.toml"
    path.write_text(path.read_text().replace("\n[calibration]", _BEST))
    return folder


@pytest.mark.parametrize(
    "runtime", ["onnxruntime", *(pytest.param(name, marks=pytest.mark.full) for name in ("openvino", "litert"))]
)
def test_results_are_baked_and_agree_with_the_probabilities(runtime: str, profile, tmp_path: Path):
    folder = with_results(write_shapes_handover(tmp_path / "handover"))
    one = compiler.compile(folder, [profile(runtime, "fp32")], tmp_path / "out").profiles[0]
    assert one.passed, one.missed
    manifest = open_bundle(one.packaged.directory).manifest
    assert not manifest.agent_results
    assert set(manifest.postprocessing) == {"best", "two"}
    images, labels = shapes(40, seed=5)
    with LocalModel(one.packaged.directory) as model:
        answers = [model.infer("shapes", {"image": image[None]}) for image in images]
    for answer in answers:
        assert answer["best"].dtype == np.int32
        assert answer["best"].shape == (1, 1)
        assert answer["best"][0, 0] == answer["shape"].argmax()
        np.testing.assert_allclose(answer["two"][0], np.sort(answer["shape"][0])[::-1][:2], atol=1e-6)
    assert np.mean([answer["best"][0, 0] == label for answer, label in zip(answers, labels, strict=True)]) > 0.8


@pytest.fixture(scope="module")
def varying(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose pictures may have any size: the agent brings them to one."""
    folder = write_shapes_handover(tmp_path_factory.mktemp("varying") / "handover")
    text = (folder / "handover.toml").read_text()
    resize = 'agent = [{ step = "cast" }, { step = "resize", height = 8, width = 8, interpolation = "linear"'
    resize += ", antialias = true }]"
    text = text.replace('  { step = "cast" },\n', "").replace("[1, 8, 8, 1]", f"[1, -1, -1, 1]\n{resize}")
    (folder / "handover.toml").write_text(text)
    for name in ("calibration", "evaluation"):
        with np.load(folder / f"{name}.npz") as file:
            arrays = dict(file)
        np.savez(folder / f"{name}.npz", **(arrays | {"image": enlarged(arrays["image"], 24)}))
    made = folder.parent / "profiles"
    made.mkdir()
    path = made / "test-onnxruntime.toml"
    path.write_text(
        'name = "test-onnxruntime"\ntitle = "Test board"\nruntimes = [{ name = "onnxruntime", runtime_min = "1.0", '
        'precisions = ["fp32"], onnx_ir_max = 10, onnx_opset_max = 21, source = "test" }]\n[cpu]\nmodel = "any"\n'
        'arch = "aarch64"\ncores = 1\nclock_mhz = 1\nsource = "test"\n[memory]\nram_mib = 1024\nsource = "test"\n'
    )
    one = compiler.compile(folder, [str(path)], folder.parent / "out").profiles[0]
    assert one.passed, one.missed
    return one.packaged.directory


@pytest.mark.parametrize("side", [8, 13, 24, 100])
def test_pictures_of_any_size_are_answered_alike(varying: Path, side: int):
    images, labels = shapes(60, seed=6)
    with LocalModel(varying) as model:
        answers = [model.infer("shapes", {"image": one[None]})["shape"] for one in enlarged(images, side)]
    assert np.mean([answer.argmax() == label for answer, label in zip(answers, labels, strict=True)]) > 0.8


def test_golden_vectors_go_through_the_agents_steps(varying: Path):
    bundle = open_bundle(varying)
    vectors = golden.load(bundle.directory, bundle.manifest)
    assert vectors.inputs["image"].shape[1:] == (1, 24, 24, 1)
    with open_session(bundle.directory, bundle.manifest) as session:
        assert golden.replay(session, bundle.manifest, vectors).vectors == bundle.manifest.golden.count


def test_lost_or_changed_steps_are_noticed(varying: Path):
    """Negative controls: without its steps a bundle does not open; with other ones its golden vectors fail."""
    bundle = open_bundle(varying)
    lost = msgspec.structs.replace(bundle.manifest, agent_steps={})
    with pytest.raises(EdgeopsError) as caught:
        open_session(bundle.directory, lost)
    assert caught.value.code == "E-BUNDLE-INVALID"
    cast, resize = bundle.manifest.agent_steps["image"]
    nearest = msgspec.structs.replace(resize, interpolation="nearest", antialias=False)
    changed = msgspec.structs.replace(bundle.manifest, agent_steps={"image": (cast, nearest)})
    vectors = golden.load(bundle.directory, bundle.manifest)
    with open_session(bundle.directory, changed) as session, pytest.raises(EdgeopsError) as caught:
        golden.replay(session, changed, vectors)
    assert caught.value.code == "E-SELFTEST-GOLDEN"


def test_a_picture_that_is_empty_or_far_too_large_is_refused(varying: Path):
    with LocalModel(varying) as model:
        for shape in ((1, 0, 8, 1), (1, 4096, 4096, 1)):
            with pytest.raises(EdgeopsError) as caught:
                model.infer("shapes", {"image": np.zeros(shape, np.uint8)})
            assert caught.value.code == "E-RUNTIME-INPUT"
        with pytest.raises(EdgeopsError, match="expected uint8"):
            model.infer("shapes", {"image": np.zeros((1, 8, 8, 3), np.uint8)})


def test_requests_of_any_size_are_read_over_http(varying: Path):
    codec = InferCodec(open_bundle(varying).manifest, "1.0.0")

    def body(height: int, width: int, size: int) -> tuple[bytes, int]:
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": "image", "datatype": "UINT8", "shape": [1, height, width, 1],
                        "parameters": {"binary_data_size": size},
                    }
                ]
            }
        ).encode()  # fmt: skip
        return head + bytes(size), len(head)

    assert codec.read(*body(30, 41, 30 * 41)).feeds["image"].shape == (1, 30, 41, 1)
    for height, width, size in ((30, 41, 1000), (0, 41, 0), (-1, 41, 41), (1 << 20, 1 << 20, 8)):
        with pytest.raises(EdgeopsError) as caught:
            codec.read(*body(height, width, size))
        assert caught.value.code == "E-RUNTIME-INPUT"


def test_a_tensor_of_varying_size_knows_its_most():
    spec = TensorSpec(name="image", dtype="uint8", shape=(1, -1, -1, 3))
    assert spec.elements == MAX_VARYING_ELEMENTS
    assert spec.sized((1, 2, 3, 3)) == TensorSpec(name="image", dtype="uint8", shape=(1, 2, 3, 3))
    assert spec.sized((1, 2, 3, 4)) is spec.sized((1, 2, 3)) is spec.sized((1, 0, 3, 3)) is None
    assert spec.sized((1, 1 << 12, 1 << 12, 3)) is None


def test_the_agent_does_all_up_to_the_last_step_that_a_runtime_cannot_hold():
    steps = (Cast(), LogMel(rate_hz=64, mels=1), Cast())
    spec = Input(name="x", dtype="int16", shape=(1, 2, 64), preprocess=steps)
    agent, rest = split_input(spec, held_by("mcu", ready=False))
    assert [type(step) for step in agent] == [Cast, LogMel]
    assert (rest.dtype, rest.shape, rest.preprocess) == ("float32", (1, 2, 1), (Cast(),))
    assert split_input(spec, held_by("litert", ready=False)) == ((), spec)
    assert split_input(spec, held_by("litert", ready=True))[1].preprocess == ()
    assert split_results((Softmax(), ArgMax()), held_by("mcu", ready=False)) == ((), (Softmax(), ArgMax()))
