"""Smaller number formats for onnxruntime: static QDQ int8, dynamic int8, int8 weights, fp16."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.compiler import graphs
from edgeops.compiler.passes import Outcome, Work, refuse
from edgeops.compiler.passes.running import ONNX_MODULES
from edgeops.compiler.passes.samples import read_samples, spread

MAX_CALIBRATION_SAMPLES = 512
# Histogram methods keep every tensor of every sample in memory.
_MAX_HISTOGRAM_SAMPLES = 16
_TOOLS = ("onnx", "onnxruntime", "numpy")
QUANTIZABLE = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


class StaticInt8:
    """Quantize weights per channel and activations per tensor, in QDQ form, with ranges from calibration data."""

    tools = _TOOLS
    requires: frozenset[str] = frozenset({"onnx", "baked", "modern-opset"})
    ensures = frozenset({"onnx", "baked", "int8"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return (*ONNX_MODULES, "onnxruntime.quantization")

    def run(self, work: Work) -> Outcome:
        """Parameters.

        `method`: minmax, entropy or percentile; `symmetric`: int8 activations with zero point 0 (TensorRT);
        `op_types`: quantize these operators only. Input: `samples`.
        """
        model = graphs.load(work.source)
        name_nodes(model)
        if not QUANTIZABLE.intersection(node.op_type for node in model.graph.node):
            raise refuse("the graph has no convolution or matrix product to quantize")
        source = work.target / "float.onnx"
        graphs.save(model, work.target, source.name)
        quantize_static_int8(
            source,
            work.target / graphs.MODEL_NAME,
            work.inputs["samples"],
            method=work.parameters["method"],
            symmetric=work.parameters["symmetric"],
            excluded=own_nodes(model),
            op_types=work.parameters.get("op_types"),
        )
        source.unlink()
        return finish(work, "int8")


class DynamicInt8:
    """Quantize weights now and activations while running; for graphs of matrix products."""

    tools = _TOOLS
    requires: frozenset[str] = frozenset({"onnx", "baked", "modern-opset"})
    ensures = frozenset({"onnx", "baked", "int8-dynamic"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return (*ONNX_MODULES, "onnxruntime.quantization")

    def run(self, work: Work) -> Outcome:
        """No parameters."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        model = graphs.load(work.source)
        # Integer convolutions are slower than float ones on every CPU that was measured.
        products = {"MatMul", "Gemm", "Attention", "LSTM"}
        if not products.intersection(node.op_type for node in model.graph.node):
            raise refuse("the graph has no matrix product: dynamic int8 would not make it faster")
        try:
            with _quiet():
                quantize_dynamic(
                    str(work.source / graphs.MODEL_NAME),
                    str(work.target / graphs.MODEL_NAME),
                    op_types_to_quantize=sorted(products),
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                )
        except (ValueError, TypeError, RuntimeError, AssertionError, KeyError, IndexError, AttributeError) as error:
            raise refuse(f"onnxruntime.quantization: {type(error).__name__}: {_short(error)}") from error
        return finish(work, "int8-dynamic")


