"""OpenVINO: convert, compress weights, quantize with NNCF; saved without chance bytes."""

from __future__ import annotations

import math
import re
import shutil
import xml.etree.ElementTree as ET  # reads only what OpenVINO just wrote
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.compiler import graphs
from edgeops.compiler.passes import Outcome, Work, refuse
from edgeops.compiler.passes.nncf_alone import without_torch
from edgeops.compiler.passes.running import few_samples, run_artifact
from edgeops.compiler.passes.samples import read_samples, spread
from edgeops.compiler.sensitivity import ENOUGH, Aim, keep_float, segments, shortfall
from edgeops.contracts.errors import EdgeopsError

IR_NAME = "model.xml"
# As many as NNCF takes by default.
_MAX_SAMPLES = 300
# Operators that accuracy control may turn back to float.
_MOST_RESTORED = 16
_NNCF = ("edgeops.compiler.passes.nncf_loaded",)
_NO_WORK = ("Constant", "Convert", "FakeQuantize")
_HEAVY = frozenset(
    {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"}
)


class ToOpenVino:
    """Convert the float graph to OpenVINO IR."""

    tools = ("openvino", "onnx")
    requires: frozenset[str] = frozenset({"onnx", "baked"})
    ensures = frozenset({"openvino", "baked"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return ("openvino",)

    def run(self, work: Work) -> Outcome:
        """Parameters: `fp16_weights`, store weights as fp16."""
        import openvino

        try:
            model = openvino.convert_model(str(work.source / graphs.MODEL_NAME))
        # OpenVINO's converters raise classes of their own below RuntimeError and Exception.
        except (RuntimeError, openvino.frontend.OpConversionFailure, openvino.frontend.GeneralFailure) as error:
            raise refuse(f"openvino: {' '.join(str(error).split())[:300]}") from error
        tensors = save_ir(model, work.target, fp16_weights=work.parameters["fp16_weights"]).tensors
        half = {"fp16-weights"} if work.parameters["fp16_weights"] else set[str]()
        return Outcome((work.facts - {"onnx"}) | {"openvino"} | half, {**work.notes, "source_tensors": tensors})


class NncfInt8:
    """Post-training int8 quantization by NNCF, not yet packed: weights are float behind their quantizers."""

    tools = ("openvino", "nncf", "numpy")
    requires: frozenset[str] = frozenset({"openvino", "baked"})
    ensures = frozenset({"openvino", "baked", "fake-quantized"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return _NNCF

    @without_torch()
    def run(self, work: Work) -> Outcome:
        """Quantize.

        Parameters: `model_type`, transformer or none; `ranges`, how those of activations come from samples: `widest`
        over all samples, or the `mean` of each sample's, NNCF's own default; `preset`, `mixed` if it is not given
        (asymmetric activations), or NNCF's own `default` (symmetric ones, but in transformers); `front`, the share of
        the graph that stays float, from its inputs on: NNCF corrects the biases of what follows for that. Input:
        `samples`.
        """
        import nncf
        import openvino

        model = openvino.Core().read_model(work.source / IR_NAME)
        feeds, options = _feeds(work), _options(work)
        if front := work.parameters.get("front", 0.0):
            options["ignored_scope"] = nncf.IgnoredScope(names=front_of(model, front), validate=False)
        try:
            quantized = nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds), **options)
        except (RuntimeError, ValueError, TypeError, nncf.errors.InternalError, nncf.errors.ValidationError) as error:
            raise refuse(f"nncf: {' '.join(str(error).split())[:300]}") from error
        names = save_ir(quantized, work.target, fp16_weights=False)
        return Outcome(work.facts | {"fake-quantized"}, _with_layers(work.notes, names))


class Pack:
    """Store quantized weights as int8."""

    tools = ("openvino",)
    requires: frozenset[str] = frozenset({"openvino", "baked", "fake-quantized"})
    ensures = frozenset({"openvino", "baked", "int8"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return ("openvino",)

    def run(self, work: Work) -> Outcome:
        """No parameters."""
        import openvino

        names = _save_packed(openvino.Core().read_model(work.source / IR_NAME), work.target)
        return Outcome((work.facts - {"fake-quantized"}) | {"int8"}, _with_layers(work.notes, names))


class PartialInt8:
    """Let the most sensitive segments compute in float, with fp16 weights; all others stay int8."""

    tools = ("openvino", "numpy")
    requires: frozenset[str] = frozenset({"openvino", "baked", "fake-quantized"})
    ensures = frozenset({"openvino", "baked", "int8"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return ("openvino",)

    def run(self, work: Work) -> Outcome:
        """Parameters: `aim`, an `Aim`. Inputs: `samples`; `float`, the float artifact."""
        import openvino

        aim = msgspec.convert(work.parameters["aim"], Aim)
        quantized = openvino.Core().read_model(work.source / IR_NAME)
        partial, notes = _keep_sensitive(quantized, work, aim)
        names = _save_packed(partial, work.target)
        return Outcome((work.facts - {"fake-quantized"}) | {"int8"}, {**_with_layers(work.notes, names), **notes})


class AccuracyControl:
    """NNCF's own search for operators that must stay float, by the whole model's answers."""

    tools = ("openvino", "nncf", "numpy")
    requires: frozenset[str] = frozenset({"openvino", "baked"})
    ensures = frozenset({"openvino", "baked", "int8"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return _NNCF

    @without_torch()
    def run(self, work: Work) -> Outcome:
        """Parameters: `aim`, an `Aim`; `model_type` and `ranges` as for `openvino-int8`. Input: `samples`."""
        import nncf
        import openvino

        aim = msgspec.convert(work.parameters["aim"], Aim)
        model = openvino.Core().read_model(work.source / IR_NAME)
        # NNCF compiles the model with the plugin's defaults, which may compute in bf16.
        model.set_rt_info("f32", ["runtime_options", "INFERENCE_PRECISION_HINT"])
        few = few_samples(work.inputs["samples"])
        judged = [{name: array[index] for name, array in few.items()} for index in range(len(next(iter(few.values()))))]
        reference = _by_output(aim, run_artifact("openvino", work.source / IR_NAME, few))

        def validate(compiled: Any, data: Any) -> tuple[float, list[list[Any]]]:
            rows = [[np.array(value) for value in compiled(feed).values()] for feed in data]
            answers = dict(zip(aim.kinds, (np.stack(column) for column in zip(*rows, strict=True)), strict=True))
            chosen = {name: values[: len(rows)] for name, values in reference.items()}
            return -shortfall(aim, chosen, answers), rows

        feeds = _feeds(work)
        options = _options(work)
        try:
            quantized = nncf.quantize_with_accuracy_control(
                model,
                nncf.Dataset(feeds),
                nncf.Dataset(judged),
                validate,
                max_drop=ENOUGH,
                subset_size=len(feeds),
                preset=options["preset"],
                model_type=options["model_type"],
                advanced_quantization_parameters=options["advanced_parameters"],
                advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                    max_num_iterations=_MOST_RESTORED, ranking_subset_size=len(judged)
                ),
            )
        except (RuntimeError, ValueError, TypeError, nncf.errors.InternalError, nncf.errors.ValidationError) as error:
            raise refuse(f"nncf: {' '.join(str(error).split())[:300]}") from error
        names = save_ir(quantized, work.target, fp16_weights=False)
        return Outcome(work.facts | {"int8"}, _with_layers(work.notes, names))


class NncfWeights:
    """Store weights as int8 per channel; activations stay float."""

    tools = ("openvino", "nncf", "numpy")
    requires: frozenset[str] = frozenset({"openvino", "baked"})
    ensures = frozenset({"openvino", "baked", "int8-weights"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return _NNCF

    @without_torch()
    def run(self, work: Work) -> Outcome:
        """No parameters."""
        import nncf
        import openvino

        model = openvino.Core().read_model(work.source / IR_NAME)
        try:
            compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        except (RuntimeError, ValueError, nncf.errors.InternalError, nncf.errors.ValidationError) as error:
            raise refuse(f"nncf: {' '.join(str(error).split())[:300]}") from error
        names = save_ir(compressed, work.target, fp16_weights=False)
        return Outcome(work.facts | {"int8-weights"}, _with_layers(work.notes, names))


class SavedNames(NamedTuple):
    """What a saved file no longer says.

    Args:
        layers: Layer → its name in the model that was saved.
        tensors: Layer and number of its output, as `3:0` → the first of the tensor's names in that model.
    """

    layers: dict[str, str]
    tensors: dict[str, str]


def save_ir(model: Any, folder: Path, *, fp16_weights: bool) -> SavedNames:
    """Write `model.xml` and `model.bin`; the same model gives the same bytes, and few of them.

    OpenVINO names constants by a counter of the process, notes paths and versions, and indents.
    """
    import openvino

    path = folder / IR_NAME
    openvino.save_model(model, path, compress_to_fp16=fp16_weights)
    tree = ET.parse(path)  # noqa: S314  written by OpenVINO a moment ago
    root = tree.getroot()
    for info in root.findall("rt_info"):
        root.remove(info)
    root.set("name", "model")
    for element in root.iter():
        element.tail = None
        if element.text is not None and not element.text.strip():
            element.text = None
    names = _names(root)
    ends = {layer.get("id") for layer in root.iter("layer") if layer.get("type") in ("Parameter", "Result")}
    fed = {edge.get("from-layer") for edge in root.iter("edge") if edge.get("to-layer") in ends}
    for layer in root.iter("layer"):
        if layer.get("id") not in ends:
            layer.set("name", str(layer.get("id")))
        for info in layer.findall("rt_info"):
            for attribute in info.findall("attribute"):
                if attribute.get("name") == "fused_names":
                    info.remove(attribute)
            if not len(info):
                layer.remove(info)
        # Names of tensors matter at the model's ends only.
        if layer.get("id") not in ends | fed:
            for port in layer.iter("port"):
                port.attrib.pop("names", None)
    tree.write(path, encoding="utf-8", xml_declaration=True)
    return names


def _names(root: ET.Element) -> SavedNames:
    layers = {str(layer.get("id")): layer for layer in root.iter("layer") if layer.get("type") != "Const"}
    tensors = {}
    for layer, element in layers.items():
        for index, port in enumerate(element.findall("output/port")):
            if found := port.get("names"):
                # Names are separated by commas; a comma within one is escaped.
                tensors[f"{layer}:{index}"] = min(re.split(r"(?<!\\),", found)).replace("\\,", ",")
    return SavedNames({layer: str(element.get("name")) for layer, element in layers.items()}, tensors)


def _with_layers(notes: Mapping[str, Any], saved: SavedNames) -> dict[str, Any]:
    """Note which layer of the float artifact each layer stands for; the layers that quantizing added stand for none."""
    before = notes.get("float_layers")
    # The layers of a saved file have numbers for names; OpenVINO names new ones with letters.
    known = {
        layer: (name if name.isdigit() else None) if before is None else before.get(name)
        for layer, name in saved.layers.items()
    }
    return {**notes, "float_layers": {layer: name for layer, name in known.items() if name is not None}}


def front_of(model: Any, share: float) -> list[str]:
    """Return the operators of so much of the graph, by its convolutions and products, from the inputs on."""
    ends = ("Parameter", "Result", *_NO_WORK)
    operators = [item for item in model.get_ordered_ops() if item.get_type_name() not in ends]
    heavy = [index for index, item in enumerate(operators) if item.get_type_name() in _HEAVY]
    count = math.ceil(share * len(heavy))
    if count >= len(heavy):
        raise refuse("there are too few convolutions and products to keep a part of them float")
    return [item.get_friendly_name() for item in operators[: heavy[count]]]


def _feeds(work: Work) -> list[dict[str, NDArray[Any]]]:
    samples = read_samples(work.inputs["samples"], "calibration")
    chosen = spread(len(next(iter(samples.values()))), _MAX_SAMPLES)
    return [{name: np.asarray(array[index]) for name, array in samples.items()} for index in chosen]


def _options(work: Work) -> dict[str, Any]:
    """Return NNCF's options.

    Activations are asymmetric (preset mixed) unless the recipe says otherwise: as fast as symmetric ones, and never
    farther from float on any model that was measured.
    """
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    widest = nncf.AdvancedQuantizationParameters(activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX)
    return {
        "preset": None if work.parameters.get("preset") == "default" else nncf.QuantizationPreset.MIXED,
        "model_type": nncf.ModelType.TRANSFORMER if work.parameters["model_type"] == "transformer" else None,
        "advanced_parameters": widest if work.parameters["ranges"] == "widest" else None,
    }


def _save_packed(model: Any, folder: Path) -> SavedNames:
    # NNCF's own last step; it has no public name.
    from openvino._offline_transformations import compress_quantize_weights_transformation

    compress_quantize_weights_transformation(model)
    return save_ir(model, folder, fp16_weights=False)


def _keep_sensitive(quantized: Any, work: Work, aim: Aim) -> tuple[Any, dict[str, Any]]:
    samples = few_samples(work.inputs["samples"])
    reference = _by_output(aim, run_artifact("openvino", work.inputs["float"] / IR_NAME, samples))
    operators = [item for item in quantized.get_ordered_ops() if item.get_type_name() not in _NO_WORK]
    names = [item.get_friendly_name() for item in operators]
    parts = segments([item.get_type_name() in _HEAVY for item in operators])
    costs = [sum(_multiplications(operators[index]) for index in part) for part in parts]

    def with_float(kept: frozenset[int]) -> Any:
        copy = quantized.clone()
        _unquantize(copy, {names[index] for part in kept for index in parts[part]})
        return copy

    scratch = work.target / "scratch"
    scratch.mkdir()

    def score(kept: frozenset[int]) -> float:
        save_ir(with_float(kept), scratch, fp16_weights=False)
        try:
            return shortfall(aim, reference, _by_output(aim, run_artifact("openvino", scratch / IR_NAME, samples)))
        except EdgeopsError:
            return math.inf

    kept = keep_float(costs, score)
    found = score(kept)
    shutil.rmtree(scratch)
    return with_float(kept), {"float_segments": sorted(kept), "segments": len(parts), "shortfall": found}


def _unquantize(model: Any, names: set[str]) -> None:
    """Let the operators of these names read what their quantizers read: activations as they are, weights as fp16."""
    from openvino import opset13

    for item in model.get_ordered_ops():
        if item.get_friendly_name() not in names:
            continue
        for port in item.inputs():
            quantizer = port.get_source_output().get_node()
            if quantizer.get_type_name() != "FakeQuantize":
                continue
            source = quantizer.input_value(0)
            if source.get_node().get_type_name() == "Constant":
                half = opset13.constant(source.get_node().get_data().astype(np.float16))
                source = opset13.convert(half, "f32").output(0)
            port.replace_source_output(source)


def _multiplications(item: Any) -> float:
    """Return about how many products a convolution or matrix product computes; 0 for other operators."""
    if item.get_type_name() not in _HEAVY or not item.get_output_partial_shape(0).is_static:
        return 0.0
    weights = item.get_input_partial_shape(1)
    if not weights.is_static:
        return 0.0
    result = [int(size) for size in item.get_output_partial_shape(0).to_shape()]
    channels = result[-1 if item.get_type_name() == "MatMul" else 1]
    return math.prod(result) * math.prod(int(size) for size in weights.to_shape()) / max(1, channels)


def _by_output(aim: Aim, answers: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    if set(answers) == set(aim.kinds):
        return dict(answers)
    return dict(zip(aim.kinds, answers.values(), strict=True))
