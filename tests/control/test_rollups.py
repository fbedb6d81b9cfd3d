"""Telemetry merged per profile and span of time: exact, bounded, and what rollouts are judged by."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from registry_fleet import MODEL, SpeakingDevice, add_devices, obey_all, open_registry, release
from sqlalchemy import func, select

from edgeops.contracts.rollouts import RolloutState
from edgeops.contracts.sketches import QuantileSketch
from edgeops.control.database import Database
from edgeops.control.ingest.rollups import DAY_S, HOUR_S, KEEP_S, MAX_CODES, QUARTER_S, Traffic, traffic
from edgeops.control.models import Rollout, RolloutProfile
from edgeops.control.retention import prune
from edgeops.control.rollout import manage
from edgeops.control.rollout.execute import advance
from edgeops.control.rollout.policy import Gates, Policy
from edgeops.control.rollout.selection import Selection
from edgeops.control.telemetry_models import TelemetryRollup

NOW = 1_800_000_000.0
PROFILE = "raspberry-pi-4"


def seen(database: Database, since_s: float = 0.0) -> dict[tuple[str, str], Traffic]:
    with database.read() as session:
        return traffic(session, MODEL, since_s=since_s)


def test_merged_windows_are_what_all_values_pooled_would_give(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    devices = [SpeakingDevice(database, name) for name in add_devices(database, 3, profiles=(PROFILE,))]
    draw, pooled = random.Random(1), []
    for minute in range(40):
        values = [draw.expovariate(0.1) for _ in range(20)]
        pooled += values
        devices[minute % 3].served("1.0.0", values, now_s=NOW + 60 * minute, errors={"E-INFER-VALUES": 2})
    found = seen(database)[PROFILE, "1.0.0"]
    whole = QuantileSketch.of(pooled)
    assert (found.requests, found.errors) == (800, {"E-INFER-VALUES": 80})
    assert (found.latency_ms.bins, found.latency_ms.zeros) == (whole.bins, whole.zeros)
    assert found.latency_ms.total == pytest.approx(whole.total)
    database.close()


def test_a_repeated_window_counts_once(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    device = SpeakingDevice(database, add_devices(database, 1, profiles=(PROFILE,))[0])
    for _ in range(3):
        device.served("1.0.0", [1.0, 2.0], now_s=NOW, errors={})
        device.seq -= 1
    assert seen(database)[PROFILE, "1.0.0"].requests == 2
    database.close()


def test_spans_grow_with_age_and_lose_nothing_until_the_last(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    device = SpeakingDevice(database, add_devices(database, 1, profiles=(PROFILE,))[0])
    for hour in range(30):
        device.served("1.0.0", [float(hour + 1)], now_s=NOW + HOUR_S * hour, errors={"E-TEST": 1})
    before = seen(database)[PROFILE, "1.0.0"]
    for later_s, spans in ((KEEP_S[QUARTER_S], {HOUR_S}), (KEEP_S[HOUR_S], {DAY_S})):
        prune(database, NOW + 31 * HOUR_S + later_s + DAY_S)
        with database.read() as session:
            assert set(session.scalars(select(TelemetryRollup.span_s))) == spans
        after = seen(database)[PROFILE, "1.0.0"]
        assert (after.requests, after.errors) == (before.requests, before.errors) == (30, {"E-TEST": 30})
        assert after.latency_ms.bins == before.latency_ms.bins
    prune(database, NOW + KEEP_S[DAY_S] + 3 * DAY_S)
    assert seen(database) == {}
    database.close()


def test_invented_error_codes_stay_bounded_and_counted(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    device = SpeakingDevice(database, add_devices(database, 1, profiles=(PROFILE,))[0])
    for part in range(4):
        device.served("1.0.0", [], now_s=NOW, errors={f"code-{part}-{number}\0": 1 for number in range(100)})
    found = seen(database)[PROFILE, "1.0.0"]
    assert len(found.errors) <= MAX_CODES
    assert found.failed == 400
    database.close()


def test_two_workers_that_begin_the_same_span_at_once_both_count(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    names = add_devices(database, 8, profiles=(PROFILE,))
    at_once = threading.Barrier(len(names))

    def speak(name: str) -> None:
        device = SpeakingDevice(database, name)
        at_once.wait(timeout=30)
        for _ in range(3):
            device.served("1.0.0", [1.0], now_s=NOW, errors={})

    threads = [threading.Thread(target=speak, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert seen(database)[PROFILE, "1.0.0"].requests == 24
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(TelemetryRollup)) == 1
    database.close()


@pytest.mark.parametrize("asked", [True, False], ids=["gate", "control: no gate"])
def test_a_release_that_fails_requests_is_stopped_in_its_first_group(registry_url: Path | str, asked: bool) -> None:
    """All devices confirm it: only what their clients got tells. Without the gate it reaches everyone."""
    database = open_registry(registry_url)
    names = add_devices(database, 6, profiles=(PROFILE,))
    gates = Gates(timeout_s=3600, error_rate_increase_max=0.02 if asked else None)
    policy = Policy(groups=("34%", "100%"), gates=gates)
    wanted = release("1.1.0", profiles=(PROFILE,))
    rollout = manage.create(database, wanted, policy, Selection(), actor="op", now_s=NOW, start=True)
    advance(database, rollout, NOW)
    first = obey_all(database, NOW)
    assert first == 2
    for name in names:
        device = SpeakingDevice(database, name, boot_id="boot-t")
        # What clients asked wrongly is on both sides, and is nobody's regression.
        device.served("1.0.0", [5.0] * 3_000, now_s=NOW + 5, errors={"E-INFER-REQUEST": 900})
        device.served("1.1.0", [5.0] * 3_000, now_s=NOW + 5, errors={"E-INFER-VALUES": 300})
    step = advance(database, rollout, NOW + 10)
    with database.read() as session:
        row = session.get_one(Rollout, rollout)
        if not asked:
            assert row.state == RolloutState.RUNNING
            assert step is not None
            assert step.published
        else:
            assert row.state == RolloutState.STOPPED
            assert "error_rate_increase_max 0.0909" in row.reason
            assert session.get_one(RolloutProfile, (rollout, PROFILE)).stopped_at_s == NOW + 10
    database.close()
