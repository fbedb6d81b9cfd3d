"""The supervisor's one thread of decisions: actions posted from any thread, and timers. Nothing else changes state."""

from __future__ import annotations

import heapq
import itertools
import queue
import time
from collections.abc import Callable

Action = Callable[[], None]


class Timer:
    """An action that will be run later, unless it is cancelled."""

    def __init__(self, action: Action) -> None:
        self._action: Action | None = action

    def cancel(self) -> None:
        """Do not run it; without effect once it ran."""
        self._action = None

    def fire(self) -> None:
        """Run it, once."""
        action, self._action = self._action, None
        if action is not None:
            action()


class Loop:
    """Runs actions one after the other on the thread that calls `run`. An action's exception ends `run`: it is a
    defect, and a supervisor that is started anew knows its state better than one that goes on in an unknown one."""

    def __init__(self) -> None:
        self._actions: queue.SimpleQueue[Action] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._stopping = False

    def post(self, action: Action) -> None:
        """Have an action run soon. May be called from any thread, and from a signal handler."""
        self._actions.put(action)

    def after(self, delay_s: float, action: Action) -> Timer:
        """Have an action run later. Only on the loop's own thread."""
        timer = Timer(action)
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._order), timer))
        return timer

    def stop(self) -> None:
        """Have `run` return after the action that runs now."""
        self._stopping = True

    def run(self) -> None:
        """Run actions until `stop`."""
        self._stopping = False
        while not self._stopping:
            wait_s = None if not self._timers else self._timers[0][0] - time.monotonic()
            if wait_s is not None and wait_s <= 0:
                heapq.heappop(self._timers)[2].fire()
                continue
            try:
                action = self._actions.get(timeout=wait_s)
            except queue.Empty:
                continue
            action()
