"""The one call: a trained model in memory or on disk becomes a checked, described hand-over, ready for compile."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.handover import Evaluation, Gates, Handover, Input, ModelFile, Output, ResultStep, Samples, Step
from edgeops.contracts.profile import Budgets
from edgeops.intake import exported as words
from edgeops.intake.arrays import save_arrays
from edgeops.intake.declaring import to_toml
from edgeops.intake.exported import Exported, Tensors, as_array, by_name, type_name
from edgeops.intake.handover import HANDOVER_NAME, read
from edgeops.intake.inferring import cast_needed, kind_of, likely_states
from edgeops.intake.onnx_probe import ModelTensor, probe
from edgeops.intake.pickles import PICKLE_SUFFIXES, check_pickle, load_pickle
from edgeops.intake.proving import Agreement, prove
from edgeops.runtimes.steps import TensorForm, apply, propagate

CALIBRATION_NAME, EVALUATION_NAME = "calibration.npz", "evaluation.npz"
MAX_CALIBRATION = 1024
# What people bring that has no exporter here, and the way that its own framework offers.
_ELSEWHERE = {
    "keras": "save it as TFLite (tf.lite.TFLiteConverter.from_keras_model) or ONNX (model.export(path, format='onnx'))",
    "tensorflow": "save it as TFLite (tf.lite.TFLiteConverter)",
    "lightgbm": "convert it by onnxmltools.convert_lightgbm",
    "catboost": "save it by model.save_model(path, format='onnx')",
    "jax": "convert it by jax2tf and tf.lite.TFLiteConverter",
    "flax": "convert it by jax2tf and tf.lite.TFLiteConverter",
    "mxnet": "export it by mxnet.onnx.export_model",
    "paddle": "convert it by paddle2onnx",
    "transformers": "hand over its torch module, or export it by optimum",
}
_KNOWN = (
    "a path to ONNX or TFLite, an onnx.ModelProto, a fitted scikit-learn estimator or pipeline, an XGBoost model, "
    "a torch.nn.Module or a torch.export.ExportedProgram"
)
Steps = Sequence[Step | Mapping[str, Any]]
T = TypeVar("T")


class HandedOver(NamedTuple):
    """A hand-over that was written: its folder, its digest, and how closely the export agrees with the source."""

    folder: Path
    digest: str
    agreement: tuple[Agreement, ...]


def handover(
    model: object,
    samples: object,
    *,
    out: str | Path,
    name: str,
    labels: Sequence[object] | Mapping[str, Sequence[object]] | None = None,
    evaluation: tuple[object, object] | None = None,
    preprocess: Steps | Mapping[str, Steps] = (),
    agent: Steps | Mapping[str, Steps] = (),
    postprocess: Sequence[ResultStep | Mapping[str, Any]] | Mapping[str, Any] = (),
    states: Mapping[str, str] | None = None,
    gates: Gates | None = None,
    budgets: Mapping[str, Budgets] | None = None,
    description: str = "",
    trust_pickle: bool = False,
) -> HandedOver:
    """Write a trained model as a hand-over, and prove that what is handed over does what the model does.

    Args:
        model: A path to ONNX or TFLite (or to a pickle, with `trust_pickle`), an `onnx.ModelProto`, a fitted
            scikit-learn estimator or pipeline, an XGBoost model, a `torch.nn.Module` or an exported program.
        samples: Real inputs as a device sends them, samples along the first axis: an array, or one per input by name
            or in order. Ranges for int8 are taken from them.
        out: Folder to write; a hand-over that is there is replaced once the new one is proved.
        name: The model's name in the fleet.
        labels: Class names, of the first output or by output; default: what the framework knows.
        evaluation: Inputs with the true answers, as `(x, y)`: class numbers, class names or values. Keep them apart
            from the training data: quality is judged on them.
        preprocess: Steps from what the device sends to what the model takes, of all inputs or by input; see
            docs/reference/handover.md. They become part of the model.
        agent: Steps that the device's agent does before those.
        postprocess: Steps from what the model gives to what the device gets, of the first output or by output.
        states: Input → output whose last value it gets. A model that looks as if it had state needs it, even if `{}`.
        gates: The quality that every compiled model keeps; default: strict.
        budgets: Profile → the most that it may cost there.
        description: For people.
        trust_pickle: The pickle is of a source that may run code here. It is looked through even then.

    Returns:
        The folder, its digest, and the agreement of source and export.

    Raises:
        EdgeopsError: E-HANDOVER-OBJECT; no exporter takes it, with what to do. E-HANDOVER-EXPORT; it cannot be
            exported, or the export answers otherwise. E-HANDOVER-PICKLE. E-DEPENDENCY; the framework's exporter is
            missing. Or as `intake.handover.read`. Nothing is left in `out` then, and a hand-over that was there stays.
    """
    target = Path(out)
    _check_target(target)
    kept = _as_declared(gates or {}, Gates, "gates")
    limits = _as_declared(budgets or {}, dict[str, Budgets], "budgets")
    if evaluation is not None and not (isinstance(evaluation, tuple | list) and len(evaluation) == 2):
        raise EdgeopsError("E-DATA-SHAPE", "evaluation is not two things", "Give (inputs, true answers).")
    one = _loaded(model, trust_pickle)
    inputs, export, ranks = _exporter(one, samples, states)
    arrays = by_name(samples, inputs) if inputs else {"": as_array(_only_one(samples), "samples")}
    early, steps = (_by_input(given, tuple(arrays)) for given in (agent, preprocess))
    first = {key: _first(array, None if early[key] or steps[key] else ranks.get(key)) for key, array in arrays.items()}
    given = {key: _stepped(key, value, (*early[key], *steps[key])) for key, value in first.items()}
    made = export(given)
    if not inputs:
        (inputs, own) = (made.inputs, made.inputs[0])
        arrays, first, early, steps = {own: arrays[""]}, {own: first[""]}, {own: early[""]}, {own: steps[""]}
    _check_states(states or {}, inputs, [output.name for output in made.outputs])
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise durable.disk_error(error, target) from error
    try:
        file = temporary / f"model.{made.suffix}"
        durable.write_file(file, made.data)
        facts = probe(file)
        tensors = {spec.name: spec for spec in facts.inputs}
        likely = likely_states(facts) if states is None else {}
        if likely:
            pairs = ", ".join(f"{key!r}: {value!r}" for key, value in likely.items())
            raise EdgeopsError(
                "E-HANDOVER-SHAPE",
                f"the model seems to have state: inputs that are outputs of the last call: {pairs}",
                f"Say states={{{pairs}}}, or states={{}} if it has none.",
            )
        specs = tuple(
            _input(key, first[key], early[key], steps[key], tensors[key], (states or {}).get(key)) for key in inputs
        )
        declared = Handover(
            model=ModelFile(name=name, file=file.name, description=description, source=made.source),
            inputs=specs,
            outputs=tuple(Output(name=item.name) for item in made.outputs),
            calibration=Samples(file=CALIBRATION_NAME),
            gates=kept,
            budgets=limits,
        )
        shaped = {
            spec.name: array.reshape(len(array), *first[spec.name].shape)
            for spec, array in zip(specs, arrays.values(), strict=True)
        }
        agreement, answers = prove(made, file, declared, shaped)
        outputs = _outputs(made, answers, labels, postprocess)
        declared = msgspec.structs.replace(declared, outputs=outputs)
        picked = np.unique(np.linspace(0, len(next(iter(shaped.values()))) - 1, MAX_CALIBRATION).round().astype(int))
        save_arrays(temporary / CALIBRATION_NAME, {key: array[picked] for key, array in shaped.items()})
        if evaluation is not None:
            declared = _with_evaluation(declared, temporary, evaluation, made)
        durable.write_file(temporary / HANDOVER_NAME, to_toml(declared, _notes(made, agreement)).encode())
        digest = read(temporary).digest
        durable.fsync_tree(temporary)
        durable.remove_tree(target)
        durable.rename(temporary, target)
    except OSError as error:
        raise durable.disk_error(error, target) from error
    except EdgeopsError as error:
        # What it was written to is gone when this is read.
        said = error.what.replace(str(temporary), str(target))
        raise EdgeopsError(error.code, said, error.next_step) from error
    finally:
        durable.remove_tree(temporary)
    return HandedOver(target, digest, agreement)


def _check_target(target: Path) -> None:
    if target.exists() and not (target / HANDOVER_NAME).exists() and (not target.is_dir() or any(target.iterdir())):
        raise EdgeopsError("E-CONFIG", f"{target} is there and is no hand-over", "Name a new folder.")


def _as_declared(given: object, kind: type[T], what: str) -> T:
    try:
        return msgspec.convert(msgspec.to_builtins(given), kind)
    except (msgspec.ValidationError, TypeError) as error:
        raise EdgeopsError(
            "E-HANDOVER-KEY", f"{what}: {error}", "docs/reference/handover.md lists every key."
        ) from error


def _only_one(samples: object) -> object:
    """Return the samples of a model with one input, whose name its exporter chooses."""
    return next(iter(samples.values())) if isinstance(samples, Mapping) and len(samples) == 1 else samples


def _check_states(states: Mapping[str, str], inputs: Sequence[str], outputs: Sequence[str]) -> None:
    if odd := [name for name in states if name not in inputs] or [one for one in states.values() if one not in outputs]:
        raise EdgeopsError(
            "E-HANDOVER-KEY",
            f"states name {odd}; the inputs are {list(inputs)}, the outputs {list(outputs)}",
            "Give input → output whose last value it gets.",
        )


def _loaded(model: object, trusted: bool) -> object:
    """Return the model itself: what a pickle holds, or the path of a file that is taken as it is."""
    if not isinstance(model, str | Path):
        return model
    path = Path(model)
    if path.suffix == ".pt2":
        check_pickle(path, trusted=trusted)
        try:
            import torch
        except ImportError as error:
            raise words.needs("torch", "torch", error) from error
        return torch.export.load(path)
    if path.suffix in (".pt", ".pth"):
        raise EdgeopsError(
            "E-HANDOVER-OBJECT",
            f"{path}: a file of torch.save holds weights, or code that only its own program has",
            "Hand over the module in memory, or a program of torch.export.save (.pt2).",
        )
    return load_pickle(path, trusted=trusted) if path.suffix in PICKLE_SUFFIXES else path


def _exporter(
    model: object, samples: object, states: Mapping[str, str] | None
) -> tuple[tuple[str, ...], Callable[[Tensors], Exported], Mapping[str, int]]:
    """Return the model's inputs, the exporter, and where a file says it each input's number of axes.

    The inputs are empty if there is one whose name its exporter chooses.

    Raises:
        EdgeopsError: E-HANDOVER-OBJECT; nothing exports it.
    """
    if isinstance(model, Path):
        from edgeops.intake.from_file import take_file

        taken = take_file(model, dict(states or {}))
        return taken.inputs, lambda _: taken, taken.ranks
    bases = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__}
    packages = {base.partition(".")[0] for base in bases}
    if any(base.endswith(".ModelProto") for base in bases) and packages & {"onnx", "onnx_ml_pb2"}:
        from edgeops.intake.from_file import take_proto

        taken = take_proto(model, dict(states or {}))
        return taken.inputs, lambda _: taken, taken.ranks
    if "torch.nn.modules.module.Module" in bases:
        from edgeops.intake.from_torch import export_torch, module_inputs

        return module_inputs(model, _count(samples)), lambda example: export_torch(model, example), {}
    if "torch.export.exported_program.ExportedProgram" in bases:
        from edgeops.intake.from_torch import export_torch, program_inputs

        return program_inputs(model), lambda example: export_torch(model, example), {}
    if "xgboost" in packages:
        from edgeops.intake.from_xgboost import export_xgboost

        return (), lambda example: export_xgboost(model, example), {}
    if "sklearn" in packages and "sklearn.base.BaseEstimator" in bases:
        from edgeops.intake.from_sklearn import export_sklearn

        return (), lambda example: export_sklearn(model, example), {}
    way = next((_ELSEWHERE[package] for package in sorted(packages & set(_ELSEWHERE))), "")
    raise EdgeopsError(
        "E-HANDOVER-OBJECT",
        f"nothing here exports a {type_name(model)}; known are {_KNOWN}",
        f"For this one: {way}, and hand over the file." if way else "Export it to ONNX, and hand over the file.",
    )


def _count(samples: object) -> int:
    """Return how many inputs samples are for: a list may be one array, or several."""
    if isinstance(samples, Mapping):
        return len(samples)
    return len(samples) if isinstance(samples, tuple) else 1


def _first(array: NDArray[Any], rank: int | None) -> NDArray[Any]:
    """Return the first sample with a batch axis of 1, unless it has as many axes as the model wants already."""
    whole = array.ndim == 1 or rank == array.ndim - 1
    return np.asarray(array[0]) if whole else array[:1]


def _by_input(given: Any, inputs: tuple[str, ...]) -> dict[str, tuple[Step, ...]]:
    found = given if isinstance(given, Mapping) else {inputs[0]: given} if given else {}
    if odd := sorted(set(found) - set(inputs)):
        raise EdgeopsError("E-HANDOVER-STEP", f"steps of {odd}, the inputs are {list(inputs)}", "Name an input.")
    return {name: _steps(found.get(name, ()), tuple[Step, ...], name) for name in inputs}


def _steps(given: Any, kind: Any, where: str) -> Any:
    plain = [msgspec.to_builtins(step) if isinstance(step, msgspec.Struct) else step for step in given]
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        raise EdgeopsError(
            "E-HANDOVER-STEP", f"steps of {where!r}: {error}", "docs/reference/handover.md lists every step."
        ) from error


def _stepped(name: str, value: NDArray[Any], steps: tuple[Step, ...]) -> NDArray[Any]:
    propagate(steps, TensorForm(value.dtype.name, value.shape), where=f"input {name!r}")
    return apply(steps, value)


def _input(
    name: str,
    value: NDArray[Any],
    agent: tuple[Step, ...],
    steps: tuple[Step, ...],
    wanted: ModelTensor,
    state_from: str | None,
) -> Input:
    form = propagate((*agent, *steps), TensorForm(value.dtype.name, value.shape), where=f"input {name!r}")
    if not wanted.quantized:
        steps = (*steps, *cast_needed(form.dtype, wanted.dtype))
    return Input(
        name=name, dtype=value.dtype.name, shape=value.shape, agent=agent, preprocess=steps, state_from=state_from
    )


def _outputs(made: Exported, answers: dict[str, NDArray[Any]], labels: Any, postprocess: Any) -> tuple[Output, ...]:
    names = [item.name for item in made.outputs]
    labelled = _by_output(labels, names, "labels")
    stepped = _by_output(postprocess, names, "postprocess")
    outputs = []
    for item in made.outputs:
        given = tuple(str(one) for one in labelled.get(item.name, ())) or item.labels
        steps = _steps(stepped.get(item.name, ()), tuple[ResultStep, ...], item.name)
        kind = item.kind or kind_of(answers[item.name], classed=bool(given))
        if steps:
            last = type(steps[-1]).__struct_config__.tag
            kind = {"softmax": "probabilities", "argmax": "classes"}.get(str(last), "values")
            kind = "classes" if getattr(steps[-1], "give", "") == "classes" else kind
        outputs.append(msgspec.convert({"name": item.name, "kind": kind}, Output))
        outputs[-1] = msgspec.structs.replace(outputs[-1], labels=given, postprocess=steps)
    return tuple(outputs)


def _by_output(given: Any, names: list[str], what: str) -> dict[str, Any]:
    found: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {} if not given else {names[0]: list(given)}
    if odd := sorted(set(found) - set(names)):
        raise EdgeopsError("E-HANDOVER-KEY", f"{what} of {odd}, the outputs are {names}", "Name an output.")
    return found


def _with_evaluation(declared: Handover, folder: Path, evaluation: tuple[Any, Any], made: Exported) -> Handover:
    data, answers = evaluation
    arrays = by_name(data, [spec.name for spec in declared.inputs])
    output = declared.outputs[0]
    truth, metric = _truth(answers, output, made)
    rows = {
        spec.name: array.reshape(len(array), *_row(spec, array))
        for spec, array in zip(declared.inputs, arrays.values(), strict=True)
    }
    save_arrays(folder / EVALUATION_NAME, rows if truth is None else rows | {"labels": truth})
    return msgspec.structs.replace(
        declared, evaluation=Evaluation(file=EVALUATION_NAME, output=output.name, metric=metric)
    )


def _row(spec: Input, array: NDArray[Any]) -> tuple[int, ...]:
    """Return the shape of one sample with its batch axis; what does not fit is refused when the hand-over is read."""
    return array.shape[1:] if array.ndim == len(spec.shape) + 1 else (1, *array.shape[1:])


def _truth(answers: Any, output: Output, made: Exported) -> tuple[NDArray[Any] | None, Any]:
    """Return the true answers as class numbers or values, and the metric."""
    if answers is None:
        return None, "none"
    truth = np.asarray(answers)
    if output.kind not in ("probabilities", "logits", "classes"):
        return as_array(truth, "evaluation"), "mae"
    numbers: dict[Any, int] = {value: place for place, value in enumerate(output.labels)}
    numbers |= {value: place for place, value in enumerate(made.classes)}
    if not made.classes and truth.dtype.kind in "iu":
        return truth.astype(np.int64), "accuracy"
    try:
        return np.array([numbers[value] for value in truth.reshape(-1).tolist()], np.int64).reshape(
            truth.shape
        ), "accuracy"
    except KeyError as error:
        raise EdgeopsError(
            "E-DATA-VALUES",
            f"the true answer {error} is none of the classes {list(numbers)[:20]}",
            "Give class numbers, or the names in labels.",
        ) from error


def _notes(made: Exported, agreement: tuple[Agreement, ...]) -> dict[str, list[str]]:
    said = [
        f"{one.output}: within {one.relative:.1e} of its largest value on {one.samples} samples" for one in agreement
    ]
    return {"model": [f"Made from {made.source}.", *(f"Proved: {line}." for line in said)]}
