"""Read a hand-over: `handover.toml`, the model and the sample data, all proved to fit together."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.handover import Evaluation, Handover, Input
from edgeops.contracts.names import check_name
from edgeops.contracts.tensors import DTYPES
from edgeops.contracts.wire import encode
from edgeops.intake.arrays import check_finite, load_arrays, samples_of
from edgeops.intake.onnx_probe import ModelFacts, ModelTensor, probe
from edgeops.runtimes.steps import MAX_SIDE, TensorForm, propagate, propagate_results

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HANDOVER_NAME = "handover.toml"
HANDOVER_SCHEMA = 1
MAX_TOML_BYTES = 1 << 20
MAX_MODEL_BYTES = 2 << 30
MAX_ELEMENTS = 1 << 28
_MAX_TENSOR_NAME = 128


class LabelledSamples(NamedTuple):
    """Evaluation data: inputs [n, *shape] by name, and the true answers, n along the first axis."""

    inputs: dict[str, NDArray[Any]]
    labels: NDArray[Any]


class LoadedHandover(NamedTuple):
    """A hand-over that was proved to fit together.

    Args:
        folder: Where it lies.
        handover: What was declared.
        model_path: The model's file.
        model: What it says of itself.
        calibration: Input name → [n, *shape].
        evaluation: Labelled data, if declared.
        digest: `sha256:` and hex digest of everything that was handed over, whatever the folder's name.
        file_digests: File relative to the folder → hex SHA-256.
    """

    folder: Path
    handover: Handover
    model_path: Path
    model: ModelFacts
    calibration: dict[str, NDArray[Any]]
    evaluation: LabelledSamples | None
    digest: str
    file_digests: dict[str, str]


def read(folder: Path) -> LoadedHandover:
    """Read a hand-over's folder and prove that its parts fit together.

    Raises:
        EdgeopsError: E-HANDOVER-MISSING, E-HANDOVER-KEY, E-HANDOVER-SHAPE, E-HANDOVER-STEP, E-PATH-ESCAPE,
            E-MODEL-FORMAT, E-MODEL-UNSUPPORTED, E-DATA-SHAPE or E-DATA-VALUES; each names the place.
    """
    handover = read_declaration(folder / HANDOVER_NAME)
    model_path = _file(folder, handover.model.file, "model.file", MAX_MODEL_BYTES)
    calibration_path = _file(folder, handover.calibration.file, "calibration.file")
    facts = probe(model_path)
    check_fit(handover, facts)
    calibration = samples_of(load_arrays(calibration_path), handover.inputs, calibration_path)
    files = {handover.model.file: model_path, handover.calibration.file: calibration_path}
    evaluation = None
    if handover.evaluation is not None:
        evaluation_path = _file(folder, handover.evaluation.file, "evaluation.file")
        evaluation = _labelled(handover.evaluation, handover.inputs, evaluation_path)
        files[handover.evaluation.file] = evaluation_path
    files |= {name: model_path.parent / name for name in facts.files}
    digests = {name: _sha256(path) for name, path in sorted(files.items())}
    whole = hashlib.sha256(encode(handover) + msgspec.json.encode(digests, order="sorted"))
    digest = "sha256:" + whole.hexdigest()
    return LoadedHandover(folder, handover, model_path, facts, calibration, evaluation, digest, digests)


def read_declaration(path: Path) -> Handover:
    """Read `handover.toml` alone; files that it names are not looked at.

    Raises:
        EdgeopsError: E-HANDOVER-MISSING, E-HANDOVER-KEY, E-HANDOVER-SHAPE or E-HANDOVER-STEP.
    """
    try:
        data = path.read_bytes()[: MAX_TOML_BYTES + 1]
    except OSError as error:
        raise EdgeopsError(
            "E-HANDOVER-MISSING", f"{path}: {error.strerror}", f"Name a folder that has a {HANDOVER_NAME}."
        ) from error
    if len(data) > MAX_TOML_BYTES:
        raise EdgeopsError("E-HANDOVER-KEY", f"{path}: larger than {MAX_TOML_BYTES} bytes")
    try:
        handover = msgspec.convert(tomllib.loads(data.decode()), Handover)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EdgeopsError("E-HANDOVER-KEY", f"{path}: not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise EdgeopsError(
            "E-HANDOVER-KEY", f"{path}: {error}", "docs/reference/handover.md lists every key."
        ) from error
    _check_declaration(handover)
    return handover


def check_fit(handover: Handover, facts: ModelFacts) -> None:
    """Check that the declared inputs, after their preprocessing, and the declared outputs are the model's own.

    Raises:
        EdgeopsError: E-HANDOVER-SHAPE or E-HANDOVER-STEP.
    """
    wanted = {spec.name: spec for spec in facts.inputs}
    fed = {spec.model_input or spec.name: spec for spec in handover.inputs}
    if set(wanted) != set(fed):
        raise _disagree(f"the model has inputs {sorted(wanted)}, the hand-over feeds {sorted(fed)}")
    for name, spec in fed.items():
        where = f"input {spec.name!r}"
        form = propagate(spec.agent, TensorForm(spec.dtype, spec.shape), where=where, key="agent")
        if -1 in form.shape:
            raise _disagree(
                f"{where} is {form} after the agent's steps: sizes that vary need a step in agent that brings them to "
                "one, such as resize"
            )
        form = propagate(spec.preprocess, form, where=where)
        if not _fits(form, wanted[name]):
            raise _disagree(
                f"input {spec.name!r} becomes {form} after its preprocessing, "
                f"model input {name!r} is {wanted[name].dtype}{list(wanted[name].shape or ())} (-1: any size)"
            )
    outputs = {spec.name: spec for spec in facts.outputs}
    for output in handover.outputs:
        own = outputs.get(output.model_output or output.name)
        if own is None:
            wanted_name = output.model_output or output.name
            raise _disagree(f"output {output.name!r}: the model has no {wanted_name!r}; it has {sorted(outputs)}")
        if own.dtype not in DTYPES:
            raise EdgeopsError(
                "E-MODEL-UNSUPPORTED", f"output {own.name!r} is a {own.dtype}, not a tensor", "Export tensors only."
            )
        if output.postprocess and own.shape:
            propagate_results(
                output.postprocess, TensorForm(own.dtype, _positive(own.shape)), where=f"output {output.name!r}"
            )
        if output.labels and own.shape and own.shape[-1] not in (-1, len(output.labels)):
            raise _disagree(f"output {output.name!r}: {len(output.labels)} labels for {own.shape[-1]} classes")


def _positive(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape whose open sizes are as large as any: only the compile knows them."""
    return tuple(size if size > 0 else MAX_SIDE for size in shape)


