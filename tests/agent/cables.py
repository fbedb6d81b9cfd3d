"""A cable between a board and whoever opens its port: it can be pulled, be noisy, and lead to another board."""

from __future__ import annotations

import contextlib
import os
import random
import select
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
        self.path, self.noise = path, noise
        self.passed = 0
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
        self.path.unlink(missing_ok=True)
        self.path.symlink_to(os.ttyname(theirs))

    def pull(self) -> None:
        """Pull it out: the device file is gone, and whoever has it open hears so."""
        self.path.unlink(missing_ok=True)
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
                        self.passed += len(data)
                        if data and self._random.random() < self.noise:
                            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
                        os.write(there if source == ours else ours, bytes(data))
        finally:
            for descriptor in (ours, theirs, there):
                os.close(descriptor)
