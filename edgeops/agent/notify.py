"""What the agent tells the service manager that started it: ready, alive, stopping (protocol of sd_notify(3))."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping

log = logging.getLogger(__name__)


_NAMES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceManager:
    """Speaks to systemd if it is there; otherwise without effect.

    Args:
        environment: Where systemd says how it is reached. What it says is taken out: it is not for workers.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._environment = environment
        self._said = {name: environment[name] for name in _NAMES if name in environment}
        address = environment.pop("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_s = _watchdog_s(environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", ""))

    def ready(self, status: str) -> None:
        """Say that the agent serves and takes updates."""
        self._say(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        """Keep the watchdog quiet; to be said more often than every `watchdog_s`."""
        self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the agent ends because it was asked to."""
        self._say("STOPPING=1")

    def hand_on(self) -> None:
        """Give back what systemd said: another version of the agent goes on in this process's place."""
        self._environment.update(self._said)

    def _say(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaking:
                speaking.connect(self._address)
                speaking.send(text.encode())
        except OSError as error:
            log.warning("the service manager is not reached: %s", error)


def _watchdog_s(microseconds: str, pid: str) -> float | None:
    """Return within what time systemd expects a sign of life; None: it expects none of this process."""
    if not microseconds.isdecimal() or (pid and pid != str(os.getpid())):
        return None
    return int(microseconds) / 1e6 or None
