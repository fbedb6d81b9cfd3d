"""Why one deployment waits, and for how long: what the site holds it for, and trouble that passes by itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from edgeops.agent.holds import Conditions, Hold, HoldRules, decide
from edgeops.agent.store import ComponentRecord
from edgeops.contracts.errors import EdgeopsError
from edgeops.transport.mqtt import backoff_s

RETRY_FIRST_S, RETRY_MAX_S = 2.0, 900.0
# How often a fetch is tried again: trouble of network, server or clock passes; metadata may be caught in mid-change.
_TRIES: dict[str, float] = {
    "E-NET-UNREACHABLE": math.inf,
    "E-NET-RESPONSE": math.inf,
    "E-TRUST-EXPIRED": math.inf,
    "E-TRUST-METADATA": 3,
}


class Waiting:
    """The waits of one deployment.

    Args:
        rules: What the site allows.
        conditions: What the device is like now.
        now: The time rule, seconds.
    """

    def __init__(self, rules: HoldRules, conditions: Callable[[], Conditions], now: Callable[[], float]) -> None:
        self._rules, self._conditions, self._now = rules, conditions, now
        self._tries = 0
        self._asked_s: float | None = None

    @property
    def retries(self) -> bool:
        """Whether a fetch failed before."""
        return self._tries > 0

    def begin(self, *, anew: bool) -> None:
        """Something is wanted; `anew`: it did not wait for it before."""
        self._tries = 0
        if anew:
            self._asked_s = None

    def reason(self, record: ComponentRecord, *, downloading: bool) -> Hold | None:
        """Return what the site holds it for; see `holds.decide`."""
        if record.override_holds:
            return None
        now_s = time.monotonic()
        self._asked_s = now_s if self._asked_s is None else self._asked_s
        return decide(self._rules, self._conditions(), waited_s=now_s - self._asked_s, downloading=downloading)

    def after(self, error: EdgeopsError) -> Hold | None:
        """Return how long to wait after a fetch failed; None: trying again would not help."""
        if self._tries >= _TRIES.get(error.code, 0):
            return None
        wait_s = max(1.0, backoff_s(self._tries, first_s=RETRY_FIRST_S, max_s=RETRY_MAX_S))
        self._tries += 1
        return Hold(f"{error.code}: {error.what}"[:500], self._now() + wait_s)

    def still(self, record: ComponentRecord) -> Hold | None:
        """Return what a held component waits for now; None: for nothing more."""
        hold = self.reason(record, downloading=True) or self.reason(record, downloading=False)
        if hold is None and self._tries and (record.held_until_s or 0.0) > self._now():
            return Hold(record.held_reason or "", record.held_until_s)
        return hold
