"""Idempotency keys over HTTP: a changing request that is repeated gets the answer of the first, and changes nothing."""

from __future__ import annotations

import hashlib
import logging
import time

from fastapi.security.utils import get_authorization_scheme_param
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeops.contracts.errors import EdgeopsError
from edgeops.control import idempotency
from edgeops.control.access import Doorkeeper
from edgeops.control.api.access_resources import ToldOnce
from edgeops.control.api.problems import problem_of
from edgeops.control.database import Database
from edgeops.control.idempotency import CLAIM, Answer, Claim, KeyedRequest

log = logging.getLogger(__name__)

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
PREFIX = "/api/v1/"
MAX_KEY = 128


def check_key(given: list[str]) -> str:
    """Return the key of a request's headers of that name.

    Raises:
        EdgeopsError: E-API-IDEMPOTENCY.
    """
    if len(given) != 1 or not 1 <= len(given[0]) <= MAX_KEY or not all("!" <= letter <= "~" for letter in given[0]):
        raise EdgeopsError(
            "E-API-IDEMPOTENCY",
            f"{HEADER} is not one value of 1 to {MAX_KEY} visible ASCII characters",
            "Take a random UUID, and the same one only for the same request.",
        )
    return given[0]


class IdempotencyKeys:
    """ASGI middleware that lets a change with a key be made once. Requests without a key pass as they are.

    Args:
        app: What it stands before.
        database: The registry; its `write` takes the key with the change.
        door: Says whose request it is: a key belongs to who sent it.
    """

    def __init__(self, app: ASGIApp, database: Database, door: Doorkeeper) -> None:
        self._app, self._database, self._door = app, database, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if HEADER not in headers or scope["method"] not in CHANGING or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        try:
            answer = await self._answer(scope, headers, receive)
        except EdgeopsError as error:
            if error.code == "E-API-AUTH":
                await self._app(scope, receive, send)
                return
            answer = problem_of(error)
        if answer is not None:
            await answer(scope, receive, send)

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive) -> ASGIApp | None:
        """Return the answer, fresh or kept; None: the client went away, or its body is too large.

        Raises:
            EdgeopsError: E-API-AUTH, E-API-IDEMPOTENCY, those of `recall`, or the database cannot be used.
        """
        _, bearer = get_authorization_scheme_param(headers.get("Authorization"))
        caller = await run_in_threadpool(self._door.identify, bearer, time.time())
        key = check_key(headers.getlist(HEADER))
        body = await _whole(receive)
        if body is None:
            return None
        query = scope["query_string"].decode("latin-1")
        path = scope["path"].encode() if scope.get("raw_path") is None else scope["raw_path"]
        asked = path.decode("latin-1") + (f"?{query}" if query else "")
        request = KeyedRequest(caller.name, key, scope["method"], asked, hashlib.sha256(body).hexdigest())
        if (kept := await run_in_threadpool(self._recall, request)) is not None:
            return _again(kept)
        claim = Claim(request, time.time())
        fresh = await self._run(claim, scope, body, receive)
        if claim.lost and (kept := await run_in_threadpool(self._recall, request)) is not None:
            return _again(kept)
        if claim.held:
            await run_in_threadpool(self._keep, request, fresh, _may_be_kept(scope))
        return fresh

    async def _run(self, claim: Claim, scope: Scope, body: bytes, receive: Receive) -> _Sent:
        """Return what the app answers, while its transactions take the key."""
        sent, given = _Sent(), False

        async def from_the_start() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        token = CLAIM.set(claim)
        try:
            await self._app(scope, from_the_start, sent.take)
        finally:
            CLAIM.reset(token)
        return sent

    def _recall(self, request: KeyedRequest) -> Answer | None:
        with self._database.read() as session:
            return idempotency.recall(idempotency.find(session, request), request, time.time())

    def _keep(self, request: KeyedRequest, sent: _Sent, may_be_kept: bool) -> None:
        answer = sent.answer
        try:
            with self._database.write(claims=False) as session:
                idempotency.keep(session, request, answer.status, answer if may_be_kept else None)
        except EdgeopsError as error:
            # The change is made, and its key says so: a repeat is told to read.
            log.error("the answer of %s %s could not be kept: %s", request.method, request.path, error)


class _Sent:
    """What an app sent, to be sent on."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    async def take(self, message: Message) -> None:
        """Take one message."""
        self._messages.append(message)

    @property
    def answer(self) -> Answer:
        """What was answered."""
        start = self._messages[0]
        content_type = Headers(raw=start["headers"]).get("Content-Type", "")
        return Answer(start["status"], content_type, b"".join(part.get("body", b"") for part in self._messages[1:]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it on."""
        for message in self._messages:
            await send(message)


async def _whole(receive: Receive) -> bytes | None:
    """Return a request's body; None: it broke off."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _may_be_kept(scope: Scope) -> bool:
    """Whether the answer may lie in the registry: it holds no secret. Of an unknown route nothing is kept."""
    model = getattr(scope.get("route"), "response_model", None)
    return isinstance(model, type) and not issubclass(model, ToldOnce)


def _again(kept: Answer) -> Response:
    return Response(kept.body, kept.status, {REPLAYED: "true", "Content-Type": kept.content_type})
