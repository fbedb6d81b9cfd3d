"""Checked statements into the registry: ordered by boot and sequence, repeated ones without effect."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import msgspec
from sqlalchemy import insert, or_, select
from sqlalchemy.orm import Session

from edgeops.contracts.deployment import (
    TERMINAL_STATES,
    ComponentReport,
    DeploymentState,
    Presence,
    Progress,
    Reported,
)
from edgeops.contracts.enrolment import ConnectionKind
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rig_runs import RigReport
from edgeops.contracts.samples import SamplesAnswer
from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.telemetry import Telemetry
from edgeops.contracts.topics import SELF_UNIT
from edgeops.contracts.wire import encode
from edgeops.control import commands, measuring
from edgeops.control.assignment import components_of, new_unit, reissue
from edgeops.control.ingest.arms import Arms
from edgeops.control.ingest.rollups import Rollups, Traffic, traffic_of
from edgeops.control.ingest.statements import Statement
from edgeops.control.measuring import SignedAnswer
from edgeops.control.models import Boot, Device, ProgressEvent, RolloutMember, RolloutProfile, Unit
from edgeops.control.rigs import runs
from edgeops.control.rigs.runs import SignedRigAnswer
from edgeops.control.telemetry_models import TelemetryTotal, TelemetryWindow

MAX_UNITS = 64
REPUBLISH_AFTER_S = 60.0
CLONE_SIGNS = 3
_MessageKey = tuple[str, str, str, int]
_SKETCH = msgspec.json.Decoder(QuantileSketch)


class Batch:
    """What a batch of statements needs to know, read at once, and how each is applied.

    Devices are locked in the order of their names, so that two workers never wait for each other in a circle; but for
    their keys, which never change: who makes a row that names one does not wait.

    Args:
        session: A write transaction.
        connections: Who speaks in this batch.
        now_s: The control plane's clock.
    """

    def __init__(self, session: Session, connections: Collection[str], now_s: float) -> None:
        self._session, self._now_s = session, now_s
        session.autoflush = False  # the rows of a batch are written together
        speakers = select(Device).where(Device.connection.in_(connections)).order_by(Device.connection)
        self.devices = {row.connection: row for row in session.scalars(speakers.with_for_update(key_share=True))}
        units = select(Unit).where(Unit.connection.in_(connections)).order_by(Unit.connection, Unit.unit)
        self._units = {
            (row.connection, row.unit): row for row in session.scalars(units.with_for_update(key_share=True))
        }
        unreached = select(RolloutMember.connection, RolloutMember.unit).where(
            RolloutMember.connection.in_(connections),
            RolloutMember.generation.is_not(None),
            RolloutMember.reached.is_(False),
        )
        self._unreached = {(row[0], row[1]) for row in session.execute(unreached.distinct())}
        self._repeated: dict[type[ProgressEvent] | type[TelemetryWindow], set[_MessageKey]] = {}
        self._windows: list[dict[str, Any]] = []
        self._new_traffic: dict[tuple[str, str, str, str], Traffic] = {}
        self._rollups = Rollups(now_s)
        self._arms = Arms(session, connections)

    def look_for_repeated(self, statements: Iterable[Statement]) -> None:
        """Find out which of these were taken in before: one query for each kind."""
        kinds: tuple[tuple[type[Progress | Telemetry], type[ProgressEvent] | type[TelemetryWindow]], ...]
        kinds = ((Progress, ProgressEvent), (Telemetry, TelemetryWindow))
        said = list(statements)
        for kind, table in kinds:
            keys = [_key(item) for item in said if isinstance(item, (Progress, Telemetry)) and isinstance(item, kind)]
            self._repeated[table] = set()
            if keys:
                names, units, boots, numbers = (set(part) for part in zip(*keys, strict=True))
                found = self._session.execute(
                    select(table.connection, table.unit, table.boot_id, table.seq).where(
                        table.connection.in_(names),
                        table.unit.in_(units),
                        table.boot_id.in_(boots),
                        table.seq.in_(numbers),
                    )
                )
                self._repeated[table] = {(row[0], row[1], row[2], row[3]) for row in found}

    def apply(self, device: Device, statement: Statement) -> None:
        """Bring the registry up to a statement of a device.

        Raises:
            EdgeopsError: E-REPORT-STALE; a report of an earlier boot than one that was already accepted.
                E-WIRE-MALFORMED; more units than a connection may have. What `commands.take_result`,
                `measuring.take`, `runs.take` and `runs.take_report` raise. Nothing that it reports was taken.
        """
        if isinstance(statement, SamplesAnswer):
            commands.take_result(self._session, statement, self._now_s)
            self._reached(device, statement.unit)
            return
        if isinstance(statement, Presence):
            device.online, device.presence_at_s = statement.online, self._now_s
            if device.kind == ConnectionKind.RIG:
                runs.take_presence(self._session, device.connection, online=statement.online, now_s=self._now_s)
            if statement.online:
                self._reached(device, SELF_UNIT)
            return
        if isinstance(statement, SignedAnswer):
            measuring.take(self._session, device.connection, statement, self._now_s)
            self._reached(device, SELF_UNIT)
            return
        if isinstance(statement, (RigReport, SignedRigAnswer)):
            device.last_seen_s = self._now_s
            if isinstance(statement, RigReport):
                device.agent_version = _text(statement.version, 64)
                runs.take_report(self._session, statement, self._now_s)
            else:
                runs.take(self._session, device.connection, statement, self._now_s)
            return
        unit = self._unit(statement)
        if isinstance(statement, Reported):
            _apply_reported(self._session, device, unit, statement, self._now_s)
        elif isinstance(statement, Progress):
            if self._first_time(ProgressEvent, statement):
                _apply_progress(self._session, statement, self._now_s)
        elif self._first_time(TelemetryWindow, statement):
            self._apply_telemetry(unit, statement)
            _apply_figures(device, statement, self._now_s)
        self._reached(device, statement.unit)

    def finish(self) -> None:
        """Write what was summed up over the batch; call it once, after the last statement."""
        if self._windows:
            self._session.execute(insert(TelemetryWindow), self._windows)
        self._write_totals()
        self._rollups.write(self._session)
        self._arms.write(self._session)

    def _first_time(self, table: type[ProgressEvent] | type[TelemetryWindow], statement: Progress | Telemetry) -> bool:
        taken, key = self._repeated[table], _key(statement)
        if key in taken:
            return False
        taken.add(key)
        return True

    def _unit(self, statement: Reported | Progress | Telemetry) -> Unit:
        unit = self._units.get((statement.connection, statement.unit))
        if unit is None:
            count = sum(1 for connection, _ in self._units if connection == statement.connection)
            if count >= MAX_UNITS:
                raise EdgeopsError("E-WIRE-MALFORMED", f"{statement.connection} has {count} units already")
            unit = new_unit(statement.connection, statement.unit, profile="", now_s=self._now_s)
            self._units[statement.connection, statement.unit] = unit
            self._session.add(unit)
            self._session.flush()
        return unit

    def _reached(self, device: Device, unit: str) -> None:
        """Note that a unit was heard. Its gateway's word is none of the unit, which may be unplugged."""
        device.last_seen_s = self._now_s
        if (device.connection, unit) in self._unreached:
            self._unreached.discard((device.connection, unit))
            waiting = select(RolloutMember).where(
                RolloutMember.connection == device.connection,
                RolloutMember.unit == unit,
                RolloutMember.generation.is_not(None),
                RolloutMember.reached.is_(False),
            )
            for member in self._session.scalars(waiting):
                member.reached = True

    def _apply_telemetry(self, unit: Unit, telemetry: Telemetry) -> None:
        self._windows.append(
            {
                "connection": telemetry.connection,
                "unit": telemetry.unit,
                "boot_id": telemetry.boot_id,
                "seq": telemetry.seq,
                "received_at_s": self._now_s,
                "payload": encode(telemetry),
                "summed": False,
            }
        )
        temperature_c = telemetry.device.temperature_c if telemetry.device is not None else None
        for window in telemetry.models:
            release, traffic = _text(window.release, 64), traffic_of(window, temperature_c)
            key = (telemetry.connection, telemetry.unit, window.model, release)
            # What values look like is of interest over many devices, and over time: totals go without.
            plain = traffic._replace(histograms={}, temperature_max_c=None, shadow=None)
            self._new_traffic[key] = self._new_traffic.get(key, Traffic()).plus(plain)
            self._rollups.add(unit.profile, window.model, release, traffic)
            self._arms.add(unit.connection, unit.unit, window.model, release, traffic)

    def _write_totals(self) -> None:
        for key in sorted(self._new_traffic):
            total = self._session.get(TelemetryTotal, key, with_for_update=True)
            if total is None:
                total = TelemetryTotal(
                    connection=key[0],
                    unit=key[1],
                    model=key[2],
                    release=key[3],
                    requests=0,
                    errors={},
                    latency_ms=encode(QuantileSketch()),
                    updated_at_s=self._now_s,
                )
                self._session.add(total)
            so_far = Traffic(total.requests, dict(total.errors), _SKETCH.decode(total.latency_ms))
            merged = so_far.plus(self._new_traffic[key])
            total.requests, total.errors = merged.requests, merged.errors
            total.latency_ms, total.updated_at_s = encode(merged.latency_ms), self._now_s


