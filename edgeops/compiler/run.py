"""One compile: a hand-over and some profiles in, proved bundles, evidence and a lock out."""

from __future__ import annotations

import concurrent.futures
import hashlib
import math
import platform
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops import durable
from edgeops.compiler.builder import Machine, build
from edgeops.compiler.candidates import ARTIFACTS, Traits
from edgeops.compiler.elsewhere import check_figures, remeasured
from edgeops.compiler.engine import Failed, Step, code_digest, cores, host, isa_digest, tool_versions
from edgeops.compiler.explaining import explained
from edgeops.compiler.gates import tightest
from edgeops.compiler.isolation import Limits, default_memory_mib
from edgeops.compiler.lock import (
    LOCK_NAME,
    CompileLock,
    LockedProfile,
    check_profiles,
    check_same_ground,
    read_lock,
    write_lock,
)
from edgeops.compiler.package import Packaged, package
from edgeops.compiler.passes.judge import JudgeOutput, JudgePlan
from edgeops.compiler.passes.samples import spread, write_samples
from edgeops.compiler.search import Ground, Tried, only, search
from edgeops.compiler.selection import Choice, loosened, missed, select
from edgeops.compiler.sensitivity import Aim
from edgeops.compiler.store import Product, Store, Stored
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import CandidateEvidence, Evidence
from edgeops.contracts.handover import Gates
from edgeops.contracts.measurement import Measurements
from edgeops.contracts.profile import Budgets, Precision, Profile, Runtime
from edgeops.contracts.tensors import TensorSpec
from edgeops.intake.handover import LoadedHandover, read
from edgeops.profiles import registry

EVIDENCE_NAME = "evidence.json"
# A converter that needs longer than this is taken for one that hangs.
STEP_TIMEOUT_S = 900.0
MODERN_OPSET = 17
_LATENCY_S = 1.0
_JUDGED_CALIBRATION = 64
_TOOLS = (
    "ai-edge-litert", "litert-quantizer", "nncf", "numpy", "onnx", "onnxruntime", "onnxslim", "openvino", "edgeops",
)  # fmt: skip


class Progress(NamedTuple):
    """What is being done for a profile; `text` is "done" once and last."""

    profile: str
    text: str


class ProfileResult(NamedTuple):
    """The outcome for one profile.

    Args:
        profile: Its name.
        passed: All binding gates passed; otherwise the bundle is the best that failed, kept apart.
        packaged: The bundle; it lies in `rejected/` where it did not pass.
        chosen: The record of its candidate.
        evidence: All measurements.
        missed: The gates that failed, with distances.
    """

    profile: str
    passed: bool
    packaged: Packaged
    chosen: CandidateEvidence
    evidence: Evidence
    missed: str

    @property
    def nearest(self) -> str:
        """The settings with which the best candidate would pass, in words; "" if it passes or none would do."""
        return loosened(self.chosen.would_pass_with)


class Elsewhere(NamedTuple):
    """What other machines have to do with a compile.

    Args:
        keep_candidates: Write every candidate as a bundle, to be measured on a device.
        figures: What a device measured of them; they decide in place of this host's.
    """

    keep_candidates: bool = False
    figures: Measurements | None = None

    def concerns(self, profile: Profile) -> bool:
        """Whether there are figures of a device of a profile; the others are chosen by this host's."""
        return self.figures is not None and any(one.profile == profile.name for one in self.figures.bundles)


class CompileResult(NamedTuple):
    """The outcome of a compile: a result per profile, and the lock that makes it again (None where one failed)."""

    model: str
    handover: str
    profiles: tuple[ProfileResult, ...]
    lock: Path | None

    def raise_for_gates(self) -> None:
        """Raise if a profile has no bundle that passes.

        Raises:
            EdgeopsError: E-COMPILE-GATE; names the profiles, the gates, and how far they were missed.
        """
        missing = [one for one in self.profiles if not one.passed]
        failed = [f"{one.profile}: {one.chosen.scheme}: {one.missed}" for one in missing]
        near = [f"{one.profile}: {one.nearest}" for one in missing if one.nearest]
        if failed:
            raise EdgeopsError(
                "E-COMPILE-GATE",
                "; ".join(failed),
                "The best candidate is kept in <profile>/rejected. "
                + (f"It would pass with {'; '.join(near)}. " if near else "")
                + "Loosen what is named, or hand over a better model.",
            )


