"""One small model in the form of each runtime: outputs `total` = a + b and `gap` = a - b, float32 [1, 4]."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SHAPE = (1, 4)


def write_onnx(path: Path) -> Path:
    from onnx import TensorProto, helper, save

    tensors = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("a", "b", "total", "gap")
    }
    nodes = [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Sub", ["a", "b"], ["gap"])]
    graph = helper.make_graph(nodes, "affine", [tensors["a"], tensors["b"]], [tensors["total"], tensors["gap"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, path)
    return path


def write_openvino(path: Path) -> Path:
    import openvino

    source = write_onnx(path.with_suffix(".onnx"))
    openvino.save_model(openvino.Core().read_model(source), path, compress_to_fp16=False)
    source.unlink()
    return path


def write_tflite(path: Path) -> Path:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str) -> schema.TensorT:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name.encode(), list(SHAPE), schema.TensorType.FLOAT32, 0
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
    graph.tensors = [tensor(name) for name in ("a", "b", "total", "gap")]
    graph.inputs, graph.outputs = [0, 1], [2, 3]
    graph.operators = [operator(0, [0, 1], [2]), operator(1, [0, 1], [3])]
    model = schema.ModelT()
    model.version = 3
    model.operatorCodes = [code(schema.BuiltinOperator.ADD), code(schema.BuiltinOperator.SUB)]
    model.subgraphs, model.buffers = [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


WRITERS = {
    "onnxruntime": ("model.onnx", write_onnx),
    "openvino": ("model.xml", write_openvino),
    "litert": ("model.tflite", write_tflite),
}
