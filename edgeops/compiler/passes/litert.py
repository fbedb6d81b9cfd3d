"""LiteRT: convert through the isolated onnx2tf, quantize with litert-quantizer."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.compiler import graphs
from edgeops.compiler.passes import Outcome, Work, refuse, tflite
from edgeops.compiler.passes.onnx_quantize import MAX_CALIBRATION_SAMPLES
from edgeops.compiler.passes.running import ONNX_MODULES, as_float, few_samples, run_artifact
from edgeops.compiler.passes.samples import read_samples, spread
from edgeops.compiler.sensitivity import Aim, keep_float, segments, shortfall
from edgeops.compiler.toolchain import ONNX2TF, run_tool
from edgeops.contracts.errors import EdgeopsError
from edgeops.runtimes.litert_backend import ends

_SIGNATURE = "serving_default"
_QUANTIZER = ("litert_quantizer.quantizer", "ai_edge_litert.interpreter")
_RANGES, _RANGED = "ranges.npz", "ranges.json"
Ranges = dict[str, dict[str, NDArray[Any]]]
_COMPARED_SAMPLES = 3
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

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return ONNX_MODULES

    def run(self, work: Work) -> Outcome:
        """Convert.

        Input: `samples`. Notes: `transposes`, model output → axes that bring the artifact's into its order;
        `source_tensors`, tensor of the artifact → tensor of the graph, where the name is another.
        """
        model = graphs.load(work.source)
        inputs = [item.name for item in model.graph.input]
        for node in model.graph.node:
            # The converter calls tensors whose axes it turns after the node.
            node.name = next(filter(None, node.output))
        graphs.save(model, work.target, "copy.onnx")
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
        made.rename(work.target / tflite.MODEL_NAME)
        shutil.rmtree(out)
        for copied in work.target.glob("copy.onnx*"):
            copied.unlink()
        samples = read_samples(work.inputs["samples"], "calibration")
        few = {name: np.asarray(array[:_COMPARED_SAMPLES]) for name, array in samples.items()}
        wanted = run_artifact("onnxruntime", work.source / graphs.MODEL_NAME, few)
        got = run_artifact("litert", work.target / tflite.MODEL_NAME, few)
        transposes = _layouts(wanted, got)
        facts = (work.facts - {"onnx"}) | {"tflite"}
        names = {f"{node.name}_output_nhwc": node.name for node in model.graph.node}
        names |= {f"{node.name}_input_nhwc": node.input[0] for node in model.graph.node if node.input}
        there = {item["name"] for item in tflite.open_interpreter(work.target / tflite.MODEL_NAME).get_tensor_details()}
        names = {name: source for name, source in names.items() if name in there and source not in there}
        return Outcome(facts, {**work.notes, "transposes": transposes, "source_tensors": names})


class TfliteRanges:
    """Find the ranges of a float TFLite model's tensors on the calibration data."""

    tools = ("litert-quantizer", "ai-edge-litert", "numpy")
    requires: frozenset[str] = frozenset({"tflite", "baked"})
    ensures = frozenset({"tflite", "baked", "ranges"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return _QUANTIZER

    def run(self, work: Work) -> Outcome:
        """Parameters: `kind`, static or int16x8. Input: `samples`. Writes the model as it is, and the ranges."""
        source = work.source / tflite.MODEL_NAME
        ranges = _calibrate(
            source, work.parameters["kind"], work.inputs["samples"], work.notes.get("input_transposes", {})
        )
        shutil.copyfile(source, work.target / tflite.MODEL_NAME)
        write_ranges(work.target, ranges)
        return Outcome(work.facts | {"ranges"}, dict(work.notes))


class QuantizeTflite:
    """Quantize a float TFLite model."""

    tools = ("litert-quantizer", "ai-edge-litert", "numpy")
    requires: frozenset[str] = frozenset({"tflite", "baked"})
    ensures = frozenset({"tflite", "baked", "quantized"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return _QUANTIZER

    def run(self, work: Work) -> Outcome:
        """Quantize.

        Parameters: `kind`, static, int16x8 (both behind `tflite-ranges`), dynamic, weights or fp16; `aim`, an `Aim`:
        keep the most sensitive segments of the graph float. Input: `samples`. Notes: `quantization`, artifact tensor →
        scale and zero point of quantized inputs and outputs.
        """
        kind, aim = work.parameters["kind"], work.parameters.get("aim")
        source, target = work.source / tflite.MODEL_NAME, work.target / tflite.MODEL_NAME
        ranges = read_ranges(work.source) if "ranges" in work.facts else None
        notes: dict[str, Any] = {}
        if aim is None:
            _quantize(source, target, kind, ranges, [])
        else:
            notes = _keep_sensitive(work, kind, ranges, msgspec.convert(aim, Aim))
        facts = (work.facts - {"ranges"}) | {"quantized", kind}
        return Outcome(facts, {**work.notes, **notes, "quantization": tflite.quantized_ends(target)})


def _keep_sensitive(work: Work, kind: str, ranges: Any, aim: Aim) -> dict[str, Any]:
    source, target = work.source / tflite.MODEL_NAME, work.target / tflite.MODEL_NAME
    operators = tflite.operators(source)
    parts = segments([heavy for _, heavy in operators])
    samples = few_samples(work.inputs["samples"])
    reference = _in_order(aim, run_artifact("litert", source, samples))

    def build(kept: frozenset[int]) -> None:
        outputs = [name for part in sorted(kept) for index in parts[part] for name in operators[index][0]]
        _quantize(source, target, kind, ranges, outputs)

    def score(kept: frozenset[int]) -> float:
        try:
            build(kept)
            return shortfall(aim, reference, _in_order(aim, tflite.run_real(target, samples)))
        except EdgeopsError:
            return math.inf

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


def _calibrate(source: Path, kind: str, samples: Path, transposes: Mapping[str, Sequence[int]]) -> Ranges:
    """Return the ranges of all tensors.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; the quantizer refuses the graph.
    """
    from litert_quantizer import calibrator, recipe_manager

    class Remembering(recipe_manager.RecipeManager):  # type: ignore[misc]  # the base comes without types
        """Looks at each operator once, not once for each sample: that took a third of the time."""

        def __init__(self) -> None:
            super().__init__()
            self._found: dict[tuple[Any, str], Any] = {}

        def get_quantization_configs(self, target_op_name: Any, scope_name: str) -> Any:
            key = (target_op_name, scope_name)
            if key not in self._found:
                self._found[key] = super().get_quantization_configs(*key)
            return self._found[key]

    try:
        manager = Remembering()
        manager.load_quantization_recipe(_recipe(kind, []))
        tool = calibrator.Calibrator(str(source), num_threads=1)
        tool.calibrate({_SIGNATURE: _feeds(source, samples, transposes)}, manager)
        found: Ranges = tool.get_model_qsvs()
    except _ERRORS as error:
        raise _refusal(error) from error
    return found


def write_ranges(folder: Path, ranges: Ranges) -> None:
    """Write ranges, bit for bit: tensor → name of a figure → its values."""
    names = [(tensor, figure) for tensor, figures in ranges.items() for figure in figures]
    arrays: dict[str, Any] = {str(index): ranges[tensor][figure] for index, (tensor, figure) in enumerate(names)}
    np.savez(folder / _RANGES, **arrays)
    (folder / _RANGED).write_bytes(msgspec.json.encode({"tensors": list(ranges), "figures": names}))


def read_ranges(folder: Path) -> Ranges:
    """Return the ranges that `write_ranges` wrote."""
    said = msgspec.json.decode((folder / _RANGED).read_bytes())
    ranges: Ranges = {tensor: {} for tensor in said["tensors"]}
    with np.load(folder / _RANGES, allow_pickle=False) as arrays:
        for index, (tensor, figure) in enumerate(said["figures"]):
            ranges[tensor][figure] = arrays[str(index)]
    return ranges


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


def _feeds(model: Path, folder: Path, transposes: Mapping[str, Sequence[int]]) -> list[dict[str, NDArray[Any]]]:
    inputs, _ = ends(tflite.open_interpreter(model))
    types = {name: detail["dtype"] for name, detail in inputs}
    samples = read_samples(folder, "calibration")
    chosen = spread(len(next(iter(samples.values()))), MAX_CALIBRATION_SAMPLES)
    picked = tflite.turned(model, {name: np.asarray(array[chosen]) for name, array in samples.items()}, transposes)
    return [
        {name: as_float(array[index], types.get(name)) for name, array in picked.items()}
        for index in range(len(chosen))
    ]


def _layouts(wanted: dict[str, NDArray[Any]], got: dict[str, NDArray[Any]]) -> dict[str, list[int]]:
    """Return for each of the model's outputs that the converter turned the axes that bring it back.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; no order of axes gives the source's shape.
    """
    own = {name: name for name in wanted} if set(got) == set(wanted) else dict(zip(wanted, got, strict=True))
    layouts: dict[str, list[int]] = {}
    for name, reference in wanted.items():
        values = got[own[name]]
        axes = tflite.axes_back(reference, values)
        if axes is None and values.size != reference.size:
            have, want = list(values.shape[1:]), list(reference.shape[1:])
            raise refuse(f"output {name!r} has shape {have}, the source's is {want}")
        if axes is not None and axes != sorted(axes):
            layouts[name] = axes
    return layouts
