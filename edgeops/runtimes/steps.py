"""Declared steps as arithmetic: what each does to a tensor's type and shape, and to its values.

`apply` is the plain reading of the hand-over, and what the agent does with the steps that an artifact cannot hold. The
compiler bakes the same steps into the model's graph by other code and is checked against this one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.handover import (
    ArgMax,
    Cast,
    ChannelOrder,
    Crop,
    Frame,
    Layout,
    LogMel,
    Normalize,
    Pad,
    Reshape,
    Resize,
    ResultStep,
    Scale,
    Softmax,
    Standardize,
    Step,
    TopK,
    Window,
)
from edgeops.runtimes import filters

LAYOUT_AXES: dict[str, tuple[int, ...]] = {"NHWC->NCHW": (0, 3, 1, 2), "NCHW->NHWC": (0, 2, 3, 1)}
MAX_SIDE = 1 << 14
_MAX_WEIGHTS = 1 << 26
_PICTURES = (Layout, Resize, Crop, Pad)
_OF_FLOATS = (Scale, Normalize, Resize, Pad, Standardize, Window, LogMel)


class TensorForm(NamedTuple):
    """A tensor's dtype and shape; -1: a size that varies."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def propagate(steps: Sequence[Step], form: TensorForm, *, where: str, key: str = "preprocess") -> TensorForm:
    """Return what a tensor becomes after all steps.

    Args:
        steps: The steps in order.
        form: What reaches the first.
        where: The input, for the error's reader.
        key: The steps' key in `handover.toml`, likewise.

    Raises:
        EdgeopsError: E-HANDOVER-STEP; a step does not fit the tensor that reaches it.
    """
    for index, step in enumerate(steps):
        problem = _problem(step, form)
        if problem is not None:
            raise _refusal(f"{where}: {key}[{index}]", step, problem)
        form = _after(step, form)
    return form


def propagate_results(steps: Sequence[ResultStep], form: TensorForm, *, where: str) -> TensorForm:
    """Return what an output becomes after all steps; arguments and errors as `propagate`."""
    for index, step in enumerate(steps):
        problem = None
        if not form.dtype.startswith("float") or not form.shape:
            problem = f"needs real numbers along an axis, gets {form}"
        elif isinstance(step, TopK) and not 1 <= step.k <= form.shape[-1]:
            problem = f"k must be 1 to {form.shape[-1]} for {form}"
        if problem is not None:
            raise _refusal(f"{where}: postprocess[{index}]", step, problem)
        if isinstance(step, ArgMax):
            form = TensorForm("int32", (*form.shape[:-1], 1))
        elif isinstance(step, TopK):
            form = TensorForm("int32" if step.give == "classes" else form.dtype, (*form.shape[:-1], step.k))
    return form


def apply(steps: Sequence[Step], values: NDArray[Any]) -> NDArray[Any]:
    """Return the tensor that the model sees for one tensor of the device; the steps fit it (`propagate`)."""
    for step in steps:
        values = _apply(step, values)
    return np.asarray(values, order="C")  # ascontiguousarray would give a scalar an axis


def apply_results(steps: Sequence[ResultStep], values: NDArray[Any]) -> NDArray[Any]:
    """Return an output as the device gets it; the steps fit it (`propagate_results`)."""
    for step in steps:
        if isinstance(step, Softmax):
            powers = np.exp(values - values.max(axis=-1, keepdims=True))
            values = powers / powers.sum(axis=-1, keepdims=True)
        elif isinstance(step, ArgMax):
            values = values.argmax(axis=-1, keepdims=True).astype(np.int32)
        else:
            # Stable: of equal values the first comes first, as in the runtimes.
            order = np.argsort(-values, axis=-1, kind="stable")[..., : step.k]
            values = order.astype(np.int32) if step.give == "classes" else np.take_along_axis(values, order, axis=-1)
    return np.asarray(values, order="C")


