"""The fleet's kill switch: while it is on, no rollout starts or goes on. Devices keep what they have."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rollouts import RolloutState
from edgeops.control import audit
from edgeops.control.database import Database
from edgeops.control.models import Freeze, Rollout, RolloutGroup
from edgeops.control.rigs import runs

_ONLY = 1


class Frozen(NamedTuple):
    """Since when the fleet is frozen, by whom, and why."""

    since_s: float
    actor: str
    reason: str


def frozen(session: Session) -> Frozen | None:
    """Return the freeze that is on; None: there is none."""
    row = session.get(Freeze, _ONLY)
    return None if row is None else Frozen(row.since_s, row.actor, row.reason)


def check_not_frozen(session: Session) -> None:
    """Refuse while the fleet is frozen.

    Raises:
        EdgeopsError: E-FLEET-FROZEN.
    """
    if (now := frozen(session)) is not None:
        raise EdgeopsError(
            "E-FLEET-FROZEN", f"{now.actor} froze the fleet: {now.reason or 'no reason given'}", "Thaw it."
        )


def freeze(database: Database, *, reason: str, actor: str, now_s: float) -> None:
    """Freeze the fleet; it stays frozen over restarts. Freezing a frozen fleet changes nothing."""
    with database.write() as session:
        if frozen(session) is None:
            session.add(Freeze(id=_ONLY, since_s=now_s, actor=actor, reason=reason[:512]))
            audit.record(session, at_s=now_s, actor=actor, action="fleet.freeze", subject="fleet", reason=reason)


def thaw(database: Database, *, actor: str, now_s: float) -> None:
    """Let rollouts go on; groups that were under way get their whole time anew, and so do rigs whose time ran out."""
    with database.write() as session:
        row = session.get(Freeze, _ONLY, with_for_update=True)
        if row is None:
            return
        session.delete(row)
        under_way = (
            select(RolloutGroup)
            .join(Rollout, Rollout.id == RolloutGroup.rollout_id)
            .where(
                Rollout.state == RolloutState.RUNNING,
                RolloutGroup.window_from_s.is_not(None),
                RolloutGroup.finished_at_s.is_(None),
            )
        )
        for group in session.scalars(under_way):
            group.window_from_s = now_s
        for rollout_id in session.scalars(select(Rollout.id).where(Rollout.state == RolloutState.RUNNING)):
            runs.give_up(session, rollout_id, now_s, only_expired=True)
        audit.record(session, at_s=now_s, actor=actor, action="fleet.thaw", subject="fleet")
