"""OpenVINO: convert, compress weights, quantize with NNCF; saved without chance bytes."""

from __future__ import annotations

import math
import shutil
import xml.etree.ElementTree as ET  # reads only what OpenVINO just wrote
from collections.abc import Mapping
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
from edgeops.contracts.errors import EdgeopsError

IR_NAME = "model.xml"
_HEAVY = frozenset(
    {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"}
)


class ToOpenVino:
    """Convert the float graph to OpenVINO IR."""

    tools = ("openvino", "onnx")
    requires: frozenset[str] = frozenset({"onnx", "baked"})
    ensures = frozenset({"openvino", "baked"})

    def run(self, work: Work) -> Outcome:
        """Parameters: `fp16_weights`, store weights as fp16."""
        import openvino

        try:
            model = openvino.convert_model(str(work.source / graphs.MODEL_NAME))
        # OpenVINO's converters raise classes of their own below RuntimeError and Exception.
        except (RuntimeError, openvino.frontend.OpConversionFailure, openvino.frontend.GeneralFailure) as error:
            raise refuse(f"openvino: {' '.join(str(error).split())[:300]}") from error
        save_ir(model, work.target, fp16_weights=work.parameters["fp16_weights"])
        half = {"fp16-weights"} if work.parameters["fp16_weights"] else set[str]()
        return Outcome((work.facts - {"onnx"}) | {"openvino"} | half, dict(work.notes))


class NncfInt8:
    """Post-training int8 quantization by NNCF."""

    tools = ("openvino", "nncf", "numpy")
    requires: frozenset[str] = frozenset({"openvino", "baked"})
    ensures = frozenset({"openvino", "baked", "int8"})

    def run(self, work: Work) -> Outcome:
        """Parameters.

        `model_type`: transformer or none. Input: `samples`. Activations are asymmetric (preset mixed): as fast as
        symmetric ones, and never farther from float on any model that was measured.
        """
        import nncf
        import openvino

        model = openvino.Core().read_model(work.source / IR_NAME)
        samples = read_samples(work.inputs["samples"], "calibration")
        chosen = spread(len(next(iter(samples.values()))), MAX_CALIBRATION_SAMPLES)
        feeds = [{name: np.asarray(array[index]) for name, array in samples.items()} for index in chosen]
        transformer = work.parameters.get("model_type") == "transformer"
        try:
            quantized = nncf.quantize(
                model,
                nncf.Dataset(feeds),
                subset_size=len(feeds),
                preset=nncf.QuantizationPreset.MIXED,
                model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            )
        except (RuntimeError, ValueError, TypeError, nncf.errors.InternalError, nncf.errors.ValidationError) as error:
            raise refuse(f"nncf: {' '.join(str(error).split())[:300]}") from error
        save_ir(quantized, work.target, fp16_weights=False)
        return Outcome(work.facts | {"int8"}, dict(work.notes))


class PartialActivations:
    """Take the quantizers of activations out of the most sensitive segments; weights stay int8."""

    tools = ("openvino", "numpy")
    requires: frozenset[str] = frozenset({"openvino", "baked", "int8"})
    ensures = frozenset({"openvino", "baked", "int8"})

    def run(self, work: Work) -> Outcome:
        """Parameters: `aim`, an `Aim`. Inputs: `samples`; `float`, the float artifact."""
        import openvino

        aim = msgspec.convert(work.parameters["aim"], Aim)
        quantized = openvino.Core().read_model(work.source / IR_NAME)
        partial, notes = _keep_sensitive(quantized, work, aim)
        save_ir(partial, work.target, fp16_weights=False)
        return Outcome(work.facts, {**work.notes, **notes})


class NncfWeights:
    """Store weights as int8 per channel; activations stay float."""

    tools = ("openvino", "nncf", "numpy")
    requires: frozenset[str] = frozenset({"openvino", "baked"})
    ensures = frozenset({"openvino", "baked", "int8-weights"})

    def run(self, work: Work) -> Outcome:
        """No parameters."""
        import nncf
        import openvino

        model = openvino.Core().read_model(work.source / IR_NAME)
        try:
            compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        except (RuntimeError, ValueError, nncf.errors.InternalError, nncf.errors.ValidationError) as error:
            raise refuse(f"nncf: {' '.join(str(error).split())[:300]}") from error
        save_ir(compressed, work.target, fp16_weights=False)
        return Outcome(work.facts | {"int8-weights"}, dict(work.notes))


def save_ir(model: Any, folder: Path, *, fp16_weights: bool) -> None:
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


def _keep_sensitive(quantized: Any, work: Work, aim: Aim) -> tuple[Any, dict[str, Any]]:
    samples = few_samples(work.inputs["samples"])
    reference = _by_output(aim, run_artifact("openvino", work.inputs["float"] / IR_NAME, samples))
    operators = [item for item in quantized.get_ordered_ops() if item.get_type_name() not in ("Constant", "Convert")]
    parts = segments([item.get_type_name() in _HEAVY for item in operators])
    names = [
        [operators[index].get_friendly_name() for index in part if operators[index].get_type_name() == "FakeQuantize"]
        for part in parts
    ]

    def without(kept: frozenset[int]) -> Any:
        taken = {name for part in kept for name in names[part]}
        copy = quantized.clone()
        for item in copy.get_ordered_ops():
            if item.get_friendly_name() in taken:
                item.output(0).replace(item.input_value(0))
        return copy

    scratch = work.target / "scratch"
    scratch.mkdir()

    def score(kept: frozenset[int]) -> float:
        save_ir(without(kept), scratch, fp16_weights=False)
        try:
            return shortfall(aim, reference, _by_output(aim, run_artifact("openvino", scratch / IR_NAME, samples)))
        except EdgeopsError:
            return math.inf

    kept = keep_float(len(parts), score)
    found = score(kept)
    shutil.rmtree(scratch)
    return without(kept), {"float_segments": sorted(kept), "segments": len(parts), "shortfall": found}


def _by_output(aim: Aim, answers: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    if set(answers) == set(aim.kinds):
        return dict(answers)
    return dict(zip(aim.kinds, answers.values(), strict=True))
