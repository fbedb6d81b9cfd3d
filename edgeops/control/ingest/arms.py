"""What the two arms of a canary say, summed up apart from all others while the canary's group is under way."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeops.contracts.rollouts import RolloutState
from edgeops.control.ingest.rollups import Key, Traffic, add_all
from edgeops.control.models import Rollout, RolloutGroup, RolloutMember
from edgeops.control.telemetry_models import ArmRollup

CANARY, CONTROL = "canary", "control"


class _Place(NamedTuple):
    rollout_id: int
    version: str
    profile: str
    arm: str


class Arms:
    """Sums a batch up by arm.

    Args:
        session: A transaction that writes.
        connections: Who speaks in this batch.
    """

    def __init__(self, session: Session, connections: Collection[str]) -> None:
        self._places: dict[tuple[str, str, str], _Place] = {}
        self._new: dict[Key, Traffic] = {}
        under_way = select(Rollout.id).where(
            Rollout.controlled, Rollout.state.in_([RolloutState.RUNNING, RolloutState.PAUSED])
        )
        for rollout_id in session.scalars(under_way).all():
            rows = session.execute(
                select(RolloutMember, Rollout.version)
                .join(Rollout, Rollout.id == RolloutMember.rollout_id)
                .join(RolloutGroup, (RolloutGroup.rollout_id == Rollout.id) & (RolloutGroup.position == 0))
                .where(
                    RolloutMember.rollout_id == rollout_id,
                    RolloutMember.connection.in_(connections),
                    RolloutMember.arm != "",
                    RolloutGroup.started_at_s.is_not(None),
                    RolloutGroup.finished_at_s.is_(None),
                )
            )
            for member, version in rows:
                place = _Place(rollout_id, version, member.profile, member.arm)
                self._places[member.connection, member.unit, member.component] = place

    def add(self, connection: str, unit: str, model: str, release: str, traffic: Traffic) -> None:
        """Take in what one unit said of one model, if it is in an arm, and said it of that arm's release."""
        place = self._places.get((connection, unit, model))
        if place is not None and (release == place.version) == (place.arm == CANARY):
            key = (place.rollout_id, place.profile, place.arm)
            self._new[key] = self._new.get(key, Traffic()).plus(traffic)

    def write(self, session: Session) -> None:
        """Add the sums to their rows."""
        add_all(session, ArmRollup, self._new)
