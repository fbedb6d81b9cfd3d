"""OpenVINO behind the `Backend` protocol, with the precision hint that the bundle states."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.tensors import TensorSpec
from edgeops.runtimes.protocol import Availability, FeedCheck, LoadOptions, Session, Tensors

# The plugin's own default may be bf16 on a host and f32 on a device: parity needs it stated.
DEFAULT_PRECISION = "f32"
_COPIED_BYTES = 64 << 10
_DTYPES = {
    "boolean": "bool", "u8": "uint8", "i8": "int8", "u16": "uint16", "i16": "int16", "u32": "uint32", "i32": "int32",
    "u64": "uint64", "i64": "int64", "f16": "float16", "f32": "float32", "f64": "float64",
}  # fmt: skip


def without_telemetry() -> None:
    """Have OpenVINO and NNCF tell nobody that they are used: as they are imported they start a thread that does.

    Without its package they go on with a stub of it. Where it is imported already this changes nothing.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # documented: importing it then fails


class OpenVinoBackend:
    """OpenVINO on the CPU."""

    name = "openvino"

    def available(self) -> Availability:
        """Say whether OpenVINO can be imported, its version and devices."""
        without_telemetry()
        try:
            openvino = importlib.import_module("openvino")
        except ImportError as error:
            return Availability(None, str(error))
        return Availability(str(openvino.__version__).split("-")[0])

    def load(self, artifact: Path, options: LoadOptions) -> Session:
        """Load an IR (.xml with .bin beside it) or ONNX file; see `Backend.load`."""
        without_telemetry()
        try:
            openvino = importlib.import_module("openvino")
        except ImportError as error:
            raise EdgeopsError("E-RUNTIME-MISSING", f"OpenVINO: {error}", "pip install 'edgeops[openvino]'") from error
        settings = {
            "INFERENCE_PRECISION_HINT": options.options.get("inference_precision", DEFAULT_PRECISION),
            "INFERENCE_NUM_THREADS": str(options.threads),
            "NUM_STREAMS": "1",
            # Its own pinning takes no notice of other models: which processors are used is the profile's to say.
            "ENABLE_CPU_PINNING": "NO",
        }
        if options.cache_dir is not None:
            settings["CACHE_DIR"] = str(options.cache_dir)
        try:
            core = openvino.Core()
            return _OpenVinoSession(core.compile_model(core.read_model(str(artifact)), "CPU", settings))
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise EdgeopsError("E-RUNTIME-LOAD", f"OpenVINO refuses {artifact}: {_first_line(error)}") from error


class _OpenVinoSession:
    """A compiled OpenVINO model."""

    provider = "CPU"

    def __init__(self, model: Any) -> None:
        self._request = model.create_infer_request()
        self._inputs = tuple(_spec(port) for port in model.inputs)
        self._check = FeedCheck(self._inputs)
        self._outputs = tuple(_spec(port) for port in model.outputs)
        self._places = self._bound()

    def _bound(self) -> tuple[NDArray[Any], ...]:
        """Bind small inputs of fixed shape to memory of their own; empty: feeds are handed over at each inference.

        Handing them over costs more than an inference of the smallest models, and more than copying so little.
        """
        import openvino

        if any(-1 in spec.shape for spec in self._inputs):
            return ()
        places = tuple(np.zeros(spec.shape, spec.dtype) for spec in self._inputs)
        if sum(place.nbytes for place in places) > _COPIED_BYTES:
            return ()
        for index, place in enumerate(places):
            self._request.set_input_tensor(index, openvino.Tensor(place, shared_memory=True))
        return places

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs."""
        return self._outputs

    @property
    def arena_bytes(self) -> None:
        """It does not say."""

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Run one inference; see `Session.run`."""
        self._check(feeds)
        if self._request is None:
            raise EdgeopsError("E-RUNTIME-RUN", "OpenVINO: the session is closed")
        try:
            if self._places:
                for spec, place in zip(self._inputs, self._places, strict=True):
                    np.copyto(place, feeds[spec.name])
                values = self._request.infer()
            else:
                values = self._request.infer([feeds[spec.name] for spec in self._inputs], share_inputs=True)
        except (RuntimeError, ValueError) as error:
            raise EdgeopsError("E-RUNTIME-RUN", f"OpenVINO: {_first_line(error)}") from error
        return {spec.name: np.array(values[index]) for index, spec in enumerate(self._outputs)}

    def close(self) -> None:
        """Free the model's memory."""
        self._request, self._places = None, ()


def _spec(port: Any) -> TensorSpec:
    kind = port.get_element_type().get_type_name()
    if kind not in _DTYPES:
        raise ValueError(f"tensor {port.get_any_name()!r} has type {kind}, which devices do not carry")
    shape = tuple(size.get_length() if size.is_static else -1 for size in port.get_partial_shape())
    return TensorSpec(name=min(port.get_names()), dtype=_DTYPES[kind], shape=shape)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:400]
