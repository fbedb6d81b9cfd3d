"""A person at the device wants no change for a while: one file in the state directory says so."""

from __future__ import annotations

import logging
from pathlib import Path

from edgeops import durable
from edgeops.agent.holds import Hold
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Wire, decode, encode

log = logging.getLogger(__name__)

_FILE = "freeze.json"


class Freeze(Wire, frozen=True, kw_only=True):
    """No change begins, however it is wanted, unless the fleet's operator overrides holds.

    Args:
        reason: For those who wonder.
        until_s: Until then, seconds since 1970 by the time rule; None: until it is lifted.
    """

    reason: str
    until_s: float | None = None


def freeze(root: Path, wish: Freeze) -> None:
    """Freeze the device with this state directory.

    Raises:
        EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
    """
    durable.write_file(root / _FILE, encode(wish), mode=0o600)


def thaw(root: Path) -> bool:
    """Let changes happen again; return whether the device was frozen.

    Raises:
        EdgeopsError: E-DISK-WRITE.
    """
    there = (root / _FILE).exists()
    durable.remove_tree(root / _FILE)
    return there


def read_freeze(root: Path) -> Hold | None:
    """Return why and until when the device is frozen; None: it is not. A damaged file freezes: somebody wanted that."""
    try:
        said = decode((root / _FILE).read_bytes(), Freeze, what=_FILE)
    except FileNotFoundError:
        return None
    except (OSError, EdgeopsError) as error:
        log.warning("%s cannot be read: %s", root / _FILE, error)
        return Hold("frozen at the device")
    return Hold(f"frozen at the device: {said.reason}", said.until_s)