class WeightInt8:
    """Store large constant weights as int8 per channel; the runtime turns them into floats when it loads the model."""

    tools = _TOOLS
    requires: frozenset[str] = frozenset({"onnx", "baked", "modern-opset"})
    ensures = frozenset({"onnx", "baked", "int8-weights"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return ONNX_MODULES

    def run(self, work: Work) -> Outcome:
        """No parameters. Weights of convolutions and matrix products with at least 1024 elements."""
        import onnx

        model = graphs.load(work.source)
        constants = {item.name: item for item in model.graph.initializer}
        axes: dict[str, int] = {}
        for node in model.graph.node:
            if node.op_type in QUANTIZABLE and len(node.input) > 1 and node.input[1] in constants:
                weight = constants[node.input[1]]
                if weight.data_type == onnx.TensorProto.FLOAT and math.prod(weight.dims) >= 1024:
                    axes[weight.name] = _weight_axis(node, len(weight.dims))
        if not axes:
            raise refuse("no weight is large enough to gain by int8")
        nodes = []
        for name, axis in sorted(axes.items()):
            values = onnx.numpy_helper.to_array(constants[name])
            quantized, scales = quantize_weight(values, axis)
            model.graph.initializer.remove(constants[name])
            parts = (f"{graphs.OWN_PREFIX}{name}/q", f"{graphs.OWN_PREFIX}{name}/scale")
            model.graph.initializer.append(onnx.numpy_helper.from_array(quantized, parts[0]))
            model.graph.initializer.append(onnx.numpy_helper.from_array(scales, parts[1]))
            nodes.append(
                onnx.helper.make_node("DequantizeLinear", list(parts), [name], name=f"{parts[0]}/dequantize", axis=axis)
            )
        kept = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(nodes + kept)
        graphs.save(model, work.target)
        return finish(work, "int8-weights")


class Float16:
    """Store and compute in fp16 where the operators allow it; inputs and outputs keep their types."""

    tools = _TOOLS
    requires: frozenset[str] = frozenset({"onnx", "baked", "modern-opset"})
    ensures = frozenset({"onnx", "baked", "fp16"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return ONNX_MODULES

    def run(self, work: Work) -> Outcome:
        """No parameters. Preprocessing stays float32: its inputs go up to 255."""
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = graphs.load(work.source)
        name_nodes(model)
        try:
            half = convert_float_to_float16(
                model,
                keep_io_types=True,
                node_block_list=[node.name for node in model.graph.node if node.name.startswith(graphs.OWN_PREFIX)],
            )
        except (ValueError, TypeError, RuntimeError, AssertionError, KeyError, IndexError) as error:
            raise refuse(f"onnxruntime.transformers.float16: {_short(error)}") from error
        graphs.save(half, work.target)
        return finish(work, "fp16")


def quantize_weight(values: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize per channel, symmetric, ties to even.

    Args:
        values: Weights.
        axis: Channel axis.

    Returns:
        int8 in [-127, 127] of the same shape, and the positive step per channel.
    """
    others = tuple(index for index in range(values.ndim) if index != axis)
    largest = np.abs(values).max(axis=others)
    scales = (np.where(largest > 0, largest, 1.0) / 127).astype(np.float32)
    shape = [1] * values.ndim
    shape[axis] = -1
    quantized = np.clip(np.rint(values / scales.reshape(shape)), -127, 127).astype(np.int8)
    return quantized, scales


def _weight_axis(node: Any, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if any(item.name == "transB" and item.i for item in node.attribute) else 1
    return rank - 1


def _reader(samples: dict[str, NDArray[Any]], most: int) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    chosen = spread(len(next(iter(samples.values()))), most)

    def feeds() -> Iterator[dict[str, NDArray[Any]]]:
        for index in chosen:
            yield {name: np.asarray(array[index]) for name, array in samples.items()}

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the base comes without types
        def __init__(self) -> None:
            self._feeds = feeds()

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self._feeds, None)

    return Reader()


def quantize_static_int8(
    source: Path,
    target: Path,
    samples: Path,
    *,
    method: str,
    symmetric: bool,
    excluded: list[str],
    op_types: list[str] | None = None,
    keep_activations: bool = False,
) -> Path:
    """Write the int8 form of a float model.

    Args:
        source: The float model; its nodes have names.
        target: File to write.
        samples: Folder of sample data.
        method: How ranges of activations are taken from calibration data.
        symmetric: int8 activations with zero point 0.
        excluded: Nodes that stay float.
        op_types: Quantize only these; None: all that can be.
        keep_activations: Leave an activation in the graph also where the range of int8 stands for it.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; the quantizer refuses the graph.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    options: dict[str, Any] = {
        # Without this the weight adjustment of per-channel biases fails on arrays of scales.
        "QDQDisableWeightAdjustForInt32Bias": True,
        "ActivationSymmetric": symmetric,
        "QDQKeepRemovableActivations": keep_activations,
    }
    if method == "percentile":
        options["CalibPercentile"] = 99.99
    try:
        with _quiet():
            quantize_static(
                str(source),
                str(target),
                _reader(
                    read_samples(samples, "calibration"),
                    MAX_CALIBRATION_SAMPLES if method == "minmax" else _MAX_HISTOGRAM_SAMPLES,
                ),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[_METHODS[method]],
                nodes_to_exclude=excluded,
                op_types_to_quantize=op_types,
                extra_options=options,
            )
    # The quantizer asserts and indexes its way through graphs that it does not know.
    except (ValueError, TypeError, RuntimeError, AssertionError, KeyError, IndexError, AttributeError) as error:
        raise refuse(f"onnxruntime.quantization: {type(error).__name__}: {_short(error)}") from error
    return target


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice out of the log, and leave the log as it was."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def own_nodes(model: Any) -> list[str]:
    """Return the nodes of the baked preprocessing: their inputs go up to 255, and they cost next to nothing."""
    return [node.name for node in model.graph.node if node.name.startswith(graphs.OWN_PREFIX)]


def name_nodes(model: Any) -> None:
    """Give every node a name of its own: quantizers speak of nodes by name."""
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            name = f"node_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)


def finish(work: Work, fact: str) -> Outcome:
    """Write the target again without chance bytes; its IR stays what the runtime reads."""
    model = graphs.load(work.target)
    model.ir_version = graphs.load(work.source).ir_version
    (work.target / graphs.MODEL_NAME).unlink()
    graphs.save(model, work.target)
    return Outcome(work.facts | {fact}, dict(work.notes))


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
