"""LiteRT: convert through the isolated onnx2tf, quantize with litert-quantizer."""

from __future__ import annotations

import itertools
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.compiler import graphs
from edgeops.compiler.passes import Outcome, Work, refuse
from edgeops.compiler.passes.onnx_quantize import MAX_CALIBRATION_SAMPLES
from edgeops.compiler.passes.running import run_artifact
from edgeops.compiler.passes.samples import read_samples, spread
from edgeops.compiler.toolchain import ONNX2TF, run_tool

TFLITE_NAME = "model.tflite"
_SIGNATURE = "serving_default"
_COMPARED_SAMPLES = 3
_MAX_TURNED_AXES = 5
_RECIPES = {
    "static": "static_wi8_ai8",
    "int16x8": "static_wi8_ai16",
    "dynamic": "dynamic_wi8_afp32",
    "weights": "weight_only_wi8_afp32",
}


class ToTflite:
    """Convert the float graph to TFLite, and find how the converter laid out the outputs by running both."""

    tools = ("onnx", "ai-edge-litert", "onnxruntime")
    requires: frozenset[str] = frozenset({"onnx", "baked", "modern-opset"})
    ensures = frozenset({"tflite", "baked"})

    def run(self, work: Work) -> Outcome:
        """Input: `samples`. Notes: `transposes`, model output → axes that bring the artifact's into its order."""
        model = graphs.load(work.source)
        inputs = [item.name for item in model.graph.input]
        # The converter overwrites its input.
        shutil.copyfile(work.source / graphs.MODEL_NAME, work.target / "copy.onnx")
        out = work.target / "out"
        # fmt: off
        run_tool(ONNX2TF, [
            "onnx2tf", "-tb", "flatbuffer_direct", "-i", str(work.target / "copy.onnx"), "-o", str(out), "-n",
            "-kat", *inputs,
        ])
        # fmt: on
        made = out / "copy_float32.tflite"
        if not made.exists():
            raise refuse("onnx2tf wrote no float32 model")
        made.rename(work.target / TFLITE_NAME)
        shutil.rmtree(out)
        (work.target / "copy.onnx").unlink()
        samples = read_samples(work.inputs["samples"], "calibration")
        few = {name: np.asarray(array[:_COMPARED_SAMPLES]) for name, array in samples.items()}
        wanted = run_artifact("onnxruntime", work.source / graphs.MODEL_NAME, few)
        got = run_artifact("litert", work.target / TFLITE_NAME, few)
        transposes = _layouts(wanted, got)
        facts = (work.facts - {"onnx"}) | {"tflite"}
        return Outcome(facts, {**work.notes, "transposes": transposes})


