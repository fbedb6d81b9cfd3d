"""OpenVINO: convert, compress weights, quantize with NNCF; saved without chance bytes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET  # reads only what OpenVINO just wrote
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeops.compiler import graphs
from edgeops.compiler.passes import Outcome, Work, refuse
from edgeops.compiler.passes.onnx_quantize import MAX_CALIBRATION_SAMPLES
from edgeops.compiler.passes.samples import read_samples, spread

IR_NAME = "model.xml"
_COUNTED_NAME = re.compile(r".*_\d+")


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

        `preset`: performance or mixed; `model_type`: transformer or none; `float_front`: share of the graph's
        operators, in order, that stay float. Input: `samples`.
        """
        import nncf
        import openvino

        model = openvino.Core().read_model(work.source / IR_NAME)
        samples = read_samples(work.inputs["samples"], "calibration")
        chosen = spread(len(next(iter(samples.values()))), MAX_CALIBRATION_SAMPLES)
        feeds = [{name: np.asarray(array[index]) for name, array in samples.items()} for index in chosen]
        parameters = work.parameters
        transformer = parameters.get("model_type") == "transformer"
        try:
            quantized = nncf.quantize(
                model,
                nncf.Dataset(feeds),
                subset_size=len(feeds),
                preset=nncf.QuantizationPreset(parameters.get("preset", "performance")),
                model_type=nncf.ModelType.TRANSFORMER if transformer else None,
                ignored_scope=_front(model, parameters.get("float_front", 0.0)),
            )
        except (RuntimeError, ValueError, TypeError, nncf.errors.InternalError, nncf.errors.ValidationError) as error:
            raise refuse(f"nncf: {' '.join(str(error).split())[:300]}") from error
        save_ir(quantized, work.target, fp16_weights=False)
        return Outcome(work.facts | {"int8"}, dict(work.notes))


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
    """Write `model.xml` and `model.bin`; the same model gives the same bytes.

    OpenVINO names constants by a counter of the process and notes paths and versions in the file.
    """
    import openvino

    path = folder / IR_NAME
    openvino.save_model(model, path, compress_to_fp16=fp16_weights)
    tree = ET.parse(path)  # noqa: S314  written by OpenVINO a moment ago
    root = tree.getroot()
    for info in root.findall("rt_info"):
        root.remove(info)
    root.set("name", "model")
    for layer in root.iter("layer"):
        if layer.get("type") not in ("Parameter", "Result") and _COUNTED_NAME.fullmatch(layer.get("name", "")):
            layer.set("name", f"{layer.get('type')}_{layer.get('id')}")
        for info in layer.findall("rt_info"):
            for attribute in info.findall("attribute"):
                if attribute.get("name") == "fused_names":
                    info.remove(attribute)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _front(model: Any, share: float) -> Any:
    import nncf

    if not share:
        return None
    operators = [
        item.get_friendly_name()
        for item in model.get_ordered_ops()
        if item.get_type_name() not in ("Parameter", "Constant", "Result")
    ]
    return nncf.IgnoredScope(names=operators[: int(np.ceil(share * len(operators)))], validate=False)


def inference_options(notes: Mapping[str, Any]) -> dict[str, str]:
    """Return runtime settings that the product asks for."""
    return dict(notes.get("options", {}))
