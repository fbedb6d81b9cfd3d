"""What the REST API's routes share: what they stand on, who may come in, how pages are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NamedTuple

from fastapi import Depends, Query
from fastapi import Path as PathParameter
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from starlette.responses import Response

from edgeops.contracts.access import Permission
from edgeops.contracts.bundle import DriftReference
from edgeops.contracts.enrolment import BrokerAddress
from edgeops.contracts.release import Release
from edgeops.control import access, enrolment
from edgeops.control.api import resources
from edgeops.control.api.limits import REQUESTS_PER_S
from edgeops.control.database import Database

PAGE_DEFAULT, PAGE_MAX = 100, 500
_SCHEME = HTTPBearer(auto_error=False)
RolloutId = Annotated[int, PathParameter(ge=1, lt=1 << 53)]
After = Annotated[str, Query(max_length=63, description="Cursor: `next` of the page before")]
AfterUnit = Annotated[str, Query(max_length=127, description="Cursor: `next` of the page before")]
Before = Annotated[int, Query(ge=1, le=1 << 53, description="Cursor: `next` of the page before")]
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX)]


class ControlApi(NamedTuple):
    """What the API stands on.

    Args:
        database: The registry.
        fleet: The fleet.
        trust: Returns what enrolment tokens tell devices to trust.
        issuer: Issues devices' certificates.
        ca_pem: The fleet CA's certificate.
        root_json: Returns the TUF root that devices start from.
        broker: Where devices find the broker.
        artifacts_url: Where devices find the artifacts.
        token: The bearer token of the home's owner, who is an admin.
        approval: No rollout starts that a second person has not approved.
        rigs: Every rollout that is made waits for these.
        releases: Returns the published releases.
        trusted_rigs: Returns the keys of the rigs that the fleet trusts, by name.
        references: Returns what a release's bundles were compiled with, by profile.
        wake: Says that a rollout or a desired state changed, or a device joined.
        shut_out: Ends a revoked device's session and keeps it out.
        health: Returns the control plane's health.
        metrics: Returns what Prometheus reads.
        requests_per_s: How many requests a token may make each second, in the long run.
    """

    database: Database
    fleet: str
    trust: Callable[[], enrolment.FirstTrust]
    issuer: enrolment.CertificateIssuer
    ca_pem: bytes
    root_json: Callable[[], bytes]
    broker: BrokerAddress
    artifacts_url: str
    token: str
    approval: bool
    releases: Callable[[], Sequence[Release]]
    references: Callable[[Release], Mapping[str, DriftReference]]
    trusted_rigs: Callable[[], Mapping[str, object]]
    wake: Callable[[], None]
    shut_out: Callable[[str], None]
    health: Callable[[], resources.Health]
    metrics: Callable[[], bytes]
    requests_per_s: float = REQUESTS_PER_S
    rigs: tuple[str, ...] = ()


def told(resource: BaseModel) -> Response:
    """Return the answer that holds a resource, written at once.

    A route that returns a resource has FastAPI check and copy it once more, which takes four times as long as making
    it; large answers go by here, with `response_model` for their schema.
    """
    return Response(resource.model_dump_json(by_alias=True), media_type="application/json")


def may(door: access.Doorkeeper, permission: Permission) -> Callable[..., access.Caller]:
    """Return a dependency that lets only those in who may do this, and says who it is."""

    def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_SCHEME)]) -> access.Caller:
        caller = door.identify(given.credentials if given is not None else "", time.time())
        access.check_allowed(caller, permission)
        return caller

    return check
