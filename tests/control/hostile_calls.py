"""A registry in which each changing call of the REST API has something to change, and those calls."""

from __future__ import annotations

import functools
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from api_worker import WISH, Reply, Worker
from registry_fleet import FLEET, SpeakingDevice, add_devices, add_rig, release
from sqlalchemy import select

from edgeops.contracts.access import Permission, Role
from edgeops.contracts.deployment import MEASURE_FEATURE
from edgeops.contracts.measurement import candidate_path
from edgeops.contracts.samples import SAMPLES_FEATURE
from edgeops.control import access, enrolment
from edgeops.control.assignment import new_unit
from edgeops.control.database import Database
from edgeops.control.groups import manage as groups
from edgeops.control.rollout import freeze, manage
from edgeops.control.rollout.policy import Policy
from edgeops.control.rollout.selection import Selection
from edgeops.control.schema import SCHEMA

DAY_S = 86_400.0
MANY = 1e6
ROLES = tuple(role for role in Role if role is not Role.UNKNOWN)
DIGEST = "sha256:" + "a" * 64
CANDIDATE = {"target": candidate_path("lines", DIGEST), "digest": DIGEST}
# Rollouts of the registry, one a device: what can be done with it.
DRAFT, UNSEEN, RUNNING, PAUSED = 1, 2, 3, 4


class Deed(NamedTuple):
    """A call that changes something.

    Args:
        needs: What its caller must be allowed to.
        path: Of what is there.
        body: Of the request.
        before: What has to be done first.
        changes: Whether it leaves something in the registry.
    """

    needs: Permission
    path: str
    body: Any = None
    before: Callable[[Database], None] = lambda database: None
    changes: bool = True


def _frozen(database: Database) -> None:
    freeze.freeze(database, reason="", actor="admin", now_s=time.time())


# Every operation that is no GET, but those of devices that join. Who adds a route says here who may call it.
DEEDS: dict[str, Deed] = {
    "POST /enrolment-tokens": Deed(Permission.ENROLL, "/enrolment-tokens", {}),
    "PATCH /devices/{connection}": Deed(Permission.ROLL_OUT, "/devices/dev-000", {"labels": {"site": "z"}}),
    "PATCH /devices/{connection}/units/{unit}": Deed(
        Permission.ROLL_OUT, "/devices/dev-000/units/mcu", {"labels": {"site": "z"}}
    ),
    "POST /devices/{connection}/revoke": Deed(Permission.ROLL_OUT, "/devices/dev-000/revoke"),
    "POST /devices/{connection}/renew": Deed(Permission.ROLL_OUT, "/devices/dev-000/renew"),
    "POST /devices/{connection}/samples": Deed(Permission.ROLL_OUT, "/devices/dev-000/samples", {"model": "lines"}),
    "POST /devices/{connection}/measurements": Deed(
        Permission.ROLL_OUT, "/devices/dev-000/measurements", {"bundles": [CANDIDATE]}
    ),
    "POST /groups": Deed(Permission.ENROLL, "/groups", {"name": "new", "query": "profile = intel-nuc"}),
    "DELETE /groups/{name}": Deed(Permission.ENROLL, "/groups/all"),
    "POST /rollouts": Deed(Permission.PROPOSE, "/rollouts", WISH),
    "POST /rollouts, and start it": Deed(Permission.ROLL_OUT, "/rollouts", {**WISH, "start": True}),
    "POST /rollouts/plan": Deed(Permission.PROPOSE, "/rollouts/plan", WISH, changes=False),
    "POST /rollouts/{rollout_id}/approve": Deed(Permission.ROLL_OUT, f"/rollouts/{UNSEEN}/approve"),
    "POST /rollouts/{rollout_id}/start": Deed(Permission.ROLL_OUT, f"/rollouts/{DRAFT}/start"),
    "POST /rollouts/{rollout_id}/pause": Deed(Permission.ROLL_OUT, f"/rollouts/{RUNNING}/pause"),
    "POST /rollouts/{rollout_id}/resume": Deed(Permission.ROLL_OUT, f"/rollouts/{PAUSED}/resume"),
    "POST /rollouts/{rollout_id}/abort": Deed(Permission.ROLL_OUT, f"/rollouts/{RUNNING}/abort"),
    "POST /rollouts/{rollout_id}/override-holds": Deed(Permission.ROLL_OUT, f"/rollouts/{RUNNING}/override-holds"),
    "POST /rollouts/{rollout_id}/revert": Deed(Permission.ROLL_OUT, f"/rollouts/{RUNNING}/revert"),
    "POST /fleet/freeze": Deed(Permission.ROLL_OUT, "/fleet/freeze", {"reason": "for fun"}),
    "POST /fleet/thaw": Deed(Permission.ROLL_OUT, "/fleet/thaw", before=_frozen),
    "POST /api-tokens": Deed(Permission.ADMINISTER, "/api-tokens", {"name": "mine", "role": "admin"}),
    "DELETE /api-tokens/{name}": Deed(Permission.ADMINISTER, "/api-tokens/admin-2"),
}  # fmt: skip
# What somebody who may read may not read.
READS = {
    "GET /api-tokens": Permission.ADMINISTER,
    "GET /devices/{connection}/samples": Permission.ROLL_OUT,
    "GET /devices/{connection}/samples/{id}": Permission.ROLL_OUT,
    "GET /devices/{connection}/samples/{id}/data": Permission.ROLL_OUT,
}
# What needs no token: devices join by other secrets.
OPEN = {
    "GET /health",
    "GET /bootstrap/ca.pem",
    "GET /bootstrap/root.json",
    "POST /bootstrap/enrol",
    "POST /bootstrap/renew",
}
PLACES = {
    "connection": "dev-000", "unit": "mcu", "name": "all", "rollout_id": str(RUNNING), "model": "lines", "id": "0" * 16,
}  # fmt: skip


