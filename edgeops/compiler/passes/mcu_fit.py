"""Say a float TFLite graph in the few operators that a microcontroller's blob has; its answers stay the same.

What a converter leaves around convolutions and products is written into them: layouts, factors and offsets of channels,
activations. A mean over a whole picture becomes a pool. What is left and is none of the blob's operators is refused by
the pass that makes the blob.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.compiler.passes import Outcome, Work, refuse, tflite
from edgeops.compiler.passes.flatmodel import FlatModel
from edgeops.compiler.passes.running import few_samples, run_artifact

_VIEWS = ("RESHAPE", "TRANSPOSE", "EXPAND_DIMS", "SQUEEZE")
_OPTIONS = {"CONV_2D": "Conv2DOptions", "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions"}
_FUSING = (*_OPTIONS, "FULLY_CONNECTED", "ADD")
_WEIGHTED = (*_OPTIONS, "FULLY_CONNECTED")
_ACTIVATIONS = ("RELU", "RELU6")
_AFFINE = ("MUL", "ADD", "SUB")
_MAX_RANK = 5
# Sums are taken in another order: float32 holds seven digits.
_SAME_GRAPH_RELATIVE = 1e-4


class McuFit:
    """Write layouts, channels' factors and offsets, and activations into convolutions and products."""

    tools = ("ai-edge-litert", "flatbuffers", "numpy")
    requires: frozenset[str] = frozenset({"tflite", "baked"})
    ensures = frozenset({"tflite", "baked", "mcu-operators"})

    def run(self, work: Work) -> Outcome:
        """Rewrite. Input: `samples`. Notes: `input_transposes`, artifact input → axes that bring a device's into order.

        Raises:
            EdgeopsError: E-COMPILE-CANDIDATE; the graph would not answer as before.
        """
        source, target = work.source / tflite.MODEL_NAME, work.target / tflite.MODEL_NAME
        model = FlatModel.read(source)
        turned = fit(model)
        model.write(target)
        samples = few_samples(work.inputs["samples"])
        before = run_artifact("litert", source, samples)
        after = run_artifact("litert", target, tflite.turned(target, samples, turned))
        for name, reference in before.items():
            scale = float(np.abs(reference.astype(np.float64)).max(initial=0)) or 1.0
            error = float(np.abs(after[name].astype(np.float64) - reference).max(initial=0))
            if not error <= _SAME_GRAPH_RELATIVE * scale:
                raise refuse(f"fitting the graph to a microcontroller changed output {name!r} by {error:g}")
        return Outcome(work.facts | {"mcu-operators"}, {**work.notes, "input_transposes": turned})


def fit(model: FlatModel) -> dict[str, list[int]]:
    """Rewrite a float model in place.

    Returns:
        Input → the order of its axes in which it is now wanted, where that is another.
    """
    _fold_affine(model)
    _lift_activations(model)
    _fold_forward(model)
    _pool_means(model)
    turned = _straighten(model)
    _drop_dead(model)
    return turned


class _View:
    """Where a tensor's elements come from.

    Args:
        base: The tensor that an operator computed, or an input.
        order: Of the tensor's shape: for each element its place in the flattened base.
        alone: Nothing but the way from the base to the tensor reads what lies on it.
    """

    def __init__(self, base: int, order: NDArray[np.intp], alone: bool) -> None:
        self.base, self.order, self.alone = base, order, alone

    @property
    def straight(self) -> bool:
        """Whether the elements are in the base's own order."""
        return bool((self.order.ravel() == np.arange(self.order.size)).all())


def _view(model: FlatModel, tensor: int) -> _View:
    chain: list[Any] = []
    alone = True
    base = tensor
    while (one := model.writer(base)) is not None and model.kind(one) in _VIEWS:
        alone = alone and model.only_reader(base) is not None
        chain.append(one)
        base = int(one.inputs[0])
    alone = alone and model.only_reader(base) is not None
    order = np.arange(int(np.prod(model.shape(base), dtype=np.int64))).reshape(model.shape(base))
    for one in reversed(chain):
        axes = model.constant(int(one.inputs[1])) if model.kind(one) == "TRANSPOSE" else None
        order = order.transpose(axes) if axes is not None else order.reshape(model.shape(int(one.outputs[0])))
    return _View(base, order, alone)


