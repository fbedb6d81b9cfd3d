"""An interrupt ends a run once, and never while a board is being started or switched off."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Say = Callable[[str], object]


class _Once:
    """Raises KeyboardInterrupt for the first signal, and tells later ones to wait."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self.came = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.came:
            self.tell_to_wait(number)
            return
        self.came = True
        raise KeyboardInterrupt

    def tell_to_wait(self, number: int) -> None:
        # A terminal that is gone, or that is being written to at this moment: no reason to stop switching off.
        with contextlib.suppress(OSError, RuntimeError):
            self._say(f"{signal.Signals(number).name}: the board is being switched off")


@contextmanager
def one_interrupt(say: Say) -> Iterator[None]:
    """Let the first of Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt; what comes after it is told to wait.

    Args:
        say: Hears why.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    once = _Once(say)
    before = {number: signal.signal(number, once) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Keep an interrupt until the end of this: what is begun here is done as a whole.

    A program that was started is known to who must end it; a switch that was asked to take the power is not killed over
    it. Only for what ends by itself, and soon.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def keep(number: int, _frame: FrameType | None) -> None:
        handler = before[signal.Signals(number)]
        if isinstance(handler, _Once):
            handler.tell_to_wait(number)
        if not (isinstance(handler, _Once) and handler.came):
            came.append(number)

    before = {number: signal.getsignal(number) for number in _ENDING}
    # None: a handler that is not Python's, which nothing here could put back.
    ours = [number for number in _ENDING if before[number] is not None]
    try:
        for number in ours:
            signal.signal(number, keep)
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
        if came:
            signal.raise_signal(came[0])
