"""Requests that may come twice: the row of a request's key is written with its change, in one transaction.

A row says that the change was made. While it has no status, the answer is not known: the request is still under way, or
the control plane died before it kept the answer.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from edgeops.contracts.errors import EdgeopsError
from edgeops.control.models import RequestKey

# Between a change's commit and its kept answer lies at most the end of a revoked device's session.
UNDER_WAY_S = 15.0
MAX_ANSWER_BYTES = 256 << 10


class KeyedRequest(NamedTuple):
    """A request with an idempotency key: whose, which key, and what was asked."""

    principal: str
    key: str
    method: str
    path: str
    body_sha256: str


class Answer(NamedTuple):
    """What a request was answered."""

    status: int
    content_type: str
    body: bytes


class Claim:
    """A request's hold on its key, from its first change on.

    Args:
        request: The request.
        at_s: When it came, by the control plane's clock.
    """

    def __init__(self, request: KeyedRequest, at_s: float) -> None:
        self.request, self.at_s = request, at_s
        # Set after the commit: the change is made, the key is taken. A second transaction of the request goes on.
        self.held = False
        # The same request, on another thread or worker, was first.
        self.lost = False

    def take(self, session: Session) -> None:
        """Write the key's row into the transaction of the change, before the change: where two race, one waits here.

        Raises:
            EdgeopsError: E-API-BUSY; the key is taken. Nothing is written.
        """
        if self.held:
            return
        session.add(RequestKey(**self.request._asdict(), at_s=self.at_s, status=None, content_type="", answer=None))
        try:
            session.flush()
        except IntegrityError as error:
            self.lost = True
            raise _busy() from error


CLAIM: ContextVar[Claim | None] = ContextVar("CLAIM", default=None)


def find(session: Session, request: KeyedRequest) -> RequestKey | None:
    """Return the row of a request's key."""
    return session.get(RequestKey, (request.principal, request.key))


def recall(row: RequestKey | None, request: KeyedRequest, now_s: float) -> Answer | None:
    """Return what a repeated request is answered; None: its key is new.

    Raises:
        EdgeopsError: E-API-REUSED; the key was used for another request. E-API-BUSY; the first one is under way.
            E-API-DONE; it was carried out, and its answer is not known or not to be told again.
    """
    if row is None:
        return None
    if (row.method, row.path, row.body_sha256) != (request.method, request.path, request.body_sha256):
        raise EdgeopsError(
            "E-API-REUSED",
            f"the idempotency key was used for another request, {row.method} {row.path[:200]}",
            "Take a new key for each new request.",
        )
    if row.status is None and now_s < row.at_s + UNDER_WAY_S:
        raise _busy()
    if row.status is None or row.answer is None:
        raise EdgeopsError(
            "E-API-DONE",
            f"{row.method} {row.path[:200]} was carried out before, and its answer was not kept",
            "Read the resource. If the answer held a secret, end what it belongs to and make another with a new key.",
        )
    return Answer(row.status, row.content_type, row.answer)


def keep(session: Session, request: KeyedRequest, status: int, answer: Answer | None) -> None:
    """Note that a request was answered, and how; None: the answer must not or cannot be kept."""
    row = find(session, request)
    if row is None:
        return
    row.status = status
    if answer is not None and len(answer.body) <= MAX_ANSWER_BYTES:
        row.content_type, row.answer = answer.content_type, answer.body


def _busy() -> EdgeopsError:
    return EdgeopsError(
        "E-API-BUSY",
        "the first request with this idempotency key is under way",
        f"Ask again with the same key; after {UNDER_WAY_S:.0f} s read the resource.",
    )
