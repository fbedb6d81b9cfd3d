"""HTTP clients that ask more than they read: each answer goes with its request, and none is kept for who does not come.

The worker's connections on real sockets; what answers stands in for a model.
"""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from edgeops.agent.worker import server as server_module
from edgeops.agent.worker.held import Held
from edgeops.agent.worker.process import worker_loop
from edgeops.agent.worker.server import _Connection
from edgeops.agent.worker.service import HttpRequest, HttpResponse, refusal

WITHIN_S = 60.0
REQUEST = b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
LARGE = 1 << 20


class Desk:
    """A server whose answers are as long as is told, given at once or a moment later.

    Args:
        at_once: Answer on the event loop.
        length: Of an answer.
        max_body: Largest body of a request.
        max_held: What all connections together may have it keep.
    """

    token_sha256 = b""
    draining = False

    def __init__(self, *, at_once: bool, length: int, max_body: int = 1000, max_held: int = 1 << 30) -> None:
        self.service = SimpleNamespace(
            max_body_bytes=lambda: max_body,
            failed=lambda code: None,
            infers=lambda path: path != "/health",
            refused=lambda error: refusal(503, error.code, error.what),
        )
        self.held = Held(max_held)
        self.connections: set[_Connection] = set()
        self._at_once, self._body = at_once, b"x" * length
        self.asked: list[str] = []

    def answer(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        self.asked.append(request.path)
        response = HttpResponse(200, request.path.encode() + self._body)
        return response if self._at_once else self._later(response)

    async def _later(self, response: HttpResponse) -> HttpResponse:
        await asyncio.sleep(0.001)
        return response


def on_a_loop(desk: Desk, talk: Callable[[socket.socket], Awaitable[None]]) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: _Connection(desk), "127.0.0.1", 0)  # type: ignore[arg-type]
        with socket.create_connection(listening.sockets[0].getsockname()) as client:
            client.setblocking(False)
            await talk(client)
        await until(lambda: not desk.connections)
        assert desk.held.taken == 0
        listening.close()

    loop = worker_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(run(), WITHIN_S))
    finally:
        loop.close()


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def settled(value: Callable[[], int]) -> int:
    """Return a value once it has not changed for a while."""
    seen, same = value(), 0
    while same < 30:
        await asyncio.sleep(0.01)
        same = same + 1 if value() == seen else 0
        seen = value()
    return seen


async def read_all(client: socket.socket) -> bytes:
    data = bytearray()
    while more := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
        data += more
    return bytes(data)


