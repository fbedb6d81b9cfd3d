"""Look at an ONNX or TFLite file in a process of its own: time and memory are limited, and a crash hurts nobody."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Wire, decode, encode
from edgeops.intake.cache import cache_dir

TFLITE_MARK = b"TFL3"
_TIMEOUT_S = 120
_MEMORY_BASE_BYTES = 2 << 30
_MEMORY_PER_FILE_BYTE = 6
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "BatchNormalization")
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


class ModelTensor(Wire, frozen=True, kw_only=True):
    """An input or output of the model: its shape has -1 where the model leaves a size open; None: rank unknown.

    `quantized`: it stores integers for real numbers (TFLite).
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    quantized: bool = False


class ModelFacts(Wire, frozen=True, kw_only=True):
    """What a model file says of itself.

    Args:
        ir_version: ONNX IR version; 0 for TFLite.
        opsets: Domain → version.
        inputs: Without initializers.
        outputs: As the graph lists them.
        ops: Operator → count, subgraphs too; other domains as `domain::op`.
        weights_bytes: Size of all initializers.
        files: External data files beside the model, relative to its folder.
        format: `onnx` or `tflite`.
        quantized: Its arithmetic is that of integers (TFLite).
    """

    ir_version: int
    opsets: dict[str, int]
    inputs: tuple[ModelTensor, ...]
    outputs: tuple[ModelTensor, ...]
    ops: dict[str, int]
    weights_bytes: int
    files: tuple[str, ...] = ()
    format: str = "onnx"
    quantized: bool = False


class _Refusal(Wire, frozen=True, kw_only=True):
    code: str
    what: str


class _Answer(Wire, frozen=True, kw_only=True):
    facts: ModelFacts | None = None
    refusal: _Refusal | None = None


def probe(path: Path) -> ModelFacts:
    """Check an ONNX or TFLite file and return what it says of itself. The answer is kept in the cache by content.

    Raises:
        EdgeopsError: E-MODEL-FORMAT; not ONNX or TFLite, damaged, or it takes too much time or memory to read.
            E-HANDOVER-MISSING or E-PATH-ESCAPE; external data. E-MODEL-UNSUPPORTED; unusual types or operators.
    """
    cached = cache_dir() / "intake" / f"{_content_key(path)}.json"
    if cached.exists():
        try:
            facts = decode(cached.read_bytes(), ModelFacts, what=str(cached))
            if not facts.files:
                return facts
        except EdgeopsError:
            cached.unlink(missing_ok=True)
    limit = _MEMORY_BASE_BYTES + _MEMORY_PER_FILE_BYTE * path.stat().st_size
    command = [sys.executable, "-m", "edgeops.intake.onnx_probe", str(path), str(limit)]
    advice = "Export the model again, and check it with onnx.checker or a TFLite interpreter."
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise EdgeopsError("E-MODEL-FORMAT", f"{path}: not readable within {_TIMEOUT_S} s", advice) from error
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise EdgeopsError("E-MODEL-FORMAT", f"{path}: reading it failed: {last[0][:300]}", advice)
    answer = decode(done.stdout, _Answer, what="answer of the model reader")
    if answer.facts is None:
        refusal = answer.refusal or _Refusal(code="E-MODEL-FORMAT", what=f"{path}: no answer")
        raise EdgeopsError(refusal.code, refusal.what, advice)
    cached.parent.mkdir(parents=True, exist_ok=True)
    durable.write_file(cached, encode(answer.facts))
    return answer.facts


