"""Rigs over the REST API: what stands before rollouts, and what each was asked and answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeops.contracts.enrolment import ConnectionKind
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rigs import RigResult
from edgeops.control.api.base import RolloutId
from edgeops.control.api.resources import contract
from edgeops.control.api.rollout_resources import RolloutRigResource
from edgeops.control.database import Database
from edgeops.control.models import Device, RigRun, Rollout, RolloutProfile
from edgeops.control.rigs import runs
from edgeops.control.rollout.decide import RolloutView
from edgeops.control.rollout.policy import Policy
from edgeops.control.rollout.rig_gate import RigView
from edgeops.trust import envelopes


class BoardResource(BaseModel):
    """A board of a rig."""

    name: str
    kind: str
    profile: str


class RigResource(BaseModel):
    """A rig that is enrolled. `trusted`: the fleet has its key, without which its word does not count."""

    rig: str
    online: bool
    trusted: bool
    enrolled_at_s: float
    revoked_at_s: float | None
    last_seen_s: float | None
    version: str
    boards: list[BoardResource]
    doing: str
    rejected_messages: int
    rejected_last: str


class RigList(BaseModel):
    """Rigs by name."""

    items: list[RigResource]


class RigRunResource(BaseModel):
    """What a rig was asked for a rollout, and its answer as evidence.

    `statement` is the result as the rig's own key signed it; `envelope` the whole answer as its connection's key did,
    for which `certificate_pem` vouches. `given_up_at_s`: since when no answer counts any more.
    """

    id: str
    rig: str
    attempt: int
    profiles: list[str]
    asked_at_s: float
    expires_at_s: float
    sent_at_s: float | None
    given_up_at_s: float | None
    answered_at_s: float | None
    verdict: str
    said: str
    result: contract("RigResult") | None  # type: ignore[valid-type]
    statement: str | None
    envelope: str | None
    certificate_pem: str | None


class RigRunList(BaseModel):
    """What the rigs of a rollout were asked, in order."""

    items: list[RigRunResource]


def router(database: Database, trusted: Callable[[], Mapping[str, object]]) -> APIRouter:
    """Return the routes.

    Args:
        database: The registry.
        trusted: Returns the keys of the rigs that the fleet trusts, by name.
    """
    routes = APIRouter(prefix="/api/v1", tags=["rigs"])

    @routes.get("/rigs", summary="List the rigs by name")
    def rigs() -> RigList:
        believed = trusted()
        with database.read() as session:
            devices = session.scalars(
                select(Device).where(Device.kind == ConnectionKind.RIG).order_by(Device.connection)
            ).all()
            known = runs.known(session, [device.connection for device in devices])
            return RigList(items=[_rig(device, known[device.connection], believed) for device in devices])

    @routes.get("/rollouts/{rollout_id}/rigs", summary="List what the rigs of a rollout were asked and answered")
    def asked(rollout_id: RolloutId) -> RigRunList:
        with database.read() as session:
            if session.get(Rollout, rollout_id) is None:
                raise EdgeopsError(
                    "E-ROLLOUT-UNKNOWN", f"there is no rollout {rollout_id}", "See `edgeops rollout status`."
                )
            rows = session.scalars(
                select(RigRun)
                .where(RigRun.rollout_id == rollout_id)
                .order_by(RigRun.created_at_s, RigRun.connection, RigRun.attempt)
            )
            return RigRunList(items=[_run(row) for row in rows])

    return routes


def rollout_rigs(session: Session, rollout: Rollout, policy: Policy, view: RolloutView) -> list[RolloutRigResource]:
    """Return how the rigs of a rollout's group 0 stand."""
    if not policy.rigs:
        return []
    asked, known = runs.newest(session, rollout.id), runs.known(session, policy.rigs)
    bundled = set(session.scalars(select(RolloutProfile.profile).where(RolloutProfile.rollout_id == rollout.id)))
    return [_stands(rig, known.get(rig.name), asked.get(rig.name), bundled) for rig in view.rigs]


def _stands(view: RigView, rig: runs.Known | None, run: RigRun | None, bundled: set[str]) -> RolloutRigResource:
    state: Literal["unasked", "waiting", "passed", "failed", "broken", "refused"] = "unasked"
    if run is not None and view.asked_at_s is not None:
        state = run.verdict or "waiting"  # type: ignore[assignment]  # the column's words are these
    profiles = bundled & rig.profiles if rig is not None else set()
    return RolloutRigResource(
        rig=view.name,
        online=rig is not None and rig.online,
        state=state,
        said=view.reason or view.cannot or view.doing,
        profiles=sorted({bundle.profile for bundle in runs.bundles_of(run)} if run is not None else profiles),
        attempt=run.attempt if run is not None else 0,
        id=run.id if run is not None else None,
        asked_at_s=view.asked_at_s,
        deadline_s=run.expires_at_s if run is not None and view.asked_at_s is not None else None,
        answered_at_s=run.answered_at_s if run is not None else None,
    )


def _rig(device: Device, rig: runs.Known, trusted: Mapping[str, object]) -> RigResource:
    report = rig.report
    return RigResource(
        rig=device.connection,
        online=device.online,
        trusted=device.connection in trusted,
        enrolled_at_s=device.enrolled_at_s,
        revoked_at_s=device.revoked_at_s,
        last_seen_s=device.last_seen_s,
        version=report.version if report is not None else "",
        boards=[BoardResource(**msgspec.to_builtins(board)) for board in report.boards] if report is not None else [],
        doing=report.doing.said if report is not None and report.doing is not None else "",
        rejected_messages=device.rejected_messages,
        rejected_last=device.rejected_last,
    )


def _run(row: RigRun) -> RigRunResource:
    result = None if row.statement is None else envelopes.read_unverified(row.statement, RigResult)
    return RigRunResource(
        id=row.id,
        rig=row.connection,
        attempt=row.attempt,
        profiles=[bundle.profile for bundle in runs.bundles_of(row)],
        asked_at_s=row.created_at_s,
        expires_at_s=row.expires_at_s,
        sent_at_s=row.sent_at_s,
        given_up_at_s=row.given_up_at_s,
        answered_at_s=row.answered_at_s,
        verdict=row.verdict,
        said=row.reason,
        result=None if result is None else msgspec.to_builtins(result),
        statement=None if row.statement is None else row.statement.decode(),
        envelope=None if row.answer is None else row.answer.decode(),
        certificate_pem=row.certificate_pem or None,
    )
