"""What an operator should be told of, as a function of what the registry knows. Pure, but for reading the registry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgeops.contracts.deployment import DeploymentState
from edgeops.contracts.drift import Shift
from edgeops.contracts.rollouts import RolloutState
from edgeops.contracts.telemetry import DeviceWindow
from edgeops.contracts.topics import SELF_UNIT
from edgeops.contracts.wire import Declared
from edgeops.control.groups.facts import facts_of
from edgeops.control.groups.query import Facts
from edgeops.control.ingest import rollups
from edgeops.control.models import AuditEntry, Generation, Rollout, Unit
from edgeops.control.monitoring.references import newest_references, shifts_of
from edgeops.control.renewal import certificate_until_s
from edgeops.control.rollout.drift import Drift, farthest
from edgeops.control.units import Subject, enrolled

_PAUSES = ("rollout.pause", "rollout.paused")
_FIGURES = msgspec.json.Decoder(DeviceWindow)
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
        disk_free_mib: A device has less room on its disk.
        drift: What a model sees or answers is so far (total variation) from its reference, on a profile.
        psi: So far by the population stability index, and farther than chance would have it.
    """

    offline_after_s: float = 900.0
    stuck_after_s: float = 3600.0
    certificate_days: float = 7.0
    disk_free_mib: float = 100.0
    drift: float = 0.3
    psi: float = 0.2


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
        figures: What it said of itself last.
    """

    facts: Facts
    certificate_until_s: float | None
    waiting_since_s: float | None
    heard_s: float
    figures: DeviceWindow | None = None


class Resting(NamedTuple):
    """A rollout that does not go on: its number, release, state, reason, and since when."""

    number: int
    release: str
    state: RolloutState
    reason: str
    since_s: float


class Shifted(NamedTuple):
    """How far what a release sees or answers on the devices of one profile is from its bundle's reference.

    `halves` has the distances with calibrated limits of both halves of the day, and of how many requests they are:
    chance alone seldom goes beyond the limits in one of them, and hardly ever in both.
    """

    model: str
    release: str
    profile: str
    drift: Drift
    requests: int
    halves: tuple[tuple[list[Shift], int], ...] = ()


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
            _figures(one),
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


def _figures(one: Subject) -> DeviceWindow | None:
    """Return what a device said of itself last; a unit behind it has none of its own."""
    data = one.device.figures if one.unit.unit == SELF_UNIT else None
    return None if data is None else _FIGURES.decode(data)


def look_at_values(session: Session, now_s: float) -> list[Shifted]:
    """Return how the releases of the last day stand to their references, without those of which nothing is known."""
    found = []
    newest, middle_s = newest_references(session), now_s - DRIFT_OVER_S / 2
    for model in sorted({model for model, _, _ in newest}):
        earlier = rollups.traffic(session, model, since_s=now_s - DRIFT_OVER_S, until_s=middle_s)
        later = rollups.traffic(session, model, since_s=middle_s)
        for profile, version in sorted(earlier.keys() | later.keys()):
            row = newest.get((model, version, profile))
            if row is not None:
                parts = [half.get((profile, version), rollups.Traffic()) for half in (earlier, later)]
                whole = parts[0].plus(parts[1])
                drift = farthest(row.reference, whole.histograms, whole.sampled, DRIFT_ALPHA)
                if drift is not None:
                    halves = tuple((shifts_of(row, half), half.sampled) for half in parts)
                    found.append(Shifted(model, version, profile, drift, whole.sampled, halves))
    return found


def alerts(found: Looked, limits: Thresholds, now_s: float) -> Iterator[Alert]:
    """Yield everything that is wrong now."""
    for one in found.watched:
        yield from _of_device(one, limits, now_s)
    for shifted in found.shifted:
        if shifted.drift.interval.lower > limits.drift:
            yield _of_values(shifted, now_s)
        elif shifted.halves and (beyond := _beyond_both(shifted, limits.psi)) is not None:
            yield _of_values(shifted, now_s, beyond)
    for rollout in found.resting:
        labels = (("release", rollout.release), ("rollout", str(rollout.number)))
        if rollout.state is RolloutState.PAUSED:
            summary = f"rollout {rollout.number} of {rollout.release} is paused: {rollout.reason}"
            yield Alert("EdgeopsRolloutPaused", labels, summary, rollout.since_s)
        elif now_s - rollout.since_s < STOPPED_TOLD_FOR_S:
            summary = f"rollout {rollout.number} of {rollout.release} was stopped: {rollout.reason}"
            yield Alert("EdgeopsRolloutStopped", labels, summary, rollout.since_s)


def _beyond_both(shifted: Shifted, least_psi: float) -> Shift | None:
    """Return the tensor that was farthest, of those that were beyond their limit and far enough in both halves."""
    beyond = [
        {one.name: one for one in found if one.psi_limit is not None and one.psi > max(one.psi_limit, least_psi)}
        for found, _ in shifted.halves
    ]
    both = set.intersection(*(set(half) for half in beyond))
    return max((beyond[-1][name] for name in both), key=lambda one: one.psi, default=None)


def _of_values(shifted: Shifted, now_s: float, beyond: Shift | None = None) -> Alert:
    model, release, profile, drift, requests, _ = shifted
    summary = (
        f"{drift.name} of {model} {release} on {profile} is {drift.distance:.2f} from its reference, "
        f"at least {drift.interval.lower:.2f}, over {requests} requests of the last day"
    )
    if beyond is not None:
        summary = (
            f"{beyond.name} of {model} {release} on {profile} has PSI {beyond.psi:.2f} to its reference; "
            f"chance stays below {beyond.psi_limit:.2g}, in both halves of the last day, over {requests} requests"
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
    if facts.online and one.figures is not None and one.figures.throttled:
        summary = f"{facts.name} is held back: {', '.join(one.figures.throttled)}"
        yield Alert("EdgeopsDeviceThrottled", labels, summary, one.heard_s)
    free_mib = None if one.figures is None else one.figures.disk_free_mib
    if facts.online and free_mib is not None and free_mib < limits.disk_free_mib:
        yield Alert("EdgeopsDeviceDiskFull", labels, f"{facts.name} has {free_mib:.0f} MiB of disk left", one.heard_s)
    if one.certificate_until_s is None:
        return
    left_s = one.certificate_until_s - now_s
    if left_s < limits.certificate_days * 86_400:
        told = f"ends in {left_s / 86_400:.1f} days" if left_s > 0 else "has ended"
        since_s = one.certificate_until_s - limits.certificate_days * 86_400
        yield Alert("EdgeopsCertificateExpiring", labels, f"the certificate of {facts.name} {told}", since_s)
