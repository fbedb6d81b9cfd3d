"""Models that are files already: ONNX and TFLite, on disk or in memory. They are taken as they are."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.tensors import DTYPES
from edgeops.intake.exported import KERNELS_TOLERANCE, TOLERANCE, Exported, ExportedOutput, Tensors
from edgeops.intake.onnx_probe import ModelFacts, probe
from edgeops.intake.tflite_probe import TfliteRun
from edgeops.runtimes.protocol import LoadOptions
from edgeops.runtimes.registry import backend

MAX_MODEL_BYTES = 2 << 30
_FORMATS = {"onnx": "ONNX", "tflite": "TFLite"}
# Without the runtime's own optimizations: what they change, the proof sees.
_PLAIN = {"graph_optimization": "off"}


def take_file(path: Path, states: dict[str, str]) -> Exported:
    """Take an ONNX or TFLite file.

    Args:
        path: The file. External data of an ONNX file are taken into the one file that is handed over.
        states: Input → output whose last value it gets.

    Raises:
        EdgeopsError: E-HANDOVER-MISSING; not there. E-MODEL-UNSUPPORTED; larger than 2 GiB. Or as `onnx_probe.probe`.
    """
    if not path.is_file():
        raise EdgeopsError("E-HANDOVER-MISSING", f"{path} is not there, or no file", "Name the model's file.")
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise EdgeopsError("E-MODEL-UNSUPPORTED", f"{path}: larger than {MAX_MODEL_BYTES} bytes")
    facts = probe(path)
    sizes = sum((path.parent / name).stat().st_size for name in facts.files)
    if sizes + path.stat().st_size > MAX_MODEL_BYTES:
        raise EdgeopsError("E-MODEL-UNSUPPORTED", f"{path}: with its external data larger than {MAX_MODEL_BYTES} bytes")
    return Exported(
        suffix=facts.format,
        data=_whole(path, facts),
        inputs=tuple(spec.name for spec in facts.inputs),
        outputs=tuple(
            ExportedOutput(spec.name, "state" if spec.name in states.values() else None)
            for spec in facts.outputs
            if spec.dtype in DTYPES
        ),
        run=_plain_run(path, facts),
        source=f"{path.name}, {_FORMATS[facts.format]} as it was",
        tolerance=KERNELS_TOLERANCE if facts.quantized else TOLERANCE,
        ranks={spec.name: len(spec.shape) for spec in facts.inputs if spec.shape is not None},
    )


def take_proto(proto: Any, states: dict[str, str]) -> Exported:
    """Take an ONNX model in memory; see `take_file`."""
    folder = tempfile.TemporaryDirectory(prefix="edgeops-model-")
    path = Path(folder.name) / "model.onnx"
    path.write_bytes(proto.SerializeToString(deterministic=True))
    exported = take_file(path, states)
    inner = exported.run

    def run(feeds: Tensors) -> Tensors:
        # The folder lives as long as what runs out of it.
        assert folder.name
        return inner(feeds)

    return exported._replace(run=run, source="onnx.ModelProto in memory")


def _whole(path: Path, facts: ModelFacts) -> bytes:
    if not facts.files:
        return path.read_bytes()
    import onnx

    return bytes(onnx.load(path).SerializeToString(deterministic=True))


def _plain_run(path: Path, facts: ModelFacts) -> Any:
    sessions: list[Any] = []

    def run(feeds: Tensors) -> Tensors:
        if not sessions and facts.format == "tflite":
            sessions.append(TfliteRun(path, "reference"))
        elif not sessions:
            sessions.append(backend("onnxruntime").load(path, LoadOptions(options=_PLAIN)))
        found: Tensors = sessions[0].run(feeds)
        return found

    return run
