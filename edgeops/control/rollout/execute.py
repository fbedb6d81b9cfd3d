"""Carries decisions out: each step is one transaction, so a cut at any point leaves it done whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from edgeops.contracts.deployment import (
    SHADOW_FEATURE,
    TERMINAL_STATES,
    Component,
    DeploymentState,
    Reported,
    Shadowing,
    kind_of,
)
from edgeops.contracts.errors import ERROR_CODES, EdgeopsError, Fault
from edgeops.contracts.rollouts import RolloutState
from edgeops.contracts.telemetry import ShadowFigures
from edgeops.contracts.topics import SELF_UNIT
from edgeops.contracts.wire import decode
from edgeops.control import audit
from edgeops.control.assignment import assign, components_of, newest_generation
from edgeops.control.database import Database
from edgeops.control.ingest import rollups
from edgeops.control.ingest.arms import CANARY
from edgeops.control.models import Device, RigRun, Rollout, RolloutGroup, RolloutMember, RolloutProfile, Unit
from edgeops.control.rigs import runs
from edgeops.control.rollout.decide import Action, Counts, Decision, GroupView, RolloutView, decide
from edgeops.control.rollout.freeze import frozen
from edgeops.control.rollout.policy import MAX_RETRIES, read_policy
from edgeops.control.rollout.regression import Arms, Requests
from edgeops.control.rollout.reverting import give_back
from edgeops.control.rollout.rig_gate import RigView
from edgeops.control.telemetry_models import ArmRollup
from edgeops.control.units import lock_units, unit_name

log = logging.getLogger(__name__)

TIMED_OUT_CODE = "E-ROLLOUT-TIMEOUT"
# A device that rejects a bundle would do so again.
RETRIED_STATES = (DeploymentState.FAILED, DeploymentState.TIMED_OUT)


class Step(NamedTuple):
    """What one step did: the decision, and whether devices have a new desired state to be published."""

    decision: Decision
    published: bool


def advance(database: Database, rollout_id: int, now_s: float) -> Step | None:
    """Take one step of a rollout, in one transaction; None if it is not running, or the fleet is frozen.

    Raises:
        EdgeopsError: The database cannot be written; nothing has changed.
    """
    with database.write() as session:
        rollout = session.get(Rollout, rollout_id, with_for_update=True)
        if rollout is None or rollout.state != RolloutState.RUNNING or frozen(session) is not None:
            return None
        _take_back_what_is_to_come(session, rollout, now_s)
        decision = decide(read_view(session, rollout), now_s)
        return Step(decision, _carry_out(session, rollout, decision, now_s))


def _take_back_what_is_to_come(session: Session, rollout: Rollout, now_s: float) -> None:
    """Have what began in the future begin now: the clock was ahead then. A group's time would never be over."""
    if rollout.started_at_s is not None:
        rollout.started_at_s = min(rollout.started_at_s, now_s)
    ahead = select(RolloutGroup).where(RolloutGroup.rollout_id == rollout.id, RolloutGroup.window_from_s > now_s)
    for group in session.scalars(ahead):
        group.window_from_s = now_s


def running(database: Database) -> list[int]:
    """Return the ids of all running rollouts, oldest first."""
    with database.read() as session:
        found = select(Rollout.id).where(Rollout.state == RolloutState.RUNNING).order_by(Rollout.id)
        return list(session.scalars(found))


def read_view(session: Session, rollout: Rollout) -> RolloutView:
    """Return what a decision rests on. Revoked devices do not count."""
    member = RolloutMember
    rows = session.execute(
        select(
            member.position, member.profile, member.state, member.reached, member.code, member.attempts, func.count()
        )
        .join(Device, Device.connection == member.connection)
        .where(member.rollout_id == rollout.id, Device.revoked_at_s.is_(None))
        .group_by(member.position, member.profile, member.state, member.reached, member.code, member.attempts)
    )
    counts: dict[int, dict[str, Counts]] = {}
    retries, shadows = _tries_and_shadows(rollout)
    for position, profile, state, reached, code, attempts, number in rows:
        group = counts.setdefault(position, {})
        outcome = _counts(DeploymentState(state), reached, code, number, may_retry=attempts <= retries)
        group[profile] = group.get(profile, Counts()).plus(outcome)
    groups = session.scalars(
        select(RolloutGroup).where(RolloutGroup.rollout_id == rollout.id).order_by(RolloutGroup.position)
    )
    stopped = session.scalars(_stopped(rollout))
    return RolloutView(
        policy=rollout.policy,
        groups=[
            GroupView(
                group.label,
                group.window_from_s,
                group.finished_at_s is not None,
                counts.get(group.position, {}),
                shadows=shadows and group.promoted_at_s is None,
            )
            for group in groups
        ],
        stopped_profiles=frozenset(stopped),
        requests=_requests(session, rollout),
        rigs=_rigs(session, rollout),
    )


