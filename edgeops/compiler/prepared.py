"""What all profiles of a compile share: the model, its samples, the source's answers, and the clean float graph."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.compiler.builder import build
from edgeops.compiler.candidates import READY_RUNTIMES, Traits
from edgeops.compiler.engine import Failed, Step, code_digest
from edgeops.compiler.executor import Machine
from edgeops.compiler.graphs import OWN_PREFIX
from edgeops.compiler.holding import held_by, split_input, split_results
from edgeops.compiler.passes.baking import BakedOutput
from edgeops.compiler.passes.judge import JudgeOutput, JudgePlan
from edgeops.compiler.passes.samples import spread, write_samples
from edgeops.compiler.store import Failure, Product, Store, Stored
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.handover import Cast, Handover, Input, Output
from edgeops.contracts.profile import Precision, Runtime
from edgeops.contracts.tensors import SMALL_INTEGERS, TensorSpec
from edgeops.intake.handover import LoadedHandover
from edgeops.runtimes.steps import TensorForm, propagate, propagate_results

MODERN_OPSET = 17
_JUDGED_CALIBRATION = 64


class Prepared(NamedTuple):
    """What all profiles share."""

    ingested: Stored
    samples: Stored
    reference: Stored
    plan: JudgePlan
    traits: Traits


def prepare(
    machine: Machine,
    loaded: LoadedHandover,
    said: Callable[[str], None],
    *,
    ahead: Callable[[Stored], object] = lambda _: None,
) -> Prepared:
    """Make what all profiles share.

    Args:
        machine: Where work is done.
        loaded: The hand-over.
        said: Told what is being done.
        ahead: Given the samples as soon as they are there: one step follows another now, and other workers are free.

    Raises:
        EdgeopsError: E-MODEL-UNSUPPORTED, E-HANDOVER-SHAPE, E-DATA-SHAPE; the hand-over contradicts the model.
        CancelledError: The compile was interrupted.
    """
    handover = loaded.handover
    said("reading the hand-over")
    ready = loaded.model.format == "tflite"
    outputs = tuple(_output(item) for item in handover.outputs)
    samples = _store_samples(machine.store, loaded)
    ahead(samples)
    model = _store_model(machine.store, loaded)
    ingest = Step(
        name="ingest-tflite" if ready else "ingest",
        parameters={
            "file": loaded.model_path.name,
            "outputs": list(dict.fromkeys(one.model_output for one in outputs)),
        },
    )
    ingested = _required(build(machine, [ingest], model, {}))
    said("answers of the float source")
    step = Step(
        name="reference",
        parameters={"inputs": msgspec.to_builtins(handover.inputs), "outputs": msgspec.to_builtins(outputs)},
        inputs=("samples",),
    )
    reference = _required(build(machine, [step], ingested, {"samples": samples}))
    evaluation = handover.evaluation
    plan = JudgePlan(
        runtime="",
        artifact="",
        precision=Precision.FLOAT32,
        inputs=tuple(TensorSpec(name=item.name, dtype=item.dtype, shape=item.shape) for item in handover.inputs),
        outputs=outputs,
        metric="none" if evaluation is None else evaluation.metric,
        metric_output="" if evaluation is None else evaluation.output or outputs[0].name,
        confidence=handover.gates.confidence,
    )
    _check_outputs(loaded, plan, reference.notes)
    traits = Traits(
        ready=_precision(loaded) if ready else None,
        stateful=any(item.state_from is not None for item in handover.inputs),
        ops=frozenset(loaded.model.ops),
        labelled=plan.metric != "none",
    )
    return Prepared(ingested, samples, reference, plan, traits)


def float_graph(machine: Machine, loaded: LoadedHandover, shared: Prepared, runtime: Runtime) -> Stored | Failed:
    """Return the clean float graph within what a runtime reads."""
    if shared.traits.ready is not None:
        if runtime.name in READY_RUNTIMES:
            return shared.ingested
        what = "a TFLite model is taken as it is, and runs on LiteRT only"
        return Failed("ingest", Failure(code="E-MODEL-UNSUPPORTED", what=what))
    shapes = {name: list(shape) for name, shape in _model_shapes(loaded).items()}
    limits = (
        {"opset_max": runtime.onnx_opset_max, "ir_max": runtime.onnx_ir_max}
        if runtime.name == "onnxruntime"
        else {"opset_max": None, "ir_max": None}
    )
    seen = shared.reference.notes["model_outputs"]
    outputs = {output.model_output: list(seen[output.name]["shape"]) for output in shared.plan.outputs}
    plan = plan_for(loaded.handover, shared, runtime)
    baked = [
        BakedOutput(
            model_output=one.model_output,
            artifact_output=one.artifact_output,
            steps=one.postprocess[: len(one.postprocess) - len(one.agent_results)],
        )
        for one in plan.outputs
    ]
    samples = fed_samples(machine, plan, shared.samples)
    if isinstance(samples, Failed):
        return samples
    steps = [
        Step(name="repair", parameters={"shapes": shapes, "outputs": outputs, "opset": MODERN_OPSET, **limits}),
        Step(
            name="bake",
            parameters={
                "inputs": msgspec.to_builtins(_baked_inputs(loaded, runtime)),
                "outputs": msgspec.to_builtins(baked) if any(one.steps for one in baked) else [],
            },
        ),
        Step(name="optimize", inputs=("samples",), optional=True),
    ]
    return build(machine, steps, shared.ingested, {"samples": samples})


def plan_for(handover: Handover, shared: Prepared, runtime: Runtime) -> JudgePlan:
    """Return the plan with the steps that a runtime's artifacts leave to the agent."""
    holds = held_by(runtime.name, ready=shared.traits.ready is not None)
    own = shared.reference.notes["model_outputs"]
    outputs = []
    for one in shared.plan.outputs:
        baked, left = split_results(one.postprocess, holds)
        form = TensorForm(own[one.name]["dtype"], tuple(own[one.name]["shape"]))
        bound = propagate_results(baked, form, where=one.name)
        outputs.append(
            msgspec.structs.replace(
                one,
                artifact_output=one.artifact_output if baked else one.model_output,
                agent_results=left,
                bound=TensorSpec(name=one.name, dtype=bound.dtype, shape=bound.shape) if left else None,
            )
        )
    return msgspec.structs.replace(
        shared.plan,
        outputs=tuple(outputs),
        agent_steps={one.name: split_input(one, holds)[0] for one in handover.inputs if split_input(one, holds)[0]},
    )


