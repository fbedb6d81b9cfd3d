"""The OpenAPI 3.1 document of the REST API: FastAPI's routes, msgspec's contract types, the middlewares' headers."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from edgeops.contracts.deployment import Reported
from edgeops.contracts.enrolment import EnrolRequest, EnrolResponse, RenewalAnswer, RenewalMessage
from edgeops.contracts.measurement import Measurements
from edgeops.contracts.release import Release
from edgeops.contracts.rigs import RigResult
from edgeops.contracts.telemetry import DeviceWindow
from edgeops.control.api import conditions, problems, repeats

_CONTRACTS = (
    Reported, DeviceWindow, Release, Measurements, RigResult, EnrolRequest, EnrolResponse, RenewalMessage,
    RenewalAnswer,
)  # fmt: skip


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the app, with the schemas of the contract types."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, schemas = msgspec.json.schema_components(_CONTRACTS, ref_template="#/components/schemas/{name}")
    components = document.setdefault("components", {}).setdefault("schemas", {})
    components.update(schemas)
    components["Problem"] = problems.PROBLEM_SCHEMA
    failed = {
        "description": "A problem with a stable code",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = failed
            if path.startswith(repeats.PREFIX):
                _describe_headers(method.upper(), operation)
    return document


def _describe_headers(method: str, operation: dict[str, Any]) -> None:
    """Add the headers that the middlewares read and write."""
    parameters = operation.setdefault("parameters", [])
    if method in repeats.CHANGING:
        key = {"type": "string", "minLength": 1, "maxLength": repeats.MAX_KEY, "pattern": "^[!-~]+$"}
        parameters.append({"name": repeats.HEADER, "in": "header", "required": False, "schema": key})
    elif method == "GET":
        seen = {"type": "string", "maxLength": conditions.MAX_HEADER}
        parameters.append({"name": "If-None-Match", "in": "header", "required": False, "schema": seen})
        operation["responses"]["200"]["headers"] = {"ETag": {"schema": {"type": "string"}, "required": True}}
        operation["responses"]["304"] = {"description": "The resource has an entity tag of If-None-Match"}
