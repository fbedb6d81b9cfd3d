"""Preparation keeps the model's answers: baked preprocessing against plain numpy, repairs against the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeops.compiler import graphs
from edgeops.compiler.passes import Outcome, Work
from edgeops.compiler.passes.baking import Bake
from edgeops.compiler.passes.doubtful import between_pixels, without_one_answer
from edgeops.compiler.passes.prepare import Ingest, Optimize, Repair
from edgeops.compiler.passes.running import run_artifact
from edgeops.compiler.passes.samples import write_samples
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.handover import Cast, ChannelOrder, Input, Layout, Normalize, Resize, Scale
from edgeops.runtimes.steps import TensorForm, apply, propagate
from edgeops.testkit.handovers import shapes, shapes_model


def run_pass(one: Any, source: Path, target: Path, facts: set[str], *, roles=None, **parameters: Any) -> Outcome:
    target.mkdir()
    missing = one.requires - facts
    assert not missing
    outcome: Outcome = one.run(
        Work(source, {}, frozenset(facts), target, parameters, roles or {}, {role: {} for role in roles or {}})
    )
    assert one.ensures <= outcome.facts
    return outcome


def identity_model(form: TensorForm, name: str = "x") -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
    ends = [helper.make_tensor_value_info(end, kind, form.shape) for end in (name, "y")]
    graph = helper.make_graph([helper.make_node("Identity", [name], ["y"])], "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


resizes = st.builds(
    Resize, height=st.integers(1, 9), width=st.integers(1, 9), interpolation=st.sampled_from(["nearest", "linear"])
)
float_steps = st.lists(
    st.one_of(
        st.builds(Scale, by=st.sampled_from([0.5, 1 / 127.5, -2.0]), offset=st.sampled_from([0.0, -1.0])),
        st.builds(Normalize, mean=st.just((1.0, 2.0, 3.0)), std=st.just((0.5, 2.0, 4.0))),
        st.builds(ChannelOrder, order=st.permutations((0, 1, 2)).map(tuple)),
        resizes,
    ),
    max_size=4,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=float_steps, last=st.booleans(), name=st.sampled_from(["x", "image"]))
def test_baked_steps_give_what_numpy_gives(tmp_path_factory: pytest.TempPathFactory, steps, last: bool, name: str):
    """Tolerance: float32 rounding of at most 8 operations on values up to 1e5."""
    folder = tmp_path_factory.mktemp("bake")
    spec = Input(
        name="image",
        dtype="uint8",
        shape=(1, 5, 7, 3),
        model_input=name,
        preprocess=(Cast(), *steps, *([Layout(change="NHWC->NCHW")] if last else [])),
    )
    form = propagate(spec.preprocess, TensorForm(spec.dtype, spec.shape), where="image")
    (folder / "source").mkdir()
    graphs.save(identity_model(form, name), folder / "source")
    run_pass(
        Bake(),
        folder / "source",
        folder / "baked",
        {"onnx", "static-inputs"},
        inputs=[msgspec.to_builtins(spec)],
    )
    sample = np.random.default_rng(0).integers(0, 256, (2, *spec.shape), dtype=np.uint8)
    got = run_artifact("onnxruntime", folder / "baked" / "model.onnx", {"image": sample})["y"]
    wanted = np.stack([apply(spec.preprocess, one) for one in sample])
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4 * max(1.0, float(np.abs(wanted).max())))


def test_device_name_that_the_graph_already_uses_does_not_clash(tmp_path: Path):
    """The device calls its input `c1`, which is an inner tensor of the model."""
    (tmp_path / "source").mkdir()
    model = shapes_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graphs.save(model, tmp_path / "source")
    spec = Input(name="c1", dtype="float32", shape=(1, 1, 8, 8), model_input="x")
    run_pass(
        Bake(),
        tmp_path / "source",
        tmp_path / "baked",
        {"onnx", "static-inputs"},
        inputs=[msgspec.to_builtins(spec)],
    )
    sample = np.random.default_rng(0).normal(size=(3, 1, 1, 8, 8)).astype(np.float32)
    got = run_artifact("onnxruntime", tmp_path / "baked" / "model.onnx", {"c1": sample})["y"]
    wanted = run_artifact("onnxruntime", tmp_path / "source" / "model.onnx", {"x": sample})["y"]
    assert (got == wanted).all()


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_repair_fixes_shapes_and_opset_and_keeps_the_answers(tmp_path: Path, opset: int):
    (tmp_path / "source").mkdir()
    graphs.save(shapes_model(opset=opset), tmp_path / "source")
    outcome = run_pass(
        Repair(), tmp_path / "source", tmp_path / "repaired", {"onnx"},
        shapes={"x": [1, 1, 8, 8]}, outputs={}, opset=17, opset_max=20, ir_max=8,
    )  # fmt: skip
    model = graphs.load(tmp_path / "repaired")
    assert "modern-opset" in outcome.facts
    assert 17 <= graphs.opset(model) <= 20
    assert model.ir_version == 8
    assert graphs.static_shape(model.graph.input[0]) == (1, 1, 8, 8)
    assert graphs.static_shape(model.graph.output[0]) == (1, 4)
    x = (shapes(4, seed=9)[0].astype(np.float32) / 127.5 - 1).reshape(4, 1, 1, 8, 8)
    before = run_artifact("onnxruntime", tmp_path / "source" / "model.onnx", {"x": x})["y"]
    after = run_artifact("onnxruntime", tmp_path / "repaired" / "model.onnx", {"x": x})["y"]
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_open_axes_of_one_name_are_fixed_one_by_one(tmp_path: Path):
    """Exporters call different axes by one name; fixing the name would fix both."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["?", "?"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    (tmp_path / "source").mkdir()
    graphs.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "source"
    )
    run_pass(
        Repair(), tmp_path / "source", tmp_path / "repaired", {"onnx"},
        shapes={"x": [2, 5]}, outputs={}, opset=17, opset_max=None, ir_max=None,
    )  # fmt: skip
    model = graphs.load(tmp_path / "repaired")
    assert graphs.static_shape(model.graph.output[0]) == (2, 5)