def fed_samples(machine: Machine, plan: JudgePlan, samples: Stored) -> Stored | Failed:
    """Return the samples as artifacts take them: after the agent's steps."""
    if not plan.agent_steps:
        return samples
    step = Step(name="agent-steps", parameters={"steps": msgspec.to_builtins(plan.agent_steps)})
    return build(machine, [step], samples, {})


def _output(item: Output) -> JudgeOutput:
    own = item.model_output or item.name
    return JudgeOutput(
        name=item.name,
        model_output=own,
        kind=item.kind,
        artifact_output=f"{OWN_PREFIX}result/{item.name}" if item.postprocess else own,
        postprocess=item.postprocess,
    )


def _precision(loaded: LoadedHandover) -> Precision:
    return Precision.INT8 if loaded.model.quantized else Precision.FLOAT32


def _baked_inputs(loaded: LoadedHandover, runtime: Runtime) -> tuple[Input, ...]:
    """Return the inputs as they are baked in: without the steps of the agent.

    On a microcontroller the binding takes integers for real numbers: its interpreter casts none but int8; what is
    quantized takes them as they are.
    """
    inputs = tuple(split_input(item, held_by(runtime.name, ready=False))[1] for item in loaded.handover.inputs)
    if runtime.name != "mcu":
        return inputs
    return tuple(
        msgspec.structs.replace(item, dtype="float32", preprocess=item.preprocess[1:])
        if item.preprocess and isinstance(item.preprocess[0], Cast) and item.dtype in SMALL_INTEGERS
        else item
        for item in inputs
    )


