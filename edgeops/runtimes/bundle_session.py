"""A bundle as clients see it: device tensors in, device tensors out; the layout adapter is applied here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.bundle import Binding, BundleManifest
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.tensors import MAX_VARYING_ELEMENTS, SMALL_INTEGERS, TensorSpec
from edgeops.runtimes.protocol import FeedCheck, LoadOptions, Session, Tensors
from edgeops.runtimes.registry import backend
from edgeops.runtimes.steps import TensorForm, apply, apply_results, propagate, propagate_results

_INTEGERS = ("uint8", "int8", "uint16", "int16", "int32")


class BundleSession:
    """A loaded bundle. Not safe for use by two threads at once.

    Args:
        session: The artifact's session.
        manifest: The bundle's manifest.

    Raises:
        EdgeopsError: E-RUNTIME-LOAD; the artifact's own tensors are not those that the manifest names.
            E-BUNDLE-INVALID; a binding cannot be applied.
    """

    def __init__(self, session: Session, manifest: BundleManifest) -> None:
        self._session = session
        self._check = FeedCheck(manifest.inputs)
        _check_present(manifest.input_bindings, session.inputs, "input")
        _check_present(manifest.output_bindings, session.outputs, "output")
        bound = {item.artifact.name for item in manifest.input_bindings}
        if free := sorted(spec.name for spec in session.inputs if spec.name not in bound):
            raise EdgeopsError("E-RUNTIME-LOAD", f"the manifest binds nothing to the artifact's input {free[0]!r}")
        for spec, item in _pairs(manifest):
            _check_binding(item, item.bound or spec, incoming=item in manifest.input_bindings)
        _check_steps(manifest)
        inputs = {item.device: item.bound for item in manifest.input_bindings if item.bound}
        inputs = {spec.name: spec for spec in manifest.inputs} | inputs
        outputs = {item.device: item.bound for item in manifest.output_bindings if item.bound}
        outputs = {info.tensor.name: info.tensor for info in manifest.outputs} | outputs
        self._steps, self._results = manifest.agent_steps, manifest.agent_results
        self._varying = {spec.name: spec for spec in manifest.inputs if spec.varies}
        self._incoming = [
            (item.device, item.artifact.name, _incoming(item, inputs[item.device])) for item in manifest.input_bindings
        ]
        self._outgoing = [
            (item.device, item.artifact.name, _outgoing(item, outputs[item.device]))
            for item in manifest.output_bindings
        ]

    @property
    def provider(self) -> str:
        """What really runs it, with the reason where it is not the first choice."""
        return self._session.provider

    @property
    def arena_bytes(self) -> int | None:
        """The memory that the runtime has planned for the artifact; None: it does not say."""
        return self._session.arena_bytes

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Run one inference on the tensors that clients see.

        Raises:
            EdgeopsError: E-RUNTIME-INPUT; a tensor has a wrong name, type or shape. E-RUNTIME-RUN; the runtime failed,
                or gave a tensor of another size than the manifest says.
        """
        self._check(feeds)
        if self._steps:
            feeds = dict(feeds) | {name: self._stepped(name, feeds[name]) for name in self._steps}
        raw = self._session.run({artifact: adapt(feeds[device]) for device, artifact, adapt in self._incoming})
        answer = {device: adapt(raw[artifact]) for device, artifact, adapt in self._outgoing}
        for name, steps in self._results.items():
            answer[name] = apply_results(steps, answer[name])
        return answer

    def _stepped(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        spec = self._varying.get(name)
        if spec is not None and spec.sized(value.shape) is None:
            raise EdgeopsError(
                "E-RUNTIME-INPUT",
                f"input {name!r}: {list(value.shape)} is empty, or more than {MAX_VARYING_ELEMENTS} values",
                "Send a smaller one.",
            )
        return apply(self._steps[name], value)

    def close(self) -> None:
        """Free the artifact's memory."""
        self._session.close()

    def __enter__(self) -> BundleSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_session(
    directory: Path, manifest: BundleManifest, *, threads: int = 1, cache_dir: Path | None = None
) -> BundleSession:
    """Load a checked bundle in the runtime that it was made for.

    Args:
        directory: The bundle's directory, already checked (`releases.bundles.open_bundle`).
        manifest: Its manifest.
        threads: Inference threads.
        cache_dir: Where the runtime may keep engines that it builds.

    Raises:
        EdgeopsError: E-PLUGIN; no such runtime. E-RUNTIME-MISSING; not installed. E-RUNTIME-LOAD; it refuses the
            artifact, or has other tensors than the manifest names. E-BUNDLE-INVALID; a binding cannot be applied.
    """
    options = LoadOptions(threads, manifest.providers, manifest.options, cache_dir, manifest.precision)
    session = backend(manifest.runtime).load(directory / manifest.artifact, options)
    try:
        return BundleSession(session, manifest)
    except EdgeopsError:
        session.close()
        raise


def _check_present(bindings: tuple[Binding, ...], tensors: tuple[TensorSpec, ...], what: str) -> None:
    present = {spec.name: spec for spec in tensors}
    for item in bindings:
        spec = present.get(item.artifact.name)
        if spec is None or spec.dtype != item.artifact.dtype:
            raise EdgeopsError(
                "E-RUNTIME-LOAD",
                f"the manifest binds {what} {item.device!r} to {item.artifact.name!r} ({item.artifact.dtype}), which "
                f"the artifact does not have; it has {', '.join(sorted(present))}",
                "Compile the bundle again.",
            )


def _pairs(manifest: BundleManifest) -> list[tuple[TensorSpec, Binding]]:
    """Return each device tensor with its binding; that each has one is a rule of bundles."""
    specs = (
        {spec.name: spec for spec in manifest.inputs},
        {info.tensor.name: info.tensor for info in manifest.outputs},
    )
    sides = zip(specs, (manifest.input_bindings, manifest.output_bindings), strict=True)
    return [(spec[item.device], item) for spec, bindings in sides for item in bindings]


def _check_binding(item: Binding, device: TensorSpec, *, incoming: bool) -> None:
    """Refuse a binding that would fail, or change values silently, at the first request."""
    axes = len(device.shape if incoming else item.artifact.shape)
    kinds = {np.dtype(device.dtype).kind, np.dtype(item.artifact.dtype).kind}
    # Every one of these is a float32 too.
    widened = incoming and device.dtype in SMALL_INTEGERS and item.artifact.dtype == "float32"
    problem = None
    if item.artifact.elements != device.elements:
        problem = f"{list(device.shape)} and {list(item.artifact.shape)} have different numbers of values"
    elif item.transpose is not None and sorted(item.transpose) != list(range(axes)):
        problem = f"transpose {list(item.transpose)} is no order of {axes} axes"
    elif item.scale is None and not widened and device.dtype != item.artifact.dtype and "f" in kinds:
        problem = f"{device.dtype} and {item.artifact.dtype} without a scale"
    elif item.scale is not None and not (0 < item.scale < float("inf") and item.artifact.dtype in _INTEGERS):
        problem = f"{item.artifact.dtype} with scale {item.scale:g}"
    if problem is not None:
        raise EdgeopsError(
            "E-BUNDLE-INVALID", f"binding of {item.device!r} to {item.artifact.name!r}: {problem}", "Compile it again."
        )


def _check_steps(manifest: BundleManifest) -> None:
    """Refuse steps that do not lead from the device's tensors to the bound ones, or back."""
    ins = {item.device: item.bound for item in manifest.input_bindings}
    outs = {item.device: item.bound for item in manifest.output_bindings}
    inputs = {spec.name: spec for spec in manifest.inputs}
    outputs = {info.tensor.name: info.tensor for info in manifest.outputs}
    problem = ""
    varying = {spec.name for spec in manifest.inputs if spec.varies}
    agree = {name for name, bound in ins.items() if bound} == set(manifest.agent_steps) >= varying and {
        name for name, bound in outs.items() if bound
    } == set(manifest.agent_results)
    if not agree:
        problem = "agent_steps, agent_results and bindings do not agree"
    else:
        try:
            for name, steps in manifest.agent_steps.items():
                form = propagate(steps, _form(inputs[name]), where=name, key="agent_steps")
                problem = problem or _unlike(form, ins[name])
            for name, results in manifest.agent_results.items():
                bound = outs[name]
                assert bound is not None
                form = propagate_results(results, _form(bound), where=name)
                problem = problem or _unlike(form, outputs[name])
        except EdgeopsError as error:
            problem = error.what
    if problem:
        raise EdgeopsError("E-BUNDLE-INVALID", problem, "Compile it again.")


def _form(spec: TensorSpec) -> TensorForm:
    return TensorForm(spec.dtype, spec.shape)


def _unlike(form: TensorForm, spec: TensorSpec | None) -> str:
    return "" if spec is not None and form == _form(spec) else f"steps give {form}, bound is {spec}"


def _incoming(item: Binding, device: TensorSpec) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what takes a device's tensor to the artifact's."""
    if _is_plain(item) and device.dtype == item.artifact.dtype and device.shape == item.artifact.shape:
        # A scalar may come as numpy's own kind of number, which a runtime does not take.
        return np.ascontiguousarray if device.shape else np.asarray
    return lambda value: _to_artifact(value, item)


def _outgoing(item: Binding, device: TensorSpec) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what takes the artifact's tensor to the device's."""
    if not _is_plain(item):
        return lambda value: _to_device(value, item, device)
    dtype, shape = np.dtype(device.dtype), device.shape

    def adapt(value: NDArray[Any]) -> NDArray[Any]:
        plain = value.shape == shape and value.dtype == dtype and value.flags.c_contiguous
        return value if plain else _to_device(value, item, device)

    return adapt


def _is_plain(item: Binding) -> bool:
    return item.transpose is None and item.scale is None


def _to_artifact(value: NDArray[Any], item: Binding) -> NDArray[Any]:
    if item.transpose is not None:
        value = value.transpose(item.transpose)
    if item.scale is not None:
        limits = np.iinfo(item.artifact.dtype)
        quantized = np.rint(value / item.scale) + (item.zero_point or 0)
        value = np.clip(quantized, limits.min, limits.max)
    return np.asarray(value.reshape(item.artifact.shape), dtype=item.artifact.dtype, order="C")


def _to_device(value: NDArray[Any], item: Binding, target: TensorSpec) -> NDArray[Any]:
    if item.scale is not None:
        value = (value.astype(np.float32) - np.float32(item.zero_point or 0)) * np.float32(item.scale)
    if item.transpose is not None:
        value = value.transpose(item.transpose)
    if value.size != target.elements:
        raise EdgeopsError(
            "E-RUNTIME-RUN", f"output {target.name!r} has {value.size} values, the manifest says {target.elements}"
        )
    return np.asarray(value.reshape(target.shape), dtype=target.dtype, order="C")
