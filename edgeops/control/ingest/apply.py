"""Checked statements into the registry: ordered by boot and sequence, repeated ones without effect."""

from __future__ import annotations

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgeops.contracts.deployment import (
    TERMINAL_STATES,
    ComponentReport,
    DeploymentState,
    Presence,
    Progress,
    Reported,
)
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.telemetry import ModelWindow, Telemetry
from edgeops.contracts.wire import encode
from edgeops.control.assignment import components_of, new_unit, reissue
from edgeops.control.ingest.statements import Statement
from edgeops.control.models import (
    Boot,
    Device,
    ProgressEvent,
    RolloutMember,
    RolloutProfile,
    TelemetryTotal,
    TelemetryWindow,
    Unit,
)

MAX_UNITS = 64
REPUBLISH_AFTER_S = 60.0
_SKETCH = msgspec.json.Decoder(QuantileSketch)


def apply_statement(session: Session, device: Device, statement: Statement, *, now_s: float) -> None:
    """Bring the registry up to a statement of a device.

    Args:
        session: A write transaction.
        device: The sender.
        statement: What it said; checked.
        now_s: The control plane's clock.

    Raises:
        EdgeopsError: E-REPORT-STALE; a report of an earlier boot than one that was already accepted.
            E-WIRE-MALFORMED; more units than a connection may have. Nothing was changed.
    """
    if isinstance(statement, Presence):
        device.online, device.presence_at_s = statement.online, now_s
        if statement.online:
            _reached(session, device, now_s)
        return
    unit = _unit(session, statement)
    if isinstance(statement, Reported):
        _apply_reported(session, device, unit, statement, now_s)
    elif isinstance(statement, Progress):
        _apply_progress(session, statement, now_s)
    else:
        _apply_telemetry(session, statement, now_s)
    _reached(session, device, now_s)


def _text(value: str, most: int) -> str:
    """Return a device's text as any database can hold it: PostgreSQL knows no NUL."""
    return value.replace("\0", "")[:most]


def _unit(session: Session, statement: Reported | Progress | Telemetry) -> Unit:
    unit = session.get(Unit, (statement.connection, statement.unit), with_for_update=True)
    if unit is None:
        count = session.scalar(select(func.count()).where(Unit.connection == statement.connection))
        if (count or 0) >= MAX_UNITS:
            raise EdgeopsError("E-WIRE-MALFORMED", f"{statement.connection} has {count} units already")
        unit = new_unit(statement.connection, statement.unit)
        session.add(unit)
        session.flush()
    return unit


def _reached(session: Session, device: Device, now_s: float) -> None:
    device.last_seen_s = now_s
    waiting = select(RolloutMember).where(
        RolloutMember.connection == device.connection,
        RolloutMember.generation.is_not(None),
        RolloutMember.reached.is_(False),
    )
    for member in session.scalars(waiting):
        member.reached = True


def _apply_reported(session: Session, device: Device, unit: Unit, report: Reported, now_s: float) -> None:
    if report.boot_id == unit.boot_id:
        if report.seq <= unit.seq:
            return  # the broker gives the retained report again after each reconnection
    else:
        if session.get(Boot, (unit.connection, unit.unit, report.boot_id)) is not None:
            raise EdgeopsError("E-REPORT-STALE", f"a report of boot {report.boot_id}, which has ended")
        session.add(Boot(connection=unit.connection, unit=unit.unit, boot_id=report.boot_id, first_seen_s=now_s))
    unit.boot_id, unit.seq = report.boot_id, report.seq
    unit.observed_generation = report.observed_generation
    unit.reported, unit.reported_at_s = encode(report), now_s
    device.agent_version = _text(report.agent_version, 64)
    for component in report.components:
        _settle(session, unit, component, now_s)
    _reconcile(unit, session, now_s)


def _reconcile(unit: Unit, session: Session, now_s: float) -> None:
    """Bring together what the device has seen and what it should have seen."""
    if not unit.desired_generation:
        return
    if unit.observed_generation > unit.desired_generation:
        # The registry is older than the device: restored from a backup. What it wants is said again, above that.
        reissue(session, unit, components_of(unit), cause="device is ahead of the registry", now_s=now_s)
    elif unit.observed_generation < unit.desired_generation and (
        unit.published_at_s is not None and unit.published_at_s < now_s - REPUBLISH_AFTER_S
    ):
        unit.publish_wanted += 1


