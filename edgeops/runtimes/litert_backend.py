"""LiteRT behind the `Backend` protocol: ai-edge-litert, or tflite-runtime where an older device has that."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.tensors import DTYPES, TensorSpec
from edgeops.runtimes.protocol import Availability, FeedCheck, LoadOptions, Session, Tensors

_PACKAGES = (("ai_edge_litert.interpreter", "ai-edge-litert"), ("tflite_runtime.interpreter", "tflite-runtime"))
_FLATBUFFER_MARK = b"TFL3"
# The bindings of tflite-runtime report some failures as a result with an exception set.
_ERRORS = (OSError, RuntimeError, ValueError, KeyError, SystemError)


class LiteRtBackend:
    """LiteRT, formerly TensorFlow Lite."""

    name = "litert"

    def available(self) -> Availability:
        """Say whether ai-edge-litert or tflite-runtime can be imported, and its version."""
        try:
            _, package = _interpreter()
        except ImportError as error:
            return Availability(None, str(error))
        # Here, and not above: it takes 3 MiB with what it imports, and workers do not ask.
        from importlib.metadata import version as installed

        version = installed(package)
        # The older package counts on: its 2.14 is older than any version of the newer one.
        return Availability(version if package == _PACKAGES[0][1] else f"{package} {version}")

    def load(self, artifact: Path, options: LoadOptions) -> Session:
        """Load a .tflite file; see `Backend.load`."""
        try:
            module, _ = _interpreter()
        except ImportError as error:
            raise EdgeopsError("E-RUNTIME-MISSING", f"LiteRT: {error}", "pip install 'edgeops[litert]'") from error
        try:
            with artifact.open("rb") as model:
                mark = model.read(8)[4:]
            if mark != _FLATBUFFER_MARK:
                # The native reader trusts the offsets in the file: what is no TFLite model must not reach it.
                raise EdgeopsError("E-RUNTIME-LOAD", f"{artifact} is not a TFLite model")
        except OSError as error:
            raise EdgeopsError("E-RUNTIME-LOAD", f"LiteRT refuses {artifact}: {_first_line(error)}") from error
        wanted, why = options.options.get("delegate"), ""
        if wanted is not None:
            try:
                return _session(module, artifact, options, wanted, [_delegate(module, wanted, options.options)])
            except _ERRORS as error:
                why = f" ({wanted}: {' '.join(str(error).split())[:400]})"
        kernels = "XNNPACK" if _xnnpack(options) else "built-in kernels"
        try:
            return _session(module, artifact, options, kernels + why, [])
        except _ERRORS as error:
            raise EdgeopsError("E-RUNTIME-LOAD", f"LiteRT refuses {artifact}: {_first_line(error)}{why}") from error


def _session(module: Any, artifact: Path, options: LoadOptions, provider: str, delegates: list[Any]) -> _LiteRtSession:
    """Load a model, on delegates or without.

    Raises:
        OSError, RuntimeError, ValueError, KeyError, SystemError: The interpreter, or a delegate, refuses it.
    """
    resolver = module.OpResolverType
    interpreter = module.Interpreter(
        model_path=str(artifact),
        num_threads=options.threads,
        experimental_op_resolver_type=resolver.AUTO
        if _xnnpack(options)
        else resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_delegates=delegates,
    )
    interpreter.allocate_tensors()
    return _LiteRtSession(interpreter, provider)


def _xnnpack(options: LoadOptions) -> bool:
    return options.options.get("xnnpack", "on") != "off"


def _delegate(module: Any, library: str, options: Mapping[str, str]) -> Any:
    """Load a delegate.

    Raises:
        OSError, ValueError: The library is not there, is no delegate, or refuses.
    """
    # The runtime's own loader leaves half a delegate behind, which fails once more when it is collected.
    found = ctypes.CDLL(library)
    for function in ("tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate"):
        if not hasattr(found, function):
            raise ValueError(f"it is no delegate: it has no {function}")
    return module.load_delegate(library, _delegate_options(options))


def _delegate_options(options: Mapping[str, str]) -> dict[str, str]:
    """Return what is for the delegate itself: `delegate.NAME`."""
    mark = "delegate."
    return {name.removeprefix(mark): value for name, value in options.items() if name.startswith(mark)}


class _LiteRtSession:
    """A loaded TFLite model."""

    def __init__(self, interpreter: Any, provider: str) -> None:
        self._interpreter = interpreter
        self._provider = provider
        self._ins, self._outs = ends(interpreter)
        self._inputs = tuple(_spec(name, item) for name, item in self._ins)
        self._check = FeedCheck(self._inputs)
        self._outputs = tuple(_spec(name, item) for name, item in self._outs)
        self._shapes = {name: tuple(item["shape"].tolist()) for name, item in self._ins}

    @property
    def provider(self) -> str:
        """The delegate or the kernels in use, with the reason where a delegate is not."""
        return self._provider

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
        if self._interpreter is None:
            raise EdgeopsError("E-RUNTIME-RUN", "LiteRT: the session is closed")
        try:
            self._fit(feeds)
            for name, item in self._ins:
                self._interpreter.set_tensor(item["index"], feeds[name])
            self._interpreter.invoke()
            # `get_tensor` copies: the answer stays as it is when the next inference runs.
            return {name: np.asarray(self._interpreter.get_tensor(item["index"])) for name, item in self._outs}
        except _ERRORS as error:
            raise EdgeopsError("E-RUNTIME-RUN", f"LiteRT: {_first_line(error)}") from error

    def close(self) -> None:
        """Free the model's memory."""
        self._interpreter = None

    def _fit(self, feeds: Tensors) -> None:
        """Give inputs whose size the model leaves open the size of the tensors that come."""
        changed = [(name, item) for name, item in self._ins if feeds[name].shape != self._shapes[name]]
        for name, item in changed:
            self._interpreter.resize_tensor_input(item["index"], feeds[name].shape, strict=True)
            self._shapes[name] = feeds[name].shape
        if changed:
            self._interpreter.allocate_tensors()