def named(method: str, path: str) -> str:
    """What an operation is called here."""
    return f"{method.upper()} {path.removeprefix('/api/v1')}"


def placed(operation: str, **places: str) -> str:
    """The path of an operation of OpenAPI, with something in the place of each parameter."""
    path = operation.partition(" ")[2]
    path = path if path.startswith(("/bootstrap", "/metrics")) else f"/api/v1{path}"
    return re.sub(r"{(\w+)}", lambda found: {**PLACES, **places}[found[1]], path)


class World(NamedTuple):
    """A worker's API on such a registry, and the tokens that are good there, by role."""

    worker: Worker
    tokens: dict[Role, str]

    def ask(self, token: str, operation: str) -> Reply:
        """Make a changing call."""
        deed = DEEDS[operation]
        return self.worker(operation.partition(" ")[0], f"/api/v1{deed.path}", deed.body, Authorization=token)

    def bearer(self, role: Role) -> str:
        return f"Bearer {self.tokens[role]}"


def build(database: Database) -> dict[Role, str]:
    """Fill a registry; return a token of each role."""
    now_s = time.time()
    add_devices(database, 4)
    add_rig(database, "bench")
    with database.write() as session:
        session.add(new_unit("dev-000", "mcu", profile="cortex-m4", now_s=now_s))
    device = SpeakingDevice(database, "dev-000")
    device.features = (SAMPLES_FEATURE, MEASURE_FEATURE)
    device.report((), observed=0, now_s=now_s)
    groups.create(database, "all", query="profile = intel-nuc", devices=(), actor="admin", now_s=now_s)
    for number in (DRAFT, UNSEEN, RUNNING, PAUSED):
        manage.create(
            database, release("1.0.0"), Policy(groups=("100%",), approval=number == UNSEEN),
            Selection(devices=(f"dev-{number - 1:03d}",)), actor="admin", now_s=now_s,
            start=number in (RUNNING, PAUSED),
        )  # fmt: skip
    manage.pause(database, PAUSED, actor="admin", now_s=now_s)
    enrolment.issue_token(
        database, enrolment.FirstTrust("https://x", FLEET, "0" * 64, "0" * 64), enrolment.TokenScope(),
        actor="admin", now_s=now_s, valid_s=DAY_S,
    )  # fmt: skip
    access.issue(database, "admin-2", Role.ADMIN, actor="admin", now_s=now_s, valid_s=DAY_S)
    door = access.Doorkeeper(database, "x")
    tokens = {}
    for role in ROLES:
        tokens[role] = access.issue(database, f"a-{role}", role, actor="admin", now_s=now_s, valid_s=DAY_S).text
        door.identify(tokens[role], now_s)  # that it was used is noted now, and not for an hour
    return tokens


def rows(database: Database) -> list[str]:
    """All that a registry holds."""
    with database.read() as session:
        return [f"{table.name} {row}" for table in SCHEMA.sorted_tables for row in session.execute(select(table))]


class Kept:
    """Such a registry on SQLite, and how it was: `put_back` undoes what a call did."""

    def __init__(self, filled: Path, tokens: dict[Role, str], folder: Path) -> None:
        self._filled, self._path = filled, folder / "control.sqlite"
        shutil.copy(filled, self._path)
        self.world = World(Worker(self._path, requests_per_s=MANY), tokens)
        self.database = self.world.worker.database
        self._was = rows(self.database)

    def unchanged(self) -> bool:
        return rows(self.database) == self._was

    def put_back(self) -> None:
        """Let it be as it was."""
        self.database.close()
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        shutil.copy(self._filled, self._path)


@functools.cache
def operations(worker: Worker) -> dict[str, list[str]]:
    """Every operation of the OpenAPI document, with its parameters in path and query."""
    document = json.loads(worker("GET", "/api/v1/openapi.json").body)
    return {
        named(method, path): [one["name"] for one in operation.get("parameters", []) if one["in"] in ("path", "query")]
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
