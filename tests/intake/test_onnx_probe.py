"""ONNX files are read in a process of their own: whatever they hold, the answer is facts or a clear refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeops.contracts.errors import EdgeopsError
from edgeops.intake import onnx_probe
from edgeops.testkit.handovers import shapes_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEOPS_CACHE", str(tmp_path / "cache"))


def refused(path: Path) -> EdgeopsError:
    with pytest.raises(EdgeopsError) as caught:
        onnx_probe.probe(path)
    return caught.value


def test_facts_of_a_model_and_from_the_cache_again(tmp_path: Path):
    path = tmp_path / "model.onnx"
    onnx.save(shapes_model(), path)
    first = onnx_probe.probe(path)
    assert (first.ir_version, first.opsets) == (8, {"ai.onnx": 17})
    assert first.ops["Conv"] == 2
    assert [item.name for item in first.inputs] == ["x"]
    assert onnx_probe.probe(path) == first


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x08", b"\x00" * 4096, b"\xff" * 100])
def test_what_is_not_onnx_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert refused(path).code == "E-MODEL-FORMAT"


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_truncated_model_is_refused(tmp_path: Path, share: float):
    path = tmp_path / "model.onnx"
    data = shapes_model().SerializeToString()
    path.write_bytes(data[: int(share * len(data))])
    assert refused(path).code == "E-MODEL-FORMAT"


def test_external_data_must_be_there_and_inside(tmp_path: Path):
    folder = tmp_path / "inside"
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save(shapes_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert onnx_probe.probe(path).files == ("weights.bin",)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    assert refused(path).code == "E-HANDOVER-MISSING"
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    assert refused(path).code == "E-PATH-ESCAPE"


def test_unknown_operator_domain_is_named(tmp_path: Path):
    model = shapes_model()
    model.opset_import.append(helper.make_opsetid("acme.secret", 1))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    error = refused(path)
    assert error.code == "E-MODEL-UNSUPPORTED"
    assert "acme.secret" in error.what


def test_an_operator_of_an_unknown_domain_is_named_with_its_node(tmp_path: Path):
    model = shapes_model()
    model.opset_import.append(helper.make_opsetid("acme.secret", 1))
    model.graph.node[3].domain, model.graph.node[3].op_type, model.graph.node[3].name = "acme.secret", "Sort", "sorts"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    error = refused(path)
    assert error.code == "E-MODEL-UNSUPPORTED"
    assert "node 'sorts': operator Sort of domain 'acme.secret'" in error.what


@pytest.mark.parametrize(("name", "value"), [("w2", np.nan), ("w2", np.inf), ("w3", -np.inf)])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, name: str, value: float):
    model = shapes_model()
    weights = next(item for item in model.graph.initializer if item.name == name)
    values = numpy_helper.to_array(weights).copy()
    values.reshape(-1)[7] = value
    weights.CopyFrom(numpy_helper.from_array(values, name))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    error = refused(path)
    assert error.code == "E-MODEL-UNSUPPORTED"
    assert f"weights {name!r}: 1 of" in error.what


def test_a_mask_may_be_infinite(tmp_path: Path):
    model = shapes_model()
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, -np.inf], np.float32), "mask"))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert onnx_probe.probe(path).weights_bytes > 1000


def field(number: int, content: bytes) -> bytes:
    """Encode a length-delimited field of a protobuf."""
    length, size = b"", len(content)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def test_graphs_nested_without_end_are_refused(tmp_path: Path):
    """A file that would overrun a recursive reader's stack is an error, not a crash."""
    graph = field(1, field(4, b"Identity"))
    for _ in range(20_000):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph)))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08" + field(7, graph) + field(8, b"\x10\x11"))
    assert refused(path).code == "E-MODEL-FORMAT"


def test_reader_that_needs_too_much_memory_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control of the limits: the same model is refused where it may take less than it needs."""
    path = tmp_path / "model.onnx"
    onnx.save(shapes_model(), path)
    with monkeypatch.context() as less:
        less.setattr(onnx_probe, "_MEMORY_BASE_BYTES", 64 << 20)
        assert refused(path).code == "E-MODEL-FORMAT"
    with monkeypatch.context() as less:
        less.setattr(onnx_probe, "_TIMEOUT_S", 0.01)
        assert "not readable within" in refused(path).what
    assert onnx_probe.probe(path).ir_version == 8


def mutants(data: bytes, count: int, seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        mutant = bytearray(data)
        for place in rng.integers(0, len(mutant), int(rng.integers(1, 40))):
            mutant[place] = int(rng.integers(0, 256))
        made.append(bytes(mutant[: int(rng.integers(1, len(mutant)))] if rng.random() < 0.2 else mutant))
    return made


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 40))])
def test_mutated_models_give_facts_or_a_refusal(tmp_path: Path, seed: int):
    path = tmp_path / "model.onnx"
    outcomes = set()
    for mutant in mutants(shapes_model().SerializeToString(), 8, seed):
        path.write_bytes(mutant)
        try:
            onnx_probe.probe(path)
            outcomes.add("facts")
        except EdgeopsError as error:
            outcomes.add(error.code)
    assert "E-MODEL-FORMAT" in outcomes
    assert outcomes <= {"facts", "E-MODEL-FORMAT", "E-MODEL-UNSUPPORTED", "E-HANDOVER-MISSING", "E-PATH-ESCAPE"}


def test_constants_inside_nodes_count_as_weights(tmp_path: Path):
    values = numpy_helper.from_array(np.ones(1000, np.float32))
    nodes = [helper.make_node("Constant", [], ["k"], value=values), helper.make_node("Add", ["x", "k"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1000]) for name in "xy"]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]), ir_version=8), path)
    assert onnx_probe.probe(path).weights_bytes >= 4000