def _member_of(session: Session, connection: str, unit: str, component: str, generation: int) -> RolloutMember | None:
    """Return the rollout's member that a component's report of a generation speaks of.

    A later generation may have changed another component only; so it is the newest one up to it.
    """
    return session.scalars(
        select(RolloutMember)
        .where(
            RolloutMember.connection == connection,
            RolloutMember.unit == unit,
            RolloutMember.component == component,
            RolloutMember.generation <= generation,
        )
        .order_by(RolloutMember.generation.desc())
        .limit(1)
    ).one_or_none()


def _settle(session: Session, unit: Unit, report: ComponentReport, now_s: float) -> None:
    """Take a component's state from its report."""
    member = _member_of(session, unit.connection, unit.unit, report.name, report.generation)
    if member is None or report.generation > unit.desired_generation:
        return
    state, code, detail = report.state, None, ""
    if report.failure is not None and state is not DeploymentState.CONFIRMED:
        code, detail = report.failure.code, report.failure.what
    if state is DeploymentState.HELD:
        detail = report.held_reason or ""
    if state is DeploymentState.CONFIRMED:
        digest = session.get_one(RolloutProfile, (member.rollout_id, member.profile)).digest
        if report.active is None or report.active.digest != digest:
            state, code = DeploymentState.FAILED, "E-REPORT-DIGEST"
            detail = f"it says confirmed, but runs {report.active.digest if report.active else 'nothing'}"
    _set_member(member, state, code, detail, now_s)


def _set_member(member: RolloutMember, state: DeploymentState, code: str | None, detail: str, now_s: float) -> None:
    if (member.state, member.code) != (str(state), code):
        member.changed_at_s = now_s
    member.state, member.code, member.detail = str(state), code and _text(code, 64), _text(detail, 512)


def _apply_progress(session: Session, progress: Progress, now_s: float) -> None:
    key = (progress.connection, progress.unit, progress.boot_id, progress.seq)
    if session.get(ProgressEvent, key) is not None:
        return
    session.add(
        ProgressEvent(
            connection=progress.connection,
            unit=progress.unit,
            boot_id=progress.boot_id,
            seq=progress.seq,
            component=progress.component,
            generation=progress.generation,
            step=progress.step,
            state=progress.state,
            release=_text(progress.release, 64),
            percent=progress.percent,
            code=progress.code and _text(progress.code, 64),
            detail=_text(progress.detail, 512),
            device_at_s=progress.at_s,
            received_at_s=now_s,
        )
    )
    member = _member_of(session, progress.connection, progress.unit, progress.component, progress.generation)
    # A step that comes late changes nothing; CONFIRMED is taken only from a report, which names the bundle.
    if member is None or member.generation != progress.generation or progress.step <= member.step:
        return
    member.step = progress.step
    if DeploymentState(member.state) not in TERMINAL_STATES and progress.state is not DeploymentState.CONFIRMED:
        _set_member(member, progress.state, progress.code, progress.detail, now_s)


def _apply_telemetry(session: Session, telemetry: Telemetry, now_s: float) -> None:
    key = (telemetry.connection, telemetry.unit, telemetry.boot_id, telemetry.seq)
    if session.get(TelemetryWindow, key) is not None:
        return
    session.add(
        TelemetryWindow(
            connection=telemetry.connection,
            unit=telemetry.unit,
            boot_id=telemetry.boot_id,
            seq=telemetry.seq,
            received_at_s=now_s,
            payload=encode(telemetry),
        )
    )
    for window in telemetry.models:
        _add_to_total(session, telemetry, window, now_s)


def _add_to_total(session: Session, telemetry: Telemetry, window: ModelWindow, now_s: float) -> None:
    key = (telemetry.connection, telemetry.unit, window.model, _text(window.release, 64))
    total = session.get(TelemetryTotal, key, with_for_update=True)
    if total is None:
        total = TelemetryTotal(
            connection=key[0],
            unit=key[1],
            model=key[2],
            release=key[3],
            requests=0,
            errors={},
            latency_ms=encode(QuantileSketch()),
            updated_at_s=now_s,
        )
        session.add(total)
    errors = dict(total.errors)
    for code, count in window.errors.items():
        code = _text(code, 64)
        errors[code] = errors.get(code, 0) + count
    total.requests += window.requests
    total.errors = errors
    total.latency_ms = encode(_SKETCH.decode(total.latency_ms).merge(window.latency_ms))
    total.updated_at_s = now_s
