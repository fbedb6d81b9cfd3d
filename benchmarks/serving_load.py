"""Clients that ask as fast as they are answered: each sends its next request when it has the answer to the last.

They send bytes that were made before and look at an answer no more than it takes to know that it is whole, so that what
is measured is the server. All are one process with one thread.
"""

from __future__ import annotations

import re
import selectors
import socket
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

from edgeops.contracts.frames import HEADER, Frame

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RECEIVE_BYTES = 1 << 18
_TIMEOUT_S = 30.0


class Exchange(NamedTuple):
    """A request, and how to see that its answer is whole: the answer's length, or 0 while it is not all there."""

    request: bytes
    whole: Callable[[bytes], int]


class Load(NamedTuple):
    """What clients got: answers a second; latency in milliseconds; how many answers that is."""

    per_s: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    answers: int

    @staticmethod
    def of(times_s: list[float], took_s: float) -> Load:
        """Sum up."""
        times_s.sort()
        picked = [times_s[min(len(times_s) - 1, int(share * len(times_s)))] * 1e3 for share in (0.5, 0.99, 1.0)]
        return Load(len(times_s) / took_s, *picked, len(times_s))


def median(loads: list[Load]) -> Load:
    """Return the round with the median rate."""
    middle = statistics.median_low(load.per_s for load in loads)
    return next(load for load in loads if load.per_s == middle)


def called(function: Callable[[], object], for_s: float) -> Load:
    """Call a function again and again."""
    times_s = []
    begun_s = last_s = time.perf_counter()
    until_s = begun_s + for_s
    while last_s < until_s:
        function()
        now_s = time.perf_counter()
        times_s.append(now_s - last_s)
        last_s = now_s
    return Load.of(times_s, last_s - begun_s)


def asked(connect: Callable[[], socket.socket], exchange: Exchange, clients: int, for_s: float) -> Load:
    """Have clients ask, each over a connection of its own."""
    connections = [connect() for _ in range(clients)]
    try:
        if clients > 1:
            return _all(connections, exchange, for_s)
        client = connections[0]
        return called(lambda: ask(client, exchange), for_s)
    finally:
        for connection in connections:
            connection.close()


def ask(client: socket.socket, exchange: Exchange) -> bytes:
    """Ask once, and return the whole answer."""
    client.sendall(exchange.request)
    answer = client.recv(_RECEIVE_BYTES)
    while answer and not exchange.whole(answer):
        more = client.recv(_RECEIVE_BYTES)
        if not more:
            break
        answer += more
    if not exchange.whole(answer):
        raise SystemExit(f"the server ended the connection after {answer[:300]!r}")
    return answer


def _all(connections: list[socket.socket], exchange: Exchange, for_s: float) -> Load:
    times_s: list[float] = []
    with selectors.DefaultSelector() as selector:
        sent_s = {}
        got = dict.fromkeys(connections, b"")
        begun_s = time.perf_counter()
        for client in connections:
            selector.register(client, selectors.EVENT_READ)
            sent_s[client] = time.perf_counter()
            client.sendall(exchange.request)
        until_s = begun_s + for_s
        now_s = begun_s
        while now_s < until_s:
            events = selector.select(_TIMEOUT_S)
            if not events:
                raise SystemExit(f"no answer within {_TIMEOUT_S} s")
            for key, _ in events:
                client = key.fileobj
                assert isinstance(client, socket.socket)
                data = client.recv(_RECEIVE_BYTES)
                if not data:
                    raise SystemExit("the server ended a connection")
                got[client] += data
                if not exchange.whole(got[client]):
                    continue
                got[client] = b""
                now_s = time.perf_counter()
                times_s.append(now_s - sent_s[client])
                sent_s[client] = now_s
                client.sendall(exchange.request)
        return Load.of(times_s, now_s - begun_s)


def http_whole(data: bytes) -> int:
    """Return the length of the HTTP answer at the beginning; one that is no success ends the benchmark."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return 0
    if not data.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"refused: {data[:600]!r}")
    length = _LENGTH.search(data, 0, end)
    if length is None:  # chunked
        last = data.find(b"\r\n0\r\n\r\n", end)
        return last + 7 if last >= 0 else 0
    size = end + 4 + int(length[1])
    return size if len(data) >= size else 0


def http_body(data: bytes) -> bytes:
    """Return the body of a whole answer."""
    head, body = data.split(b"\r\n\r\n", 1)
    if _LENGTH.search(head):
        return body
    parts = []
    while body:
        size, rest = body.split(b"\r\n", 1)
        parts.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :] if int(size, 16) else b""
    return b"".join(parts)


def http_request(path: str, body: bytes, *headers: str) -> bytes:
    """Return a request."""
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


def frame_whole(data: bytes) -> int:
    """Return the length of the frame at the beginning."""
    if len(data) < HEADER.size:
        return 0
    kind, _, length, _ = HEADER.unpack_from(data)
    if kind != Frame.ANSWER:
        raise SystemExit(f"refused: {data[:600]!r}")
    return HEADER.size + length if len(data) >= HEADER.size + length else 0


def tcp(port: int) -> socket.socket:
    """Connect to a port of this machine."""
    client = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client
