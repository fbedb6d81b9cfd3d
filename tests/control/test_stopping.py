"""The HTTPS listeners end: what is under way is answered, and who only keeps a connection is not waited for."""

from __future__ import annotations

import asyncio
import http.client
import logging
import ssl
import threading
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


def test_who_keeps_a_connection_is_not_waited_for_and_who_waits_is_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeops.control.http.GRACE_S", 20)
    authority = FleetAuthority.create(tmp_path / "ca", "f1")
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    for file, data in zip((certificate, key), authority.issue_server(["127.0.0.1"]), strict=True):
        file.write_bytes(data)
    app, bound = App(), bind("127.0.0.1", 0)
    servers = HttpServers([Listener(app, bound)], certificate, key)
    port = bound.getsockname()[1]
    servers.start()
    trusted = ssl.create_default_context(cadata=authority.ca_pem.decode())
    idle, busy = (http.client.HTTPSConnection("127.0.0.1", port, context=trusted, timeout=30) for _ in range(2))
    idle.request("GET", "/")
    assert idle.getresponse().read() == BODY
    answers: list[bytes] = []

    def ask() -> None:
        busy.request("GET", "/slow")
        answers.append(busy.getresponse().read())
        busy.close()

    asking = threading.Thread(target=ask)
    asking.start()
    assert app.asked.wait(30)
    with caplog.at_level(logging.ERROR, "uvicorn.error"):
        stopping = threading.Thread(target=servers.stop)
        stopping.start()
        # The idle one's end shows that it has begun.
        assert idle.sock is not None
        assert idle.sock.recv(1) == b""
        app.may_answer.set()
        stopping.join(30)
    asking.join(30)
    assert answers == [BODY]
    assert not servers.alive
    # It says so when its grace is over and somebody is left.
    assert [record.getMessage() for record in caplog.records] == []
    idle.close()
