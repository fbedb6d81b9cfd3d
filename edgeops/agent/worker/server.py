"""HTTP/1.1 on a socket that the supervisor owns: limits on everything, and a drain that drops no request."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import cast

import httptools

from edgeops.agent.door import Door
from edgeops.agent.worker.held import Held
from edgeops.agent.worker.lines import Lines
from edgeops.agent.worker.service import HttpRequest, HttpResponse, Service, refusal
from edgeops.agent.worker.turns import Turns
from edgeops.contracts.errors import EdgeopsError

MAX_CONNECTIONS = 256
MAX_HEADER_BYTES = 16 << 10
MAX_PIPELINED = 16
# Of all connections: bodies that came, and answers that are not read. With those of frames less than what a worker may
# have beside its model (`limits.SLACK_MIB`).
MAX_HELD_BYTES = 64 << 20
REQUEST_WITHIN_S = 30.0
HANDSHAKE_WITHIN_S = 10.0
IDLE_WITHIN_S = 300.0
DRAIN_IDLE_S = 3.0
LINGER_S = 2.0
_SWEEP_S = 1.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in http.HTTPStatus
}

Answer = Callable[[HttpRequest], "HttpResponse | Awaitable[HttpResponse]"]


class InferenceServer:
    """Serves one model on two listening sockets: HTTP, and frames on a Unix socket.

    Args:
        service: What answers HTTP.
        lines: What answers frames.
        turns: Where inferences run.
        door: What is asked of clients over HTTP.

    Raises:
        EdgeopsError: E-CONFIG; the door's files cannot be used.
    """

    def __init__(self, service: Service, lines: Lines, turns: Turns, door: Door) -> None:
        self.service, self.turns, self.token_sha256 = service, turns, door.token_sha256
        self._context = door.context()
        self.draining = False
        self.connections: set[_Connection] = set()
        # A request of binary tensors finds room beside what is usual.
        self.held = Held(MAX_HELD_BYTES + service.input_bytes())
        self._lines = lines
        self._server: asyncio.AbstractServer | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, listener: socket.socket, lines_listener: socket.socket) -> None:
        """Begin to accept connections on sockets that listen already: HTTP, and frames."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self),
            sock=listener,
            ssl=self._context,
            ssl_handshake_timeout=None if self._context is None else HANDSHAKE_WITHIN_S,
        )
        self._lines.start(lines_listener)
        self._sweeper = loop.create_task(self._sweep())

    def close_door(self) -> None:
        """Accept no more."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        self._lines.close_door()

    async def drain(self) -> None:
        """Accept no more, answer what is under way and send each client away, and return once all have left."""
        self.close_door()
        self._lines.say_bye()
        deadline = time.monotonic() + REQUEST_WITHIN_S
        idle_deadline = time.monotonic() + DRAIN_IDLE_S
        while (self.connections or self._lines.open) and time.monotonic() < deadline:
            if time.monotonic() > idle_deadline:
                for connection in list(self.connections):
                    connection.close_if_idle()
            await asyncio.sleep(0.02)
        for connection in list(self.connections):
            connection.abort()
        self._lines.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def answer(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        """Answer a request at once, or later if it is to run the model and that takes long."""
        if self.turns.at_once or not self.service.infers(request.path):
            return self.service.handle(request)
        return self._later(request)

    async def _later(self, request: HttpRequest) -> HttpResponse:
        try:
            return await self.turns.take(lambda: self.service.handle(request))
        except EdgeopsError as error:
            return self.service.refused(error)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = time.monotonic()
            for connection in list(self.connections):
                connection.check_time(now_s)
            self._lines.check_time(now_s)


class _Connection(asyncio.Protocol):
    """One client. Requests that came in together are answered in order, one at a time."""

    def __init__(self, server: InferenceServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[tuple[HttpRequest | HttpResponse, bool]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._since_s = time.monotonic()
        self._reading = False
        self._half_closed = False
        # Nothing more is taken in: what was refused comes after the answers to what came before it.
        self._deaf = False
        self._closing = False
        # The client does not read what it was answered, and is answered no more until it does.
        self._blocked = False
        self._held_back = False
        # Bytes of this client's requests, and of an answer that it does not read.
        self._held = self._unread = 0
        self._max_body = server.service.max_body_bytes()
        self._begin()

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._server.connections) >= MAX_CONNECTIONS:
            self._refuse(503, "E-INFER-BUSY", f"{MAX_CONNECTIONS} connections are open", ((b"Retry-After", b"1"),))
            return
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._deaf = self._closing = True
        self._queue.clear()
        self._begin()
        self._give(self._held)
        self._server.held.give(self._unread)
        self._unread = 0

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # refused when its headers were complete
        except httptools.HttpParserCallbackError:
            # Not the client's fault but ours: it is told, and the error goes on to the loop's handler.
            self._refuse(500, "E-INTERNAL", "the request could not be handled")
            raise
        except httptools.HttpParserError as error:
            if not self._deaf:
                self._refuse(400, "E-INFER-REQUEST", f"not HTTP/1.1: {error}")

    def eof_received(self) -> bool:
        self._half_closed = True
        if self._transport.get_extra_info("sslcontext") is not None:
            return False  # TLS has no half-closed connections
        return self._task is not None or bool(self._queue)

    def pause_writing(self) -> None:
        self._blocked = True
        self._unread = self._transport.get_write_buffer_size()
        self._server.held.taken += self._unread
        self._hold_back()

    def resume_writing(self) -> None:
        self._blocked = False
        self._server.held.give(self._unread)
        self._unread = 0
        self._go_on()

    def _hold_back(self) -> None:
        self._held_back = True
        self._transport.pause_reading()

    def _go_on(self) -> None:
        """Answer what waits, and take in more once there is room."""
        while self._queue and not (self._task is not None or self._blocked or self._closing):
            self._answer(*self._queue.popleft())
        if self._held_back and len(self._queue) < MAX_PIPELINED and not (self._blocked or self._closing):
            self._held_back = False
            self._transport.resume_reading()

    # The parser's side

    def _begin(self) -> None:
        self._path = b""
        # Most bodies come in one part; of many small ones each would cost more than it has.
        self._body, self._rest = b"", bytearray()
        self._body_bytes = self._header_bytes = 0
        self._json_length: bytes | None = None
        self._encoded = self._expects = False
        self._passes = not self._server.token_sha256

    def on_message_begin(self) -> None:
        self._begin()
        self._reading = True
        self._since_s = time.monotonic()

    def on_url(self, url: bytes) -> None:
        self._path += url
        self._count_header(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_header(len(name) + len(value))
        lower = name.lower()
        if lower == b"inference-header-content-length":
            self._json_length = value
        elif lower == b"authorization" and self._server.token_sha256:
            scheme, _, token = value.partition(b" ")
            given = hashlib.sha256(token.strip()).digest()
            self._passes = scheme.lower() == b"bearer" and hmac.compare_digest(given, self._server.token_sha256)
        elif lower == b"content-encoding":
            self._encoded = value.lower() != b"identity"
        elif lower == b"expect":
            self._expects = value.lower() == b"100-continue"
        elif lower == b"content-length" and value.isdigit() and int(value[:18]) > self._max_body:
            self._refuse_body()

    def on_headers_complete(self) -> None:
        if self._deaf:
            return
        if not self._passes:
            # Before its body is taken in: who may not ask shall cost nothing.
            self._server.service.failed("E-INFER-TOKEN")
            self._refuse(401, "E-INFER-TOKEN", "a bearer token is needed", ((b"WWW-Authenticate", b"Bearer"),))
        elif self._parser.should_upgrade():
            self._refuse(400, "E-INFER-REQUEST", "the protocol cannot be changed")
        elif self._expects:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._max_body:
            self._refuse_body()
        elif self._deaf:
            return
        elif not self._server.held.take(len(body), own=self._held):
            self._server.service.failed("E-INFER-BUSY")
            self._refuse(503, "E-INFER-BUSY", "other clients' requests take all the room", ((b"Retry-After", b"1"),))
        else:
            self._held += len(body)
            if self._body:
                self._rest += body
            else:
                self._body = body

    def on_message_complete(self) -> None:
        self._reading = False
        self._since_s = time.monotonic()
        if self._deaf:
            return
        request = HttpRequest(
            self._parser.get_method().decode("latin-1"),
            self._path.decode("latin-1"),
            b"".join((self._body, self._rest)) if self._rest else self._body,
            self._json_length,
            self._encoded,
        )
        self._body, self._rest = b"", bytearray()
        keep_alive = self._parser.should_keep_alive()
        if self._task is None and not self._queue and not self._blocked:
            self._answer(request, keep_alive)
            return
        self._queue.append((request, keep_alive))
        if len(self._queue) >= MAX_PIPELINED:
            self._hold_back()

    # Answers

    def _answer(self, request: HttpRequest | HttpResponse, keep_alive: bool) -> None:
        if isinstance(request, HttpResponse):
            self._write(request, keep_alive)
            return
        answer, length = self._asked(request), len(request.body)
        if isinstance(answer, HttpResponse):
            self._give(length)
            self._write(answer, keep_alive)
        else:
            self._task = asyncio.get_running_loop().create_task(self._answer_later(answer, length, keep_alive))
            self._task.add_done_callback(self._answered)

    def _asked(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        server = self._server
        if server.held.is_full(own=self._held + self._unread) and server.service.infers(request.path):
            return server.service.refused(
                EdgeopsError("E-INFER-BUSY", "what other clients sent or do not read is too much")
            )
        return server.answer(request)

    def _answered(self, task: asyncio.Task[None]) -> None:
        """A defect that one connection met ends that one, as where an inference is answered at once."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            told = {"message": "a request could not be handled", "exception": error, "protocol": self}
            asyncio.get_running_loop().call_exception_handler(told)

    def _give(self, length: int) -> None:
        """What came in a request is kept no more."""
        length = min(length, self._held)
        self._held -= length
        self._server.held.give(length)

    async def _answer_later(self, answer: Awaitable[HttpResponse], length: int, keep_alive: bool) -> None:
        try:
            response = await answer
        except BaseException:
            self.abort()
            raise
        self._give(length)
        self._write(response, keep_alive)
        self._task = None
        self._go_on()

    def _write(self, response: HttpResponse, keep_alive: bool) -> None:
        if self._closing:
            return
        keep_alive = keep_alive and (bool(self._queue) or not (self._server.draining or self._half_closed))
        extra = b"".join(b"%s: %s\r\n" % header for header in response.headers)
        self._transport.write(
            b"".join(
                (
                    _STATUS_LINES[response.status],
                    b"Content-Type: %s\r\nContent-Length: %d\r\n" % (response.content_type, len(response.body)),
                    extra,
                    b"\r\n" if keep_alive else b"Connection: close\r\n\r\n",
                    response.body,
                )
            )
        )
        self._since_s = time.monotonic()
        if not keep_alive:
            self._end()

    def _refuse(self, status: int, code: str, what: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        if not self._deaf:
            self._deaf = True
            self._give(len(self._body) + len(self._rest))
            self._body, self._rest = b"", bytearray()
            self._queue.append((refusal(status, code, what, headers), False))
            self._go_on()

    def _refuse_body(self) -> None:
        if not self._deaf:
            self._refuse(413, "E-INFER-REQUEST", f"a body may have {self._max_body} bytes")

    def _count_header(self, length: int) -> None:
        self._header_bytes += length
        if self._header_bytes > MAX_HEADER_BYTES and not self._deaf:
            self._refuse(431, "E-INFER-REQUEST", f"headers may have {MAX_HEADER_BYTES} bytes")

    # Time

    def check_time(self, now_s: float) -> None:
        """Close a connection that is idle for too long, or whose client is too slow."""
        waited_s = now_s - self._since_s
        if self._task is not None:
            return
        unread = self._transport.get_write_buffer_size()
        limit_s = LINGER_S if self._closing and not unread else REQUEST_WITHIN_S
        if waited_s > limit_s and (self._deaf or unread):
            self.abort()
        elif self._reading and waited_s > REQUEST_WITHIN_S:
            self._refuse(408, "E-INFER-REQUEST", f"the request took more than {REQUEST_WITHIN_S:.0f} s")
        elif waited_s > IDLE_WITHIN_S:
            self._end()

    def close_if_idle(self) -> None:
        """Close a connection on which no request is under way."""
        if self._task is None and not self._reading and not self._queue:
            self._end()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self._deaf = self._closing = True
        self._transport.abort()

    def _end(self) -> None:
        """Close once everything is written. Who is still sending is heard out for a while: closing at once would take
        the answer away from it."""
        self._deaf = self._closing = True
        if self._reading and self._transport.can_write_eof():
            self._transport.write_eof()
            if self._held_back:
                self._held_back = False
                self._transport.resume_reading()
        else:
            self._transport.close()
