"""What a rollout does next: a pure function of what rigs and devices reported. When in doubt it stops.

Before the first group come the rigs, if there are any: group 0.

    a rig is not asked yet             ask it
    a rig failed the release           what a tripped gate does
    a rig could not find out, is away, or its time is over: pause
    every rig passed it                the first group
    otherwise                          wait

For each group, and for each profile in it, only devices that were heard of since their group began are counted:
one that is offline for weeks neither passes a gate nor stalls it for ever.

    a gate cannot be evaluated         stop
    a gate fails within a profile      it stops, the others go on; if none is left: stop
    a gate fails over all that are left: stop
    requests fail or are slow for sure in one profile: it stops, the others go on
    all gates hold for good            next group
    time is over, too few reported     pause
    a failed device has tries left     give it the release again
    the group's shadows hold all       let them serve
    all hold, the schedule is shut     wait
    otherwise                          wait
"""

from __future__ import annotations

import datetime
import enum
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError
from edgeops.control.rollout.policy import Gates, Policy, read_policy
from edgeops.control.rollout.regression import AGREEMENT, TELEMETRY_GATES, Arms, Measured, measure, measure_shadow
from edgeops.control.rollout.rig_gate import RigsWord, RigView, check_rigs, stand_of
from edgeops.control.rollout.schedule import opens_at


class Action(enum.Enum):
    """What to do with a rollout."""

    WAIT = "wait"
    ASK_RIGS = "ask-rigs"
    START_GROUP = "start-group"
    TIME_OUT = "time-out"
    FINISH = "finish"
    RETRY = "retry"
    PAUSE = "pause"
    STOP = "stop"
    REVERT = "revert"
    PROMOTE = "promote"


_ON_FAILURE = {"stop": Action.STOP, "pause": Action.PAUSE, "revert": Action.REVERT}
_ON_RIGS = {
    RigsWord.PASSED: None,
    RigsWord.UNASKED: Action.ASK_RIGS,
    RigsWord.WAITING: Action.WAIT,
    RigsWord.TROUBLED: Action.PAUSE,
}


class Counts(NamedTuple):
    """The devices of one profile in one group.

    Args:
        confirmed: Run the release.
        failed: Failed and returned to what they had.
        rejected: Refused it before trying.
        timed_out: Were heard of, and were not through in time.
        running: Heard of since the group began, and on their way.
        held: Heard of, and waiting for a reason of their own: window, busy, memory.
        silent: Not heard of since the group began.
        retriable: Failed or were not through in time, and are to get the release once more.
        shadowing: Run the release beside what serves.
        codes: Failure code → devices, over failed, rejected and timed-out.
    """

    confirmed: int = 0
    failed: int = 0
    rejected: int = 0
    timed_out: int = 0
    running: int = 0
    held: int = 0
    silent: int = 0
    retriable: int = 0
    shadowing: int = 0
    codes: Mapping[str, int] = {}

    @property
    def bad(self) -> int:
        """Devices that did not get the release."""
        return self.failed + self.rejected + self.timed_out

    @property
    def reported(self) -> int:
        """Devices with an outcome: what every share is taken of."""
        return self.confirmed + self.bad

    @property
    def open(self) -> int:
        """Devices without an outcome."""
        return self.running + self.held + self.silent + self.retriable + self.shadowing

    @property
    def total(self) -> int:
        """All devices."""
        return self.reported + self.open

    def plus(self, other: Counts) -> Counts:
        """Return the counts of both."""
        codes = dict(self.codes)
        for code, count in other.codes.items():
            codes[code] = codes.get(code, 0) + count
        return Counts(
            self.confirmed + other.confirmed,
            self.failed + other.failed,
            self.rejected + other.rejected,
            self.timed_out + other.timed_out,
            self.running + other.running,
            self.held + other.held,
            self.silent + other.silent,
            self.retriable + other.retriable,
            self.shadowing + other.shadowing,
            codes,
        )


class GroupView(NamedTuple):
    """One group: its name, when its time began to count (None: not started), whether it is through, its profiles.

    `shadows`: its devices run the release beside what serves, and are not to serve it yet.
    """

    label: str
    window_from_s: float | None
    finished: bool
    profiles: Mapping[str, Counts]
    shadows: bool = False


class RolloutView(NamedTuple):
    """All that a decision rests on.

    Args:
        policy: The policy as it rests in its row; unreadable ones stop the rollout.
        groups: All groups in order.
        stopped_profiles: Profiles that a gate stopped earlier; they are judged no more.
        requests: Profile → what its requests came to since the rollout began.
        rigs: The rigs of the policy.
    """

    policy: bytes
    groups: Sequence[GroupView]
    stopped_profiles: frozenset[str] = frozenset()
    requests: Mapping[str, Arms] = {}
    rigs: Sequence[RigView] = ()

    @property
    def profiles(self) -> frozenset[str]:
        """All profiles of the rollout."""
        return frozenset(name for group in self.groups for name in group.profiles)