def _interpreter() -> tuple[Any, str]:
    """Return the interpreter's module and its package.

    Raises:
        ImportError: Neither package can be imported.
    """
    reasons = []
    for module, package in _PACKAGES:
        try:
            if package == "tflite-runtime" and int(np.__version__.split(".")[0]) > 1:
                raise ImportError(f"tflite-runtime needs numpy 1, this is {np.__version__}")
            return importlib.import_module(module), package
        except ImportError as error:
            reasons.append(str(error))
    raise ImportError("; ".join(reasons))


def ends(interpreter: Any) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """Return inputs and outputs in the model's order, by the names of its one signature where it has one."""
    ins, outs = interpreter.get_input_details(), interpreter.get_output_details()
    signatures = interpreter.get_signature_list()
    if len(signatures) == 1:
        runner = interpreter.get_signature_runner(next(iter(signatures)))
        named_ins, named_outs = _named(runner.get_input_details(), ins), _named(runner.get_output_details(), outs)
        if named_ins and named_outs:
            return named_ins, named_outs
    return [(item["name"], item) for item in ins], [(item["name"], item) for item in outs]


def _named(signature: Mapping[str, Any], details: Sequence[Any]) -> list[tuple[str, Any]]:
    """Return a signature's tensors in the order of the main graph's; nothing if they are of another graph."""
    order = {(item["index"], item["name"]): place for place, item in reversed(list(enumerate(details)))}
    places = {name: order.get((item["index"], item["name"])) for name, item in signature.items()}
    if set(places.values()) != set(order.values()):
        return []
    return sorted(signature.items(), key=lambda entry: (places[entry[0]], entry[0]))


def _spec(name: str, item: Any) -> TensorSpec:
    dtype = np.dtype(item["dtype"]).name
    if dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} has type {dtype}, which devices do not carry")
    # A model that leaves no size open may have an empty shape signature.
    signature = item["shape_signature"] if len(item["shape_signature"]) == len(item["shape"]) else item["shape"]
    return TensorSpec(name=name, dtype=dtype, shape=tuple(int(size) for size in signature))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:400]
