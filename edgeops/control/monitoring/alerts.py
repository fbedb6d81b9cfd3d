"""What an operator should be told of, as a function of what the registry knows. Pure, but for reading the registry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeops.contracts.rollouts import RolloutState
from edgeops.contracts.topics import SELF_UNIT
from edgeops.contracts.wire import Declared
from edgeops.control.groups.facts import facts_of
from edgeops.control.groups.query import Facts
from edgeops.control.models import Device, Rollout, Unit
from edgeops.trust import certificates

STOPPED_TOLD_FOR_S = 86_400.0


class Thresholds(Declared, frozen=True, kw_only=True):
    """From when on a condition is worth an alert.

    Args:
        offline_after_s: A device was not heard of for so long.
        stuck_after_s: A device that is connected has not taken up its desired state for so long.
        certificate_days: A device's certificate ends within so many days.
    """

    offline_after_s: float = 900.0
    stuck_after_s: float = 3600.0
    certificate_days: float = 7.0


class Alert(NamedTuple):
    """One thing that is wrong. Name and labels are its identity.

    Args:
        name: The kind: EdgeopsDeviceOffline and so on.
        labels: What it concerns, in order of keys.
        summary: For people.
        since_s: When it began, as far as the registry knows.
    """

    name: str
    labels: tuple[tuple[str, str], ...]
    summary: str
    since_s: float

    @property
    def key(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """What makes it the same alert."""
        return self.name, self.labels


class Watched(NamedTuple):
    """What one device's alerts rest on. `waiting_since_s`: since when it should have taken up a newer desired state."""

    facts: Facts
    certificate_until_s: float
    waiting_since_s: float | None
    heard_s: float


class Resting(NamedTuple):
    """A rollout that does not go on: its number, release, state, reason, and since when."""

    number: int
    release: str
    state: RolloutState
    reason: str
    since_s: float


def look(session: Session, now_s: float) -> tuple[list[Watched], list[Resting]]:
    """Read what alerts rest on."""
    rows = session.execute(
        select(Device, Unit)
        .join(Unit, (Unit.connection == Device.connection) & (Unit.unit == SELF_UNIT))
        .where(Device.revoked_at_s.is_(None))
        .order_by(Device.connection)
    ).all()
    facts = facts_of(session, [device for device, _ in rows], now_s)
    watched = [
        Watched(
            facts[device.connection],
            certificates.validity(device.certificate_pem.encode()).not_after_s,
            unit.published_at_s if unit.desired_generation > unit.observed_generation else None,
            device.last_seen_s if device.last_seen_s is not None else device.enrolled_at_s,
        )
        for device, unit in rows
    ]
    resting = session.scalars(select(Rollout).where(Rollout.state.in_([RolloutState.PAUSED, RolloutState.STOPPED])))
    return watched, [
        Resting(row.id, f"{row.model} {row.version}", RolloutState(row.state), row.reason, row.ended_at_s or now_s)
        for row in resting
    ]


def alerts(watched: Iterable[Watched], resting: Iterable[Resting], limits: Thresholds, now_s: float) -> Iterator[Alert]:
    """Yield everything that is wrong now."""
    for one in watched:
        yield from _of_device(one, limits, now_s)
    for rollout in resting:
        labels = (("release", rollout.release), ("rollout", str(rollout.number)))
        if rollout.state is RolloutState.PAUSED:
            summary = f"rollout {rollout.number} of {rollout.release} is paused: {rollout.reason}"
            yield Alert("EdgeopsRolloutPaused", labels, summary, rollout.since_s)
        elif now_s - rollout.since_s < STOPPED_TOLD_FOR_S:
            summary = f"rollout {rollout.number} of {rollout.release} was stopped: {rollout.reason}"
            yield Alert("EdgeopsRolloutStopped", labels, summary, rollout.since_s)


def _of_device(one: Watched, limits: Thresholds, now_s: float) -> Iterator[Alert]:
    facts = one.facts
    labels = (("device", facts.name), ("profile", facts.profile))
    silent_s = now_s - one.heard_s
    if not facts.online and silent_s > limits.offline_after_s:
        yield Alert("EdgeopsDeviceOffline", labels, f"{facts.name} was last heard {silent_s:.0f} s ago", one.heard_s)
    waits_s = 0.0 if one.waiting_since_s is None else now_s - one.waiting_since_s
    if facts.online and one.waiting_since_s is not None and waits_s > limits.stuck_after_s:
        summary = f"{facts.name} is connected and has not taken up its desired state for {waits_s:.0f} s"
        yield Alert("EdgeopsDeviceStuck", labels, summary, one.waiting_since_s)
    if facts.health == "failing":
        states = ", ".join(f"{model} {state}" for model, state in sorted(facts.states.items()))
        yield Alert("EdgeopsDeviceFailing", labels, f"{facts.name}: {states}", one.heard_s)
    if facts.health == "cloned":
        summary = f"two machines speak as {facts.name}: revoke it, or have it renew its certificate"
        yield Alert("EdgeopsDeviceCloned", labels, summary, one.heard_s)
    if facts.health == "stale":
        summary = f"{facts.name} gets no fresh metadata: somebody may be holding it back"
        yield Alert("EdgeopsDeviceStale", labels, summary, one.heard_s)
    left_s = one.certificate_until_s - now_s
    if left_s < limits.certificate_days * 86_400:
        told = f"ends in {left_s / 86_400:.1f} days" if left_s > 0 else "has ended"
        since_s = one.certificate_until_s - limits.certificate_days * 86_400
        yield Alert("EdgeopsCertificateExpiring", labels, f"the certificate of {facts.name} {told}", since_s)
