"""Named groups: of devices and units that were named, or of all that a query finds at the moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy.orm import Session

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.control import audit
from edgeops.control.database import Database
from edgeops.control.groups.facts import facts_of
from edgeops.control.groups.query import parse
from edgeops.control.models import DeviceGroup
from edgeops.control.units import Subject, enrolled, meant

MAX_DEVICES = 10_000


def create(
    database: Database, name: str, *, query: str = "", devices: Sequence[str] = (), actor: str, now_s: float
) -> None:
    """Make a group: dynamic with a query, static with names.

    Raises:
        EdgeopsError: E-NAME; not a name. E-GROUP; taken, or neither or both of query and devices. E-QUERY; the query
            cannot be read. E-DEVICE-UNKNOWN; a named device is not enrolled.
    """
    check_name(name, "group")
    if bool(query) == bool(devices):
        raise EdgeopsError("E-GROUP", f"group {name} needs either a query or devices", "Give one of both.")
    if query:
        parse(query)
    with database.write() as session:
        if session.get(DeviceGroup, name) is not None:
            raise EdgeopsError("E-GROUP", f"there is a group {name} already", "Remove it, or choose another name.")
        if devices:
            meant(enrolled(session), devices)
        session.add(
            DeviceGroup(name=name, query=query, devices=sorted(set(devices)), created_at_s=now_s, created_by=actor)
        )
        audit.record(session, at_s=now_s, actor=actor, action="group.create", subject=f"group/{name}", query=query)


def remove(
    database: Database, name: str, *, actor: str, now_s: float, check: Callable[[Session], None] = lambda session: None
) -> None:
    """Remove a group; devices and rollouts stay as they are.

    Args:
        database: The registry.
        name: The group's name.
        actor: Who asks.
        now_s: The control plane's clock.
        check: Looks at the locked group first, in the same transaction; what it raises keeps the group.

    Raises:
        EdgeopsError: E-GROUP; there is none of this name.
    """
    with database.write() as session:
        row = group(session, name, lock=True)
        check(session)
        session.delete(row)
        audit.record(session, at_s=now_s, actor=actor, action="group.remove", subject=f"group/{name}")


def group(session: Session, name: str, *, lock: bool = False) -> DeviceGroup:
    """Return a group's row; `lock`: nobody else can change it until the transaction ends.

    Raises:
        EdgeopsError: E-GROUP; there is none of this name.
    """
    row = session.get(DeviceGroup, name, with_for_update=lock)
    if row is None:
        raise EdgeopsError("E-GROUP", f"there is no group {name[:80]!r}", "See `edgeops group list`.")
    return row


def members(session: Session, row: DeviceGroup, now_s: float) -> list[str]:
    """Return the names of the units that are in a group now, in order. Those of revoked devices are in none.

    A device that is named is in it with all units behind it.
    """
    everyone = enrolled(session)
    if not row.query:
        named = set(row.devices)
        return [one.name for one in everyone if one.name in named or one.unit.connection in named]
    return found(everyone, row.query, now_s)


def found(subjects: Sequence[Subject], query: str, now_s: float) -> list[str]:
    """Return the names of those units that a query finds.

    Raises:
        EdgeopsError: E-QUERY.
    """
    predicate = parse(query)
    facts = facts_of(subjects, now_s)
    return [subject.name for subject in subjects if predicate(facts[subject.name])]