def _rigs(session: Session, rollout: Rollout) -> list[RigView]:
    """Return how the rigs of group 0 stand."""
    try:
        names = read_policy(rollout.policy).rigs
    except EdgeopsError:
        return []  # `decide` will stop it
    if not names:
        return []
    asked, known = runs.newest(session, rollout.id), runs.known(session, names)
    bundled = select(RolloutProfile.profile).where(RolloutProfile.rollout_id == rollout.id)
    profiles = set(session.scalars(bundled))
    return [_rig(name, known.get(name), asked.get(name), profiles) for name in names]


def _rig(name: str, rig: runs.Known | None, run: RigRun | None, profiles: set[str]) -> RigView:
    if rig is None:
        return RigView(name, cannot="it is not enrolled")
    if run is None or run.given_up_at_s is not None:
        return RigView(name, cannot=rig.cannot(profiles), gone_since_s=rig.gone_since_s)
    doing = rig.report.doing if rig.report is not None else None
    return RigView(
        name,
        asked_at_s=run.created_at_s,
        verdict=run.verdict or None,
        reason=run.reason,
        cannot="it is revoked" if rig.revoked else "",
        gone_since_s=rig.gone_since_s,
        doing=doing.said[:200] if doing is not None and doing.id == run.id else "",
    )


def _requests(session: Session, rollout: Rollout) -> dict[str, Arms]:
    """Return what the rollout's profiles were asked since it began, and how that went."""
    if rollout.started_at_s is None:
        return {}
    rows = session.scalars(select(RolloutProfile).where(RolloutProfile.rollout_id == rollout.id))
    arms = {row.profile: Arms(reference=row.reference) for row in rows}
    for profile, is_new, requests in _told(session, rollout, rollout.started_at_s):
        so_far = arms.get(profile, Arms())
        old = so_far.old if is_new else so_far.old.plus(requests)
        arms[profile] = so_far._replace(new=requests if is_new else so_far.new, old=old)
    return arms


def _told(session: Session, rollout: Rollout, since_s: float) -> Iterator[tuple[str, bool, Requests]]:
    """Yield profile, whether it was of the rollout's release, and requests.

    While a canary is under way these are of its two arms alone.
    """
    if rollout.controlled and session.get_one(RolloutGroup, (rollout.id, 0)).finished_at_s is None:
        for row in session.scalars(select(ArmRollup).where(ArmRollup.rollout_id == rollout.id)):
            yield row.profile, row.arm == CANARY, _requests_in(rollups.traffic_in(row))
        return
    for (profile, version), traffic in rollups.traffic(session, rollout.model, since_s=since_s).items():
        yield profile, version == rollout.version, _requests_in(traffic)


def _requests_in(traffic: rollups.Traffic) -> Requests:
    # What a client did wrong, or was told to wait for, is no fault of the release.
    failed = sum(count for code, count in traffic.errors.items() if not _is_clients(code))
    shadow = traffic.shadow or ShadowFigures(compared=0, agreed=0)
    return Requests(
        traffic.requests,
        failed,
        traffic.latency_ms,
        traffic.histograms,
        traffic.temperature_max_c,
        compared=shadow.compared,
        agreed=shadow.agreed,
        sampled=traffic.sampled,
    )


def _is_clients(code: str) -> bool:
    if code == "E-INFER-AWAY":
        return True  # a pause that clients are told of, on a device without room for two bundles
    return code in ERROR_CODES and ERROR_CODES[code].fault is Fault.USAGE


def _tries_and_shadows(rollout: Rollout) -> tuple[int, bool]:
    try:
        policy = read_policy(rollout.policy)
    except EdgeopsError:
        return 0, False  # `decide` will stop it
    return policy.retries, policy.shadow is not None


