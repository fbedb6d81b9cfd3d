"""Labelled accuracy of what a board answers, held against what the compile host measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.bundle import BundleManifest
from edgeops.contracts.errors import EdgeopsError
from edgeops.intake.handover import LoadedHandover
from edgeops.runtimes import compare
from hil.checks.plan import Effort, Found, judged, skipped

Tensors = Mapping[str, NDArray[Any]]


def judge(
    handover: LoadedHandover, manifest: BundleManifest, infer: Callable[[dict[str, NDArray[Any]]], Tensors],
    effort: Effort, expected: float | None = None,
) -> Found:  # fmt: skip
    """Ask a board labelled samples.

    Args:
        handover: With labelled data.
        manifest: The bundle's.
        infer: Asks the board one sample.
        effort: How many samples, and how far accuracy may lie below.
        expected: Accuracy on the compile host; None: the figure is shown, and nothing is demanded.

    Raises:
        EdgeopsError: What asking raised. E-HANDOVER-SHAPE; the labels judge an output that the bundle does not have.
    """
    data, declared = handover.evaluation, handover.handover.evaluation
    if data is None or declared is None:
        return skipped("the hand-over has no labelled data")
    if declared.metric != "accuracy":
        return skipped(f"the hand-over's metric is {declared.metric}, not accuracy")
    name = declared.output or manifest.outputs[0].tensor.name
    kind = next((output.kind for output in manifest.outputs if output.tensor.name == name), None)
    if kind is None:
        raise EdgeopsError("E-HANDOVER-SHAPE", f"labels judge output {name!r}, which the bundle does not have")
    places = np.linspace(0, len(data.labels) - 1, min(effort.samples, len(data.labels))).astype(int)
    answers = [infer({key: array[place] for key, array in data.inputs.items()})[name] for place in places]
    right = compare.classes(np.stack(answers), kind).reshape(-1) == data.labels[places].reshape(-1)
    accuracy = float(right.mean())
    said = f"{int(right.sum())} of {len(right)} labelled samples right"
    least = None if expected is None else expected - effort.accuracy_drop_max
    if least is not None:
        said += f"; the compile host had {expected:.4f}, at least {least:.4f} is demanded"
    figures = {"accuracy": round(accuracy, 5), "samples": len(right), "expected": expected, "least": least}
    return judged(least is None or accuracy >= least, said, "E-HIL-CHECK", **figures)
