"""The device as holds see it: the application's lock, sensors, battery, memory and route, as the kernel tells."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from edgeops.agent.freezing import read_freeze
from edgeops.agent.holds import Conditions, HoldRules
from edgeops.agent.sensors import Sensors

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
        self._sensors = Sensors(root)
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
            temperature_c=max(self._sensors.zones_c().values(), default=None),
            battery_percent=self._sensors.battery_percent(),
            memory_available_mib=self._sensors.memory_mib("MemAvailable"),
            default_interface=self._sensors.default_interface(),
            frozen=read_freeze(self._state),
        )


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
