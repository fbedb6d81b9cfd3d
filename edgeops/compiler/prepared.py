"""What all profiles of a compile share: the model, its samples, the source's answers, and the clean float graph."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.compiler.builder import build
from edgeops.compiler.candidates import Traits
from edgeops.compiler.engine import Failed, Step, code_digest
from edgeops.compiler.executor import Machine
from edgeops.compiler.passes.judge import JudgeOutput, JudgePlan
from edgeops.compiler.passes.samples import spread, write_samples
from edgeops.compiler.store import Product, Store, Stored
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.handover import Cast, Input
from edgeops.contracts.profile import Precision, Runtime
from edgeops.contracts.tensors import SMALL_INTEGERS, TensorSpec
from edgeops.intake.handover import LoadedHandover

MODERN_OPSET = 17
_LATENCY_S = 1.0
_JUDGED_CALIBRATION = 64


class Prepared(NamedTuple):
    """What all profiles share."""

    ingested: Stored
    samples: Stored
    reference: Stored
    plan: JudgePlan
    traits: Traits


def prepare(machine: Machine, loaded: LoadedHandover, said: Callable[[str], None]) -> Prepared:
    """Make what all profiles share.

    Raises:
        EdgeopsError: E-MODEL-UNSUPPORTED, E-HANDOVER-SHAPE, E-DATA-SHAPE; the hand-over contradicts the model.
        CancelledError: The compile was interrupted.
    """
    handover = loaded.handover
    said("reading the hand-over")
    outputs = tuple(
        JudgeOutput(name=item.name, model_output=item.model_output or item.name, kind=item.kind)
        for item in handover.outputs
    )
    samples = _store_samples(machine.store, loaded)
    model = _store_model(machine.store, loaded)
    parameters = {"file": loaded.model_path.name, "outputs": list(dict.fromkeys(item.model_output for item in outputs))}
    ingested = _required(build(machine, [Step(name="ingest", parameters=parameters)], model, {}))
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
        latency_s=_LATENCY_S,
    )
    _check_outputs(loaded, plan, reference.notes["outputs"])
    traits = Traits(
        stateful=any(item.state_from is not None for item in handover.inputs),
        ops=frozenset(loaded.model.ops),
        labelled=plan.metric != "none",
    )
    return Prepared(ingested, samples, reference, plan, traits)


def float_graph(machine: Machine, loaded: LoadedHandover, shared: Prepared, runtime: Runtime) -> Stored | Failed:
    """Return the clean float graph within what a runtime reads."""
    shapes = {name: list(shape) for name, shape in _model_shapes(loaded).items()}
    limits = (
        {"opset_max": runtime.onnx_opset_max, "ir_max": runtime.onnx_ir_max}
        if runtime.name == "onnxruntime"
        else {"opset_max": None, "ir_max": None}
    )
    seen = shared.reference.notes["outputs"]
    outputs = {output.model_output: list(seen[output.name]["shape"]) for output in shared.plan.outputs}
    steps = [
        Step(name="repair", parameters={"shapes": shapes, "outputs": outputs, "opset": MODERN_OPSET, **limits}),
        Step(name="bake", parameters={"inputs": msgspec.to_builtins(_baked_inputs(loaded, runtime))}),
        Step(name="optimize", inputs=("samples",), optional=True),
    ]
    return build(machine, steps, shared.ingested, {"samples": shared.samples})


def _baked_inputs(loaded: LoadedHandover, runtime: Runtime) -> tuple[Input, ...]:
    """Return the inputs as they are baked in: on a microcontroller the binding takes integers for real numbers.

    Its interpreter casts none but int8; what is quantized takes them as they are.
    """
    if runtime.name != "mcu":
        return loaded.handover.inputs
    return tuple(
        msgspec.structs.replace(item, dtype="float32", preprocess=item.preprocess[1:])
        if item.preprocess and isinstance(item.preprocess[0], Cast) and item.dtype in SMALL_INTEGERS
        else item
        for item in loaded.handover.inputs
    )


def _model_shapes(loaded: LoadedHandover) -> dict[str, tuple[int, ...]]:
    from edgeops.intake.steps import TensorForm, propagate

    return {
        item.model_input or item.name: propagate(
            item.preprocess, TensorForm(item.dtype, item.shape), where=item.name
        ).shape
        for item in loaded.handover.inputs
    }


def _check_outputs(loaded: LoadedHandover, plan: JudgePlan, shapes: dict[str, dict[str, Any]]) -> None:
    for output in loaded.handover.outputs:
        shape = shapes[output.name]["shape"]
        if output.labels and (not shape or shape[-1] != len(output.labels)):
            raise EdgeopsError(
                "E-HANDOVER-SHAPE",
                f"output {output.name!r}: {len(output.labels)} labels, the model gives {list(shape)}",
            )
    if plan.metric == "none" or loaded.evaluation is None:
        return
    shape = shapes[plan.metric_output]["shape"]
    # A single column is one class against its absence; a tensor of one axis has a class per element.
    decisions = shape[:-1] if len(shape) > 1 else shape
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
