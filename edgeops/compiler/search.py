"""The search for one profile: candidates in the order of escalation, judged under gates, until one is good enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from edgeops.compiler.builder import build
from edgeops.compiler.candidates import ARTIFACTS, TREE_RUNTIME, Candidate, Room, Traits, float_candidate, ladder
from edgeops.compiler.engine import Failed, Step
from edgeops.compiler.executor import Machine
from edgeops.compiler.gates import Measured, judge, passed, provable, shortfall
from edgeops.compiler.passes.judge import JudgePlan
from edgeops.compiler.passes.latency import LatencyPlan
from edgeops.compiler.sensitivity import Aim
from edgeops.compiler.store import Stored
from edgeops.contracts.bundle import BundleManifest
from edgeops.contracts.evidence import CandidateEvidence, GateResult, Latency, Metric, OutputError, Source
from edgeops.contracts.handover import Gates
from edgeops.contracts.profile import Budgets, Precision, Profile, Runtime

# An int8 artifact that is this much faster than float leaves nothing for other precisions to win.
_CLEARLY_FASTER = 0.8
_COSTS = ("latency", "size", "peak-memory")


class Ground(NamedTuple):
    """What all candidates of one profile start from.

    Args:
        profile: The profile.
        machine: Where work is done.
        prepared: Runtime name → the clean float graph within what that runtime reads, or why there is none.
        samples: Sample data as devices send them.
        fed: Runtime name → sample data as its artifacts take them.
        reference: The source's answers.
        plans: Runtime name → how to judge; artifact, precision, providers and options are filled in per candidate.
        timing: How latency is measured; the runtime is filled in per candidate. None: it decides nothing.
        traits: Of the model.
        aim: The quality that a search within a scheme works towards.
        gates: From the hand-over.
        budgets: The tightest of profile and hand-over.
        own_arch: This host has the profile's architecture: latency gates bind.
        exhaustive: Every candidate is tried, whatever passes before it.
        room: What there is room for on a microcontroller.
    """

    profile: Profile
    machine: Machine
    prepared: dict[str, Stored | Failed]
    samples: Stored
    fed: dict[str, Stored]
    reference: Stored
    plans: dict[str, JudgePlan]
    timing: LatencyPlan | None
    traits: Traits
    aim: Aim
    gates: Gates
    budgets: Budgets
    own_arch: bool
    exhaustive: bool = False
    room: Room | None = None


class DeviceFigures(NamedTuple):
    """What a device measured of a candidate: its own, its runtime's float artifact, and the yardstick of all."""

    device: str
    latency: Latency
    float_latency: Latency
    yardstick_latency: Latency
    peak_memory_mib: float


class Tried(NamedTuple):
    """A candidate after all that was done with it.

    Args:
        candidate: What it is.
        runtime: The profile's runtime.
        rank: Its place in the order of candidates, see `_rank`.
        artifact: The built product; None: it could not be built.
        judged: The product of `judge`.
        timed: The product of `latency`; None: it was not measured.
        results: The gates.
        reason: Why it could not be built or judged.
        there: A device's figures, which take the place of this host's.
    """

    candidate: Candidate
    runtime: Runtime
    rank: tuple[int, int, int, int]
    artifact: Stored | None = None
    judged: Stored | None = None
    results: tuple[GateResult, ...] = ()
    reason: str = ""
    there: DeviceFigures | None = None
    timed: Stored | None = None

    @property
    def passed(self) -> bool:
        """Whether it was held against the gates and all binding ones passed; what is a baseline only was not."""
        return bool(self.results) and passed(self.results)

    @property
    def manifest(self) -> BundleManifest:
        """How its tensors are bound; only where it was judged."""
        assert self.judged is not None
        return msgspec.convert(self.judged.notes["manifest"], BundleManifest)

    def latency(self, key: str = "latency") -> Latency | None:
        """Return a measured latency: the device's, where there is one."""
        if self.there is not None:
            latency: Latency = getattr(self.there, key)
            return latency
        found = None if self.timed is None else self.timed.notes.get(key)
        return None if found is None else msgspec.convert(found, Latency)

    def relative_latency(self, floats: Mapping[str, Tried]) -> float:
        """Return the median latency in units of the profile's yardstick; infinite where it was not measured.

        Each factor was measured in turns, so that the machine's load cancels out.

        Args:
            floats: Runtime → its float candidate.
        """
        own, base = self.latency(), self.latency("float_latency")
        plain = floats.get(self.candidate.runtime, self)
        plain_own, yardstick = plain.latency(), plain.latency("yardstick_latency")
        if own is None or base is None or plain_own is None or yardstick is None:
            return math.inf
        ratio = 1.0 if plain is self else own.p50_ms / base.p50_ms
        return ratio * plain_own.p50_ms / yardstick.p50_ms

    def evidence(self) -> CandidateEvidence:
        """Return the record of this candidate, not yet compared with others."""
        notes: dict[str, Any] = {} if self.judged is None else self.judged.notes
        end_to_end = msgspec.convert(notes.get("end_to_end", ()), tuple[OutputError, ...])
        is_float = self.candidate.precision is Precision.FLOAT32
        return CandidateEvidence(
            scheme=self.candidate.scheme,
            runtime=self.candidate.runtime,
            precision=self.candidate.precision.value,
            size_bytes=0 if self.artifact is None else self.artifact.notes.get("flash_bytes", self.artifact.size_bytes),
            conversion=end_to_end if is_float else (),
            quantization=msgspec.convert(notes.get("quantization", ()), tuple[OutputError, ...]),
            end_to_end=end_to_end,
            metric=msgspec.convert(notes.get("metric"), Metric | None),
            latency=self.latency(),
            float_latency=self.latency("float_latency"),
            peak_memory_mib=notes.get("peak_memory_mib") if self.there is None else self.there.peak_memory_mib,
            source=Source.MEASURED_HOST if self.there is None else Source.MEASURED_DEVICE,
            measured_on="" if self.there is None else self.there.device,
            gates=self.results,
            passed=self.passed,
            reason=self.reason,
        )


