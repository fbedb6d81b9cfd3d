"""What a rollout would do, before it is made: its groups by profile, bytes, and time. Nothing is written."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeops.contracts.deployment import DeploymentState
from edgeops.contracts.release import Release
from edgeops.control.models import Device, Rollout, RolloutGroup, RolloutMember
from edgeops.control.rigs import runs
from edgeops.control.rollout.order import fair_order
from edgeops.control.rollout.policy import Policy, check_policy, control_size
from edgeops.control.rollout.schedule import opens_at
from edgeops.control.rollout.selection import Selection, candidates

_SAMPLES = 2000


class GroupPlan(NamedTuple):
    """One group: its label, profile → devices, and the bytes that they fetch at most."""

    label: str
    devices: dict[str, int]
    bytes: int


class RolloutPlan(NamedTuple):
    """The whole.

    Args:
        groups: In order.
        control: How many devices of later groups are the first one's control arm.
        online: How many of its devices are connected now.
        first_start_s: When the first group may start.
        least_s: How long it takes at least, by what its groups must serve, in seconds.
        typical_s: Median time from a group's start to a device's confirmation in this model's rollouts so far; None:
            there were none.
        rigs: Rig of group 0 → the profiles that it runs the release for.
        uncovered: Profiles of its devices that no rig has a board of; empty without rigs.
    """

    groups: tuple[GroupPlan, ...]
    control: int
    online: int
    first_start_s: float
    least_s: float
    typical_s: float | None
    rigs: dict[str, list[str]] = {}
    uncovered: tuple[str, ...] = ()


def plan(
    session: Session,
    release: Release,
    policy: Policy,
    selection: Selection,
    now_s: float,
    trusted_rigs: Collection[str] = (),
) -> RolloutPlan:
    """Return what a rollout would do; the arguments are those of `manage.create`.

    Raises:
        EdgeopsError: What creating it would raise.
    """
    chosen = candidates(session, release, selection, now_s)
    sizes = check_policy(policy, len(chosen))
    ordered = fair_order(chosen, f"{release.model}/{release.version}")
    length = {target.profile: target.length for target in release.targets}
    groups, first = [], 0
    for label, size in sizes:
        devices = Counter(candidate.profile for candidate in ordered[first : first + size])
        fetched = sum(length[profile] * count for profile, count in devices.items())
        groups.append(GroupPlan(label, dict(sorted(devices.items())), fetched))
        first += size
    bundled = {target.profile for target in release.targets}
    rigs = runs.find(session, policy.rigs, bundled, trusted_rigs)
    online = set(session.scalars(select(Device.connection).where(Device.online)))
    return RolloutPlan(
        tuple(groups),
        control_size(policy, len(chosen)),
        sum(candidate.connection in online for candidate in chosen),
        opens_at(policy.schedule, now_s),
        policy.serves_s * len(groups),
        _typical_s(session, release.model),
        {rig.name: sorted(rig.profiles & bundled) for rig in rigs},
        uncovered([rig.profiles for rig in rigs], (candidate.profile for candidate in chosen)),
    )


def uncovered(rigs: Sequence[Collection[str]], profiles: Iterable[str]) -> tuple[str, ...]:
    """Return the profiles that no rig has a board of; none without rigs."""
    return tuple(sorted(set(profiles) - {name for rig in rigs for name in rig})) if rigs else ()


def _typical_s(session: Session, model: str) -> float | None:
    rows = session.execute(
        select(RolloutMember.changed_at_s, RolloutGroup.started_at_s)
        .join(Rollout, Rollout.id == RolloutMember.rollout_id)
        .join(
            RolloutGroup,
            (RolloutGroup.rollout_id == RolloutMember.rollout_id) & (RolloutGroup.position == RolloutMember.position),
        )
        .where(
            Rollout.model == model,
            RolloutMember.state == DeploymentState.CONFIRMED,
        )
        .order_by(Rollout.id.desc())
        .limit(_SAMPLES)
    )
    needed = [changed_s - started_s for changed_s, started_s in rows if changed_s is not None and started_s is not None]
    return statistics.median(needed) if needed else None
