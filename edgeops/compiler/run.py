"""One compile: a hand-over and some profiles in, proved bundles, evidence and a lock out."""

from __future__ import annotations

import concurrent.futures
import platform
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeops import durable
from edgeops.compiler.candidates import ARTIFACTS, READY_RUNTIMES, TREE_RUNTIME
from edgeops.compiler.elsewhere import check_figures, remeasured
from edgeops.compiler.engine import Failed, cores, host, isa_digest, tool_versions
from edgeops.compiler.examining import examined
from edgeops.compiler.executor import Machine, machine
from edgeops.compiler.explaining import explained
from edgeops.compiler.gates import tightest
from edgeops.compiler.lock import (
    LOCK_NAME,
    CompileLock,
    LockedProfile,
    check_profiles,
    check_same_ground,
    read_lock,
    write_lock,
)
from edgeops.compiler.microcontrollers import room
from edgeops.compiler.package import Packaged, draws_ahead, package
from edgeops.compiler.passes.judge import JudgePlan
from edgeops.compiler.passes.latency import LatencyPlan, threads_here
from edgeops.compiler.prepared import Prepared, count, fed_samples, float_graph, plan_for, prepare
from edgeops.compiler.search import Ground, Tried, only, search
from edgeops.compiler.selection import Choice, loosened, missed, select
from edgeops.compiler.sensitivity import Aim
from edgeops.compiler.staging import put_in_place, staged
from edgeops.compiler.store import Stored
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import CandidateEvidence, Evidence, FiguresOrigin
from edgeops.contracts.examination import Examination, HandedOver
from edgeops.contracts.handover import Gates
from edgeops.contracts.measurement import Measurements
from edgeops.contracts.profile import Budgets, Profile, Runtime
from edgeops.intake.handover import LoadedHandover, read
from edgeops.profiles import registry

EVIDENCE_NAME = "evidence.json"
_LATENCY_S = 1.0
_TOOLS = (
    "ai-edge-litert", "litert-quantizer", "nncf", "numpy", "onnx", "onnxruntime", "onnxslim", "openvino", "edgeops",
    "bakenn",
)  # fmt: skip


