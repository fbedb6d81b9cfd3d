"""The device as holds see it: the application's lock, sensors, battery, memory and route, as the kernel tells."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edgeops.agent.freezing import read_freeze
from edgeops.agent.holds import Conditions, HoldRules

log = logging.getLogger(__name__)


class DeviceProbe:
    """Reads the conditions of this device.

    Args:
        rules: Say which lock is the application's.
        now: The time rule, seconds.
        state: The state directory, where a person may have frozen the device.
        root: Where `sys` and `proc` lie.
    """

    def __init__(self, rules: HoldRules, now: Callable[[], float], state: Path, root: Path = Path("/")) -> None:
        self._rules, self._now, self._state = rules, now, state
        self._sys, self._proc = root / "sys", root / "proc"
        self._busy_until_s = -math.inf

    def keep_undisturbed(self, for_s: float) -> None:
        """Take in that the application is busy for so long from now on; 0: it is no more."""
        self._busy_until_s = time.monotonic() + for_s

    def __call__(self) -> Conditions:
        """Return what the device is like now."""
        return Conditions(
            now_s=self._now(),
            busy=time.monotonic() < self._busy_until_s
            or (bool(self._rules.busy_lock) and _is_held(Path(self._rules.busy_lock))),
            temperature_c=max(
                (value / 1000 for value in _numbers(self._sys.glob("class/thermal/thermal_zone*/temp"))), default=None
            ),
            battery_percent=self._battery_percent(),
            memory_available_mib=self._memory_available_mib(),
            default_interface=self._default_interface(),
            frozen=read_freeze(self._state),
        )

    def _battery_percent(self) -> float | None:
        """Return the charge of the emptiest battery; None: there is none, or mains are there."""
        supplies = list(self._sys.glob("class/power_supply/*"))
        mains = (supply / "online" for supply in supplies if _text(supply / "type") in ("Mains", "USB"))
        if any(value > 0 for value in _numbers(mains)):
            return None
        batteries = (supply / "capacity" for supply in supplies if _text(supply / "type") == "Battery")
        return min(_numbers(batteries), default=None)

    def _memory_available_mib(self) -> float | None:
        for line in _text(self._proc / "meminfo").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 1024
        return None

    def _default_interface(self) -> str | None:
        """Return the interface of the default route with the lowest metric."""
        rows = [line.split() for line in _text(self._proc / "net" / "route").splitlines()[1:]]
        routes = [(int(row[6]), row[0]) for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"]
        return min(routes)[1] if routes else None


def _is_held(path: Path) -> bool:
    """Say whether another process holds a lock on a file. One that cannot be opened is nobody's."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        log.warning("%s cannot be locked: %s", path, error)
        return False
    finally:
        os.close(fd)
    return False


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _numbers(paths: Iterator[Path]) -> Iterator[float]:
    for path in paths:
        try:
            yield float(_text(path))
        except ValueError:
            continue  # a sensor that is switched off
