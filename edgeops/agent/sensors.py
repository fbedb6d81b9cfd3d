"""What the kernel says of this board: processor, memory, heat, throttling and network. Files in, figures out."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_VCGENCMD_WITHIN_S = 2.0
# Source: Raspberry Pi documentation, vcgencmd get_throttled.
_PI_BITS = {0: "under-voltage", 1: "frequency-capped", 2: "throttled", 3: "soft-temperature-limit"}
# Cooling by a fan holds nothing back.
_FANS = re.compile(r"fan", re.IGNORECASE)


class ProcessorTimes(NamedTuple):
    """Ticks of all processors since the boot, and those of them in which they had nothing to do."""

    total: int
    idle: int


class Sensors:
    """Reads this board.

    Args:
        root: Where `sys` and `proc` lie.
        vcgencmd: Path of the Raspberry Pi's tool; None: there is none.
    """

    def __init__(self, root: Path = Path("/"), vcgencmd: str | None = None) -> None:
        self._sys, self._proc = root / "sys", root / "proc"
        self._vcgencmd = vcgencmd if vcgencmd is not None or root != Path("/") else shutil.which("vcgencmd")

    def zones_c(self) -> dict[str, float]:
        """Return the temperatures of the thermal zones by their type; two of one type are told by the hotter."""
        zones: dict[str, float] = {}
        for folder in sorted(self._sys.glob("class/thermal/thermal_zone*")):
            value = number(folder / "temp")
            if value is not None:
                kind = text(folder / "type")[:32] or folder.name
                zones[kind] = max(zones.get(kind, value / 1000), value / 1000)
        return zones

    def throttled(self) -> frozenset[str]:
        """Return what holds the processor back now: the Pi's firmware, or cooling devices that are at work."""
        state = self._pi_state()
        found = {name for bit, name in _PI_BITS.items() if state is not None and state >> bit & 1}
        for folder in self._sys.glob("class/thermal/cooling_device*"):
            kind = text(folder / "type")[:32]
            if kind and not _FANS.search(kind) and (number(folder / "cur_state") or 0) > 0:
                found.add(f"cooling {kind}")
        return frozenset(found)

    def _pi_state(self) -> int | None:
        """Return the firmware's word on throttling, from the kernel or else from its tool; None: this is no Pi."""
        for path in self._sys.glob("devices/platform/soc*/*firmware*/get_throttled"):
            with contextlib.suppress(ValueError):
                return int(text(path), 16)
        if self._vcgencmd is None:
            return None
        try:
            command = [self._vcgencmd, "get_throttled"]
            done = subprocess.run(command, capture_output=True, timeout=_VCGENCMD_WITHIN_S, check=True)
            return int(done.stdout.decode("ascii").strip().removeprefix("throttled="), 16)
        except (OSError, subprocess.SubprocessError, ValueError):
            self._vcgencmd = None  # a device that may not ask its firmware is not asked each time
            return None

    def processor(self) -> ProcessorTimes | None:
        """Return the ticks so far."""
        line = text(self._proc / "stat").partition("\n")[0].split()
        try:
            ticks = [int(word) for word in line[1:9]]
        except ValueError:
            return None
        if line[:1] != ["cpu"] or len(ticks) < 5:
            return None
        return ProcessorTimes(sum(ticks), ticks[3] + ticks[4])

    def memory_mib(self, name: str) -> float | None:
        """Return a line of /proc/meminfo, such as MemAvailable or MemTotal."""
        for line in text(self._proc / "meminfo").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
        return None

    def boot_s(self) -> float | None:
        """Return the seconds since the device booted."""
        try:
            return float(text(self._proc / "uptime").split()[0])
        except (IndexError, ValueError):
            return None

    def default_interface(self) -> str | None:
        """Return the interface of the default route with the lowest metric: of IPv4, else of IPv6."""
        rows = [line.split() for line in text(self._proc / "net" / "route").splitlines()[1:]]
        routes = [(int(row[6]), row[0]) for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"]
        if not routes:
            # Destination and its length, source and its length, next hop, metric, …, interface; the kernel's own
            # unreachable routes go by way of `lo`.
            rows = [line.split() for line in text(self._proc / "net" / "ipv6_route").splitlines()]
            routes = [
                (int(row[5], 16), row[9])
                for row in rows
                if len(row) > 9 and row[0] == "0" * 32 and row[1] == "00" and row[9] != "lo"
            ]
        return min(routes)[1] if routes else None

    def signal_dbm(self, interface: str) -> float | None:
        """Return the signal level of a wireless interface."""
        for line in text(self._proc / "net" / "wireless").splitlines():
            name, colon, rest = line.partition(":")
            words = rest.split()
            if colon and name.strip() == interface and len(words) > 2:
                with contextlib.suppress(ValueError):
                    return float(words[2])
        return None

    def speed_mbit(self, interface: str) -> float | None:
        """Return what a wired interface says of its speed."""
        value = number(self._sys / "class" / "net" / interface / "speed")
        return value if value is not None and value > 0 else None

    def battery_percent(self) -> float | None:
        """Return the charge of the emptiest battery; None: there is none, or mains are there."""
        supplies = list(self._sys.glob("class/power_supply/*"))
        mains = (supply / "online" for supply in supplies if text(supply / "type") in ("Mains", "USB"))
        if any(value > 0 for value in _numbers(mains)):
            return None
        batteries = (supply / "capacity" for supply in supplies if text(supply / "type") == "Battery")
        return min(_numbers(batteries), default=None)


def text(path: Path) -> str:
    """Return what a file of the kernel says; empty: it is not there, or not to be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def number(path: Path) -> float | None:
    """Return the number in a file of the kernel; None: there is none, as of a sensor that is switched off."""
    try:
        return float(text(path))
    except ValueError:
        return None


def _numbers(paths: Iterator[Path]) -> Iterator[float]:
    for path in paths:
        value = number(path)
        if value is not None:
            yield value
