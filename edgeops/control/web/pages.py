"""The pages: what the registry says, read again every second while somebody looks. Nothing on them changes anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from nicegui import run, ui
from starlette.types import ASGIApp

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.release import Release
from edgeops.control import access
from edgeops.control.api import resources, rollout_resources, views
from edgeops.control.database import Database
from edgeops.control.web.door import COOKIE, PATH, SIGN_IN, SIGN_OUT, Door, may_read

LIVE_EVERY_S = 1.0
SHOWN = 200
# NiceGUI puts PATH before each address that begins with a slash.
_ROLLOUT = ("rollout", "release", "state", "why")


def web_app(
    database: Database, keeper: access.Doorkeeper, fleet: str, releases: Callable[[], Sequence[Release]]
) -> ASGIApp:
    """Return the pages behind their door. One per process: NiceGUI has one app.

    Args:
        database: The registry.
        keeper: Knows tokens.
        fleet: The fleet.
        releases: Returns the published releases.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    _Pages(database, keeper, fleet, releases).install()
    ui.run_with(app, title=f"edgeops: {fleet}", mount_path=PATH, tailwind=False, show_welcome_message=False)
    return Door(app, keeper, fleet)


class _Pages:
    def __init__(
        self, database: Database, keeper: access.Doorkeeper, fleet: str, releases: Callable[[], Sequence[Release]]
    ) -> None:
        self._database, self._keeper, self._fleet, self._releases = database, keeper, fleet, releases

    def install(self) -> None:
        """Register the pages with NiceGUI."""
        ui.page("/")(self._overview)
        ui.page("/devices")(self._devices)
        ui.page("/devices/{name}")(self._device)
        ui.page("/releases")(self._release_list)
        ui.page("/rollouts")(self._rollouts)
        ui.page("/rollouts/{number}")(self._rollout)

    async def _overview(self) -> None:
        self._head("Fleet")
        said = ui.label().mark("counts")
        frozen = ui.label()
        profiles = _table(("profile", "devices"))
        ui.label("Newest rollouts")
        rollouts = _table(_ROLLOUT, opens="rollouts")

        async def refresh() -> None:
            now, newest = await self._read(lambda session: (views.fleet(session, self._fleet), _newest(session)))
            said.text = f"{now.devices} devices, {now.online} online"
            frozen.text = "" if now.frozen is None else f"frozen by {now.frozen.actor}: {now.frozen.reason}"
            _fill(profiles, [{"profile": name, "devices": count} for name, count in now.profiles.items()])
            _fill(rollouts, newest)

        await self._live(refresh)

    async def _devices(self, where: str = "") -> None:
        self._head("Devices")
        problem = ui.label().mark("problem")
        ui.input("Query, such as health = failing", value=where).on(
            "keydown.enter", lambda event: ui.navigate.to(f"/devices?where={_quoted(event.sender.value)}")
        ).style("width: 40em")
        table = _table(("device", "profile", "online", "agent", "models"), opens="devices")

        async def refresh() -> None:
            def page(session: Any) -> resources.Devices:
                return views.device_page(
                    session, after="", limit=SHOWN, profile=None, online=None, where=where, now_s=time.time()
                )

            try:
                found = await self._read(page)
            except EdgeopsError as error:
                problem.text = f"{error.code}: {error.what}"
                return
            problem.text = "" if found.next is None else f"the first {SHOWN} by name; narrow them down by a query"
            _fill(table, [_device_row(device) for device in found.items])

        await self._live(refresh)

    async def _device(self, name: str) -> None:
        self._head(name)
        said = ui.label()
        table = _table(("unit", "component", "wanted", "active", "state", "failure"))

        async def refresh() -> None:
            try:
                device = await self._read(lambda session: views.device_detail(session, name))
            except EdgeopsError as error:
                said.text = f"{error.code}: {error.what}"
                return
            online = "online" if device.online else "offline"
            said.text = f"{device.profile}, {online}, agent {device.agent_version}"
            parts = [(unit.unit, part) for unit in device.units for part in unit.components]
            _fill(table, [_component_row(unit, part) for unit, part in parts])

        await self._live(refresh)

    async def _release_list(self) -> None:
        self._head("Releases")
        table = _table(("release", "number", "profiles", "since", "notes"))

        async def refresh() -> None:
            found = await run.io_bound(self._releases)
            _fill(
                table,
                [
                    {
                        "release": f"{one.model} {one.version}",
                        "number": one.number,
                        "profiles": ", ".join(target.profile for target in one.targets),
                        "since": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(one.created_at_s)),
                        "notes": one.notes,
                    }
                    for one in reversed(found or [])
                ][:SHOWN],
            )

        await self._live(refresh, every_s=10 * LIVE_EVERY_S)

    async def _rollouts(self) -> None:
        self._head("Rollouts")
        table = _table(_ROLLOUT, opens="rollouts")

        async def refresh() -> None:
            _fill(table, await self._read(_newest))

        await self._live(refresh)

    async def _rollout(self, number: int) -> None:
        self._head(f"Rollout {number}")
        said, why = ui.label().mark("state"), ui.label()
        progress = ui.linear_progress(0.0, show_value=False).mark("progress")
        counts = ("confirmed", "failed", "rejected", "timed_out", "running", "held", "silent")
        rigs = _table(("group", "rig", "online", "stands", "what")).mark("rigs")
        groups = _table(("group", "profile", *counts))
        ui.label("Gates")
        gates = _table(("group", "profile", "gate", "value", "limit", "holds"))

        async def refresh() -> None:
            try:
                rollout = await self._read(lambda session: views.rollout_by_id(session, number))
            except EdgeopsError as error:
                said.text = f"{error.code}: {error.what}"
                return
            rows = [
                {"group": group.label, "profile": profile, **{name: getattr(of, name) for name in counts}}
                for group in rollout.groups
                for profile, of in group.profiles.items()
            ]
            done = sum(row["confirmed"] for row in rows)
            total = sum(row[name] for row in rows for name in counts)
            said.text = f"{rollout.model} {rollout.version} is {rollout.state}: {done} of {total} devices"
            why.text = rollout.reason
            progress.value = done / total if total else 0.0
            rigs.visible = bool(rollout.rigs)
            _fill(rigs, [_rig_row(one) for one in rollout.rigs])
            _fill(groups, rows)
            _fill(gates, [_gate_row(figure) for figure in rollout.figures])

        await self._live(refresh)

    def _head(self, title: str) -> None:
        with ui.row():
            for name, path in (
                ("Fleet", ""),
                ("Devices", "devices"),
                ("Releases", "releases"),
                ("Rollouts", "rollouts"),
            ):
                ui.link(name, f"/{path}")
            ui.link("Sign out", SIGN_OUT.removeprefix(PATH))
        ui.label(f"{self._fleet}: {title}").style("font-size: 150%")

    async def _live(self, refresh: Callable[[], Any], every_s: float = LIVE_EVERY_S) -> None:
        """Fill a page, and again and again while its browser is connected and its token still holds."""
        token = ui.context.client.request.cookies.get(COOKIE, "")

        async def look() -> None:
            if await run.io_bound(may_read, self._keeper, token):
                await refresh()
            else:
                timer.cancel()
                ui.navigate.to(SIGN_IN.removeprefix(PATH))

        await refresh()
        timer = ui.timer(every_s, look, immediate=False)

    async def _read(self, question: Callable[[Any], Any]) -> Any:
        """Ask the registry in one short transaction, off the event loop."""

        def ask() -> Any:
            with self._database.read() as session:
                return question(session)

        return await run.io_bound(ask)


