"""Ways to bring an image onto a board: each finds it, says what it would do, writes, verifies, and starts it anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from edgeops.contracts.errors import EdgeopsError


class Found(NamedTuple):
    """A board that answers: what it is, and facts of it for people."""

    board: str
    facts: dict[str, str]


class Flasher(Protocol):
    """One way. Constructing it imports nothing heavy and touches no device."""

    def probe(self) -> Found:
        """Ask the board what it is.

        Raises:
            EdgeopsError: E-MCU-PORT, E-MCU-SILENT, E-MCU-ANSWER; it is not there, or something else is.
                E-DEPENDENCY; a tool is missing.
        """

    def plan(self, image: bytes) -> list[str]:
        """Return what `write` would do, in words or commands, one a line. Touches no device.

        Raises:
            EdgeopsError: E-MCU-BLOB; the image is none for this way.
        """

    def write(self, image: bytes, *, on_progress: Callable[[int, int], object] = lambda _done, _all: None) -> None:
        """Write an image; again, it is written anew, or goes on.

        Raises:
            EdgeopsError: As `probe` and `plan`; E-MCU-REFUSED; the board or its tool refuses.
        """

    def verify(self, image: bytes) -> None:
        """Check that the board has the image.

        Raises:
            EdgeopsError: E-MCU-ANSWER; it has another. As `probe`.
        """

    def reset(self) -> None:
        """Start the board anew.

        Raises:
            EdgeopsError: As `probe`.
        """


WAYS = ("smp", "esptool", "pyocd", "uf2")


def flasher(way: str, target: str, *, address: int = 0, chip: str = "") -> Flasher:
    """Return a way of flashing.

    Args:
        way: One of `WAYS`.
        target: A serial port (smp, esptool), a probe's id or empty (pyocd), or a mounted drive (uf2).
        address: Where the image lies in the flash; not for smp.
        chip: esptool's chip, pyocd's target; empty: it finds out.

    Raises:
        EdgeopsError: E-CONFIG; there is no such way.
    """
    if way == "smp":
        from firmware_bridge.flashers.smp import SmpFlasher

        return SmpFlasher(target)
    if way == "esptool":
        from firmware_bridge.flashers.tools import EspTool

        return EspTool(target, address=address, chip=chip)
    if way == "pyocd":
        from firmware_bridge.flashers.tools import PyOcd

        return PyOcd(target, address=address, chip=chip)
    if way == "uf2":
        from firmware_bridge.flashers.uf2 import Uf2Drive

        return Uf2Drive(Path(target), address=address)
    raise EdgeopsError("E-CONFIG", f"no way of flashing is called {way!r}; there are {', '.join(WAYS)}")
