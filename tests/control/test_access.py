"""Who may do what: roles, tokens that end, a second person's approval, and control planes on other machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served_fleet import MODEL, Fleet, Serving

from edgeops.client.api import Api
from edgeops.client.rollout_resources import RolloutWish
from edgeops.contracts.access import PERMISSIONS, Permission, Role
from edgeops.contracts.errors import EdgeopsError
from edgeops.control import access
from edgeops.control.database import Database
from edgeops.control.models import ApiToken

NOW = 1_800_000_000.0
DAY_S = 86_400.0

# What each permission lets one do; a request that is allowed may still be refused for its content.
DEEDS: dict[Permission, tuple[Callable[[Api], Any], ...]] = {
    Permission.READ: (lambda api: list(api.devices()), lambda api: api.fleet()),
    Permission.PROPOSE: (lambda api: api.create_rollout(RolloutWish(model=MODEL, version="0.0.1")),),
    Permission.ENROLL: (lambda api: api.create_token(),),
    Permission.ROLL_OUT: (lambda api: api.thaw(), lambda api: api.start_rollout(9), lambda api: api.approve_rollout(9)),
    Permission.ADMINISTER: (lambda api: api.api_tokens(), lambda api: api.revoke_api_token("nobody")),
}  # fmt: skip


def bearer(serving: Serving, token: str) -> Api:
    return Api(serving.ready["api"], token, serving.home / "ca" / "ca.pem")


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.UNKNOWN], ids=str)
def test_each_role_may_do_what_it_may_and_nothing_else(standing: Serving, role: Role) -> None:
    token = standing.api.create_api_token(f"role-{role}", str(role), valid_s=DAY_S).token
    api = bearer(standing, token)
    for permission, deeds in DEEDS.items():
        for deed in deeds:
            code = None
            try:
                deed(api)
            except EdgeopsError as error:
                code = error.code
            assert (code == "E-API-ROLE") == (permission not in PERMISSIONS[role]), (role, permission, code)


def test_a_data_scientist_cannot_start_what_it_creates(standing_fleet: Fleet, standing: Serving) -> None:
    token = standing.api.create_api_token("draws-up", "data-scientist", valid_s=DAY_S).token
    with pytest.raises(EdgeopsError, match="data-scientist, which may not roll-out") as refused:
        bearer(standing, token).create_rollout(RolloutWish(model=MODEL, version="1.0.0", start=True))
    assert refused.value.code == "E-API-ROLE"


@pytest.mark.parametrize("spoilt", ["", "x", "eo_", "eo_0000000000000000_x", "eo_" + "ü" * 16 + "_x", "admin"])
def test_a_wrong_token_is_nobodys(standing: Serving, spoilt: str) -> None:
    with pytest.raises(EdgeopsError) as refused:
        bearer(standing, spoilt.encode("ascii", "ignore").decode()).fleet()
    assert refused.value.code == "E-API-AUTH"


def test_a_token_ends_when_it_is_revoked_or_expires(migrated: Path, tmp_path: Path) -> None:
    registry = tmp_path / "control.sqlite"
    registry.write_bytes(migrated.read_bytes())
    database = Database(registry)
    door = access.Doorkeeper(database, "the-owners-token")
    made = access.issue(database, "night-shift", Role.OPERATOR, actor="admin", now_s=NOW, valid_s=DAY_S)
    assert door.identify(made.text, NOW) == ("night-shift", Role.OPERATOR)
    assert door.identify("the-owners-token", NOW) == ("admin", Role.ADMIN)
    with pytest.raises(EdgeopsError, match="expired"):
        door.identify(made.text, NOW + DAY_S)
    with pytest.raises(EdgeopsError, match="wrong"):
        door.identify(made.text[:-1] + ("A" if made.text[-1] != "A" else "B"), NOW)
    access.revoke(database, "night-shift", actor="admin", now_s=NOW)
    with pytest.raises(EdgeopsError, match="revoked"):
        door.identify(made.text, NOW)
    with pytest.raises(EdgeopsError, match="already"):
        access.issue(database, "night-shift", Role.VIEWER, actor="admin", now_s=NOW, valid_s=DAY_S)
    secret = made.text.rpartition("_")[2]
    with database.read() as session:
        assert session.get_one(ApiToken, made.id).used_at_s == NOW
    database.close()
    assert secret.encode() not in registry.read_bytes()


def test_a_role_of_a_newer_version_may_do_nothing(migrated: Path, tmp_path: Path) -> None:
    registry = tmp_path / "control.sqlite"
    registry.write_bytes(migrated.read_bytes())
    database = Database(registry)
    made = access.issue(database, "later", Role.ADMIN, actor="admin", now_s=NOW, valid_s=DAY_S)
    with database.write() as session:
        session.get_one(ApiToken, made.id).role = "superuser"
    caller = access.Doorkeeper(database, "x").identify(made.text, NOW)
    database.close()
    for permission in Permission:
        with pytest.raises(EdgeopsError, match="unknown"):
            access.check_allowed(caller, permission)


def test_a_rollout_that_needs_approval_waits_for_a_second_person(standing_fleet: Fleet, standing: Serving) -> None:
    first = bearer(standing, standing.api.create_api_token("first", "operator", valid_s=DAY_S).token)
    second = bearer(standing, standing.api.create_api_token("second", "operator", valid_s=DAY_S).token)
    rollout = first.create_rollout(RolloutWish(model=MODEL, version="1.0.0", approval=True)).id
    for deed in (first.start_rollout, second.start_rollout, first.approve_rollout):
        with pytest.raises(EdgeopsError) as refused:
            deed(rollout)
        assert refused.value.code == "E-ROLLOUT-APPROVAL"
    assert second.approve_rollout(rollout).approved_by == "second"
    assert first.start_rollout(rollout).started_at_s is not None
    acts = [(entry.actor, entry.action) for entry in first.audit() if entry.subject == f"rollout/{rollout}"]
    assert ("second", "rollout.approve") in acts
    assert ("first", "rollout.running") in acts
    # The control: without the wish for approval the same person may start what they made.
    other = first.create_rollout(RolloutWish(model=MODEL, version="1.0.0", start=True))
    assert other.started_at_s is not None


def run(home: Path, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    environment = {**os.environ, "XDG_CONFIG_HOME": str(home / "config"), "EDGEOPS_CONTEXT": ""}
    del environment["EDGEOPS_CONTEXT"]
    done = subprocess.run(
        [sys.executable, "-m", "edgeops", *arguments],
        input=stdin, capture_output=True, text=True, env=environment, cwd=home, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_a_context_reaches_a_control_plane_without_its_home(standing: Serving, tmp_path: Path) -> None:
    token = standing.api.create_api_token("remote", "viewer", valid_s=DAY_S).token
    given = ["--url", standing.ready["api"], "--ca", str(standing.home / "ca" / "ca.pem"), "--token-file", "-"]
    status, said, _ = run(tmp_path, "context", "add", "plant", *given, stdin=token)
    assert (status, said.split(":")[0]) == (0, "plant")
    folder = tmp_path / "config" / "edgeops" / "contexts" / "plant"
    assert (folder / "api.token").stat().st_mode & 0o777 == 0o600
    status, said, _ = run(tmp_path, "fleet", "status", "--context", "plant", "--json")
    assert (status, json.loads(said)["fleet"]) == (0, "f1")
    status, _, problem = run(tmp_path, "fleet", "freeze", "--context", "plant")
    assert (status, "E-API-ROLE" in problem) == (2, True)
    assert run(tmp_path, "context", "remove", "plant")[0] == 0
    status, _, problem = run(tmp_path, "fleet", "status", "--context", "plant")
    assert (status, "E-CONFIG" in problem, folder.exists()) == (2, True, False)


def test_a_context_is_not_kept_where_its_token_is_refused(standing: Serving, tmp_path: Path) -> None:
    given = ["--url", standing.ready["api"], "--ca", str(standing.home / "ca" / "ca.pem"), "--token-file", "-"]
    status, _, problem = run(tmp_path, "context", "add", "plant", *given, stdin="wrong")
    assert (status, "E-API-AUTH" in problem) == (2, True)
    assert not (tmp_path / "config").exists()