def _lift_activations(model: FlatModel) -> None:
    for one in list(model.graph.operators):
        if model.kind(one) not in _ACTIVATIONS:
            continue
        view = _view(model, int(one.inputs[0]))
        writer = model.writer(view.base)
        if writer is None or not view.alone or not _free_to_fuse(model, writer):
            continue
        writer.builtinOptions.fusedActivationFunction = model.enum("ActivationFunctionType", model.kind(one))
        model.replace_reads(int(one.outputs[0]), int(one.inputs[0]))
        model.graph.operators.remove(one)


def _free_to_fuse(model: FlatModel, one: Any) -> bool:
    return model.kind(one) in _FUSING and one.builtinOptions.fusedActivationFunction == 0


def _fold_affine(model: FlatModel) -> None:
    for one in list(model.graph.operators):
        if model.kind(one) not in _AFFINE or one.builtinOptions.fusedActivationFunction != 0:
            continue
        constants = [model.constant(int(index)) for index in one.inputs]
        if len(constants) != 2 or (constants[0] is None) == (constants[1] is None):
            continue
        place = 0 if constants[1] is not None else 1
        if place == 1 and model.kind(one) == "SUB":
            continue
        constant = constants[1 - place]
        assert constant is not None
        tensor = int(one.inputs[place])
        view = _view(model, tensor)
        channels = _per_channel(model, view, constant)
        if channels is None or not view.alone or model.shape(tensor) != model.shape(int(one.outputs[0])):
            continue
        factor, offset = np.ones_like(channels), np.zeros_like(channels)
        if model.kind(one) == "MUL":
            factor = channels
        else:
            offset = channels if model.kind(one) == "ADD" else -channels
        model.replace_reads(int(one.outputs[0]), tensor)
        place_in_order = model.graph.operators.index(one)
        model.graph.operators.remove(one)
        writer = model.writer(view.base)
        if writer is not None and model.kind(writer) in _WEIGHTED and _free_to_fuse(model, writer):
            _scale_outputs(model, writer, factor, offset)
        else:
            _insert_affine(model, view.base, factor, offset, place_in_order)


def _per_channel(model: FlatModel, view: _View, constant: NDArray[Any]) -> NDArray[np.float64] | None:
    """Return a constant as one value for each channel of the base, its last axis; None where it is not that."""
    shape = model.shape(view.base)
    if not shape or constant.dtype.kind != "f":
        return None
    try:
        spread = np.broadcast_to(constant, view.order.shape)
    except ValueError:
        return None
    values = np.empty(view.order.size, np.float64)
    values[view.order.ravel()] = spread.ravel()
    rows = values.reshape(-1, shape[-1])
    return rows[0].copy() if (rows == rows[0]).all() else None


def _scale_outputs(model: FlatModel, one: Any, factor: NDArray[Any], offset: NDArray[Any]) -> None:
    weights, bias = _weights(model, one)
    along = [1] * weights.ndim
    along[-1 if model.kind(one) == "DEPTHWISE_CONV_2D" else 0] = -1
    _set_weights(model, one, weights * factor.reshape(along), bias * factor + offset)