def compile_handover(
    handover_dir: Path,
    profiles: Sequence[str],
    out: Path,
    *,
    locked: Path | None = None,
    check: bool = False,
    explain: str = "",
    elsewhere: Elsewhere | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> CompileResult:
    """Compile a hand-over for some profiles.

    Writes `out/<profile>/bundle/`, `out/<profile>/<model>-<profile>.edgeops`, `out/<profile>/evidence.json` and
    `out/compile.lock`. Where no candidate passes, the best goes to `out/<profile>/rejected/` and no lock is written.

    Args:
        handover_dir: The hand-over.
        profiles: Names of profiles, or paths of their TOML files.
        out: Folder for the results.
        locked: Make the schemes that this lock names, and search for no other. Latency decides nothing then.
        check: With `locked`: hand-over, tools, processor and every bundle's digest must be those of the lock.
        explain: Name the layers at which errors open: of this scheme, or of `all`.
        elsewhere: Keep all candidates for a device to measure, or choose by what one measured.
        on_progress: Told what is being done; called from several threads, one at a time.

    Raises:
        EdgeopsError: The hand-over's, the profiles' and the lock's errors; E-COMPILE-CANDIDATE if nothing could be
            built for a profile; E-COMPILE-LOCK if the lock lacks a profile, or `check` finds a difference.
        KeyboardInterrupt: Interrupted; no half-written bundle is left.
    """
    loaded = read(handover_dir)
    found = [_profile(name) for name in dict.fromkeys(profiles)]
    if elsewhere is not None and elsewhere.figures is not None:
        check_figures(elsewhere.figures, found)
    lock = None if locked is None else read_lock(locked)
    now = _lock_of(loaded, {profile.name: None for profile in found})
    if lock is not None:
        check_profiles(lock, now)
        if check:
            check_same_ground(lock, now)
    workers = max(1, min(len(found), cores()))
    machine = Machine(
        Store(),
        Limits(STEP_TIMEOUT_S, default_memory_mib(cores())),
        threading.Semaphore(cores()),
        threading.Event(),
    )
    telling = threading.Lock()

    def tell(profile: str, text: str) -> None:
        with telling:
            on_progress(Progress(profile, text))

    prepared = _prepare(machine, loaded, tell)
    with concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="profile") as pool:
        try:
            jobs = [
                pool.submit(
                    _compile_profile,
                    machine,
                    loaded,
                    prepared,
                    profile,
                    out,
                    lock,
                    check,
                    explain,
                    elsewhere or Elsewhere(),
                    tell,
                )
                for profile in found
            ]
            concurrent.futures.wait(jobs)
            results = tuple(job.result() for job in jobs)
        except BaseException:
            machine.cancel.set()
            raise
    path = None
    if all(result.passed for result in results):
        path = out / LOCK_NAME
        write_lock(path, _lock_of(loaded, {result.profile: result for result in results}))
    return CompileResult(loaded.handover.model.name, loaded.digest, results, path)


class _Prepared(NamedTuple):
    """What all profiles share."""

    ingested: Stored
    samples: Stored
    reference: Stored
    plan: JudgePlan
    traits: Traits


def _prepare(machine: Machine, loaded: LoadedHandover, tell: Callable[[str, str], None]) -> _Prepared:
    handover = loaded.handover
    tell("", "reading the hand-over")
    outputs = tuple(
        JudgeOutput(name=item.name, model_output=item.model_output or item.name, kind=item.kind)
        for item in handover.outputs
    )
    samples = _store_samples(machine.store, loaded)
    model = _store_model(machine.store, loaded)
    parameters = {"file": loaded.model_path.name, "outputs": list(dict.fromkeys(item.model_output for item in outputs))}
    ingested = _required(build(machine, [Step(name="ingest", parameters=parameters)], model, {}))
    tell("", "answers of the float source")
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
    return _Prepared(ingested, samples, reference, plan, traits)