def corner(step: Crop, height: int, width: int) -> tuple[int, int]:
    """Return top and left of what a crop cuts out of a picture of this size."""
    top = (height - step.height) // 2 if step.top is None else step.top
    left = (width - step.width) // 2 if step.left is None else step.left
    return top, left


def frame_places(step: Frame, size: int) -> NDArray[np.int64]:
    """Return which elements of an axis each piece takes, int64 [pieces, length]."""
    starts = np.arange(0, size - step.length + 1, step.hop)
    return np.asarray(starts[:, None] + np.arange(step.length), np.int64)


def _apply(step: Step, values: NDArray[Any]) -> NDArray[Any]:
    if isinstance(step, Cast):
        return values.astype(np.float32)
    if isinstance(step, Scale):
        return np.asarray(values * np.float32(step.by) + np.float32(step.offset))
    if isinstance(step, Normalize):
        return np.asarray((values - np.asarray(step.mean, np.float32)) / np.asarray(step.std, np.float32))
    if isinstance(step, ChannelOrder):
        return values[..., list(step.order)]
    if isinstance(step, Layout):
        return np.asarray(values.transpose(LAYOUT_AXES[step.change]))
    if isinstance(step, Resize):
        for axis, size in ((1, step.height), (2, step.width)):
            weights = filters.resize_weights(values.shape[axis], size, step.interpolation, antialias=step.antialias)
            values = np.moveaxis(np.moveaxis(values, axis, -1) @ weights.T, -1, axis)
        return values.astype(np.float32)
    if isinstance(step, Crop):
        top, left = corner(step, values.shape[1], values.shape[2])
        return values[:, top : top + step.height, left : left + step.width]
    if isinstance(step, Pad):
        more = ((0, 0), (0, step.height - values.shape[1]), (0, step.width - values.shape[2]), (0, 0))
        return np.asarray(np.pad(values, more, constant_values=np.float32(step.value)))
    if isinstance(step, Reshape):
        return values.reshape(step.shape)
    if isinstance(step, Standardize):
        axes = (values.ndim - 1,) if step.over == "last" else tuple(range(1, values.ndim))
        centred = values - values.mean(axis=axes, keepdims=True)
        variance = np.square(centred).mean(axis=axes, keepdims=True)
        return np.asarray(centred / np.sqrt(variance + np.float32(step.epsilon)))
    if isinstance(step, Frame):
        return values[..., frame_places(step, values.shape[-1])]
    if isinstance(step, Window):
        return np.asarray(values * filters.window(step.function, values.shape[-1]))
    cosines, sines, bands = filters.log_mel(step, values.shape[-1])
    power = np.square(values @ cosines) + np.square(values @ sines)
    return np.asarray(np.log(np.maximum(power @ bands, np.float32(step.floor))))


def _problem(step: Step, form: TensorForm) -> str | None:
    size = form.shape[-1] if form.shape else 1
    if isinstance(step, _OF_FLOATS) and form.dtype != "float32":
        return f"needs float32, gets {form}; put a cast step before it"
    if isinstance(step, _PICTURES) and len(form.shape) != 4:
        return f"needs 4 axes, gets {form}"
    if isinstance(step, Resize | Crop | Pad):
        return _picture_problem(step, form)
    if isinstance(step, Standardize | Frame | Window | LogMel):
        return _signal_problem(step, form)
    if isinstance(step, Scale) and not (math.isfinite(step.by) and math.isfinite(step.offset) and step.by != 0):
        return "by and offset must be finite, by not 0"
    if isinstance(step, Normalize):
        if len(step.mean) != len(step.std) or len(step.mean) not in (1, size):
            return f"mean and std need 1 or {size} values for {form}"
        if not all(map(math.isfinite, (*step.mean, *step.std))) or 0 in step.std:
            return "mean and std must be finite, std not 0"
    if isinstance(step, ChannelOrder) and (not form.shape or sorted(step.order) != list(range(size))):
        return f"order must name each channel of the last axis of {form} once"
    if isinstance(step, Reshape):
        wrong = min(step.shape, default=1) < 1 or math.prod(step.shape) != math.prod(form.shape) or -1 in form.shape
        return f"shape {list(step.shape)} has not the elements of {form}" if wrong else None
    return None