def _content_key(path: Path) -> str:
    digest = hashlib.sha256(importlib.metadata.version("onnx").encode())
    with path.open("rb") as source:
        while block := source.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_facts(path: Path) -> ModelFacts:
    """Read and check an ONNX file in this process.

    Raises:
        EdgeopsError: As `probe`.
    """
    import onnx

    # The package comes without types.
    decode_error: type[Exception] = importlib.import_module("google.protobuf.message").DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (decode_error, ValueError) as error:
        raise EdgeopsError("E-MODEL-FORMAT", f"{path}: not an ONNX model: {error}") from error
    if not model.graph.node or not model.opset_import:
        raise EdgeopsError("E-MODEL-FORMAT", f"{path}: not an ONNX model: no operators or no opset")
    files = _external_files(path, model)
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise EdgeopsError("E-MODEL-FORMAT", f"{path}: {' '.join(str(error).split())[:300]}") from error
    _check_domains(path, model.graph)
    for opset in model.opset_import:
        if opset.domain not in _DOMAINS:
            raise EdgeopsError("E-MODEL-UNSUPPORTED", f"{path}: operators of domain {opset.domain!r}")
    _check_weights(path, model.graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    return ModelFacts(
        ir_version=model.ir_version,
        opsets={opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        inputs=tuple(_tensor(path, value) for value in model.graph.input if value.name not in constants),
        outputs=tuple(_tensor(path, value) for value in model.graph.output),
        ops=dict(sorted(_count_ops(model.graph, {}).items())),
        weights_bytes=_constant_bytes(model.graph) + sum((path.parent / name).stat().st_size for name in files),
        files=files,
    )


def _check_domains(path: Path, graph: Any) -> None:
    for node in graph.node:
        if node.domain not in _DOMAINS:
            raise EdgeopsError(
                "E-MODEL-UNSUPPORTED",
                f"{path}: node {node.name or node.output[0]!r}: operator {node.op_type} of domain {node.domain!r}: "
                "no runtime of any profile has it",
            )
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _check_domains(path, inner)


def _check_weights(path: Path, graph: Any) -> None:
    """Refuse NaN anywhere, and infinite values in what is multiplied; masks of attention are infinite by intent."""
    import numpy as np
    import onnx

    multiplied = {name for node in graph.node if node.op_type in _WEIGHTED for name in node.input}
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    for tensor in graph.initializer:
        if tensor.data_type not in kinds:
            continue
        values = onnx.numpy_helper.to_array(tensor, base_dir=str(path.parent))
        bad = ~np.isfinite(values) if tensor.name in multiplied else np.isnan(values)
        if bad.any():
            raise EdgeopsError(
                "E-MODEL-UNSUPPORTED",
                f"{path}: weights {tensor.name!r}: {int(bad.sum())} of {values.size} values are NaN or infinite",
            )
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _check_weights(path, inner)


def _constant_bytes(graph: Any) -> int:
    size = sum(tensor.ByteSize() for tensor in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            size += attribute.t.ByteSize()
            size += sum(_constant_bytes(inner) for inner in (attribute.g, *attribute.graphs) if inner.node)
    return int(size)


def _external_files(path: Path, model: Any) -> tuple[str, ...]:
    import onnx

    names = set()
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            names |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    for name in names:
        target = (path.parent / name).resolve()
        if not target.is_relative_to(path.parent.resolve()):
            raise EdgeopsError("E-PATH-ESCAPE", f"{path}: external data {name!r} lies outside the hand-over's folder")
        if not target.is_file():
            raise EdgeopsError("E-HANDOVER-MISSING", f"{path}: external data {name!r} is not there")
    return tuple(sorted(names))


def _tensor(path: Path, value: Any) -> ModelTensor:
    import onnx

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return ModelTensor(name=value.name, dtype=str(kind), shape=None)
    tensor = value.type.tensor_type
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except (KeyError, TypeError, ValueError) as error:
        raise EdgeopsError("E-MODEL-FORMAT", f"{path}: tensor {value.name!r} has no known type") from error
    if not tensor.HasField("shape"):
        return ModelTensor(name=value.name, dtype=dtype, shape=None)
    # Exporters write an open size as nothing, as a name, as 0 or as a negative number.
    shape = tuple(size.dim_value if size.dim_value > 0 else -1 for size in tensor.shape.dim)
    return ModelTensor(name=value.name, dtype=dtype, shape=shape)


def _count_ops(graph: Any, counts: dict[str, int]) -> dict[str, int]:
    for node in graph.node:
        name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        counts[name] = counts.get(name, 0) + 1
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    _count_ops(inner, counts)
    return counts


def _read(path: Path) -> ModelFacts:
    with path.open("rb") as model:
        mark = model.read(8)[4:]
    if mark != TFLITE_MARK and path.suffix != ".tflite":
        return read_facts(path)
    from edgeops.intake.tflite_probe import read_tflite_facts

    return read_tflite_facts(path)


def _main(path: str, memory_bytes: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = _Answer(facts=_read(Path(path)))
    except EdgeopsError as error:
        answer = _Answer(refusal=_Refusal(code=error.code, what=error.what))
    sys.stdout.buffer.write(encode(answer))


if __name__ == "__main__":
    _main(*sys.argv[1:])
