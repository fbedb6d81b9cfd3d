"""Gives devices, and units behind them, labels: what an operator calls them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy.orm import Session

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.topics import SELF_UNIT
from edgeops.control import audit
from edgeops.control.database import Database
from edgeops.control.enrolment import check_labels
from edgeops.control.models import Device, Unit
from edgeops.control.units import split_name


def set_labels(
    database: Database,
    name: str,
    changes: Mapping[str, str | None],
    *,
    actor: str,
    now_s: float,
    check: Callable[[Session], None] = lambda session: None,
) -> None:
    """Set or remove labels; what is not named stays. Rollouts that were created already keep their devices.

    Args:
        database: The registry.
        name: A device, or `gateway/unit`: its labels come on top of its gateway's.
        changes: Key → value; None: it goes.
        actor: Who asks.
        now_s: The control plane's clock.
        check: Looks at the locked device first, in the same transaction; what it raises keeps the labels.

    Raises:
        EdgeopsError: E-DEVICE-UNKNOWN. E-NAME or E-CONFIG; a key or value is no name, or there are too many.
    """
    connection, unit = split_name(name)
    with database.write() as session:
        device = session.get(Device, connection, with_for_update=True)
        if device is None:
            raise _unknown(name)
        check(session)
        row: Device | Unit | None = device
        if unit != SELF_UNIT:
            row = session.get(Unit, (connection, unit), with_for_update=True)
        if row is None:
            raise _unknown(name)
        labels = {**row.labels, **changes}
        kept = {key: value for key, value in sorted(labels.items()) if value is not None}
        check_labels(kept)
        row.labels = kept
        audit.record(
            session, at_s=now_s, actor=actor, action="device.label", subject=f"device/{name}", labels=dict(changes)
        )


def _unknown(name: str) -> EdgeopsError:
    return EdgeopsError("E-DEVICE-UNKNOWN", f"there is no device {name[:80]!r}", "See `edgeops device list`.")
