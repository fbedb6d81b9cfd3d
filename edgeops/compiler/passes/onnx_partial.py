"""Static int8 for onnxruntime with the most sensitive segments of the graph kept float."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edgeops.compiler import graphs
from edgeops.compiler.passes import Outcome, Work, refuse
from edgeops.compiler.passes.onnx_quantize import (
    QUANTIZABLE,
    finish,
    name_nodes,
    own_nodes,
    quantize_static_int8,
)
from edgeops.compiler.passes.running import ONNX_MODULES, few_samples, run_artifact
from edgeops.compiler.sensitivity import ENOUGH, Aim, keep_float, segments, shortfall
from edgeops.contracts.errors import EdgeopsError

_METHODS = ("minmax", "percentile")


class PartialInt8:
    """Find by end-to-end runs which contiguous segments must stay float, and quantize the rest."""

    tools = ("onnx", "onnxruntime", "numpy")
    requires: frozenset[str] = frozenset({"onnx", "baked", "modern-opset"})
    ensures = frozenset({"onnx", "baked", "int8"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return (*ONNX_MODULES, "onnxruntime.quantization")

    def run(self, work: Work) -> Outcome:
        """Parameters: `symmetric`, as for `onnx-int8-static`; `aim`, an `Aim`. Input: `samples`."""
        aim = msgspec.convert(work.parameters["aim"], Aim)
        model = graphs.load(work.source)
        name_nodes(model)
        own = set(own_nodes(model))
        nodes = [node for node in model.graph.node if node.name not in own]
        parts = segments([node.op_type in QUANTIZABLE for node in nodes])
        source = work.target / "float.onnx"
        graphs.save(model, work.target, source.name)
        samples = few_samples(work.inputs["samples"])
        reference = run_artifact("onnxruntime", source, samples)
        target = work.target / graphs.MODEL_NAME
        whole = {}
        for method in _METHODS:
            path = work.target / f"{method}.onnx"
            quantize_static_int8(
                source,
                path,
                work.inputs["samples"],
                method=method,
                symmetric=work.parameters["symmetric"],
                excluded=sorted(own),
                keep_activations=True,
            )
            whole[method] = graphs.load(work.target, path.name)

        def score(method: str, kept: frozenset[int]) -> float:
            names = {nodes[index].name for part in kept for index in parts[part]}
            graphs.save(unquantize(whole[method], model, names), work.target)
            try:
                return shortfall(aim, reference, run_artifact("onnxruntime", target, samples))
            except EdgeopsError:
                return math.inf

        scores = {method: score(method, frozenset()) for method in _METHODS}
        method = min(scores, key=lambda name: scores[name])
        kept = keep_float(_costs(model, nodes, parts), lambda kept: score(method, kept))
        found = score(method, kept)
        if math.isinf(found):
            raise refuse("no part of the graph can be quantized")
        for extra in work.target.iterdir():
            if extra != target:
                extra.unlink()
        outcome = finish(work, "int8")
        notes = {"method": method, "float_segments": sorted(kept), "segments": len(parts), "shortfall": found}
        return Outcome(outcome.facts, {**outcome.notes, **notes, "aimed": ENOUGH})


def unquantize(quantized: Any, model: Any, names: set[str]) -> Any:
    """Return a QDQ model in which some nodes compute in float, on float weights.

    Such a node reads another's float answer only where that one computes in float too: a tensor that an int8 kernel
    writes is quantized anyway, and a second reader would keep the kernel from being fused.

    Args:
        quantized: The QDQ form of `model`, with all its nodes.
        model: The float model; its nodes have the same names.
        names: Nodes that compute in float.
    """
    import onnx

    changed = onnx.ModelProto()
    changed.CopyFrom(quantized)
    graph = changed.graph
    writers = {name: node for node in graph.node for name in node.output}
    constants = {item.name: item for item in model.graph.initializer}
    inputs = {node.name: list(node.input) for node in model.graph.node if node.name in names}
    restored: dict[str, str] = {}
    for node in graph.node:
        for place, name in enumerate(inputs.get(node.name, [])):
            if name in constants:
                # The quantizer may have given the name to what dequantizes it.
                node.input[place] = restored.setdefault(name, f"{graphs.OWN_PREFIX}float/{name}")
            elif name and _float_before(node.input[place], writers, names) == name:
                node.input[place] = name
    for name, new in sorted(restored.items()):
        graph.initializer.add().CopyFrom(constants[name])
        graph.initializer[-1].name = new
    _drop_unread(graph)
    return changed


def _float_before(name: str, writers: Mapping[str, Any], names: set[str]) -> str | None:
    """Return the float tensor that a quantizer and dequantizer stand behind; None: an int8 kernel writes it."""
    dequantize = writers.get(name)
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    quantize = writers.get(dequantize.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    writer = writers.get(quantize.input[0])
    own = writer is not None and writer.name.startswith(graphs.OWN_PREFIX)
    return str(quantize.input[0]) if writer is None or own or writer.name in names else None


def _drop_unread(graph: Any) -> None:
    """Remove nodes and constants that nothing reads any more."""
    read = {item.name for item in graph.output}
    kept = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            kept.append(node)
            for inner in graphs.graphs(_alone(node)):
                for item in inner.node:
                    read.update(item.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    constants = [item for item in graph.initializer if item.name in read]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def _alone(node: Any) -> Any:
    import onnx

    return onnx.helper.make_graph([node], "alone", [], [])


def _costs(model: Any, nodes: Sequence[Any], parts: Sequence[Sequence[int]]) -> list[float]:
    """Return about how many products each segment computes."""
    shapes: dict[str, tuple[int, ...]] = {item.name: tuple(item.dims) for item in model.graph.initializer}
    for item in (*model.graph.value_info, *model.graph.output):
        shapes[item.name] = tuple(max(1, size.dim_value) for size in item.type.tensor_type.shape.dim)

    def cost(node: Any) -> int:
        result = shapes.get(node.output[0])
        weights = shapes.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type not in QUANTIZABLE or not result or not weights:
            return 0
        channels: int = result[1] if node.op_type.startswith("Conv") and len(result) > 1 else result[-1]
        return math.prod(result) * math.prod(weights) // channels

    return [float(sum(cost(nodes[index]) for index in part)) for part in parts]
