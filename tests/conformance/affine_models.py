"""One small model in the form of each runtime: outputs `total` = a + b and `gap` = a - b, float32 [1, 4].

With `open_batch` the model leaves the size of its first axis open.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

SHAPE = (1, 4)


def file_name(*, open_batch: bool, signed: bool) -> str:
    """Return the name of a written model in `EDGEOPS_AFFINE_MODELS`."""
    return f"{'open' if open_batch else 'fixed'}{'-signed' if signed else ''}.tflite"


def write_onnx(path: Path, *, open_batch: bool = False) -> Path:
    from onnx import TensorProto, helper, save

    shape = ("n", *SHAPE[1:]) if open_batch else SHAPE
    tensors = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("a", "b", "total", "gap")
    }
    nodes = [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Sub", ["a", "b"], ["gap"])]
    graph = helper.make_graph(nodes, "affine", [tensors["a"], tensors["b"]], [tensors["total"], tensors["gap"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, path)
    return path


def write_openvino(path: Path, *, open_batch: bool = False) -> Path:
    import openvino

    source = write_onnx(path.with_suffix(".onnx"), open_batch=open_batch)
    openvino.save_model(openvino.Core().read_model(source), path, compress_to_fp16=False)
    source.unlink()
    return path


def write_tflite(path: Path, *, open_batch: bool = False, signature: dict[str, str] | None = None) -> Path:
    """`signature`: the model's one signature, its own names → those of the graph's tensors.

    Where the writer is not installed, as on an old stack, `EDGEOPS_AFFINE_MODELS` names a folder of such files.
    """
    if ready := os.environ.get("EDGEOPS_AFFINE_MODELS"):
        shutil.copyfile(Path(ready) / file_name(open_batch=open_batch, signed=signature is not None), path)
        return path
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str) -> schema.TensorT:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name.encode(), list(SHAPE), schema.TensorType.FLOAT32, 0
        if open_batch:
            made.shapeSignature = [-1, *SHAPE[1:]]
        return made

    def operator(opcode: int, inputs: list[int], outputs: list[int]) -> schema.OperatorT:
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = opcode, np.array(inputs, np.int32), np.array(outputs, np.int32)
        kind, options = (
            (schema.BuiltinOptions.AddOptions, schema.AddOptionsT()),
            (schema.BuiltinOptions.SubOptions, schema.SubOptionsT()),
        )[opcode]
        made.builtinOptionsType, made.builtinOptions = kind, options
        return made

    def code(builtin: int) -> schema.OperatorCodeT:
        made = schema.OperatorCodeT()
        made.builtinCode = made.deprecatedBuiltinCode = builtin
        made.version = 1
        return made

    graph = schema.SubGraphT()
    graph.name = b"affine"
    names = ["a", "b", "total", "gap"]
    graph.tensors = [tensor(name) for name in names]
    graph.inputs, graph.outputs = [0, 1], [2, 3]
    graph.operators = [operator(0, [0, 1], [2]), operator(1, [0, 1], [3])]
    model = schema.ModelT()
    model.version = 3
    model.operatorCodes = [code(schema.BuiltinOperator.ADD), code(schema.BuiltinOperator.SUB)]
    model.subgraphs, model.buffers = [graph], [schema.BufferT()]
    if signature is not None:
        model.signatureDefs = [schema.SignatureDefT()]
        model.signatureDefs[0].signatureKey, model.signatureDefs[0].subgraphIndex = b"serving_default", 0
        ends: tuple[list[schema.TensorMapT], ...] = ([], [])
        for name, own in sorted(signature.items()):
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), names.index(own)
            ends[entry.tensorIndex >= 2].append(entry)
        model.signatureDefs[0].inputs, model.signatureDefs[0].outputs = ends
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


WRITERS = {
    "onnxruntime": ("model.onnx", write_onnx),
    "openvino": ("model.xml", write_openvino),
    "litert": ("model.tflite", write_tflite),
    "mcu": ("model.tflite", write_tflite),
}