def _key(statement: Progress | Telemetry) -> _MessageKey:
    return (statement.connection, statement.unit, statement.boot_id, statement.seq)


def _text(value: str, most: int) -> str:
    """Return a device's text as any database can hold it: PostgreSQL knows no NUL."""
    return value.replace("\0", "")[:most]


def _apply_figures(device: Device, telemetry: Telemetry, now_s: float) -> None:
    """Take what a device says of itself, if it is newer than what is known; a clock that was ahead holds nothing up."""
    device.dropped_windows += telemetry.dropped_windows
    known_s = device.figures_at_s or 0.0
    if telemetry.device is not None and telemetry.unit == SELF_UNIT and (telemetry.end_s >= known_s or known_s > now_s):
        device.figures, device.figures_at_s = encode(telemetry.device), telemetry.end_s


def _apply_reported(session: Session, device: Device, unit: Unit, report: Reported, now_s: float) -> None:
    if report.boot_id == unit.boot_id:
        if report.seq <= unit.seq:
            return  # the broker gives the retained report again after each reconnection
    else:
        ended = session.get(Boot, (unit.connection, unit.unit, report.boot_id))
        if ended is not None:
            _look_for_clone(device, ended, report, now_s)
            raise EdgeopsError("E-REPORT-STALE", f"a report of boot {report.boot_id}, which has ended")
        before = session.get(Boot, (unit.connection, unit.unit, unit.boot_id))
        if before is not None:
            before.seq = unit.seq
        session.add(Boot(connection=unit.connection, unit=unit.unit, boot_id=report.boot_id, first_seen_s=now_s))
    unit.boot_id, unit.seq = report.boot_id, report.seq
    unit.observed_generation = report.observed_generation
    unit.reported, unit.reported_at_s = encode(report), now_s
    if unit.unit == SELF_UNIT:
        device.agent_version = _text(report.agent_version, 64)
    else:
        unit.profile = report.profile
    for component in report.components:
        _settle(session, unit, component, now_s)
    _reconcile(unit, session, now_s)