def test_runtime_too_old_for_the_model_is_refused(tmp_path: Path):
    (tmp_path / "source").mkdir()
    graphs.save(shapes_model(opset=17), tmp_path / "source")
    with pytest.raises(EdgeopsError) as caught:
        run_pass(
            Repair(), tmp_path / "source", tmp_path / "repaired", {"onnx"},
            shapes={"x": [1, 1, 8, 8]}, outputs={}, opset=17, opset_max=17, ir_max=5,
        )  # fmt: skip
    assert "the runtime reads opset 10, the model has 17" in caught.value.what


def test_ingest_keeps_only_what_the_declared_outputs_need(tmp_path: Path):
    model = shapes_model()
    model.graph.node.append(helper.make_node("Neg", ["c1"], ["unused"]))
    model.graph.output.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, None))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(9, np.float32), "unused_weights"))
    (tmp_path / "source").mkdir()
    onnx.save(model, tmp_path / "source" / "given.onnx")
    run_pass(Ingest(), tmp_path / "source", tmp_path / "in", {"file"}, file="given.onnx", outputs=["y"])
    kept = graphs.load(tmp_path / "in")
    assert [item.name for item in kept.graph.output] == ["y"]
    assert "Neg" not in [node.op_type for node in kept.graph.node]
    assert "unused_weights" not in [item.name for item in kept.graph.initializer]


