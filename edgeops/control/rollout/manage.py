"""What people do with rollouts: create, start, pause, resume, abort, revert. Each is one transaction, and audited."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import exists, select
from sqlalchemy.orm import Session, aliased

from edgeops.contracts.bundle import DriftCalibration
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.release import Release
from edgeops.contracts.rollouts import ENDED_STATES, RolloutState
from edgeops.contracts.wire import encode
from edgeops.control import audit
from edgeops.control.database import Database, one_at_a_time
from edgeops.control.ingest.arms import CANARY, CONTROL
from edgeops.control.models import Rollout, RolloutGroup, RolloutMember, RolloutProfile
from edgeops.control.rigs import runs
from edgeops.control.rollout.execute import hold_no_longer
from edgeops.control.rollout.freeze import check_not_frozen
from edgeops.control.rollout.order import fair_order
from edgeops.control.rollout.policy import Policy, check_policy, control_size, policy_text, read_policy
from edgeops.control.rollout.reverting import give_back
from edgeops.control.rollout.selection import Selection, candidates, new_member, selection_text


class DriftLimits(NamedTuple):
    """Over how many samples a bundle's reference is, and what was found of it by resampling."""

    samples: int
    calibration: DriftCalibration | None


def create(
    database: Database,
    release: Release,
    policy: Policy,
    selection: Selection,
    *,
    actor: str,
    now_s: float,
    start: bool = False,
    references: Mapping[str, Mapping[str, Sequence[int]]] = MappingProxyType({}),
    limits: Mapping[str, DriftLimits] = MappingProxyType({}),
    trusted_rigs: Collection[str] = (),
) -> int:
    """Make a rollout in state draft; it fixes which device comes in which group. With `start` it runs at once.

    Args:
        database: The registry.
        release: A published release.
        policy: Groups and gates.
        selection: Which devices.
        actor: Who asks.
        now_s: The control plane's clock.
        start: Start it at once.
        references: Profile → what its bundle was compiled with, for the gate on drift.
        limits: Profile → from where on drift is no chance.
        trusted_rigs: The rigs whose keys the fleet trusts.

    Returns:
        The rollout's id.

    Raises:
        EdgeopsError: E-ROLLOUT-INVALID; impossible gates or groups, or a named device that the release has no bundle
            for. E-DEVICE-UNKNOWN; a named device is not enrolled. E-QUERY or E-GROUP; the selection's query cannot be
            read, or its group is not there. E-RIG-UNKNOWN or E-RIG-UNFIT; a rig cannot stand before it. Nothing is
            written.
    """
    with database.write() as session:
        chosen = candidates(session, release, selection, now_s)
        groups = check_policy(policy, len(chosen))
        runs.find(session, policy.rigs, [target.profile for target in release.targets], trusted_rigs)
        _check_references(policy, {candidate.profile for candidate in chosen}, references)
        ordered = fair_order(chosen, f"{release.model}/{release.version}")
        rollout = Rollout(
            model=release.model,
            version=release.version,
            release_number=release.number,
            policy=policy_text(policy),
            selection=selection_text(selection),
            state=RolloutState.DRAFT,
            reason="",
            figures=[],
            controlled=bool(policy.control),
            created_at_s=now_s,
            created_by=actor,
            approved_by=None,
            started_at_s=None,
            ended_at_s=None,
        )
        session.add(rollout)
        session.flush()
        session.add_all(
            RolloutProfile(
                rollout_id=rollout.id,
                profile=target.profile,
                target=target.path,
                digest=target.digest,
                reference={name: list(counts) for name, counts in references.get(target.profile, {}).items()},
                **_limits(limits.get(target.profile)),
                stopped_at_s=None,
                reason="",
            )
            for target in release.targets
        )
        arms = arms_of(policy, [size for _, size in groups])
        first = 0
        for position, (label, size) in enumerate(groups):
            session.add(
                RolloutGroup(
                    rollout_id=rollout.id,
                    position=position,
                    label=label,
                    started_at_s=None,
                    window_from_s=None,
                    promoted_at_s=None,
                    finished_at_s=None,
                )
            )
            session.flush()
            session.add_all(
                new_member(rollout, position, candidate, arm=arm)
                for candidate, arm in zip(ordered[first : first + size], arms[first : first + size], strict=True)
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
            **({"rigs": list(policy.rigs)} if policy.rigs else {}),
        )
        if start:
            _start(session, rollout.id, actor, now_s)
        return rollout.id


def arms_of(policy: Policy, sizes: Sequence[int]) -> list[str]:
    """Return the arm of each device in order: the canary comes first, its control arm next, the others have none.

    The order is such that each beginning, and what follows it, holds every profile by its share.
    """
    total = sum(sizes)
    control = control_size(policy, total)
    canary = sizes[0] if control else 0
    return [CANARY] * canary + [CONTROL] * control + [""] * (total - canary - control)


def _limits(limits: DriftLimits | None) -> dict[str, Any]:
    if limits is None or limits.calibration is None:
        return {"reference_samples": 0, "calibration": None}
    return {"reference_samples": limits.samples, "calibration": encode(limits.calibration)}


def _check_references(
    policy: Policy, profiles: set[str], references: Mapping[str, Mapping[str, Sequence[int]]]
) -> None:
    missing = sorted(profile for profile in profiles if not references.get(profile))
    if policy.gates.drift_max is not None and missing:
        raise EdgeopsError(
            "E-ROLLOUT-INVALID",
            f"drift_max: the bundles for {', '.join(missing)} have no drift reference",
            "Leave drift_max out, or compile with calibration data.",
        )


