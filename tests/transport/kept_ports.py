"""Ports that stay with a test while nobody listens there: else another program gets one before its owner is back."""

from __future__ import annotations

import contextlib
import socket

HOST = "127.0.0.1"


def keep(port: int = 0) -> socket.socket:
    """Hold a port, 0: a free one, until this socket is closed. Whoever asks for it by number can listen there all the
    same, where addresses are used again; the system gives it to nobody else.

    Raises:
        OSError: Somebody listens there.
    """
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        kept.bind((HOST, port))
    except OSError:
        kept.close()
        raise
    return kept


def number(kept: socket.socket) -> int:
    """Return a port's number."""
    return int(kept.getsockname()[1])


class Kept:
    """Several ports, held from `hold` to `release`."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def hold(self, *ports: int) -> None:
        """Hold those that nobody listens on any more."""
        for port in ports:
            with contextlib.suppress(OSError):
                self._sockets.append(keep(port))

    def release(self) -> None:
        """Let go of all."""
        while self._sockets:
            self._sockets.pop().close()
