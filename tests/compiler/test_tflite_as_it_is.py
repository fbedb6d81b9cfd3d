"""A TFLite file is taken as it is: its bytes are what ships, the agent does its steps, and no other runtime gets it."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edgeops
from edgeops import compiler
from edgeops.client.inference_local import LocalModel
from edgeops.contracts.errors import EdgeopsError
from edgeops.intake.handover import read
from edgeops.intake.onnx_probe import probe
from edgeops.releases.bundles import open_bundle
from edgeops.testkit.handovers import LABELS, shapes, write_shapes_handover

Files = Callable[[str], Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The shapes classifier as a TFLite file, float or int8, as the compiler makes it; only once it is asked for."""
    folder = tmp_path_factory.mktemp("tflite")

    @functools.cache
    def made(precision: str) -> Path:
        profile = folder / "test-litert.toml"
        profile.write_text(_profile("litert", precision))
        handover = write_shapes_handover(folder / "onnx")
        one = compiler.compile(handover, [str(profile)], folder / precision).profiles[0]
        assert one.passed, one.missed
        return one.packaged.directory / "model.tflite"

    return made


def _profile(runtime: str, precision: str) -> str:
    more = "onnx_ir_max = 10, onnx_opset_max = 21, " if runtime == "onnxruntime" else ""
    return (
        f'name = "test-litert"\ntitle = "Test board"\nruntimes = [{{ name = "{runtime}", runtime_min = "1.0", {more}'
        f'precisions = ["{precision}"], source = "test" }}]\n[cpu]\nmodel = "any"\n'
        'arch = "aarch64"\ncores = 1\nclock_mhz = 1\nsource = "test"\n[memory]\nram_mib = 1024\nsource = "test"\n'
    )


def handover_of(model: Path, folder: Path, *, dtype: str = "uint8", steps: str = "") -> Path:
    """Write a hand-over of a TFLite file that takes pictures as the device's bytes."""
    write_shapes_handover(folder)
    (folder / "model.onnx").unlink()
    shutil.copyfile(model, folder / "model.tflite")
    facts = probe(folder / "model.tflite")
    text = (folder / "handover.toml").read_text()
    start, end = text.index("preprocess = ["), text.index("]\n\n[[outputs]]")
    text = text[:start] + f"preprocess = [{steps}" + text[end:]
    text = text.replace('"model.onnx"', '"model.tflite"').replace('dtype = "uint8"', f'dtype = "{dtype}"')
    text = text.replace('model_input = "x"', f'model_input = "{facts.inputs[0].name}"')
    text = text.replace('model_output = "y"', f'model_output = "{facts.outputs[0].name}"')
    (folder / "handover.toml").write_text(text)
    return folder


@pytest.mark.parametrize("precision", ["int8", pytest.param("fp32", marks=pytest.mark.full)])
def test_a_ready_file_ships_byte_for_byte(files: Files, precision: str, profile, tmp_path: Path):
    folder = handover_of(files(precision), tmp_path / "handover")
    one = compiler.compile(folder, [profile("litert", "fp32", "int8")], tmp_path / "out").profiles[0]
    assert one.passed, one.missed
    assert (one.chosen.scheme, one.chosen.precision) == ("litert-as-handed-over", precision)
    shipped = (one.packaged.directory / "model.tflite").read_bytes()
    assert hashlib.sha256(shipped).digest() == hashlib.sha256(files(precision).read_bytes()).digest()
    images, labels = shapes(60, seed=8)
    with LocalModel(one.packaged.directory) as model:
        answers = [model.infer("shapes", {"image": image[None]})["shape"] for image in images]
    assert all(answer.dtype == np.float32 for answer in answers)
    assert np.mean([answer.argmax() == label for answer, label in zip(answers, labels, strict=True)]) > 0.8


