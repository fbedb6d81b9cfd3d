"""An interrupt ends a run once: while boards are switched off and given back, further ones wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def one_interrupt(say: Callable[[str], object]) -> Iterator[None]:
    """Let the first of Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt; what comes after it is told to wait.

    Args:
        say: Hears why.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False

    def heard(number: int, _frame: FrameType | None) -> None:
        nonlocal came
        if came:
            say(f"{signal.Signals(number).name}: the board is being switched off")
            return
        came = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, heard) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
