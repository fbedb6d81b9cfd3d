"""Why one deployment waits, and for how long: what the site holds it for, and trouble that passes by itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from edgeops.agent.holds import Conditions, Hold, HoldRules, decide
from edgeops.agent.store import ComponentRecord
from edgeops.contracts.deployment import DeploymentState
from edgeops.contracts.errors import EdgeopsError
from edgeops.transport.mqtt import backoff_s

RETRY_FIRST_S, RETRY_MAX_S = 2.0, 900.0
# So much of a wait may be counted anew after a restart.
KEEP_EVERY_S = 60.0
# How often a fetch is tried again: trouble of network, server or clock passes. So may metadata that is not valid:
# caught in mid-change, or a proxy's page in its place; a minute or two of that costs no release.
_TRIES: dict[str, float] = {
    "E-NET-UNREACHABLE": math.inf,
    "E-NET-RESPONSE": math.inf,
    "E-TRUST-EXPIRED": math.inf,
    "E-TRUST-METADATA": 6,
    "E-WIRE-SIZE": 6,
}


class Waiting:
    """The waits of one deployment.

    Args:
        rules: What the site allows.
        conditions: What the device is like now.
        now: The time rule, seconds.
        waited_s: How long it had waited for what the site holds it for before the agent started: a device that is
            restarted again and again comes to a deadline, too. Not a time of day, which may be set meanwhile.
    """

    def __init__(
        self, rules: HoldRules, conditions: Callable[[], Conditions], now: Callable[[], float], waited_s: float = 0.0
    ) -> None:
        self._rules, self._conditions, self._now = rules, conditions, now
        self._before_s = waited_s
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
            self._asked_s, self._before_s = None, 0.0

    @property
    def waited_s(self) -> float:
        """How long it has waited for what the site holds it for."""
        return self._before_s + (0.0 if self._asked_s is None else time.monotonic() - self._asked_s)

    def told(self, hold: Hold) -> dict[str, Any]:
        """Return what a component's record keeps of a wait."""
        return {"held_reason": hold.reason, "held_until_s": hold.until_s, "waited_s": self.waited_s}

    def is_to_be_kept(self, record: ComponentRecord, hold: Hold) -> bool:
        """Say whether a component's record no longer tells what it waits for, or for how long already."""
        return hold.reason != record.held_reason or self.waited_s >= record.waited_s + KEEP_EVERY_S

    def reason(self, record: ComponentRecord, *, downloading: bool) -> Hold | None:
        """Return what the site holds it for; see `holds.decide`."""
        if record.override_holds:
            return None
        self._asked_s = time.monotonic() if self._asked_s is None else self._asked_s
        return decide(self._rules, self._conditions(), waited_s=self.waited_s, downloading=downloading)

    def interrupts(self, record: ComponentRecord) -> Hold | None:
        """Return what the site holds a download for that is under way: it may come in the middle of one."""
        return self.reason(record, downloading=True) if record.state is DeploymentState.DOWNLOADING else None

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
