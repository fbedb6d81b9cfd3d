"""The REST API's app: `/api/v1` for people and programs with a token, `/bootstrap` for devices that join."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from edgeops.__about__ import __version__
from edgeops.contracts.access import Permission, Role
from edgeops.contracts.bundle import DriftReference
from edgeops.contracts.drift import histograms_of
from edgeops.contracts.enrolment import ConnectionKind, EnrolRequest, EnrolResponse, RenewalAnswer, RenewalMessage
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.release import Release
from edgeops.contracts.wire import decode, encode
from edgeops.control import access, enrolment, renewal
from edgeops.control.api import (
    access_resources,
    conditions,
    limits,
    measurements,
    problems,
    registry,
    repeats,
    resources,
    rigs,
    rollout_resources,
    samples,
    telemetry,
    views,
)
from edgeops.control.api.base import (
    PAGE_DEFAULT,
    After,
    AfterUnit,
    Before,
    ControlApi,
    Limit,
    RolloutId,
    may,
    told,
)
from edgeops.control.api.document import openapi_document
from edgeops.control.pace import Buckets
from edgeops.control.rollout import freeze, manage
from edgeops.control.rollout.policy import Gates, Policy, Rate, Shadow
from edgeops.control.rollout.schedule import Schedule
from edgeops.control.rollout.selection import Selection


def api_app(control: ControlApi) -> FastAPI:
    """Return the app."""
    app = FastAPI(title="edgeops control plane", version=__version__, openapi_url=None, docs_url=None, redoc_url=None)
    problems.install(app)
    app.include_router(_health(control))
    door = access.Doorkeeper(control.database, control.token)
    conditional = Depends(conditions.refuse_unchecked)
    readers = [Depends(may(door, Permission.READ)), conditional]
    app.include_router(_metrics(control), dependencies=readers)
    app.include_router(_enrolment_tokens(control, door), dependencies=readers)
    app.include_router(registry.registry(control, door), dependencies=readers)
    app.include_router(registry.device_groups_router(control, door), dependencies=readers)
    app.include_router(_rollouts(control, door), dependencies=readers)
    app.include_router(_fleet(control, door), dependencies=readers)
    app.include_router(rigs.router(control.database, control.trusted_rigs), dependencies=readers)
    app.include_router(telemetry.router(control.database), dependencies=readers)
    operate = may(door, Permission.ROLL_OUT)
    app.include_router(samples.router(control.database, control.wake, operate), dependencies=readers)
    app.include_router(
        measurements.router(control.database, control.fleet, control.wake, operate), dependencies=readers
    )
    app.include_router(_access(control, door), dependencies=[Depends(may(door, Permission.ADMINISTER)), conditional])
    app.include_router(_bootstrap(control))

    @app.get("/api/v1/openapi.json", include_in_schema=False)
    def openapi() -> dict[str, Any]:
        return openapi_document(app)

    app.add_middleware(repeats.IdempotencyKeys, database=control.database, door=door)
    app.add_middleware(conditions.EntityTags)
    app.add_middleware(limits.BodyLimit)
    app.add_middleware(
        limits.RateLimit,
        callers=Buckets(control.requests_per_s, max(1, round(control.requests_per_s * limits.BURST_S))),
        strangers=Buckets(limits.STRANGERS_PER_S, limits.STRANGERS_BURST),
    )
    app.add_middleware(limits.SafeHeaders)
    return app


def _health(control: ControlApi) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["health"])

    @router.get("/health", summary="Say whether the control plane works")
    def health() -> resources.Health:
        return control.health()

    return router


def _metrics(control: ControlApi) -> APIRouter:
    router = APIRouter(tags=["monitoring"])
    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}

    @router.get("/metrics", summary="The fleet as Prometheus metrics", responses=text)
    def metrics() -> Response:
        return Response(control.metrics(), media_type=CONTENT_TYPE_LATEST)

    return router


def _enrolment_tokens(control: ControlApi, door: access.Doorkeeper) -> APIRouter:
    router = APIRouter(prefix="/api/v1/enrolment-tokens", tags=["enrolment"])
    enroller = Depends(may(door, Permission.ENROLL))

    @router.post("", status_code=201, summary="Make a one-time token with which one device can join")
    def create(wish: access_resources.TokenRequest, caller: access.Caller = enroller) -> access_resources.TokenCreated:
        issued = enrolment.issue_token(
            control.database,
            control.trust(),
            enrolment.TokenScope(wish.profile, wish.name, wish.labels, ConnectionKind(wish.kind)),
            actor=caller.name,
            now_s=time.time(),
            valid_s=wish.valid_s,
        )
        return access_resources.TokenCreated(id=issued.id, token=issued.text, expires_at_s=issued.expires_at_s)

    @router.get("", summary="List the tokens that were made")
    def tokens(after: After = "", limit: Limit = PAGE_DEFAULT) -> access_resources.Tokens:
        with control.database.read() as session:
            return views.tokens(session, after=after, limit=limit)

    return router


def _rollouts(control: ControlApi, door: access.Doorkeeper) -> APIRouter:
    router = APIRouter(prefix="/api/v1/rollouts", tags=["rollouts"])
    proposer, operator = Depends(may(door, Permission.PROPOSE)), Depends(may(door, Permission.ROLL_OUT))

    def shown(rollout_id: int) -> rollout_resources.RolloutResource:
        with control.database.read() as session:
            return views.rollout_by_id(session, rollout_id)

    def references_of(release: Release, policy: Policy) -> Mapping[str, DriftReference]:
        """Return what the bundles were compiled with; those that do not say are not watched, unless a gate is."""
        try:
            return control.references(release)
        except EdgeopsError:
            if policy.gates.drift_max is not None:
                raise
            return {}

    @router.post("", status_code=201, summary="Create a rollout, and start it if asked to")
    def create(
        wish: rollout_resources.RolloutRequest, caller: access.Caller = proposer
    ) -> rollout_resources.RolloutResource:
        if wish.start:
            access.check_allowed(caller, Permission.ROLL_OUT)
        release, policy, selection = understood(wish)
        references = references_of(release, policy)
        rollout_id = manage.create(
            control.database,
            release,
            policy,
            selection,
            actor=caller.name,
            now_s=time.time(),
            start=wish.start,
            references={profile: dict(histograms_of(one)) for profile, one in references.items()},
            limits={profile: manage.DriftLimits(one.samples, one.calibration) for profile, one in references.items()},
            trusted_rigs=trusted(policy),
        )
        control.wake()
        return shown(rollout_id)

    @router.post("/plan", summary="Say what a rollout would do, without creating it", dependencies=[proposer])
    def plan(wish: rollout_resources.RolloutRequest) -> rollout_resources.RolloutPlan:
        with control.database.read() as session:
            release, policy, selection = understood(wish)
            return views.rollout_plan(
                session, release, policy, selection, now_s=time.time(), trusted_rigs=trusted(policy)
            )

    def trusted(policy: Policy) -> Collection[str]:
        return control.trusted_rigs() if policy.rigs else ()

    def understood(wish: rollout_resources.RolloutRequest) -> tuple[Release, Policy, Selection]:
        release = _release(control.releases(), wish.model, wish.version)
        policy = Policy(
            groups=tuple(wish.groups) or (() if wish.rate is not None else ("100%",)),
            gates=Gates(**wish.gates.model_dump()),
            approval=wish.approval or control.approval,
            rate=None if wish.rate is None else Rate(**wish.rate.model_dump()),
            bake_s=wish.bake_s,
            schedule=msgspec.convert(wish.schedule.model_dump(), Schedule),
            retries=wish.retries,
            on_failure=wish.on_failure,
            control=wish.control,
            override_holds=wish.override_holds,
            shadow=None if wish.shadow is None else Shadow(**wish.shadow.model_dump()),
            rigs=tuple(dict.fromkeys((*control.rigs, *wish.rigs))),
            rig_timeout_s=wish.rig_timeout_s,
            rig_gone_s=wish.rig_gone_s,
        )
        selection = Selection(
            devices=tuple(wish.devices),
            profiles=tuple(wish.profiles),
            labels=wish.labels,
            where=wish.where,
            group=wish.group or "",
        )
        return release, policy, selection

    @router.get("", summary="List rollouts, newest first", response_model=rollout_resources.Rollouts)
    def rollouts(before: Before = 1 << 53, limit: Limit = PAGE_DEFAULT) -> Response:
        with control.database.read() as session:
            return told(views.rollout_list(session, before=before, limit=limit))

    @router.get("/{rollout_id}", summary="Show a rollout: where it stands and why")
    def rollout(rollout_id: RolloutId) -> rollout_resources.RolloutResource:
        return shown(rollout_id)

    @router.get(
        "/{rollout_id}/members",
        summary="List the devices of a rollout by name",
        response_model=rollout_resources.Members,
    )
    def members(rollout_id: RolloutId, after: AfterUnit = "", limit: Limit = PAGE_DEFAULT) -> Response:
        with control.database.read() as session:
            return told(views.member_page(session, rollout_id, after=after, limit=limit))

    def act(name: str, action: Callable[..., None], summary: str) -> None:
        @router.post(f"/{{rollout_id}}/{name}", summary=summary, name=name)
        def do(rollout_id: RolloutId, caller: access.Caller = operator) -> rollout_resources.RolloutResource:
            action(control.database, rollout_id, actor=caller.name, now_s=time.time())
            control.wake()
            return shown(rollout_id)

    act("approve", manage.approve, "Say as a second person that a draft may start")
    act("start", manage.start, "Start a draft")
    act("pause", manage.pause, "Give the release to no further group until resumed")
    act("resume", manage.resume, "Let a paused rollout go on")
    act("abort", manage.abort, "End a rollout; who has the release keeps it")
    act("override-holds", manage.override_holds, "Have devices that are held wait no longer")
    act("revert", manage.revert, "End a rollout and give its devices back what they had before")
    return router


def _fleet(control: ControlApi, door: access.Doorkeeper) -> APIRouter:
    router = APIRouter(prefix="/api/v1/fleet", tags=["fleet"])
    operator = Depends(may(door, Permission.ROLL_OUT))

    def shown() -> resources.Fleet:
        with control.database.read() as session:
            return views.fleet(session, control.fleet)

    @router.get("", summary="Show the fleet: its devices, and whether it is frozen")
    def fleet() -> resources.Fleet:
        return shown()

    @router.post("/freeze", summary="Let no rollout start or go on until thawed")
    def freeze_fleet(wish: resources.FreezeRequest, caller: access.Caller = operator) -> resources.Fleet:
        freeze.freeze(control.database, reason=wish.reason, actor=caller.name, now_s=time.time())
        return shown()

    @router.post("/thaw", summary="Let rollouts go on; groups under way get their whole time anew")
    def thaw_fleet(caller: access.Caller = operator) -> resources.Fleet:
        freeze.thaw(control.database, actor=caller.name, now_s=time.time())
        control.wake()
        return shown()

    @router.get("/audit", summary="List who did what, newest first")
    def audit(before: Before = 1 << 53, limit: Limit = PAGE_DEFAULT) -> resources.AuditLog:
        with control.database.read() as session:
            return views.audit_page(session, before=before, limit=limit)

    return router


def _access(control: ControlApi, door: access.Doorkeeper) -> APIRouter:
    router = APIRouter(prefix="/api/v1/api-tokens", tags=["access"])
    admin = Depends(may(door, Permission.ADMINISTER))

    @router.post("", status_code=201, summary="Make an API token with a role; its text is told once")
    def create(
        wish: access_resources.ApiTokenRequest, caller: access.Caller = admin
    ) -> access_resources.ApiTokenCreated:
        issued = access.issue(
            control.database, wish.name, Role(wish.role), actor=caller.name, now_s=time.time(), valid_s=wish.valid_s
        )
        return access_resources.ApiTokenCreated(id=issued.id, token=issued.text, expires_at_s=issued.expires_at_s)

    @router.get("", summary="List the API tokens by name")
    def tokens(after: After = "", limit: Limit = PAGE_DEFAULT) -> access_resources.ApiTokens:
        with control.database.read() as session:
            return views.api_tokens(session, after=after, limit=limit)

    @router.delete("/{name}", summary="End an API token at once")
    def revoke(name: str, caller: access.Caller = admin) -> access_resources.ApiTokens:
        access.revoke(control.database, name, actor=caller.name, now_s=time.time())
        return tokens()

    return router


def _release(releases: Sequence[Release], model: str, version: str) -> Release:
    for release in releases:
        if (release.model, release.version) == (model, version):
            return release
    raise EdgeopsError(
        "E-RELEASE-UNKNOWN", f"no published release {version[:80]!r} of {model}", "See `edgeops release list`."
    )


def _bootstrap(control: ControlApi) -> APIRouter:
    router = APIRouter(prefix="/bootstrap", tags=["bootstrap"])
    attempts = limits.Attempts()
    pem: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-pem-file": {}}}}

    @router.get("/ca.pem", summary="The fleet CA's certificate, to be checked against the token", responses=pem)
    def ca() -> Response:
        return Response(control.ca_pem, media_type="application/x-pem-file")

    @router.get("/root.json", summary="The first TUF root, to be checked against the token")
    def root() -> Response:
        return Response(control.root_json(), media_type="application/json")

    body = {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/EnrolRequest"}}},
    }
    answer = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/EnrolResponse"}}}}

    @router.post(
        "/enrol",
        summary="Join the fleet with a token's secret and a CSR",
        openapi_extra={"requestBody": body},
        responses={200: answer},
    )
    async def enrol(request: Request) -> Response:
        wish = decode(await request.body(), EnrolRequest, what="enrolment request")
        address = request.client.host if request.client is not None else ""
        attempts.check(address)
        try:
            answer = await run_in_threadpool(_enrol, control, wish)
        except EdgeopsError as error:
            if error.code == "E-TOKEN":
                attempts.refused(address)
            raise
        return Response(answer, media_type="application/json")

    body = {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/RenewalMessage"}}},
    }
    renewed = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/RenewalAnswer"}}}}

    @router.post(
        "/renew",
        summary="Get a certificate for a device's next key; the present one signs the request",
        openapi_extra={"requestBody": body},
        responses={200: renewed},
    )
    async def renew(request: Request) -> Response:
        wish = decode(await request.body(), RenewalMessage, what="renewal message")
        address = request.client.host if request.client is not None else ""
        attempts.check(address)
        try:
            answer = await run_in_threadpool(_renew, control, wish)
        except EdgeopsError as error:
            if error.code in ("E-ENROLL", "E-TRUST-SIGNATURE", "E-TRUST-DEVICE"):
                attempts.refused(address)
            raise
        return Response(answer, media_type="application/json")

    return router


def _renew(control: ControlApi, wish: RenewalMessage) -> bytes:
    issued = renewal.renew(control.database, control.issuer, control.fleet, wish, now_s=time.time())
    return encode(RenewalAnswer(certificate_pem=issued.decode()))


def _enrol(control: ControlApi, wish: EnrolRequest) -> bytes:
    joined = enrolment.enrol(control.database, control.issuer, wish, now_s=time.time())
    control.wake()
    return encode(
        EnrolResponse(
            fleet=control.fleet,
            connection=joined.connection,
            certificate_pem=joined.certificate_pem.decode(),
            ca_pem=control.ca_pem.decode(),
            broker=control.broker,
            artifacts_url=control.artifacts_url,
            profile=joined.profile,
        )
    )