def _compile_profile(
    machine: Machine,
    loaded: LoadedHandover,
    shared: _Prepared,
    profile: Profile,
    out: Path,
    lock: CompileLock | None,
    check: bool,
    explain: str,
    elsewhere: Elsewhere,
    tell: Callable[[str, str], None],
) -> ProfileResult:
    def said(text: str) -> None:
        tell(profile.name, text)

    said("preparing the graph")
    served = [runtime for runtime in profile.runtimes if runtime.name in ARTIFACTS]
    if shared.traits.trees and "onnxruntime" not in {runtime.name for runtime in served}:
        raise EdgeopsError(
            "E-MODEL-UNSUPPORTED",
            f"profile {profile.name}: decision trees run on onnxruntime only, and it has "
            f"{', '.join(runtime.name for runtime in profile.runtimes) or 'no runtime'}",
            "Choose a profile with onnxruntime, or hand over a neural network.",
        )
    ground = Ground(
        profile=profile,
        machine=machine,
        prepared={runtime.name: _float_graph(machine, loaded, shared, runtime) for runtime in served},
        samples=shared.samples,
        reference=shared.reference,
        # What is locked was chosen before: its latency decides nothing now.
        plan=msgspec.structs.replace(
            shared.plan, threads=profile.serving.threads, latency_s=shared.plan.latency_s if lock is None else 0.0
        ),
        traits=shared.traits,
        aim=_aim(shared.plan, loaded.handover.gates),
        gates=loaded.handover.gates,
        budgets=tightest(profile.budgets, loaded.handover.budgets.get(profile.name, Budgets())),
        own_arch=lock is None and profile.cpu.arch == platform.machine() and _cpu_first(served),
        exhaustive=elsewhere.keep_candidates or elsewhere.concerns(profile),
    )
    wanted = None if lock is None else lock.profiles[profile.name]
    tried = search(ground, said) if wanted is None else only(ground, wanted.scheme, said)
    by_latency = ground.own_arch
    if wanted is None and elsewhere.concerns(profile):
        assert elsewhere.figures is not None
        tried, by_latency = remeasured(ground, tried, elsewhere.figures), True
    choice = select(tried, own_arch=by_latency, named=None if wanted is None else wanted.scheme)
    if choice.best is None:
        reasons = "; ".join(f"{one.candidate.scheme}: {one.reason}" for one in tried) or "no runtime of it is known"
        raise EdgeopsError(
            "E-COMPILE-CANDIDATE", f"profile {profile.name}: nothing could be built: {reasons}", "See each reason."
        )
    best = choice.best
    if explain:
        said("explaining")
        records = explained(ground, loaded.handover, shared.ingested, tried, choice.records, explain)
        choice = choice._replace(records=records)
    if elsewhere.keep_candidates:
        _keep(ground, loaded, tried, out / profile.name / "candidates", said)
    result = _write(ground, loaded, choice, best, out / profile.name, said)
    if check and wanted is not None and result.packaged.digest != wanted.bundle:
        raise EdgeopsError(
            "E-COMPILE-LOCK",
            f"{profile.name}: {wanted.scheme} gives bundle {result.packaged.digest}, locked is {wanted.bundle}",
            "A tool is not deterministic, or the processor differs: compile without --locked and review the change.",
        )
    said("done")
    return result


def _keep(
    ground: Ground, loaded: LoadedHandover, tried: Sequence[Tried], folder: Path, said: Callable[[str], None]
) -> None:
    """Write every candidate that runs as a bundle of its own, to be measured elsewhere."""
    durable.remove_tree(folder)
    for one in tried:
        if one.judged is not None:
            said(f"keeping {one.candidate.scheme}")
            package(ground, loaded.handover, one, folder / one.candidate.scheme, lambda _: None)


