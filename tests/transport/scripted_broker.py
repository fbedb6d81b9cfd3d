"""A broker on a socket that says what a test wants, when it wants it: no real one can be made to."""

from __future__ import annotations

import socket
import threading

from edgeops.contracts.enrolment import BrokerAddress

WITHIN_S = 60.0
# MQTT 5, 3.2: connection accepted.
CONNACK = bytes((0x20, 3, 0, 0, 0))


class ScriptedBroker:
    """Serves on a thread; `serve` is what it does, up to `may_answer` and after."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = BrokerAddress(host="127.0.0.1", port=self.listener.getsockname()[1], tls=False)
        self._thread = threading.Thread(target=self.serve, daemon=True)
        self._thread.start()

    def serve(self) -> None:
        """Take connections."""
        raise NotImplementedError

    def close(self) -> None:
        """Answer what waits, and end."""
        self.may_answer.set()
        self._thread.join(WITHIN_S)
        self.listener.close()
