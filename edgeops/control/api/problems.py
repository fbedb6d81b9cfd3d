"""Errors as application/problem+json (RFC 9457), always with the stable code of `contracts.errors`."""

from __future__ import annotations

import json
import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, IntegrityError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from edgeops.contracts.errors import EdgeopsError, Fault

log = logging.getLogger(__name__)

_STATUS = {
    "E-API-AUTH": 401,
    "E-API-BUSY": 409,
    "E-API-CHANGED": 412,
    "E-API-DONE": 409,
    "E-API-IDEMPOTENCY": 400,
    "E-API-RATE": 429,
    "E-API-REUSED": 422,
    "E-API-ROLE": 403,
    "E-COMMAND-UNKNOWN": 404,
    "E-DEVICE-UNKNOWN": 404,
    "E-ENROLL": 403,
    "E-GROUP": 404,
    "E-NAME": 422,
    "E-QUERY": 422,
    "E-RELEASE-UNKNOWN": 404,
    "E-ROLLOUT-APPROVAL": 403,
    "E-ROLLOUT-INVALID": 422,
    "E-ROLLOUT-STATE": 409,
    "E-ROLLOUT-UNKNOWN": 404,
    "E-STATE-LOCKED": 503,
    "E-TOKEN": 403,
    "E-WIRE-MALFORMED": 400,
    "E-WIRE-SIZE": 413,
}
_HEADERS = {
    "E-API-AUTH": {"WWW-Authenticate": "Bearer"},
    "E-API-BUSY": {"Retry-After": "1"},
    "E-API-RATE": {"Retry-After": "60"},
}
_STATUS_BY_FAULT = {Fault.USAGE: 400, Fault.PEER: 422, Fault.GATE: 409, Fault.ENVIRONMENT: 503, Fault.INTERNAL: 500}

PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "next_step"],
    "properties": {
        "type": {"type": "string", "description": "urn:edgeops:error: and the code"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "A stable code, see errors.md"},
        "next_step": {"type": "string"},
    },
}


def status_of(error: EdgeopsError) -> int:
    """Return the HTTP status of an error."""
    return _STATUS.get(error.code, _STATUS_BY_FAULT[error.fault])


def problem(status: int, code: str, title: str, detail: str, next_step: str = "") -> Response:
    """Return an error as a response."""
    body = {
        "type": f"urn:edgeops:error:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "next_step": next_step,
    }
    return Response(json.dumps(body), status, _HEADERS.get(code), "application/problem+json")


def problem_of(error: EdgeopsError) -> Response:
    """Return an edgeops error as a response."""
    return problem(status_of(error), error.code, error.what.split(":")[0][:120], error.what, error.next_step)


def install(app: FastAPI) -> None:
    """Make every error of an app a problem."""

    @app.exception_handler(EdgeopsError)
    async def on_edgeops(_request: Request, error: EdgeopsError) -> Response:
        if error.fault in (Fault.INTERNAL, Fault.ENVIRONMENT):
            log.error("%s", error)
        return problem_of(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_request: Request, error: RequestValidationError) -> Response:
        where = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:8])
        return problem(422, "E-API-REQUEST", "The request is not valid", where, "See the API reference.")

    @app.exception_handler(IntegrityError)
    async def on_race(_request: Request, _error: IntegrityError) -> Response:
        # Each change looks before whether it may be made: somebody made the same after that look.
        return problem_of(EdgeopsError("E-STATE-LOCKED", "another request made the same meanwhile", "Try again."))

    @app.exception_handler(DataError)
    async def on_unkeepable(_request: Request, error: DataError) -> Response:
        said = str(error.orig)[:200]
        return problem(422, "E-API-REQUEST", "A value is none that the registry could hold", said, "Ask for another.")

    @app.exception_handler(HTTPException)
    async def on_http(_request: Request, error: HTTPException) -> Response:
        answer = problem(error.status_code, "E-API-REQUEST", str(error.detail), str(error.detail))
        answer.headers.update(error.headers or {})
        return answer