def start(database: Database, rollout_id: int, *, actor: str, now_s: float) -> None:
    """Set a draft running. Older rollouts of the model that still wait for one of its devices are superseded.

    Raises:
        EdgeopsError: E-ROLLOUT-UNKNOWN. E-ROLLOUT-STATE; it is no draft. E-FLEET-FROZEN.
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

    Rigs that have not passed the release are asked again, but those that are connected and still run it.

    Raises:
        EdgeopsError: E-ROLLOUT-UNKNOWN. E-ROLLOUT-STATE; it is not paused.
    """
    with database.write() as session:
        rollout = _change(session, rollout_id, (RolloutState.PAUSED,), RolloutState.RUNNING, actor, now_s)
        rollout.reason = f"resumed by {actor}"
        runs.give_up(session, rollout_id, now_s)
        under_way = select(RolloutGroup).where(
            RolloutGroup.rollout_id == rollout_id,
            RolloutGroup.window_from_s.is_not(None),
            RolloutGroup.finished_at_s.is_(None),
        )
        for group in session.scalars(under_way):
            group.window_from_s = now_s


def approve(database: Database, rollout_id: int, *, actor: str, now_s: float) -> None:
    """Say as a second person that a rollout may start.

    Raises:
        EdgeopsError: E-ROLLOUT-UNKNOWN. E-ROLLOUT-STATE; it is no draft any more. E-ROLLOUT-APPROVAL;
            the actor made it.
    """
    with database.write() as session:
        rollout = _change(session, rollout_id, (RolloutState.DRAFT,), RolloutState.DRAFT, actor, now_s, "approve")
        if rollout.created_by == actor:
            raise EdgeopsError(
                "E-ROLLOUT-APPROVAL", f"{actor} made rollout {rollout_id}", "Somebody else must approve it."
            )
        rollout.approved_by = actor


def abort(database: Database, rollout_id: int, *, actor: str, now_s: float) -> None:
    """End a rollout: no further device gets the release, also none that was told and has not taken it up.

    Who has it keeps it; shadows end.

    Raises:
        EdgeopsError: E-ROLLOUT-UNKNOWN. E-ROLLOUT-STATE; it has ended already.
    """
    with database.write() as session:
        not_ended = tuple(set(RolloutState) - ENDED_STATES - {RolloutState.UNKNOWN})
        rollout = _change(session, rollout_id, not_ended, RolloutState.ABORTED, actor, now_s)
        rollout.reason, rollout.ended_at_s = f"aborted by {actor}", now_s
        give_back(session, rollout, now_s, only_open=True)


def revert(database: Database, rollout_id: int, *, actor: str, now_s: float) -> None:
    """End a rollout and give its devices back what they were to run before; they still have it, nothing is fetched.

    A device that had no release before, or has got another one since, is left as it is.

    Raises:
        EdgeopsError: E-ROLLOUT-UNKNOWN. E-ROLLOUT-STATE; it was never started, or is reverted already.
    """
    with database.write() as session:
        allowed = tuple(set(RolloutState) - {RolloutState.DRAFT, RolloutState.REVERTED, RolloutState.UNKNOWN})
        rollout = _change(session, rollout_id, allowed, RolloutState.REVERTED, actor, now_s)
        reverted = give_back(session, rollout, now_s)
        rollout.ended_at_s = now_s
        rollout.reason = f"reverted by {actor}: {reverted.back} of {reverted.had} devices go back"


def override_holds(database: Database, rollout_id: int, *, actor: str, now_s: float) -> None:
    """Have the devices that are held wait no longer for maintenance window, application, temperature and the like.

    Raises:
        EdgeopsError: E-ROLLOUT-UNKNOWN. E-ROLLOUT-STATE; it is not under way.
    """
    with database.write() as session:
        rollout = _locked(session, rollout_id, (RolloutState.RUNNING, RolloutState.PAUSED))
        devices = hold_no_longer(session, rollout, now_s)
        subject = f"rollout/{rollout_id}"
        audit.record(
            session, at_s=now_s, actor=actor, action="rollout.override-holds", subject=subject, devices=devices
        )


def _start(session: Session, rollout_id: int, actor: str, now_s: float) -> None:
    check_not_frozen(session)
    model = session.scalar(select(Rollout.model).where(Rollout.id == rollout_id))
    one_at_a_time(session, f"start {model}")
    rollout = _change(session, rollout_id, (RolloutState.DRAFT,), RolloutState.RUNNING, actor, now_s)
    if read_policy(rollout.policy).approval and rollout.approved_by is None:
        raise EdgeopsError(
            "E-ROLLOUT-APPROVAL",
            f"nobody but {rollout.created_by} has looked at rollout {rollout_id}",
            f"Somebody else: `edgeops rollout approve {rollout_id}`.",
        )
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


def _locked(session: Session, rollout_id: int, allowed: Sequence[RolloutState]) -> Rollout:
    rollout = session.get(Rollout, rollout_id, with_for_update=True)
    if rollout is None:
        raise EdgeopsError("E-ROLLOUT-UNKNOWN", f"there is no rollout {rollout_id}", "See `edgeops rollout status`.")
    if rollout.state not in allowed:
        needed = " or ".join(sorted(allowed))
        raise EdgeopsError("E-ROLLOUT-STATE", f"rollout {rollout_id} is {rollout.state}, not {needed}")
    return rollout


def _change(
    session: Session,
    rollout_id: int,
    allowed: Sequence[RolloutState],
    state: RolloutState,
    actor: str,
    now_s: float,
    verb: str | None = None,
) -> Rollout:
    rollout = _locked(session, rollout_id, allowed)
    rollout.state = state
    audit.record(session, at_s=now_s, actor=actor, action=f"rollout.{verb or state}", subject=f"rollout/{rollout_id}")
    return rollout
