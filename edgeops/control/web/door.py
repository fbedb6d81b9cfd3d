"""Lets people into the web page: they sign in with an API token, which their browser keeps and shows each time.

The cookie is the token itself: out of reach of scripts, sent to this server alone, over TLS alone. So a token that is
revoked or has run out is out at once, and there is no second secret.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeops.contracts.access import Permission
from edgeops.contracts.errors import EdgeopsError
from edgeops.control import access
from edgeops.control.api.limits import Attempts

PATH = "/ui"
SIGN_IN, SIGN_OUT = f"{PATH}/sign-in", f"{PATH}/sign-out"
COOKIE = "__Host-edgeops"
# Then one signs in anew; the token itself may end before.
SIGNED_IN_S = 12 * 3600
_MAX_FORM_BYTES = 4096
_POLICY_VIOLATION = 1008
# What NiceGUI's pages need: their own scripts and styles, and Vue, which makes functions of its templates.
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'self'; object-src 'none'"
)
_FORM_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
_FORM = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>edgeops: sign in</title>
<style>body{{font-family:sans-serif;max-width:28em;margin:15vh auto}}
input,button{{width:100%;padding:.6em;margin:.3em 0}}</style></head>
<body><h1>{fleet}</h1><p>{said}</p><form method="post" action="{action}">
<label>API token <input name="token" type="password" autocomplete="off" required autofocus></label>
<button>Sign in</button></form></body></html>"""


class Door:
    """ASGI middleware before the pages: without a good token there is only the form.

    Args:
        app: The pages.
        keeper: Knows tokens.
        fleet: The fleet, for the form.
    """

    def __init__(self, app: ASGIApp, keeper: access.Doorkeeper, fleet: str) -> None:
        self._app, self._keeper, self._fleet = app, keeper, fleet
        self._attempts = Attempts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one websocket."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        send = _with_headers(send) if scope["type"] == "http" else send
        if scope["type"] == "http" and scope["path"] in (SIGN_IN, SIGN_OUT):
            await (await self._sign(Request(scope, receive)))(scope, receive, send)
        elif await self._is_known(HTTPConnection(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            await RedirectResponse(SIGN_IN, 303)(scope, receive, send)

    async def _is_known(self, connection: HTTPConnection) -> bool:
        # A page of another site must not open this fleet's websocket in a signed-in browser.
        origin = connection.headers.get("origin")
        if origin is not None and origin != f"https://{connection.headers.get('host', '')}":
            return False
        return await run_in_threadpool(may_read, self._keeper, connection.cookies.get(COOKIE, ""))

    async def _sign(self, request: Request) -> Response:
        if request.scope["path"] == SIGN_OUT or request.method not in ("GET", "POST"):
            response: Response = RedirectResponse(SIGN_IN, 303)
            response.delete_cookie(COOKIE, secure=True, httponly=True, samesite="strict")
            return response
        if request.method == "GET":
            return self._form("Sign in with an API token that may read.")
        address = request.client.host if request.client is not None else ""
        try:
            self._attempts.check(address)
        except EdgeopsError as error:
            return self._form(error.what, 429)
        token = await _token(request)
        if token is None or not await run_in_threadpool(may_read, self._keeper, token):
            self._attempts.refused(address)
            return self._form("That token is wrong, expired or revoked.", 403)
        response = RedirectResponse(f"{PATH}/", 303)
        response.set_cookie(COOKIE, token, max_age=SIGNED_IN_S, secure=True, httponly=True, samesite="strict")
        return response

    def _form(self, said: str, status: int = 200) -> Response:
        text = _FORM.format(fleet=html.escape(self._fleet), said=html.escape(said), action=SIGN_IN)
        return HTMLResponse(text, status, {"Content-Security-Policy": _FORM_POLICY})


def may_read(keeper: access.Doorkeeper, token: str) -> bool:
    """Say whether a token is somebody's who may read."""
    try:
        access.check_allowed(keeper.identify(token, time.time()), Permission.READ)
    except EdgeopsError:
        return False
    return True


async def _token(request: Request) -> str | None:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_FORM_BYTES:
            return None
    found = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
    return found if found.isascii() and found.isprintable() and ";" not in found else None


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("Content-Security-Policy", _PAGE_POLICY)
            headers["Strict-Transport-Security"] = "max-age=31536000"
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "no-referrer"
        await send(message)

    return sending


def beside(api: ASGIApp, pages: ASGIApp, is_page: Callable[[str], bool]) -> ASGIApp:
    """Return one app of two: the pages for their paths, the API for all others, with headers of its own."""

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("lifespan", "websocket") or is_page(scope["path"]):
            await pages(scope, receive, send)
        else:
            await api(scope, receive, send)

    return both
