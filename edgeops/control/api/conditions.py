"""Entity tags: a GET says which form of a resource it answers, and a request may ask for or insist on one form."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

from fastapi import Header, Request
from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeops.contracts.errors import EdgeopsError
from edgeops.control.api.repeats import CHANGING, PREFIX

MAX_HEADER = 1000
IfMatch = Annotated[str | None, Header(max_length=MAX_HEADER, description="Entity tag of the form that was seen")]
_TAG = re.compile(r'(W/)?("[^"]*")')


def entity_tag(body: bytes) -> str:
    """Return the strong entity tag of a resource's JSON."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def names(header: str, tag: str, *, weak: bool) -> bool:
    """Whether a header `If-Match` or `If-None-Match` names a tag; `weak`: also by a weak one (RFC 9110, 8.8.3.2)."""
    return header.strip() == "*" or any(said == tag and (weak or not mark) for mark, said in _TAG.findall(header))


def check_unchanged(if_match: str | None, resource: BaseModel) -> None:
    """Refuse a change of a resource that is not as its requester saw it. Call it in the transaction of the change.

    Raises:
        EdgeopsError: E-API-CHANGED.
    """
    if if_match is None:
        return
    tag = entity_tag(resource.model_dump_json(by_alias=True).encode())
    if not names(if_match, tag, weak=False):
        raise EdgeopsError(
            "E-API-CHANGED",
            f"the resource's entity tag is {tag}, If-Match names {if_match[:80]}",
            "Read the resource again, and decide anew.",
        )


def refuse_unchecked(request: Request) -> None:
    """Refuse `If-Match` where it would not be checked: nobody should believe in a condition that was ignored.

    Raises:
        EdgeopsError: E-API-REQUEST.
    """
    checked = {field.alias for field in request.scope["route"].dependant.header_params}
    if "If-Match" in request.headers and request.method in CHANGING and "if-match" not in checked:
        raise EdgeopsError("E-API-REQUEST", "If-Match is not checked for this request", "Send it without.")


class EntityTags:
    """ASGI middleware that gives each JSON resource its entity tag, and 304 to those who have that form already."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        seen = ", ".join(Headers(scope=scope).getlist("If-None-Match"))
        start: Message = {}
        parts: list[bytes] = []

        async def tagged(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            parts.append(message.get("body", b""))
            if message.get("more_body", False):
                return
            body = b"".join(parts)
            if start["status"] == 200:
                headers, tag = MutableHeaders(scope=start), entity_tag(body)
                headers["ETag"] = tag
                if names(seen, tag, weak=True):
                    start["status"], body = 304, b""
                    del headers["Content-Length"], headers["Content-Type"]
            await send(start)
            await send({"type": "http.response.body", "body": body})

        await self._app(scope, receive, tagged)
