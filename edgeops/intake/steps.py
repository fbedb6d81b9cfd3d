"""Preprocessing steps as arithmetic: what each does to a tensor's type and shape, and to its values.

`apply` is the plain reading of the hand-over. The compiler bakes the same steps into the model's graph by other code
and is checked against this one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.handover import Cast, ChannelOrder, Layout, Normalize, Reshape, Resize, Scale, Step

LAYOUT_AXES: dict[str, tuple[int, ...]] = {"NHWC->NCHW": (0, 3, 1, 2), "NCHW->NHWC": (0, 2, 3, 1)}


class TensorForm(NamedTuple):
    """A tensor's dtype and static shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def propagate(steps: Sequence[Step], form: TensorForm, *, where: str) -> TensorForm:
    """Return what a tensor becomes after all steps.

    Args:
        steps: The steps in order.
        form: What the device sends.
        where: The input, for the error's reader.

    Raises:
        EdgeopsError: E-HANDOVER-STEP; a step does not fit the tensor that reaches it.
    """
    for index, step in enumerate(steps):
        problem = _problem(step, form)
        if problem is not None:
            kind = type(step).__struct_config__.tag
            raise EdgeopsError(
                "E-HANDOVER-STEP", f"{where}: preprocess[{index}] {kind!r}: {problem}", "Correct it in handover.toml."
            )
        form = _after(step, form)
    return form


def apply(steps: Sequence[Step], values: NDArray[Any]) -> NDArray[Any]:
    """Return the tensor that the model sees for one tensor of the device; the steps fit it (`propagate`)."""
    for step in steps:
        if isinstance(step, Cast):
            values = values.astype(np.float32)
        elif isinstance(step, Scale):
            values = values * np.float32(step.by) + np.float32(step.offset)
        elif isinstance(step, Normalize):
            values = (values - np.asarray(step.mean, np.float32)) / np.asarray(step.std, np.float32)
        elif isinstance(step, ChannelOrder):
            values = values[..., list(step.order)]
        elif isinstance(step, Layout):
            values = values.transpose(LAYOUT_AXES[step.change])
        elif isinstance(step, Resize):
            values = _resize(values, step)
        else:
            values = values.reshape(step.shape)
    return np.asarray(values, order="C")  # ascontiguousarray would give a scalar an axis


def _problem(step: Step, form: TensorForm) -> str | None:
    is_float = form.dtype == "float32"
    if isinstance(step, Scale | Normalize | Resize) and not is_float:
        return f"needs float32, gets {form}; put a cast step before it"
    if isinstance(step, Scale) and not (math.isfinite(step.by) and math.isfinite(step.offset) and step.by != 0):
        return "by and offset must be finite, by not 0"
    if isinstance(step, Normalize):
        channels = form.shape[-1] if form.shape else 1
        if len(step.mean) != len(step.std) or len(step.mean) not in (1, channels):
            return f"mean and std need 1 or {channels} values for {form}"
        if not all(map(math.isfinite, (*step.mean, *step.std))) or 0 in step.std:
            return "mean and std must be finite, std not 0"
    if isinstance(step, ChannelOrder) and (not form.shape or sorted(step.order) != list(range(form.shape[-1]))):
        return f"order must name each channel of the last axis of {form} once"
    if isinstance(step, Layout | Resize) and len(form.shape) != 4:
        return f"needs 4 axes, gets {form}"
    if isinstance(step, Resize) and not (0 < step.height <= 1 << 14 and 0 < step.width <= 1 << 14):
        return "height and width must be 1 to 16384"
    if isinstance(step, Reshape) and (min(step.shape, default=1) < 1 or math.prod(step.shape) != math.prod(form.shape)):
        return f"shape {list(step.shape)} has not the elements of {form}"
    return None


def _after(step: Step, form: TensorForm) -> TensorForm:
    if isinstance(step, Cast):
        return TensorForm("float32", form.shape)
    if isinstance(step, Layout):
        return TensorForm(form.dtype, tuple(form.shape[axis] for axis in LAYOUT_AXES[step.change]))
    if isinstance(step, Resize):
        return TensorForm(form.dtype, (form.shape[0], step.height, step.width, form.shape[3]))
    if isinstance(step, Reshape):
        return TensorForm(form.dtype, step.shape)
    return form


def _resize(values: NDArray[Any], step: Resize) -> NDArray[Any]:
    for axis, size in ((1, step.height), (2, step.width)):
        old = values.shape[axis]
        places = (np.arange(size) + 0.5) * (old / size) - 0.5
        if step.interpolation == "nearest":
            # ONNX's default: halves go down.
            index = np.clip(np.ceil(places - 0.5), 0, old - 1).astype(np.int64)
            values = values.take(index, axis)
        else:
            places = np.clip(places, 0, old - 1)
            low = np.floor(places).astype(np.int64)
            high = np.minimum(low + 1, old - 1)
            shape = [1] * values.ndim
            shape[axis] = size
            share = (places - low).astype(np.float32).reshape(shape)
            values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values.astype(np.float32)