class Said(Protocol):
    """Told what is being done: a scheme with how many more may follow at most, or other words."""

    def __call__(self, text: str, left: int | None = None) -> None:
        """Take note."""


def search(ground: Ground, said: Said) -> list[Tried]:
    """Try candidates until those that are left cannot win.

    Args:
        ground: The profile and its model.
        said: Told what is being done, for a progress display.

    Returns:
        Every candidate that was tried, in order.
    """
    tried: list[Tried] = []
    for place, runtime in enumerate(ground.profile.runtimes):
        if runtime.name not in ARTIFACTS:
            continue
        if not ground.exhaustive and not ground.own_arch and _cannot_win(tried, runtime, place):
            continue
        yardstick = next((one for one in tried if one.judged is not None), None)
        later = sum(
            1 + sum(map(len, _ladders(ground, other).values()))
            for other in ground.profile.runtimes[place + 1 :]
            if other.name in ARTIFACTS
        )
        tried += _search_runtime(ground, runtime, place, yardstick, _with_more(said, later))
    return tried


def only(ground: Ground, scheme: str, said: Said) -> list[Tried]:
    """Try one scheme, and the float artifact that it is compared with.

    Returns:
        Empty if the profile has no such scheme.
    """
    for place, runtime in enumerate(ground.profile.runtimes):
        if ground.traits.ready is not None:
            ready = float_candidate(runtime, ground.traits, ground.room)
            if ready.scheme == scheme:
                return [_try(ground, runtime, ready, _rank(runtime, place, ready.precision, 0), {}, said)]
            continue
        for precision in runtime.precisions:
            for index, candidate in enumerate(ladder(runtime, precision, ground.traits, ground.aim, ground.room)):
                if candidate.scheme == scheme:
                    base_rank = _rank(runtime, place, Precision.FLOAT32, 0)
                    base = _try(
                        ground, runtime, float_candidate(runtime, ground.traits, ground.room), base_rank, {}, said
                    )
                    if candidate.precision is Precision.FLOAT32:
                        return [base]
                    rank = _rank(runtime, place, precision, index)
                    return [base, _try(ground, runtime, candidate, rank, {"float": base}, said)]
    return []


def _rank(runtime: Runtime, place: int, precision: Precision, index: int) -> tuple[int, int, int, int]:
    """Return a candidate's place in the order: int8, then other compressed formats, then fp32.

    Among equals the profile's order decides: runtime, then precision, then scheme.
    """
    rough = {Precision.INT8: 0, Precision.FLOAT32: 2}.get(precision, 1)
    listed = runtime.precisions.index(precision) if precision in runtime.precisions else len(runtime.precisions)
    return rough, place, listed, index


def _cannot_win(tried: list[Tried], runtime: Runtime, place: int) -> bool:
    """Say whether a runtime that comes later has nothing that ranks before what passed already."""
    best = min((one.rank for one in tried if one.passed), default=None)
    return best is not None and all(best < _rank(runtime, place, precision, 0) for precision in runtime.precisions)


def _with_more(said: Said, later: int) -> Said:
    def tell(text: str, left: int | None = None) -> None:
        said(text, None if left is None else left + later)

    return tell


def _ladders(ground: Ground, runtime: Runtime) -> dict[Precision, tuple[Candidate, ...]]:
    """Return the candidates of each precision beside plain float, in the profile's order."""
    return {
        precision: ladder(runtime, precision, ground.traits, ground.aim, ground.room)
        for precision in runtime.precisions
        if precision is not Precision.FLOAT32
    }