class Figure(NamedTuple):
    """One gate as evaluated: whose, its value, its limit, over how much, and whether it holds.

    Args:
        group: Its label.
        profile: Empty: all profiles together.
        gate: The gate's name in the policy.
        value: What was measured; None: nothing was.
        limit: What the policy says.
        reported: Reports of devices, or requests, that it rests on.
        holds: None: it cannot be said yet.
        lower: Where the true value is not below, for sure enough; None: not known, or not a gate on telemetry.
        upper: Where it is not above.
    """

    group: str
    profile: str
    gate: str
    value: float | None
    limit: float
    reported: int
    holds: bool | None
    lower: float | None = None
    upper: float | None = None

    def text(self) -> str:
        """Return it for people."""
        who = f"group {self.group}" + (f", profile {self.profile}" if self.profile else "")
        if self.value is None:
            return f"{who}: {self.gate} has no reports"
        if self.gate in TELEMETRY_GATES:
            between = f"{_bound(self.lower)} to {_bound(self.upper)}"
            words = _AT_LEAST if self.gate == AGREEMENT else _AT_MOST
            said = words[self.holds]
            return f"{who}: {self.gate} {self.value:.4g} ({between}) {said} {self.limit:.4g}, {self.reported} requests"
        relation = ("≥" if self.holds else "<") if self.gate == "success_min" else ("≤" if self.holds else ">")
        return f"{who}: {self.gate} {self.value:.4g} {relation} {self.limit:.4g} over {self.reported} reports"


_AT_MOST = {True: "is within", False: "is beyond", None: "may be beyond"}
_AT_LEAST = {True: "is at least", False: "is below", None: "may be below"}


class Decision(NamedTuple):
    """What to do, why, and the figures behind it.

    Args:
        action: What to do.
        reason: Why, for people: gate, figures and failure codes.
        group: Position of the group that is meant; None: the rollout.
        figures: All gates that were evaluated.
        stop_profiles: Profile → reason: these get no further devices, whatever the action is.
        finish_group: Position of a group that is through, if this decision says so.
        until_s: For WAIT: when the group's time is over.
        profiles_go_back: Devices of `stop_profiles` get back what they had.
    """

    action: Action
    reason: str
    group: int | None = None
    figures: tuple[Figure, ...] = ()
    stop_profiles: Mapping[str, str] = {}
    finish_group: int | None = None
    until_s: float | None = None
    profiles_go_back: bool = False


def decide(view: RolloutView, now_s: float) -> Decision:
    """Say what a running rollout does next.

    Args:
        view: What is known.
        now_s: The control plane's clock.

    Returns:
        One step; asking again after it was carried out gives the next one.
    """
    try:
        policy = read_policy(view.policy)
        _check(view, now_s)
        check_rigs(view.rigs, policy)
    except EdgeopsError as error:
        return Decision(Action.STOP, f"the gates cannot be evaluated: {error.what}")
    position = next((index for index, group in enumerate(view.groups) if not group.finished), None)
    if position is None:
        return _after(view, len(view.groups) - 1, view.stopped_profiles)
    group = view.groups[position]
    if policy.rigs and all(one.window_from_s is None for one in view.groups):
        before = _before_groups(view, policy, now_s)
        if before is not None:
            return before
    if group.window_from_s is None:
        return _start(view, position, policy, f"group {group.label} is next", now_s)
    return _judge(view, position, policy, now_s)._replace(profiles_go_back=policy.on_failure == "revert")


def _before_groups(view: RolloutView, policy: Policy, now_s: float) -> Decision | None:
    """Say what comes before the first group; None: every rig has passed the release."""
    stand = stand_of(view.rigs, policy, now_s)
    action = _ON_FAILURE[policy.on_failure] if stand.word is RigsWord.FAILED else _ON_RIGS[stand.word]
    return None if action is None else Decision(action, f"group 0: {stand.reason}", until_s=stand.until_s)


def _start(view: RolloutView, position: int, policy: Policy, reason: str, now_s: float) -> Decision:
    """Start a group, or wait until its schedule lets it."""
    opens_s = opens_at(policy.schedule, now_s)
    if opens_s > now_s:
        at = datetime.datetime.fromtimestamp(opens_s, datetime.UTC).isoformat(timespec="minutes")
        return Decision(Action.WAIT, f"{reason}; the schedule lets it start at {at}", position, until_s=opens_s)
    return Decision(Action.START_GROUP, reason, position)


