"""Telemetry merged per span of time: of all devices of a profile by 15 minutes, of each device by the hour; later by
larger spans.

Merging is exact, so a sum over any spans is what the devices' own windows would have given.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple, cast

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from edgeops.contracts.drift import histograms_of
from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.telemetry import ModelWindow, ShadowFigures
from edgeops.contracts.wire import encode
from edgeops.control.telemetry_models import ArmRollup, DeviceRollup, TelemetryRollup

QUARTER_S, HOUR_S, DAY_S = 900, 3600, 86400
# A span is kept for so long; then it becomes part of the next larger one, and the largest is removed.
KEEP_S = {QUARTER_S: 2 * DAY_S, HOUR_S: 60 * DAY_S, DAY_S: 730 * DAY_S}
# Rows that one transaction makes larger spans of; the rest follows.
MAX_ENLARGED = 20_000
MAX_CODES = 64
OTHER_CODES = "other"
# What a device may say of its values: beyond this it is not counted.
MAX_HISTOGRAMS, MAX_BINS = 64, 512
MAX_SHADOW_COUNT = 1_000_000_000
_COLDEST_C, _HOTTEST_C = -90.0, 250.0
_SHADOW = msgspec.json.Decoder(ShadowFigures)
_SKETCH = msgspec.json.Decoder(QuantileSketch)


class Traffic(NamedTuple):
    """What requests came to.

    Args:
        requests: How many were answered.
        errors: Error code → how many failed.
        latency_ms: Of those that were answered.
        sampled: Requests whose values are in the histograms.
        histograms: What values looked like: counts on the bins of the bundle's reference, by `histograms_of`.
        temperature_max_c: Hottest that a device said it was meanwhile; None: none did.
        shadow: How it compared with what served, where it ran beside that; None: it did not.
    """

    requests: int = 0
    errors: dict[str, int] = {}
    latency_ms: QuantileSketch = QuantileSketch()
    histograms: Mapping[str, tuple[int, ...]] = {}
    temperature_max_c: float | None = None
    shadow: ShadowFigures | None = None
    sampled: int = 0

    @property
    def failed(self) -> int:
        """Requests that failed."""
        return sum(self.errors.values())

    def plus(self, other: Traffic) -> Traffic:
        """Return both; codes beyond the 64 most frequent become one."""
        shadow = self.shadow.merge(other.shadow) if self.shadow and other.shadow else self.shadow or other.shadow
        hottest = [one for one in (self.temperature_max_c, other.temperature_max_c) if one is not None]
        return Traffic(
            self.requests + other.requests,
            _codes(self.errors, other.errors),
            self.latency_ms.merge(other.latency_ms),
            _added(self.histograms, other.histograms),
            max(hottest, default=None),
            shadow and msgspec.structs.replace(shadow, errors=_codes(shadow.errors)),
            self.sampled + other.sampled,
        )


def _codes(*parts: Mapping[str, int]) -> dict[str, int]:
    """Return the sums; of more than 64 codes those that are not the most frequent become one."""
    errors: dict[str, int] = {}
    for part in parts:
        for code, count in part.items():
            errors[code] = errors.get(code, 0) + count
    if len(errors) <= MAX_CODES:
        return errors
    frequent = sorted(errors, key=lambda code: (code == OTHER_CODES, -errors[code], code))[: MAX_CODES - 1]
    kept = {code: errors[code] for code in frequent if code != OTHER_CODES}
    return {**kept, OTHER_CODES: sum(errors.values()) - sum(kept.values())}


def traffic_of(window: ModelWindow, temperature_c: float | None = None) -> Traffic:
    """Return one window's traffic; its words as any database can hold them, and nothing that cannot be."""
    usable = {
        name.replace("\0", "")[:128]: counts
        for name, counts in histograms_of(window)
        if 0 < len(counts) <= MAX_BINS and min(counts) >= 0 and max(counts) < 1 << 53
    }
    hot = temperature_c is not None and _COLDEST_C < temperature_c < _HOTTEST_C
    traffic = Traffic(
        window.requests,
        {},
        window.latency_ms,
        _added(usable, {}),
        temperature_c if hot else None,
        _usable(window.shadow),
        min(window.counted, window.requests) if usable else 0,
    )
    return traffic.plus(Traffic(errors=_readable(window.errors)))