def _model_shapes(loaded: LoadedHandover) -> dict[str, tuple[int, ...]]:
    return {
        item.model_input or item.name: propagate(
            (*item.agent, *item.preprocess), TensorForm(item.dtype, item.shape), where=item.name
        ).shape
        for item in loaded.handover.inputs
    }


def _check_outputs(loaded: LoadedHandover, plan: JudgePlan, notes: Mapping[str, Any]) -> None:
    shapes = notes["outputs"]
    for output in loaded.handover.outputs:
        shape = notes["model_outputs"][output.name]["shape"]
        if output.labels and (not shape or shape[-1] != len(output.labels)):
            raise EdgeopsError(
                "E-HANDOVER-SHAPE",
                f"output {output.name!r}: {len(output.labels)} labels, the model gives {list(shape)}",
            )
    if plan.metric == "none" or loaded.evaluation is None:
        return
    shape = shapes[plan.metric_output]["shape"]
    # A single column is one class against its absence; a tensor of one axis has a class per element.
    numbered = next(one.kind for one in plan.outputs if one.name == plan.metric_output) == "classes"
    decisions = shape if numbered or len(shape) < 2 else shape[:-1]
    each = math.prod(decisions) if plan.metric == "accuracy" else math.prod(shape)
    labels = loaded.evaluation.labels
    if labels.size != len(labels) * each:
        raise EdgeopsError(
            "E-DATA-SHAPE",
            f"evaluation labels have shape {list(labels.shape)}; output {plan.metric_output!r} of shape {list(shape)} "
            f"needs {each} per sample",
            "Give one answer for each that the output gives.",
        )


def _store_samples(store: Store, loaded: LoadedHandover) -> Stored:
    def make(target: Path) -> Product:
        write_samples(target, "calibration", loaded.calibration)
        judged = loaded.calibration
        if loaded.evaluation is not None:
            judged = _judged(loaded.calibration, loaded.evaluation.inputs)
            write_samples(target, "labels", {"labels": loaded.evaluation.labels})
        write_samples(target, "judged", judged)
        quality = count(loaded.calibration if loaded.evaluation is None else loaded.evaluation.inputs)
        return Product(facts=("samples",), notes={"quality": quality})

    return store.put(_content_key("samples", loaded.digest), make)


def _judged(calibration: dict[str, NDArray[Any]], evaluation: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the samples that every artifact is run on.

    Quality is judged on the evaluation data, which come first; golden vectors and drift reference know both sides.
    """
    picked = spread(count(calibration), _JUDGED_CALIBRATION)
    return {name: np.concatenate([values, calibration[name][picked]]) for name, values in evaluation.items()}


def _store_model(store: Store, loaded: LoadedHandover) -> Stored:
    names = [loaded.model_path.name, *loaded.model.files]

    def make(target: Path) -> Product:
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(loaded.model_path.parent / name, target / name)
        return Product(facts=("file",))

    digests = [loaded.file_digests[loaded.handover.model.file], *(loaded.file_digests[name] for name in names[1:])]
    return store.put(_content_key("model", *names, *digests), make)


def _content_key(*parts: str) -> str:
    return hashlib.sha256("\0".join((code_digest(), *parts)).encode()).hexdigest()


def _required(built: Stored | Failed) -> Stored:
    if isinstance(built, Failed):
        # Without the source's answers there is nothing to compile against.
        code = "E-MODEL-UNSUPPORTED" if built.failure.code == "E-COMPILE-CANDIDATE" else built.failure.code
        raise EdgeopsError(code, f"{built.step}: {built.failure.what}", "Check the model with onnxruntime.")
    return built


def count(samples: dict[str, Any]) -> int:
    """Return the number of samples [n, *shape] by input."""
    return len(next(iter(samples.values())))
