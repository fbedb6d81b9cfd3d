"""Commands to devices: asked for, published while the device is connected, and answered in parts until whole."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from edgeops.contracts.deployment import Reported
from edgeops.contracts.enrolment import ConnectionKind
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.samples import (
    SAMPLES_FEATURE,
    AnswerState,
    SamplesAnswer,
    SamplesCommand,
    SamplesWish,
    check_samples,
)
from edgeops.contracts.topics import SELF_UNIT
from edgeops.contracts.wire import decode, encode
from edgeops.control import audit
from edgeops.control.database import Database
from edgeops.control.models import CommandPart, CommandRow, Device, Unit
from edgeops.control.sending import send
from edgeops.transport.mqtt import MqttLink

log = logging.getLogger(__name__)

VALID_S = 3600.0
# A command that is not answered is told again: the device knows it by its id.
AGAIN_AFTER_S = 60.0
# What was answered is removed after so long: raw inputs are not to lie about.
KEEP_S = 7 * 86400.0
MAX_OPEN = 8
# Above what was asked for: a sample's frame.
SLACK_BYTES = 64 << 10
_BATCH = 200
ASKED, EXPIRED = "asked", "expired"
OPEN = (ASKED, str(AnswerState.ACCEPTED))


def ask_for_samples(
    database: Database, connection: str, wish: SamplesWish, *, actor: str, now_s: float, valid_s: float = VALID_S
) -> str:
    """Ask a device for raw inputs of a model; return the command's id. It is published by the publisher.

    Raises:
        EdgeopsError: E-COMMAND; impossible bounds, or too many commands of this device are open. E-DEVICE-UNKNOWN; no
            such device, or revoked. E-AGENT-FEATURE; its agent does not know how.
    """
    check_samples(wish)
    with database.write() as session:
        device = session.get(Device, connection, with_for_update=True)
        if device is None or device.revoked_at_s is not None or device.kind != ConnectionKind.DEVICE:
            raise _unknown(connection)
        unit = session.get(Unit, (connection, SELF_UNIT))
        said = None if unit is None or unit.reported is None else decode(unit.reported, Reported, what="stored report")
        if said is not None and SAMPLES_FEATURE not in said.features:
            raise EdgeopsError("E-AGENT-FEATURE", f"the agent of {connection} gives no samples", "Update it first.")
        opened = select(func.count()).where(
            CommandRow.connection == connection, CommandRow.state.in_(OPEN), CommandRow.expires_at_s > now_s
        )
        if (session.scalar(opened) or 0) >= MAX_OPEN:
            raise EdgeopsError("E-COMMAND", f"{connection} has {MAX_OPEN} commands to answer", "Wait for its answers.")
        id = secrets.token_hex(8)
        session.add(
            CommandRow(
                id=id,
                connection=connection,
                unit=SELF_UNIT,
                kind=SAMPLES_FEATURE,
                wish=encode(wish),
                created_at_s=now_s,
                created_by=actor,
                expires_at_s=now_s + valid_s,
                state=ASKED,
                code="",
                detail="",
                total=0,
                sha256="",
            )
        )
        bounds = {"model": wish.model, "count": wish.count, "max_bytes": wish.max_bytes, "within_s": wish.within_s}
        audit.record(session, at_s=now_s, actor=actor, action="samples.ask", subject=connection, id=id, **bounds)
    return id


def publish_due(
    database: Database, fleet: str, sign: Callable[[SamplesCommand], bytes], link: MqttLink, now_s: float
) -> None:
    """Publish the commands of connected devices that are not answered, not more often than they may need.

    Raises:
        EdgeopsError: The database cannot be used.
    """
    with database.read() as session:
        due = session.scalars(
            select(CommandRow)
            .join(Device, Device.connection == CommandRow.connection)
            .where(
                CommandRow.state == ASKED,
                CommandRow.expires_at_s > now_s,
                Device.online,
                Device.revoked_at_s.is_(None),
                or_(CommandRow.published_at_s.is_(None), CommandRow.published_at_s < now_s - AGAIN_AFTER_S),
            )
            .limit(_BATCH)
        ).all()
        commands = [_command(row, fleet) for row in due]
    told = send(link, fleet, commands, sign)
    if told:
        with database.write() as session:
            session.execute(update(CommandRow).where(CommandRow.id.in_(told)).values(published_at_s=now_s))


def _command(row: CommandRow, fleet: str) -> SamplesCommand:
    return SamplesCommand(
        fleet=fleet,
        connection=row.connection,
        unit=row.unit,
        id=row.id,
        issued_at_s=row.created_at_s,
        expires_at_s=row.expires_at_s,
        wish=decode(row.wish, SamplesWish, what="stored command"),
    )


def take_result(session: Session, result: SamplesAnswer, now_s: float) -> None:
    """Take in what a device answers.

    Raises:
        EdgeopsError: E-COMMAND-UNKNOWN; it was not asked for. E-WIRE-SIZE; it is more than was asked for, or does not
            fit to the parts before. Nothing of it was taken.
    """
    row = session.get(CommandRow, result.id, with_for_update=True)
    if row is None or (row.connection, row.unit) != (result.connection, result.unit):
        raise EdgeopsError("E-COMMAND-UNKNOWN", f"an answer to {result.id}, which {result.connection} was not asked")
    if row.state in (str(AnswerState.DONE), str(AnswerState.REFUSED)):
        return  # told again: the broker or the device did not know that it had arrived
    row.answered_at_s, row.detail = now_s, result.what.replace("\0", "")[:512]
    if result.state is AnswerState.REFUSED:
        row.state, row.code = str(AnswerState.REFUSED), result.code.replace("\0", "")[:64]
    elif result.state is AnswerState.ACCEPTED:
        row.state = str(AnswerState.ACCEPTED)
    elif result.state is AnswerState.DONE:
        _take_part(session, row, result)


def _take_part(session: Session, row: CommandRow, result: SamplesAnswer) -> None:
    most = decode(row.wish, SamplesWish, what="stored command").max_bytes + SLACK_BYTES
    if not 0 <= result.offset <= result.offset + len(result.data) <= result.total <= most:
        raise EdgeopsError("E-WIRE-SIZE", f"answer {row.id}: bytes {result.offset} of {result.total}, {most} at most")
    if row.sha256 and (row.sha256, row.total) != (result.sha256, result.total):
        raise EdgeopsError("E-WIRE-SIZE", f"answer {row.id}: its parts are not of one whole")
    row.sha256, row.total = result.sha256[:64], result.total
    if result.data and session.get(CommandPart, (row.id, result.offset)) is None:
        session.add(CommandPart(command_id=row.id, offset=result.offset, data=result.data))
        session.flush()
    parts = session.execute(
        select(CommandPart.offset, func.length(CommandPart.data)).where(CommandPart.command_id == row.id)
    )
    if sum(length for _, length in parts) < row.total:
        row.state = str(AnswerState.ACCEPTED)
    elif hashlib.sha256(_whole(session, row.id)).hexdigest() != row.sha256:
        session.execute(delete(CommandPart).where(CommandPart.command_id == row.id))
        row.sha256, row.total = "", 0
        raise EdgeopsError("E-WIRE-MALFORMED", f"answer {row.id} is not what its hash says")
    else:
        row.state = str(AnswerState.DONE)


def _whole(session: Session, id: str) -> bytes:
    parts = select(CommandPart.data).where(CommandPart.command_id == id).order_by(CommandPart.offset)
    return b"".join(session.scalars(parts))


def find(session: Session, connection: str, id: str) -> CommandRow:
    """Return a command of a device.

    Raises:
        EdgeopsError: E-COMMAND-UNKNOWN.
    """
    row = session.get(CommandRow, id)
    if row is None or row.connection != connection:
        raise EdgeopsError("E-COMMAND-UNKNOWN", f"{connection[:63]} was given no command {id[:32]!r}")
    return row


def state_of(row: CommandRow, now_s: float) -> str:
    """Return how far a command has come: `asked`, `accepted`, `done`, `refused` or `expired`.

    One that a device took up ends by its own bounds.
    """
    return EXPIRED if row.state == ASKED and row.expires_at_s <= now_s else row.state


def fetch(database: Database, connection: str, id: str, *, actor: str, now_s: float) -> bytes:
    """Return the whole answer; who fetches raw inputs is noted.

    Raises:
        EdgeopsError: E-COMMAND-UNKNOWN; no such command, or it has no answer yet.
    """
    with database.write() as session:
        row = find(session, connection, id)
        if row.state != str(AnswerState.DONE):
            raise EdgeopsError("E-COMMAND-UNKNOWN", f"{id} is {state_of(row, now_s)}: there is no answer to fetch")
        audit.record(session, at_s=now_s, actor=actor, action="samples.fetch", subject=connection, id=id)
        return _whole(session, id)


def newest(session: Session, connection: str, limit: int = 50) -> list[CommandRow]:
    """Return the newest commands of a device.

    Raises:
        EdgeopsError: E-DEVICE-UNKNOWN.
    """
    if session.get(Device, connection) is None:
        raise _unknown(connection)
    rows = select(CommandRow).where(CommandRow.connection == connection)
    return list(session.scalars(rows.order_by(CommandRow.created_at_s.desc()).limit(limit)))


def _unknown(connection: str) -> EdgeopsError:
    return EdgeopsError("E-DEVICE-UNKNOWN", f"there is no device {connection[:80]!r}", "See `edgeops device list`.")


def prune(session: Session, now_s: float) -> None:
    """Remove commands and their answers that are past their time."""
    old = select(CommandRow.id).where(CommandRow.created_at_s < now_s - KEEP_S)
    session.execute(delete(CommandPart).where(CommandPart.command_id.in_(old)))
    session.execute(delete(CommandRow).where(CommandRow.created_at_s < now_s - KEEP_S))
