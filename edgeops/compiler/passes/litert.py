"""LiteRT: convert through the isolated onnx2tf, quantize with litert-quantizer."""

from __future__ import annotations

import itertools
import math
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.compiler import graphs
from edgeops.compiler.passes import Outcome, Work, refuse
from edgeops.compiler.passes.onnx_quantize import MAX_CALIBRATION_SAMPLES
from edgeops.compiler.passes.running import few_samples, run_artifact
from edgeops.compiler.passes.samples import read_samples, spread
from edgeops.compiler.sensitivity import Aim, keep_float, segments, shortfall
from edgeops.compiler.toolchain import ONNX2TF, run_tool
from edgeops.contracts.errors import EdgeopsError

TFLITE_NAME = "model.tflite"
_SIGNATURE = "serving_default"
_COMPARED_SAMPLES = 3
_MAX_TURNED_AXES = 5
_HEAVY = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL", "CONV_3D"})
# The quantizer raises what numpy, flatbuffers and its own checks raise.
_ERRORS = (ValueError, RuntimeError, KeyError, IndexError, TypeError, AttributeError)
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

        Parameters: `kind`, static, int16x8, dynamic, weights or fp16; `aim`, an `Aim`: keep the most sensitive
        segments of the graph float. Input: `samples`. Notes: `quantization`, artifact tensor → scale and zero point
        of quantized inputs and outputs.
        """
        kind, aim = work.parameters["kind"], work.parameters.get("aim")
        source, target = work.source / TFLITE_NAME, work.target / TFLITE_NAME
        ranges = _calibrate(source, kind, work.inputs["samples"])
        notes: dict[str, Any] = {}
        if aim is None:
            _quantize(source, target, kind, ranges, [])
        else:
            notes = _keep_sensitive(work, kind, ranges, msgspec.convert(aim, Aim))
        facts = work.facts | {"quantized", kind}
        return Outcome(facts, {**work.notes, **notes, "quantization": _quantized_ends(target)})


def _keep_sensitive(work: Work, kind: str, ranges: Any, aim: Aim) -> dict[str, Any]:
    source, target = work.source / TFLITE_NAME, work.target / TFLITE_NAME
    operators = _operators(source)
    parts = segments([heavy for _, heavy in operators])
    samples = few_samples(work.inputs["samples"])
    reference = _in_order(aim, run_artifact("litert", source, samples))

    def build(kept: frozenset[int]) -> None:
        outputs = [name for part in sorted(kept) for index in parts[part] for name in operators[index][0]]
        _quantize(source, target, kind, ranges, outputs)

    def score(kept: frozenset[int]) -> float:
        try:
            build(kept)
            got = _in_order(aim, run_artifact("litert", target, samples))
        except EdgeopsError:
            return math.inf
        return shortfall(aim, reference, _real(got, aim, _quantized_ends(target), target))

    kept = keep_float([1.0] * len(parts), score)
    found = score(kept)
    if math.isinf(found):
        raise refuse("no part of the graph can be quantized")
    return {"float_segments": sorted(kept), "segments": len(parts), "shortfall": found}


def _in_order(aim: Aim, answers: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Name answers by the model's outputs: a converter may rename them but keeps their order."""
    if set(answers) == set(aim.kinds):
        return answers
    return dict(zip(aim.kinds, answers.values(), strict=True))


def _real(
    answers: dict[str, NDArray[Any]], aim: Aim, ends: dict[str, dict[str, float | int]], model: Path
) -> dict[str, NDArray[Any]]:
    """Return quantized answers as real values."""
    details = _interpreter(model).get_output_details()
    scales = dict(zip(aim.kinds, (ends.get(detail["name"]) for detail in details), strict=True))
    if set(ends) & set(answers):
        scales |= {name: ends[name] for name in answers if name in ends}
    return {
        name: values
        if (end := scales[name]) is None
        else (values.astype(np.float32) - end["zero_point"]) * end["scale"]
        for name, values in answers.items()
    }


def _calibrate(source: Path, kind: str, samples: Path) -> Any:
    """Return the ranges of all tensors, or None where the kind needs none.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; the quantizer refuses the graph.
    """
    from litert_quantizer import quantizer

    try:
        tool = quantizer.Quantizer(str(source), _recipe(kind, []))
        return tool.calibrate({_SIGNATURE: _feeds(samples)}, num_threads=1) if tool.need_calibration else None
    except _ERRORS as error:
        raise _refusal(error) from error


def _quantize(source: Path, target: Path, kind: str, ranges: Any, kept: list[str]) -> None:
    """Write the quantized model; operators that write the tensors `kept` compute in float.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; the quantizer refuses the graph.
    """
    from litert_quantizer import quantizer

    try:
        quantized = quantizer.Quantizer(str(source), _recipe(kind, kept)).quantize(ranges)
        target.unlink(missing_ok=True)
        quantized.export_model(str(target), overwrite=True)
    except _ERRORS as error:
        raise _refusal(error) from error
    for extra in target.parent.iterdir():
        if extra != target:
            extra.unlink()


def _recipe(kind: str, kept: list[str]) -> Any:
    from litert_quantizer import qtyping, recipe, recipe_manager

    half_weights = qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    every, casting = qtyping.TFLOperationName.ALL_SUPPORTED, recipe.AlgorithmName.FLOAT_CASTING
    manager = recipe_manager.RecipeManager()
    if kind == "fp16":
        manager.add_quantization_config(".*", every, half_weights, algorithm_key=casting)
    else:
        manager.load_quantization_recipe(getattr(recipe, _RECIPES[kind])())
    if kept:
        # A scope is the names of an operator's outputs, each with a semicolon. The later rule wins where it can be
        # applied: what stays float has fp16 weights if it has any.
        scope = f"^(?:{'|'.join(map(re.escape, kept))});"
        manager.add_quantization_config(scope, every, algorithm_key=recipe.AlgorithmName.NO_QUANTIZE)
        manager.add_quantization_config(f"{scope}.*", every, half_weights, algorithm_key=casting)
    return manager.get_quantization_recipe()


def _refusal(error: BaseException) -> EdgeopsError:
    return refuse(f"litert-quantizer: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _feeds(folder: Path) -> list[dict[str, NDArray[Any]]]:
    samples = read_samples(folder, "calibration")
    chosen = spread(len(next(iter(samples.values()))), MAX_CALIBRATION_SAMPLES)
    return [{name: np.asarray(array[index]) for name, array in samples.items()} for index in chosen]


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


def _operators(model: Path) -> list[tuple[list[str], bool]]:
    """Return each operator in order: names of its outputs, and whether it is a convolution or matrix product."""
    interpreter = _interpreter(model)
    tensors = {item["index"]: item["name"] for item in interpreter.get_tensor_details()}
    return [
        ([tensors[index] for index in item["outputs"] if index in tensors], item["op_name"] in _HEAVY)
        for item in interpreter._get_ops_details()
        if item["op_name"] != "DELEGATE"
    ]


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