def _aim(plan: JudgePlan, gates: Gates) -> Aim:
    return Aim(
        cosine_min=gates.cosine_min,
        sqnr_min_db=gates.sqnr_min_db,
        agreement_min=gates.agreement_min,
        kinds={output.model_output: output.kind for output in plan.outputs},
    )


def _write(
    ground: Ground, loaded: LoadedHandover, choice: Choice, best: Tried, folder: Path, said: Callable[[str], None]
) -> ProfileResult:
    packaged = package(ground, loaded.handover, best, folder if choice.passed else folder / "rejected", said)
    if not choice.passed:
        # What passed before does not stand for this hand-over.
        for stale in (folder / "bundle", folder / f"{loaded.handover.model.name}-{ground.profile.name}.edgeops"):
            durable.remove_tree(stale)
    else:
        durable.remove_tree(folder / "rejected")
    evidence = Evidence(
        bundle=packaged.digest,
        model=loaded.handover.model.name,
        profile=ground.profile.name,
        host=host(_TOOLS),
        candidates=choice.records,
        calibration_samples=_count(loaded.calibration),
        evaluation_samples=0 if loaded.evaluation is None else _count(loaded.evaluation.inputs),
        created_at_s=time.time(),
    )
    text = msgspec.json.format(msgspec.json.encode(evidence, order="sorted"), indent=2)
    durable.write_file(folder / EVIDENCE_NAME, text + b"\n")
    chosen = next(record for record in choice.records if record.scheme == best.candidate.scheme)
    return ProfileResult(
        ground.profile.name, choice.passed, packaged, chosen, evidence, "" if choice.passed else missed(best)
    )


def _float_graph(machine: Machine, loaded: LoadedHandover, shared: _Prepared, runtime: Runtime) -> Stored | Failed:
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
        Step(name="bake", parameters={"inputs": msgspec.to_builtins(loaded.handover.inputs)}),
        Step(name="optimize", inputs=("samples",), optional=True),
    ]
    return build(machine, steps, shared.ingested, {"samples": shared.samples})


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
        quality = _count(loaded.calibration if loaded.evaluation is None else loaded.evaluation.inputs)
        return Product(facts=("samples",), notes={"quality": quality})

    return store.put(_content_key("samples", loaded.digest), make)


def _judged(calibration: dict[str, NDArray[Any]], evaluation: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the samples that every artifact is run on.

    Quality is judged on the evaluation data, which come first; golden vectors and drift reference know both sides.
    """
    picked = spread(_count(calibration), _JUDGED_CALIBRATION)
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


def _profile(name: str) -> Profile:
    profile = registry.check(Path(name)) if name.endswith(".toml") else registry.load(name)
    if profile.status != "supported":
        raise EdgeopsError("E-PROFILE-UNSUPPORTED", f"{profile.name}: {profile.reason}", "Choose another profile.")
    return profile


def _cpu_first(runtimes: Sequence[Runtime]) -> bool:
    """Say whether the processor runs the model: figures of a GPU cannot be had from a host's processor."""
    return all(not runtime.providers or runtime.providers[0] == "CPUExecutionProvider" for runtime in runtimes)


def _lock_of(loaded: LoadedHandover, results: dict[str, ProfileResult | None]) -> CompileLock:
    return CompileLock(
        model=loaded.handover.model.name,
        handover=loaded.digest,
        profiles={
            name: LockedProfile(
                scheme="" if result is None else result.chosen.scheme,
                runtime="" if result is None else result.chosen.runtime,
                precision="" if result is None else result.chosen.precision,
                bundle="" if result is None else result.packaged.digest,
                measured_on="" if result is None else result.chosen.measured_on,
            )
            for name, result in results.items()
        },
        tools=tool_versions(_TOOLS),
        isa=isa_digest(),
    )


def _count(samples: dict[str, Any]) -> int:
    return len(next(iter(samples.values())))
