"""A power cut in the middle of something: at its moment, seen to the end, and never once the board is given back."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from edgeops.contracts.errors import EdgeopsError


def cut_during(do: Callable[[], object], power_off: Callable[[], object], after_s: float) -> None:
    """Do something, and take the board's power at a moment of it, or after it.

    How it ends depends on the moment, so its error is no news. An interrupt calls off the cut, and waits for one that
    has begun: later the board may be somebody else's.

    Raises:
        EdgeopsError: The power could not be taken.
    """
    called_off = threading.Event()
    trouble: list[Exception] = []

    def cut() -> None:
        if called_off.wait(after_s):
            return
        try:
            power_off()
        except Exception as error:  # noqa: BLE001  raised below, on the thread that asked for the cut
            trouble.append(error)

    cutter = threading.Thread(target=cut, name="power cut", daemon=True)
    cutter.start()
    try:
        with contextlib.suppress(EdgeopsError):
            do()
        cutter.join()
    finally:
        called_off.set()
        cutter.join()
    if trouble:
        raise trouble[0]
