"""What an exporter makes of a trained model: a file's bytes, and the source itself, to be held against each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.errors import EdgeopsError

Tensors = Mapping[str, NDArray[Any]]
# Of the opsets that every supported runtime reads, the newest; trees have a domain of their own.
OPSET, ML_OPSET = 17, 3
# float32 in another order; trees and distances stay far below it.
TOLERANCE = 1e-4
# The same bytes on other kernels: integer arithmetic rounds otherwise in each layer.
KERNELS_TOLERANCE = 0.05
# How much of what a framework says is passed on.
_SAID = 400
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class ExportedOutput(NamedTuple):
    """An output of the exported file: its name, its kind where the framework knows it, and class names likewise."""

    name: str
    kind: str | None = None
    labels: tuple[str, ...] = ()


class Exported(NamedTuple):
    """A model that was exported.

    Args:
        suffix: Of the file: `onnx` or `tflite`.
        data: Its bytes.
        inputs: Its inputs.
        outputs: Its outputs that devices get, in order.
        run: Runs the source on one sample: the file's inputs → its outputs. Raises whatever the framework raises.
        source: What the model is, and what exported it, for people.
        classes: The class that each number stands for, where the framework knows it; answers may be given so.
        ranks: Input → number of axes, where a file says it: samples may have the batch axis already.
        tolerance: Largest difference of source and export, relative to the source's largest value.
    """

    suffix: str
    data: bytes
    inputs: tuple[str, ...]
    outputs: tuple[ExportedOutput, ...]
    run: Callable[[Tensors], Tensors]
    source: str
    classes: tuple[Any, ...] = ()
    ranks: Mapping[str, int] = {}
    tolerance: float = TOLERANCE


def by_name(samples: object, inputs: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return samples along the first axis by input.

    Args:
        samples: An array for a model of one input, a sequence of arrays in order for others, or a mapping by name.
        inputs: The model's inputs in order.

    Raises:
        EdgeopsError: E-DATA-SHAPE; other names or another number of inputs, or no arrays.
    """
    advice = "Give one array per input, samples along the first axis."
    if isinstance(samples, Mapping):
        given: dict[str, Any] = {str(name): value for name, value in samples.items()}
        if set(given) != set(inputs):
            raise EdgeopsError(
                "E-DATA-SHAPE", f"samples are of {sorted(given)}, the model has {sorted(inputs)}", advice
            )
    elif isinstance(samples, list | tuple) and len(inputs) > 1:
        if len(samples) != len(inputs):
            raise EdgeopsError("E-DATA-SHAPE", f"{len(samples)} arrays for {len(inputs)} inputs {list(inputs)}", advice)
        given = dict(zip(inputs, samples, strict=True))
    elif len(inputs) == 1:
        given = {inputs[0]: samples}
    else:
        raise EdgeopsError("E-DATA-SHAPE", f"one array for {len(inputs)} inputs {list(inputs)}", advice)
    found = {name: as_array(given[name], name) for name in inputs}
    counts = {name: len(array) for name, array in found.items()}
    if len(set(counts.values())) != 1:
        raise EdgeopsError("E-DATA-SHAPE", f"inputs have different numbers of samples: {counts}", advice)
    return found


def as_array(value: object, name: str) -> NDArray[Any]:
    """Return an array of real numbers or integers; float64 becomes float32, which is what devices compute with.

    Raises:
        EdgeopsError: E-DATA-SHAPE; not an array of numbers along a first axis. E-DATA-VALUES; NaN or infinite values.
    """
    # Frames of pandas and tensors of frameworks become arrays in their own ways.
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise EdgeopsError("E-DATA-SHAPE", f"samples of {name!r}: no array: {error}", "Give a NumPy array.") from error
    if array.dtype.kind not in "biuf" or array.ndim == 0 or len(array) == 0:
        raise EdgeopsError(
            "E-DATA-SHAPE",
            f"samples of {name!r} are {array.dtype}{list(array.shape)}; expected numbers, samples along the first axis",
            "Give a NumPy array of numbers.",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        first = int(np.argwhere(~np.isfinite(array))[0][0])
        raise EdgeopsError(
            "E-DATA-VALUES", f"samples of {name!r} have NaN or infinite values, first in sample {first}", "Drop them."
        )
    return array.astype(np.float32) if array.dtype == np.float64 else array


def type_name(value: object) -> str:
    """Return the full name of a value's type."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def needs(package: str, extra: str, error: ImportError) -> EdgeopsError:
    """Return the error of an exporter whose package is not installed."""
    return EdgeopsError("E-DEPENDENCY", f"{package}: {error}", f"pip install 'edgeops[{extra}]'")


def _plain(error: BaseException) -> str:
    """Return an error's text in one line, without colours."""
    return " ".join(_COLOUR.sub("", str(error)).split())


def cannot_export(value: object, how: str, error: BaseException) -> EdgeopsError:
    """Return the error of a model that its framework's exporter does not take."""
    # Some say where, with pages of attributes, and what it is only in the error behind.
    cause = error.__cause__ or error.__context__
    said = _plain(error)
    if len(said) > _SAID and cause is not None:
        said = f"{said[:150]}…: {_plain(cause)}"
    said = said[:_SAID] or type(error).__name__
    return EdgeopsError(
        "E-HANDOVER-EXPORT",
        f"{type_name(value)} cannot be exported by {how}: {said}",
        "Replace the part that it names, or export the model to ONNX yourself and hand over the file.",
    )
