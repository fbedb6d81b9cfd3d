"""What a rig needs of a board: power, console, files, link."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from edgeops.contracts.errors import EdgeopsError

if TYPE_CHECKING:
    from firmware_bridge.link import SmpLink


class Done(NamedTuple):
    """A program that ended on a board."""

    status: int
    out: bytes
    err: str


class Board(Protocol):
    """Any board. Use it as a context manager: at the end it is off, whatever happened."""

    name: str
    profile: str

    @property
    def cut(self) -> str:
        """How its power is cut, for the report."""

    def power_on(self) -> None:
        """Give it power, and wait until it answers.

        Raises:
            EdgeopsError: E-HIL-BOARD; it does not come up in its time, or another board answers.
        """

    def power_off(self) -> None:
        """Take its power at once, whatever it does. Does nothing if it is off."""

    def console(self) -> str:
        """Return the end of what it printed since it got power."""

    def close(self) -> None:
        """Power it off and give everything back; does nothing where that is done."""


class LinuxBoard(Board, Protocol):
    """A board that runs the agent."""

    @property
    def folder(self) -> str:
        """A folder on the board for this run's files, which survives its power."""

    def run(self, *words: str, within_s: float = 120.0) -> Done:
        """Run a program to its end.

        Raises:
            EdgeopsError: E-HIL-BOARD; the link is lost, or no end in time.
        """

    def start(self, name: str, *words: str) -> None:
        """Start a program that lasts until its power or `stop` ends it; its output goes to the console."""

    def stop(self, name: str) -> None:
        """Ask a program that was started to end, and wait for it."""

    def edgeops(self, *arguments: str) -> tuple[str, ...]:
        """Return the words that run an edgeops command there."""

    def put(self, file: Path, name: str) -> str:
        """Copy a file into the board's folder; return its path there."""

    def reach(self, url: str) -> str:
        """Return the address by which this machine reaches a loopback address of the board's."""


class McuBoard(Board, Protocol):
    """A microcontroller."""

    def link(self, answer_within_s: float = ...) -> SmpLink:
        """Open its serial line.

        Args:
            answer_within_s: How long a request waits before it is repeated.

        Raises:
            EdgeopsError: E-MCU-PORT.
        """

    def sign(self, blob: bytes, *, version: str, counter: int) -> bytes:
        """Return a blob with the trailer that this board's firmware accepts."""


def broken(name: str, what: str, console: str = "") -> EdgeopsError:
    """Return the error of a board that does not do what a board does."""
    end = f"; its console ends: {console[-500:]!r}" if console else ""
    return EdgeopsError("E-HIL-BOARD", f"{name}: {what}{end}", "Look at the board, its cables and its power.")


def check_board(name: str, found: str, expected: Sequence[str]) -> None:
    """Refuse a board that is not the one that the rig file describes.

    Raises:
        EdgeopsError: E-HIL-BOARD.
    """
    if found not in expected:
        raise broken(name, f"another board answers: {found}, expected {' or '.join(expected)}")
