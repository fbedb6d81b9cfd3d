"""The device's own figures of a telemetry window: extremes of many looks, so that a hot minute is not overlooked."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from edgeops.agent.sensors import Sensors
from edgeops.contracts.telemetry import DeviceWindow, LinkFigures

LOOK_EVERY_S = 60.0
# A device whose models are not asked says how it is this often, and at once when something begins to hold it back.
QUIET_EVERY_S = 3600.0
MAX_ZONES = 32
_MIB = 1 << 20


class DeviceMeter:
    """Looks at the device now and then, and sums the looks of a window up.

    Args:
        sensors: Reads the board.
        state: A path on the disk that is told of.
        connects: Returns how often the broker was connected to.
        clock: Seconds that never go back.
    """

    def __init__(
        self, sensors: Sensors, state: Path, connects: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sensors, self._state, self._connects, self._clock = sensors, state, connects, clock
        self._started_s = self._told_s = clock()
        self._told_throttled: tuple[str, ...] = ()
        self._ticks = sensors.processor()
        self._clear()

    def _clear(self) -> None:
        self._zones: dict[str, float] = {}
        self._throttled: set[str] = set()
        self._least_memory_mib: float | None = None

    def look(self) -> None:
        """Take in what the device is like now."""
        for zone, value in self._sensors.zones_c().items():
            if zone in self._zones or len(self._zones) < MAX_ZONES:
                self._zones[zone] = max(self._zones.get(zone, value), value)
        self._throttled |= self._sensors.throttled()
        memory = self._sensors.memory_mib("MemAvailable")
        if memory is not None:
            self._least_memory_mib = min(memory, self._least_memory_mib or memory)

    @property
    def due(self) -> bool:
        """Whether the device is to be told of though no model was asked."""
        news = set(self._throttled) - set(self._told_throttled)
        return bool(news) or self._clock() - self._told_s >= QUIET_EVERY_S

    def take(self) -> DeviceWindow:
        """Return the window's figures, and begin anew."""
        self.look()
        before, self._ticks = self._ticks, self._sensors.processor()
        share = None
        if before is not None and self._ticks is not None and self._ticks.total > before.total:
            idle = (self._ticks.idle - before.idle) / (self._ticks.total - before.total)
            share = min(1.0, max(0.0, 1.0 - idle))
        disk = shutil.disk_usage(self._state)
        interface = self._sensors.default_interface()
        self._told_s, self._told_throttled = self._clock(), tuple(sorted(self._throttled))
        figures = DeviceWindow(
            uptime_s=self._clock() - self._started_s,
            boot_s=self._sensors.boot_s(),
            load_1m=os.getloadavg()[0],
            cpu_share=share,
            memory_total_mib=self._sensors.memory_mib("MemTotal"),
            memory_available_mib=self._least_memory_mib,
            disk_free_mib=disk.free / _MIB,
            disk_total_mib=disk.total / _MIB,
            temperature_c=max(self._zones.values(), default=None),
            zones_c=dict(self._zones),
            throttled=self._told_throttled,
            link=LinkFigures(
                interface=interface,
                signal_dbm=self._sensors.signal_dbm(interface) if interface else None,
                speed_mbit=self._sensors.speed_mbit(interface) if interface else None,
                connects=self._connects(),
            ),
        )
        self._clear()
        return figures