class QuantizeTflite:
    """Quantize a float TFLite model."""

    tools = ("litert-quantizer", "ai-edge-litert", "numpy")
    requires: frozenset[str] = frozenset({"tflite", "baked"})
    ensures = frozenset({"tflite", "baked", "quantized"})

    def run(self, work: Work) -> Outcome:
        """Quantize.

        Parameters: `kind`, static, int16x8, dynamic, weights or fp16; `float_front`, share of operators, in order,
        that stay float. Input: `samples`. Notes: `quantization`,
        artifact tensor → scale and zero point of quantized inputs and outputs.
        """
        from litert_quantizer import quantizer, recipe, recipe_manager

        kind = work.parameters["kind"]
        source, target = work.source / TFLITE_NAME, work.target / TFLITE_NAME
        manager = recipe_manager.RecipeManager()
        if kind == "fp16":
            manager.load_quantization_recipe(_half_weights())
        else:
            manager.load_quantization_recipe(getattr(recipe, _RECIPES[kind])())
        for name in _front_outputs(source, work.parameters.get("float_front", 0.0)):
            manager.add_quantization_config(
                regex=f"^{re.escape(name)}$",
                operation_name=recipe.TFLOperationName.ALL_SUPPORTED,
                algorithm_key=recipe.AlgorithmName.NO_QUANTIZE,
            )
        try:
            tool = quantizer.Quantizer(str(source), manager.get_quantization_recipe())
            ranges = None
            if tool.need_calibration:
                ranges = tool.calibrate({_SIGNATURE: _feeds(work)}, num_threads=1)
            tool.quantize(ranges).export_model(str(target), overwrite=True)
        # The quantizer raises what numpy, flatbuffers and its own checks raise.
        except (ValueError, RuntimeError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise refuse(f"litert-quantizer: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
        for extra in work.target.iterdir():
            if extra != target:
                extra.unlink()
        facts = work.facts | {"quantized", kind}
        return Outcome(facts, {**work.notes, "quantization": _quantized_ends(target)})


def _feeds(work: Work) -> list[dict[str, NDArray[Any]]]:
    samples = read_samples(work.inputs["samples"], "calibration")
    chosen = spread(len(next(iter(samples.values()))), MAX_CALIBRATION_SAMPLES)
    return [{name: np.asarray(array[index]) for name, array in samples.items()} for index in chosen]


def _half_weights() -> Any:
    """Return the recipe that stores weights as fp16 and computes in float32."""
    from litert_quantizer import qtyping, recipe, recipe_manager

    manager = recipe_manager.RecipeManager()
    manager.add_quantization_config(
        ".*",
        qtyping.TFLOperationName.ALL_SUPPORTED,
        qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        ),
        algorithm_key=recipe.AlgorithmName.FLOAT_CASTING,
    )
    return manager.get_quantization_recipe()


def _layouts(wanted: dict[str, NDArray[Any]], got: dict[str, NDArray[Any]]) -> dict[str, list[int]]:
    """Return for each of the model's outputs that the converter turned the axes that bring it back.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; no order of axes gives the source's shape.
    """
    own = {name: name for name in wanted} if set(got) == set(wanted) else dict(zip(wanted, got, strict=True))
    layouts: dict[str, list[int]] = {}
    for name, reference in wanted.items():
        values, rank = got[own[name]], got[own[name]].ndim - 1
        fits = []
        for axes in itertools.permutations(range(rank)) if rank <= _MAX_TURNED_AXES else [tuple(range(rank))]:
            turned = values.transpose(0, *(axis + 1 for axis in axes))
            if turned.shape == reference.shape:
                fits.append((float(np.abs(turned.astype(np.float64) - reference).max(initial=0)), axes))
        if not fits and values.size != reference.size:
            have, want = list(values.shape[1:]), list(reference.shape[1:])
            raise refuse(f"output {name!r} has shape {have}, the source's is {want}")
        # The unturned order comes first, and wins a tie.
        axes = min(fits, key=lambda fit: fit[0])[1] if fits else tuple(range(rank))
        if axes != tuple(range(rank)):
            layouts[name] = list(axes)
    return layouts


def _front_outputs(model: Path, share: float) -> list[str]:
    """Return the output tensors of the first operators in order."""
    if not share:
        return []
    interpreter = _interpreter(model)
    tensors = {item["index"]: item["name"] for item in interpreter.get_tensor_details()}
    operators = [item for item in interpreter._get_ops_details() if item["op_name"] != "DELEGATE"]
    front = operators[: math.ceil(share * len(operators))]
    return [tensors[index] for operator in front for index in operator["outputs"] if index in tensors]


def _quantized_ends(model: Path) -> dict[str, dict[str, float | int]]:
    interpreter = _interpreter(model)
    ends = {detail["name"]: detail for detail in (*interpreter.get_input_details(), *interpreter.get_output_details())}
    # Sessions name tensors by the signature where a model has one.
    for signature in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(signature)
        ends |= {**runner.get_input_details(), **runner.get_output_details()}
    found: dict[str, dict[str, float | int]] = {}
    for name, detail in ends.items():
        scale, zero_point = detail["quantization"]
        if scale:
            found[name] = {"scale": float(scale), "zero_point": int(zero_point)}
    return found


def _interpreter(model: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    return Interpreter(
        model_path=str(model),
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