def _counts(state: DeploymentState, reached: bool, code: str | None, number: int, *, may_retry: bool) -> Counts:
    codes = {code or "no code": number}
    if may_retry and state in RETRIED_STATES:
        return Counts(retriable=number)
    if state is DeploymentState.FAILED:
        return Counts(failed=number, codes=codes)
    if state is DeploymentState.REJECTED:
        return Counts(rejected=number, codes=codes)
    if state is DeploymentState.TIMED_OUT:
        return Counts(timed_out=number, codes=codes)
    if state is DeploymentState.CONFIRMED:
        return Counts(confirmed=number)
    if not reached:
        return Counts(silent=number)
    if state is DeploymentState.SHADOW:
        return Counts(shadowing=number)
    return Counts(held=number) if state is DeploymentState.HELD else Counts(running=number)


def _carry_out(session: Session, rollout: Rollout, decision: Decision, now_s: float) -> bool:
    rollout.figures = [figure._asdict() for figure in decision.figures] or rollout.figures
    rollout.reason = decision.reason
    going_back = False
    for profile, reason in decision.stop_profiles.items():
        row = session.get_one(RolloutProfile, (rollout.id, profile))
        if row.stopped_at_s is None:
            row.stopped_at_s, row.reason = now_s, reason
            _note(session, rollout, "rollout.stop-profile", now_s, profile=profile, reason=reason)
            going_back |= (
                give_back(session, rollout, now_s, profile=profile, only_open=not decision.profiles_go_back).back > 0
            )
    if decision.finish_group is not None:
        session.get_one(RolloutGroup, (rollout.id, decision.finish_group)).finished_at_s = now_s
    if decision.action is Action.WAIT:
        return going_back
    if decision.action is Action.ASK_RIGS:
        policy = read_policy(rollout.policy)
        asked = runs.ask(session, rollout, _unasked(session, rollout), policy.rig_timeout_s, now_s)
        if asked:
            _note(session, rollout, "rollout.ask-rigs", now_s, rigs=asked)
        return True  # a command is to be sent
    if decision.action is Action.START_GROUP:
        assert decision.group is not None
        return _start_group(session, rollout, decision.group, now_s) or going_back
    if decision.action is Action.PROMOTE:
        assert decision.group is not None
        return _promote(session, rollout, decision.group, now_s) or going_back
    if decision.action is Action.RETRY:
        assert decision.group is not None
        return _retry(session, rollout, decision.group, now_s)
    if decision.action is Action.TIME_OUT:
        assert decision.group is not None
        _time_out(session, rollout, decision.group, now_s)
        return False
    ended = {
        Action.FINISH: RolloutState.SUCCEEDED,
        Action.STOP: RolloutState.STOPPED,
        Action.PAUSE: RolloutState.PAUSED,
        Action.REVERT: RolloutState.REVERTED,
    }
    state = ended[decision.action]
    rollout.state = state
    if state is not RolloutState.PAUSED:
        rollout.ended_at_s = now_s
    _note(session, rollout, f"rollout.{state}", now_s, reason=decision.reason)
    if decision.action in (Action.REVERT, Action.STOP):
        only_open = decision.action is Action.STOP
        going_back |= give_back(session, rollout, now_s, only_open=only_open).back > 0
    return going_back


def _unasked(session: Session, rollout: Rollout) -> list[str]:
    return [rig.name for rig in _rigs(session, rollout) if rig.asked_at_s is None]


def _start_group(session: Session, rollout: Rollout, position: int, now_s: float) -> bool:
    """Begin a group: its time runs from now."""
    group = session.get_one(RolloutGroup, (rollout.id, position))
    group.started_at_s = group.window_from_s = now_s
    given = give(session, rollout, position, now_s)
    _note(session, rollout, "rollout.start-group", now_s, group=group.label, devices=given)
    log.info("rollout %d: group %s started with %d devices", rollout.id, group.label, given)
    return given > 0


def _stopped(rollout: Rollout) -> Select[str]:
    """Return the query of a rollout's profiles that a gate stopped."""
    return select(RolloutProfile.profile).where(
        RolloutProfile.rollout_id == rollout.id, RolloutProfile.stopped_at_s.is_not(None)
    )