@pytest.mark.parametrize("at_once", [True, False], ids=["quick", "slow"])
def test_a_client_that_does_not_read_is_answered_no_more_and_all_once_it_does(at_once: bool) -> None:
    count = 100
    desk = Desk(at_once=at_once, length=LARGE)

    async def talk(client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        requests = b"".join(REQUEST % number for number in range(count - 1))
        sending = loop.create_task(loop.sock_sendall(client, requests + b"GET /last HTTP/1.0\r\n\r\n"))
        await until(lambda: desk.asked)
        # What the kernel takes of answers, and one that it does not take whole.
        assert await settled(lambda: len(desk.asked)) < 40
        (connection,) = desk.connections
        assert connection._transport.get_write_buffer_size() < 2 * LARGE
        said = await read_all(client)
        await sending
        paths = [f"/{number}" for number in range(count - 1)] + ["/last"]
        assert desk.asked == paths
        bodies = [part[: part.index(b"x")].decode() for part in said.split(b"\r\n\r\n")[1:]]
        assert bodies == paths

    on_a_loop(desk, talk)


def test_a_refusal_comes_after_the_answers_to_what_came_before_it() -> None:
    desk = Desk(at_once=False, length=10)

    async def talk(client: socket.socket) -> None:
        await asyncio.get_running_loop().sock_sendall(
            client, REQUEST % 1 + REQUEST % 2 + b"no HTTP\r\n\r\n" + REQUEST % 3
        )
        said = await read_all(client)
        assert [part[:12] for part in said.split(b"HTTP/1.1 ")[1:]] == [
            b"200 OK\r\nCont",
            b"200 OK\r\nCont",
            b"400 Bad Requ",
        ]
        assert desk.asked == ["/1", "/2"]

    on_a_loop(desk, talk)


def test_a_client_that_reads_late_is_refused_and_seen_to_leave() -> None:
    """What it sends is not read while it does not read; that it has left has to be heard all the same."""
    desk = Desk(at_once=True, length=LARGE)

    async def talk(client: socket.socket) -> None:
        requests = b"".join(REQUEST % number for number in range(30))
        await asyncio.get_running_loop().sock_sendall(
            client, requests + b"POST /x HTTP/1.1\r\nContent-Length: 5000\r\n\r\n"
        )
        await until(lambda: any(connection._blocked and connection._deaf for connection in desk.connections))
        said = await read_all(client)
        assert (said.count(b"200 OK"), said.count(b"413 ")) == (30, 1)

    on_a_loop(desk, talk)


class DrainedMeanwhile(Desk):
    """Is to drain from its first request on."""

    def answer(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        self.draining = True
        return super().answer(request)


def test_what_was_taken_in_before_a_worker_drains_is_answered() -> None:
    desk = DrainedMeanwhile(at_once=False, length=10)

    async def talk(client: socket.socket) -> None:
        await asyncio.get_running_loop().sock_sendall(client, REQUEST % 1 + REQUEST % 2)
        said = await read_all(client)
        assert said.count(b"200 OK") == 2
        assert said.count(b"Connection: close") == 1

    on_a_loop(desk, talk)


def test_a_client_that_reads_neither_answers_nor_a_refusal_gives_its_place_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "REQUEST_WITHIN_S", 0.2)
    desk = Desk(at_once=True, length=8 * LARGE)

    async def talk(client: socket.socket) -> None:
        too_long = b"POST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(client, REQUEST % 1 + too_long)
        await until(lambda: desk.asked)
        loop = asyncio.get_running_loop()
        while desk.connections:
            await asyncio.sleep(0.05)
            for connection in list(desk.connections):
                connection.check_time(loop.time())

    on_a_loop(desk, talk)


HALF = 50_000
BEGUN = b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(HALF)


def test_bodies_of_many_clients_take_no_more_than_there_is_and_one_is_always_taken() -> None:
    """Who finds no room is told to come again, also while it is still sending; the others are answered."""
    desk = Desk(at_once=True, length=10, max_body=100_000, max_held=120_000)

    async def talk(client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        others = [socket.create_connection(client.getpeername()) for _ in range(4)]
        for number, other in enumerate(others):
            other.setblocking(False)
            await loop.sock_sendall(other, BEGUN % number)
        await until(lambda: sum(connection._deaf for connection in desk.connections) == 2)
        assert desk.held.taken <= 120_000
        told = 0
        for other in others:
            await loop.sock_sendall(other, bytes(HALF))
            said = await loop.sock_recv(other, 1 << 16)
            told += b"503 Service Unavailable" in said and b"Retry-After" in said and b"E-INFER-BUSY" in said
            other.close()
        assert told >= 2
        assert len(desk.asked) + told == 4
        await loop.sock_sendall(client, BEGUN % 9 + bytes(HALF))
        await until(lambda: desk.asked[-1] == "/9")

    on_a_loop(desk, talk)


@pytest.mark.parametrize("at_once", [True, False], ids=["quick", "slow"])
def test_one_client_may_send_more_than_there_is_room_for_all(at_once: bool) -> None:
    desk = Desk(at_once=at_once, length=10, max_body=100_000, max_held=60_000)

    async def talk(client: socket.socket) -> None:
        await asyncio.get_running_loop().sock_sendall(client, BEGUN % 1 + bytes(HALF))
        await until(lambda: desk.asked == ["/1"])

    on_a_loop(desk, talk)


def test_unread_answers_of_some_leave_no_room_for_those_of_others_but_health_is_told() -> None:
    desk = Desk(at_once=True, length=8 * LARGE, max_held=LARGE)

    async def talk(client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with socket.create_connection(client.getpeername()) as reader:
            reader.setblocking(False)
            await loop.sock_sendall(client, REQUEST % 1)
            await until(lambda: desk.held.taken >= LARGE)
            await loop.sock_sendall(reader, REQUEST % 2)
            assert b"E-INFER-BUSY" in await loop.sock_recv(reader, 1 << 16)
            await loop.sock_sendall(reader, b"GET /health HTTP/1.0\r\n\r\n")
            assert b"200 OK" in await loop.sock_recv(reader, 1 << 16)
        assert desk.asked == ["/1", "/health"]

    on_a_loop(desk, talk)


def test_a_body_in_many_parts_takes_no_more_than_it_has() -> None:
    """Each byte comes as a chunk of its own."""
    desk = Desk(at_once=True, length=10, max_body=200_000)
    connection = _Connection(desk)  # type: ignore[arg-type]
    head = b"POST /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"1\r\nx\r\n" * 1000
    tracemalloc.start()
    try:
        connection._parser.feed_data(head)
        for _ in range(150):
            connection._parser.feed_data(chunks)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert desk.held.taken == 150_000
    assert taken < 400_000
