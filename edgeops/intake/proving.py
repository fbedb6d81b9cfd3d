"""Proves an export: source and exported file answer the same samples alike, or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.handover import Handover
from edgeops.intake.exported import Exported, Tensors
from edgeops.intake.tflite_probe import TfliteRun
from edgeops.runtimes.protocol import LoadOptions
from edgeops.runtimes.registry import backend
from edgeops.runtimes.steps import apply

MOST_SAMPLES = 64


class Agreement(NamedTuple):
    """How closely an output agrees: its largest difference, relative to the source's largest value."""

    output: str
    relative: float
    samples: int


def prove(
    exported: Exported, file: Path, handover: Handover, samples: dict[str, NDArray[Any]]
) -> tuple[tuple[Agreement, ...], dict[str, NDArray[Any]]]:
    """Run the source and its export on samples.

    Args:
        exported: The source.
        file: The exported file.
        handover: How samples become what the model takes.
        samples: Input as devices send it → [n, *shape].

    Returns:
        How closely each output agrees, and the source's answers, [n, *shape] each.

    Raises:
        EdgeopsError: E-HANDOVER-EXPORT; an output differs by more than the tolerance, has another shape, or
            is not finite; names the output and the sample. E-HANDOVER-OBJECT; the source does not run.
    """
    count = len(next(iter(samples.values())))
    picked = np.unique(np.linspace(0, count - 1, min(count, MOST_SAMPLES)).round().astype(int))
    session = _open(exported, file)
    answers: list[tuple[Tensors, Tensors]] = []
    try:
        for index in picked:
            feeds = {
                spec.model_input or spec.name: apply((*spec.agent, *spec.preprocess), samples[spec.name][index])
                for spec in handover.inputs
            }
            answers.append((_source(exported, feeds, int(index)), session.run(feeds)))
    finally:
        session.close()
    agreements, sources = [], {}
    for output in exported.outputs:
        theirs = [np.asarray(source[output.name]) for source, _ in answers]
        ours = [np.asarray(got[output.name]) for _, got in answers]
        agreements.append(_agreement(output.name, theirs, ours, picked, exported.tolerance))
        sources[output.name] = np.stack(theirs)
    return tuple(agreements), sources


def _source(exported: Exported, feeds: Tensors, index: int) -> Tensors:
    try:
        return exported.run(feeds)
    except EdgeopsError:
        raise
    # The source is anybody's code.
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise EdgeopsError(
            "E-HANDOVER-OBJECT",
            f"the model does not run on sample {index}: {type(error).__name__}: {said}",
            "Give samples as the model takes them after preprocess, with a batch axis of 1.",
        ) from error


def _open(exported: Exported, file: Path) -> Any:
    if exported.suffix == "tflite":
        return TfliteRun(file)
    return backend("onnxruntime").load(file, LoadOptions())


def _agreement(
    name: str, theirs: list[NDArray[Any]], ours: list[NDArray[Any]], picked: NDArray[np.int64], tolerance: float
) -> Agreement:
    largest = max(float(np.abs(one.astype(np.float64)).max(initial=0)) for one in theirs)
    worst = 0.0
    for index, source, got in zip(picked, theirs, ours, strict=True):
        if source.shape != got.shape:
            raise _differs(name, int(index), f"has shape {list(source.shape)}, exported {list(got.shape)}")
        if not np.isfinite(source.astype(np.float64)).all():
            raise _differs(name, int(index), "is NaN or infinite in the source itself")
        difference = np.abs(source.astype(np.float64) - got.astype(np.float64))
        found = float(difference.max(initial=0)) / (largest or 1.0)
        # A comparison with NaN is false.
        if not found <= tolerance:
            place = np.unravel_index(
                int(np.nanargmax(difference)) if np.isfinite(difference).any() else 0, source.shape
            )
            where = f"at {[int(one) for one in place]} " if source.shape else ""
            raise _differs(name, int(index), f"{where}is {source[place]:.6g}, exported {got[place]:.6g}")
        worst = max(worst, found)
    return Agreement(name, worst, len(picked))


def _differs(name: str, index: int, what: str) -> EdgeopsError:
    return EdgeopsError(
        "E-HANDOVER-EXPORT",
        f"output {name!r} of sample {index} {what}: the export does not do what the model does",
        "Look for what is random, or depends on the batch or on earlier calls; export the model for inference.",
    )
