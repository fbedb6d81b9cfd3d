"""Devices that join later: they get what a rollout brought to their like, without a rollout of their own."""

from __future__ import annotations

import logging

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rollouts import RolloutState
from edgeops.control import audit
from edgeops.control.database import Database
from edgeops.control.models import Rollout, RolloutGroup, RolloutMember, Unit
from edgeops.control.rollout.execute import give
from edgeops.control.rollout.freeze import frozen
from edgeops.control.rollout.order import Candidate
from edgeops.control.rollout.selection import new_member, profiles_of, read_selection, selected
from edgeops.control.units import enrolled, unit_name

log = logging.getLogger(__name__)

_OPEN = (RolloutState.RUNNING, RolloutState.SUCCEEDED)


def take_in_followers(database: Database, now_s: float) -> bool:
    """Add devices that joined since to the newest rollout of each model, if it selects them by what they are.

    They come into its last group. Where that has started already, or all is through, they get the release at once.

    Returns:
        Whether devices have a new desired state that is to be published.

    Raises:
        EdgeopsError: The database cannot be used; nothing was changed.
    """
    with database.read() as session:
        if not _newcomers(session, now_s):
            return False
    with database.write() as session:
        return frozen(session) is None and _take_in(session, now_s) > 0


def _take_in(session: Session, now_s: float) -> int:
    """Add them to their rollouts; return how many got the release.

    The rollouts are locked first: another worker may be at the same, and somebody may end one.
    """
    given = 0
    for rollout, newcomers in _newcomers(session, now_s, locked=True):
        last = session.scalars(
            select(RolloutGroup)
            .where(RolloutGroup.rollout_id == rollout.id)
            .order_by(RolloutGroup.position.desc())
            .limit(1)
        ).one()
        added = [new_member(rollout, last.position, newcomer) for newcomer in newcomers]
        session.add_all(added)
        session.flush()
        if last.started_at_s is not None:
            given += give(session, rollout, last.position, now_s)
        audit.record(
            session, at_s=now_s, actor=audit.SYSTEM, action="rollout.follow", subject=f"rollout/{rollout.id}",
            devices=[unit_name(member.connection, member.unit) for member in added],
        )  # fmt: skip
    return given


def _newcomers(session: Session, now_s: float, *, locked: bool = False) -> list[tuple[Rollout, list[Candidate]]]:
    """Return, for the newest rollout of each model, the units that it selects and does not hold yet."""
    newest = select(func.max(Rollout.id)).where(Rollout.state.in_(_OPEN)).group_by(Rollout.model)
    rollouts = select(Rollout).where(Rollout.id.in_(newest)).order_by(Rollout.id)
    found = []
    for rollout in session.scalars(rollouts.with_for_update() if locked else rollouts).all():
        if rollout.state not in _OPEN:
            continue  # it ended while its lock was waited for
        selection = read_selection(rollout.selection)
        if selection.devices:
            continue
        known = exists().where(
            RolloutMember.rollout_id == rollout.id,
            RolloutMember.connection == Unit.connection,
            RolloutMember.unit == Unit.unit,
        )
        since = Unit.added_at_s >= rollout.created_at_s
        joined = enrolled(session, since, Unit.profile.in_(profiles_of(session, rollout.id)), ~known)
        try:
            chosen = selected(session, selection, joined, now_s)
        except EdgeopsError as error:
            # A group that was removed since selects nobody any more.
            log.warning("rollout %d takes nobody in: %s", rollout.id, error)
            continue
        if chosen:
            found.append((rollout, [Candidate(one.unit.connection, one.unit.unit, one.profile) for one in chosen]))
    return found
