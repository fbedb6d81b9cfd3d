"""Reasons to wait with an update: the hours that a site allows, its application, and the state of the device. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Declared

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_HINT = 'Write it as "22:00-05:00" or "sat,sun 00:00-24:00".'


class HoldRules(Declared, frozen=True, kw_only=True):
    """Table `[holds]` of the agent's configuration; what is left out holds nothing.

    Args:
        time_zone: The site's, by its IANA name: windows are in local time.
        windows: When updates may happen: "22:00-05:00", "sat,sun 00:00-24:00"; the days are those of the beginning.
        busy_lock: File that the application locks (flock) while it must not be disturbed.
        busy_deadline_s: The application is disturbed all the same once an update has waited for this long.
        max_temperature_c: Hottest sensor of the board.
        min_battery_percent: Charge, while no mains are there.
        min_memory_mib: Memory that must be available.
        metered_interfaces: Nothing is downloaded while the default route goes through one of these.
    """

    time_zone: str = "UTC"
    windows: tuple[str, ...] = ()
    busy_lock: str = ""
    busy_deadline_s: float = 3600.0
    max_temperature_c: float | None = None
    min_battery_percent: float | None = None
    min_memory_mib: float | None = None
    metered_interfaces: tuple[str, ...] = ()


class Hold(NamedTuple):
    """Why to wait, and until when; `until_s` None: until it is over."""

    reason: str
    until_s: float | None = None


class Conditions(NamedTuple):
    """What a device is like now; None: it cannot tell, which holds nothing.

    Args:
        now_s: Time by the time rule.
        busy: The application holds its lock.
        temperature_c: Hottest sensor.
        battery_percent: Charge; None also while mains are there.
        memory_available_mib: Memory that could be had.
        default_interface: Network interface of the default route.
        frozen: A person at the device wants no change.
    """

    now_s: float
    busy: bool = False
    temperature_c: float | None = None
    battery_percent: float | None = None
    memory_available_mib: float | None = None
    default_interface: str | None = None
    frozen: Hold | None = None


class Window(NamedTuple):
    """Hours in which updates may happen: days of the beginning (0: Monday), minutes of the day; may pass midnight."""

    days: frozenset[int]
    start: int
    end: int


def decide(rules: HoldRules, seen: Conditions, *, waited_s: float, downloading: bool) -> Hold | None:
    """Return the first reason to wait, or None.

    Args:
        rules: What the site allows.
        seen: The device now.
        waited_s: How long this update has been kept waiting so far.
        downloading: It would be downloaded next: only a metered link matters. Otherwise it would be put to use next.

    Raises:
        EdgeopsError: E-CONFIG; the rules are not readable. `check` finds that out before.
    """
    if seen.frozen is not None and (seen.frozen.until_s is None or seen.now_s < seen.frozen.until_s):
        return seen.frozen
    if downloading:
        if seen.default_interface is not None and seen.default_interface in rules.metered_interfaces:
            return Hold(f"metered link {seen.default_interface}")
        return None
    opens_s = next_opening(rules, seen.now_s)
    if opens_s is not None:
        return Hold("outside the maintenance window", opens_s)
    if seen.busy and waited_s < rules.busy_deadline_s:
        return Hold("the application is busy", seen.now_s + rules.busy_deadline_s - waited_s)
    if _above(seen.temperature_c, rules.max_temperature_c):
        return Hold(f"temperature {seen.temperature_c:.0f} C, limit {rules.max_temperature_c:.0f} C")
    if _above(rules.min_battery_percent, seen.battery_percent):
        return Hold(f"battery {seen.battery_percent:.0f} %, needed {rules.min_battery_percent:.0f} %")
    if _above(rules.min_memory_mib, seen.memory_available_mib):
        return Hold(f"memory {seen.memory_available_mib:.0f} MiB available, needed {rules.min_memory_mib:.0f} MiB")
    return None


def next_opening(rules: HoldRules, now_s: float) -> float | None:
    """Return when the next maintenance window opens; None: one is open, or there are none.

    Raises:
        EdgeopsError: E-CONFIG; as `check`.
    """
    windows = [parse_window(text) for text in rules.windows]
    if not windows:
        return None
    zone = _zone(rules.time_zone)
    now = datetime.fromtimestamp(now_s, timezone.utc)
    today = now.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    openings = []
    for ahead in range(-1, 8):
        day = today + timedelta(days=ahead)
        for window in windows:
            if day.weekday() in window.days:
                length = timedelta(minutes=(window.end - window.start) % _DAY_MINUTES or _DAY_MINUTES)
                opens = day + timedelta(minutes=window.start)
                # Ends are reckoned in local time, too: on the night the clocks change it is the wall clock that counts.
                begin_s, end_s = (time.replace(tzinfo=zone).timestamp() for time in (opens, opens + length))
                if begin_s <= now_s < end_s:
                    return None
                if begin_s > now_s:
                    openings.append(begin_s)
    return min(openings)


def parse_window(text: str) -> Window:
    """Read "22:00-05:00" or "sat,sun 00:00-24:00".

    Raises:
        EdgeopsError: E-CONFIG; not of this form.
    """
    days, _, hours = text.strip().lower().rpartition(" ")
    try:
        start, end = (_minutes(part) for part in hours.split("-"))
        chosen = frozenset(_DAYS.index(day.strip()) for day in days.split(",")) if days else frozenset(range(7))
    except ValueError as error:
        raise EdgeopsError("E-CONFIG", f"holds.windows: {text!r} is no window", _HINT) from error
    return Window(chosen, start, end)


def check(rules: HoldRules) -> None:
    """Find out whether rules can be followed on this device.

    Raises:
        EdgeopsError: E-CONFIG; a window cannot be read, or the time zone is not known here.
    """
    if rules.windows or rules.time_zone != HoldRules().time_zone:  # a small system has no zones, and may need none
        _zone(rules.time_zone)
    for text in rules.windows:
        parse_window(text)


def _minutes(text: str) -> int:
    hours, minutes = text.split(":")
    total = int(hours) * 60 + int(minutes)
    if not (0 <= int(minutes) < 60 and 0 <= total <= _DAY_MINUTES):
        raise ValueError(text)
    return total


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise EdgeopsError(
            "E-CONFIG", f"holds.time_zone: {name!r} is not known here", "Install tzdata or choose another."
        ) from error


def _above(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit
