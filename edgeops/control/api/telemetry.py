"""Telemetry over the REST API: what devices said of a model, merged for those and the time that were asked for."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.telemetry import ShadowFigures
from edgeops.control.api import resources, views
from edgeops.control.database import Database
from edgeops.control.groups import manage as groups
from edgeops.control.ingest import history
from edgeops.control.ingest.rollups import DAY_S, HOUR_S, QUARTER_S, Traffic
from edgeops.control.models import Device, RolloutProfile, Unit
from edgeops.control.monitoring.references import newest_references, shifts_of
from edgeops.control.units import Subject, meant

_STEPS = {"all": None, "quarter": QUARTER_S, "hour": HOUR_S, "day": DAY_S}
_Step = Literal["all", "quarter", "hour", "day"]


def router(database: Database) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/api/v1/telemetry", tags=["telemetry"])

    @routes.get("/{model}", summary="Show what devices said of a model, merged by release, profile and time")
    def model_telemetry(
        model: str,
        since_s: Annotated[float, Query(ge=0, description="Unix time; default: a day ago")] = -1,
        until_s: Annotated[float, Query(ge=0, description="Unix time; default: now")] = -1,
        by: Annotated[_Step, Query(description="Spans to tell apart; all: one sum")] = "all",
        release: Annotated[str | None, Query(max_length=64)] = None,
        profile: Annotated[str | None, Query(max_length=63)] = None,
        device: Annotated[
            list[str] | None,
            Query(max_length=500, description="Only these devices, with the units behind them, or units"),
        ] = None,
        group: Annotated[str, Query(max_length=63, description="Only devices of this group")] = "",
        where: Annotated[str, Query(max_length=2000, description="Only devices that this query finds")] = "",
    ) -> resources.TelemetryHistory:
        now_s = time.time()
        asked = history.Asked(
            model=model,
            since_s=now_s - 86400 if since_s < 0 else since_s,
            until_s=now_s + 1 if until_s < 0 else until_s,
            release=release,
            profile=profile,
            step_s=_STEPS[by],
        )
        with database.read() as session:
            return _history(session, asked, devices=device, where=where, group=group, now_s=now_s)

    return routes


def _history(
    session: Session, asked: history.Asked, *, devices: Collection[str] | None, where: str, group: str, now_s: float
) -> resources.TelemetryHistory:
    """Return what devices said of a model; all that is given narrows the devices down.

    Raises:
        EdgeopsError: E-QUERY; `where` cannot be read, or there are too many windows. E-GROUP; there is no such group.
        E-DEVICE-UNKNOWN; a named device is not enrolled.
    """
    if devices or where or group:
        asked = asked._replace(units=_meant(session, devices or (), where, group, now_s))
    references = newest_references(session, asked.model)
    return resources.TelemetryHistory(
        items=[
            resources.TelemetryResource(
                release=place.release,
                profile=place.profile,
                start_s=place.start_s if asked.step_s else None,
                requests=traffic.requests,
                errors=traffic.errors,
                latency_ms=_latency(traffic.latency_ms),
                temperature_max_c=traffic.temperature_max_c,
                sampled=traffic.sampled,
                drift=_drift(references.get((asked.model, place.release, place.profile)), traffic),
                histograms={name: list(counts) for name, counts in traffic.histograms.items()},
                shadow=None if traffic.shadow is None else _compared(traffic.shadow),
            )
            for place, traffic in history.merged(session, asked).items()
        ]
    )


def _drift(row: RolloutProfile | None, traffic: Traffic) -> list[resources.ShiftResource]:
    if row is None:
        return []
    return [resources.ShiftResource(**one._asdict(), alarms=one.alarms) for one in shifts_of(row, traffic)]


def _compared(shadow: ShadowFigures) -> resources.ComparedResource:
    return resources.ComparedResource(
        compared=shadow.compared,
        agreed=shadow.agreed,
        skipped=shadow.skipped,
        errors=shadow.errors,
        distance=_latency(shadow.distance),
        latency_ms=_latency(shadow.latency_ms),
    )


def _meant(session: Session, named: Collection[str], where: str, group: str, now_s: float) -> set[tuple[str, str]]:
    """Return connection and unit of those that fulfil all that is given; revoked ones are still told of."""
    rows = session.execute(select(Device, Unit).join(Unit, Unit.connection == Device.connection))
    everyone = [Subject(device, unit) for device, unit in rows]
    chosen = meant(everyone, named) if named else everyone
    if where:
        names = set(groups.found(chosen, where, now_s))
        chosen = [one for one in chosen if one.name in names]
    if group:
        names = set(views.device_group(session, group, now_s).devices)
        chosen = [one for one in chosen if one.name in names]
    return {(one.unit.connection, one.unit.unit) for one in chosen}


def _latency(sketch: QuantileSketch) -> dict[str, float]:
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    found = {name: sketch.quantile(share) for name, share in shares.items()}
    return {name: value for name, value in found.items() if value is not None} | (
        {"max": sketch.maximum} if sketch.count else {}
    )
