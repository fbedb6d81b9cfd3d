"""The layer at which an error opens is named; a healthy artifact names none."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeops import compiler
from edgeops.cli.compile import command
from edgeops.compiler import graphs
from edgeops.compiler.explain import Layer, opening
from edgeops.compiler.passes import Work
from edgeops.compiler.passes.explain import Explain
from edgeops.compiler.passes.litert import ToTflite
from edgeops.compiler.passes.openvino import ToOpenVino
from edgeops.compiler.passes.samples import write_samples
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import OutputError
from edgeops.testkit.handovers import shapes, shapes_model, write_shapes_handover


def error(db: float) -> OutputError:
    return OutputError(output="t", cosine=0.9, sqnr_db=db, max_abs=0.0, agreement=None, samples=1)


CHAIN = [Layer(f"n{i}", "Conv", (f"t{i}", f"w{i}"), (f"t{i + 1}",)) for i in range(4)]


def opens(layers: list[Layer], *db: float | None) -> str | None:
    errors = {f"t{i + 1}": error(value) for i, value in enumerate(db) if value is not None}
    found = opening(layers, errors, f"t{len(db)}", lambda one: one.sqnr_db < 15)
    return None if found is None else found.node


def test_error_opens_where_it_stays_bad_to_the_output():
    assert opens(CHAIN, 40, 10, 9, 8) == "n1"
    assert opens(CHAIN, 5, 40, 40, 8) == "n3", "an error that recovers is not the cause"
    assert opens(CHAIN, 40, 5, 5, 30) is None, "an output that is good has nothing to explain"
    assert opens(CHAIN, 40, None, 9, 8) == "n2", "what was not compared is looked through"


def test_branch_that_is_good_is_not_followed():
    layers = [*CHAIN[:2], Layer("join", "Add", ("t1", "t2"), ("t3",))]
    assert opens(layers, 40, 5, 4) == "n1"
    assert opens(layers, 5, 40, 4) == "n0"
    assert opens(layers, 40, 40, 4) == "join"


def test_tensor_that_two_layers_write_under_one_name_ends_the_search():
    twice = [CHAIN[0], Layer("conv", "Conv", ("t1",), ("t2",)), Layer("turn", "Transpose", ("t2",), ("t2",))]
    assert opens(twice, 40, 5) == "turn"


def explained(tmp_path: Path, planted: str, runtime: str = "onnxruntime") -> list[str]:
    """Explain what a runtime's float artifact, made with one layer's weights damaged, has against the sound graph."""
    for name in ("plain", "own", "made", "samples", "target"):
        (tmp_path / name).mkdir(exist_ok=True)
    graphs.save(shapes_model(), tmp_path / "plain")
    own = shapes_model()
    for item in own.graph.initializer:
        if item.name == planted:
            values = bytearray(item.raw_data)
            values[: len(values) // 2] = bytes(len(values) // 2)
            item.raw_data = bytes(values)
    graphs.save(own, tmp_path / "own")
    images = shapes(8, seed=1)[0].astype("float32").transpose(0, 3, 1, 2)[:, None] / 127.5 - 1
    write_samples(tmp_path / "samples", "calibration", {"x": images})
    folder, notes = tmp_path / "own", {}
    converter = {"openvino": ToOpenVino, "litert": ToTflite}.get(runtime)
    roles = {"samples": tmp_path / "samples"}
    if converter is not None:
        facts = frozenset({"onnx", "baked", "modern-opset"})
        work = Work(folder, {}, facts, tmp_path / "made", {"fp16_weights": False}, roles, {})
        folder, notes = tmp_path / "made", converter().run(work).notes
    parameters = {
        "runtime": runtime, "plain_runtime": "onnxruntime", "cosine_min": 0.9999, "sqnr_min_db": 40.0, "inputs": [],
    }  # fmt: skip
    roles["plain"] = tmp_path / "plain"
    work = Work(folder, notes, frozenset(), tmp_path / "target", parameters, roles, {})
    return [one["tensor"] for one in Explain().run(work).notes["opens"]]


@pytest.mark.parametrize(("planted", "tensor"), [("w1", "c1"), ("w2", "c2"), ("w3", "l"), ("", None)])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "litert"])
def test_planted_defect_is_named_and_a_healthy_artifact_names_none(
    tmp_path: Path, runtime: str, planted: str, tensor: str | None
):
    if runtime == "litert" and planted == "w1":
        # LiteRT computes convolution and activation as one: the damage is seen behind both.
        tensor = "r1"
    assert explained(tmp_path, planted, runtime) == ([] if tensor is None else [tensor])


@pytest.mark.parametrize(
    ("runtime", "operator", "tensor"),
    [("onnxruntime", "Relu", "r2"), ("openvino", "Convolution", "c2"), ("litert", "CONV_2D", "c2_output_nhwc")],
)
def test_layer_that_int8_ruins_is_named_on_each_runtime(profile, tmp_path: Path, runtime, operator, tensor):
    """One channel is 400 times larger: the range for all ruins the others, which the convolution after it reads."""
    board = profile(runtime, "int8", "fp32")
    handover = write_shapes_handover(tmp_path / "outlier", outlier=400.0)
    one = compiler.compile(handover, [board], tmp_path / "out", explain="all").profiles[0]
    by_scheme = {record.scheme: record for record in one.evidence.candidates}
    assert not any(record.not_explained for record in by_scheme.values())
    (found,) = by_scheme[f"{runtime}-int8"].opens
    assert (found.operator, found.tensor) == (operator, tensor)
    assert found.before is not None
    assert found.before.sqnr_db > 15 > found.after.sqnr_db
    assert by_scheme[f"{runtime}-fp32"].opens == (), "a lossless conversion opens no error"
    assert tensor not in {opens.tensor for opens in one.chosen.opens}, "what was chosen does not have this error"
    words = [str(handover), "--profile", board, "--out", str(tmp_path / "out"), "--explain"]
    shown = CliRunner().invoke(command, words, catch_exceptions=False).output
    assert operator in shown.split("\n\n")[2]
    assert "no output is worse than the gates allow" in shown.split("\n\n")[2]
    unknown = CliRunner().invoke(command, [*words, "no-such-scheme"]).exception
    assert isinstance(unknown, EdgeopsError)
    assert f"{runtime}-int8" in unknown.next_step
