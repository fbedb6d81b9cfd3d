"""Measurements that devices are asked for: kept in the registry, sent until they are answered, answered once."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeops.contracts.deployment import MEASURE_FEATURE, Reported
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.measurement import Candidate, MeasureAnswer, MeasureCommand
from edgeops.contracts.topics import SELF_UNIT
from edgeops.contracts.wire import decode, encode
from edgeops.control import audit
from edgeops.control.database import Database
from edgeops.control.models import AskedMeasurement, Device, Unit
from edgeops.control.sending import send
from edgeops.transport.mqtt import MqttLink

# A device that has the command already ignores it, or says its answer again.
SEND_AGAIN_AFTER_S = 30.0
MAX_OPEN_PER_DEVICE = 8
_BATCH = 100


class SignedAnswer(NamedTuple):
    """A device's answer as it was verified: what it says, the envelope, and the certificate whose key signed it."""

    answer: MeasureAnswer
    envelope: bytes
    certificate_pem: str


def ask(
    database: Database,
    fleet: str,
    connection: str,
    bundles: Sequence[Candidate],
    *,
    threads: int,
    runs: int,
    valid_s: float,
    actor: str,
    now_s: float,
) -> str:
    """Ask a device to measure candidates; return the command's id. It is sent as soon as the device is there.

    Raises:
        EdgeopsError: E-DEVICE-UNKNOWN; no such device, or revoked. E-AGENT-FEATURE; its agent measures nothing.
            E-COMMAND; too many commands of this device are open.
    """
    id = secrets.token_hex(16)
    with database.write() as session:
        device = session.get(Device, connection, with_for_update=True)
        if device is None or device.revoked_at_s is not None:
            raise EdgeopsError(
                "E-DEVICE-UNKNOWN", f"there is no device {connection[:80]!r}", "See `edgeops device list`."
            )
        _check_feature(session, connection)
        waiting = select(AskedMeasurement.id).where(
            AskedMeasurement.connection == connection,
            AskedMeasurement.answered_at_s.is_(None),
            AskedMeasurement.expires_at_s > now_s,
        )
        if len(session.scalars(waiting).all()) >= MAX_OPEN_PER_DEVICE:
            raise EdgeopsError(
                "E-COMMAND", f"{connection} has {MAX_OPEN_PER_DEVICE} commands to answer", "Wait for it."
            )
        command = MeasureCommand(
            fleet=fleet,
            connection=connection,
            unit=SELF_UNIT,
            id=id,
            issued_at_s=now_s,
            expires_at_s=now_s + valid_s,
            bundles=tuple(bundles),
            threads=threads,
            runs=runs,
        )
        session.add(
            AskedMeasurement(
                id=id,
                connection=connection,
                command=encode(command),
                created_at_s=now_s,
                created_by=actor,
                expires_at_s=command.expires_at_s,
                certificate_pem="",
            )
        )
        audit.record(
            session,
            at_s=now_s,
            actor=actor,
            action="device.measure",
            subject=f"device/{connection}",
            id=id,
            bundles=[one.digest for one in bundles],
        )
    return id


def _check_feature(session: Session, connection: str) -> None:
    unit = session.get(Unit, (connection, SELF_UNIT))
    reported = None if unit is None or unit.reported is None else decode(unit.reported, Reported, what="report")
    if reported is None or MEASURE_FEATURE not in reported.features:
        said = "has not reported yet" if reported is None else f"has agent {reported.agent_version}"
        raise EdgeopsError("E-AGENT-FEATURE", f"{connection} {said}: it measures nothing", "Update its agent.")


def send_waiting(
    database: Database, fleet: str, sign: Callable[[MeasureCommand], bytes], link: MqttLink, now_s: float
) -> None:
    """Send the commands that are not answered to the devices that are there.

    Raises:
        EdgeopsError: The database cannot be used; what was sent will be sent again.
    """
    with database.read() as session:
        rows = session.scalars(
            select(AskedMeasurement.command)
            .join(Device, Device.connection == AskedMeasurement.connection)
            .where(
                AskedMeasurement.answered_at_s.is_(None),
                AskedMeasurement.expires_at_s > now_s,
                Device.revoked_at_s.is_(None),
                Device.online,
                AskedMeasurement.sent_at_s.is_(None) | (AskedMeasurement.sent_at_s < now_s - SEND_AGAIN_AFTER_S),
            )
            .order_by(AskedMeasurement.created_at_s)
            .limit(_BATCH)
        ).all()
    sent = send(link, fleet, (decode(row, MeasureCommand, what="command") for row in rows), sign)
    if sent:
        with database.write() as session:
            for row in session.scalars(select(AskedMeasurement).where(AskedMeasurement.id.in_(sent))):
                row.sent_at_s = now_s


def take(session: Session, connection: str, signed: SignedAnswer, now_s: float) -> None:
    """Keep a device's answer, if it was asked and has not answered yet.

    Raises:
        EdgeopsError: E-COMMAND-UNKNOWN; it was not asked for this.
    """
    row = session.get(AskedMeasurement, signed.answer.id, with_for_update=True)
    if row is None or row.connection != connection:
        raise EdgeopsError("E-COMMAND-UNKNOWN", f"{connection} was not asked for {signed.answer.id}")
    if row.answered_at_s is None:
        row.answered_at_s, row.answer, row.certificate_pem = now_s, signed.envelope, signed.certificate_pem


def command_of(row: AskedMeasurement) -> MeasureCommand:
    """Return what a device was asked."""
    return msgspec.json.decode(row.command, type=MeasureCommand)
