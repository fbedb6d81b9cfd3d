"""What every request is held to: how many, how large (also where no length is announced), and safe headers."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeops.contracts.errors import EdgeopsError
from edgeops.control.api.problems import problem_of
from edgeops.control.pace import Buckets, Offenders

MAX_BODY_BYTES = 256 << 10
HEALTH = "/api/v1/health"
REQUESTS_PER_S = 100.0
# What a caller may do at once, in seconds of its rate.
BURST_S = 4
STRANGERS_PER_S, STRANGERS_BURST = 5.0, 300
MAX_REFUSED = 20
ATTEMPTS_WINDOW_S = 60.0
MAX_ADDRESSES = 10_000
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
}


class BodyLimit:
    """ASGI middleware that refuses bodies above `MAX_BODY_BYTES` with 413."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > MAX_BODY_BYTES:
            await _too_large(scope, receive, send)
            return
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            return message if taken <= MAX_BODY_BYTES else {"type": "http.disconnect"}

        async def unless_too_large(message: Message) -> None:
            if taken <= MAX_BODY_BYTES:
                await send(message)

        try:
            await self._app(scope, limited, unless_too_large)
        except ClientDisconnect:
            if taken <= MAX_BODY_BYTES:
                return
        if taken > MAX_BODY_BYTES:
            await _too_large(scope, receive, send)


class RateLimit:
    """ASGI middleware that answers 429 to who asks too often: by token, and by address for wrong tokens and none.

    Whoever has a token that holds is not slowed down by what others of the same address try.

    Args:
        app: What it stands before.
        callers: What each token, and each address without one, may do.
        strangers: How many requests of an address may fail for want of a token that holds.
    """

    def __init__(self, app: ASGIApp, callers: Buckets, strangers: Buckets) -> None:
        self._app, self._callers, self._strangers = app, callers, strangers
        self._offenders = Offenders()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] == HEALTH:
            await self._app(scope, receive, send)
            return
        address = scope["client"][0] if scope.get("client") else ""
        token = Headers(scope=scope).get("Authorization", "")
        caller = hashlib.sha256(token.encode()).hexdigest() if token else f"at {address}"
        if wait_s := self._callers.take(caller):
            await self._too_often(address, "requests", wait_s)(scope, receive, send)
            return
        refused = False

        async def unless_guessed(message: Message) -> None:
            nonlocal refused
            failed = message["type"] == "http.response.start" and message["status"] == 401
            if failed and (wait_s := self._strangers.take(address)):
                refused = True
                await self._too_often(address, "requests without a token that holds", wait_s)(scope, receive, send)
            if not refused:
                await send(message)

        await self._app(scope, receive, unless_guessed)

    def _too_often(self, address: str, what: str, wait_s: float) -> Response:
        self._offenders.name(address, f"too many {what}")
        answer = problem_of(EdgeopsError("E-API-RATE", f"too many {what}", "Wait as long as Retry-After says."))
        answer.headers["Retry-After"] = str(math.ceil(wait_s))
        return answer


class Attempts:
    """Counts refused secrets by address: after so many within a minute, an address has to wait.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def check(self, address: str) -> None:
        """Refuse an address that has tried too often.

        Raises:
            EdgeopsError: E-API-RATE.
        """
        with self._lock:
            since_s, count = self._refused.get(address, (0.0, 0))
            if count >= MAX_REFUSED and self._clock() - since_s < ATTEMPTS_WINDOW_S:
                raise EdgeopsError(
                    "E-API-RATE", f"{count} refused attempts within a minute", "Wait a minute; check the secret."
                )

    def refused(self, address: str) -> None:
        """Note a secret that was refused."""
        now_s = self._clock()
        with self._lock:
            since_s, count = self._refused.get(address, (now_s, 0))
            if now_s - since_s >= ATTEMPTS_WINDOW_S:
                since_s, count = now_s, 0
            if address not in self._refused and len(self._refused) >= MAX_ADDRESSES:
                # The oldest goes: memory stays bounded, whoever asks from wherever.
                del self._refused[min(self._refused, key=lambda known: self._refused[known][0])]
            self._refused[address] = (since_s, count + 1)


class SafeHeaders:
    """ASGI middleware that adds the headers which every answer has: nothing is cached, guessed or framed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, with_headers)


async def _too_large(scope: Scope, receive: Receive, send: Send) -> None:
    error = EdgeopsError("E-WIRE-SIZE", f"the request's body is larger than {MAX_BODY_BYTES} bytes")
    await problem_of(error)(scope, receive, send)
