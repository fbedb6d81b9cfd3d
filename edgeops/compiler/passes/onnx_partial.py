"""Static int8 for onnxruntime with the most sensitive segments of the graph kept float."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np

from edgeops.compiler import graphs
from edgeops.compiler.passes import Outcome, Work, refuse
from edgeops.compiler.passes.onnx_quantize import (
    QUANTIZABLE,
    finish,
    name_nodes,
    own_nodes,
    quantize_static_int8,
)
from edgeops.compiler.passes.running import few_samples, run_artifact
from edgeops.compiler.sensitivity import ENOUGH, Aim, keep_float, segments, shortfall
from edgeops.contracts.errors import EdgeopsError

_METHODS = ("minmax", "percentile")


class PartialInt8:
    """Find by end-to-end runs which contiguous segments must stay float, and quantize the rest."""

    tools = ("onnx", "onnxruntime", "numpy")
    requires: frozenset[str] = frozenset({"onnx", "baked", "modern-opset"})
    ensures = frozenset({"onnx", "baked", "int8"})

    def run(self, work: Work) -> Outcome:
        """Parameters: `symmetric`, as for `onnx-int8-static`; `aim`, an `Aim`. Input: `samples`."""
        aim = msgspec.convert(work.parameters["aim"], Aim)
        model = graphs.load(work.source)
        name_nodes(model)
        own = own_nodes(model)
        names = [node.name for node in model.graph.node if node.name not in own]
        parts = segments([node.op_type in QUANTIZABLE for node in model.graph.node if node.name not in own])
        source = work.target / "float.onnx"
        graphs.save(model, work.target, source.name)
        samples = few_samples(work.inputs["samples"])
        reference = run_artifact("onnxruntime", source, samples)
        target = work.target / graphs.MODEL_NAME

        def build(method: str, kept: frozenset[int]) -> Path:
            excluded = [*own, *(names[index] for part in sorted(kept) for index in parts[part])]
            return quantize_static_int8(
                source,
                target,
                work.inputs["samples"],
                method=method,
                symmetric=work.parameters["symmetric"],
                excluded=excluded,
                ranges=work.target / f"{method}.ranges",
            )

        def score(method: str, kept: frozenset[int]) -> float:
            try:
                return shortfall(aim, reference, run_artifact("onnxruntime", build(method, kept), samples))
            except EdgeopsError:
                return math.inf

        whole = {method: score(method, frozenset()) for method in _METHODS}
        method = min(whole, key=lambda name: whole[name])
        if math.isinf(whole[method]):
            raise refuse("onnxruntime.quantization cannot quantize this graph")
        kept = keep_float(len(parts), lambda kept: score(method, kept))
        found = score(method, kept)
        if np.isinf(found):
            raise refuse("no part of the graph can be quantized")
        for extra in work.target.iterdir():
            if extra != target:
                extra.unlink()
        outcome = finish(work, "int8")
        notes = {"method": method, "float_segments": sorted(kept), "segments": len(parts), "shortfall": found}
        return Outcome(outcome.facts, {**outcome.notes, **notes, "aimed": ENOUGH})