class Progress(NamedTuple):
    """What is being done for a profile.

    Args:
        profile: Its name; "" for what all share.
        text: What; "done" once and last.
        left: Where a candidate begins: how many more may follow at most. Else None.
    """

    profile: str
    text: str
    left: int | None


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
        origin: Where these come from; given with `figures`.
    """

    keep_candidates: bool = False
    figures: Measurements | None = None
    origin: FiguresOrigin | None = None

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
    pictures: bool = True,
    executor: concurrent.futures.Executor | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> CompileResult:
    """Compile a hand-over for some profiles.

    Writes `out/<profile>/bundle/`, `out/<profile>/<model>-<profile>.edgeops`, `out/<profile>/evidence.json` and
    `out/compile.lock`. Where no candidate passes, the best goes to `out/<profile>/rejected/` and no lock is written.
    An error leaves `out` as it was: what was made for other profiles appears only once all have a result.

    Args:
        handover_dir: The hand-over.
        profiles: Names of profiles, or paths of their TOML files.
        out: Folder for the results.
        locked: Make the schemes that this lock names, and search for no other. Latency decides nothing then.
        check: With `locked`: hand-over, tools, processor and every bundle's digest must be those of the lock.
        explain: Name the layers at which errors open: of this scheme, or of `all`.
        elsewhere: Keep all candidates for a device to measure, or choose by what one measured.
        pictures: Keep small pictures of the worst samples in the evidence, which is published with the release.
        executor: Run the workers there, such as in a process pool or a cluster's `concurrent.futures` executor: it
            decides how many run at once. Its processes must see the hand-over's cache under the same path. None: in
            this process's own, as many as cores and memory allow.
        on_progress: Told what is being done; called from several threads, one at a time.

    Raises:
        EdgeopsError: The hand-over's, the profiles' and the lock's errors; E-COMPILE-CANDIDATE if nothing could be
            built for a profile; E-COMPILE-LOCK if the lock lacks a profile, or `check` finds a difference.
        KeyboardInterrupt: Interrupted; no half-written bundle is left.
    """
    with machine(cores(), executor) as workplace:
        # While the hand-over is read.
        workplace.warm()
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
        telling = threading.Lock()

        def tell(profile: str, text: str, left: int | None) -> None:
            with telling:
                on_progress(Progress(profile, text, left))

        with (
            staged(out) as staging,
            # Each only asks for work: how much is done at once is for the machine to say.
            concurrent.futures.ThreadPoolExecutor(len(found) + 1, thread_name_prefix="profile") as pool,
        ):
            try:
                shared = prepare(
                    workplace,
                    loaded,
                    lambda text: tell("", text, None),
                    # Wanted at the end, and what fails is told there.
                    ahead=lambda samples: pool.submit(draws_ahead, workplace, samples),
                )
                jobs = [
                    pool.submit(
                        _compile_profile,
                        workplace,
                        loaded,
                        shared,
                        profile,
                        staging,
                        lock,
                        check,
                        explain,
                        elsewhere or Elsewhere(),
                        pictures,
                        tell,
                    )
                    for profile in found
                ]
                concurrent.futures.wait(jobs)
                results = tuple(job.result() for job in jobs)
            except BaseException:
                workplace.cancel.set()
                raise
            results = tuple(_settle(result, staging, out) for result in results)
        path = None
        if all(result.passed for result in results):
            path = out / LOCK_NAME
            write_lock(path, _lock_of(loaded, {result.profile: result for result in results}))
        return CompileResult(loaded.handover.model.name, loaded.digest, results, path)


def _compile_profile(
    workplace: Machine,
    loaded: LoadedHandover,
    shared: Prepared,
    profile: Profile,
    staging: Path,
    lock: CompileLock | None,
    check: bool,
    explain: str,
    elsewhere: Elsewhere,
    pictures: bool,
    tell: Callable[[str, str, int | None], None],
) -> ProfileResult:
    def said(text: str, left: int | None = None) -> None:
        tell(profile.name, text, left)

    said("preparing the graph")
    served = [runtime for runtime in profile.runtimes if runtime.name in ARTIFACTS]
    if shared.traits.ready is not None and not {runtime.name for runtime in served}.intersection(READY_RUNTIMES):
        raise EdgeopsError(
            "E-MODEL-UNSUPPORTED",
            f"profile {profile.name}: a TFLite model is taken as it is and runs on LiteRT only, and it has "
            f"{', '.join(runtime.name for runtime in profile.runtimes) or 'no runtime'}",
            "Choose a profile with litert, or hand over the model as ONNX.",
        )
    if shared.traits.trees and TREE_RUNTIME not in {runtime.name for runtime in served}:
        raise EdgeopsError(
            "E-MODEL-UNSUPPORTED",
            f"profile {profile.name}: decision trees run on onnxruntime only, and it has "
            f"{', '.join(runtime.name for runtime in profile.runtimes) or 'no runtime'}",
            "Choose a profile with onnxruntime, or hand over a neural network.",
        )
    plans = {runtime.name: plan_for(loaded.handover, shared, runtime) for runtime in served}
    fed = {name: _samples(workplace, plan, shared) for name, plan in plans.items()}
    ground = Ground(
        profile=profile,
        machine=workplace,
        prepared={runtime.name: float_graph(workplace, loaded, shared, runtime) for runtime in served},
        samples=shared.samples,
        fed=fed,
        reference=shared.reference,
        plans=plans,
        # What is locked was chosen before: its latency decides nothing now.
        timing=None
        if lock is not None
        else LatencyPlan(runtime="", threads=threads_here(profile.serving.threads), seconds=_LATENCY_S),
        traits=shared.traits,
        aim=_aim(shared.plan, loaded.handover.gates),
        gates=loaded.handover.gates,
        budgets=tightest(profile.budgets, loaded.handover.budgets.get(profile.name, Budgets())),
        own_arch=lock is None and profile.cpu.arch == platform.machine() and _cpu_first(served),
        exhaustive=elsewhere.keep_candidates or elsewhere.concerns(profile),
        room=room(loaded.handover.model.name, profile, loaded.handover.budgets.get(profile.name, Budgets())),
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
        _keep(ground, loaded, tried, staging / profile.name / "candidates", said)
    examination = examined(ground, best, pictures=pictures)
    origin = elsewhere.origin if wanted is None and elsewhere.concerns(profile) else None
    result = _write(ground, loaded, choice, best, examination, origin, staging / profile.name, said)
    if check and wanted is not None and result.packaged.digest != wanted.bundle:
        raise EdgeopsError(
            "E-COMPILE-LOCK",
            f"{profile.name}: {wanted.scheme} gives bundle {result.packaged.digest}, locked is {wanted.bundle}",
            "A tool is not deterministic, or the processor differs: compile without --locked and review the change.",
        )
    said("done")
    return result


def _samples(workplace: Machine, plan: JudgePlan, shared: Prepared) -> Stored:
    found = fed_samples(workplace, plan, shared.samples)
    if isinstance(found, Failed):
        raise EdgeopsError(found.failure.code, f"{found.step}: {found.failure.what}", "Correct it in handover.toml.")
    return found


def _keep(
    ground: Ground, loaded: LoadedHandover, tried: Sequence[Tried], folder: Path, said: Callable[[str], None]
) -> None:
    """Write every candidate that runs as a bundle of its own, to be measured elsewhere."""
    for one in tried:
        if one.judged is not None:
            said(f"keeping {one.candidate.scheme}")
            package(ground, loaded.handover, one, folder / one.candidate.scheme, lambda _: None)


def _aim(plan: JudgePlan, gates: Gates) -> Aim:
    return Aim(
        cosine_min=gates.cosine_min,
        sqnr_min_db=gates.sqnr_min_db,
        agreement_min=gates.agreement_min,
        kinds={output.artifact_output: output.kind for output in plan.outputs},
    )


def _write(
    ground: Ground,
    loaded: LoadedHandover,
    choice: Choice,
    best: Tried,
    examination: Examination,
    origin: FiguresOrigin | None,
    folder: Path,
    said: Callable[[str], None],
) -> ProfileResult:
    packaged = package(ground, loaded.handover, best, folder if choice.passed else folder / "rejected", said)
    records = tuple(
        msgspec.structs.replace(one, on_board=packaged.on_board) if one.scheme == best.candidate.scheme else one
        for one in choice.records
    )
    evidence = Evidence(
        bundle=packaged.digest,
        model=loaded.handover.model.name,
        profile=ground.profile.name,
        host=host(_TOOLS),
        candidates=records,
        calibration_samples=count(loaded.calibration),
        evaluation_samples=0 if loaded.evaluation is None else count(loaded.evaluation.inputs),
        created_at_s=time.time(),
        arch=ground.profile.cpu.arch,
        handed_over=_handed_over(loaded),
        examination=examination,
        figures=origin,
    )
    text = msgspec.json.format(msgspec.json.encode(evidence, order="sorted"), indent=2)
    durable.write_file(folder / EVIDENCE_NAME, text + b"\n")
    chosen = next(record for record in records if record.scheme == best.candidate.scheme)
    return ProfileResult(
        ground.profile.name, choice.passed, packaged, chosen, evidence, "" if choice.passed else missed(best)
    )


def _settle(result: ProfileResult, staging: Path, out: Path) -> ProfileResult:
    """Put what was made for a profile where it belongs."""
    packaged = result.packaged
    # What passed before does not stand for this hand-over.
    stale = ["rejected"] if result.passed else ["bundle", packaged.file.name]
    put_in_place(staging / result.profile, out / result.profile, stale)
    directory, file = (out / path.relative_to(staging) for path in (packaged.directory, packaged.file))
    return result._replace(packaged=packaged._replace(directory=directory, file=file))


def _handed_over(loaded: LoadedHandover) -> HandedOver:
    return HandedOver(
        digest=loaded.digest,
        file=loaded.handover.model.file,
        description=loaded.handover.model.description,
        files=loaded.file_digests,
        opsets=loaded.model.opsets,
        operators=loaded.model.ops,
        weights_bytes=loaded.model.weights_bytes,
    )


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
                figures="" if result is None or result.evidence.figures is None else result.evidence.figures.sha256,
                signed=result is not None
                and result.evidence.figures is not None
                and bool(result.evidence.figures.signed_by),
            )
            for name, result in results.items()
        },
        tools=tool_versions(_TOOLS),
        isa=isa_digest(),
    )
