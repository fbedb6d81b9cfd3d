"""What the registry knows of devices, as the query language asks for it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeops.contracts.deployment import DeploymentState, Reported
from edgeops.contracts.topics import SELF_UNIT
from edgeops.control.groups.query import Facts
from edgeops.control.models import Device, Unit

_REPORTED = msgspec.json.Decoder(Reported)
_BAD = frozenset({DeploymentState.FAILED, DeploymentState.REJECTED, DeploymentState.TIMED_OUT})
_FEW = 500


def facts_of(session: Session, devices: Iterable[Device], now_s: float) -> dict[str, Facts]:
    """Return the facts of devices by connection.

    Args:
        session: A transaction that reads.
        devices: Whose.
        now_s: The control plane's clock.
    """
    rows = {device.connection: device for device in devices}
    query = select(Unit.connection, Unit.reported).where(Unit.unit == SELF_UNIT)
    if len(rows) <= _FEW:
        query = query.where(Unit.connection.in_(rows))
    reports = {
        connection: _REPORTED.decode(data)
        for connection, data in session.execute(query)
        if connection in rows and data is not None
    }
    return {name: _facts(device, reports.get(name), now_s) for name, device in rows.items()}


def _facts(device: Device, report: Reported | None, now_s: float) -> Facts:
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
        name=device.connection,
        profile=device.profile,
        labels=device.labels,
        agent=device.agent_version,
        online=device.online,
        health=health,
        seen_s=float("inf") if device.last_seen_s is None else max(0.0, now_s - device.last_seen_s),
        releases={part.name: part.active.release for part in components if part.active is not None},
        states={part.name: str(part.state) for part in components},
    )
