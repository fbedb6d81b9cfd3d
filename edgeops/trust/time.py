"""The one time rule, for TUF metadata, envelopes and certificates: a clock that never goes behind what was proven."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edgeops import durable
from edgeops.__about__ import BUILD_TIME_S
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Wire, decode, encode

log = logging.getLogger(__name__)


def trusted_now(*, system_s: float, build_s: float, floor_s: float, newest_issued_s: float) -> float:
    """Return the time to judge expiry by: the latest of all that is known. Seconds since 1970-01-01 UTC.

    A board without a real-time clock boots in 1970; what it has already verified says that it is later.

    Args:
        system_s: The system clock.
        build_s: When this edgeops was built.
        floor_s: The newest `issued_at` that was verified before the last restart.
        newest_issued_s: The newest `issued_at` that was verified since.
    """
    return max(system_s, build_s, floor_s, newest_issued_s)


class _Floor(Wire, frozen=True, kw_only=True):
    floor_s: float


class Clock:
    """The time rule with its persisted floor.

    The floor holds only times that somebody signed, never the system clock: a clock that jumped to 2100 blocks
    changes while it is wrong, and no longer. The floor never passes the expiry of the trusted root (`limit`): a
    stolen online key that signs a far future cannot stop a device for ever, since a renewed root lies beyond it.

    Args:
        floor_file: Where the floor is kept; its directory exists.
        system: The system clock, seconds since 1970-01-01 UTC.
        build_s: When this edgeops was built.
    """

    def __init__(
        self, floor_file: Path, *, system: Callable[[], float] = time.time, build_s: float = BUILD_TIME_S
    ) -> None:
        self._file, self._system, self._build_s = floor_file, system, build_s
        self._floor_s = _read(floor_file)
        self._newest_issued_s = self._floor_s
        self._ceiling_s = math.inf
        self._lock = threading.Lock()

    def now(self) -> float:
        """Return the time by the time rule, seconds since 1970-01-01 UTC."""
        return trusted_now(
            system_s=self._system(),
            build_s=self._build_s,
            floor_s=self._floor_s,
            newest_issued_s=self._newest_issued_s,
        )

    def limit(self, ceiling_s: float) -> None:
        """Take the expiry of the trusted root: no statement raises the floor beyond it."""
        self._ceiling_s = ceiling_s

    def observe(self, issued_at_s: float) -> None:
        """Raise the floor to when a *verified* statement was issued, durably. An older one changes nothing.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE; the floor is raised until the next restart only.
        """
        with self._lock:
            issued_at_s = min(issued_at_s, self._ceiling_s)
            if not issued_at_s > self._newest_issued_s:
                return
            self._newest_issued_s = issued_at_s
            durable.write_file(self._file, encode(_Floor(floor_s=issued_at_s)), mode=0o600)


def _read(path: Path) -> float:
    try:
        return decode(path.read_bytes(), _Floor, what=str(path)).floor_s
    except FileNotFoundError:
        return 0.0
    except (OSError, EdgeopsError) as error:
        # Without its floor the clock falls back to build time: safe, and better than a device that never starts.
        log.warning("the clock's floor is lost: %s", error)
        return 0.0
