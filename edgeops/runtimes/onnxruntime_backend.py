"""onnxruntime behind the `Backend` protocol: providers in the profile's order, and the reason when one is not used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.profile import Precision
from edgeops.contracts.tensors import TensorSpec
from edgeops.runtimes.protocol import Availability, FeedCheck, LoadOptions, Session, Tensors

_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(uint32)": "uint32",
    "tensor(int32)": "int32",
    "tensor(uint64)": "uint64",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}
_ALWAYS_LAST = "CPUExecutionProvider"


class OnnxRuntimeBackend:
    """onnxruntime, any build of it."""

    name = "onnxruntime"

    def available(self) -> Availability:
        """Say whether onnxruntime can be imported, its version and its execution providers."""
        try:
            ort = importlib.import_module("onnxruntime")
        except ImportError as error:
            return Availability(None, str(error))
        return Availability(str(ort.__version__), providers=tuple(ort.get_available_providers()))

    def load(self, artifact: Path, options: LoadOptions) -> Session:
        """Load an ONNX file; see `Backend.load`."""
        try:
            ort = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise EdgeopsError(
                "E-RUNTIME-MISSING", f"onnxruntime: {error}", "pip install 'edgeops[onnxruntime]'"
            ) from error
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        settings.log_severity_level = 4
        present = ort.get_available_providers()
        wanted = list(options.providers) or [_ALWAYS_LAST]
        usable = [name for name in wanted if name in present and name != _ALWAYS_LAST]
        if options.options.get("graph_optimization") == "off":
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        failures: dict[str, str] = {}
        while True:
            try:
                session = ort.InferenceSession(
                    str(artifact),
                    settings,
                    providers=[*usable, _ALWAYS_LAST],
                    provider_options=[*(_settings_of(name, options) for name in usable), {}],
                    # Its own way back to the CPU is silent, and open during every inference.
                    enable_fallback=0,
                )
                return _OnnxSession(session, _explain(wanted, present, session.get_providers(), failures))
            except _errors() as error:
                if not usable:
                    raise EdgeopsError(
                        "E-RUNTIME-LOAD", f"onnxruntime refuses {artifact}: {_first_line(error)}"
                    ) from error
                failures[usable.pop(0)] = _first_line(error)


class _OnnxSession:
    """A loaded ONNX model."""

    def __init__(self, session: Any, provider: str) -> None:
        self._session = session
        self._provider = provider
        self._inputs = tuple(_spec(item) for item in session.get_inputs())
        self._check = FeedCheck(self._inputs)
        self._outputs = tuple(_spec(item) for item in session.get_outputs())
        self._names = [spec.name for spec in self._outputs]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs."""
        return self._outputs

    @property
    def provider(self) -> str:
        """The first execution provider in use, with the reason where it is not the first choice."""
        return self._provider

    @property
    def arena_bytes(self) -> None:
        """It does not say."""

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Run one inference; see `Session.run`."""
        self._check(feeds)
        if self._session is None:
            raise EdgeopsError("E-RUNTIME-RUN", "onnxruntime: the session is closed")
        try:
            values = self._session.run(self._names, dict(feeds))
        except _errors() as error:
            raise EdgeopsError("E-RUNTIME-RUN", f"onnxruntime: {_first_line(error)}") from error
        return dict(zip(self._names, (np.asarray(value) for value in values), strict=True))

    def close(self) -> None:
        """Free the model's memory."""
        self._session = None


def _errors() -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises: its own types share no base class but Exception."""
    state: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    names = (
        "Fail", "InvalidArgument", "NoSuchFile", "NoModel", "EngineError", "RuntimeException", "InvalidProtobuf",
        "ModelLoaded", "NotImplemented", "InvalidGraph", "EPFail",
    )  # fmt: skip
    return (RuntimeError, ValueError, KeyError, *(getattr(state, name) for name in names))


def _settings_of(provider: str, options: LoadOptions) -> dict[str, str]:
    if provider != "TensorrtExecutionProvider":
        return {}
    settings = {
        "trt_int8_enable": "1" if options.precision is Precision.INT8 else "0",
        "trt_fp16_enable": "1" if options.precision is Precision.FLOAT16 else "0",
    }
    if options.cache_dir is not None:
        folder = str(options.cache_dir)
        settings |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
        }
    return settings


def _explain(wanted: Sequence[str], present: Sequence[str], used: Sequence[str], failures: Mapping[str, str]) -> str:
    """Return the provider in use and why each earlier choice is not."""
    first = used[0] if used else _ALWAYS_LAST
    earlier = list(wanted[: wanted.index(first)] if first in wanted else wanted)
    missing = [name for name in earlier if name not in present]
    refused = [name for name in earlier if name in present and name not in failures]
    reasons = []
    if missing:
        reasons.append(f"{', '.join(missing)} not in this build")
    if refused:
        reasons.append(f"{', '.join(refused)} could not start")
    reasons += [f"{name} failed: {why}" for name, why in failures.items()]
    return first + (f" ({'; '.join(reasons)})" if reasons else "")


def _spec(item: Any) -> TensorSpec:
    if item.type not in _DTYPES:
        raise ValueError(f"tensor {item.name!r} has type {item.type}, which devices do not carry")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in item.shape)
    return TensorSpec(name=item.name, dtype=_DTYPES[item.type], shape=shape)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:400]
