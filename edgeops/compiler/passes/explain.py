"""Compare an artifact with what it was made from, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.compiler.explain import opening
from edgeops.compiler.passes import Outcome, Work, tflite
from edgeops.compiler.passes.running import few_samples
from edgeops.compiler.passes.tensors import look_into
from edgeops.contracts.evidence import OutputError
from edgeops.contracts.handover import Input
from edgeops.runtimes import compare
from edgeops.runtimes.steps import apply


class Explain:
    """Run both with every tensor they share as an output, and name the layer at which each bad output's error opens.

    All cuts are measured at once, not bisected: errors are not monotonic, and a bisection would miss that.
    """

    tools = ("onnx", "onnxruntime", "openvino", "ai-edge-litert", "numpy")
    requires: frozenset[str] = frozenset()
    ensures = frozenset({"explained"})

    def run(self, work: Work) -> Outcome:
        """Explain.

        Parameters: `runtime` of the artifact, `plain_runtime`; `cosine_min`, `sqnr_min_db`: what is worse is bad;
        `inputs`, the hand-over's where `plain` is the model as handed over, else []. Inputs: `samples`; `plain`, the
        artifact without the error.
        """
        samples = few_samples(work.inputs["samples"])
        feeds = samples
        declared = msgspec.convert(work.parameters["inputs"], tuple[Input, ...])
        if declared:
            feeds = {
                spec.model_input or spec.name: np.stack([apply(spec.preprocess, row) for row in samples[spec.name]])
                for spec in declared
            }
        runtime, plain_runtime = work.parameters["runtime"], work.parameters["plain_runtime"]
        plain = look_into(plain_runtime, work.inputs["plain"], work.input_notes.get("plain", {}), work.target)
        own = look_into(runtime, work.source, work.notes, work.target)
        shared = sorted(plain.tensors & own.tensors)
        reference, got = plain.values(shared, feeds), own.values(shared, samples)
        if runtime != plain_runtime and runtime in ("litert", "mcu"):
            got = _turned_back(reference, got)
        errors = {
            name: compare.output_error(name, "", reference[name], got[name].astype(reference[name].dtype))
            for name in shared
            if reference[name].dtype.kind == "f" and reference[name].shape == got[name].shape
        }

        cosine_min, sqnr_min_db = float(work.parameters["cosine_min"]), float(work.parameters["sqnr_min_db"])

        def bad(error: OutputError) -> bool:
            return error.cosine < cosine_min or error.sqnr_db < sqnr_min_db

        opens = [one for name in plain.ends if (one := opening(plain.layers, errors, name, bad)) is not None]
        return Outcome(frozenset({"explained"}), {"opens": msgspec.to_builtins(opens), "compared": len(errors)})


def _turned_back(reference: Mapping[str, NDArray[Any]], got: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return tensors whose axes the converter turned in the order of the source's."""
    axes = {name: tflite.axes_back(reference[name], values) for name, values in got.items()}
    return {name: values if (back := axes[name]) is None else tflite.turn(values, back) for name, values in got.items()}
