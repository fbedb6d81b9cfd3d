"""Gives devices back what they were to run before a rollout: they still have it, so nothing is fetched."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeops.control.assignment import assign, components_of, previous_component
from edgeops.control.models import Rollout, RolloutMember, Unit


class Reverted(NamedTuple):
    """How many devices had got the release, and how many of them go back."""

    had: int
    back: int


def give_back(
    session: Session, rollout: Rollout, now_s: float, *, profile: str | None = None, only_shadows: bool = False
) -> Reverted:
    """Give the devices of a rollout, or of one profile in it, what they were to run before.

    A device that had no release before, or has got another one since, is left as it is. With `only_shadows` so are
    those that are to let it serve.
    """
    query = (
        select(RolloutMember, Unit)
        .join(Unit, (Unit.connection == RolloutMember.connection) & (Unit.unit == RolloutMember.unit))
        .where(RolloutMember.rollout_id == rollout.id, RolloutMember.generation.is_not(None))
        .order_by(RolloutMember.connection, RolloutMember.unit)
        .with_for_update(of=Unit)
    )
    if profile is not None:
        query = query.where(RolloutMember.profile == profile)
    members = session.execute(query).all()
    back = (_give_back(session, rollout, member, unit, now_s, only_shadows=only_shadows) for member, unit in members)
    return Reverted(len(members), sum(back))


def _give_back(
    session: Session, rollout: Rollout, member: RolloutMember, unit: Unit, now_s: float, *, only_shadows: bool
) -> bool:
    """Give one unit what it was to run before the rollout; say whether there was something."""
    now = next((part for part in components_of(unit) if part.name == member.component), None)
    if now is None or now.release != rollout.version or member.generation is None:
        return False
    if only_shadows and now.shadow is None:
        return False
    before = previous_component(session, unit, member.component, below=member.first_generation or member.generation)
    if before is None:
        return False
    back = msgspec.structs.replace(before, allow_downgrade=True)
    assign(session, unit, back, cause=f"revert of rollout {rollout.id}", now_s=now_s)
    return True
