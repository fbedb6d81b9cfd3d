"""What every request is held to: a limit on the body's size, also where no length is announced; safe headers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeops.contracts.errors import EdgeopsError
from edgeops.control.api.problems import problem_of

MAX_BODY_BYTES = 256 << 10
MAX_REFUSED = 20
ATTEMPTS_WINDOW_S = 60.0
MAX_ADDRESSES = 10_000
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'",
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
