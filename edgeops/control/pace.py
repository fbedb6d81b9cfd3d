"""How often each of many may do something: so much at once, and so much a second in the long run. Memory is bounded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

MAX_KEYS = 20_000
NAMED_EVERY_S = 60.0


class Buckets:
    """A bucket of tokens for each key.

    Args:
        per_s: Tokens that come back each second.
        burst: Tokens of a full bucket.
        clock: Seconds that only grow.
    """

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._left: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, key: str) -> float:
        """Take a token; return 0, or how many seconds to wait for one."""
        with self._lock:
            left = self._now(key)
            if left < 1:
                return (1 - left) / self._per_s
            self._keep(key, left - 1)
            return 0.0

    def left(self, key: str) -> float:
        """Return how many tokens there are now."""
        with self._lock:
            return self._now(key)

    def charge(self, key: str, tokens: int) -> None:
        """Take so many tokens, as far as there are any."""
        with self._lock:
            self._keep(key, max(0.0, self._now(key) - tokens))

    def _now(self, key: str) -> float:
        left, at_s = self._left.get(key, (float(self._burst), self._clock()))
        return min(float(self._burst), left + (self._clock() - at_s) * self._per_s)

    def _keep(self, key: str, left: float) -> None:
        # Put in last, so that the first is the one that was taken from least lately.
        self._left.pop(key, None)
        self._left[key] = (left, self._clock())
        if len(self._left) > MAX_KEYS:
            del self._left[next(iter(self._left))]


class Offenders:
    """Names addresses in the log, each once a minute."""

    def __init__(self) -> None:
        self._told = Buckets(1 / NAMED_EVERY_S, 1)

    def name(self, address: str, what: str) -> None:
        """Say what an address did."""
        if not self._told.take(address):
            log.warning("%s: %s", address, what)