def test_the_agent_does_the_steps_that_a_ready_file_cannot_hold(files: Files, profile, tmp_path: Path):
    """The device sends pictures upside down and at half the brightness; the declared steps undo it."""
    steps = '{ step = "cast" }, { step = "scale", by = 2.0 }, { step = "cast" }'
    folder = handover_of(files("int8"), tmp_path / "handover", steps=steps)
    with pytest.raises(EdgeopsError) as caught:
        read(folder)
    assert caught.value.code == "E-HANDOVER-SHAPE"
    assert "becomes float32" in caught.value.what
    steps = '{ step = "crop", height = 8, width = 8 }'
    folder = handover_of(files("int8"), tmp_path / "cropped", steps=steps)
    for name in ("calibration", "evaluation"):
        with np.load(folder / f"{name}.npz") as file:
            arrays = dict(file)
        arrays["image"] = np.pad(arrays["image"], ((0, 0), (2, 2), (3, 3), (0, 0)))
        np.savez(folder / f"{name}.npz", **arrays)
    path = folder / "handover.toml"
    path.write_text(path.read_text().replace("[1, 8, 8, 1]", "[1, 12, 14, 1]"))
    one = compiler.compile(folder, [profile("litert", "int8")], tmp_path / "out").profiles[0]
    assert one.passed, one.missed
    manifest = open_bundle(one.packaged.directory).manifest
    assert [type(step).__name__ for step in manifest.agent_steps["image"]] == ["Crop"]
    assert not manifest.preprocessing


def test_a_lock_makes_the_same_bundle_again(files: Files, profile, tmp_path: Path):
    folder = handover_of(files("int8"), tmp_path / "handover")
    name = profile("litert", "int8")
    first = compiler.compile(folder, [name], tmp_path / "out")
    assert first.lock is not None
    again = compiler.compile(folder, [name], tmp_path / "again", locked=first.lock, check=True)
    assert again.profiles[0].packaged.digest == first.profiles[0].packaged.digest


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_other_runtimes_do_not_get_it(files: Files, runtime: str, profile, tmp_path: Path):
    folder = handover_of(files("int8"), tmp_path / "handover")
    with pytest.raises(EdgeopsError, match="runs on LiteRT only") as caught:
        compiler.compile(folder, [profile(runtime, "fp32")], tmp_path / "out")
    assert caught.value.code == "E-MODEL-UNSUPPORTED"


@pytest.mark.parametrize("damage", ["truncated", "no flatbuffer"])
def test_a_damaged_file_is_refused(files: Files, damage: str, tmp_path: Path):
    folder = handover_of(files("int8"), tmp_path / "handover")
    whole = (folder / "model.tflite").read_bytes()
    damaged = whole[: len(whole) // 2] if damage == "truncated" else b"nothing at all, but long enough for a mark"
    (folder / "model.tflite").write_bytes(damaged)
    with pytest.raises(EdgeopsError) as caught:
        read(folder)
    assert caught.value.code == "E-MODEL-FORMAT"


def test_an_output_that_is_not_declared_is_refused(files: Files, profile, tmp_path: Path):
    folder = handover_of(files("int8"), tmp_path / "handover")
    path = folder / "handover.toml"
    name = probe(folder / "model.tflite").outputs[0].name
    path.write_text(path.read_text().replace(f'model_output = "{name}"', 'model_output = "other"'))
    with pytest.raises(EdgeopsError) as caught:
        compiler.compile(folder, [profile("litert", "int8")], tmp_path / "out")
    assert caught.value.code == "E-HANDOVER-SHAPE"


def test_the_one_call_hands_a_ready_file_over(files: Files, profile, tmp_path: Path):
    images, labels = shapes(400, seed=4)
    facts = probe(files("int8"))
    done = edgeops.handover(
        files("int8"), images, out=tmp_path / "handover", name="shapes", labels=LABELS, evaluation=(images, labels)
    )
    loaded = read(done.folder)
    assert loaded.model.format == "tflite"
    assert loaded.handover.inputs[0].model_input is None
    assert loaded.handover.inputs[0].name == facts.inputs[0].name
    assert loaded.handover.outputs[0].kind == "probabilities"
    one = compiler.compile(done.folder, [profile("litert", "int8")], tmp_path / "out").profiles[0]
    assert one.passed, one.missed
    assert one.chosen.metric is not None
    assert one.chosen.metric.artifact > 0.8
