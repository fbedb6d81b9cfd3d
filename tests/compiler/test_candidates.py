"""What is tried, in which order, and that what stays float within an int8 artifact really does."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeops.compiler import graphs
from edgeops.compiler.candidates import Traits, ladder
from edgeops.compiler.engine import Failed, Step, run_step
from edgeops.compiler.gates import shortfall
from edgeops.compiler.passes.onnx_partial import unquantize
from edgeops.compiler.passes.onnx_quantize import name_nodes, quantize_static_int8
from edgeops.compiler.passes.running import run_artifact
from edgeops.compiler.passes.samples import write_samples
from edgeops.compiler.sensitivity import Aim
from edgeops.compiler.store import Product, Store, Stored
from edgeops.contracts.evidence import OutputError
from edgeops.contracts.handover import Gates
from edgeops.contracts.profile import Precision, Runtime
from edgeops.testkit.handovers import shapes, shapes_model

AIM = Aim(cosine_min=0.99, sqnr_min_db=15.0, agreement_min=0.97, kinds={"y": "probabilities"})
MIXED = Traits(stateful=False, ops=frozenset({"Conv", "Relu", "Gemm"}))


def schemes(name: str, traits: Traits, **more) -> list[str]:
    runtime = Runtime(name=name, runtime_min="1.0", precisions=(Precision.INT8,), source="test", **more)
    return [one.scheme.removeprefix(f"{name}-") for one in ladder(runtime, Precision.INT8, traits, AIM)]


def test_int8_escalates_from_whole_graphs_over_ranges_to_parts():
    assert schemes("onnxruntime", MIXED) == [
        "int8", "int8-percentile", "int8-entropy", "int8-partial", "int8-convolutions", "int8-products",
    ]  # fmt: skip
    fronts = ["int8-front-2", "int8-front-3", "int8-front-4"]
    assert schemes("openvino", MIXED) == ["int8", "int8-mean", "int8-default", *fronts, "int8-partial"]
    assert schemes("openvino", MIXED._replace(labelled=True))[-1] == "int8-controlled"


def test_graph_with_one_kind_of_heavy_operator_has_no_subsets():
    convolutions = Traits(stateful=False, ops=frozenset({"Conv", "Relu"}))
    assert schemes("onnxruntime", convolutions)[-1] == "int8-partial"


def test_symmetric_profile_names_every_scheme_so():
    assert all(one.startswith("int8-symmetric") for one in schemes("onnxruntime", MIXED, int8_scheme="symmetric"))


def test_other_ranges_are_tried_only_where_they_can_mend_it():
    runtime = Runtime(name="onnxruntime", runtime_min="1.0", precisions=(Precision.INT8,), source="test")
    limits = {one.scheme: one.rescues for one in ladder(runtime, Precision.INT8, MIXED, AIM)}
    near = OutputError(output="y", cosine=0.985, sqnr_db=20, max_abs=1, agreement=None, samples=9)
    far = msgspec.structs.replace(near, cosine=0.5)
    for scheme in ("onnxruntime-int8-percentile", "onnxruntime-int8-entropy"):
        assert shortfall((near,), Gates()) <= limits[scheme] < shortfall((near, far), Gates())
    assert limits["onnxruntime-int8-partial"] == shortfall((), Gates()) == float("inf")


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier on float images, and samples of it: `model.onnx`, `samples/`."""
    folder = tmp_path_factory.mktemp("float")
    model = shapes_model(opset=17)
    for item in (model.graph.input[0], model.graph.output[0]):
        item.type.tensor_type.shape.dim[0].dim_value = 1
    name_nodes(model)
    graphs.save(model, folder)
    images = shapes(32, seed=5)[0].astype(np.float32)
    channels_first = np.moveaxis(images, -1, 1) if images.ndim == 4 else images[:, None]
    write_samples(folder / "samples", "calibration", {"x": channels_first[:, None] / 255})
    return folder