def _picture_problem(step: Resize | Crop | Pad, form: TensorForm) -> str | None:
    _, height, width, _ = form.shape
    if not (0 < step.height <= MAX_SIDE and 0 < step.width <= MAX_SIDE):
        return f"height and width must be 1 to {MAX_SIDE}"
    if isinstance(step, Resize):
        if step.antialias and step.interpolation == "nearest":
            return "nearest has nothing to smooth: antialias is for linear and cubic"
        return None
    if -1 in (height, width):
        return f"{form} may be smaller or larger: put a resize before it" if isinstance(step, Crop | Pad) else None
    if isinstance(step, Crop):
        top, left = corner(step, height, width)
        inside = 0 <= top <= height - step.height and 0 <= left <= width - step.width
        return None if inside else f"{step.height}x{step.width} at {top}, {left} is not inside {form}"
    if step.height < height or step.width < width:
        return f"{step.height}x{step.width} is smaller than {form}"
    return None if math.isfinite(step.value) else "value must be finite"


def _signal_problem(step: Standardize | Frame | Window | LogMel, form: TensorForm) -> str | None:
    if not form.shape or form.shape[-1] < 1:
        return f"needs a last axis of one size, gets {form}"
    size = form.shape[-1]
    if isinstance(step, Standardize):
        if not (math.isfinite(step.epsilon) and step.epsilon > 0):
            return "epsilon must be positive and finite"
        if step.over == "all" and (len(form.shape) < 2 or -1 in form.shape[1:]):
            return f"over all needs a batch axis and others of one size, gets {form}"
    if isinstance(step, Frame) and not (1 <= step.length <= size and step.hop >= 1):
        return f"length must be 1 to {size} for {form}, hop at least 1"
    if isinstance(step, LogMel):
        fft, high = filters.log_mel_limits(step, size)
        if not (size <= fft <= MAX_SIDE):
            return f"fft must be {size} to {MAX_SIDE} for {form}"
        if not (0 <= step.low_hz < high <= step.rate_hz / 2) or step.floor <= 0:
            return f"low_hz, high_hz and half of rate_hz must rise, floor be positive: {step.low_hz:g}, {high:g}"
        if not step.mels >= 1 or (size + step.mels) * (fft // 2 + 1) > _MAX_WEIGHTS:
            return "mels must be at least 1, and the filters of sane size"
        if not filters.log_mel(step, size)[2].any(axis=0).all():
            return f"{step.mels} bands are narrower than what {fft} points resolve: fewer mels, or a larger fft"
    return None


def _after(step: Step, form: TensorForm) -> TensorForm:
    dtype, shape = form
    if isinstance(step, Cast):
        return TensorForm("float32", shape)
    if isinstance(step, Layout):
        return TensorForm(dtype, tuple(shape[axis] for axis in LAYOUT_AXES[step.change]))
    if isinstance(step, Resize | Crop | Pad):
        return TensorForm(dtype, (shape[0], step.height, step.width, shape[3]))
    if isinstance(step, Reshape):
        return TensorForm(dtype, step.shape)
    if isinstance(step, Frame):
        return TensorForm(dtype, (*shape[:-1], *frame_places(step, shape[-1]).shape))
    if isinstance(step, LogMel):
        return TensorForm(dtype, (*shape[:-1], step.mels))
    return form


def _refusal(where: str, step: Step | ResultStep, problem: str) -> EdgeopsError:
    kind = type(step).__struct_config__.tag
    return EdgeopsError("E-HANDOVER-STEP", f"{where} {kind!r}: {problem}", "Correct it in handover.toml.")