def _promote(session: Session, rollout: Rollout, position: int, now_s: float) -> bool:
    """Have a group's shadows serve: the same release as a new generation. Its time runs anew."""
    group = session.get_one(RolloutGroup, (rollout.id, position))
    group.promoted_at_s = group.window_from_s = now_s
    policy = read_policy(rollout.policy)
    lock_units(session, rollout.id, RolloutMember.position == position)
    rows = session.execute(
        select(RolloutMember, Unit)
        .join(Unit, (Unit.connection == RolloutMember.connection) & (Unit.unit == RolloutMember.unit))
        .join(Device, Device.connection == RolloutMember.connection)
        .where(
            RolloutMember.rollout_id == rollout.id,
            RolloutMember.position == position,
            RolloutMember.profile.not_in(_stopped(rollout)),
            RolloutMember.state.not_in(TERMINAL_STATES),
            Device.revoked_at_s.is_(None),
        )
        .order_by(RolloutMember.connection, RolloutMember.unit)
        .with_for_update(of=[RolloutMember, Unit], key_share=True)
    ).all()
    promoted = []
    for member, unit in rows:
        wanted = next((part for part in components_of(unit) if part.name == member.component), None)
        if wanted is None or wanted.release != rollout.version or wanted.shadow is None:
            continue  # it has got another release since
        serving = msgspec.structs.replace(wanted, shadow=None)
        cause = f"rollout {rollout.id}, promoted"
        member.generation = assign(
            session, unit, serving, cause=cause, now_s=now_s, override_holds=policy.override_holds
        )
        member.state, member.step, member.code, member.detail = DeploymentState.IDLE, 0, None, ""
        member.changed_at_s = now_s
        promoted.append(unit_name(member.connection, member.unit))
    _note(session, rollout, "rollout.promote", now_s, group=group.label, devices=promoted)
    return bool(promoted)


def _retry(session: Session, rollout: Rollout, position: int, now_s: float) -> bool:
    """Give the release again, as a new generation, to those who failed and have tries left; their time runs anew."""
    policy = read_policy(rollout.policy)
    lock_units(session, rollout.id, RolloutMember.position == position)
    rows = session.execute(
        select(RolloutMember, Unit)
        .join(Unit, (Unit.connection == RolloutMember.connection) & (Unit.unit == RolloutMember.unit))
        .join(Device, Device.connection == RolloutMember.connection)
        .where(
            RolloutMember.rollout_id == rollout.id,
            RolloutMember.position == position,
            RolloutMember.profile.not_in(_stopped(rollout)),
            RolloutMember.state.in_(RETRIED_STATES),
            RolloutMember.attempts <= policy.retries,
            Device.revoked_at_s.is_(None),
        )
        .order_by(RolloutMember.connection, RolloutMember.unit)
        .with_for_update(of=[RolloutMember, Unit], key_share=True)
    ).all()
    for member, unit in rows:
        wanted = next((part for part in components_of(unit) if part.name == member.component), None)
        member.attempts += 1
        if wanted is None or wanted.release != rollout.version:
            member.attempts = MAX_RETRIES + 1  # it has got another release since: nothing to try again
            continue
        cause = f"rollout {rollout.id}, try again"
        member.generation = assign(
            session, unit, wanted, cause=cause, now_s=now_s, override_holds=policy.override_holds
        )
        member.state, member.step, member.code, member.detail = DeploymentState.IDLE, 0, None, ""
        member.changed_at_s = now_s
    session.get_one(RolloutGroup, (rollout.id, position)).window_from_s = now_s
    _note(
        session,
        rollout,
        "rollout.retry",
        now_s,
        devices=[unit_name(member.connection, member.unit) for member, _ in rows],
    )
    return bool(rows)


def hold_no_longer(session: Session, rollout: Rollout, now_s: float) -> list[str]:
    """Give the release once more, not to wait any longer, to the devices that are held; return their names."""
    lock_units(session, rollout.id)
    rows = session.execute(
        select(RolloutMember, Unit)
        .join(Unit, (Unit.connection == RolloutMember.connection) & (Unit.unit == RolloutMember.unit))
        .join(Device, Device.connection == RolloutMember.connection)
        .where(
            RolloutMember.rollout_id == rollout.id,
            RolloutMember.state == DeploymentState.HELD,
            Device.revoked_at_s.is_(None),
        )
        .order_by(RolloutMember.connection, RolloutMember.unit)
        .with_for_update(of=[RolloutMember, Unit], key_share=True)
    ).all()
    given = []
    for member, unit in rows:
        wanted = next((part for part in components_of(unit) if part.name == member.component), None)
        if wanted is None or wanted.release != rollout.version:
            continue  # it has got another release since
        cause = f"rollout {rollout.id}, holds overridden"
        member.generation = assign(session, unit, wanted, cause=cause, now_s=now_s, override_holds=True)
        member.changed_at_s = now_s
        given.append(unit_name(member.connection, member.unit))
    return given


