"""Where inferences run: on the event loop if they are quick, otherwise on one thread, in turn and within a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from edgeops.contracts.errors import EdgeopsError

T = TypeVar("T")

SLOW_MS = 2.0
MAX_WAITING = 64
WAIT_WITHIN_S = 10.0


class Turns:
    """One inference at a time.

    Handing an inference to a thread costs more than a quick one takes; slower ones have a thread, so that health is
    answered meanwhile.

    Args:
        typical_ms: How long an inference takes here.
    """

    def __init__(self, typical_ms: float) -> None:
        self._thread = ThreadPoolExecutor(1, "inference") if typical_ms >= SLOW_MS else None
        self._waiting = 0

    @property
    def at_once(self) -> bool:
        """Whether inferences run on the event loop: `take` is not needed."""
        return self._thread is None

    async def take(self, infer: Callable[[], T]) -> T:
        """Run an inference when it is its turn.

        Raises:
            EdgeopsError: E-INFER-BUSY; too many wait already, or it waited for too long. What `infer` raises.
        """
        if self._waiting >= MAX_WAITING:
            raise EdgeopsError("E-INFER-BUSY", f"{self._waiting} requests wait already")
        self._waiting += 1
        until_s = time.monotonic() + WAIT_WITHIN_S
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, _in_time, infer, until_s)
        finally:
            self._waiting -= 1

    async def call(self, function: Callable[[], None]) -> None:
        """Run something that must not run at the same time as an inference."""
        if self._thread is None:
            function()
        else:
            await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _in_time(infer: Callable[[], T], until_s: float) -> T:
    if time.monotonic() > until_s:
        raise EdgeopsError("E-INFER-BUSY", f"its turn did not come within {WAIT_WITHIN_S:.0f} s")
    return infer()
