"""Who answers while no worker can: after a wait, each client is told to come again.

Workers accept connections themselves. While there is none, connections wait in the operating system's queue; a pause
that lasts longer than that is tolerable is said, so that no client hangs.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time

from edgeops.contracts.frames import HEADER, Frame, FrameRefusal
from edgeops.contracts.wire import encode

AWAY = "E-INFER-AWAY"
RETRY_AFTER_S = 5
# Who is still sending is heard out for so long: closing at once would take the answer away from him.
LINGER_S = 2.0
MAX_LINGERING = 256


class Porter:
    """Refuses connections on a model's listening sockets, from `start` to `stop`.

    Args:
        http: Listens for HTTP; with TLS, whose handshake is the worker's, connections are closed without a word.
        lines: Listens for frames.
        tls: Whether HTTP is with TLS.
    """

    def __init__(self, http: socket.socket, lines: socket.socket, *, tls: bool = False) -> None:
        body = json.dumps({"error": f"{AWAY}: the model is away while its bundle is changed", "code": AWAY}).encode()
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"Retry-After: {RETRY_AFTER_S}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        said = encode(FrameRefusal(code=AWAY, error="the model is away while its bundle is changed"))
        frame = HEADER.pack(Frame.REFUSAL, 0, len(said), 0) + said
        self._words = {http: b"" if tls else head.encode() + body, lines: frame}
        self._lock = threading.Lock()
        self._refused = 0
        self._thread: threading.Thread | None = None
        self._bell: socket.socket | None = None

    @property
    def at_work(self) -> bool:
        """Whether connections are refused now."""
        return self._thread is not None

    def start(self) -> None:
        """Begin, with the connections that wait already."""
        if self._thread is None:
            self._bell, heard = socket.socketpair()
            self._thread = threading.Thread(target=self._work, args=(heard,), name="porter", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Leave the door to a worker."""
        if self._thread is not None and self._bell is not None:
            self._bell.close()
            self._thread.join()
            self._thread = self._bell = None

    def take(self) -> int:
        """Return how many were refused since the last time."""
        with self._lock:
            refused, self._refused = self._refused, 0
        return refused

    def _work(self, heard: socket.socket) -> None:
        leaving: dict[socket.socket, float] = {}
        with heard, selectors.DefaultSelector() as selector:
            for one in (heard, *self._words):
                selector.register(one, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(0.5 if leaving else None):
                    ready = key.fileobj
                    if ready is heard:
                        for client in leaving:
                            client.close()
                        return
                    if isinstance(ready, socket.socket) and ready in self._words:
                        self._refuse(ready, selector, leaving)
                    elif isinstance(ready, socket.socket) and not _still_sending(ready):
                        leaving[ready] = 0.0
                for client in [client for client, until_s in leaving.items() if until_s < time.monotonic()]:
                    selector.unregister(client)
                    client.close()
                    del leaving[client]

    def _refuse(
        self, listener: socket.socket, selector: selectors.BaseSelector, leaving: dict[socket.socket, float]
    ) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # a worker was faster, or the client is gone again
        client.setblocking(False)
        try:
            client.send(self._words[listener])
            client.shutdown(socket.SHUT_WR)
        except OSError:
            client.close()
            return
        with self._lock:
            self._refused += 1
        if len(leaving) >= MAX_LINGERING:
            client.close()
            return
        leaving[client] = time.monotonic() + LINGER_S
        selector.register(client, selectors.EVENT_READ)


def _still_sending(client: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        try:
            return bool(client.recv(1 << 16))
        except ConnectionError:
            return False
    return True
