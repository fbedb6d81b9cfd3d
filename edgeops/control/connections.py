"""What a client may cost a listener before it has asked anything: connections, time, memory. Who takes more is named.

The app's own limits begin where a request is whole. Below that a client could hold connections for ever by saying
nothing, or send a head that has no end; each connection is a file of this process, which has others to keep.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections import Counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edgeops.control.pace import Offenders

# From the connection, or a request's first byte, to the end of its head; and from there to the end of its body.
HEAD_WITHIN_S = 20.0
BODY_WITHIN_S = 60.0
# How long a client may take to read what fills the buffers of its connection, half a MiB.
READ_WITHIN_S = 300.0
MAX_HEAD_BYTES = 64 << 10
# All of a request, with the framing of chunks and what follows a body that was refused.
MAX_REQUEST_BYTES = 2 << 20
# Of each listener. The rest of what the system allows is for the broker, the registry and the artifacts' files.
MAX_OPEN = 600
MAX_OPEN_PER_ADDRESS = 200
SPARE_FILES = 256
LISTENERS = 2
# Where half of them are taken, who has its answer makes room for others: a fleet that fetches at once is larger.
CROWDED_IDLE_S = 1
_REQUEST, _READING = "whole request", "reading of the answer"
_TOO_LARGE = "The request is too large."


def room(wanted: int = MAX_OPEN) -> int:
    """Return how many connections each listener may have open: no more than the system's files are enough for."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else max(8, min(wanted, (files - SPARE_FILES) // LISTENERS))


_OFFENDERS = Offenders()


class _Open(socket.socket):
    """A connection that says when it is closed."""

    among: Counter[str]
    address = ""

    def close(self) -> None:
        if self.fileno() >= 0:
            self.among[self.address] -= 1
            self.among += Counter()  # none is kept at 0
        super().close()


class Listening(socket.socket):
    """A listening socket that has at most so many connections open, and at most so many of one address.

    What is too many is closed at once, before TLS, and costs those that are open nothing.

    Args:
        family: Of its address.
        most: How many.
        of_one: How many of one address; None: no less than all.
    """

    def __init__(self, family: int, most: int, of_one: int | None) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self.most, self._of_one = most, min(most, of_one or most)
        self._open: Counter[str] = Counter()

    def accept(self) -> tuple[socket.socket, Any]:
        """Take a connection.

        Raises:
            ConnectionAbortedError: It was one too many.
        """
        taken, address = super().accept()
        host = str(address[0])
        if self._open.total() >= self.most or self._open[host] >= self._of_one:
            taken.close()
            _OFFENDERS.name(host, f"a connection was refused: {self._open[host]} are open, {self._open.total()} of all")
            raise ConnectionAbortedError(f"too many connections of {host}")
        connection = _Open(self.family, self.type, self.proto, fileno=taken.detach())
        connection.among, connection.address = self._open, host
        self._open[host] += 1
        return connection, address


class BoundedProtocol(HttpToolsProtocol):
    """HTTP whose clients have to come to an end: with a request's head, its body, and with reading the answer.

    Args:
        arguments: Those of its base.
        most_open: How many connections its listener may have.
        named: As `arguments`.
    """

    def __init__(self, *arguments: Any, most_open: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._most_open = most_open
        self._deadlines: dict[str, asyncio.TimerHandle] = {}
        self._idle_s = self.timeout_keep_alive
        self._taken, self._most = 0, MAX_HEAD_BYTES

    def connection_made(self, transport: Any) -> None:
        """It has so long to ask something."""
        super().connection_made(transport)
        self._within(HEAD_WITHIN_S, _REQUEST)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        for what in list(self._deadlines):
            self._done(what)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, unless it is too much."""
        self._taken += len(data)
        if _REQUEST not in self._deadlines:
            self._within(HEAD_WITHIN_S, _REQUEST)  # also of line ends alone, which begin nothing
        super().data_received(data)
        if self._taken > self._most and not self.transport.is_closing():
            self._name(f"a request of more than {self._most} bytes was broken off")
            self.send_400_response(_TOO_LARGE)
            self.loop.call_later(1.0, self.transport.abort)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._taken, self._most = 0, MAX_HEAD_BYTES
        self._within(HEAD_WITHIN_S, _REQUEST)

    def on_headers_complete(self) -> None:
        """Its body may follow."""
        self._most = MAX_REQUEST_BYTES
        self._within(BODY_WITHIN_S, _REQUEST)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """It is whole, and the client may take its time."""
        self._done(_REQUEST)
        self._taken, self._most = 0, MAX_HEAD_BYTES
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It is answered, and may ask again for as long as there is room."""
        self.timeout_keep_alive = CROWDED_IDLE_S if len(self.connections) > self._most_open // 2 else self._idle_s
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        super().pause_writing()
        self._within(READ_WITHIN_S, _READING)

    def resume_writing(self) -> None:
        """It has read."""
        self._done(_READING)
        super().resume_writing()

    def _within(self, seconds: float, what: str) -> None:
        self._done(what)
        self._deadlines[what] = self.loop.call_later(seconds, self._give_up, what, seconds)

    def _done(self, what: str) -> None:
        if (deadline := self._deadlines.pop(what, None)) is not None:
            deadline.cancel()

    def _give_up(self, what: str, seconds: float) -> None:
        del self._deadlines[what]
        if self.transport.get_protocol() is self:  # else it became a websocket
            self._name(f"a connection was ended: no {what} within {seconds:g} s")
            self.transport.abort()

    def _name(self, what: str) -> None:
        _OFFENDERS.name(self.client[0] if self.client else "", what)