def _check_declaration(handover: Handover) -> None:
    if handover.schema_version > HANDOVER_SCHEMA:
        raise EdgeopsError("E-HANDOVER-KEY", f"schema {handover.schema_version} is newer than {HANDOVER_SCHEMA}")
    check_name(handover.model.name, "model.name")
    _check_tensor_names("inputs", [spec.name for spec in handover.inputs])
    _check_tensor_names("outputs", [spec.name for spec in handover.outputs])
    for spec in handover.inputs:
        if spec.dtype not in DTYPES:
            raise EdgeopsError(
                "E-HANDOVER-KEY", f"input {spec.name!r}: dtype {spec.dtype!r} is none of {sorted(DTYPES)}"
            )
        varies = bool(spec.agent) and spec.state_from is None
        sizes = [1 if size == -1 and varies else size for size in spec.shape]
        if min(sizes, default=1) < 1 or math.prod(sizes) > MAX_ELEMENTS:
            raise EdgeopsError(
                "E-HANDOVER-SHAPE",
                f"input {spec.name!r}: shape {list(spec.shape)}: sizes must be positive, of sane size; -1 (any) only "
                "where a step in agent brings it to one",
            )
    states = {spec.name for spec in handover.outputs if spec.kind == "state"}
    for spec in handover.inputs:
        if spec.state_from is not None and spec.state_from not in states:
            raise EdgeopsError(
                "E-HANDOVER-KEY", f"input {spec.name!r}: state_from {spec.state_from!r} is no output of kind 'state'"
            )
    judged = handover.evaluation and handover.evaluation.output
    if judged is not None and judged not in {spec.name for spec in handover.outputs}:
        raise EdgeopsError("E-HANDOVER-KEY", f"evaluation.output {judged!r} is not a declared output")
    gates = handover.gates
    shares = (gates.metric_drop_max, gates.agreement_min, gates.cosine_min)
    if not (0 < gates.confidence < 1 and all(0 <= share <= 1 for share in shares) and gates.latency_ratio_max > 0):
        raise EdgeopsError(
            "E-HANDOVER-KEY", "gates: confidence is in (0, 1), shares are in [0, 1], latency_ratio_max is positive"
        )


def _check_tensor_names(what: str, names: Sequence[str]) -> None:
    odd = [name for name in names if not name or len(name) > _MAX_TENSOR_NAME or not name.isprintable()]
    if not names or odd or len(set(names)) != len(names):
        raise EdgeopsError(
            "E-HANDOVER-KEY",
            f"{what}: need at least one, each with a name of its own of at most {_MAX_TENSOR_NAME} letters",
        )


def _file(folder: Path, name: str, key: str, limit: int | None = None) -> Path:
    path = folder / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise EdgeopsError("E-PATH-ESCAPE", f"{key} {name!r} leaves {folder}", "Put the file into the folder.")
    if not path.is_file():
        raise EdgeopsError("E-HANDOVER-MISSING", f"{key}: {path} is not there", "Put it there or correct the name.")
    if limit is not None and path.stat().st_size > limit:
        raise EdgeopsError("E-MODEL-UNSUPPORTED", f"{path}: larger than {limit} bytes")
    return path


def _labelled(evaluation: Evaluation, inputs: Sequence[Input], path: Path) -> LabelledSamples:
    arrays = load_arrays(path)
    samples = samples_of(arrays, inputs, path)
    if evaluation.metric == "none":
        return LabelledSamples(samples, np.zeros(0, np.int64))
    labels = arrays.get(evaluation.labels)
    count = len(next(iter(samples.values())))
    if labels is None or labels.ndim == 0 or len(labels) != count:
        got = "is missing" if labels is None else f"has shape {list(labels.shape)}"
        raise EdgeopsError("E-DATA-SHAPE", f"{path}: array {evaluation.labels!r} {got}; expected {count} answers")
    if evaluation.metric == "accuracy" and labels.dtype.kind not in "iu":
        raise EdgeopsError(
            "E-DATA-SHAPE", f"{path}: array {evaluation.labels!r} is {labels.dtype.name}; accuracy needs class numbers"
        )
    check_finite(labels, evaluation.labels, path)
    return LabelledSamples(samples, labels)


def _fits(form: TensorForm, own: ModelTensor) -> bool:
    if form.dtype != own.dtype and not (own.quantized and form.dtype == "float32"):
        return False
    if own.shape is None:
        return True
    return len(own.shape) == len(form.shape) and all(
        size in (-1, have) for size, have in zip(own.shape, form.shape, strict=True)
    )


def _disagree(what: str) -> EdgeopsError:
    return EdgeopsError("E-HANDOVER-SHAPE", what, "Correct inputs, outputs or preprocess in handover.toml.")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while block := source.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
