"""Boards between two runs: whether another run has one, and whether one was left with power."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Collection

from edgeops.contracts.errors import EdgeopsError
from hil.reservation import Reservation, resource_of
from hil.rig import PowerSwitch, Rig

log = logging.getLogger(__name__)

_SWITCH_WITHIN_S = 60.0


def in_use(rig: Rig, profiles: Collection[str]) -> str:
    """Return who has a board of one of these profiles; empty: all are free."""
    for board in rig.boards:
        if board.profile in profiles:
            try:
                Reservation(resource_of(rig, board)).release()
            except EdgeopsError as error:
                return f"board {board.name}: {error.what}"
    return ""


def cut(rig: Rig) -> None:
    """Switch off every board that has a switch and that nobody has: a run that was killed could not."""
    for board in rig.boards:
        switch: PowerSwitch | None = getattr(board, "power", None)
        if switch is None:
            continue
        try:
            with Reservation(resource_of(rig, board)):
                subprocess.run(switch.off, capture_output=True, timeout=_SWITCH_WITHIN_S, check=True)
        except (EdgeopsError, OSError, subprocess.SubprocessError) as error:
            log.error("board %s may still have power: %s", board.name, error)
