"""What people do with rollouts: create, start, pause, resume, abort. Each is one transaction with its audit line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import exists, select
from sqlalchemy.orm import Session, aliased

from edgeops.contracts.deployment import DeploymentState
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.release import Release
from edgeops.contracts.rollouts import ENDED_STATES, RolloutState
from edgeops.contracts.topics import SELF_UNIT
from edgeops.control import audit
from edgeops.control.database import Database
from edgeops.control.models import Device, Rollout, RolloutGroup, RolloutMember, RolloutProfile
from edgeops.control.rollout.order import Candidate, fair_order
from edgeops.control.rollout.policy import Policy, check_policy, policy_text


class Selection(NamedTuple):
    """Which devices: all that the release has a bundle for, narrowed by names, profiles and labels."""

    devices: Sequence[str] = ()
    profiles: Sequence[str] = ()
    labels: Mapping[str, str] = {}


def create(
    database: Database,
    release: Release,
    policy: Policy,
    selection: Selection,
    *,
    actor: str,
    now_s: float,
    start: bool = False,
) -> int:
    """Make a rollout in state draft; it fixes which device comes in which group. With `start` it runs at once.

    Args:
        database: The registry.
        release: A published release.
        policy: Groups and gates.
        selection: Which devices.
        actor: Who asks.
        now_s: The control plane's clock.

    Returns:
        The rollout's id.

    Raises:
        EdgeopsError: E-ROLLOUT-INVALID; impossible gates or groups, or a named device that the release has no bundle
            for. E-DEVICE-UNKNOWN; a named device is not enrolled. Nothing is written.
    """
    with database.write() as session:
        candidates = _candidates(session, release, selection)
        sizes = check_policy(policy, len(candidates))
        ordered = fair_order(candidates, f"{release.model}/{release.version}")
        rollout = Rollout(
            model=release.model,
            version=release.version,
            release_number=release.number,
            policy=policy_text(policy),
            state=RolloutState.DRAFT,
            reason="",
            figures=[],
            created_at_s=now_s,
            created_by=actor,
            started_at_s=None,
            ended_at_s=None,
        )
        session.add(rollout)
        session.flush()
        profiles = {candidate.profile for candidate in candidates}
        session.add_all(
            RolloutProfile(
                rollout_id=rollout.id,
                profile=target.profile,
                target=target.path,
                digest=target.digest,
                stopped_at_s=None,
                reason="",
            )
            for target in release.targets
            if target.profile in profiles
        )
        first = 0
        for position, (label, size) in enumerate(zip(policy.groups, sizes, strict=True)):
            session.add(
                RolloutGroup(
                    rollout_id=rollout.id,
                    position=position,
                    label=f"{position + 1} ({label})",
                    started_at_s=None,
                    window_from_s=None,
                    finished_at_s=None,
                )
            )
            session.flush()
            session.add_all(
                _member(rollout, position, candidate, release.model) for candidate in ordered[first : first + size]
            )
            first += size
        audit.record(
            session,
            at_s=now_s,
            actor=actor,
            action="rollout.create",
            subject=f"rollout/{rollout.id}",
            release=f"{release.model} {release.version}",
            devices=len(ordered),
        )
        if start:
            _start(session, rollout.id, actor, now_s)
        return rollout.id


def start(database: Database, rollout_id: int, *, actor: str, now_s: float) -> None:
    """Set a draft running. Older rollouts of the model that still wait for one of its devices are superseded.

    Raises:
        EdgeopsError: E-ROLLOUT-UNKNOWN. E-ROLLOUT-STATE; it is no draft.
    """
    with database.write() as session:
        _start(session, rollout_id, actor, now_s)


def pause(database: Database, rollout_id: int, *, actor: str, now_s: float) -> None:
    """Give the release to no further group until resumed; who has it goes on.

    Raises:
        EdgeopsError: E-ROLLOUT-UNKNOWN. E-ROLLOUT-STATE; it is not running.
    """
    with database.write() as session:
        rollout = _change(session, rollout_id, (RolloutState.RUNNING,), RolloutState.PAUSED, actor, now_s)
        rollout.reason = f"paused by {actor}"


def resume(database: Database, rollout_id: int, *, actor: str, now_s: float) -> None:
    """Let a paused rollout go on; the group that is under way gets its whole time anew.

    Raises:
        EdgeopsError: E-ROLLOUT-UNKNOWN. E-ROLLOUT-STATE; it is not paused.
    """
    with database.write() as session:
        rollout = _change(session, rollout_id, (RolloutState.PAUSED,), RolloutState.RUNNING, actor, now_s)
        rollout.reason = f"resumed by {actor}"
        under_way = select(RolloutGroup).where(
            RolloutGroup.rollout_id == rollout_id,
            RolloutGroup.window_from_s.is_not(None),
            RolloutGroup.finished_at_s.is_(None),
        )
        for group in session.scalars(under_way):
            group.window_from_s = now_s


def abort(database: Database, rollout_id: int, *, actor: str, now_s: float) -> None:
    """End a rollout: no further device gets the release; who has it keeps it.

    Raises:
        EdgeopsError: E-ROLLOUT-UNKNOWN. E-ROLLOUT-STATE; it has ended already.
    """
    with database.write() as session:
        not_ended = tuple(set(RolloutState) - ENDED_STATES - {RolloutState.UNKNOWN})
        rollout = _change(session, rollout_id, not_ended, RolloutState.ABORTED, actor, now_s)
        rollout.reason, rollout.ended_at_s = f"aborted by {actor}", now_s


def _start(session: Session, rollout_id: int, actor: str, now_s: float) -> None:
    rollout = _change(session, rollout_id, (RolloutState.DRAFT,), RolloutState.RUNNING, actor, now_s)
    rollout.started_at_s = now_s
    mine, theirs = aliased(RolloutMember), aliased(RolloutMember)
    overlapping = exists(
        select(1)
        .select_from(mine)
        .join(theirs, (theirs.connection == mine.connection) & (theirs.unit == mine.unit))
        .where(mine.rollout_id == rollout.id, theirs.rollout_id == Rollout.id)
    )
    older = select(Rollout).where(
        Rollout.id != rollout.id,
        Rollout.model == rollout.model,
        Rollout.state.in_([RolloutState.RUNNING, RolloutState.PAUSED]),
        overlapping,
    )
    for other in session.scalars(older.with_for_update()):
        other.state, other.ended_at_s = RolloutState.SUPERSEDED, now_s
        other.reason = f"superseded by rollout {rollout.id} ({rollout.model} {rollout.version})"
        audit.record(session, at_s=now_s, actor=actor, action="rollout.superseded", subject=f"rollout/{other.id}")


def _change(
    session: Session,
    rollout_id: int,
    allowed: Sequence[RolloutState],
    state: RolloutState,
    actor: str,
    now_s: float,
) -> Rollout:
    rollout = session.get(Rollout, rollout_id, with_for_update=True)
    if rollout is None:
        raise EdgeopsError("E-ROLLOUT-UNKNOWN", f"there is no rollout {rollout_id}", "See `edgeops rollout status`.")
    if rollout.state not in allowed:
        needed = " or ".join(sorted(allowed))
        raise EdgeopsError("E-ROLLOUT-STATE", f"rollout {rollout_id} is {rollout.state}, not {needed}")
    rollout.state = state
    audit.record(session, at_s=now_s, actor=actor, action=f"rollout.{state}", subject=f"rollout/{rollout_id}")
    return rollout


def _candidates(session: Session, release: Release, selection: Selection) -> list[Candidate]:
    """Return the devices that a selection means.

    Raises:
        EdgeopsError: E-DEVICE-UNKNOWN or E-ROLLOUT-INVALID.
    """
    bundled = {target.profile for target in release.targets}
    devices = session.scalars(select(Device).where(Device.revoked_at_s.is_(None))).all()
    by_name = {device.connection: device for device in devices}
    for name in selection.devices:
        if name not in by_name:
            raise EdgeopsError("E-DEVICE-UNKNOWN", f"there is no device {name!r}", "See `edgeops device list`.")
        if by_name[name].profile not in bundled:
            raise EdgeopsError(
                "E-ROLLOUT-INVALID",
                f"{release.model} {release.version} has no bundle for {name}'s profile {by_name[name].profile}",
                f"It has bundles for: {', '.join(sorted(bundled))}.",
            )
    wanted = set(selection.devices)
    return [
        Candidate(device.connection, SELF_UNIT, device.profile)
        for device in devices
        if device.profile in bundled
        and (not wanted or device.connection in wanted)
        and (not selection.profiles or device.profile in selection.profiles)
        and all(device.labels.get(key) == value for key, value in selection.labels.items())
    ]


def _member(rollout: Rollout, position: int, candidate: Candidate, component: str) -> RolloutMember:
    return RolloutMember(
        rollout_id=rollout.id,
        connection=candidate.connection,
        unit=candidate.unit,
        position=position,
        profile=candidate.profile,
        component=component,
        generation=None,
        reached=False,
        state=DeploymentState.IDLE,
        step=0,
        code=None,
        detail="",
        changed_at_s=None,
    )
