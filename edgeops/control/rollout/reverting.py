"""Gives devices back what they were to run before a rollout: they still have it, so nothing is fetched.

When a rollout stops or is aborted, so do those that have not taken the release up: a device that was away must not come
back after weeks and take what nobody else is to have.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import msgspec
from sqlalchemy import ColumnElement, and_, exists, or_, select
from sqlalchemy.orm import Session, aliased

from edgeops.contracts.deployment import DeploymentState
from edgeops.contracts.rollouts import RolloutState
from edgeops.control.assignment import assign, components_of, previous_component, reissue
from edgeops.control.models import Rollout, RolloutMember, Unit
from edgeops.control.units import lock_units


class Reverted(NamedTuple):
    """How many devices had got the release, and how many of them go back."""

    had: int
    back: int


# Who has it, or has tried it and returned by itself.
_TAKEN_UP = (DeploymentState.CONFIRMED, DeploymentState.FAILED, DeploymentState.REJECTED)
_REFUSED = (DeploymentState.FAILED, DeploymentState.REJECTED)


def give_back(
    session: Session, rollout: Rollout, now_s: float, *, profile: str | None = None, only_open: bool = False
) -> Reverted:
    """Give the devices of a rollout, or of one profile in it, what they were to run before.

    A device that has got another release since is left as it is, and so is one that had none before and runs this one.
    What a device had refused, or had not taken up before a rollout ended other than well, it does not have: it gets
    what it was to run before that.

    Args:
        session: A transaction that writes.
        rollout: The rollout.
        now_s: The control plane's clock.
        profile: Only devices of this one.
        only_open: Only those that have not taken it up: on their way, held, silent, timed out, or with it as a shadow.
    """
    lock_units(session, rollout.id)
    query = (
        select(RolloutMember, Unit)
        .join(Unit, (Unit.connection == RolloutMember.connection) & (Unit.unit == RolloutMember.unit))
        .where(RolloutMember.rollout_id == rollout.id, RolloutMember.generation.is_not(None))
        .order_by(RolloutMember.connection, RolloutMember.unit)
        .with_for_update(of=Unit, key_share=True)
    )
    if profile is not None:
        query = query.where(RolloutMember.profile == profile)
    if only_open:
        query = query.where(RolloutMember.state.not_in(_TAKEN_UP))
    members = session.execute(query).all()
    unfit = _unfit(session, rollout)
    back = [
        _give_back(session, rollout, member, unit, unfit.get((member.connection, member.unit), ()), now_s)
        for member, unit in members
    ]
    return Reverted(len(members), sum(back))


def _unfit(session: Session, rollout: Rollout) -> dict[tuple[str, str], set[str]]:
    """Return, by connection and unit, the releases of earlier rollouts that these never came to serve."""
    mine, earlier, later = aliased(RolloutMember), aliased(RolloutMember), aliased(RolloutMember)
    its, again = aliased(Rollout), aliased(Rollout)

    def same_unit(one: type[RolloutMember], other: type[RolloutMember]) -> ColumnElement[bool]:
        return and_(one.connection == other.connection, one.unit == other.unit, one.component == other.component)

    got_it_later = exists(
        select(1)
        .select_from(later)
        .join(again, again.id == later.rollout_id)
        .where(
            same_unit(later, earlier),
            again.version == its.version,
            later.first_generation > earlier.first_generation,
            later.first_generation < mine.first_generation,
            later.state == DeploymentState.CONFIRMED,
        )
    )
    rows = session.execute(
        select(earlier.connection, earlier.unit, its.version)
        .select_from(mine)
        .join(earlier, same_unit(earlier, mine))
        .join(its, its.id == earlier.rollout_id)
        .where(
            mine.rollout_id == rollout.id,
            earlier.first_generation < mine.first_generation,
            or_(
                earlier.state.in_(_REFUSED),
                and_(earlier.state != DeploymentState.CONFIRMED, its.state != RolloutState.SUCCEEDED),
            ),
            ~got_it_later,
        )
    )
    found: dict[tuple[str, str], set[str]] = {}
    for connection, unit, version in rows:
        found.setdefault((connection, unit), set()).add(version)
    return found


def _give_back(
    session: Session, rollout: Rollout, member: RolloutMember, unit: Unit, unfit: Collection[str], now_s: float
) -> bool:
    """Give one unit what it was to run before the rollout; say whether its desired state has changed."""
    now = next((part for part in components_of(unit) if part.name == member.component), None)
    if now is None or now.release != rollout.version or member.generation is None:
        return False
    first = member.first_generation or member.generation
    before = previous_component(session, unit, member.component, below=first, but_not=unfit)
    cause = f"rollout {rollout.id} goes back"
    if before is not None:
        back = msgspec.structs.replace(before, allow_downgrade=True)
        member.returned_generation = assign(session, unit, back, cause=cause, now_s=now_s)
    elif member.state not in _TAKEN_UP:
        others = tuple(part for part in components_of(unit) if part.name != member.component)
        member.returned_generation = reissue(session, unit, others, cause=cause, now_s=now_s)
    return member.returned_generation is not None
