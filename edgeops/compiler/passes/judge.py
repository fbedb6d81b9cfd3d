"""What an artifact answers: the source's answers, the artifact's, and the figures between them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.compiler import graphs
from edgeops.compiler.inherited import peak_memory_mib
from edgeops.compiler.metrics import accuracy_metric, error_metric
from edgeops.compiler.passes import Outcome, Work, refuse, tflite
from edgeops.compiler.passes.running import ONNX_MODULES, run_artifact, runtime_modules
from edgeops.compiler.passes.samples import has_samples, read_samples, write_samples
from edgeops.contracts.bundle import Binding, BundleManifest, Golden, OutputInfo
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Metric
from edgeops.contracts.handover import Input, ResultStep, Step
from edgeops.contracts.profile import Precision
from edgeops.contracts.tensors import SMALL_INTEGERS, TensorSpec
from edgeops.contracts.wire import Wire
from edgeops.runtimes import compare
from edgeops.runtimes.bundle_session import BundleSession
from edgeops.runtimes.protocol import LoadOptions
from edgeops.runtimes.registry import backend
from edgeops.runtimes.steps import TensorForm, apply, apply_results, propagate, propagate_results


class JudgeOutput(Wire, frozen=True, kw_only=True):
    """An output to judge.

    Args:
        name: The device's name for it.
        model_output: The model's own.
        kind: How it is compared.
        artifact_output: The artifact's name for it.
        postprocess: Steps from the model's output to the device's.
        agent_results: Those of them that the artifact does not hold.
        bound: What the artifact gives where there are such; its name says nothing.
    """

    name: str
    model_output: str
    kind: str
    artifact_output: str
    postprocess: tuple[ResultStep, ...] = ()
    agent_results: tuple[ResultStep, ...] = ()
    bound: TensorSpec | None = None


class JudgePlan(Wire, frozen=True, kw_only=True):
    """How an artifact is run and judged.

    Args:
        runtime: Backend.
        artifact: File in the product's folder.
        precision: Its number format.
        providers: Execution providers in order of preference.
        options: Runtime settings.
        inputs: What devices send.
        agent_steps: Steps of them that the artifact does not hold.
        outputs: What devices get.
        metric: accuracy, mae or none.
        metric_output: The output that labels judge.
        confidence: Of the metric's interval.
    """

    runtime: str
    artifact: str
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[JudgeOutput, ...]
    agent_steps: dict[str, tuple[Step, ...]] = {}
    providers: tuple[str, ...] = ()
    options: dict[str, str] = {}
    metric: str = "none"
    metric_output: str = ""
    confidence: float = 0.95


class Reference:
    """Run the model as it was handed over, with the declared steps done outside of it."""

    tools = ("onnx", "onnxruntime", "ai-edge-litert", "numpy")
    requires: frozenset[str] = frozenset()
    ensures = frozenset({"reference"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return ONNX_MODULES

    def run(self, work: Work) -> Outcome:
        """Parameters: `inputs`, the hand-over's; `outputs`, `JudgeOutput`s. Input: `samples`. Writes `reference`."""
        inputs = msgspec.convert(work.parameters["inputs"], tuple[Input, ...])
        outputs = msgspec.convert(work.parameters["outputs"], tuple[JudgeOutput, ...])
        samples = read_samples(work.inputs["samples"], "judged")
        feeds = {
            spec.model_input or spec.name: np.stack(
                [apply((*spec.agent, *spec.preprocess), row) for row in samples[spec.name]]
            )
            for spec in inputs
        }
        if "tflite" in work.facts:
            got = tflite.run_as_handed_over(work.source / tflite.MODEL_NAME, feeds)
        else:
            got = run_artifact("onnxruntime", work.source / graphs.MODEL_NAME, feeds)
        reference, own = {}, {}
        for output in outputs:
            values = got[output.model_output]
            own[output.name] = {"dtype": values.dtype.name, "shape": values.shape[1:]}
            if output.postprocess:
                form = TensorForm(values.dtype.name, values.shape[1:])
                propagate_results(output.postprocess, form, where=f"output {output.name!r}")
                values = apply_results(output.postprocess, values)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise EdgeopsError(
                    "E-MODEL-UNSUPPORTED",
                    f"the model's output {output.name!r} is not finite on the sample data",
                    "Check the preprocessing in handover.toml and the sample data.",
                )
            reference[output.name] = values
        write_samples(work.target, "reference", reference)
        shapes = {name: {"dtype": values.dtype.name, "shape": values.shape[1:]} for name, values in reference.items()}
        return Outcome(frozenset({"reference"}), {"outputs": shapes, "model_outputs": own})


