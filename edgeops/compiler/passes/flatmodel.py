"""A TFLite model as a graph that can be changed: one subgraph, its operators in order, its constants as arrays."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.compiler.passes import refuse

_MARK = b"TFL3"
FLOAT32, INT32, INT8 = 0, 2, 9
_DTYPES: dict[int, np.dtype[Any]] = {FLOAT32: np.dtype("<f4"), INT32: np.dtype("<i4"), INT8: np.dtype("i1")}
_OPTIONAL = -1


class FlatModel:
    """A model in memory.

    Args:
        data: The file's bytes.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; it is no TFLite model, or has not exactly one subgraph.
    """

    def __init__(self, data: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        if data[4:8] != _MARK:
            raise refuse("this is no TFLite model")
        self._schema = schema
        self._names: dict[int, str] = {
            value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()
        }
        try:
            self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
        except (struct.error, ValueError, IndexError, TypeError, AttributeError) as error:
            raise refuse(f"this TFLite model is damaged: {error}") from error
        graphs = self.model.subgraphs or []
        if len(graphs) != 1:
            held = [self.kind(one) for graph in graphs for one in graph.operators or []].count("VAR_HANDLE")
            state = f" and keeps state in {held} variables (VAR_HANDLE)" if held else ""
            raise refuse(f"the model has {len(graphs)} subgraphs{state}; a blob is one subgraph without state")
        self.graph = graphs[0]

    @classmethod
    def read(cls, path: Path) -> FlatModel:
        """Read a file; see the class."""
        return cls(path.read_bytes())

    def copy(self) -> FlatModel:
        """Return another model of the same content."""
        return FlatModel(self.packed())

    def write(self, path: Path) -> None:
        """Write the model; see `packed`."""
        path.write_bytes(self.packed())

    def packed(self) -> bytes:
        """Return the model as a file's bytes; what no operator names any more is left out."""
        import flatbuffers

        self._drop_unused()
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.model.Pack(builder), _MARK)
        return bytes(builder.Output())

    def kind(self, operator: Any) -> str:
        """Return an operator's name: CONV_2D."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        if number == self._schema.BuiltinOperator.CUSTOM:
            return f"CUSTOM {(code.customCode or b'').decode(errors='replace')}"
        return self._names.get(number, f"operator {number}")

    def version(self, operator: Any) -> int:
        """Return the version that an operator's code has."""
        return int(self.model.operatorCodes[operator.opcodeIndex].version)

    def operator(
        self, kind: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None, *, version: int = 1
    ) -> Any:
        """Return a new operator; it is not yet in the graph."""
        made = self._schema.OperatorT()
        made.inputs, made.outputs = np.asarray(inputs, np.int32), np.asarray(outputs, np.int32)
        made.opcodeIndex = self.code(kind, version)
        if options is not None:
            self.give_options(made, options)
        return made

    def give_options(self, operator: Any, options: Any) -> None:
        """Give an operator options; see `options`."""
        operator.builtinOptions = options
        operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, type(options).__name__.removesuffix("T"))

    def code(self, kind: str, version: int) -> int:
        """Return the index of an operator's code in a version; it is added where it is not there."""
        number = getattr(self._schema.BuiltinOperator, kind)
        for index, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number and code.version == version:
                return index
        made = self._schema.OperatorCodeT()
        made.builtinCode, made.deprecatedBuiltinCode, made.version = number, min(number, 127), version
        self.model.operatorCodes.append(made)
        return len(self.model.operatorCodes) - 1

    def options(self, name: str, **values: Any) -> Any:
        """Return options by the schema's name, `Pool2DOptions`, with attributes set."""
        made = getattr(self._schema, f"{name}T")()
        for attribute, value in values.items():
            setattr(made, attribute, value)
        return made

    def enum(self, name: str, value: str) -> int:
        """Return a value of an enumeration: `Padding`, `VALID`."""
        return int(getattr(getattr(self._schema, name), value))

    def name(self, tensor: int) -> str:
        """Return a tensor's name."""
        return bytes(self.graph.tensors[tensor].name or b"").decode(errors="replace")

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Return a tensor's shape; () for a scalar."""
        shape = self.graph.tensors[tensor].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def set_shape(self, tensor: int, shape: Sequence[int]) -> None:
        """Give a tensor another shape."""
        item = self.graph.tensors[tensor]
        item.shape = np.asarray(shape, np.int32)
        item.shapeSignature = None

    def constant(self, tensor: int) -> NDArray[Any] | None:
        """Return a tensor's values; None where it is no constant, or of a type that no weight has."""
        item = self.graph.tensors[tensor] if tensor != _OPTIONAL else None
        if item is None or item.type not in _DTYPES:
            return None
        data = self.model.buffers[item.buffer].data if item.buffer else None
        if data is None or len(data) == 0:
            return None
        return np.frombuffer(bytes(bytearray(data)), _DTYPES[item.type]).reshape(self.shape(tensor)).copy()

    def add_constant(self, name: str, values: NDArray[Any]) -> int:
        """Add a float32 or int32 constant; returns its tensor."""
        number = FLOAT32 if values.dtype.kind == "f" else INT32
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values, _DTYPES[number]).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor = self.add_tensor(name, values.shape, number)
        self.graph.tensors[tensor].buffer = len(self.model.buffers) - 1
        return tensor

    def add_tensor(self, name: str, shape: Sequence[int], number: int = FLOAT32) -> int:
        """Add a tensor without values; returns its index."""
        made = self._schema.TensorT()
        made.name, made.type, made.buffer = name.encode(), number, 0
        made.shape = np.asarray(shape, np.int32)
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def writer(self, tensor: int) -> Any | None:
        """Return the operator that writes a tensor."""
        return next((one for one in self.graph.operators if tensor in one.outputs), None)

    def readers(self, tensor: int) -> list[Any]:
        """Return the operators that read a tensor."""
        return [one for one in self.graph.operators if tensor in one.inputs]

    def only_reader(self, tensor: int) -> Any | None:
        """Return the one operator that reads a tensor; None where more do, or it is an output of the model."""
        readers = self.readers(tensor)
        return readers[0] if len(readers) == 1 and tensor not in self.graph.outputs else None

    def replace_reads(self, old: int, new: int) -> None:
        """Let everything that reads one tensor read another, the model's outputs too."""
        for one in self.graph.operators:
            one.inputs = np.asarray([new if index == old else index for index in one.inputs], np.int32)
        self.graph.outputs = np.asarray([new if index == old else index for index in self.graph.outputs], np.int32)
        for signature in self.model.signatureDefs or []:
            for end in signature.outputs or []:
                end.tensorIndex = new if end.tensorIndex == old else end.tensorIndex

    def _drop_unused(self) -> None:
        used = {int(index) for one in self.graph.operators for index in (*one.inputs, *one.outputs)}
        used |= {int(index) for index in (*self.graph.inputs, *self.graph.outputs)} - {_OPTIONAL}
        used.discard(_OPTIONAL)
        kept = sorted(used)
        places = {old: new for new, old in enumerate(kept)} | {_OPTIONAL: _OPTIONAL}
        self.graph.tensors = [self.graph.tensors[index] for index in kept]
        for one in self.graph.operators:
            one.inputs = np.asarray([places[int(index)] for index in one.inputs], np.int32)
            one.outputs = np.asarray([places[int(index)] for index in one.outputs], np.int32)
        self.graph.inputs = np.asarray([places[int(index)] for index in self.graph.inputs], np.int32)
        self.graph.outputs = np.asarray([places[int(index)] for index in self.graph.outputs], np.int32)
        for signature in self.model.signatureDefs or []:
            for end in (*(signature.inputs or []), *(signature.outputs or [])):
                end.tensorIndex = places[int(end.tensorIndex)]
        self._drop_unused_buffers()
        self._drop_unused_codes()

    def _drop_unused_buffers(self) -> None:
        named = {item.buffer for item in self.graph.tensors} | {item.buffer for item in self.model.metadata or []}
        kept = sorted({0} | named)
        places = {old: new for new, old in enumerate(kept)}
        self.model.buffers = [self.model.buffers[index] for index in kept]
        for item in (*self.graph.tensors, *(self.model.metadata or [])):
            item.buffer = places[item.buffer]

    def _drop_unused_codes(self) -> None:
        kept = sorted({one.opcodeIndex for one in self.graph.operators})
        places = {old: new for new, old in enumerate(kept)}
        self.model.operatorCodes = [self.model.operatorCodes[index] for index in kept]
        for one in self.graph.operators:
            one.opcodeIndex = places[one.opcodeIndex]
