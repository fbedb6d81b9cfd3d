"""Compare an onnxruntime artifact with the graph it was made from, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.compiler import graphs
from edgeops.compiler.explain import Layer, opening
from edgeops.compiler.passes import Outcome, Work
from edgeops.compiler.passes.onnx_quantize import name_nodes
from edgeops.compiler.passes.running import few_samples, run_artifact
from edgeops.contracts.evidence import OutputError
from edgeops.contracts.handover import Input
from edgeops.intake.steps import apply
from edgeops.runtimes import compare

# The quantizer's name for what stands for a tensor after int8.
_DEQUANTIZED = "_DequantizeLinear_Output"


class Explain:
    """Make every tensor of both graphs an output, run both, and name the layer at which each bad output's error opens.

    All cuts are measured at once, not bisected: errors are not monotonic, and a bisection would miss that.
    """

    tools = ("onnx", "onnxruntime", "numpy")
    requires: frozenset[str] = frozenset({"onnx"})
    ensures = frozenset({"explained"})

    def run(self, work: Work) -> Outcome:
        """Parameters: `cosine_min`, `sqnr_min_db`: what is worse is bad; `inputs`, the hand-over's where `plain` is
        the model as handed over, else []. Inputs: `samples`; `plain`, the graph without the error.
        """
        samples = few_samples(work.inputs["samples"])
        feeds = samples
        declared = msgspec.convert(work.parameters["inputs"], tuple[Input, ...])
        if declared:
            feeds = {
                spec.model_input or spec.name: np.stack([apply(spec.preprocess, row) for row in samples[spec.name]])
                for spec in declared
            }
        plain, own = graphs.load(work.inputs["plain"]), graphs.load(work.source)
        name_nodes(plain)
        written, found = (
            {name: None for node in model.graph.node for name in node.output if name} for model in (plain, own)
        )
        # Where int8 stands for a tensor, later layers read what is dequantized from it.
        pairs = {
            name: name + _DEQUANTIZED if name + _DEQUANTIZED in found else name
            for name in written
            if name in found or name + _DEQUANTIZED in found
        }
        ends = [item.name for item in plain.graph.output]
        pairs |= {name: name for name in ends if name in found}
        reference = _run(plain, list(pairs), feeds, work.target / "plain.onnx")
        got = _run(own, list(pairs.values()), samples, work.target / "own.onnx")
        errors = {
            name: compare.output_error(name, "", reference[name], got[other].astype(reference[name].dtype))
            for name, other in pairs.items()
            if reference[name].dtype.kind == "f" and reference[name].shape == got[other].shape
        }

        cosine_min, sqnr_min_db = float(work.parameters["cosine_min"]), float(work.parameters["sqnr_min_db"])

        def bad(error: OutputError) -> bool:
            return error.cosine < cosine_min or error.sqnr_db < sqnr_min_db

        layers = [Layer(node.name, node.op_type, tuple(node.input), tuple(node.output)) for node in plain.graph.node]
        opens = [one for name in ends if (one := opening(layers, errors, name, bad)) is not None]
        return Outcome(frozenset({"explained"}), {"opens": msgspec.to_builtins(opens), "compared": len(errors)})


def _run(model: Any, tensors: list[str], feeds: Mapping[str, NDArray[Any]], path: Path) -> dict[str, NDArray[Any]]:
    """Return tensor → [n, *shape] of a model whose tensors are all made outputs."""
    import onnx

    there = {item.name for item in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(tensors) if name not in there)
    graphs.save(model, path.parent, path.name)
    try:
        return run_artifact("onnxruntime", path, feeds)
    finally:
        path.unlink()