def _usable(shadow: ShadowFigures | None) -> ShadowFigures | None:
    """Return what a device says of a shadow, if it can be."""
    if shadow is None or not 0 <= shadow.agreed <= shadow.compared <= MAX_SHADOW_COUNT:
        return None
    if not all(0 <= count <= MAX_SHADOW_COUNT for count in (shadow.skipped, *shadow.errors.values())):
        return None
    if not (shadow.distance.is_sound(MAX_SHADOW_COUNT) and shadow.latency_ms.is_sound(MAX_SHADOW_COUNT)):
        return None
    return msgspec.structs.replace(shadow, errors=_codes(_readable(shadow.errors)))


def _readable(errors: Mapping[str, int]) -> dict[str, int]:
    """Return counts by codes as any database can hold them."""
    found: dict[str, int] = {}
    for code, count in errors.items():
        short = code.replace("\0", "")[:64]
        found[short] = found.get(short, 0) + count
    return found


Spans = type[TelemetryRollup] | type[DeviceRollup]
Table = Spans | type[ArmRollup]
# What beside a span makes a row, in the order of its key.
_NAMES: dict[Spans, tuple[str, ...]] = {
    TelemetryRollup: ("model", "release", "profile"),
    DeviceRollup: ("connection", "unit", "model", "release"),
}
_KEYS: dict[Table, tuple[str, ...]] = {
    **{table: (*names, "span_s", "start_s") for table, names in _NAMES.items()},
    ArmRollup: ("rollout_id", "profile", "arm"),
}
Key = tuple[str | int, ...]


class Rollups:
    """Sums a batch up, and adds it to the tables' rows in one fixed order: two workers cannot block each other.

    Args:
        now_s: The control plane's clock; what arrives now belongs to the span of now, whatever a device's clock says.
    """

    def __init__(self, now_s: float) -> None:
        self._start_s = int(now_s) // QUARTER_S * QUARTER_S
        self._new: dict[Key, Traffic] = {}

    def add(self, profile: str, model: str, release: str, traffic: Traffic) -> None:
        """Take in what one device said of one model."""
        key = (model, release, profile, QUARTER_S, self._start_s)
        self._new[key] = self._new.get(key, Traffic()).plus(traffic)

    def write(self, session: Session) -> None:
        """Add the sums to their rows."""
        add_all(session, TelemetryRollup, self._new)


def traffic(
    session: Session, model: str, *, since_s: float, until_s: float | None = None
) -> dict[tuple[str, str], Traffic]:
    """Return what devices said of a model since a time, by profile and release. Whole spans are counted.

    With `until_s` a span that ends later is left out, so that spans of times that follow each other count once.
    """
    found: dict[tuple[str, str], Traffic] = {}
    rows = select(TelemetryRollup).where(
        TelemetryRollup.model == model, TelemetryRollup.start_s + TelemetryRollup.span_s > since_s
    )
    if until_s is not None:
        rows = rows.where(TelemetryRollup.start_s + TelemetryRollup.span_s <= until_s)
    for row in session.scalars(rows):
        key = (row.profile, row.release)
        found[key] = found.get(key, Traffic()).plus(traffic_in(row))
    return found


def all_traffic(session: Session) -> dict[tuple[str, str, str], Traffic]:
    """Return all that devices said, by model, release and profile."""
    found: dict[tuple[str, str, str], Traffic] = {}
    for row in session.scalars(select(TelemetryRollup)):
        key = (row.model, row.release, row.profile)
        found[key] = found.get(key, Traffic()).plus(traffic_in(row))
    return found


