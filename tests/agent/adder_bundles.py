"""Small bundles for onnxruntime: `y = x + add`, four float32 numbers in and out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeops.contracts.bundle import (
    Binding,
    BundleManifest,
    DriftReference,
    Golden,
    Histogram,
    OutputInfo,
    OutputTolerance,
)
from edgeops.contracts.profile import Budgets, Precision
from edgeops.contracts.tensors import TensorSpec
from edgeops.releases.bundles import Bundle, seal

MODEL = "adder"
PROFILE = "generic-x86-64"
VECTORS = 3
SHAPE = (1, 4)


def small_bundle(
    directory: Path,
    *,
    add: float = 1.0,
    lie: float = 0.0,
    profile: str = PROFILE,
    model: str = MODEL,
    runtime: str = "onnxruntime",
    nan_policy: str = "fail",
    divide: bool = False,
    hungry: bool = False,
    slow: bool = False,
    state: bool = False,
    largest: float = 9.0,
    budgets: Budgets | None = None,
) -> Bundle:
    """Make a bundle.

    Args:
        directory: Where to.
        add: What the model adds.
        lie: What its golden vectors are wrong by.
        divide: `y = (x + add) / x`: not finite at 0.
        hungry: Takes 4 KiB of memory per unit of its largest input, for a moment.
        slow: Takes some milliseconds.
        state: `y` is also `next`, which the next call takes as `sum` and adds.
        largest: Upper end of the golden vectors' inputs.
    """
    (directory / "golden").mkdir(parents=True)
    graph = _hungry_graph(add) if hungry else _slow_graph(add) if slow else _graph(add, divide, state)
    onnx.save(graph, directory / "model.onnx")
    x = np.random.default_rng(1).uniform(1, largest, (VECTORS, *SHAPE)).astype(np.float32)
    y = x + np.float32(add)
    if divide:
        y = y / x
    np.save(directory / "golden" / "x.npy", x)
    if state:
        np.save(directory / "golden" / "sum.npy", np.zeros_like(x))
    np.save(directory / "golden" / "y.npy", y + np.float32(lie))
    inside, outside = (
        TensorSpec(name="x", dtype="float32", shape=SHAPE),
        TensorSpec(name="y", dtype="float32", shape=SHAPE),
    )
    before, after = (TensorSpec(name=name, dtype="float32", shape=SHAPE) for name in ("sum", "next"))
    inputs, outputs = ((inside, before), (outside, after)) if state else ((inside,), (outside,))
    histogram = Histogram(edges=(0.0, 5.0, 10.0), counts=(0, 2, 2, 0))
    manifest = BundleManifest(
        model=model,
        profile=profile,
        arch="x86_64",
        runtime=runtime,
        runtime_min="1.18",
        precision=Precision.FLOAT32,
        scheme="float",
        artifact="model.onnx",
        inputs=inputs,
        outputs=tuple(
            OutputInfo(tensor=spec, kind="state", state_to="sum")
            if spec is after
            else OutputInfo(tensor=spec, kind="values")
            for spec in outputs
        ),
        input_bindings=tuple(Binding(device=spec.name, artifact=spec) for spec in inputs),
        output_bindings=tuple(Binding(device=spec.name, artifact=spec) for spec in outputs),
        golden=Golden(
            count=VECTORS,
            inputs={spec.name: f"golden/{spec.name}.npy" for spec in inputs},
            source_outputs={spec.name: "golden/y.npy" for spec in outputs},
            artifact_outputs={spec.name: "golden/y.npy" for spec in outputs},
            tolerances={
                spec.name: OutputTolerance(artifact_max_abs=1e-3, source_min_cosine=0.99, reason="float sums")
                for spec in outputs
            },
        ),
        files={},
        providers=("CPUExecutionProvider",),
        budgets=budgets or Budgets(),
        drift=DriftReference(samples=1, elements_per_sample=4, inputs={"x": histogram}, outputs={"y": histogram}),
        nan_policy=nan_policy,  # type: ignore[arg-type]
    )
    return seal(directory, manifest)


def _graph(add: float, divide: bool, state: bool) -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["x", "c"], ["added" if divide or state else "y"])]
    if divide:
        nodes.append(helper.make_node("Div", ["added", "x"], ["y"]))
    if state:
        nodes += [helper.make_node("Add", ["added", "sum"], ["y"]), helper.make_node("Identity", ["y"], ["next"])]
    ends = (["x", "sum"], ["y", "next"]) if state else (["x"], ["y"])
    graph = helper.make_graph(
        nodes,
        "adder",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ends[0]],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ends[1]],
        [numpy_helper.from_array(np.array(add, np.float32), "c")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _hungry_graph(add: float) -> onnx.ModelProto:
    """`y = x + add + sum(zeros(1024 * max(x)))`."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["largest", "per_unit"], ["size"]),
        helper.make_node("Cast", ["size"], ["count"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["count", "one"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["x", "nothing"], ["same"]),
        helper.make_node("Add", ["same", "c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "hungry",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)],
        [
            numpy_helper.from_array(np.array(add, np.float32), "c"),
            numpy_helper.from_array(np.array(1024, np.float32), "per_unit"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _slow_graph(add: float) -> onnx.ModelProto:
    """`y = x + add + sum(Z·Z)`, where Z is 0 times the largest of x, 800 by 800: some milliseconds."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["largest", "nought"], ["zero"]),
        helper.make_node("Expand", ["zero", "side"], ["zeros"]),
        helper.make_node("MatMul", ["zeros", "zeros"], ["product"]),
        helper.make_node("ReduceSum", ["product"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["x", "nothing"], ["same"]),
        helper.make_node("Add", ["same", "c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)],
        [
            numpy_helper.from_array(np.array(add, np.float32), "c"),
            numpy_helper.from_array(np.array(0, np.float32), "nought"),
            numpy_helper.from_array(np.array([800, 800], np.int64), "side"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
