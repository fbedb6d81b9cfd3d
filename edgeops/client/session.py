"""Requests of the control plane's REST API and their answers, over one pool of HTTPS connections.

A lost connection and status 503 are tried again. A change has an idempotency key, so that it is made once.
"""

from __future__ import annotations

import math
import random
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import msgspec
import urllib3

from edgeops.client import resources
from edgeops.contracts.errors import ERROR_CODES, EdgeopsError
from edgeops.contracts.wire import decode

T = TypeVar("T")

Query = Mapping[str, "str | Sequence[str]"]

CONNECT_WITHIN_S = 5.0
ANSWER_WITHIN_S = 30.0
MAX_ANSWER_BYTES = 32 << 20
PAGE = 500
TRIES = 5
RETRY_FIRST_S = 0.25
RETRY_MAX_S = 2.0
# No try begins later than this after the first.
RETRY_WITHIN_S = 20.0


class _Items(msgspec.Struct):
    items: msgspec.Raw
    next: str | int | None = None


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    data: bytes


class Session:
    """The way to one control plane. Safe for use by many threads.

    Args:
        base_url: `https://host:port`.
        token: Bearer token.
        ca_file: PEM file of the fleet's CA: no other is trusted.
        sleep: Waits so many seconds before a further try.

    Raises:
        EdgeopsError: E-CONFIG; the URL is no HTTPS URL, or the CA file cannot be read.
    """

    def __init__(self, base_url: str, token: str, ca_file: Path, *, sleep: Callable[[float], None]) -> None:
        if not base_url.startswith("https://"):
            raise EdgeopsError("E-CONFIG", f"{base_url!r} is not an https URL")
        try:
            context = ssl.create_default_context(cafile=str(ca_file))
        except OSError as error:
            raise EdgeopsError(
                "E-CONFIG", f"{ca_file}: {error.strerror or error}", "Give the fleet's ca.pem."
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._base = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"}
        self._sleep = sleep
        self._pool = urllib3.PoolManager(
            ssl_context=context,
            timeout=urllib3.Timeout(connect=CONNECT_WITHIN_S, read=ANSWER_WITHIN_S),
            retries=False,
        )

    def pages(self, path: str, kind: type[list[T]], query: Mapping[str, str] = MappingProxyType({})) -> Iterator[T]:
        """Yield all items of a list, page by page."""
        after: str | None = ""
        while after is not None:
            page, after = self.items(path, kind, {**query, "limit": str(PAGE), "after": after})
            yield from page

    def items(self, path: str, kind: type[T], query: Query | None = None) -> tuple[T, str | None]:
        """Return one page of a list, and the cursor of the following one; None at the end."""
        page = self.call("GET", path, _Items, query=query)
        return decode(bytes(page.items), kind, what=path), None if page.next is None else str(page.next)

    def call(self, method: str, path: str, kind: type[T], body: object = None, query: Query | None = None) -> T:
        """Make one request, and read the answer; see `send`."""
        return decode(self.send(method, path, body, query), kind, what=f"answer of {path}")

    def send(self, method: str, path: str, body: object = None, query: Query | None = None) -> bytes:
        """Make one request, again where that may help; it is carried out once at most.

        Raises:
            EdgeopsError: E-NET-UNREACHABLE, E-NET-RESPONSE, or what the control plane answered. E-API-REQUEST; it would
                refuse this: nothing was sent.
        """
        headers = dict(self._headers)
        if method != "GET":
            headers["Idempotency-Key"] = str(uuid.uuid4())
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = None if body is None else _encoded(body)
        until_s = time.monotonic() + RETRY_WITHIN_S
        attempt = 0
        while True:
            attempt += 1
            more = attempt < TRIES and time.monotonic() < until_s
            try:
                answer = self._request(method, path, data, query, headers)
            except urllib3.exceptions.HTTPError as error:
                if not more or isinstance(next(iter(error.args), None), ssl.SSLCertVerificationError):
                    raise EdgeopsError(
                        "E-NET-UNREACHABLE", f"{self._base}: {error}", "Is `edgeops serve` running there?"
                    ) from error
                least_s = 0.0
            else:
                wanted_s = _retry_after_s(answer)
                if not more or wanted_s is None:
                    return _content(path, answer)
                least_s = wanted_s
            self._sleep(max(least_s, _backoff_s(attempt)))

    def _request(
        self, method: str, path: str, data: bytes | None, query: Query | None, headers: Mapping[str, str]
    ) -> _Answer:
        response = self._pool.request(
            method,
            self._base + path,
            fields=_fields(query) if query else None,
            headers=headers,
            body=data,
            preload_content=False,
            redirect=False,
        )
        with response:
            return _Answer(response.status, response.headers, response.read(MAX_ANSWER_BYTES + 1))


def _backoff_s(attempt: int) -> float:
    """Return a random wait after try number `attempt` (from 1): full jitter under a doubling, bounded ceiling.

    Source: Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
    """
    return random.uniform(0, min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** (attempt - 1)))  # noqa: S311  spreads load


def _retry_after_s(answer: _Answer) -> float | None:
    """Return how long to wait at least before the request is made again; None: its answer is final.

    409 asks for a wait while the first request with the key is under way, 429 where there were too many. A kept answer
    stays as it is.
    """
    wait = answer.headers.get("Retry-After", "")
    soon = wait.isdecimal() and float(wait) <= RETRY_MAX_S
    waits = answer.status == 503 or (answer.status == 409 and wait) or (answer.status == 429 and soon)
    if "Idempotency-Replayed" in answer.headers or not waits:
        return None
    return min(float(wait), RETRY_MAX_S) if wait.isdecimal() else 0.0


def _content(path: str, answer: _Answer) -> bytes:
    if len(answer.data) > MAX_ANSWER_BYTES:
        raise EdgeopsError("E-NET-RESPONSE", f"{path}: the answer is larger than {MAX_ANSWER_BYTES} bytes")
    if answer.status >= 400:
        raise _problem(path, answer.status, answer.data)
    return answer.data


def _problem(path: str, status: int, data: bytes) -> EdgeopsError:
    try:
        said = decode(data, resources.Problem, what=path)
    except EdgeopsError:
        return EdgeopsError("E-NET-RESPONSE", f"{path}: HTTP status {status} without a reason that can be read")
    if said.code not in ERROR_CODES:
        return EdgeopsError("E-NET-RESPONSE", f"{path}: {said.code}: {said.detail}", said.next_step)
    return EdgeopsError(said.code, said.detail, said.next_step)


def _fields(query: Query) -> list[tuple[str, str]]:
    return [
        (name, value) for name, values in query.items() for value in ([values] if isinstance(values, str) else values)
    ]


def _encoded(body: object) -> bytes:
    """Return a body as JSON. What is no number would become `null`, which says that nothing is asked: no gate.

    Raises:
        EdgeopsError: E-API-REQUEST.
    """
    plain = msgspec.to_builtins(body)
    wrong = next(_not_finite(plain), None)
    if wrong is not None:
        raise EdgeopsError("E-API-REQUEST", f"{wrong} is not a number", "Give a finite one.")
    return msgspec.json.encode(plain)


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    """Name each number that is none, or is without end."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, part in parts:
        yield from _not_finite(part, f"{name}.{key}" if name else str(key))
    if isinstance(value, float) and not math.isfinite(value):
        yield name