def _weights(model: FlatModel, one: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    weights = model.constant(int(one.inputs[1]))
    if weights is None:
        raise refuse(f"the weights of {model.name(int(one.outputs[0]))!r} are not constant")
    bias = model.constant(int(one.inputs[2])) if len(one.inputs) > 2 else None
    channels = weights.shape[-1 if model.kind(one) == "DEPTHWISE_CONV_2D" else 0]
    return weights.astype(np.float64), np.zeros(channels) if bias is None else bias.astype(np.float64)


def _set_weights(model: FlatModel, one: Any, weights: NDArray[Any], bias: NDArray[Any]) -> None:
    name = model.name(int(one.outputs[0]))
    kept = model.add_constant(f"{name}_mcu_weights", weights.astype(np.float32))
    offsets = model.add_constant(f"{name}_mcu_bias", bias.astype(np.float32))
    one.inputs = np.asarray([one.inputs[0], kept, offsets], np.int32)


def _insert_affine(model: FlatModel, base: int, factor: NDArray[Any], offset: NDArray[Any], place: int) -> None:
    """Put a convolution of one by one, each channel by itself, behind a tensor."""
    shape = model.shape(base)
    picture = shape if len(shape) == 4 else (1, 1, int(np.prod(shape[:-1], dtype=np.int64)), shape[-1])
    name = model.name(base)
    readers = model.readers(base)
    computed = model.add_tensor(f"{name}_mcu_affine", picture)
    source, result = base, computed
    made = []
    if picture != shape:
        source = model.add_tensor(f"{name}_mcu_picture", picture)
        result = model.add_tensor(f"{name}_mcu_rows", shape)
        made.append(_reshape(model, base, source))
    options = model.options(
        "DepthwiseConv2DOptions", padding=model.enum("Padding", "VALID"), strideW=1, strideH=1, depthMultiplier=1,
        fusedActivationFunction=0, dilationWFactor=1, dilationHFactor=1,
    )  # fmt: skip
    one = model.operator("DEPTHWISE_CONV_2D", [source], [computed], options)
    _set_weights(model, one, factor.reshape(1, 1, 1, -1), offset)
    made.append(one)
    if result != computed:
        made.append(_reshape(model, computed, result))
    for reader in readers:
        reader.inputs = np.asarray([result if index == base else index for index in reader.inputs], np.int32)
    # Behind what writes the base, before all that reads it.
    first = min((model.graph.operators.index(reader) for reader in readers), default=place)
    model.graph.operators[first:first] = made


def _reshape(model: FlatModel, source: int, target: int) -> Any:
    shape = np.asarray(model.shape(target), np.int32)
    constant = model.add_constant(f"{model.name(target)}_mcu_shape", shape)
    return model.operator("RESHAPE", [source, constant], [target], model.options("ReshapeOptions", newShape=shape))


def _fold_forward(model: FlatModel) -> None:
    """Write factors and offsets of channels into the convolution or product that follows, where that is exact."""
    for one in list(model.graph.operators):
        if not _is_affine(model, one):
            continue
        output = int(one.outputs[0])
        for reader in list(model.graph.operators):
            if model.kind(reader) not in ("CONV_2D", "FULLY_CONNECTED"):
                continue
            view = _view(model, int(reader.inputs[0]))
            if view.base == output and view.alone and _fold_into(model, one, reader, view):
                break


def _is_affine(model: FlatModel, one: Any) -> bool:
    if model.kind(one) != "DEPTHWISE_CONV_2D" or not _free_to_fuse(model, one):
        return False
    options = one.builtinOptions
    single = (options.strideW, options.strideH, options.depthMultiplier) == (1, 1, 1)
    return single and _weights(model, one)[0].shape[:3] == (1, 1, 1)


def _fold_into(model: FlatModel, one: Any, reader: Any, view: _View) -> bool:
    factor, offset = _weights(model, one)
    factor = factor.ravel()
    weights, bias = _weights(model, reader)
    if model.kind(reader) == "FULLY_CONNECTED":
        channel = view.order.ravel() % factor.size
        scaled, added = weights * factor[channel], weights @ offset[channel]
    else:
        padded = model.shape(int(reader.inputs[0]))[1:3] != _unpadded(model, reader)
        if view.order.shape[-1] != factor.size or not view.straight or (padded and offset.any()):
            return False
        scaled, added = weights * factor, (weights * offset).sum((1, 2, 3))
    _set_weights(model, reader, scaled, bias + added)
    model.replace_reads(int(one.outputs[0]), int(one.inputs[0]))
    model.graph.operators.remove(one)
    return True


def _unpadded(model: FlatModel, one: Any) -> tuple[int, ...]:
    """Return the input's height and width with which a convolution needs no padding."""
    options, kernel = one.builtinOptions, _weights(model, one)[0].shape[1:3]
    strides = (options.strideH, options.strideW)
    dilations = (options.dilationHFactor, options.dilationWFactor)
    out = model.shape(int(one.outputs[0]))[1:3]
    if options.padding == model.enum("Padding", "VALID"):
        return model.shape(int(one.inputs[0]))[1:3]
    return tuple(
        (size - 1) * stride + (width - 1) * dilation + 1
        for size, stride, width, dilation in zip(out, strides, kernel, dilations, strict=True)
    )


def _pool_means(model: FlatModel) -> None:
    for one in list(model.graph.operators):
        axes = model.constant(int(one.inputs[1])) if model.kind(one) == "MEAN" else None
        if axes is None:
            continue
        view = _view(model, int(one.inputs[0]))
        shape = model.shape(view.base)
        if len(shape) != 4 or shape[0] != 1 or not _is_mean_of_picture(view, axes, shape):
            continue
        output = int(one.outputs[0])
        pooled = model.add_tensor(f"{model.name(output)}_mcu_pooled", (1, 1, 1, shape[3]))
        options = model.options(
            "Pool2DOptions", padding=model.enum("Padding", "VALID"), strideW=1, strideH=1, filterHeight=shape[1],
            filterWidth=shape[2], fusedActivationFunction=0,
        )  # fmt: skip
        place = model.graph.operators.index(one)
        model.graph.operators[place : place + 1] = [
            model.operator("AVERAGE_POOL_2D", [view.base], [pooled], options),
            _reshape(model, pooled, output),
        ]


def _is_mean_of_picture(view: _View, axes: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Say whether each mean is over all places of one channel, the channels in their order."""
    along = tuple(sorted(int(axis) % view.order.ndim for axis in axes.ravel()))
    kept = [axis for axis in range(view.order.ndim) if axis not in along]
    groups = view.order.transpose(*kept, *along).reshape(-1, int(np.prod([view.order.shape[axis] for axis in along])))
    wanted = np.arange(int(np.prod(shape))).reshape(-1, shape[3]).T
    return groups.shape == wanted.shape and bool((np.sort(groups, axis=1) == wanted).all())


def _straighten(model: FlatModel) -> dict[str, list[int]]:
    """Let every computing operator read its data in the order in which they were computed."""
    turned: dict[str, list[int]] = {}
    for one in list(model.graph.operators):
        if model.kind(one) in _VIEWS:
            continue
        for place, tensor in enumerate([int(index) for index in one.inputs]):
            if tensor < 0 or model.constant(tensor) is not None:
                continue
            view = _view(model, tensor)
            if view.base == tensor:
                continue
            if not view.straight and model.kind(one) == "FULLY_CONNECTED" and place == 0:
                weights, bias = _weights(model, one)
                straight = np.empty_like(weights)
                straight[:, view.order.ravel()] = weights
                _set_weights(model, one, straight, bias)
            elif not view.straight:
                axes = _input_axes(model, view)
                if axes is None:
                    continue
                turned[model.name(view.base)] = axes
                model.set_shape(view.base, view.order.shape)
            _read_straight(model, one, place, view, model.shape(tensor))
    for place, tensor in enumerate([int(index) for index in model.graph.outputs]):
        _shorten_output(model, place, tensor)
    return turned


def _input_axes(model: FlatModel, view: _View) -> list[int] | None:
    """Return the order of an input's axes that gives the view's elements; None where it is no input, or none does."""
    shape = model.shape(view.base)
    if view.base not in model.graph.inputs or not view.alone or len(shape) > _MAX_RANK or shape[0] != 1:
        return None
    plain = np.arange(view.order.size).reshape(shape)
    for axes in itertools.permutations(range(1, len(shape))):
        if (plain.transpose(0, *axes).ravel() == view.order.ravel()).all():
            return [0, *axes]
    return None


def _read_straight(model: FlatModel, one: Any, place: int, view: _View, shape: tuple[int, ...]) -> None:
    source = view.base
    if model.shape(source) != shape:
        source = model.add_tensor(f"{model.name(int(one.inputs[place]))}_mcu_straight", shape)
        model.graph.operators.insert(model.graph.operators.index(one), _reshape(model, view.base, source))
    inputs = [int(index) for index in one.inputs]
    inputs[place] = source
    one.inputs = np.asarray(inputs, np.int32)


def _shorten_output(model: FlatModel, place: int, tensor: int) -> None:
    """Let an output that only has another shape than what was computed be one reshape away from it, or none."""
    view = _view(model, tensor)
    writer = model.writer(tensor)
    if writer is None or view.base == tensor or not view.straight or int(writer.inputs[0]) == view.base:
        return
    place_in_order = model.graph.operators.index(writer)
    model.graph.operators[place_in_order] = _reshape(model, view.base, tensor)


def _drop_dead(model: FlatModel) -> None:
    while True:
        read = {int(index) for one in model.graph.operators for index in one.inputs}
        read |= {int(index) for index in model.graph.outputs}
        live = [one for one in model.graph.operators if read.intersection(int(index) for index in one.outputs)]
        if len(live) == len(model.graph.operators):
            return
        model.graph.operators = live
