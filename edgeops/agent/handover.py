"""One worker takes another's place: when nobody else takes clients any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from edgeops.agent.loop import Loop, Timer

# How long those who served before may take to close their door before their successor is said to serve.
CLOSE_WITHIN_S = 5.0


class Handover:
    """Waits until those who served before have closed their door, or have had the time for it.

    Args:
        loop: The supervisor's loop.
        on_over: Called once it is so.
    """

    def __init__(self, loop: Loop, on_over: Callable[[], None]) -> None:
        self._loop, self._on_over = loop, on_over
        self._open: set[int] = set()
        self._patience: Timer | None = None

    def begin(self, before: Iterable[int]) -> None:
        """A successor serves, and the workers with these numbers were told to close their door."""
        self.cancel()
        self._open.update(before)
        if self._open:
            self._patience = self._loop.after(CLOSE_WITHIN_S, self._over)
        else:
            self._over()

    def closed(self, number: int) -> None:
        """A worker takes no more clients."""
        if number in self._open:
            self._open.discard(number)
            if not self._open:
                self._over()

    def cancel(self) -> None:
        """Wait no longer."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _over(self) -> None:
        self.cancel()
        self._open.clear()
        self._on_over()
