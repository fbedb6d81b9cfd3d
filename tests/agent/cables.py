"""A cable between a board and whoever opens its port: it can be pulled, be noisy, and lead to another board."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import threading
import tty
from pathlib import Path


class Cable:
    """A device file at `path` that leads to a board's line.

    Args:
        path: Where the device file appears, as udev would make one.
        board: The board's end, a pseudo terminal.
        noise: Share of the parts that pass through of which a byte is harmed.
    """

    def __init__(self, path: Path, board: str, *, noise: float = 0.0) -> None:
        self.path: Path | str = path
        self._path, self.noise = path, noise
        self._random = random.Random(3)
        self._board = board
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None
        self.plug()

    def plug(self, board: str | None = None) -> None:
        """Plug it in, perhaps into another board."""
        self.pull()
        self._board = board or self._board
        ours, theirs = os.openpty()
        tty.setraw(ours)
        tty.setraw(theirs)
        there = os.open(self._board, os.O_RDWR | os.O_NOCTTY)
        stop = self._stop = threading.Event()
        self._thread = threading.Thread(target=self._relay, args=(ours, theirs, there, stop), daemon=True)
        self._thread.start()
        self._path.unlink(missing_ok=True)
        self._path.symlink_to(os.ttyname(theirs))

    def pull(self) -> None:
        """Pull it out: the device file is gone, and whoever has it open hears so."""
        self._path.unlink(missing_ok=True)
        if self._stop is not None and self._thread is not None:
            self._stop.set()
            self._thread.join(5)
        self._stop = self._thread = None

    def _relay(self, ours: int, theirs: int, there: int, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                ready, _, _ = select.select([ours, there], [], [], 0.05)
                for source in ready:
                    with contextlib.suppress(OSError):
                        data = bytearray(os.read(source, 4096))
                        if data and self._random.random() < self.noise:
                            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
                        os.write(there if source == ours else ours, bytes(data))
        finally:
            for descriptor in (ours, theirs, there):
                os.close(descriptor)


class SocketCable:
    """A board's line as a serial server has it on the network: `path` is its address. Nobody shares it.

    Args:
        _path: Not used; as `Cable`.
        board: The board's end, a pseudo terminal.
    """

    def __init__(self, _path: Path, board: str) -> None:
        self.noise = 0.0
        self._board = board
        self._port = 0
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None
        self.plug()
        self.path: Path | str = f"socket://127.0.0.1:{self._port}"

    def plug(self, board: str | None = None) -> None:
        """Let it be reached."""
        self.pull()
        self._board = board or self._board
        listener = socket.create_server(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        there = os.open(self._board, os.O_RDWR | os.O_NOCTTY)
        stop = self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(listener, there, stop), daemon=True)
        self._thread.start()

    def pull(self) -> None:
        """Let nobody reach it."""
        if self._stop is not None and self._thread is not None:
            self._stop.set()
            self._thread.join(5)
        self._stop = self._thread = None

    def _serve(self, listener: socket.socket, there: int, stop: threading.Event) -> None:
        client: socket.socket | None = None
        listener.settimeout(0.05)
        try:
            while not stop.is_set():
                if client is None:
                    with contextlib.suppress(TimeoutError):
                        client = listener.accept()[0]
                    continue
                ready, _, _ = select.select([client, there], [], [], 0.05)
                if there in ready:
                    client.sendall(os.read(there, 4096))
                if client in ready:
                    data = client.recv(4096)
                    if data:
                        os.write(there, data)
                    else:
                        client.close()
                        client = None
        finally:
            listener.close()
            os.close(there)
            if client is not None:
                client.close()
