"""`edgeops handover init | check | schema`: what is inferred, what is explained, and what would stop a compile."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import onnx
import pytest
import tomllib
from click.testing import CliRunner
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

import edgeops
from edgeops.cli.handover import command, schema
from edgeops.contracts.errors import EdgeopsError
from edgeops.intake.handover import read
from edgeops.intake.inferring import kind_of
from edgeops.testkit.handovers import shapes, shapes_model, write_shapes_handover

X = np.random.default_rng(0).normal(size=(80, 5))
Y = (X[:, 0] > 0).astype(int)


def run(*words: object) -> str:
    result = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def failed(*words: object) -> EdgeopsError:
    error = CliRunner().invoke(command, [str(word) for word in words]).exception
    assert isinstance(error, EdgeopsError)
    return error


def shapes_file(folder: Path) -> Path:
    onnx.save(shapes_model(), folder / "shapes.onnx")
    return folder / "shapes.onnx"


def test_init_infers_the_signature_and_explains_it(tmp_path: Path):
    said = json.loads(run("init", shapes_file(tmp_path), "--json"))
    text = (tmp_path / "handover.toml").read_text()
    declared = tomllib.loads(text)
    assert declared["model"] == {"name": "shapes", "file": "shapes.onnx"}
    assert declared["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 1, 8, 8]}]
    assert [output["name"] for output in declared["outputs"]] == ["y"]
    for explained in ("The batch axis is open", "channels first", 'kind = "probabilities" or "logits"', "[gates]"):
        assert explained in text
    assert any("calibration.npz" in line for line in said["to_do"])
    assert max(len(line) for line in text.splitlines()) <= 125


def test_what_init_writes_is_checked_once_samples_are_there(tmp_path: Path):
    images = shapes(40, seed=2)[0].astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
    np.savez(tmp_path / "some.npz", x=images)
    run("init", shapes_file(tmp_path), "--samples", tmp_path / "some.npz", "--out", tmp_path / "out", "--name", "s1")
    found = json.loads(run("check", tmp_path / "out", "--profile", "jetson-orin-nano", "--json"))
    assert found["model"] == "s1"
    assert found["digest"] == read(tmp_path / "out").digest
    assert [one["runs"] for one in found["profiles"]] == [True]
    assert any("no evaluation data" in note for note in found["notes"])


def test_init_replaces_nothing_unasked(tmp_path: Path):
    model = shapes_file(tmp_path)
    run("init", model)
    (tmp_path / "handover.toml").write_text("mine = true\n")
    assert failed("init", model).code == "E-CONFIG"
    assert (tmp_path / "handover.toml").read_text() == "mine = true\n"
    run("init", model, "--force")
    assert "mine" not in (tmp_path / "handover.toml").read_text()


@pytest.mark.parametrize(("takes", "gives"), [(None, onnx.TensorProto.FLOAT), (onnx.TensorProto.STRING,) * 2])
def test_init_describes_no_model_that_no_device_could_feed(takes: int | None, gives: int, tmp_path: Path):
    """What it wrote could not be read again."""
    ones = onnx.numpy_helper.from_array(np.ones(3, np.float32))
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    if takes is None:
        node = onnx.helper.make_node("Constant", [], ["y"], value=ones)
    given = [] if takes is None else [onnx.helper.make_tensor_value_info("x", takes, [3])]
    graph = onnx.helper.make_graph([node], "g", given, [onnx.helper.make_tensor_value_info("y", gives, [3])])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "model.onnx")
    error = failed("init", tmp_path / "model.onnx")
    assert error.code == "E-MODEL-UNSUPPORTED"
    assert not (tmp_path / "handover.toml").exists()


def test_open_sizes_are_for_a_person_to_say(tmp_path: Path):
    model = shapes_model()
    for place in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = "any"
    onnx.save(model, tmp_path / "open.onnx")
    said = json.loads(run("init", tmp_path / "open.onnx", "--json"))
    assert any("input 'x'" in line for line in said["to_do"])
    np.savez(tmp_path / "calibration.npz", x=np.zeros((4, 1, 8, 8), np.float32))
    error = failed("check", tmp_path)
    assert error.code == "E-HANDOVER-SHAPE"
    assert "input 'x'" in error.what


def test_a_pickle_becomes_a_proved_hand_over_only_with_trust(tmp_path: Path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(LogisticRegression().fit(X, Y)))
    np.savez(tmp_path / "x.npz", x=X)
    words = ("init", tmp_path / "model.pkl", "--samples", tmp_path / "x.npz", "--out", tmp_path / "out")
    assert failed(*words).code == "E-HANDOVER-PICKLE"
    assert failed("init", tmp_path / "model.pkl", "--trust-pickle").code == "E-CONFIG"
    run(*words, "--trust-pickle")
    assert read(tmp_path / "out").handover.outputs[0].labels == ("0", "1")


def test_an_evil_pickle_runs_nothing_even_with_trust(tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'mark'}",)

    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Evil()))
    np.savez(tmp_path / "x.npz", x=X)
    words = ("init", tmp_path / "model.pkl", "--samples", tmp_path / "x.npz", "--out", tmp_path / "out")
    assert failed(*words, "--trust-pickle").code == "E-HANDOVER-PICKLE"
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "out").exists()


def test_check_names_what_stops_a_compile_and_where(tmp_path: Path):
    done = edgeops.handover(RandomForestClassifier(3, random_state=0).fit(X, Y), X, out=tmp_path / "out", name="forest")
    found = json.loads(run("check", done.folder, "--profile", "raspberry-pi-4", "--json"))
    (profile,) = found["profiles"]
    by_runtime = {one["runtime"]: one for one in profile["runtimes"]}
    assert by_runtime["onnxruntime"]["runs"]
    assert "TreeEnsembleClassifier" in by_runtime["litert"]["reason"]
    error = failed("check", done.folder, "--profile", "cortex-m4")
    assert error.code == "E-MODEL-UNSUPPORTED"
    assert "cortex-m4" in error.what


def test_check_says_when_labelled_samples_are_too_few_to_prove_anything(tmp_path: Path):
    folder = write_shapes_handover(tmp_path / "few", evaluation=30, calibration=8)
    found = json.loads(run("check", folder, "--profile", "jetson-orin-nano", "--json"))
    assert any("evaluation has 30 samples" in note for note in found["notes"])
    assert any("calibration has 8 samples" in note for note in found["notes"])
    enough = write_shapes_handover(tmp_path / "enough", evaluation=400)
    assert json.loads(run("check", enough, "--profile", "jetson-orin-nano", "--json"))["notes"] == []


def test_the_schema_takes_what_is_right_and_refuses_what_is_wrong(tmp_path: Path):
    printed = json.loads(run("schema"))
    assert printed == json.loads(json.dumps(schema()))
    validator = jsonschema_rs.validator_for(printed)
    good = tomllib.loads((write_shapes_handover(tmp_path / "handover") / "handover.toml").read_text())
    validator.validate(good)
    for wrong in (
        {**good, "colour": "blue"},
        {**good, "model": {"name": "x"}},
        {**good, "outputs": [{"name": "y", "kind": "guesses"}]},
        {**good, "inputs": [{**good["inputs"][0], "preprocess": [{"step": "blur"}]}]},
    ):
        assert not validator.is_valid(wrong)


@pytest.mark.parametrize(
    ("values", "classed", "kind"),
    [
        (np.array([[0.2, 0.8], [0.9, 0.1]]), True, "probabilities"),
        (np.array([[0.2, 0.8], [0.9, 0.1]]), False, "probabilities"),
        (np.array([[2.0, -1.0]]), True, "logits"),
        (np.array([[2.0, -1.0]]), False, "values"),
        (np.array([[1.0], [1.0]]), False, "values"),
        (np.array([[3]]), False, "classes"),
    ],
)
def test_the_kind_of_an_output_is_seen_in_its_values(values: np.ndarray, classed: bool, kind: str):
    assert kind_of(values, classed=classed) == kind