def test_optimize_keeps_the_answers(tmp_path: Path):
    (tmp_path / "source").mkdir()
    model = shapes_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graphs.save(model, tmp_path / "source")
    x = np.random.default_rng(0).normal(size=(2, 1, 1, 8, 8)).astype(np.float32)
    write_samples(tmp_path / "samples", "calibration", {"x": x})
    run_pass(
        Optimize(), tmp_path / "source", tmp_path / "slim", {"onnx", "baked"}, roles={"samples": tmp_path / "samples"}
    )
    before = run_artifact("onnxruntime", tmp_path / "source" / "model.onnx", {"x": x})["y"]
    after = run_artifact("onnxruntime", tmp_path / "slim" / "model.onnx", {"x": x})["y"]
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_optimizer_that_changes_answers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control: a simplifier that loses a layer is caught by running both graphs."""
    import onnxslim

    def lossy(model: onnx.ModelProto) -> onnx.ModelProto:
        weights = next(item for item in model.graph.initializer if item.name == "w3")
        weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(0.9), "w3"))
        return model

    monkeypatch.setattr(onnxslim, "slim", lossy)
    (tmp_path / "source").mkdir()
    model = shapes_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graphs.save(model, tmp_path / "source")
    x = np.random.default_rng(0).normal(size=(2, 1, 1, 8, 8)).astype(np.float32)
    write_samples(tmp_path / "samples", "calibration", {"x": x})
    with pytest.raises(EdgeopsError) as caught:
        run_pass(
            Optimize(),
            tmp_path / "source",
            tmp_path / "slim",
            {"onnx", "baked"},
            roles={"samples": tmp_path / "samples"},
        )
    assert "changed output 'y'" in caught.value.what


def test_saved_graph_has_no_chance_bytes(tmp_path: Path):
    for name, producer in (("a", "exporter 1"), ("b", "exporter 2")):
        (tmp_path / name).mkdir()
        model = shapes_model()
        model.producer_name = producer
        model.graph.node[0].doc_string = f"File /home/{name}/train.py"
        graphs.save(model, tmp_path / name)
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()


def model_of(*nodes, constants=(), shape=(1, 1, 4, 6)):
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape), helper.make_tensor_value_info("y", 1, None)]
    graph = helper.make_graph(list(nodes), "g", ends[:1], ends[1:], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def dropout(training: bool):
    node = helper.make_node("Dropout", ["x", "ratio", "training"], ["y"])
    ratio = numpy_helper.from_array(np.float32(0.5), "ratio")
    return model_of(node, constants=[ratio, numpy_helper.from_array(np.array(training), "training")])


def resize(mode: str, *scales: float):
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear", coordinate_transformation_mode=mode)
    return model_of(node, constants=[numpy_helper.from_array(np.array([1, 1, *scales], np.float32), "scales")])


def test_operators_without_one_right_answer_are_named():
    assert "at random" in without_one_answer(model_of(helper.make_node("RandomNormalLike", ["x"], ["y"])))
    assert "training mode" in without_one_answer(dropout(True))
    assert without_one_answer(dropout(False)) == ""
    assert without_one_answer(model_of(helper.make_node("Relu", ["x"], ["y"]))) == ""


def test_corners_are_aligned_to_whole_sizes_only():
    assert "makes 6 into 3.6" in between_pixels(resize("align_corners", 2.0, 0.6))
    assert between_pixels(resize("align_corners", 2.0, 0.5)) == ""
    assert between_pixels(resize("half_pixel", 2.0, 0.6)) == ""
    unknown = model_of(
        helper.make_node("Resize", ["x", "", "x"], ["y"], mode="linear", coordinate_transformation_mode="align_corners")
    )
    assert "not known before it runs" in between_pixels(unknown)


def test_random_model_is_refused_by_ingest(tmp_path: Path):
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    graphs.save(dropout(True), tmp_path / "source")
    work = Work(tmp_path / "source", {}, frozenset({"file"}), tmp_path / "target", {}, {}, {})
    with pytest.raises(EdgeopsError, match="training mode"):
        Ingest().run(work._replace(parameters={"file": graphs.MODEL_NAME, "outputs": ["y"]}))
