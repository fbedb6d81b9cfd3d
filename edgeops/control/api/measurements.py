"""Measurements over the REST API: ask a device to measure candidates, and read its signed answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.measurement import (
    MAX_CANDIDATES,
    MAX_RUNS,
    MAX_THREADS,
    MAX_VALID_S,
    Candidate,
    MeasureAnswer,
    candidate_path,
)
from edgeops.control import access, measuring
from edgeops.control.api.request import Request
from edgeops.control.api.resources import contract
from edgeops.control.database import Database
from edgeops.control.models import AskedMeasurement, Device
from edgeops.trust import envelopes

_Digest = Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")]
_Target = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9._-]{0,62}/candidates/[0-9a-f]{64}[.]edgeops$")]


class CandidateResource(Request):
    """A published candidate: its target path, and its bundle's digest."""

    target: _Target
    digest: _Digest


class MeasurementRequest(Request):
    """A wish for figures of a device."""

    bundles: Annotated[list[CandidateResource], Field(min_length=1, max_length=MAX_CANDIDATES)]
    threads: Annotated[int, Field(ge=0, le=MAX_THREADS)] = 0
    runs: Annotated[int, Field(ge=1, le=MAX_RUNS)] = 100
    valid_s: Annotated[float, Field(ge=1, le=MAX_VALID_S)] = 3600.0


class MeasurementResource(BaseModel):
    """What a device was asked, and what it answered: figures, or a code and the cause.

    `envelope` is the answer as the device signed it, `certificate_pem` vouches for its key.
    """

    id: str
    device: str
    state: Literal["waiting", "measured", "refused", "expired"]
    bundles: list[CandidateResource]
    created_at_s: float
    created_by: str
    expires_at_s: float
    answered_at_s: float | None
    code: str
    what: str
    measurements: contract("Measurements") | None  # type: ignore[valid-type]
    envelope: str | None
    certificate_pem: str | None


class MeasurementList(BaseModel):
    """Measurements of a device, newest first."""

    items: list[MeasurementResource]


def router(database: Database, fleet: str, wake: Callable[[], None], may: Callable[..., access.Caller]) -> APIRouter:
    """Return the routes.

    Args:
        database: The registry.
        fleet: The fleet.
        wake: Says that a command waits.
        may: A dependency that lets only those in who may have devices do things, and says who it is.
    """
    operator = Depends(may)
    routes = APIRouter(prefix="/api/v1/devices/{connection}/measurements", tags=["measurements"])

    @routes.post("", status_code=201, summary="Have a device measure published candidates")
    def ask(connection: str, wish: MeasurementRequest, caller: access.Caller = operator) -> MeasurementResource:
        for one in wish.bundles:
            if one.target != candidate_path(one.target.partition("/")[0], one.digest):
                raise EdgeopsError("E-API-REQUEST", f"{one.target} is not where a candidate {one.digest} lies")
        now_s = time.time()
        id = measuring.ask(
            database,
            fleet,
            connection,
            [Candidate(target=one.target, digest=one.digest) for one in wish.bundles],
            threads=wish.threads,
            runs=wish.runs,
            valid_s=wish.valid_s,
            actor=caller.name,
            now_s=now_s,
        )
        wake()
        return measurement(connection, id)

    @routes.get("", summary="List what a device was asked to measure, newest first")
    def measurements(connection: str, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> MeasurementList:
        with database.read() as session:
            _check_device(session, connection)
            rows = session.scalars(
                select(AskedMeasurement)
                .where(AskedMeasurement.connection == connection)
                .order_by(AskedMeasurement.created_at_s.desc())
                .limit(limit)
            )
            return MeasurementList(items=[_shown(row, time.time()) for row in rows])

    @routes.get("/{id}", summary="Show one measurement of a device")
    def measurement(connection: str, id: str) -> MeasurementResource:
        with database.read() as session:
            _check_device(session, connection)
            row = session.get(AskedMeasurement, id[:64])
            if row is None or row.connection != connection:
                raise EdgeopsError("E-COMMAND-UNKNOWN", f"{connection} was not asked for {id[:64]!r}")
            return _shown(row, time.time())

    return routes


def _check_device(session: Session, connection: str) -> None:
    if session.get(Device, connection) is None:
        raise EdgeopsError("E-DEVICE-UNKNOWN", f"there is no device {connection[:80]!r}", "See `edgeops device list`.")


def _shown(row: AskedMeasurement, now_s: float) -> MeasurementResource:
    asked = measuring.command_of(row)
    answer = None if row.answer is None else envelopes.read_unverified(row.answer, MeasureAnswer)
    state: Literal["waiting", "measured", "refused", "expired"]
    if answer is None:
        state = "waiting" if now_s < row.expires_at_s else "expired"
    else:
        state = "refused" if answer.measurements is None else "measured"
    return MeasurementResource(
        id=row.id,
        device=row.connection,
        state=state,
        bundles=[CandidateResource(target=one.target, digest=one.digest) for one in asked.bundles],
        created_at_s=row.created_at_s,
        created_by=row.created_by,
        expires_at_s=row.expires_at_s,
        answered_at_s=row.answered_at_s,
        code="" if answer is None else answer.code,
        what="" if answer is None else answer.what,
        measurements=None if answer is None else msgspec.to_builtins(answer.measurements),
        envelope=None if row.answer is None else row.answer.decode(),
        certificate_pem=row.certificate_pem or None,
    )
