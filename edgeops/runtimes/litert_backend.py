"""LiteRT behind the `Backend` protocol: ai-edge-litert, or tflite-runtime where an older device has that."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.tensors import DTYPES, TensorSpec
from edgeops.runtimes.protocol import Availability, LoadOptions, Session, Tensors, check_feeds

_PACKAGES = (("ai_edge_litert.interpreter", "ai-edge-litert"), ("tflite_runtime.interpreter", "tflite-runtime"))
_FLATBUFFER_MARK = b"TFL3"


class LiteRtBackend:
    """LiteRT, formerly TensorFlow Lite."""

    name = "litert"

    def available(self) -> Availability:
        """Say whether ai-edge-litert or tflite-runtime can be imported, and its version."""
        try:
            _, package = _interpreter()
        except ImportError as error:
            return Availability(None, str(error))
        return Availability(importlib.metadata.version(package))

    def load(self, artifact: Path, options: LoadOptions) -> Session:
        """Load a .tflite file; see `Backend.load`."""
        try:
            make, _ = _interpreter()
        except ImportError as error:
            raise EdgeopsError("E-RUNTIME-MISSING", f"LiteRT: {error}", "pip install 'edgeops[litert]'") from error
        try:
            with artifact.open("rb") as model:
                mark = model.read(8)[4:]
            if mark != _FLATBUFFER_MARK:
                # The native reader trusts the offsets in the file: what is no TFLite model must not reach it.
                raise EdgeopsError("E-RUNTIME-LOAD", f"{artifact} is not a TFLite model")
            interpreter = make(model_path=str(artifact), num_threads=options.threads)
            interpreter.allocate_tensors()
            return _LiteRtSession(interpreter)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise EdgeopsError("E-RUNTIME-LOAD", f"LiteRT refuses {artifact}: {_first_line(error)}") from error


class _LiteRtSession:
    """A loaded TFLite model."""

    provider = "XNNPACK"

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        self._ins = interpreter.get_input_details()
        self._outs = interpreter.get_output_details()
        self._inputs = tuple(_spec(item) for item in self._ins)
        self._outputs = tuple(_spec(item) for item in self._outs)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs."""
        return self._outputs

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Run one inference; see `Session.run`."""
        check_feeds(feeds, self._inputs)
        try:
            for item in self._ins:
                self._interpreter.set_tensor(item["index"], feeds[item["name"]])
            self._interpreter.invoke()
            # `get_tensor` copies: the answer stays as it is when the next inference runs.
            return {item["name"]: np.asarray(self._interpreter.get_tensor(item["index"])) for item in self._outs}
        except (RuntimeError, ValueError) as error:
            raise EdgeopsError("E-RUNTIME-RUN", f"LiteRT: {_first_line(error)}") from error

    def close(self) -> None:
        """Free the model's memory."""
        self._interpreter = None


def _interpreter() -> tuple[Any, str]:
    """Return the interpreter's class and its package.

    Raises:
        ImportError: Neither package can be imported.
    """
    reasons = []
    for module, package in _PACKAGES:
        try:
            return importlib.import_module(module).Interpreter, package
        except ImportError as error:
            reasons.append(str(error))
    raise ImportError("; ".join(reasons))


def _spec(item: Any) -> TensorSpec:
    dtype = np.dtype(item["dtype"]).name
    if dtype not in DTYPES:
        raise ValueError(f"tensor {item['name']!r} has type {dtype}, which devices do not carry")
    signature = item.get("shape_signature", item["shape"])
    return TensorSpec(name=item["name"], dtype=dtype, shape=tuple(int(size) for size in signature))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:400]
