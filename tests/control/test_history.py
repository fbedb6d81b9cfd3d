"""Telemetry of chosen devices over time: exact, whether it is read from windows, or from sums of hours and days."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from registry_fleet import MODEL, SpeakingDevice, add_devices, open_registry
from sqlalchemy import func, select, update

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.sketches import QuantileSketch
from edgeops.control.database import Database
from edgeops.control.ingest import history
from edgeops.control.ingest.history import FRESH_S, Asked, Place, merged
from edgeops.control.ingest.rollups import DAY_S, HOUR_S, KEEP_S, Traffic
from edgeops.control.retention import prune
from edgeops.control.telemetry_models import DeviceRollup, TelemetryWindow

NOW = 1_800_000_000.0
PROFILES = ("raspberry-pi-4", "intel-nuc")


def spoken(database: Database, hours: int) -> dict[str, list[tuple[float, list[float]]]]:
    """Have four devices tell of a window every half hour; return device → time → latencies."""
    draw = random.Random(3)
    names = add_devices(database, 4, profiles=PROFILES)
    devices = [SpeakingDevice(database, name) for name in names]
    said: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in names}
    for half in range(2 * hours):
        at_s = NOW + 1800 * half
        for device in devices:
            values = [draw.expovariate(0.1) for _ in range(5)]
            device.served("1.0.0", values, now_s=at_s, errors={"E-INFER-VALUES": 1}, confidence=(half, 1))
            said[device.name].append((at_s, values))
    return said


def ask(database: Database, **asked: object) -> dict[Place, Traffic]:
    whole = {"model": MODEL, "since_s": 0.0, "until_s": NOW + 4000 * DAY_S}
    with database.read() as session:
        if "devices" in asked:
            asked = {**asked, "units": {(name, "self") for name in asked["devices"]}}  # type: ignore[attr-defined]
            del asked["devices"]
        return merged(session, Asked(**{**whole, **asked}))  # type: ignore[arg-type]


def test_a_group_of_devices_is_the_pool_of_their_values_at_every_age(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    said = spoken(database, hours=6)
    chosen = sorted(said)[:3]
    pooled = QuantileSketch.of([value for name in chosen for _, values in said[name] for value in values])
    counts = []
    # From windows, from sums of hours, from sums of days.
    for now_s in (NOW + 6 * HOUR_S, NOW + FRESH_S + 7 * HOUR_S, NOW + KEEP_S[HOUR_S] + 2 * DAY_S):
        prune(database, now_s)
        found = ask(database, devices=chosen)
        assert {place.release for place in found} == {"1.0.0"}
        total = Traffic()
        for traffic in found.values():
            total = total.plus(traffic)
        assert (total.requests, total.errors) == (180, {"E-INFER-VALUES": 36})
        assert (total.latency_ms.bins, total.latency_ms.zeros) == (pooled.bins, pooled.zeros)
        assert total.histograms["confidence"] == (3 * sum(range(12)), 36)
        with database.read() as session:
            fresh = session.scalar(select(func.count()).where(TelemetryWindow.summed.is_(False)))
            rows = session.execute(select(DeviceRollup.span_s, func.count()).group_by(DeviceRollup.span_s)).all()
        counts.append((fresh, {row[0]: row[1] for row in rows}))
    assert counts[0] == (48, {})
    assert counts[1] == (0, {HOUR_S: 24})
    assert set(counts[2][1]) == {DAY_S}
    prune(database, NOW + KEEP_S[DAY_S] + 400 * DAY_S)
    assert ask(database, devices=chosen) == {}
    database.close()


def test_hours_and_profiles_are_told_apart(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    said = spoken(database, hours=3)
    everyone = ask(database, devices=said, step_s=HOUR_S)
    assert len(everyone) == 3 * len(PROFILES)
    assert {traffic.requests for traffic in everyone.values()} == {2 * 2 * 5}
    of_profiles = ask(database, step_s=HOUR_S)
    assert everyone.keys() == of_profiles.keys()
    for place, traffic in everyone.items():
        other = of_profiles[place]
        assert (traffic.requests, traffic.errors) == (other.requests, other.errors)
        assert traffic.latency_ms.bins == other.latency_ms.bins
        assert traffic.histograms == other.histograms
    one = ask(database, devices=said, profile=PROFILES[0], since_s=NOW + HOUR_S, until_s=NOW + 2 * HOUR_S)
    assert [(place.profile, traffic.requests) for place, traffic in one.items()] == [(PROFILES[0], 20)]
    assert ask(database, devices=said, release="9.9.9") == {}
    database.close()


def test_a_window_is_summed_once_however_often_and_by_how_many(
    registry_url: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_registry(registry_url)
    said = spoken(database, hours=2)
    monkeypatch.setattr(history, "MAX_SUMMED", 5)
    for _ in range(3):
        prune(database, NOW + FRESH_S + 3 * HOUR_S)
    assert sum(traffic.requests for traffic in ask(database, devices=said).values()) == 4 * 4 * 5
    # A window that comes once more is known as long as windows are kept.
    device = SpeakingDevice(database, sorted(said)[0])
    device.served("1.0.0", [1.0], now_s=NOW + FRESH_S + 3 * HOUR_S, errors={})
    assert sum(traffic.requests for traffic in ask(database, devices=said).values()) == 4 * 4 * 5
    database.close()


def test_without_the_mark_windows_would_count_twice(registry_url: Path | str) -> None:
    """Negative control."""
    database = open_registry(registry_url)
    said = spoken(database, hours=2)
    prune(database, NOW + FRESH_S + 3 * HOUR_S)
    with database.write() as session:
        session.execute(update(TelemetryWindow).values(summed=False))
    assert sum(traffic.requests for traffic in ask(database, devices=said).values()) == 2 * 4 * 4 * 5
    database.close()


def test_too_much_is_refused_with_what_would_do(registry_url: Path | str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = open_registry(registry_url)
    said = spoken(database, hours=1)
    monkeypatch.setattr(history, "MAX_WINDOWS", 7)
    with pytest.raises(EdgeopsError, match="8 windows in that time, more than 7"):
        ask(database, devices=said)
    assert ask(database), "a profile's sums are always there"
    database.close()
