"""ONNX's own operator conformance models through ingest and each backend, judged by their recorded answers.

Run as a script it prints one JSON line for each folder on its command line; a native crash costs one line.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeops.compiler.candidates import ARTIFACTS
from edgeops.compiler.gates import FLOAT_COSINE_MIN, FLOAT_SQNR_MIN_DB
from edgeops.compiler.passes import Outcome, Pass, Work
from edgeops.compiler.passes.baking import Bake
from edgeops.compiler.passes.judge import Judge, JudgeOutput, JudgePlan, Reference
from edgeops.compiler.passes.litert import ToTflite
from edgeops.compiler.passes.openvino import ToOpenVino
from edgeops.compiler.passes.prepare import Ingest, Optimize, Repair
from edgeops.compiler.passes.samples import read_samples, write_samples
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.profile import Precision
from edgeops.contracts.tensors import TensorSpec
from edgeops.intake.handover import LoadedHandover, read

DATA = Path("/usr/share/libonnx-testdata/data/node")
BACKENDS = ("onnxruntime", "openvino", "litert")
OPSET, IR_MAX = 17, 10


class Verdict(NamedTuple):
    """What became of one model on one backend: right, refused or wrong, and why."""

    model: str
    backend: str
    result: str
    why: str = ""


class _Made(NamedTuple):
    folder: Path
    outcome: Outcome


def folders() -> list[Path]:
    """Return all conformance models, in order of their names."""
    return sorted(path.parent for path in DATA.glob("*/model.onnx"))


def verdicts(folder: Path, backends: tuple[str, ...]) -> Iterator[Verdict]:
    """Take one conformance model through ingest and each backend."""
    with tempfile.TemporaryDirectory(prefix="operator-") as name:
        place = Path(name)
        try:
            inputs, wanted = _recorded(folder)
            loaded = read(_handover(folder, inputs, list(wanted), place / "handover"))
            graph, plan = _prepare(loaded, place)
        except EdgeopsError as error:
            for backend in backends:
                yield Verdict(folder.name, backend, "refused", f"{error.code}: {error.what}"[:160])
            return
        for backend in backends:
            yield _on_backend(folder.name, backend, graph, plan, wanted, place)


def _recorded(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    model = onnx.load(folder / "model.onnx")
    constants = {item.name for item in model.graph.initializer}
    names = [item.name for item in model.graph.input if item.name not in constants]
    data = folder / "test_data_set_0"
    return (
        {name: _tensor(data / f"input_{index}.pb") for index, name in enumerate(names)},
        {item.name: _tensor(data / f"output_{index}.pb") for index, item in enumerate(model.graph.output)},
    )


def _tensor(path: Path) -> NDArray[Any]:
    """Return a recorded tensor; sequences and optionals are recorded in another form, which devices do not carry."""
    try:
        tensor = onnx.TensorProto.FromString(path.read_bytes())
        array = numpy_helper.to_array(tensor)
    except (OSError, ValueError, TypeError, onnx.onnx_cpp2py_export.checker.ValidationError) as error:
        raise EdgeopsError("E-MODEL-UNSUPPORTED", f"{path.name} is no tensor: {error}") from error
    except Exception as error:
        if "DecodeError" not in type(error).__name__:
            raise
        raise EdgeopsError("E-MODEL-UNSUPPORTED", f"{path.name} is no tensor") from error
    if array.dtype == object or array.dtype.kind in "SUc":
        raise EdgeopsError("E-MODEL-UNSUPPORTED", f"{path.name} holds {array.dtype}")
    return array


def _handover(folder: Path, inputs: dict[str, NDArray[Any]], outputs: list[str], target: Path) -> Path:
    """Write the hand-over that a person would: the model, its one sample, and its inputs and outputs by name."""
    target.mkdir()
    (target / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    lines = ["schema = 1", "[model]", 'name = "operator"', 'file = "model.onnx"']
    for name, array in inputs.items():
        lines += ["[[inputs]]", f"name = {json.dumps(name)}", f'dtype = "{array.dtype.name}"']
        lines += [f"shape = {list(array.shape)}"]
    for name in outputs:
        lines += ["[[outputs]]", f"name = {json.dumps(name + '_out')}", f"model_output = {json.dumps(name)}"]
        lines += ['kind = "values"']
    lines += ["[calibration]", 'file = "calibration.npz"']
    (target / "handover.toml").write_text("\n".join(lines) + "\n")
    np.savez(target / "calibration.npz", **{name: array[None] for name, array in inputs.items()})
    return target


def _run(
    one: Pass, source: Path, facts: frozenset[str], target: Path, notes: Any, roles: Any, **parameters: Any
) -> _Made:
    missing = one.requires - facts
    if missing:
        raise EdgeopsError("E-COMPILE-CANDIDATE", f"{type(one).__name__} needs {sorted(missing)}")
    target.mkdir(parents=True)
    inputs = {role: made.folder for role, made in roles.items()}
    input_notes = {role: made.outcome.notes for role, made in roles.items()}
    work = Work(source, notes, facts, target, parameters, inputs, input_notes)
    try:
        return _Made(target, one.run(work))
    except EdgeopsError:
        raise
    except Exception as error:
        # In a compile a pass runs in a process of its own, and its crash costs the step.
        raise EdgeopsError("E-COMPILE-CANDIDATE", f"{type(one).__name__} crashed: {error}") from error


def _prepare(loaded: LoadedHandover, place: Path) -> tuple[dict[str, _Made], JudgePlan]:
    handover = loaded.handover
    outputs = tuple(
        JudgeOutput(
            name=item.name,
            model_output=item.model_output or item.name,
            kind=item.kind,
            artifact_output=item.model_output or item.name,
        )
        for item in handover.outputs
    )
    samples = _Made(place / "samples", Outcome(frozenset(), {"quality": 1}))
    for group in ("calibration", "judged"):
        write_samples(samples.folder, group, loaded.calibration)
    file = loaded.model_path.parent
    kept = [item.model_output for item in outputs]
    ingested = _run(Ingest(), file, frozenset({"file"}), place / "ingest", {}, {}, file="model.onnx", outputs=kept)
    given = {"inputs": msgspec.to_builtins(handover.inputs), "outputs": msgspec.to_builtins(outputs)}
    facts = ingested.outcome.facts
    reference = _run(Reference(), ingested.folder, facts, place / "reference", {}, {"samples": samples}, **given)
    seen = reference.outcome.notes["outputs"]
    repaired = _run(
        Repair(), ingested.folder, facts, place / "repair", {}, {},
        shapes={item.name: list(item.shape) for item in handover.inputs},
        outputs={item.model_output: list(seen[item.name]["shape"]) for item in outputs},
        opset=OPSET, opset_max=None, ir_max=IR_MAX,
    )  # fmt: skip
    graph = _run(Bake(), repaired.folder, repaired.outcome.facts, place / "bake", {}, {}, inputs=given["inputs"])
    # A graph that cannot be simplified goes on as it is, as in a compile.
    with contextlib.suppress(EdgeopsError):
        graph = _run(
            Optimize(), graph.folder, graph.outcome.facts, place / "optimize", graph.outcome.notes, {"samples": samples}
        )
    plan = JudgePlan(
        runtime="",
        artifact="",
        precision=Precision.FLOAT32,
        inputs=tuple(TensorSpec(name=item.name, dtype=item.dtype, shape=item.shape) for item in handover.inputs),
        outputs=outputs,
        options={"inference_precision": "f32"},
    )
    return {"graph": graph, "samples": samples, "reference": reference}, plan


def _on_backend(
    name: str, backend: str, made: dict[str, _Made], plan: JudgePlan, wanted: dict[str, NDArray[Any]], place: Path
) -> Verdict:
    graph = made["graph"]
    roles = {"samples": made["samples"], "reference": made["reference"]}
    try:
        artifact = graph
        if backend == "openvino":
            artifact = _convert(ToOpenVino(), graph, place / "ov", {}, fp16_weights=False)
        if backend == "litert":
            artifact = _convert(ToTflite(), graph, place / "tflite", {"samples": made["samples"]})
        options = plan.options if backend == "openvino" else {}
        own = msgspec.structs.replace(plan, runtime=backend, artifact=ARTIFACTS[backend], options=options)
        judged = _run(
            Judge(), artifact.folder, artifact.outcome.facts, place / f"judge-{backend}", artifact.outcome.notes, roles,
            **msgspec.to_builtins(own),
        )  # fmt: skip
    except EdgeopsError as error:
        return Verdict(name, backend, "refused", f"{error.code}: {error.what}"[:160])
    for figures in judged.outcome.notes["end_to_end"]:
        if figures["cosine"] < FLOAT_COSINE_MIN or (figures["sqnr_db"] or np.inf) < FLOAT_SQNR_MIN_DB:
            return Verdict(name, backend, "refused", f"gate: cosine {figures['cosine']:.6f} to the source")
    got = read_samples(judged.folder, "outputs")
    for output in plan.outputs:
        ours, theirs = np.asarray(got[output.name][0]), wanted[output.model_output]
        # Rounding errors grow with the largest of the values that are added up.
        largest = float(np.nanmax(np.abs(theirs.astype(np.float64)), initial=0.0, where=np.isfinite(theirs)))
        atol = max(1e-4, 1e-6 * largest)
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-3, atol=atol, equal_nan=True):
            return Verdict(
                name, backend, "wrong", f"{output.model_output}: {ours.ravel()[:4]} for {theirs.ravel()[:4]}"
            )
    return Verdict(name, backend, "right")


def _convert(one: Pass, graph: _Made, target: Path, roles: dict[str, _Made], **parameters: Any) -> _Made:
    return _run(one, graph.folder, graph.outcome.facts, target, graph.outcome.notes, roles, **parameters)


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        print(json.dumps({"begun": argument}), flush=True)
        for verdict in verdicts(DATA / argument, tuple(sys.argv[1].split(","))):
            print(json.dumps(verdict._asdict()), flush=True)
