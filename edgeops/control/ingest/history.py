"""Telemetry of chosen devices over time: their windows of the last days, and before that their sums.

A window is in a sum or is counted by itself, never both: `sum_up` moves whole hours in one transaction.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple, TypeVar

from sqlalchemy import ColumnElement, func, select, tuple_, update
from sqlalchemy.orm import Session

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.telemetry import Telemetry
from edgeops.contracts.wire import decode
from edgeops.control.ingest.rollups import DAY_S, HOUR_S, Key, Traffic, add_all, traffic_in, traffic_of
from edgeops.control.models import Unit
from edgeops.control.telemetry_models import DeviceRollup, TelemetryRollup, TelemetryWindow

T = TypeVar("T")

# Windows are counted one by one for so long; they stay longer, to know repeated ones.
FRESH_S = 2 * DAY_S
MAX_SUMMED = 5_000
MAX_WINDOWS = 100_000
_CHUNK = 500


class Asked(NamedTuple):
    """What somebody wants to know of a model.

    Args:
        model: The model.
        since_s: From then on, by the control plane's clock; whole spans are counted.
        until_s: Before then.
        release: Only this one; None: all.
        profile: Only this one; None: all.
        units: Only these, by connection and unit; None: all.
        step_s: Length of the spans to tell apart; None: one sum.
    """

    model: str
    since_s: float
    until_s: float
    release: str | None = None
    profile: str | None = None
    units: Collection[tuple[str, str]] | None = None
    step_s: int | None = None


class Place(NamedTuple):
    """What a sum is of: release, profile, and the start of its span (0 without a step)."""

    release: str
    profile: str
    start_s: int


def merged(session: Session, asked: Asked) -> dict[Place, Traffic]:
    """Return what devices said, merged.

    Raises:
        EdgeopsError: E-QUERY; more windows than one answer may read.
    """
    found: dict[Place, Traffic] = {}
    for release, profile, at_s, traffic in _parts(session, asked):
        if asked.release not in (None, release) or asked.profile not in (None, profile):
            continue
        place = Place(release, profile, at_s // asked.step_s * asked.step_s if asked.step_s else 0)
        found[place] = found.get(place, Traffic()).plus(traffic)
    return dict(sorted(found.items()))


def sum_up(session: Session, now_s: float) -> int:
    """Sum windows up that are not fresh any more, a bounded number of them; return how many."""
    before_s = (int(now_s) - FRESH_S) // HOUR_S * HOUR_S
    key = (TelemetryWindow.connection, TelemetryWindow.unit, TelemetryWindow.boot_id, TelemetryWindow.seq)
    due = (
        select(TelemetryWindow)
        .where(TelemetryWindow.summed.is_(False), TelemetryWindow.received_at_s < before_s)
        .order_by(TelemetryWindow.received_at_s, *key)
        .limit(MAX_SUMMED)
        .with_for_update(skip_locked=True)
    )
    rows = session.scalars(due).all()
    sums: dict[Key, Traffic] = {}
    for row in rows:
        for model, release, traffic in _said(row):
            start_s = int(row.received_at_s) // HOUR_S * HOUR_S
            place = (row.connection, row.unit, model, release, HOUR_S, start_s)
            sums[place] = sums.get(place, Traffic()).plus(traffic)
    for chunk in _batched(rows, _CHUNK):
        keys = [(row.connection, row.unit, row.boot_id, row.seq) for row in chunk]
        session.execute(update(TelemetryWindow).where(tuple_(*key).in_(keys)).values(summed=True))
    add_all(session, DeviceRollup, sums)
    return len(rows)


def _parts(session: Session, asked: Asked) -> Iterator[tuple[str, str, int, Traffic]]:
    """Yield release, profile, time and traffic of all that was asked for."""
    if asked.units is None:
        rollup = TelemetryRollup
        rows = select(rollup).where(
            rollup.model == asked.model,
            rollup.start_s + rollup.span_s > asked.since_s,
            rollup.start_s < asked.until_s,
        )
        for row in session.scalars(rows):
            yield row.release, row.profile, row.start_s, traffic_in(row)
        return
    _check_number(session, asked)
    for names in _batched(sorted(asked.units), _CHUNK):
        sums = (
            select(DeviceRollup, Unit.profile)
            .join(Unit, (Unit.connection == DeviceRollup.connection) & (Unit.unit == DeviceRollup.unit))
            .where(
                tuple_(DeviceRollup.connection, DeviceRollup.unit).in_(names),
                DeviceRollup.model == asked.model,
                DeviceRollup.start_s + DeviceRollup.span_s > asked.since_s,
                DeviceRollup.start_s < asked.until_s,
            )
        )
        for total, profile in session.execute(sums):
            yield total.release, profile, total.start_s, traffic_in(total)
        windows = (
            select(TelemetryWindow, Unit.profile)
            .join(Unit, (Unit.connection == TelemetryWindow.connection) & (Unit.unit == TelemetryWindow.unit))
            .where(*_fresh(asked, names))
        )
        for window, profile in session.execute(windows):
            for model, release, traffic in _said(window):
                if model == asked.model:
                    yield release, profile, int(window.received_at_s), traffic


def _fresh(asked: Asked, names: Collection[tuple[str, str]]) -> tuple[ColumnElement[bool], ...]:
    return (
        tuple_(TelemetryWindow.connection, TelemetryWindow.unit).in_(names),
        TelemetryWindow.summed.is_(False),
        TelemetryWindow.received_at_s >= asked.since_s,
        TelemetryWindow.received_at_s < asked.until_s,
    )


def _check_number(session: Session, asked: Asked) -> None:
    number = 0
    for names in _batched(sorted(asked.units or ()), _CHUNK):
        count = select(func.count()).select_from(TelemetryWindow).where(*_fresh(asked, names))
        number += session.scalars(count).one()
    if number > MAX_WINDOWS:
        raise EdgeopsError(
            "E-QUERY",
            f"these devices sent {number} windows in that time, more than {MAX_WINDOWS}",
            "Ask for fewer devices or less time, or for a profile.",
        )


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield all items, so many at a time."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _said(row: TelemetryWindow) -> Iterator[tuple[str, str, Traffic]]:
    """Yield model, release and traffic of what a window says."""
    telemetry = decode(row.payload, Telemetry, what="telemetry window")
    temperature_c = telemetry.device.temperature_c if telemetry.device is not None else None
    for window in telemetry.models:
        yield window.model, window.release.replace("\0", "")[:64], traffic_of(window, temperature_c)