def _judge(view: RolloutView, position: int, policy: Policy, now_s: float) -> Decision:
    """Judge the group that is under way."""
    gates, failed = policy.gates, _ON_FAILURE[policy.on_failure]
    group = view.groups[position]
    assert group.window_from_s is not None
    deadline_s = group.window_from_s + gates.timeout_s
    over = now_s >= deadline_s
    seen = {name: _as_judged(counts, shadows=group.shadows) for name, counts in group.profiles.items()}
    live = {name: counts for name, counts in seen.items() if name not in view.stopped_profiles}
    if over and any(counts.running for counts in live.values()):
        return Decision(Action.TIME_OUT, f"group {group.label} had {gates.timeout_s:.0f} s", group=position)

    if any(counts.retriable for counts in live.values()):
        return Decision(Action.RETRY, f"group {group.label} has devices to try again", group=position)

    samples = 2 if policy.control else 1
    measuring = measure_shadow if group.shadows else functools.partial(measure, samples=samples)
    by_profile = {
        name: _verdict(group.label, name, live[name], gates, over).along_with(
            _requests_verdict(group.label, name, measuring(gates, view.requests.get(name, Arms()), len(view.profiles)))
        )
        for name in sorted(live)
        if live[name].total
    }
    stop = {name: _why(verdict, live[name]) for name, verdict in by_profile.items() if verdict.fails}
    none_left = bool(stop) and len(stop) == len(by_profile)
    # Who has been stopped, now or earlier, is no matter of the others: a profile's regression is its own.
    everyone = _sum(counts for name, counts in live.items() if none_left or name not in stop)
    whole = _verdict(group.label, "", everyone, gates, over)
    figures = whole.figures + tuple(figure for verdict in by_profile.values() for figure in verdict.figures)

    if whole.fails:
        return Decision(failed, _why(whole, everyone), position, figures, stop)
    if none_left:
        return Decision(failed, "; ".join(stop.values()), position, figures, stop)
    waiting = [v for name, v in {"": whole, **by_profile}.items() if not v.passes and name not in stop]
    if not waiting and group.shadows:
        reason = f"group {group.label}: the shadows hold every gate, and are to serve"
        return Decision(Action.PROMOTE, reason, position, figures, stop)
    served_s = group.window_from_s + policy.serves_s
    if not waiting and now_s < served_s:
        reason = f"group {group.label}: every gate holds; it serves {policy.serves_s:.0f} s before it passes"
        return Decision(Action.WAIT, reason, position, figures, stop, until_s=served_s)
    if not waiting:
        step = _after(view, position, view.stopped_profiles | set(stop))
        if step.action is Action.START_GROUP:
            assert step.group is not None
            step = _start(view, step.group, policy, step.reason, now_s)
        reason = "; ".join([step.reason, *stop.values()])
        return step._replace(reason=reason, figures=figures, stop_profiles=stop, finish_group=position)
    if over:
        lacking = "; ".join(verdict.lacking for verdict in waiting)
        reason = f"group {group.label} is inconclusive after {gates.timeout_s:.0f} s: {lacking}"
        return Decision(Action.PAUSE, reason, position, figures, stop)
    reason = f"group {group.label}: {everyone.reported} of {everyone.total} devices have reported"
    return Decision(Action.WAIT, reason, position, figures, stop, until_s=deadline_s)


def _sum(parts: Iterable[Counts]) -> Counts:
    whole = Counts()
    for part in parts:
        whole = whole.plus(part)
    return whole


def _as_judged(counts: Counts, *, shadows: bool) -> Counts:
    """Return counts with the shadows where they belong: through while the group has only shadows, under way later."""
    if shadows:
        return counts._replace(confirmed=counts.confirmed + counts.shadowing, shadowing=0)
    return counts._replace(running=counts.running + counts.shadowing, shadowing=0)


def _after(view: RolloutView, position: int, stopped: frozenset[str]) -> Decision:
    """Say what follows a group that passed."""
    passed = f"group {view.groups[position].label} passed"
    if position + 1 < len(view.groups):
        following = view.groups[position + 1].label
        return Decision(Action.START_GROUP, f"{passed}; group {following} is next", position + 1)
    if stopped:
        return Decision(Action.STOP, f"{passed}; all groups are through, without profiles {', '.join(sorted(stopped))}")
    return Decision(Action.FINISH, f"{passed}; all groups are through")


class _Verdict(NamedTuple):
    figures: tuple[Figure, ...]
    passes: bool
    fails: bool
    lacking: str

    def along_with(self, other: _Verdict) -> _Verdict:
        """Return the verdict of both."""
        lacking = "; ".join(one.lacking for one in (self, other) if not one.passes)
        return _Verdict(self.figures + other.figures, self.passes and other.passes, self.fails or other.fails, lacking)


