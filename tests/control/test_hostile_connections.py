"""Clients that never come to an end, or are too many: they are cut off and named, and the rest go on."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served_fleet import wait_for

from edgeops.control import connections, pace
from edgeops.control.connections import BoundedProtocol
from edgeops.control.http import HttpServers, Listener, bind
from edgeops.trust.authority import FleetAuthority

HOST = "127.0.0.1"
GET = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = b"x" * (16 << 20)
AWAY = (OSError, ssl.SSLError)


class App:
    """Reads a request's body, or does not, answers, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope["path"])
        while scope["path"] != "/unread" and (await receive()).get("more_body", False):
            pass
        body = LARGE if scope["path"] == "/large" else b"it is " + scope["path"].encode()
        head = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for begin in range(0, len(body), 1 << 20):
            await send({"type": "http.response.body", "body": body[begin : begin + (1 << 20)], "more_body": True})
        await send({"type": "http.response.body"})


class House:
    """A listener, and connections to it."""

    def __init__(self, folder: Path, authority: FleetAuthority, **room: int | None) -> None:
        certificate, key = folder / "server.pem", folder / "server.key"
        self.app, self._bound = App(), bind(HOST, 0, **room)
        self.servers = HttpServers([Listener(self.app, self._bound)], certificate, key)
        self._trusted = ssl.create_default_context(cadata=authority.ca_pem.decode())
        self.servers.start()

    def connect(self, address: str = HOST) -> ssl.SSLSocket:
        """Connect from one of this machine's addresses."""
        plain = socket.create_connection((HOST, self._bound.getsockname()[1]), 30, (address, 0))
        return self._trusted.wrap_socket(plain, server_hostname=HOST)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FleetAuthority]:
    folder = tmp_path_factory.mktemp("tls")
    authority = FleetAuthority.create(folder / "ca", "f1")
    for name, data in zip(("server.pem", "server.key"), authority.issue_server([HOST]), strict=True):
        (folder / name).write_bytes(data)
    return folder, authority


@pytest.fixture
def open_house(authority: tuple[Path, FleetAuthority]) -> Iterator[Callable[..., House]]:
    with contextlib.ExitStack() as stack:

        def made(**room: int | None) -> House:
            house = House(*authority, **room)
            stack.callback(house.servers.stop)
            return house

        yield made


