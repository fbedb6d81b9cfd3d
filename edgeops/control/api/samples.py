"""Raw inputs of a device over the REST API: asked for and fetched by operators only, and both are in the audit log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi import Path as PathParameter
from starlette.responses import Response

from edgeops.contracts.samples import SamplesWish
from edgeops.contracts.wire import decode
from edgeops.control import access, commands
from edgeops.control.api import resources
from edgeops.control.database import Database
from edgeops.control.models import CommandRow

_Id = Annotated[str, PathParameter(max_length=63)]


def router(database: Database, wake: Callable[[], None], may: Callable[..., access.Caller]) -> APIRouter:
    """Return the routes.

    Args:
        database: The registry.
        wake: Says that there may be something to publish.
        may: Dependency that lets only those in who may ask for raw inputs, and says who it is.
    """
    routes = APIRouter(prefix="/api/v1/devices", tags=["samples"])
    operator = Depends(may)
    octets: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}

    @routes.post("/{connection}/samples", status_code=201, summary="Ask a device for raw inputs, within bounds")
    def ask(
        connection: str, wish: resources.SamplesRequest, caller: access.Caller = operator
    ) -> resources.SamplesResource:
        asked = SamplesWish(
            model=wish.model,
            count=wish.count,
            max_bytes=wish.max_bytes,
            within_s=wish.within_s,
            share=wish.share,
        )
        now_s = time.time()
        id = commands.ask_for_samples(database, connection, asked, actor=caller.name, now_s=now_s, valid_s=wish.valid_s)
        wake()
        return show(connection, id)

    @routes.get("/{connection}/samples", summary="List what a device was asked for", dependencies=[operator])
    def asked(connection: str) -> resources.SamplesList:
        with database.read() as session:
            rows = commands.newest(session, connection)
            return resources.SamplesList(items=[_shown(row, time.time()) for row in rows])

    @routes.get("/{connection}/samples/{id}", summary="Say how far a device is with it", dependencies=[operator])
    def show(connection: str, id: _Id) -> resources.SamplesResource:
        with database.read() as session:
            return _shown(commands.find(session, connection, id), time.time())

    @routes.get("/{connection}/samples/{id}/data", summary="Fetch the inputs; that is noted", responses=octets)
    def data(connection: str, id: _Id, caller: access.Caller = operator) -> Response:
        found = commands.fetch(database, connection, id, actor=caller.name, now_s=time.time())
        return Response(found, media_type="application/octet-stream")

    return routes


def _shown(row: CommandRow, now_s: float) -> resources.SamplesResource:
    wish = decode(row.wish, SamplesWish, what="stored command")
    return resources.SamplesResource(
        id=row.id,
        model=wish.model,
        count=wish.count,
        max_bytes=wish.max_bytes,
        within_s=wish.within_s,
        share=wish.share,
        created_at_s=row.created_at_s,
        created_by=row.created_by,
        expires_at_s=row.expires_at_s,
        state=commands.state_of(row, now_s),
        code=row.code,
        detail=row.detail,
        total_bytes=row.total,
        answered_at_s=row.answered_at_s,
    )
