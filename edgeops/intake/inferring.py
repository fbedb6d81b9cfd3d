"""What can be known of a hand-over from the model's file and its answers, and what a person has to say. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.handover import Cast, Input, Output, Step
from edgeops.contracts.tensors import DTYPES
from edgeops.intake.onnx_probe import ModelFacts, ModelTensor

Kind = Literal["probabilities", "logits", "classes", "embedding", "values", "state"]
_PICTURE_CHANNELS = (1, 3, 4)
# Shares that are stored as int8 do not sum to 1 exactly.
_SUM_WITHIN = 0.02


class Inferred(NamedTuple):
    """Inputs and outputs as they can be known, with the reasons: place in `handover.toml` → lines."""

    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    notes: dict[str, list[str]]


def kind_of(values: NDArray[Any], *, classed: bool) -> Kind:
    """Return how an output [n, ...] is compared, from its values on samples.

    Args:
        values: Its values.
        classed: Somebody names its classes.
    """
    if values.dtype.kind in "iub":
        return "classes"
    shares = values.shape[-1] > 1 and bool(
        (values >= 0).all() and np.allclose(values.sum(axis=-1), 1, atol=_SUM_WITHIN)
    )
    if shares:
        return "probabilities"
    return "logits" if classed else "values"


def infer(facts: ModelFacts, states: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Inferred:
    """Return what a model's file says of its inputs and outputs.

    Args:
        facts: Of the file.
        states: Input → output of its last value, where it is known.
        shapes: Input → shape of one sample with its batch axis, where samples are there; the file may leave sizes open.

    Raises:
        EdgeopsError: E-MODEL-UNSUPPORTED; nothing goes in or comes out that a device could send or get.
    """
    states = {**likely_states(facts), **states}
    notes: dict[str, list[str]] = {}
    inputs = []
    for tensor in facts.inputs:
        shape, said = _shape(tensor, shapes.get(tensor.name))
        notes[f"inputs.{tensor.name}"] = said
        if tensor.name in states:
            said.append(
                f"It has the form of output {states[tensor.name]!r} and its name: taken for state that goes round."
            )
        elif not tensor.quantized:
            said += _picture_hint(tensor, shape)
        if tensor.quantized:
            said.append("It stores integers for real numbers: send them, or float32, which is quantized on the way in.")
        inputs.append(Input(name=tensor.name, dtype=tensor.dtype, shape=shape, state_from=states.get(tensor.name)))
    outputs = []
    for tensor in facts.outputs:
        if tensor.dtype not in DTYPES:
            notes.setdefault("outputs", []).append(
                f"Output {tensor.name!r} is a {tensor.dtype}, no tensor: it is left out."
            )
            continue
        kind: Kind = (
            "state" if tensor.name in states.values() else "classes" if tensor.dtype in ("int64", "int32") else "values"
        )
        outputs.append(Output(name=tensor.name, kind=kind))
        notes[f"outputs.{tensor.name}"] = _output_hint(tensor, kind)
    odd = [f"input {one.name!r} is {one.dtype}" for one in facts.inputs if one.dtype not in DTYPES]
    if not inputs or not outputs or odd:
        found = "; ".join(odd) or f"{len(inputs)} inputs and {len(outputs)} outputs that are tensors of numbers"
        raise EdgeopsError(
            "E-MODEL-UNSUPPORTED",
            f"the model has {found}",
            "Export it with inputs and outputs that are tensors of numbers.",
        )
    return Inferred(tuple(inputs), tuple(outputs), notes)


def likely_states(facts: ModelFacts) -> dict[str, str]:
    """Return inputs that are an output of the last call: of one form, and one name is the beginning of the other."""
    found = {}
    for given in facts.inputs:
        for output in facts.outputs:
            alike = given.dtype == output.dtype and given.shape is not None and len(given.shape) > 1
            first, second = given.name.lower().removesuffix("_in"), output.name.lower().removesuffix("_out")
            named = first != "input" and (first.startswith(second) or second.startswith(first))
            if alike and named and _same_form(given, output):
                found[given.name] = output.name
    # A model that only gives back what it takes, such as an autoencoder, has no state.
    others = len(facts.inputs) > len(found) and len(facts.outputs) > len(set(found.values()))
    return found if others else {}


def _same_form(first: ModelTensor, second: ModelTensor) -> bool:
    if second.shape is None:
        return True
    assert first.shape is not None
    sizes = zip(first.shape, second.shape, strict=False)
    return len(first.shape) == len(second.shape) and all(one == other or -1 in (one, other) for one, other in sizes)


def _shape(tensor: ModelTensor, seen: tuple[int, ...] | None) -> tuple[tuple[int, ...], list[str]]:
    if seen is not None:
        return seen, [f"The file says {tensor.dtype}{_open(tensor)}; the samples are so."]
    if tensor.shape is None:
        return (1, -1), ["The file does not say how many axes it has: put the shape that your devices send."]
    shape = tuple(1 if place == 0 and size == -1 else size for place, size in enumerate(tensor.shape))
    said = [f"The file says {tensor.dtype}{_open(tensor)}."]
    if tensor.shape[:1] == (-1,):
        said.append("The batch axis is open: a device asks one at a time, so it is 1.")
    if -1 in shape:
        said.append("Each -1 is open in the file: put the size that your devices send, or give --samples.")
    return shape, said


def _open(tensor: ModelTensor) -> str:
    return "[?]" if tensor.shape is None else str(list(tensor.shape)).replace("-1", "?")


def _picture_hint(tensor: ModelTensor, shape: tuple[int, ...]) -> list[str]:
    if len(shape) != 4 or tensor.dtype != "float32" or shape[1] not in _PICTURE_CHANNELS:
        return []
    height, width = (size if size > 0 else "HEIGHT" for size in shape[2:])
    return [
        "Four axes, the second small: a picture with channels first. Devices have bytes, channels last; to take those:",
        f'  dtype = "uint8", shape = [1, {height}, {width}, {shape[1]}], and the steps of your training, for example',
        '  preprocess = [{ step = "cast" }, { step = "scale", by = 0.00392156862745098 },',
        '                { step = "layout", change = "NHWC->NCHW" }]',
    ]


def _output_hint(tensor: ModelTensor, kind: Kind) -> list[str]:
    said = [f"The file says {tensor.dtype}{_open(tensor)}."]
    if kind == "values" and tensor.shape and tensor.shape[-1] > 1:
        said.append(
            f'If these are {tensor.shape[-1]} classes: kind = "probabilities" or "logits", labels = ["…", …]; '
            'logits become probabilities by postprocess = [{ step = "softmax" }].'
        )
    return said


def cast_needed(dtype: str, wanted: str) -> tuple[Step, ...]:
    """Return the step that brings integers to the float32 that a model takes, where that alone is missing."""
    return (Cast(),) if wanted == "float32" and dtype != "float32" and dtype in DTYPES else ()