def give(session: Session, rollout: Rollout, position: int, now_s: float) -> int:
    """Give the release to the devices of a group that do not have it yet; return how many.

    Stopped profiles and revoked devices get none.
    """
    profiles = {
        row.profile: row
        for row in session.scalars(select(RolloutProfile).where(RolloutProfile.rollout_id == rollout.id))
    }
    rows = session.execute(
        select(RolloutMember, Unit, Device.online, newest_generation())
        .join(Unit, (Unit.connection == RolloutMember.connection) & (Unit.unit == RolloutMember.unit))
        .join(Device, Device.connection == RolloutMember.connection)
        .where(
            RolloutMember.rollout_id == rollout.id,
            RolloutMember.position == position,
            RolloutMember.generation.is_(None),
            Device.revoked_at_s.is_(None),
        )
        .order_by(RolloutMember.connection, RolloutMember.unit)
        .with_for_update(of=[RolloutMember, Unit], key_share=True)
    ).all()
    given, policy = 0, read_policy(rollout.policy)
    promoted = session.get_one(RolloutGroup, (rollout.id, position)).promoted_at_s is not None
    shadow = None if policy.shadow is None or promoted else Shadowing(share=policy.shadow.share, cpu=policy.shadow.cpu)
    for member, unit, online, newest in rows:
        bundle = profiles[member.profile]
        if bundle.stopped_at_s is not None:
            continue
        if shadow is not None and not _knows_shadows(unit):
            # It would let the release serve at once.
            member.state, member.code = DeploymentState.REJECTED, "E-AGENT-FEATURE"
            member.detail, member.changed_at_s = "its agent has not said that it knows shadows", now_s
            continue
        component = Component(
            name=member.component,
            kind=kind_of(member.component),
            release=rollout.version,
            target=bundle.target,
            digest=bundle.digest,
            shadow=shadow,
        )
        cause = f"rollout {rollout.id}"
        member.generation = assign(
            session, unit, component, cause=cause, now_s=now_s, override_holds=policy.override_holds, newest=newest or 0
        )
        member.first_generation, member.attempts = member.generation, 1
        # A unit behind a gateway speaks for itself: it may be unplugged while its gateway is connected.
        member.reached, member.changed_at_s = online and member.unit == SELF_UNIT, now_s
        given += 1
    return given


def _knows_shadows(unit: Unit) -> bool:
    if unit.reported is None:
        return False
    return SHADOW_FEATURE in decode(unit.reported, Reported, what="stored report").features


def _time_out(session: Session, rollout: Rollout, position: int, now_s: float) -> None:
    """Set those who were heard of and are not through to timed-out.

    A shadow is through until it is to serve, but where there are to be none: whatever a device says.
    """
    through = TERMINAL_STATES | {DeploymentState.HELD}
    promoted = session.get_one(RolloutGroup, (rollout.id, position)).promoted_at_s is not None
    if read_policy(rollout.policy).shadow is not None and not promoted:
        through |= {DeploymentState.SHADOW}
    lock_units(session, rollout.id, RolloutMember.position == position)
    session.execute(
        update(RolloutMember)
        .where(
            RolloutMember.rollout_id == rollout.id,
            RolloutMember.position == position,
            RolloutMember.reached,
            RolloutMember.state.not_in(through),
        )
        .values(
            state=DeploymentState.TIMED_OUT,
            code=TIMED_OUT_CODE,
            detail="was heard of, but was not through in time",
            changed_at_s=now_s,
        )
    )


def _note(session: Session, rollout: Rollout, action: str, now_s: float, **detail: object) -> None:
    audit.record(session, at_s=now_s, actor=audit.SYSTEM, action=action, subject=f"rollout/{rollout.id}", **detail)
