"""What the registry knows of units, as the query language asks for it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from edgeops.contracts.deployment import DeploymentState, Reported
from edgeops.control.groups.query import Facts
from edgeops.control.units import Subject

_REPORTED = msgspec.json.Decoder(Reported)
_BAD = frozenset({DeploymentState.FAILED, DeploymentState.REJECTED, DeploymentState.TIMED_OUT})


def facts_of(subjects: Iterable[Subject], now_s: float) -> dict[str, Facts]:
    """Return the facts of units by name.

    Args:
        subjects: Whose.
        now_s: The control plane's clock.
    """
    return {subject.name: _facts(subject, now_s) for subject in subjects}


def _facts(subject: Subject, now_s: float) -> Facts:
    device, unit = subject
    report = None if unit.reported is None else _REPORTED.decode(unit.reported)
    components = report.components if report is not None else ()
    if device.cloned_since_s is not None:
        health = "cloned"
    elif any(part.state in _BAD or part.failure is not None for part in components):
        health = "failing"
    elif not device.online:
        health = "offline"
    elif report is not None and report.stale_s:
        health = "stale"
    else:
        health = "ok"
    return Facts(
        name=subject.name,
        profile=subject.profile,
        connection=unit.connection,
        unit=unit.unit,
        labels=subject.labels,
        attributes=report.attributes if report is not None else {},
        capabilities=report.capabilities if report is not None else {},
        agent=report.agent_version if report is not None else device.agent_version,
        online=device.online,
        health=health,
        seen_s=float("inf") if device.last_seen_s is None else max(0.0, now_s - device.last_seen_s),
        releases={part.name: part.active.release for part in components if part.active is not None},
        states={part.name: str(part.state) for part in components},
    )
