"""Small TFLite models written operator by operator: what a converter may leave, without a converter."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeops.compiler.passes.flatmodel import FLOAT32, INT8, FlatModel


def empty(subgraphs: int = 1) -> Any:
    model = schema.ModelT()
    model.version, model.operatorCodes, model.buffers = 3, [], [schema.BufferT()]
    model.subgraphs = []
    for _ in range(subgraphs):
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = [], []
        graph.inputs = graph.outputs = np.array([], np.int32)
        model.subgraphs.append(graph)
    return model


def packed(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def new() -> FlatModel:
    """A model without operators; add tensors and operators, then call `ends`."""
    return FlatModel(packed(empty()))


def ends(model: FlatModel, inputs: list[int], outputs: list[int]) -> FlatModel:
    model.graph.inputs, model.graph.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
    return model


def quantized(model: FlatModel, tensor: int, scale: float, zero_point: int) -> int:
    item = model.graph.tensors[tensor]
    item.type = INT8
    item.quantization = schema.QuantizationParametersT()
    item.quantization.scale = np.array([scale], np.float32)
    item.quantization.zeroPoint = np.array([zero_point], np.int64)
    return tensor


def convolution(
    model: FlatModel, source: int, name: str, weights: np.ndarray, *, padding: str = "SAME", stride: int = 1
) -> int:
    """Add CONV_2D [out, h, w, in] with a bias of ones; returns its output."""
    _, height, width, _ = model.shape(source)
    spare = (0, 0) if padding == "SAME" else (weights.shape[1] - 1, weights.shape[2] - 1)
    sizes = [-(-(size - less) // stride) for size, less in zip((height, width), spare, strict=True)]
    output = model.add_tensor(name, (1, *sizes, weights.shape[0]))
    options = model.options(
        "Conv2DOptions", padding=model.enum("Padding", padding), strideW=stride, strideH=stride,
        dilationWFactor=1, dilationHFactor=1, fusedActivationFunction=0,
    )  # fmt: skip
    filters = model.add_constant(f"{name}_w", weights.astype(np.float32))
    bias = model.add_constant(f"{name}_b", np.ones(weights.shape[0], np.float32))
    model.graph.operators.append(model.operator("CONV_2D", [source, filters, bias], [output], options))
    return output


def softmax(scale: float, columns: int, *, rows: int = 1, beta: float = 1.0) -> FlatModel:
    """An int8 model that is a softmax and nothing else."""
    model = new()
    source = quantized(model, model.add_tensor("x", (rows, columns)), scale, 3)
    output = quantized(model, model.add_tensor("y", (rows, columns)), 1 / 256, -128)
    model.graph.operators.append(
        model.operator("SOFTMAX", [source], [output], model.options("SoftmaxOptions", beta=beta))
    )
    return ends(model, [source], [output])


FLOAT = FLOAT32
