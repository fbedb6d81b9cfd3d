"""Ways to bring an image onto a board: each finds it, says what it would do, writes, verifies, and starts it anew.

A way is an entry point of the group `edgeops.flashers`: what is called with a target and `Options` and gives a
`Flasher`. Those of this folder come by the same door as anybody's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol


class Options(NamedTuple):
    """What people may say of a board beside where it is; a way takes what concerns it.

    Args:
        address: Where the image lies in the flash.
        chip: The processor, in the words of the way's tool; empty: it finds out.
        key: PEM file of the key that must have signed an MCUboot image; None: only its hash is checked here.
    """

    address: int = 0
    chip: str = ""
    key: Path | None = None


NO_OPTIONS = Options()


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
            EdgeopsError: E-MCU-BLOB or E-MCU-IMAGE; the image is none for this way.
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
