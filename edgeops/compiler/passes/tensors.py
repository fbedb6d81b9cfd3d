"""Every tensor inside an artifact: the layers that write it, and its values on samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeops.compiler import graphs
from edgeops.compiler.explain import Layer
from edgeops.compiler.passes import refuse, tflite
from edgeops.compiler.passes.onnx_quantize import name_nodes
from edgeops.compiler.passes.openvino import IR_NAME
from edgeops.compiler.passes.running import run_artifact
from edgeops.runtimes.litert_backend import ends

# The quantizer's name for what stands for a tensor after int8.
_DEQUANTIZED = "_DequantizeLinear_Output"
# The TFLite quantizer's name for an int8 copy of a tensor.
_QUANTIZED = "_quantized"
_NO_LAYER = ("Parameter", "Constant", "Result", "FakeQuantize", "Convert")

Values = dict[str, NDArray[Any]]


class Graph(Protocol):
    """An artifact that can be looked into.

    Tensors have names that the artifacts of one source share, as far as they have a tensor in common.
    """

    @property
    def layers(self) -> Sequence[Layer]:
        """Its operators in topological order, apart from constants and quantizers."""

    @property
    def ends(self) -> Sequence[str]:
        """The tensors that are its outputs."""

    @property
    def tensors(self) -> frozenset[str]:
        """What `values` can be asked for."""

    def values(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> Values:
        """Run it; return tensor → [n, *shape] as real numbers, as later layers read it.

        Args:
            names: Of `tensors`.
            feeds: Input → [n, *shape].

        Raises:
            EdgeopsError: E-COMPILE-CANDIDATE; the runtime refuses the artifact with these tensors as outputs.
        """


def look_into(runtime: str, folder: Path, notes: Mapping[str, Any], scratch: Path) -> Graph:
    """Open an artifact of `runtime` in `folder`; `scratch` is a folder for what has to be written."""
    if runtime == "openvino":
        return _OpenVinoGraph(folder, notes)
    if runtime in ("litert", "mcu"):
        return _LiteRtGraph(folder, notes)
    return _OnnxGraph(folder, scratch)


class _OnnxGraph:
    def __init__(self, folder: Path, scratch: Path) -> None:
        self._model, self._scratch = graphs.load(folder), scratch
        name_nodes(self._model)
        nodes = self._model.graph.node
        self.layers = [Layer(node.name, node.op_type, tuple(node.input), tuple(node.output)) for node in nodes]
        self.ends = [item.name for item in self._model.graph.output]
        written = dict.fromkeys(name for node in nodes for name in node.output if name)
        # Where int8 stands for a tensor, later layers read what is dequantized from it.
        self._own = {name: name + _DEQUANTIZED if name + _DEQUANTIZED in written else name for name in written}
        self._own |= {name.removesuffix(_DEQUANTIZED): name for name in written if name.endswith(_DEQUANTIZED)}
        self._own |= {name: name for name in self.ends}
        self.tensors = frozenset(self._own)

    def values(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> Values:
        import onnx

        outputs = self._model.graph.output
        more = dict.fromkeys(self._own[name] for name in names if self._own[name] not in self.ends)
        outputs.extend(onnx.ValueInfoProto(name=name) for name in more)
        path = self._scratch / "all-outputs.onnx"
        graphs.save(self._model, self._scratch, path.name)
        del outputs[len(outputs) - len(more) :]
        try:
            found = run_artifact("onnxruntime", path, feeds)
        finally:
            path.unlink()
        return {name: found[self._own[name]] for name in names}


class _OpenVinoGraph:
    def __init__(self, folder: Path, notes: Mapping[str, Any]) -> None:
        import openvino

        self._path = folder / IR_NAME
        self._model = openvino.Core().read_model(self._path)
        self._float_layers: Mapping[str, str] | None = notes.get("float_layers")
        self._sources: Mapping[str, str] = notes.get("source_tensors", {})
        operators = self._model.get_ordered_ops()
        self._ports = {name: output for one in operators for output, name in self._written(one)}
        self.layers = [
            Layer(
                name=next((name for _, name in self._written(one)), one.get_friendly_name()),
                operator=one.get_type_name(),
                reads=tuple(name for port in one.inputs() if (name := self._read(port)) is not None),
                writes=tuple(name for _, name in self._written(one)),
            )
            for one in operators
            if one.get_type_name() not in _NO_LAYER
        ]
        ends = (self._read(one.input(0)) for one in operators if one.get_type_name() == "Result")
        self.ends = [name for name in ends if name is not None]
        self.tensors = frozenset(self._ports)

    def _written(self, operator: Any) -> Iterator[tuple[Any, str]]:
        if operator.get_type_name() in _NO_LAYER:
            return
        own = operator.get_friendly_name()
        layer = own if self._float_layers is None else self._float_layers.get(own)
        if layer is not None:
            for index, output in enumerate(operator.outputs()):
                yield output, self._sources.get(f"{layer}:{index}", f"{layer}:{index}")

    def _read(self, port: Any) -> str | None:
        """Return the name of what a port reads, through quantizers and conversions; None: a constant or an input."""
        source = port.get_source_output()
        while source.get_node().get_type_name() in ("FakeQuantize", "Convert"):
            source = source.get_node().input_value(0)
        names = {output.get_index(): name for output, name in self._written(source.get_node())}
        return names.get(source.get_index())

    def values(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> Values:
        import openvino

        wanted = [_quantized(self._ports[name]) for name in names]
        asked = self._model.add_outputs(wanted)
        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        try:
            request = core.compile_model(self._model, "CPU", settings).create_infer_request()
            count = len(next(iter(feeds.values())))
            rows = []
            for index in range(count):
                request.infer({name: np.asarray(values[index]) for name, values in feeds.items()})
                rows.append([np.array(request.get_tensor(port).data) for port in asked])
        except RuntimeError as error:
            raise refuse(f"openvino: {' '.join(str(error).split())[:300]}") from error
        return {name: np.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _quantized(output: Any) -> Any:
    """Return what later layers read in place of a tensor: what its quantizer makes of it, where it has one."""
    for port in output.get_target_inputs():
        if port.get_node().get_type_name() == "FakeQuantize" and port.get_index() == 0:
            return port.get_node().output(0)
    return output


class _LiteRtGraph:
    def __init__(self, folder: Path, notes: Mapping[str, Any]) -> None:
        sources: Mapping[str, str] = notes.get("source_tensors", {})
        self._model, self._transposes = folder / tflite.MODEL_NAME, notes.get("input_transposes", {})
        self._interpreter = tflite.open_interpreter(self._model, every_tensor=True)
        self._details = {item["index"]: item for item in self._interpreter.get_tensor_details()}
        operators = tflite.operator_details(self._interpreter)
        self._interpreter.allocate_tensors()

        def names(indices: Any) -> tuple[str, ...]:
            return tuple(
                sources.get(self._details[index]["name"], self._details[index]["name"])
                for index in indices
                if index in self._details
            )

        written = {self._details[index]["name"]: index for one in operators for index in one["outputs"]}
        # Where int8 stands for a tensor, later layers read that.
        self._indices = {
            sources.get(name, name): written.get(name + _QUANTIZED, index) for name, index in written.items()
        }
        self.layers = [
            Layer(names(one["outputs"])[0], one["op_name"], names(one["inputs"]), names(one["outputs"]))
            for one in operators
        ]
        self.ends = [sources.get(item["name"], item["name"]) for item in self._interpreter.get_output_details()]
        self.tensors = frozenset(self._indices)

    def values(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> Values:
        inputs, _ = ends(self._interpreter)
        feeds = tflite.turned(self._model, feeds, self._transposes)
        rows = []
        try:
            for index in range(len(next(iter(feeds.values())))):
                for name, detail in inputs:
                    self._interpreter.set_tensor(
                        detail["index"], tflite.to_stored(np.asarray(feeds[name][index]), detail)
                    )
                self._interpreter.invoke()
                rows.append([self._interpreter.get_tensor(self._indices[name]) for name in names])
        except (RuntimeError, ValueError, KeyError) as error:
            raise refuse(f"litert: {' '.join(str(error).split())[:300]}") from error
        return {
            name: tflite.to_real(np.stack(column), self._details[self._indices[name]])
            for name, column in zip(names, zip(*rows, strict=True), strict=True)
        }
