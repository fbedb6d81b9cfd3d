"""A board's power switch: two commands of this machine, and somebody who uses the second where a run cannot."""

from __future__ import annotations

import subprocess

from hil.boards.guardian import Guardian
from hil.boards.protocol import broken
from hil.interrupts import held
from hil.reservation import shared_locks
from hil.rig import PowerSwitch
from hil.tools import ending_with_us

_SWITCH_WITHIN_S = 60.0


class Switch:
    """The switch of one board.

    Args:
        name: The board's, for errors.
        power: Its commands.
    """

    def __init__(self, name: str, power: PowerSwitch) -> None:
        self._name, self._power = name, power
        self._guardian: Guardian | None = None

    def on(self) -> None:
        """Give the board power. From here on it loses it with this process, however that ends.

        Raises:
            EdgeopsError: E-HIL-BOARD; the command failed, as for the others.
        """
        if self._guardian is None:
            with held():
                self._guardian = Guardian(self._power.off, shared_locks())
        self._run(self._power.on)

    def off(self) -> None:
        """Take its power."""
        self._run(self._power.off)

    def close(self) -> None:
        """Take its power for good; where that fails, the guardian goes on trying. Once."""
        guardian, self._guardian = self._guardian, None
        try:
            self.off()
        except BaseException:
            if guardian is not None:
                guardian.abandon()
            raise
        if guardian is not None:
            guardian.dismiss()

    def _run(self, words: tuple[str, ...]) -> None:
        try:
            done = subprocess.run(
                ending_with_us(words), stdin=subprocess.DEVNULL, capture_output=True, timeout=_SWITCH_WITHIN_S,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise broken(self._name, f"power switch {words[0]}: {error}") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise broken(self._name, f"power switch {words[0]}: status {done.returncode}: {said[-300:]}")