class Judge:
    """Bind an artifact to the device's tensors, run it on every sample, and measure errors and memory.

    Nothing of a profile is in it beside the runtime's settings: profiles share what is judged. See `latency` for time.
    """

    tools = ("numpy", "onnxruntime", "openvino", "ai-edge-litert", "tflite-micro")
    requires: frozenset[str] = frozenset({"baked"})
    ensures = frozenset({"judged"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return runtime_modules(parameters["runtime"])

    def run(self, work: Work) -> Outcome:
        """Parameters: a `JudgePlan`. Inputs: `samples`, `reference`; `float-judged`, of the float artifact there is."""
        plan = msgspec.convert(work.parameters, JudgePlan)
        samples = read_samples(work.inputs["samples"], "judged")
        reference = read_samples(work.inputs["reference"], "reference")
        notes: dict[str, Any] = {}
        manifest, session = _opened(plan, work.source, work.notes, reference)
        with session:
            # Before this process holds what only judging needs: all samples, and the answers to them.
            _run_all(session, {name: array[:1] for name, array in samples.items()})
            # Where the artifact is a blob, its own arena counts, and the TFLite model's interpreter gives the answers.
            arena = work.notes.get("arena_bytes", session.arena_bytes)
            notes["interpreter_arena_bytes"] = session.arena_bytes
            notes["peak_memory_mib"] = peak_memory_mib() if arena is None else arena / 2**20
            notes["provider"] = session.provider
            outputs = _run_all(session, samples)
        for name, values in outputs.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise refuse(f"output {name!r} is not finite on the sample data")
        kinds = {output.name: output.kind for output in plan.outputs}
        quality = slice(work.input_notes["samples"]["quality"])
        notes["end_to_end"] = _errors(kinds, reference, outputs, quality)
        if "float-judged" in work.inputs:
            plain = read_samples(work.inputs["float-judged"], "outputs")
            notes["quantization"] = _errors(kinds, plain, outputs, quality)
        metric = _metric(plan, work.inputs["samples"], reference, outputs, quality)
        notes["metric"] = None if metric is None else msgspec.to_builtins(metric)
        notes["manifest"] = msgspec.to_builtins(manifest)
        write_samples(work.target, "outputs", outputs)
        return Outcome(frozenset({"judged"}), notes)


def _opened(
    plan: JudgePlan, folder: Path, notes: Mapping[str, Any], reference: Mapping[str, NDArray[Any]]
) -> tuple[BundleManifest, BundleSession]:
    """Load an artifact, and tie the device's tensors to its own.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; the runtime refuses it, or an input or output cannot be tied.
    """
    # One thread: the same answers whatever the number of cores.
    options = LoadOptions(1, plan.providers, plan.options, precision=plan.precision)
    try:
        session = backend(plan.runtime).load(folder / plan.artifact, options)
    except EdgeopsError as error:
        if error.code == "E-RUNTIME-MISSING":
            raise
        raise refuse(f"{plan.runtime}: {error.what}") from error
    try:
        manifest = bind(plan, session.inputs, session.outputs, notes, reference)
        return manifest, BundleSession(session, manifest)
    except EdgeopsError:
        session.close()
        raise


def bind(
    plan: JudgePlan,
    own_inputs: tuple[TensorSpec, ...],
    own_outputs: tuple[TensorSpec, ...],
    notes: Mapping[str, Any],
    reference: Mapping[str, NDArray[Any]],
) -> BundleManifest:
    """Tie device tensors to the artifact's own, and return a manifest that `open_session` can use. Pure.

    Model, profile, golden vectors and files are left for packaging.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; an input or output of the artifact cannot be tied.
    """
    quantized, transposes = notes.get("quantization", {}), notes.get("transposes", {})
    devices = [
        TensorSpec(name=item.name, dtype=reference[item.name].dtype.name, shape=reference[item.name].shape[1:])
        for item in plan.outputs
    ]
    turned = notes.get("input_transposes", {})
    stepped = [_after_steps(spec, plan.agent_steps.get(spec.name, ())) for spec in plan.inputs]
    inputs = _pair(own_inputs, [(spec, spec.name) for spec in stepped])
    given = [item.bound or spec for spec, item in zip(devices, plan.outputs, strict=True)]
    outputs = _pair(own_outputs, [(spec, item.artifact_output) for spec, item in zip(given, plan.outputs, strict=True)])
    return BundleManifest(
        model="",
        profile="",
        arch="",
        runtime=plan.runtime,
        runtime_min="",
        precision=plan.precision,
        scheme="",
        artifact=plan.artifact,
        inputs=plan.inputs,
        outputs=tuple(
            OutputInfo(tensor=spec, kind=item.kind) for spec, item in zip(devices, plan.outputs, strict=True)
        ),
        input_bindings=tuple(
            _bound(
                _binding(one, own, ends, turned.get(own.name), incoming=True),
                device,
                one,
                bool(plan.agent_steps.get(one.name)),
            )
            for (one, own), device in zip(inputs, plan.inputs, strict=True)
            # What sends the stored integers themselves has quantized them before.
            for ends in ({} if notes.get("stored_integers") and one.dtype == own.dtype else quantized,)
        ),
        output_bindings=tuple(
            _bound(
                _binding(one, own, quantized, transposes.get(item.artifact_output)),
                device,
                one,
                bool(item.agent_results),
            )
            for (one, own), item, device in zip(outputs, plan.outputs, devices, strict=True)
        ),
        agent_steps={name: steps for name, steps in plan.agent_steps.items() if steps},
        agent_results={item.name: item.agent_results for item in plan.outputs if item.agent_results},
        golden=Golden(count=0, inputs={}, source_outputs={}, artifact_outputs={}, tolerances={}),
        files={},
        providers=plan.providers,
        options=plan.options,
    )


def _after_steps(spec: TensorSpec, steps: tuple[Step, ...]) -> TensorSpec:
    if not steps:
        return spec
    form = propagate(steps, TensorForm(spec.dtype, spec.shape), where=f"input {spec.name!r}", key="agent")
    return TensorSpec(name=spec.name, dtype=form.dtype, shape=form.shape)


def _bound(binding: Binding, device: TensorSpec, bound: TensorSpec, stepped: bool) -> Binding:
    return msgspec.structs.replace(binding, device=device.name, bound=bound if stepped else None)


def _pair(own: tuple[TensorSpec, ...], wanted: list[tuple[TensorSpec, str]]) -> list[tuple[TensorSpec, TensorSpec]]:
    by_name = {spec.name: spec for spec in own}
    if len(own) != len(wanted):
        raise refuse(f"the artifact has {len(own)} tensors ({sorted(by_name)}) where {len(wanted)} are declared")
    if all(name in by_name for _, name in wanted):
        return [(device, by_name[name]) for device, name in wanted]
    # A converter renamed them but kept their order.
    return [(device, spec) for (device, _), spec in zip(wanted, own, strict=True)]


def _binding(
    device: TensorSpec,
    own: TensorSpec,
    quantized: Mapping[str, Any],
    transpose: list[int] | None,
    *,
    incoming: bool = False,
) -> Binding:
    # From the artifact's order to the device's for outputs, the other way for inputs.
    axes = range(len(transpose or ()))
    order = transpose if incoming or transpose is None else [transpose.index(axis) for axis in axes]
    shape = device.shape if order is None else tuple(device.shape[axis] for axis in order)
    fits = all(size in (-1, want) for size, want in zip(own.shape, shape, strict=False))
    static = TensorSpec(
        name=own.name, dtype=own.dtype, shape=shape if fits and len(own.shape) == len(shape) else own.shape
    )
    if -1 in static.shape or static.elements != device.elements:
        raise refuse(f"{device.name!r} is {list(device.shape)}, the artifact's {own.name!r} is {list(own.shape)}")
    ends = quantized.get(own.name)
    widened = device.dtype in SMALL_INTEGERS and own.dtype == "float32" and incoming
    kinds = {np.dtype(device.dtype).kind, np.dtype(own.dtype).kind}
    if ends is None and not widened and device.dtype != own.dtype and "f" in kinds:
        raise refuse(f"{device.name!r} is {device.dtype}, the artifact's {own.name!r} is {own.dtype}")
    return Binding(
        device=device.name,
        artifact=static,
        transpose=None if transpose is None else tuple(transpose),
        scale=ends and ends["scale"],
        zero_point=ends and ends["zero_point"],
    )


def _run_all(session: BundleSession, samples: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    count = len(next(iter(samples.values())))
    try:
        rows = [session.run(_feed(samples, index)) for index in range(count)]
    except EdgeopsError as error:
        raise refuse(f"{error.code}: {error.what}") from error
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _feed(samples: Mapping[str, NDArray[Any]], index: int) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(array[index]) for name, array in samples.items()}


def _errors(
    kinds: Mapping[str, str],
    reference: Mapping[str, NDArray[Any]],
    got: Mapping[str, NDArray[Any]],
    quality: slice,
) -> list[Any]:
    return [
        msgspec.to_builtins(compare.output_error(name, kind, np.asarray(reference[name][quality]), got[name][quality]))
        for name, kind in kinds.items()
    ]


def _metric(
    plan: JudgePlan,
    folder: Path,
    reference: Mapping[str, NDArray[Any]],
    got: Mapping[str, NDArray[Any]],
    quality: slice,
) -> Metric | None:
    if plan.metric == "none" or not has_samples(folder, "labels"):
        return None
    labels = read_samples(folder, "labels")["labels"]
    source, artifact = np.asarray(reference[plan.metric_output][quality]), got[plan.metric_output][quality]
    if plan.metric == "mae":
        return error_metric(source, artifact, np.asarray(labels), confidence=plan.confidence)
    kind = next(output.kind for output in plan.outputs if output.name == plan.metric_output)
    return accuracy_metric(
        compare.classes(source, kind), compare.classes(artifact, kind), np.asarray(labels), confidence=plan.confidence
    )