def test_nodes_taken_out_of_int8_answer_as_the_float_model_does(float_model: Path, tmp_path: Path):
    model = graphs.load(float_model)
    quantize_static_int8(
        float_model / graphs.MODEL_NAME,
        tmp_path / "whole.onnx",
        float_model / "samples",
        method="minmax",
        symmetric=False,
        excluded=[],
        keep_activations=True,
    )
    whole = graphs.load(tmp_path, "whole.onnx")
    names = [node.name for node in model.graph.node]
    feeds = {"x": np.load(float_model / "samples" / "calibration" / "000.npy")}
    wanted = run_artifact("onnxruntime", float_model / graphs.MODEL_NAME, feeds)["y"]

    def error(kept: set[str]) -> float:
        graphs.save(unquantize(whole, model, kept), tmp_path)
        return float(np.abs(run_artifact("onnxruntime", tmp_path / graphs.MODEL_NAME, feeds)["y"] - wanted).max())

    # What is left is the rounding of the output, to steps of 1/255 at most.
    assert error(set(names)) <= 1 / 255 < error(set())
    kept = unquantize(whole, model, set(names))
    assert sum(node.op_type == "DequantizeLinear" for node in kept.graph.node) <= 2
    half = unquantize(whole, model, set(names[:2]))
    assert len(kept.graph.node) < len(half.graph.node) < len(whole.graph.node)


@pytest.mark.parametrize("cosine_min", [0.99, 0.9999999])
def test_accuracy_control_keeps_the_answers_and_turns_back_what_it_must(
    float_model: Path, tmp_path: Path, cosine_min: float
):
    store = Store(tmp_path / "store")
    current = Stored(float_model, Product(facts=("onnx", "baked", "modern-opset")))
    samples = Stored(float_model / "samples", Product(facts=("samples",)))
    aim = msgspec.to_builtins(msgspec.structs.replace(AIM, cosine_min=cosine_min))
    parameters = {"aim": aim, "model_type": "none", "ranges": "widest"}
    for step in (
        Step(name="onnx-to-openvino", parameters={"fp16_weights": False}),
        Step(name="openvino-int8-controlled", parameters=parameters, inputs=("samples",)),
    ):
        current = run_step(store, step, current, {"samples": samples})
        assert not isinstance(current, Failed)
        assert current.product.failure is None, current.product.failure
    feeds = {"x": np.load(float_model / "samples" / "calibration" / "000.npy")}
    wanted = run_artifact("onnxruntime", float_model / graphs.MODEL_NAME, feeds)["y"]
    got = run_artifact("openvino", current.path / "model.xml", feeds)["y"]
    assert (got.argmax(-1) == wanted.argmax(-1)).mean() >= AIM.agreement_min
    weights = (current.path / "model.xml").read_text().count('element_type="i8"')
    assert weights == 3 if cosine_min == AIM.cosine_min else weights < 3


def test_the_scheme_of_defaults_is_what_nncf_makes_by_itself(float_model: Path, tmp_path: Path):
    """Another preset must be seen in the answers, or the comparison would prove nothing."""
    import nncf
    import openvino

    store = Store(tmp_path / "store")
    shutil.copytree(float_model / "samples", tmp_path / "samples")
    # Far more on one side of zero than on the other: symmetric ranges waste half of their steps there.
    x = np.abs(np.load(float_model / "samples" / "calibration" / "000.npy")) - np.float32(0.25)
    np.save(tmp_path / "samples" / "calibration" / "000.npy", x)
    samples = Stored(tmp_path / "samples", Product(facts=("samples",)))
    current = Stored(float_model, Product(facts=("onnx", "baked", "modern-opset")))
    converted = run_step(store, Step(name="onnx-to-openvino", parameters={"fp16_weights": False}), current, {})
    assert not isinstance(converted, Failed)
    answers = {}
    for preset in ("default", "mixed"):
        parameters = {"model_type": "none", "ranges": "mean", "preset": preset}
        step = Step(name="openvino-int8", parameters=parameters, inputs=("samples",))
        made = run_step(store, step, converted, {"samples": samples})
        assert not isinstance(made, Failed)
        answers[preset] = run_artifact("openvino", made.path / "model.xml", {"x": x})["y"]
    dataset = nncf.Dataset([{"x": one} for one in x])
    own = nncf.quantize(openvino.Core().read_model(converted.path / "model.xml"), dataset, subset_size=len(x))
    openvino.save_model(own, tmp_path / "own.xml", compress_to_fp16=False)
    expected = run_artifact("openvino", tmp_path / "own.xml", {"x": x})["y"]
    np.testing.assert_array_equal(answers["default"], expected)
    assert (answers["mixed"] != expected).any()
