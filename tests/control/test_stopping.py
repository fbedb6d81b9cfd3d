"""The HTTPS listeners end: what is under way is answered, and who only keeps a connection is not waited for.

And while they serve, their certificate is replaced between two connections.
"""

from __future__ import annotations

import asyncio
import http.client
import itertools
import logging
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeops.control.http import HttpServers, Listener, bind
from edgeops.trust.authority import FleetAuthority

BODY = b"x" * 200_000


class App:
    """Answers at once, or on `/slow` when it is told to."""

    def __init__(self) -> None:
        self.asked, self.may_answer = threading.Event(), threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            self.asked.set()
            while not self.may_answer.is_set():
                await asyncio.sleep(0.01)
        length = str(len(BODY)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": BODY})


def pair(folder: Path, authority: FleetAuthority, name: str) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    for file, data in zip((certificate, key), authority.issue_server(["127.0.0.1"]), strict=True):
        file.write_bytes(data)
    return certificate, key


def refused(port: int, replace: Callable[[], None], enough: Callable[[int, int], bool]) -> int:
    """Connect again and again while the certificate is replaced without a pause, until it was `enough`: so many
    connections, of which so many were refused. Return how many were refused."""
    over = threading.Event()

    def replace_all_the_time() -> None:
        while not over.is_set():
            replace()

    replacing = threading.Thread(target=replace_all_the_time)
    replacing.start()
    count = failed = 0
    try:
        while not enough(count, failed):
            count += 1
            try:
                ssl.get_server_certificate(("127.0.0.1", port), timeout=60)
            except OSError:
                failed += 1
    finally:
        over.set()
        replacing.join()
    return failed


def test_who_connects_while_the_certificate_is_replaced_is_answered(tmp_path: Path) -> None:
    authority = FleetAuthority.create(tmp_path / "ca", "f1")
    pairs = itertools.cycle([pair(tmp_path, authority, "one"), pair(tmp_path, authority, "other")])
    bound = bind("127.0.0.1", 0)
    servers = HttpServers([Listener(App(), bound)], *next(pairs))
    port = bound.getsockname()[1]
    servers.start()
    try:
        assert refused(port, lambda: servers.reload_certificate(*next(pairs)), lambda count, _: count == 100) == 0
        # Negative control: beside what begins connections, one finds the certificate without its key after a while.
        context, until_s = servers._servers[0].config.ssl, time.monotonic() + 60
        assert isinstance(context, ssl.SSLContext)
        assert refused(
            port,
            lambda: context.load_cert_chain(*next(pairs)),
            lambda _, failed: failed > 0 or time.monotonic() > until_s,
        )
    finally:
        servers.stop()


def test_who_keeps_a_connection_is_not_waited_for_and_who_waits_is_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeops.control.http.GRACE_S", 120)
    authority = FleetAuthority.create(tmp_path / "ca", "f1")
    certificate, key = pair(tmp_path, authority, "server")
    app, bound = App(), bind("127.0.0.1", 0)
    servers = HttpServers([Listener(app, bound)], certificate, key)
    port = bound.getsockname()[1]
    servers.start()
    trusted = ssl.create_default_context(cadata=authority.ca_pem.decode())
    idle, busy = (http.client.HTTPSConnection("127.0.0.1", port, context=trusted, timeout=60) for _ in range(2))
    idle.request("GET", "/")
    assert idle.getresponse().read() == BODY
    answers: list[bytes] = []

    def ask() -> None:
        busy.request("GET", "/slow")
        answers.append(busy.getresponse().read())
        busy.close()

    asking = threading.Thread(target=ask)
    asking.start()
    assert app.asked.wait(60)
    with caplog.at_level(logging.ERROR, "uvicorn.error"):
        stopping = threading.Thread(target=servers.stop)
        stopping.start()
        # The idle one's end shows that it has begun.
        assert idle.sock is not None
        assert idle.sock.recv(1) == b""
        app.may_answer.set()
        stopping.join(60)
    asking.join(60)
    assert answers == [BODY]
    assert not servers.alive
    # It says so when its grace is over and somebody is left.
    assert [record.getMessage() for record in caplog.records] == []
    idle.close()