@pytest.fixture(autouse=True)
def all_are_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One is named once a minute: here each test begins a new one."""
    monkeypatch.setattr(connections, "_OFFENDERS", pace.Offenders())
    caplog.set_level(logging.WARNING, "edgeops.control.pace")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "edgeops.control.pace"]


def answered(link: ssl.SSLSocket) -> bytes:
    """What comes until an answer to `GET` is whole, or the connection ends."""
    link.settimeout(30)
    said = b""
    with contextlib.suppress(*AWAY):
        while not said.endswith(b"it is /next") and (part := link.recv(1 << 20)):
            said += part
    return said


def goes_on_until_it_is_away(link: ssl.SSLSocket, step: bytes) -> None:
    """Send a byte now and then, for as long as the server has it."""
    link.settimeout(0.05)
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        try:
            link.sendall(step)
            if link.recv(1 << 16) == b"":
                return
        except TimeoutError:
            continue
        except AWAY:
            return
    raise AssertionError("the server has it still")


# How a client begins, what it goes on with, and what it would have to send for an answer.
SLOW: dict[str, tuple[bytes, bytes, bytes]] = {
    "nothing": (b"", b"", GET),
    "a head that drips": (b"GET /next HTTP/1.1\r\nX: ", b"x", b"\r\nHost: x\r\n\r\n"),
    "a body that drips": (
        b"POST /next HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", b"0\r\n\r\n",
    ),
    "empty lines": (b"", b"\r\n", GET),
}  # fmt: skip


@pytest.mark.parametrize("slow", SLOW)
def test_who_does_not_come_to_an_end_is_cut_off_and_named(
    open_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, slow: str
) -> None:
    monkeypatch.setattr(connections, "HEAD_WITHIN_S", 0.3)
    monkeypatch.setattr(connections, "BODY_WITHIN_S", 0.3)
    house = open_house()
    begins, goes_on, _ = SLOW[slow]
    with house.connect() as link:
        with contextlib.suppress(*AWAY):
            link.sendall(begins)
        goes_on_until_it_is_away(link, goes_on)
    wait_for(lambda: told(caplog), "nobody is named")
    assert told(caplog) == [f"{HOST}: a connection was ended: no whole request within 0.3 s"]
    # Who comes to an end has its time, however busy the machine is.
    monkeypatch.setattr(connections, "HEAD_WITHIN_S", 60.0)
    monkeypatch.setattr(connections, "BODY_WITHIN_S", 60.0)
    with house.connect() as link:
        link.sendall(GET)
        assert answered(link).endswith(b"it is /next")


@pytest.mark.parametrize("slow", SLOW)
def test_if_nobody_ended_it_such_a_connection_would_stay(
    open_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """The control: its time is over, and it is there, and is answered."""
    over: list[str] = []
    monkeypatch.setattr(connections, "HEAD_WITHIN_S", 0.3)
    monkeypatch.setattr(connections, "BODY_WITHIN_S", 0.3)
    monkeypatch.setattr(BoundedProtocol, "_give_up", lambda self, what, seconds: over.append(what))
    begins, goes_on, ends = SLOW[slow]
    with open_house().connect() as link:
        link.sendall(begins + goes_on)
        wait_for(lambda: over, "its time is never over")
        link.sendall(ends)
        assert answered(link).endswith(b"it is /next")


def asks_and_does_not_read(house: House) -> ssl.SSLSocket:
    link = house.connect()
    link.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    return link


def test_who_does_not_read_its_answer_is_cut_off(
    open_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "READ_WITHIN_S", 0.3)
    with asks_and_does_not_read(open_house()) as link:
        wait_for(lambda: told(caplog), "it is waited for")
        assert len(answered(link)) < len(LARGE)
    assert told(caplog) == [f"{HOST}: a connection was ended: no reading of the answer within 0.3 s"]
    monkeypatch.setattr(connections, "READ_WITHIN_S", 300.0)  # Control
    with asks_and_does_not_read(open_house()) as link:
        left = len(LARGE)
        while left > 0 and (part := link.recv(1 << 20)):
            left -= len(part)
    assert left <= 0


def said_to(house: House, *sent: bytes) -> bytes:
    with house.connect() as link:
        with contextlib.suppress(*AWAY):
            for part in sent:
                link.sendall(part)
        return answered(link)


TOO_LARGE = {
    "a head": (b"GET /next HTTP/1.1\r\nHost: x\r\n", *[b"X: " + b"x" * 8000 + b"\r\n"] * 200, b"\r\n"),
    "a trailer": (
        b"POST /next HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        *[b"X: " + b"x" * 8000 + b"\r\n"] * 500, b"\r\n",
    ),
    "a body after its answer": (
        b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n", *[b"x" * 8000] * 500, GET,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TOO_LARGE)
def test_what_has_no_end_is_broken_off_and_named(
    open_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    house = open_house()
    assert b"it is /next" not in said_to(house, *TOO_LARGE[what])
    wait_for(lambda: told(caplog), "nobody is named")
    assert "bytes was broken off" in told(caplog)[0]
    assert house.servers.alive
    # Control: without the bounds the same is read to its end, and answered.
    for bound in ("MAX_HEAD_BYTES", "MAX_REQUEST_BYTES"):
        monkeypatch.setattr(connections, bound, 1 << 40)
    assert said_to(house, *TOO_LARGE[what]).endswith(b"it is /next")


def test_one_address_has_so_many_connections_and_others_come_in(
    open_house: Callable[..., House], caplog: pytest.LogCaptureFixture
) -> None:
    house = open_house(open_to=3)
    held = [house.connect() for _ in range(3)]
    with pytest.raises(AWAY):
        house.connect()
    wait_for(lambda: told(caplog), "nobody is named")
    assert told(caplog) == [f"{HOST}: a connection was refused: 3 are open, 3 of all"]
    for link in (held[0], house.connect("127.0.0.2")):
        link.sendall(GET)
        assert answered(link).endswith(b"it is /next")
        link.close()

    def comes_in() -> bool:
        with contextlib.suppress(*AWAY), house.connect() as link:
            link.sendall(GET)
            return answered(link).endswith(b"it is /next")
        return False

    wait_for(comes_in, "the place of one that went is not given on")
    for link in held:
        link.close()


@pytest.mark.parametrize("most", [3, 100])
def test_all_together_have_so_many_connections(open_house: Callable[..., House], most: int) -> None:
    """Control: where more may be, more are."""
    house, held = open_house(most=most), []
    for number in range(6):
        with contextlib.suppress(*AWAY):
            held.append(house.connect(f"127.0.0.{number + 1}"))
    assert len(held) == min(most, 6)
    for link in held:
        link.close()


@contextlib.contextmanager
def two_that_were_answered(house: House) -> Iterator[ssl.SSLSocket]:
    """Two clients have their answers and stay; the second one."""
    with house.connect() as first, house.connect() as second:
        for link in (first, second):
            link.sendall(GET)
            assert answered(link).endswith(b"it is /next")
        yield second


def test_where_it_is_crowded_who_has_its_answer_makes_room(
    open_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: where it is not, a connection is kept for the next request."""
    monkeypatch.setattr("edgeops.control.http.IDLE_S", 3600)
    monkeypatch.setattr(connections, "CROWDED_IDLE_S", 0.05)
    house = open_house()
    with two_that_were_answered(house) as link:
        time.sleep(0.3)
        link.sendall(GET)
        assert answered(link).endswith(b"it is /next")
    with two_that_were_answered(open_house(most=2)) as link:
        assert answered(link) == b""  # the server ends it