def _table(names: Sequence[str], opens: str | None = None) -> ui.table:
    """Return an empty table; a click on a row opens the page under `opens` that the row's first column names."""
    columns = [{"name": name, "label": name.replace("_", " "), "field": name, "align": "left"} for name in names]
    table = ui.table(columns=columns, rows=[], row_key="key", pagination=50)
    if opens is not None:
        table.on("rowClick", lambda event: ui.navigate.to(f"/{opens}/{_quoted(event.args[1][names[0]])}"))
    return table


def _fill(table: ui.table, rows: Sequence[dict[str, Any]]) -> None:
    fresh = [{**row, "key": number} for number, row in enumerate(rows)]
    if table.rows != fresh:
        table.rows = fresh


def _rig_row(rig: rollout_resources.RolloutRigResource) -> dict[str, Any]:
    online = "yes" if rig.online else "no"
    return {"group": "0", "rig": rig.rig, "online": online, "stands": rig.state, "what": rig.said}


def _newest(session: Any) -> list[dict[str, Any]]:
    return [
        {"rollout": one.id, "release": f"{one.model} {one.version}", "state": one.state, "why": one.reason}
        for one in views.rollout_list(session).items
    ][:SHOWN]


def _device_row(device: resources.DeviceResource) -> dict[str, Any]:
    parts = [part for unit in device.units for part in unit.components]
    models = ", ".join(f"{part.name} {part.active_release or '–'} {part.state}" for part in parts)
    online = "yes" if device.online else "no"
    return {
        "device": device.connection, "profile": device.profile, "online": online, "agent": device.agent_version,
        "models": models,
    }  # fmt: skip


def _component_row(unit: str, part: resources.ComponentResource) -> dict[str, Any]:
    failure = "" if part.failure is None else f"{part.failure.code}: {part.failure.what}"
    return {
        "unit": unit, "component": part.name, "wanted": part.desired_release or "", "active": part.active_release or "",
        "state": part.state, "failure": failure,
    }  # fmt: skip


def _gate_row(figure: rollout_resources.FigureResource) -> dict[str, Any]:
    holds = {True: "yes", False: "no", None: "cannot be said yet"}[figure.holds]
    value = "" if figure.value is None else f"{figure.value:.4g}"
    return {
        "group": figure.group, "profile": figure.profile or "all", "gate": figure.gate, "value": value,
        "limit": f"{figure.limit:.4g}", "holds": holds,
    }  # fmt: skip


def _quoted(text: object) -> str:
    return quote(str(text or ""), safe="")
