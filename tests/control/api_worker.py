"""The API's app without sockets, on any registry, and worker processes that die while they answer a request."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from crash_worker import Killer
from registry_fleet import FLEET, MODEL, release
from sqlalchemy.orm import Session

from edgeops.contracts.enrolment import BrokerAddress
from edgeops.control.api.app import api_app
from edgeops.control.api.base import ControlApi
from edgeops.control.api.limits import REQUESTS_PER_S
from edgeops.control.api.resources import BrokerHealth, Health
from edgeops.control.database import Database
from edgeops.control.enrolment import FirstTrust
from edgeops.control.idempotency import CLAIM

TOKEN = "the owner's token"
WISH = {"model": MODEL, "version": "1.0.0"}


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body).get("code", ""))

    @property
    def replayed(self) -> bool:
        return self.headers.get("idempotency-replayed") == "true"


class Worker:
    """One control worker's API on a registry."""

    def __init__(
        self,
        where: Path | str,
        *,
        shut_out: Callable[[str], None] = lambda connection: None,
        requests_per_s: float = REQUESTS_PER_S,
    ) -> None:
        self.database = Database(where)
        self._loop = asyncio.Runner()
        broker = BrokerHealth(kind="none", connected=False, restarts=0)
        health = Health(
            status="ok", fleet=FLEET, version="0", broker=broker, messages_accepted=0, messages_refused=0
        )  # fmt: skip
        self.app = api_app(
            ControlApi(
                database=self.database,
                fleet=FLEET,
                trust=lambda: FirstTrust("https://x", FLEET, "0" * 64, "0" * 64),
                issuer=None,  # type: ignore[arg-type]
                ca_pem=b"",
                root_json=lambda: b"{}",
                broker=BrokerAddress(host="x", port=1, tls=False),
                artifacts_url="https://x",
                token=TOKEN,
                approval=False,
                releases=lambda: [release("1.0.0")],
                references=lambda release: {},
                trusted_rigs=dict,
                wake=lambda: None,
                shut_out=shut_out,
                health=lambda: health,
                metrics=lambda: b"",
                requests_per_s=requests_per_s,
            )
        )

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        path, _, query = path.partition("?")
        return self._loop.run(self._ask(method, path, query, data, headers))

    def apart(self, *asked: Any, **headers: str) -> Reply:
        """Ask on a thread of its own, while another one's request is under way on this one."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self, *asked, **headers).result()

    def close(self) -> None:
        self._loop.close()
        self.database.close()

    async def _ask(self, method: str, path: str, query: str, data: bytes, headers: dict[str, str]) -> Reply:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": data, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(self.scope(method, path, query, headers), receive, send)
        answered = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
        return Reply(sent[0]["status"], answered, b"".join(part.get("body", b"") for part in sent[1:]))

    def scope(self, method: str, path: str, query: str, headers: dict[str, str]) -> dict[str, Any]:
        """A request, as a server tells the app of it."""
        given = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"} | headers
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "https",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
        }


class CommitKiller(Killer):
    """Dies just before or just after a commit, at nothing else."""

    def _statement(self, *_: object) -> None:
        pass


def with_the_key_apart(mutant: str) -> None:
    """Let this process's databases write the key in a transaction of its own: before the change, or after it."""
    whole = Database.write

    @contextmanager
    def write(self: Database, *, claims: bool = True) -> Iterator[Session]:
        claim = CLAIM.get() if claims else None

        def take() -> None:
            if claim is not None and not claim.held:
                with whole(self, claims=False) as session:
                    claim.take(session)
                claim.held = True

        if mutant == "key first":
            take()
        with whole(self, claims=False) as session:
            yield session
        if mutant == "key last":
            take()

    Database.write = write  # type: ignore[method-assign]


def main(where: Path | str, mutant: str, everywhere: bool, counted: Any) -> None:
    """Answer `POST /rollouts` once whole, with key `whole`, and then, with key `pN`, die at point N, for each.

    Each answer comes from a process of its own. How many points there are is left in `counted`.
    """
    if mutant:
        with_the_key_apart(mutant)
    kind = Killer if everywhere else CommitKiller
    points, point = None, 0
    while points is None or point <= points:
        read, written = os.pipe()
        child = os.fork()
        if child == 0:
            worker = Worker(where)
            killer = kind(worker.database, point or None)
            worker("POST", "/api/v1/rollouts", WISH, **{"Idempotency-Key": f"p{point}" if point else "whole"})
            os.write(written, str(killer.seen).encode())
            os._exit(0)
        os.close(written)
        _, status = os.waitpid(child, 0)
        if points is None:
            points = int(os.read(read, 20))
        else:
            assert os.WIFSIGNALED(status), f"the worker did not die at point {point}"
        os.close(read)
        point += 1
    counted.value = points