def _search_runtime(ground: Ground, runtime: Runtime, place: int, yardstick: Tried | None, said: Said) -> list[Tried]:
    ladders = _ladders(ground, runtime)
    left = sum(map(len, ladders.values()))
    base_rank = _rank(runtime, place, Precision.FLOAT32, 0)
    if ground.traits.trees and runtime.name != TREE_RUNTIME:
        # No converter has these operators: minutes of trying would say so in other words.
        plain = float_candidate(runtime, ground.traits, ground.room)
        return [Tried(plain, runtime, base_rank, reason=f"decision trees run on {TREE_RUNTIME} only")]
    base = _try(
        ground,
        runtime,
        float_candidate(runtime, ground.traits, ground.room),
        base_rank,
        {"yardstick": yardstick},
        _with_more(said, left),
    )
    tried = [base]
    if base.judged is None:
        return tried
    for precision, candidates in ladders.items():
        best = math.inf
        left -= len(candidates)
        for index, candidate in enumerate(candidates):
            if index and best > candidate.rescues:
                continue
            still = _with_more(said, left + len(candidates) - index - 1)
            one = _try(ground, runtime, candidate, _rank(runtime, place, precision, index), {"float": base}, still)
            tried.append(one)
            best = min(best, shortfall(one.evidence().end_to_end, ground.gates))
            if not ground.exhaustive and (one.passed or _costs_too_much(one) or _cannot_be_proved(ground, one)):
                break
        if not ground.exhaustive and (_settles(ground, tried[-1]) or _cannot_be_proved(ground, tried[-1])):
            break
    if Precision.FLOAT32 not in runtime.precisions and ground.traits.ready is None:
        tried[0] = base._replace(results=(), reason="baseline only: the profile does not list fp32")
    return tried


def _settles(ground: Ground, one: Tried) -> bool:
    if not one.passed:
        return False
    own, base = one.latency(), one.latency("float_latency")
    if not ground.own_arch or own is None or base is None:
        return True
    return own.p50_ms <= _CLEARLY_FASTER * base.p50_ms


def _costs_too_much(one: Tried) -> bool:
    """Say whether a cost stops a candidate: later schemes of its precision keep more in float, and cost no less."""
    return any(result.gate.startswith(_COSTS) for result in one.results if result.binding and not result.passed)


def _cannot_be_proved(ground: Ground, one: Tried) -> bool:
    """Say whether the labelled samples are too few for any lossy candidate, even one that changes no answer."""
    metric = one.evidence().metric
    return metric is not None and not provable(metric, ground.gates)


def _try(
    ground: Ground,
    runtime: Runtime,
    candidate: Candidate,
    rank: tuple[int, int, int, int],
    others: Mapping[str, Tried | None],
    said: Said,
) -> Tried:
    """Build and judge a candidate; `others` are already judged ones by role: `float`, `yardstick`."""
    tried = Tried(candidate, runtime, rank)
    start = ground.prepared[runtime.name]
    if isinstance(start, Failed):
        return tried._replace(reason=f"{start.step}: {start.failure.what}")
    said(candidate.scheme, 0)
    roles = {"samples": ground.samples}
    for role, other in others.items():
        if other is not None and other.artifact is not None and other.judged is not None:
            roles |= {role: other.artifact, f"{role}-judged": other.judged}
    artifact = build(ground.machine, candidate.steps, start, roles | {"samples": ground.fed[runtime.name]})
    if isinstance(artifact, Failed):
        return tried._replace(reason=f"{artifact.step}: {artifact.failure.what}")
    plan = msgspec.structs.replace(
        ground.plans[runtime.name],
        runtime=runtime.name,
        artifact=ARTIFACTS[runtime.name],
        precision=candidate.precision,
        providers=runtime.providers,
        options=runtime.options,
    )
    compared = {"samples", "reference", "float-judged"} & {"reference", *roles}
    step = Step(name="judge", parameters=msgspec.to_builtins(plan), inputs=tuple(sorted(compared)))
    judged = build(ground.machine, [step], artifact, roles | {"reference": ground.reference})
    if isinstance(judged, Failed):
        return tried._replace(artifact=artifact, reason=f"{judged.step}: {judged.failure.what}")
    timed = None if ground.timing is None else _timed(ground, ground.timing, artifact, roles | {"judged": judged})
    if isinstance(timed, Failed):
        return tried._replace(artifact=artifact, reason=f"{timed.step}: {timed.failure.what}")
    tried = tried._replace(artifact=artifact, judged=judged, timed=timed)
    return tried._replace(results=judge(measured(tried), ground.gates, ground.budgets, own_arch=ground.own_arch))


def _timed(ground: Ground, timing: LatencyPlan, artifact: Stored, roles: Mapping[str, Stored]) -> Stored | Failed:
    plan = msgspec.structs.replace(timing, runtime=str(roles["judged"].notes["manifest"]["runtime"]))
    step = Step(name="latency", parameters=msgspec.to_builtins(plan), inputs=tuple(sorted(roles)))
    # One after the other, and no worker's place is taken by one that waits.
    with ground.machine.turn("latency"):
        return build(ground.machine, [step], artifact, roles)


def measured(tried: Tried) -> Measured:
    """Return what gates are judged by."""
    record = tried.evidence()
    return Measured(
        precision=tried.candidate.precision,
        outputs=record.end_to_end,
        metric=record.metric,
        latency=record.latency,
        float_latency=record.float_latency,
        size_bytes=record.size_bytes,
        peak_memory_mib=record.peak_memory_mib,
    )
