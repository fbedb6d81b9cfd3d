"""The TUF repository as static files. The listener asks every client for a certificate of the fleet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send


class _PublishedFiles(StaticFiles):
    """Files below one directory, with byte ranges; no listing, no link that leads out, nothing half-written."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Serve one file; files whose names begin with a dot are being written."""
        if any(part.startswith(".") and part != "." for part in Path(path).parts):
            raise HTTPException(404)
        return await super().get_response(path, scope)


class _NotForRevoked:
    """ASGI middleware: at every request, also on a connection that is kept alive, a revoked device is refused."""

    def __init__(self, app: ASGIApp, is_revoked: Callable[[str], bool]) -> None:
        self._app, self._is_revoked = app, is_revoked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        peer = scope.get("edgeops.peer")
        if scope["type"] == "http" and (peer is None or self._is_revoked(peer)):
            await Response("this device is revoked", 403, {"Connection": "close"})(scope, receive, send)
            return
        await self._app(scope, receive, send)


def artifacts_app(repository: Path, is_revoked: Callable[[str], bool]) -> Starlette:
    """Return the app that serves `metadata/` and `targets/` of a repository, but not to revoked devices."""
    return Starlette(
        middleware=[Middleware(_NotForRevoked, is_revoked=is_revoked)],
        routes=[
            Mount("/metadata", _PublishedFiles(directory=repository / "metadata")),
            Mount("/targets", _PublishedFiles(directory=repository / "targets")),
        ],
    )