NEXT = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /first HTTP/1.1\r\nHost: x\r\n"
# One request for one server and two for another: what a proxy before this one, or behind it, could be deceived by.
SMUGGLED = {
    "both lengths": POST + b"Content-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + NEXT,
    "line ends of one kind": b"POST /first HTTP/1.1\nHost: x\nContent-Length: 0\n\n" + NEXT,
    "a folded length": POST + b"Content-Length:\r\n 0\r\n\r\n" + NEXT,
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + NEXT,
    "NUL in a header": POST + b"X: y\0z\r\nContent-Length: 0\r\n\r\n" + NEXT,
}
REFUSED = {
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 38\r\n\r\n" + NEXT,
    "a signed length": POST + b"Content-Length: +0\r\n\r\n" + NEXT,
    "an unknown coding": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + NEXT,
    "a chunk of too many digits": POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff0\r\n\r\n" + NEXT,
    "a bare line end in chunks": POST + b"Transfer-Encoding: chunked\r\n\r\n0\n\n" + NEXT,
    "HTTP/2 without asking": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + NEXT,
    "a tunnel": b"CONNECT other:443 HTTP/1.1\r\nHost: other\r\n\r\n" + NEXT,
}


def test_no_request_hides_in_another(open_house: Callable[..., House]) -> None:
    house = open_house()
    for what, sent in (SMUGGLED | REFUSED).items():
        said = said_to(house, sent)
        assert said.split(b" ", 2)[1] == b"400", what
        assert said.count(b"HTTP/1.1 ") == 1, what
    assert "/smuggled" not in house.app.asked


@pytest.mark.parametrize("what", SMUGGLED)
def test_a_lenient_reader_of_http_would_find_it(
    open_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The control: a reader that takes what is nearly HTTP."""
    made = BoundedProtocol.connection_made

    def lenient(self: BoundedProtocol, transport: Any) -> None:
        made(self, transport)
        self.parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_chunked_length=True, lenient_optional_cr_before_lf=True,
            lenient_optional_lf_after_cr=True,
        )  # fmt: skip

    monkeypatch.setattr(BoundedProtocol, "connection_made", lenient)
    house = open_house()
    with house.connect() as link:
        link.sendall(SMUGGLED[what])
        wait_for(lambda: "/smuggled" in house.app.asked, "it is not found")