def compact(session: Session, now_s: float) -> int:
    """Make larger spans of those that are past their time, and remove what is older than all.

    Returns:
        How many rows became part of a larger span; as many as `MAX_ENLARGED` of a kind: there may be more.
    """
    enlarged = 0
    for table, spans in ((TelemetryRollup, (QUARTER_S, HOUR_S, DAY_S)), (DeviceRollup, (HOUR_S, DAY_S))):
        for span_s, larger_s in itertools.pairwise(spans):
            enlarged = max(enlarged, _enlarge(session, table, span_s, larger_s, now_s))
        too_old = int(now_s) - KEEP_S[DAY_S]
        session.execute(delete(table).where(table.span_s == DAY_S, table.start_s < too_old))
    return enlarged


def _enlarge(session: Session, table: Spans, span_s: int, larger_s: int, now_s: float) -> int:
    # Only whole larger spans: one that is half made would be counted while it changes.
    before_s = (int(now_s) - KEEP_S[span_s]) // larger_s * larger_s
    due = select(table).where(table.span_s == span_s, table.start_s < before_s).limit(MAX_ENLARGED)
    sums: dict[Key, Traffic] = {}
    rows = cast("Sequence[TelemetryRollup | DeviceRollup]", session.scalars(due.with_for_update()).all())
    for row in rows:
        names = (getattr(row, name) for name in _NAMES[table])
        key = (*names, larger_s, row.start_s // larger_s * larger_s)
        sums[key] = sums.get(key, Traffic()).plus(traffic_in(row))
        session.delete(row)
    session.flush()
    add_all(session, table, sums)
    return len(rows)


def add_all(session: Session, table: Table, sums: Mapping[Key, Traffic]) -> None:
    """Add sums to their rows, in one fixed order: two workers cannot block each other."""
    for key in sorted(sums):
        _add(session, table, key, sums[key])


def _add(session: Session, table: Table, key: Key, traffic: Traffic) -> None:
    row = session.get(table, key, with_for_update=True)
    if row is None:
        # Another worker may make the same row now: whoever is second takes the first one's.
        insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
        nothing = {"requests": 0, "sampled": 0, "errors": {}, "latency_ms": encode(QuantileSketch()), "histograms": {}}
        values = dict(zip(_KEYS[table], key, strict=True)) | nothing
        session.execute(insert(table).values(values).on_conflict_do_nothing())
        row = session.get_one(table, key, with_for_update=True)
    assert isinstance(row, (TelemetryRollup, DeviceRollup, ArmRollup))
    merged = traffic_in(row).plus(traffic)
    row.requests, row.errors, row.latency_ms = merged.requests, merged.errors, encode(merged.latency_ms)
    row.sampled = merged.sampled
    row.histograms = {name: list(counts) for name, counts in merged.histograms.items()}
    row.temperature_max_c = merged.temperature_max_c
    row.shadow = None if merged.shadow is None else encode(merged.shadow)


def traffic_in(row: TelemetryRollup | DeviceRollup | ArmRollup) -> Traffic:
    """Return what a row has summed up."""
    return Traffic(
        row.requests,
        dict(row.errors),
        _SKETCH.decode(row.latency_ms),
        {name: tuple(counts) for name, counts in row.histograms.items()},
        row.temperature_max_c,
        None if row.shadow is None else _SHADOW.decode(row.shadow),
        row.requests if row.sampled is None else row.sampled,
    )


def _added(first: Mapping[str, tuple[int, ...]], second: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the sums, of the first names by order of the alphabet; on different bins the shorter one is filled up."""
    names = sorted(first.keys() | second.keys())[:MAX_HISTOGRAMS]
    pairs = ((name, zip_longest(first.get(name, ()), second.get(name, ()), fillvalue=0)) for name in names)
    return {name: tuple(one + other for one, other in pair) for name, pair in pairs}
