"""What is not made but taken: samples after the agent's steps, and TFLite models as they were handed over."""

from __future__ import annotations

import shutil

import msgspec
import numpy as np

from edgeops.compiler.passes import Outcome, Work, refuse, tflite
from edgeops.compiler.passes.samples import has_samples, read_samples, write_samples
from edgeops.contracts.handover import Step
from edgeops.runtimes.steps import apply


class AgentSteps:
    """Do the agent's steps on all samples: an artifact that does not hold them is fed so."""

    tools = ("numpy",)
    requires: frozenset[str] = frozenset({"samples"})
    ensures = frozenset({"samples"})

    def run(self, work: Work) -> Outcome:
        """Parameters: `steps`, input → its steps."""
        steps = msgspec.convert(work.parameters["steps"], dict[str, tuple[Step, ...]])
        for group in ("calibration", "judged"):
            samples = read_samples(work.source, group)
            stepped = {
                name: np.stack([apply(steps.get(name, ()), np.asarray(row)) for row in values])
                for name, values in samples.items()
            }
            write_samples(work.target, group, stepped)
        if has_samples(work.source, "labels"):
            write_samples(work.target, "labels", read_samples(work.source, "labels"))
        return Outcome(work.facts, dict(work.notes))


class IngestTflite:
    """Take a TFLite model as it is: nothing is baked into it and nothing is cut from it."""

    tools = ("ai-edge-litert",)
    requires: frozenset[str] = frozenset({"file"})
    ensures = frozenset({"tflite", "baked"})

    def run(self, work: Work) -> Outcome:
        """Parameters: `file`, name in the source folder; `outputs`, the model's outputs, all of them."""
        shutil.copyfile(work.source / work.parameters["file"], work.target / tflite.MODEL_NAME)
        _, outputs = tflite.named_ends(work.target / tflite.MODEL_NAME)
        if sorted(outputs) != sorted(work.parameters["outputs"]):
            raise refuse(
                f"the model gives {sorted(outputs)}, declared are {sorted(work.parameters['outputs'])}",
                "Declare every output: nothing is cut from a TFLite model.",
            )
        quantized = tflite.quantized_ends(work.target / tflite.MODEL_NAME)
        return Outcome(frozenset({"tflite", "baked"}), {"quantization": quantized, "stored_integers": True})