def _requests_verdict(label: str, profile: str, measured: Iterable[Measured]) -> _Verdict:
    """Judge what requests came to. What cannot be said yet neither passes nor fails."""
    figures = tuple(
        Figure(
            group=label,
            profile=profile,
            gate=one.gate,
            value=one.value,
            limit=one.limit,
            reported=one.requests,
            holds=one.holds,
            lower=_finite(one.interval.lower),
            upper=_finite(one.interval.upper),
        )
        for one in measured
    )
    return _Verdict(
        figures,
        passes=all(figure.holds is True for figure in figures),
        fails=any(figure.holds is False for figure in figures),
        lacking="; ".join(figure.text() for figure in figures if figure.holds is None),
    )


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def _bound(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def _verdict(label: str, profile: str, counts: Counts, gates: Gates, over: bool) -> _Verdict:
    """Judge one set of devices.

    Before its time is over, a set passes only if it would pass even if everyone who is open failed. It fails as soon
    as a share over enough reports is beyond failure_max, or if it would fail even if everyone who is open succeeded.
    """
    if not counts.total:
        return _Verdict((), passes=True, fails=False, lacking="")
    reported, total, still = counts.reported, counts.total, counts.open
    needed = min(gates.min_count, total)
    enough = reported >= needed
    success = counts.confirmed / reported if reported else None
    failure = counts.bad / reported if reported else None
    final = over or not still

    few_succeed = (counts.confirmed + still) / total < gates.success_min or (
        enough and final and success is not None and success < gates.success_min
    )
    many_fail = counts.bad / total > gates.failure_max or (
        enough and failure is not None and failure > gates.failure_max
    )
    if final:
        succeed = success is not None and success >= gates.success_min
        fail_little = failure is not None and failure <= gates.failure_max
    else:
        succeed = counts.confirmed / total >= gates.success_min
        fail_little = (counts.bad + still) / total <= gates.failure_max
    kinds = tuple(_of_kinds(label, profile, counts, gates, over))
    figures = (
        Figure(label, profile, "success_min", success, gates.success_min, reported, _holds(few_succeed, succeed)),
        Figure(label, profile, "failure_max", failure, gates.failure_max, reported, _holds(many_fail, fail_little)),
        *kinds,
    )
    fails = few_succeed or many_fail or any(figure.holds is False for figure in kinds)
    passes = enough and succeed and fail_little and all(figure.holds for figure in kinds) and not fails
    lacking = f"{profile or 'all profiles'}: {reported} of {total} reported, {needed} needed"
    return _Verdict(figures, passes, fails, lacking)


def _of_kinds(label: str, profile: str, counts: Counts, gates: Gates, over: bool) -> Iterable[Figure]:
    """Judge the shares of single kinds of outcomes, those that a gate asks for.

    Rejected and timed-out ones are of the reported; held ones of those too that are held, and only when time is over:
    a hold ends by itself.
    """
    needed = min(gates.min_count, counts.total)
    for gate, limit, number in (
        ("rejected_max", gates.rejected_max, counts.rejected),
        ("timed_out_max", gates.timed_out_max, counts.timed_out),
    ):
        if limit is not None:
            share = number / counts.reported if counts.reported else None
            final = over or not counts.open
            fails = number / counts.total > limit or (counts.reported >= needed and share is not None and share > limit)
            within = share is not None and share <= limit if final else (number + counts.open) / counts.total <= limit
            yield Figure(label, profile, gate, share, limit, counts.reported, _holds(fails, within))
    if gates.held_max is not None:
        heard = counts.reported + counts.held
        share = counts.held / heard if heard else None
        fails = over and heard >= needed and share is not None and share > gates.held_max
        within = (counts.held + counts.running + counts.silent + counts.retriable) / counts.total <= gates.held_max
        final = over and share is not None and share <= gates.held_max
        yield Figure(label, profile, "held_max", share, gates.held_max, heard, _holds(fails, within or final))


def _holds(fails: bool, passes: bool) -> bool | None:
    return False if fails else True if passes else None


def _why(verdict: _Verdict, counts: Counts) -> str:
    """Return which gates failed, with their figures and the devices' failure codes."""
    codes = ", ".join(f"{code} ×{number}" for code, number in sorted(counts.codes.items()))
    broken = "; ".join(figure.text() for figure in verdict.figures if figure.holds is False)
    return broken + (f" ({codes})" if codes else "")


def _check(view: RolloutView, now_s: float) -> None:
    """Refuse a view that cannot be true.

    Raises:
        EdgeopsError: E-ROLLOUT-INVALID.
    """
    if not math.isfinite(now_s) or not view.groups:
        raise EdgeopsError("E-ROLLOUT-INVALID", "there are no groups, or no clock")
    for group in view.groups:
        for profile, counts in group.profiles.items():
            if min(counts[:-1]) < 0:
                raise EdgeopsError("E-ROLLOUT-INVALID", f"group {group.label}, profile {profile}: counts below zero")
