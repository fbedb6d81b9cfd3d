"""When groups may start: wall time of a place, over midnight and where clocks change."""

from __future__ import annotations

import datetime
import math
import zoneinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeops.contracts.errors import EdgeopsError
from edgeops.control.rollout.schedule import DAYS, LATEST_S, Schedule, check_schedule, opens_at

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def at(text: str, zone: datetime.tzinfo = BERLIN) -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


@pytest.mark.parametrize(
    ("schedule", "now", "opens"),
    [
        (Schedule(), "2026-03-02T12:00", "2026-03-02T12:00"),
        (Schedule(not_before_s=at("2026-03-02T15:00")), "2026-03-02T12:00", "2026-03-02T15:00"),
        (Schedule(not_before_s=at("2026-03-01T15:00")), "2026-03-02T12:00", "2026-03-02T12:00"),
        (Schedule(window="22:00-05:00", time_zone="Europe/Berlin"), "2026-03-02T12:00", "2026-03-02T22:00"),
        (Schedule(window="22:00-05:00", time_zone="Europe/Berlin"), "2026-03-02T23:30", "2026-03-02T23:30"),
        (Schedule(window="22:00-05:00", time_zone="Europe/Berlin"), "2026-03-03T04:59", "2026-03-03T04:59"),
        (Schedule(window="22:00-05:00", time_zone="Europe/Berlin"), "2026-03-03T05:00", "2026-03-03T22:00"),
        (Schedule(window="09:00-17:00", time_zone="Europe/Berlin"), "2026-03-02T08:00", "2026-03-02T09:00"),
        # Friday's window goes on into Saturday; on Saturday none begins.
        (
            Schedule(window="22:00-05:00", days=("fri",), time_zone="Europe/Berlin"),
            "2026-03-07T03:00",
            "2026-03-07T03:00",
        ),
        (
            Schedule(window="22:00-05:00", days=("fri",), time_zone="Europe/Berlin"),
            "2026-03-07T06:00",
            "2026-03-13T22:00",
        ),
        (
            Schedule(not_before_s=at("2026-03-04T23:00"), window="22:00-23:30", time_zone="Europe/Berlin"),
            "2026-03-02T12:00",
            "2026-03-04T23:00",
        ),
        # Clocks go forward on 2026-03-29 at 02:00: the window is an hour shorter, not shifted.
        (Schedule(window="01:00-06:00", time_zone="Europe/Berlin"), "2026-03-28T12:00", "2026-03-29T01:00"),
        (Schedule(window="01:00-06:00", time_zone="Europe/Berlin"), "2026-03-29T05:59", "2026-03-29T05:59"),
        (Schedule(window="01:00-06:00", time_zone="Europe/Berlin"), "2026-03-29T06:00", "2026-03-30T01:00"),
    ],
)
def test_when_a_group_may_start(schedule: Schedule, now: str, opens: str) -> None:
    check_schedule(schedule)
    assert opens_at(schedule, at(now)) == at(opens)


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(window="22-5"),
        Schedule(window="25:00-05:00"),
        Schedule(window="22:00-05:00", days=("someday",)),
        Schedule(days=("mon",)),
        Schedule(window="22:00-05:00", time_zone="Mars/Base"),
        Schedule(window="22:00-05:00", time_zone="../../etc/passwd"),
        Schedule(not_before_s=1e300),
        Schedule(not_before_s=253_402_300_800.0),
        Schedule(not_before_s=-1.0),
        Schedule(not_before_s=math.nan),
        Schedule(not_before_s=math.inf),
    ],
)
def test_a_schedule_that_names_no_time_is_refused(schedule: Schedule) -> None:
    with pytest.raises(EdgeopsError) as refused:
        check_schedule(schedule)
    assert refused.value.code == "E-ROLLOUT-INVALID"


def test_the_last_time_that_is_taken_can_be_told_everywhere() -> None:
    """In the zones that are furthest ahead and behind too, and with a window that begins a week later."""
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
        schedule = Schedule(not_before_s=LATEST_S, window="22:00-05:00", days=("sat",), time_zone=zone)
        check_schedule(schedule)
        assert LATEST_S <= opens_at(schedule, 0.0) <= LATEST_S + 9 * 86400


@given(
    now_s=st.floats(0, 4e9),
    start=st.times(),
    end=st.times(),
    days=st.sets(st.sampled_from(DAYS)),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia", "Australia/Lord_Howe"]),
)
def test_it_always_opens_within_nine_days_and_stays_open_once_it_says_now(
    now_s: float, start: datetime.time, end: datetime.time, days: set[str], zone: str
) -> None:
    schedule = Schedule(window=f"{start:%H:%M}-{end:%H:%M}", days=tuple(days), time_zone=zone)
    opens_s = opens_at(schedule, now_s)
    assert now_s <= opens_s <= now_s + 9 * 86400
    assert opens_at(schedule, opens_s) == opens_s
