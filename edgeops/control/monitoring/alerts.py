"""What an operator should be told of, as a function of what the registry knows. Pure, but for reading the registry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgeops.contracts.deployment import DeploymentState
from edgeops.contracts.rollouts import RolloutState
from edgeops.contracts.topics import SELF_UNIT
from edgeops.contracts.wire import Declared
from edgeops.control.groups.facts import facts_of
from edgeops.control.groups.query import Facts
from edgeops.control.ingest import rollups
from edgeops.control.models import AuditEntry, Generation, Rollout, RolloutProfile, Unit
from edgeops.control.renewal import certificate_until_s
from edgeops.control.rollout.drift import Drift, farthest
from edgeops.control.units import Subject, enrolled

_PAUSES = ("rollout.pause", "rollout.paused")
STOPPED_TOLD_FOR_S = 86_400.0
_UNDER_WAY = frozenset(
    {
        DeploymentState.DOWNLOADING,
        DeploymentState.STAGED,
        DeploymentState.SELF_TEST,
        DeploymentState.TRIAL,
        DeploymentState.ROLLING_BACK,
    }
)
# Values are held against their reference over so long; by chance one release and profile alarms once in a million.
DRIFT_OVER_S, DRIFT_ALPHA = 86_400.0, 1e-6


class Thresholds(Declared, frozen=True, kw_only=True):
    """From when on a condition is worth an alert.

    Args:
        offline_after_s: A device was not heard of for so long.
        stuck_after_s: A device that is connected has not taken up its desired state for so long.
        certificate_days: A device's certificate ends within so many days.
        drift: What a model sees or answers is so far (total variation) from its reference, on a profile.
    """

    offline_after_s: float = 900.0
    stuck_after_s: float = 3600.0
    certificate_days: float = 7.0
    drift: float = 0.3


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
    """What one unit's alerts rest on.

    Args:
        facts: What it is and says.
        certificate_until_s: When its certificate ends; None: it speaks by its gateway's.
        waiting_since_s: Since when it is connected and not through with its newest desired state; None: it is through,
            or waits for a reason of its own.
        heard_s: When its connection was last heard.
    """

    facts: Facts
    certificate_until_s: float | None
    waiting_since_s: float | None
    heard_s: float


class Resting(NamedTuple):
    """A rollout that does not go on: its number, release, state, reason, and since when."""

    number: int
    release: str
    state: RolloutState
    reason: str
    since_s: float


class Shifted(NamedTuple):
    """How far what a release sees or answers on the devices of one profile is from its bundle's reference."""

    model: str
    release: str
    profile: str
    drift: Drift
    requests: int


class Looked(NamedTuple):
    """All that alerts rest on."""

    watched: Iterable[Watched] = ()
    resting: Iterable[Resting] = ()
    shifted: Iterable[Shifted] = ()


def look(session: Session, now_s: float) -> Looked:
    """Read what alerts rest on."""
    subjects = enrolled(session)
    facts = facts_of(subjects, now_s)
    given = _given_at(session)
    watched = [
        Watched(
            facts[one.name],
            certificate_until_s(one.device.certificate_pem) if one.unit.unit == SELF_UNIT else None,
            _waiting_since_s(one, facts[one.name], given),
            one.device.last_seen_s if one.device.last_seen_s is not None else one.device.enrolled_at_s,
        )
        for one in subjects
    ]
    resting = session.scalars(select(Rollout).where(Rollout.state.in_([RolloutState.PAUSED, RolloutState.STOPPED])))
    rests = [
        Resting(
            row.id, f"{row.model} {row.version}", RolloutState(row.state), row.reason,
            row.ended_at_s or _paused_at_s(session, row.id) or now_s,
        )
        for row in resting
    ]  # fmt: skip
    return Looked(watched, rests, look_at_values(session, now_s))


def _paused_at_s(session: Session, rollout_id: int) -> float | None:
    paused = (AuditEntry.subject == f"rollout/{rollout_id}") & (AuditEntry.action.in_(_PAUSES))
    return session.scalar(select(func.max(AuditEntry.at_s)).where(paused))


def _given_at(session: Session) -> dict[tuple[str, str], float]:
    """Return when each unit was given its newest desired state."""
    newest = (Generation.unit == Unit.unit) & (Generation.generation == Unit.desired_generation)
    rows = session.execute(
        select(Unit.connection, Unit.unit, Generation.created_at_s).join(
            Generation, (Generation.connection == Unit.connection) & newest
        )
    )
    return {(connection, unit): at_s for connection, unit, at_s in rows}


