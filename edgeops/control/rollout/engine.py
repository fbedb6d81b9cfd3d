"""The thread that keeps rollouts going: after a report that may matter, when time is over, when a device joined."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from edgeops.contracts.errors import EdgeopsError
from edgeops.control.database import Database
from edgeops.control.rollout.decide import Action
from edgeops.control.rollout.execute import advance, running
from edgeops.control.rollout.followers import take_in_followers

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
RETRY_AFTER_S = 2.0


class RolloutEngine:
    """Advances all running rollouts. It keeps no state: a new one goes on where the registry stands.

    Args:
        database: The registry.
        on_assigned: Called when devices have a new desired state that is to be published.
        look_every_s: How often to look without being woken.
    """

    def __init__(
        self, database: Database, on_assigned: Callable[[], None], *, look_every_s: float = LOOK_EVERY_S
    ) -> None:
        self._database, self._on_assigned, self._look_every_s = database, on_assigned, look_every_s
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Say that something changed."""
        self._wake.set()

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End after the step at hand."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                wait_s = self.advance_all()
            except EdgeopsError as error:
                log.error("rollouts wait: %s", error)
                wait_s = RETRY_AFTER_S
            self._wake.wait(wait_s)

    def advance_all(self) -> float:
        """Take every step that can be taken now; return the seconds until time alone may bring the next one.

        Raises:
            EdgeopsError: The database cannot be used.
        """
        if take_in_followers(self._database, time.time()):
            self._on_assigned()
        wait_s = self._look_every_s
        for rollout_id in running(self._database):
            while not self._stopping.is_set():
                now_s = time.time()
                step = advance(self._database, rollout_id, now_s)
                if step is None:
                    break
                if step.published:
                    self._on_assigned()
                if step.decision.action is Action.WAIT:
                    if step.decision.until_s is not None:
                        wait_s = min(wait_s, max(0.0, step.decision.until_s - now_s))
                    break
        return wait_s
