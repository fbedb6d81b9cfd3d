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


def explained(tmp_path: Path, planted: str) -> list[str]:
    """Explain a float graph against itself with one layer's weights damaged."""
    for name in ("plain", "own", "samples", "target"):
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
    parameters = {"cosine_min": 0.9999, "sqnr_min_db": 40.0, "inputs": []}
    roles = {"plain": tmp_path / "plain", "samples": tmp_path / "samples"}
    work = Work(tmp_path / "own", {}, frozenset({"onnx"}), tmp_path / "target", parameters, roles, {})
    return [one["tensor"] for one in Explain().run(work).notes["opens"]]


@pytest.mark.parametrize(("planted", "tensor"), [("w1", "c1"), ("w2", "c2"), ("w3", "l"), ("", None)])
def test_planted_defect_is_named_and_a_healthy_artifact_names_none(tmp_path: Path, planted: str, tensor: str | None):
    assert explained(tmp_path, planted) == ([] if tensor is None else [tensor])


def test_layer_that_int8_ruins_is_named_in_evidence_and_output(profile, tmp_path: Path):
    """One channel is 400 times larger: the range for all ruins the others, which the convolution after it reads."""
    board = profile("onnxruntime", "int8", "fp32")
    handover = write_shapes_handover(tmp_path / "outlier", outlier=400.0)
    one = compiler.compile(handover, [board], tmp_path / "out", explain="all").profiles[0]
    by_scheme = {record.scheme: record for record in one.evidence.candidates}
    (found,) = by_scheme["onnxruntime-int8"].opens
    assert (found.operator, found.tensor) == ("Relu", "r2")
    assert [one.split()[0] for one in found.unseen] == ["Conv"], "fused with its activation"
    assert found.before is not None
    assert found.before.sqnr_db > 15 > found.after.sqnr_db
    assert by_scheme["onnxruntime-fp32"].opens == ()
    assert not any(record.not_explained for record in by_scheme.values())
    assert one.chosen.opens == ()
    words = [str(handover), "--profile", board, "--out", str(tmp_path / "out"), "--explain"]
    shown = CliRunner().invoke(command, words, catch_exceptions=False).output
    assert "Conv" in shown.split("\n\n")[2]
    assert "no output is worse than the gates allow" in shown.split("\n\n")[2]
    unknown = CliRunner().invoke(command, [*words, "onnxruntime-int9"]).exception
    assert isinstance(unknown, EdgeopsError)
    assert "onnxruntime-int8" in unknown.next_step