def _look_for_clone(device: Device, ended: Boot, report: Reported, now_s: float) -> None:
    """Take note where a boot goes on that had ended: two machines speak with one key.

    A report that was heard before is a replay and no sign. One sign alone may be two messages that crossed.
    """
    if report.seq > ended.seq:
        ended.seq = report.seq
        device.clone_signs += 1
        if device.clone_signs >= CLONE_SIGNS and device.cloned_since_s is None:
            device.cloned_since_s = now_s


def _reconcile(unit: Unit, session: Session, now_s: float) -> None:
    """Bring together what the device has seen and what it should have seen."""
    if not unit.desired_generation:
        return
    if unit.observed_generation > unit.desired_generation:
        # The registry is older than the device: restored from a backup. What it wants is said again, above that.
        cause, override_holds = "device is ahead of the registry", unit.override_holds
        reissue(session, unit, components_of(unit), cause=cause, now_s=now_s, override_holds=override_holds)
    elif unit.observed_generation < unit.desired_generation and (
        unit.published_at_s is not None and unit.published_at_s < now_s - REPUBLISH_AFTER_S
    ):
        unit.publish_wanted += 1


def _member_of(session: Session, connection: str, unit: str, component: str, generation: int) -> RolloutMember | None:
    """Return the rollout's member that a component's report of a generation speaks of; None: of none, or no more.

    A later generation may have changed another component only; so it is the newest one up to it.
    """
    return session.scalars(
        select(RolloutMember)
        .where(
            RolloutMember.connection == connection,
            RolloutMember.unit == unit,
            RolloutMember.component == component,
            RolloutMember.generation <= generation,
            or_(RolloutMember.returned_generation.is_(None), RolloutMember.returned_generation > generation),
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
