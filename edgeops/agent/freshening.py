"""Fetches trusted metadata anew in time, so that one who holds it back is noticed: by the device, and by the fleet.

Signed metadata expires within days. A device that asks for it only when something is wanted could not tell a quiet week
from a freeze, and would say neither.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable

from edgeops.agent.loop import Loop, Timer
from edgeops.agent.trust_desk import Freshness, TrustDesk
from edgeops.contracts.errors import EdgeopsError
from edgeops.transport.mqtt import backoff_s
from edgeops.trust.roles import LIFETIME_S, TIMESTAMP

log = logging.getLogger(__name__)

LOOK_EVERY_S = 60.0
AT_LEAST_S = 5.0
RETRY_FIRST_S, RETRY_MAX_S = 60.0, 3600.0
# Of what was left of its life when it was fetched; devices of a fleet are spread over this part of it.
_FROM_SHARE, _SPREAD_SHARE = 0.4, 0.2


def due_s(freshness: Freshness, connection: str) -> float:
    """Return when metadata is to be fetched anew; 0: now, it is not valid. Pure; the same at each asking."""
    if freshness.until_s is None or freshness.last_s is None:
        return 0.0
    place = int.from_bytes(hashlib.sha256(connection.encode()).digest()[:8], "big") / 2**64
    # What came on a stick may hold for months: with a network it is soon replaced by what holds for days.
    left_s = min(freshness.until_s - freshness.last_s, LIFETIME_S[TIMESTAMP])
    # A server that has nothing newer is not asked ever more often as the end comes near.
    return freshness.last_s + max(AT_LEAST_S, left_s * (_FROM_SHARE + _SPREAD_SHARE * place))


class Freshener:
    """Looks after one device's metadata. All but the request itself runs on the loop.

    Args:
        loop: The supervisor's loop.
        desk: Has the metadata.
        connection: This device.
        now: The time rule, seconds.
        stale: Whether the device is stale.
        on_change: Called when the device becomes stale, and when it is no more.
    """

    def __init__(
        self,
        loop: Loop,
        desk: TrustDesk,
        connection: str,
        now: Callable[[], float],
        *,
        stale: Callable[[], bool],
        on_change: Callable[[], None],
    ) -> None:
        self._loop, self._desk, self._connection, self._now = loop, desk, connection, now
        self._is_stale, self._on_change = stale, on_change
        self._stale: bool | None = None
        self._timer: Timer | None = None
        self._asking = False
        self._tries = 0
        self._not_before_s = 0.0

    def look(self) -> None:
        """Say if the device became stale, fetch what is due, and look again."""
        self._tell()
        now_s, due = self._now(), due_s(self._desk.freshness, self._connection)
        if not self._asking and now_s >= max(due, self._not_before_s):
            self._asking = True
            threading.Thread(target=self._work, name="freshen", daemon=True).start()
        until_s = self._desk.freshness.until_s or now_s
        following = (moment - now_s for moment in (max(due, self._not_before_s), until_s) if moment > now_s)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.after(min([LOOK_EVERY_S, *following]), self.look)

    def _tell(self) -> None:
        before, self._stale = self._stale, self._is_stale()
        if before is not None and before is not self._stale:
            log.log(
                logging.WARNING if self._stale else logging.INFO,
                "what is signed is %s",
                "stale" if self._stale else "fresh",
            )
            self._on_change()

    def _work(self) -> None:
        outcome: EdgeopsError | None = None
        try:
            self._desk.refresh()
        except EdgeopsError as error:
            outcome = error
        self._loop.post(lambda: self._done(outcome))

    def _done(self, outcome: EdgeopsError | None) -> None:
        self._asking = False
        if outcome is None:
            self._tries, self._not_before_s = 0, 0.0
        else:
            wait_s = max(1.0, backoff_s(self._tries, first_s=RETRY_FIRST_S, max_s=RETRY_MAX_S))
            self._tries += 1
            self._not_before_s = self._now() + wait_s
            log.info("metadata is not fetched anew, next try in %.0f s: %s", wait_s, outcome)
        self.look()
