"""What a request may cost: a limit on the body's size, held also where no length is announced."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeops.contracts.errors import EdgeopsError
from edgeops.control.api.problems import problem_of

MAX_BODY_BYTES = 256 << 10


class BodyLimit:
    """ASGI middleware that refuses bodies above `MAX_BODY_BYTES` with 413, before they are read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > MAX_BODY_BYTES:
            await _too_large()(scope, receive, send)
            return
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_BODY_BYTES:
                raise _error()
            return message

        await self._app(scope, limited, send)


def _error() -> EdgeopsError:
    return EdgeopsError("E-WIRE-SIZE", f"the request's body is larger than {MAX_BODY_BYTES} bytes")


def _too_large() -> ASGIApp:
    return problem_of(_error())
