"""The TUF repository as static files. The listener asks every client for a certificate of the fleet."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Scope


class _PublishedFiles(StaticFiles):
    """Files below one directory, with byte ranges; no listing, no link that leads out, nothing half-written."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Serve one file; files whose names begin with a dot are being written."""
        if any(part.startswith(".") and part != "." for part in Path(path).parts):
            raise HTTPException(404)
        return await super().get_response(path, scope)


def artifacts_app(repository: Path) -> Starlette:
    """Return the app that serves `metadata/` and `targets/` of a repository."""
    return Starlette(
        routes=[
            Mount("/metadata", _PublishedFiles(directory=repository / "metadata")),
            Mount("/targets", _PublishedFiles(directory=repository / "targets")),
        ]
    )
