"""The web page's door: nobody sees anything without a token, and what the page gives is guarded against other sites."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
import urllib3
from served_fleet import BROKERS, Serving

from edgeops.control.web import door

DAY_S = 86_400.0
PAGES = ("/ui/", "/ui/devices", "/ui/devices/none", "/ui/releases", "/ui/rollouts", "/ui/rollouts/1")
WEBSOCKET = "/ui/_nicegui_ws/socket.io/?EIO=4&transport=websocket&client_id=x"


@pytest.fixture(scope="module")
def paged(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    home = Path(shutil.copytree(published, tmp_path_factory.mktemp("paged") / "home"))
    serving = Serving(home, BROKERS[-1], "--web")
    serving.start()
    yield serving
    serving.stop()


@pytest.fixture(scope="module")
def token(paged: Serving) -> str:
    return str(paged.api.create_api_token("looks", "viewer", valid_s=DAY_S).token)


class Browser:
    """What a browser sends; it keeps no cookie by itself."""

    def __init__(self, serving: Serving) -> None:
        self._base = serving.ready["api"]
        self._http = urllib3.PoolManager(ca_certs=str(serving.home / "ca" / "ca.pem"), retries=False)

    def get(self, path: str, token: str = "", **headers: str) -> urllib3.BaseHTTPResponse:
        return self.request("GET", path, token, **headers)

    def request(self, method: str, path: str, token: str, **headers: str) -> urllib3.BaseHTTPResponse:
        cookie = {"Cookie": f"{door.COOKIE}={token}"} if token else {}
        return self._http.request(method, self._base + path, headers=cookie | headers, redirect=False)

    def sign_in(self, token: str, path: str = door.SIGN_IN) -> urllib3.BaseHTTPResponse:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode({"token": token})
        return self._http.request("POST", self._base + path, body=body, headers=headers, redirect=False)


@pytest.fixture(scope="module")
def browser(paged: Serving) -> Browser:
    return Browser(paged)


@pytest.mark.parametrize("path", [*PAGES, "/ui/_nicegui/3.0.0/static/nicegui.js", "/ui/unknown"])
def test_without_a_token_there_is_only_the_form(browser: Browser, path: str) -> None:
    for shown in ("", "wrong", "eo_0000000000000000_x"):
        answer = browser.get(path, shown)
        assert (answer.status, answer.headers["Location"]) == (303, door.SIGN_IN)
        assert not answer.data
    form = browser.get(door.SIGN_IN)
    assert form.status == 200
    assert b"API token" in form.data


def test_a_token_that_may_read_signs_in(browser: Browser, token: str) -> None:
    answer = browser.sign_in(token)
    assert (answer.status, answer.headers["Location"]) == (303, "/ui/")
    words = {word.strip().lower() for word in answer.headers["Set-Cookie"].split(";")}
    assert {f"{door.COOKIE.lower()}={token.lower()}", "secure", "httponly", "samesite=strict", "path=/"} <= words
    for path in PAGES:
        assert browser.get(path, token).status == 200, path


def test_a_page_holds_no_secret_and_no_other_site_may_frame_it(browser: Browser, token: str) -> None:
    for answer in (browser.get("/ui/", token), browser.get(door.SIGN_IN)):
        policy = answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in policy
        assert "default-src 'self'" in policy or "default-src 'none'" in policy
        assert "max-age" in answer.headers["Strict-Transport-Security"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert token.encode() not in answer.data


@pytest.mark.parametrize("spoilt", ["", "wrong", "eo_0000000000000000_x", "a;b", "ü", "x" * 5000], ids=len)
def test_a_wrong_token_does_not_sign_in(paged: Serving, spoilt: str) -> None:
    answer = Browser(paged).sign_in(spoilt)
    assert answer.status in (403, 429)
    assert "Set-Cookie" not in answer.headers


def test_guessing_is_slowed_down(paged: Serving) -> None:
    browser = Browser(paged)
    statuses = [browser.sign_in("wrong").status for _ in range(40)]
    assert statuses[-1] == 429


def test_a_revoked_token_is_out_at_once(paged: Serving, browser: Browser) -> None:
    token = paged.api.create_api_token("leaves", "viewer", valid_s=DAY_S).token
    assert browser.get("/ui/", token).status == 200
    paged.api.revoke_api_token("leaves")
    assert browser.get("/ui/", token).status == 303


def test_signing_out_takes_the_cookie_away(browser: Browser, token: str) -> None:
    answer = browser.get(door.SIGN_OUT, token)
    assert answer.status == 303
    assert "max-age=0" in answer.headers["Set-Cookie"].lower()


def websocket_status(serving: Serving, token: str, origin: str | None) -> int:
    """Return the HTTP status with which the server answers a websocket's first request."""
    where = urlsplit(serving.ready["api"])
    assert where.hostname is not None
    lines = [
        f"GET {WEBSOCKET} HTTP/1.1", f"Host: {where.netloc}", "Connection: Upgrade", "Upgrade: websocket",
        "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
    ]  # fmt: skip
    lines += [f"Cookie: {door.COOKIE}={token}"] if token else []
    lines += [f"Origin: {origin}"] if origin is not None else []
    context = ssl.create_default_context(cafile=serving.home / "ca" / "ca.pem")
    with (
        socket.create_connection((where.hostname, where.port or 443), 10) as plain,
        context.wrap_socket(plain, server_hostname=where.hostname) as link,
    ):
        link.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return int(link.recv(64).split()[1])


def test_a_websocket_opens_for_its_own_page_alone(paged: Serving, token: str) -> None:
    own = f"https://{urlsplit(paged.ready['api']).netloc}"
    assert websocket_status(paged, token, own) == 101
    assert websocket_status(paged, "", own) == 403
    assert websocket_status(paged, "wrong", own) == 403
    for other in ("https://evil.example", "null", own.replace("https", "http")):
        assert websocket_status(paged, token, other) == 403


def test_the_api_beside_it_takes_no_cookie(paged: Serving, browser: Browser, token: str) -> None:
    assert browser.get("/api/v1/fleet", token).status == 401
    assert browser.get("/api/v1/fleet", Authorization=f"Bearer {token}").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_the_pages_take_nothing(browser: Browser, token: str, method: str) -> None:
    for path in PAGES:
        assert browser.request(method, path, token).status in (404, 405)


def test_a_control_plane_that_was_not_asked_has_no_page(standing: Serving) -> None:
    assert Browser(standing).get("/ui/").status in (401, 404)


_WEAKENED = """
from edgeops.control.web import door
door.may_read = lambda keeper, token: True
from edgeops.cli import main
main()
"""


class Weakened(Serving):
    """A control plane whose page believes every token."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", _WEAKENED]


def test_without_the_door_anybody_would_look(home: Path) -> None:
    """The control: the requests above do reach pages once nobody looks at the token."""
    weakened = Weakened(home, BROKERS[-1], "--web")
    weakened.start()
    try:
        browser = Browser(weakened)
        assert {browser.get(path).status for path in PAGES} == {200}
        assert browser.sign_in("wrong").status == 303
    finally:
        weakened.stop()