def _waiting_since_s(one: Subject, facts: Facts, given: Mapping[tuple[str, str], float]) -> float | None:
    """Return since when a unit could have done what it was told; who was away may begin when it is back."""
    unit = one.unit
    given_s = given.get((unit.connection, unit.unit))
    if given_s is None:
        return None
    under_way = any(state in _UNDER_WAY for state in facts.states.values())
    if unit.desired_generation <= unit.observed_generation and not under_way:
        return None
    return max(given_s, one.device.presence_at_s or 0.0)


def look_at_values(session: Session, now_s: float) -> list[Shifted]:
    """Return how the releases of the last day stand to their references, without those of which nothing is known."""
    found = []
    newest: dict[tuple[str, str, str], int] = {}
    rows = session.execute(
        select(Rollout.model, Rollout.version, RolloutProfile.profile, func.max(Rollout.id))
        .join(RolloutProfile, RolloutProfile.rollout_id == Rollout.id)
        .group_by(Rollout.model, Rollout.version, RolloutProfile.profile)
    )
    for model, version, profile, last in rows:
        newest[model, version, profile] = last
    for model in sorted({model for model, _, _ in newest}):
        for (profile, version), traffic in rollups.traffic(session, model, since_s=now_s - DRIFT_OVER_S).items():
            number = newest.get((model, version, profile))
            row = None if number is None else session.get(RolloutProfile, (number, profile))
            if row is not None:
                drift = farthest(row.reference, traffic.histograms, traffic.requests, DRIFT_ALPHA)
                if drift is not None:
                    found.append(Shifted(model, version, profile, drift, traffic.requests))
    return found


def alerts(found: Looked, limits: Thresholds, now_s: float) -> Iterator[Alert]:
    """Yield everything that is wrong now."""
    for one in found.watched:
        yield from _of_device(one, limits, now_s)
    for shifted in found.shifted:
        if shifted.drift.interval.lower > limits.drift:
            yield _of_values(shifted, now_s)
    for rollout in found.resting:
        labels = (("release", rollout.release), ("rollout", str(rollout.number)))
        if rollout.state is RolloutState.PAUSED:
            summary = f"rollout {rollout.number} of {rollout.release} is paused: {rollout.reason}"
            yield Alert("EdgeopsRolloutPaused", labels, summary, rollout.since_s)
        elif now_s - rollout.since_s < STOPPED_TOLD_FOR_S:
            summary = f"rollout {rollout.number} of {rollout.release} was stopped: {rollout.reason}"
            yield Alert("EdgeopsRolloutStopped", labels, summary, rollout.since_s)


def _of_values(shifted: Shifted, now_s: float) -> Alert:
    model, release, profile, drift, requests = shifted
    summary = (
        f"{drift.name} of {model} {release} on {profile} is {drift.distance:.2f} from its reference, "
        f"at least {drift.interval.lower:.2f}, over {requests} requests of the last day"
    )
    return Alert("EdgeopsModelDrifting", (("model", model), ("profile", profile), ("release", release)), summary, now_s)


def _of_device(one: Watched, limits: Thresholds, now_s: float) -> Iterator[Alert]:
    facts = one.facts
    labels = (("device", facts.name), ("profile", facts.profile))
    silent_s = now_s - one.heard_s
    if facts.unit == SELF_UNIT and not facts.online and silent_s > limits.offline_after_s:
        yield Alert("EdgeopsDeviceOffline", labels, f"{facts.name} was last heard {silent_s:.0f} s ago", one.heard_s)
    waits_s = 0.0 if one.waiting_since_s is None else now_s - one.waiting_since_s
    if facts.online and one.waiting_since_s is not None and waits_s > limits.stuck_after_s:
        summary = f"{facts.name} is connected and not through with its desired state for {waits_s:.0f} s"
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
    if one.certificate_until_s is None:
        return
    left_s = one.certificate_until_s - now_s
    if left_s < limits.certificate_days * 86_400:
        told = f"ends in {left_s / 86_400:.1f} days" if left_s > 0 else "has ended"
        since_s = one.certificate_until_s - limits.certificate_days * 86_400
        yield Alert("EdgeopsCertificateExpiring", labels, f"the certificate of {facts.name} {told}", since_s)
