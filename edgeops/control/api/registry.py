"""The REST API's routes for devices, releases and device groups."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query
from sqlalchemy.orm import Session
from starlette.responses import Response

from edgeops.contracts.access import Permission
from edgeops.contracts.topics import SELF_UNIT
from edgeops.control import access, labelling, renewal, revocation
from edgeops.control.api import conditions, resources, views
from edgeops.control.api.base import PAGE_DEFAULT, After, Before, ControlApi, Limit, may, told
from edgeops.control.groups import manage as groups


def registry(control: ControlApi, door: access.Doorkeeper) -> APIRouter:
    """Return the routes of devices and releases."""
    router = APIRouter(prefix="/api/v1", tags=["registry"])
    operator = Depends(may(door, Permission.ROLL_OUT))

    @router.get("/devices", summary="List devices by name", response_model=resources.Devices)
    def devices(
        after: After = "",
        limit: Limit = PAGE_DEFAULT,
        profile: str | None = None,
        online: bool | None = None,
        where: Annotated[str, Query(max_length=2000, description="A query over devices")] = "",
    ) -> Response:
        with control.database.read() as session:
            page = views.device_page(
                session, after=after, limit=limit, profile=profile, online=online, where=where, now_s=time.time()
            )
        return told(page)

    @router.get("/devices/{connection}", summary="Show a device with its reports and newest steps")
    def device(connection: str) -> resources.DeviceDetail:
        with control.database.read() as session:
            return views.device_detail(session, connection)

    @router.patch("/devices/{connection}", summary="Set or remove labels of a device; those not named stay")
    def label_device(
        connection: str,
        wish: resources.LabelsRequest,
        caller: access.Caller = operator,
        if_match: conditions.IfMatch = None,
    ) -> resources.DeviceDetail:
        return labelled(connection, connection, wish, caller, if_match)

    @router.patch("/devices/{connection}/units/{unit}", summary="Set or remove labels of a unit behind a device")
    def label_unit(
        connection: str,
        unit: str,
        wish: resources.LabelsRequest,
        caller: access.Caller = operator,
        if_match: conditions.IfMatch = None,
    ) -> resources.DeviceDetail:
        return labelled(f"{connection}/{unit}", connection, wish, caller, if_match)

    def labelled(
        name: str, connection: str, wish: resources.LabelsRequest, caller: access.Caller, if_match: str | None
    ) -> resources.DeviceDetail:
        def check(session: Session) -> None:
            conditions.check_unchanged(if_match, views.device_detail(session, connection))

        labelling.set_labels(control.database, name, wish.labels, actor=caller.name, now_s=time.time(), check=check)
        control.wake()
        return device(connection)

    @router.get("/devices/{connection}/history", summary="List what a unit was to run, newest first, and how that went")
    def history(
        connection: str,
        unit: Annotated[str, Query(max_length=63)] = SELF_UNIT,
        before: Before = 1 << 53,
        limit: Limit = PAGE_DEFAULT,
    ) -> resources.UnitHistory:
        with control.database.read() as session:
            return views.history_page(session, connection, unit, before=before, limit=limit)

    @router.post("/devices/{connection}/revoke", summary="Shut a device out, at once and for good")
    def revoke_device(connection: str, caller: access.Caller = operator) -> resources.DeviceDetail:
        revocation.revoke(control.database, connection, actor=caller.name, now_s=time.time())
        control.shut_out(connection)
        control.wake()
        with control.database.read() as session:
            return views.device_detail(session, connection)

    @router.post("/devices/{connection}/renew", summary="Have a device renew its certificate now")
    def renew_device(connection: str, caller: access.Caller = operator) -> resources.DeviceDetail:
        renewal.want_renewal(control.database, connection, actor=caller.name, now_s=time.time())
        control.wake()
        with control.database.read() as session:
            return views.device_detail(session, connection)

    @router.get("/releases", summary="List the published releases")
    def releases() -> resources.Releases:
        return resources.Releases(items=[msgspec.to_builtins(release) for release in control.releases()])

    return router


def device_groups_router(control: ControlApi, door: access.Doorkeeper) -> APIRouter:
    """Return the routes of device groups."""
    router = APIRouter(prefix="/api/v1/groups", tags=["groups"])
    engineer = Depends(may(door, Permission.ENROLL))

    @router.post("", status_code=201, summary="Make a device group: by a query, or by names")
    def create(wish: resources.GroupRequest, caller: access.Caller = engineer) -> resources.DeviceGroupResource:
        now_s = time.time()
        groups.create(
            control.database, wish.name, query=wish.query, devices=wish.devices, actor=caller.name, now_s=now_s
        )
        return group(wish.name)

    @router.get("", summary="List device groups, with who is in each now")
    def device_groups(after: After = "", limit: Limit = PAGE_DEFAULT) -> resources.DeviceGroups:
        with control.database.read() as session:
            return views.device_groups(session, time.time(), after=after, limit=limit)

    @router.get("/{name}", summary="Show a device group, with who is in it now")
    def group(name: str) -> resources.DeviceGroupResource:
        with control.database.read() as session:
            return views.device_group(session, name, time.time())

    @router.delete("/{name}", summary="Remove a device group; its devices stay as they are")
    def remove(
        name: str, caller: access.Caller = engineer, if_match: conditions.IfMatch = None
    ) -> resources.DeviceGroups:
        now_s = time.time()

        def check(session: Session) -> None:
            conditions.check_unchanged(if_match, views.device_group(session, name, now_s))

        groups.remove(control.database, name, actor=caller.name, now_s=now_s, check=check)
        return device_groups()

    return router
