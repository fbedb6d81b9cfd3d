"""When groups may start: from a time on, and within a daily window of a time zone. Pure."""

from __future__ import annotations

import datetime
import re
import zoneinfo

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Declared

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_SEARCH_DAYS = 9
# The year 3000: later ones, and what is no time at all, cannot be told as dates in every time zone.
LATEST_S = 32_503_680_000.0


class Schedule(Declared, frozen=True, kw_only=True):
    """When a group may start; one that has started goes on.

    Args:
        not_before_s: Seconds since 1970; None: at once.
        window: `22:00-05:00`, wall time of `time_zone`; it may go over midnight. Empty: all day.
        days: Days on which the window begins; empty: every day.
        time_zone: IANA name.
    """

    not_before_s: float | None = None
    window: str = ""
    days: tuple[str, ...] = ()
    time_zone: str = "UTC"


def check_schedule(schedule: Schedule) -> None:
    """Refuse a schedule that names no time.

    Raises:
        EdgeopsError: E-ROLLOUT-INVALID; names what cannot be read.
    """
    _zone(schedule.time_zone)
    if schedule.not_before_s is not None and not 0 <= schedule.not_before_s <= LATEST_S:
        raise _invalid(f"not_before_s {schedule.not_before_s}", "Give seconds since 1970, up to the year 3000.")
    if schedule.window:
        _clock_times(schedule.window)
    for day in schedule.days:
        if day not in DAYS:
            raise _invalid(f"day {day!r}", f"Days: {', '.join(DAYS)}.")
    if schedule.days and not schedule.window:
        raise _invalid("days without a window", "Give a window too, such as 00:00-00:00 for the whole day.")


def opens_at(schedule: Schedule, now_s: float) -> float:
    """Return the first time, from now on, at which a group may start; now, if it may now.

    Raises:
        EdgeopsError: E-ROLLOUT-INVALID; the schedule cannot be read.
    """
    earliest_s = max(now_s, schedule.not_before_s or now_s)
    if not schedule.window:
        return earliest_s
    zone = _zone(schedule.time_zone)
    opens, closes = _clock_times(schedule.window)
    first = datetime.datetime.fromtimestamp(earliest_s, zone).date() - datetime.timedelta(days=1)
    for number in range(_SEARCH_DAYS):
        day = first + datetime.timedelta(days=number)
        if schedule.days and DAYS[day.weekday()] not in schedule.days:
            continue
        # Wall times: where clocks go forward or back, the window is an hour shorter or longer, as its reader expects.
        begin = datetime.datetime.combine(day, opens, zone)
        end = datetime.datetime.combine(day + datetime.timedelta(days=closes <= opens), closes, zone)
        if end.timestamp() > earliest_s:
            return max(earliest_s, begin.timestamp())
    raise _invalid(f"no window within {_SEARCH_DAYS} days", "Give a window that opens.")


def _clock_times(window: str) -> tuple[datetime.time, datetime.time]:
    match = _WINDOW.fullmatch(window)
    if match is None:
        raise _invalid(f"window {window!r}", "Write it as 22:00-05:00.")
    from_hour, from_minute, to_hour, to_minute = (int(part) for part in match.groups())
    return datetime.time(from_hour, from_minute), datetime.time(to_hour, to_minute)


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise _invalid(f"time zone {name!r}", "Give an IANA name such as Europe/Berlin.") from None


def _invalid(what: str, next_step: str) -> EdgeopsError:
    return EdgeopsError("E-ROLLOUT-INVALID", f"the schedule: {what} cannot be used", next_step)
