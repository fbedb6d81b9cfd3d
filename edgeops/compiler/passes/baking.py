"""Declared steps as nodes of the graph: before the model's inputs, and behind its outputs.

What is linear is a matrix product: every runtime has that, and the constants say exactly which interpolation,
transform or filter it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.compiler import graphs
from edgeops.compiler.passes import Outcome, Work, refuse
from edgeops.compiler.passes.running import ONNX_MODULES
from edgeops.contracts.handover import (
    ArgMax,
    Cast,
    ChannelOrder,
    Crop,
    Frame,
    Input,
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
    Window,
)
from edgeops.contracts.wire import Wire
from edgeops.runtimes import filters
from edgeops.runtimes.steps import LAYOUT_AXES, TensorForm, corner, frame_places, propagate


class BakedOutput(Wire, frozen=True, kw_only=True):
    """An output: the model's own, the artifact's name for it, and the steps between them."""

    model_output: str
    artifact_output: str
    steps: tuple[ResultStep, ...] = ()


class Bake:
    """Put the declared steps before and behind the graph: it takes what devices send and gives what they get."""

    tools = ("onnx", "numpy")
    requires: frozenset[str] = frozenset({"onnx"})
    ensures = frozenset({"onnx", "baked"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return ONNX_MODULES

    def run(self, work: Work) -> Outcome:
        """Parameters: `inputs`, the hand-over's inputs, their `agent` steps done; `outputs`, `BakedOutput`s, or none.

        The graph's inputs get the device's names; an output of its own steps gets its `artifact_output`.
        """
        import onnx

        model = graphs.load(work.source)
        inputs = msgspec.convert(work.parameters["inputs"], tuple[Input, ...])
        device_names = {spec.name for spec in inputs}
        fed = {spec.model_input or spec.name: spec for spec in inputs}
        # A device's name may be that of any inner tensor.
        outputs = {item.name for item in model.graph.output}
        graphs.rename_tensors(
            model.graph,
            lambda name: (
                graphs.OWN_PREFIX + name if name in fed or (name in device_names and name not in outputs) else name
            ),
        )
        nodes: list[Any] = []
        for name, spec in fed.items():
            baker = Baker(model.graph, graphs.OWN_PREFIX + name, spec.name)
            form = TensorForm(spec.dtype, spec.shape)
            for step in spec.preprocess:
                baker.step(step, form)
                form = propagate((step,), form, where=spec.name)
            nodes += baker.end()
        nodes_after = _results(model, msgspec.convert(work.parameters.get("outputs", ()), tuple[BakedOutput, ...]))
        order = [graphs.OWN_PREFIX + name for name in fed]
        kept = [item for item in model.graph.input if item.name not in order]
        old = list(model.graph.node)
        for items in (model.graph.input, model.graph.node):
            del items[:]
        model.graph.input.extend(
            [
                onnx.helper.make_tensor_value_info(
                    spec.name,
                    onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)),
                    [None] * len(spec.shape) if "free-inputs" in work.facts else spec.shape,
                )
                for spec in inputs
            ]
            + kept
        )
        model.graph.node.extend(nodes + old + nodes_after)
        if clash := device_names & outputs:
            raise refuse(f"input and output share the name {sorted(clash)}", "Give the input another name.")
        graphs.save(onnx.shape_inference.infer_shapes(model), work.target)
        return Outcome(work.facts | {"baked"}, dict(work.notes))


def _results(model: Any, outputs: tuple[BakedOutput, ...]) -> list[Any]:
    """Return the nodes of all outputs' steps, and put the artifact's outputs in the place of the model's.

    Args:
        model: Changed: its outputs, and constants of the nodes.
        outputs: What the artifact gives, in order; empty: what the model gives.
    """
    import onnx

    nodes: list[Any] = []
    if not outputs:
        return nodes
    own = {item.name: onnx.ValueInfoProto.FromString(item.SerializeToString()) for item in model.graph.output}
    del model.graph.output[:]
    for output in outputs:
        if not output.steps:
            if output.model_output not in {item.name for item in model.graph.output}:
                model.graph.output.append(own[output.model_output])
            continue
        baker = Baker(model.graph, output.artifact_output, output.model_output)
        for step in output.steps:
            baker.result(step)
        nodes += baker.end()
        described = onnx.ValueInfoProto.FromString(own[output.model_output].SerializeToString())
        described.name = output.artifact_output
        tensor = described.type.tensor_type
        integers = not isinstance(output.steps[-1], Softmax) and getattr(output.steps[-1], "give", "") != "values"
        tensor.elem_type = onnx.TensorProto.INT32 if integers else tensor.elem_type
        if len(tensor.shape.dim) and not isinstance(output.steps[-1], Softmax):
            tensor.shape.dim[-1].dim_value = getattr(output.steps[-1], "k", 1)
        model.graph.output.append(described)
    return nodes


class Baker:
    """Writes the nodes of one tensor's steps.

    Args:
        graph: Gets the constants.
        end: The tensor that the steps end in.
        start: The tensor that they begin with.
    """

    def __init__(self, graph: Any, end: str, start: str) -> None:
        self._nodes: list[Any] = []
        self._graph = graph
        self._end = end
        self._current = start

    def end(self) -> list[Any]:
        """Return all nodes; the last writes the end."""
        self._node("Identity", [])
        self._nodes[-1].output[0] = self._end
        return self._nodes

    def step(self, step: Step, form: TensorForm) -> None:
        """Write a step on an input; `form` is what reaches it."""
        if isinstance(step, Cast):
            self._node("Cast", [], to=1)
        elif isinstance(step, Scale):
            self._node("Mul", [np.float32(step.by)])
            if step.offset:
                self._node("Add", [np.float32(step.offset)])
        elif isinstance(step, Normalize):
            mean, std = np.asarray(step.mean, np.float64), np.asarray(step.std, np.float64)
            self._node("Mul", [(1 / std).astype(np.float32)])
            self._node("Add", [(-mean / std).astype(np.float32)])
        elif isinstance(step, ChannelOrder):
            self._node("Gather", [np.asarray(step.order, np.int64)], axis=-1)
        elif isinstance(step, Layout):
            self._node("Transpose", [], perm=LAYOUT_AXES[step.change])
        elif isinstance(step, Resize):
            self._resize(step, form)
        elif isinstance(step, Crop):
            begin = np.asarray(corner(step, form.shape[1], form.shape[2]), np.int64)
            end = begin + np.asarray((step.height, step.width), np.int64)
            self._node("Slice", [begin, end, np.asarray((1, 2), np.int64)])
        elif isinstance(step, Pad):
            more = (0, 0, 0, 0, 0, step.height - form.shape[1], step.width - form.shape[2], 0)
            self._node("Pad", [np.asarray(more, np.int64), np.float32(step.value)], mode="constant")
        elif isinstance(step, Reshape):
            self._reshape(step.shape)
        elif isinstance(step, Standardize):
            self._standardize(step, form)
        elif isinstance(step, Frame):
            self._node("Gather", [frame_places(step, form.shape[-1])], axis=-1)
        elif isinstance(step, Window):
            self._node("Mul", [filters.window(step.function, form.shape[-1])])
        elif isinstance(step, LogMel):
            cosines, sines, bands = filters.log_mel(step, form.shape[-1])
            sound = self._current
            powers = []
            for part in (cosines, sines):
                self._current = sound
                self._node("MatMul", [part])
                powers.append(self._square())
            self._join("Add", *powers)
            self._node("MatMul", [bands])
            self._node("Max", [np.float32(step.floor)])
            self._node("Log", [])

    def result(self, step: ResultStep) -> None:
        """Write a step on an output."""
        if isinstance(step, Softmax):
            self._node("Softmax", [], axis=-1)
        elif isinstance(step, ArgMax):
            self._node("ArgMax", [], axis=-1, keepdims=1)
            self._node("Cast", [], to=6)
        else:
            self._node("TopK", [np.asarray([step.k], np.int64)], axis=-1, largest=1, sorted=1)
            values = self._current
            numbers = f"{values}/numbers"
            self._nodes[-1].output.append(numbers)
            self._current = numbers if step.give == "classes" else values
            if step.give == "classes":
                self._node("Cast", [], to=6)

    def _resize(self, step: Resize, form: TensorForm) -> None:
        batch, height, width, channels = form.shape
        # Channels first: every runtime resizes that form, and a product runs over the last axis.
        self._node("Transpose", [], perm=(0, 3, 1, 2))
        if step.interpolation != "cubic" and not step.antialias:
            sizes = np.asarray((batch, channels, step.height, step.width), np.int64)
            mode = {"nearest_mode": "round_prefer_floor"} if step.interpolation == "nearest" else {}
            self._node("Resize", [None, None, sizes], mode=step.interpolation, **mode)
            self._node("Transpose", [], perm=(0, 2, 3, 1))
            return
        for old, new, turn in ((width, step.width, (0, 1, 3, 2)), (height, step.height, (0, 3, 2, 1))):
            weights = filters.resize_weights(old, new, step.interpolation, antialias=step.antialias)
            self._node("MatMul", [np.ascontiguousarray(weights.T)])
            self._node("Transpose", [], perm=turn)

    def _standardize(self, step: Standardize, form: TensorForm) -> None:
        size = form.shape[-1]
        if step.over == "all":
            size = math.prod(form.shape[1:])
            self._reshape((form.shape[0], size))
        # Means as products: the reduction operators changed their form between opsets.
        share = np.full((size, 1), 1 / size, np.float32)
        values = self._current
        self._node("MatMul", [share])
        self._join("Sub", values, self._current)
        centred = self._current
        self._square()
        self._node("MatMul", [share])
        self._node("Add", [np.float32(step.epsilon)])
        self._node("Sqrt", [])
        self._join("Div", centred, self._current)
        if step.over == "all":
            self._reshape(form.shape)

    def _reshape(self, shape: tuple[int, ...]) -> None:
        self._node("Reshape", [np.asarray(shape, np.int64)])

    def _square(self) -> str:
        self._join("Mul", self._current, self._current)
        return self._current

    def _join(self, op: str, *inputs: str) -> None:
        import onnx

        base = f"{self._prefix}/{len(self._nodes)}"
        self._nodes.append(onnx.helper.make_node(op, inputs, [base], name=base))
        self._current = base

    def _node(self, op: str, constants: list[NDArray[Any] | np.generic | None], **attributes: Any) -> None:
        import onnx

        base = f"{self._prefix}/{len(self._nodes)}"
        names = []
        for index, constant in enumerate(constants):
            names.append("" if constant is None else f"{base}/c{index}")
            if constant is not None:
                self._graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(constant), names[-1]))
        self._nodes.append(onnx.helper.make_node(op, [self._current, *names], [base], name=base, **attributes))
        self._current = base

    @property
    def _prefix(self) -> str:
        # Quantizers know the nodes that are not the model's by their names.
        return self._end if self._end.startswith(graphs.OWN_PREFIX) else graphs.OWN_PREFIX + self._end
