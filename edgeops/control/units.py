"""Units with the devices that speak for them: `gateway` is a device itself, `gateway/motor-3` a unit behind it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from edgeops.contracts.enrolment import ConnectionKind
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.topics import SELF_UNIT
from edgeops.control.models import Device, RolloutMember, Unit


class Subject(NamedTuple):
    """One unit, and the device whose connection speaks for it."""

    device: Device
    unit: Unit

    @property
    def name(self) -> str:
        """What people call it."""
        return unit_name(self.unit.connection, self.unit.unit)

    @property
    def profile(self) -> str:
        """Its device profile; empty: a unit behind a gateway that has not reported yet."""
        return self.unit.profile

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels: those of its connection, and its own."""
        return {**self.device.labels, **self.unit.labels}


def unit_name(connection: str, unit: str) -> str:
    """Return what people call a unit: the connection's name where it is the connection itself."""
    return connection if unit == SELF_UNIT else f"{connection}/{unit}"


def split_name(name: str) -> tuple[str, str]:
    """Return connection and unit of a unit's name."""
    connection, _, unit = name.partition("/")
    return connection, unit or SELF_UNIT


def enrolled(session: Session, *conditions: ColumnElement[bool]) -> list[Subject]:
    """Return the units of all devices that are enrolled and not revoked, in order of names, each device first.

    Args:
        session: A transaction that reads.
        conditions: On columns of devices and units.
    """
    rows = session.execute(
        select(Device, Unit)
        .join(Unit, Unit.connection == Device.connection)
        .where(Device.revoked_at_s.is_(None), Device.kind == ConnectionKind.DEVICE, *conditions)
        .order_by(Unit.connection, Unit.unit != SELF_UNIT, Unit.unit)
    )
    return [Subject(device, unit) for device, unit in rows]


def lock_units(session: Session, rollout_id: int, *conditions: ColumnElement[bool]) -> None:
    """Keep others from the units of a rollout until the transaction ends, in the order in which ingest takes them.

    Ingest locks units before it changes what they are in rollouts. Whoever changes that too locks them first as well:
    neither waits for the other in a circle, and what is read from then on is as ingest has left it.
    """
    session.execute(
        select(Unit.connection)
        .join(RolloutMember, (RolloutMember.connection == Unit.connection) & (RolloutMember.unit == Unit.unit))
        .where(RolloutMember.rollout_id == rollout_id, *conditions)
        .order_by(Unit.connection, Unit.unit)
        .with_for_update(of=Unit, key_share=True)
    ).all()


def meant(subjects: Iterable[Subject], names: Collection[str]) -> list[Subject]:
    """Return those that are named. A connection's name means all of its units.

    Raises:
        EdgeopsError: E-DEVICE-UNKNOWN; nobody has one of the names.
    """
    wanted = set(names)
    found = [one for one in subjects if one.name in wanted or one.unit.connection in wanted]
    known = {one.name for one in found} | {one.unit.connection for one in found}
    for name in sorted(wanted - known):
        raise EdgeopsError("E-DEVICE-UNKNOWN", f"there is no device {name[:80]!r}", "See `edgeops device list`.")
    return found
