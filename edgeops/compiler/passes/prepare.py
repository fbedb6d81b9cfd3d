"""From the file that was handed over to one clean float graph: ingest, repair, optimize. `baking` is between them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.compiler import graphs
from edgeops.compiler.passes import Outcome, Work, refuse
from edgeops.compiler.passes.doubtful import between_pixels, without_one_answer
from edgeops.compiler.passes.running import ONNX_MODULES, run_artifact
from edgeops.compiler.passes.samples import read_samples

_ONNX = ("onnx",)
_COMPARED_SAMPLES = 2
_SAME_GRAPH_RELATIVE = 1e-3


class Ingest:
    """Read the file with its external data and keep only the declared outputs."""

    tools = _ONNX
    requires: frozenset[str] = frozenset({"file"})
    ensures = frozenset({"onnx"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return ONNX_MODULES

    def run(self, work: Work) -> Outcome:
        """Parameters: `file`, name in the source folder; `outputs`, the model's outputs to keep, in order."""
        model = graphs.load(work.source, work.parameters["file"])
        graphs.prune(model.graph, work.parameters["outputs"])
        if doubt := without_one_answer(model):
            raise refuse(doubt, "Export the model for inference.")
        graphs.save(model, work.target)
        return Outcome(frozenset({"onnx"}), {})


class Repair:
    """Fix every input's shape axis by axis, bring the operators to one opset, and infer all shapes."""

    tools = ("onnx", "onnxruntime")
    requires: frozenset[str] = frozenset({"onnx"})
    ensures = frozenset({"onnx"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return ONNX_MODULES

    def run(self, work: Work) -> Outcome:
        """Parameters: `shapes`, input → shape; `outputs`, output → the shape that the source gave; `opset`, to convert
        to; `opset_max` and `ir_max` of the runtime.

        Facts: `modern-opset` where the opset is 17 or newer: older ones break per-channel int8 and fp16;
        `free-inputs` where control flow takes no fixed shapes: one branch is for inputs of another size. Then only the
        number of axes is fixed in the graph; what a device sends is checked against its own shape all the same.
        """
        import onnx

        model = graphs.load(work.source)
        free = _has_branches(model) and not _loads(_with_inputs(model, work.parameters["shapes"], free=False))
        model = _with_inputs(model, work.parameters["shapes"], free=free)
        # Inferred sizes of the exporter contradict the fixed ones.
        del model.graph.value_info[:]
        for output in model.graph.output:
            output.type.tensor_type.ClearField("shape")
        most = _newest_opset(work.parameters["opset_max"], work.parameters["ir_max"])
        model = _to_opset(model, work.parameters["opset"], most)
        try:
            model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            raise refuse(f"shapes cannot be inferred: {' '.join(str(error).split())[:300]}") from error
        if doubt := between_pixels(model):
            raise refuse(doubt, "Resize to a size, or by a scale that gives a whole one.")
        _fix_outputs(model, work.parameters["outputs"])
        model.ir_version = _ir_version(model, work.parameters["ir_max"])
        graphs.save(model, work.target)
        facts = {"onnx", "free-inputs" if free else "static-inputs"}
        if graphs.opset(model) >= 17:
            facts.add("modern-opset")
        return Outcome(frozenset(facts), {"opset": graphs.opset(model), "ir": model.ir_version})


class Optimize:
    """Simplify the graph with onnxslim; a graph that then answers differently is refused."""

    tools = ("onnx", "onnxslim", "onnxruntime")
    requires: frozenset[str] = frozenset({"onnx", "baked"})
    ensures = frozenset({"onnx", "baked"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return (*ONNX_MODULES, "onnxslim")

    def run(self, work: Work) -> Outcome:
        """Inputs: `samples`, on which both graphs are run."""
        import onnx
        import onnxslim

        model = graphs.load(work.source)
        ir_version = model.ir_version
        slim = onnxslim.slim(model)
        if slim is None:
            raise refuse("onnxslim gave no model")
        slim.ir_version = ir_version
        slim = onnx.shape_inference.infer_shapes(slim)
        onnx.checker.check_model(slim)
        graphs.save(slim, work.target)
        samples = read_samples(work.inputs["samples"], "calibration")
        _same_answers(work.source, work.target, {name: array[:_COMPARED_SAMPLES] for name, array in samples.items()})
        return Outcome(work.facts | {"optimized"}, dict(work.notes))


def _has_branches(model: Any) -> bool:
    return any(node.op_type in ("If", "Loop", "Scan") for node in model.graph.node)


def _loads(model: Any) -> bool:
    """Whether onnxruntime takes the graph; it checks all branches with the shapes that reach them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # Its own types share no base class.
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        return False
    return True


def _with_inputs(model: Any, shapes: Mapping[str, list[int]], *, free: bool) -> Any:
    """Return a copy whose inputs have these shapes, or only as many axes."""
    copy = type(model)()
    copy.CopyFrom(model)
    _fix_inputs(copy, shapes, free=free)
    return copy


def _fix_inputs(model: Any, shapes: Mapping[str, list[int]], *, free: bool) -> None:
    constants = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for item in model.graph.input:
        tensor = item.type.tensor_type
        tensor.ClearField("shape")
        tensor.shape.SetInParent()
        for size in shapes[item.name]:
            dim = tensor.shape.dim.add()
            if not free:
                dim.dim_value = size


def _fix_outputs(model: Any, shapes: Mapping[str, list[int]]) -> None:
    """Give outputs whose shape cannot be inferred, such as those of decision trees, the shape that was seen."""
    for item in model.graph.output:
        tensor = item.type.tensor_type
        inferred = tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)
        if item.name in shapes and not inferred:
            tensor.ClearField("shape")
            tensor.shape.SetInParent()
            for size in shapes[item.name]:
                tensor.shape.dim.add().dim_value = size


def _newest_opset(opset_max: int | None, ir_max: int | None) -> int:
    """Return the newest opset that a runtime reads: an IR version carries opsets up to its time."""
    import onnx

    most = min(opset_max or onnx.defs.onnx_opset_version(), int(onnx.defs.onnx_opset_version()))
    if ir_max is not None:
        while most > 1 and onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", most)]) > ir_max:
            most -= 1
    return most


def _to_opset(model: Any, wanted: int, most: int) -> Any:
    from onnx import version_converter

    current = graphs.opset(model)
    target = min(max(current, wanted), most)
    if current in (0, target):
        return model
    try:
        return version_converter.convert_version(model, target)
    except RuntimeError as error:
        if current > most:
            said = " ".join(str(error).split())[:200]
            raise refuse(
                f"the runtime reads opset {most}, the model has {current} and cannot be converted: {said}"
            ) from error
        # An old opset still runs as float.
        return model


def _ir_version(model: Any, most: int | None) -> int:
    import onnx

    least = int(onnx.helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True))
    if most is not None and least > most:
        raise refuse(f"the runtime reads ONNX IR {most}, opset {graphs.opset(model)} needs {least}")
    # 8 belongs to opset 17 and every runtime in the field reads it.
    return max(least, min(8, most or 8))


def _same_answers(before: Path, after: Path, samples: Mapping[str, NDArray[Any]]) -> None:
    first, second = (run_artifact("onnxruntime", folder / graphs.MODEL_NAME, samples) for folder in (before, after))
    for name, reference in first.items():
        scale = float(np.abs(reference.astype(np.float64)).max(initial=0)) or 1.0
        error = float(np.abs(second[name].astype(np.float64) - reference).max(initial=0))
        if not error <= _SAME_GRAPH_RELATIVE * scale:
            raise refuse(f"onnxslim changed output {name!r} by {error:g}")
