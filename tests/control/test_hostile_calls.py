"""Hostile calls of the REST API, each with its control: with the one check taken out, the same call does its damage."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from api_worker import TOKEN, Reply, Worker
from hostile_calls import DAY_S, DEEDS, MANY, OPEN, READS, ROLES, Kept, World, build, operations, placed, rows
from mutants import replace
from postgres_server import administration
from sqlalchemy import URL, delete, func, select
from sqlalchemy.exc import DataError

from edgeops.contracts.access import PERMISSIONS, Permission, Role
from edgeops.control import access, idempotency
from edgeops.control.access import Doorkeeper
from edgeops.control.api import limits, problems, request, views
from edgeops.control.api.repeats import IdempotencyKeys
from edgeops.control.database import Database
from edgeops.control.models import ApiToken, Device
from edgeops.control.pace import Buckets

GOOD = range(200, 300)
# A read, and what a thief would like best.
WANTED = ("GET /fleet", "POST /api-tokens", "DELETE /api-tokens/{name}", "POST /devices/{connection}/revoke")
WHOEVER = ("if hmac.compare_digest(_hash(offered), self._admin):", "if True:")
# Wrong tokens, and of each the one check of `Doorkeeper.identify` without which it would be good.
WRONG: dict[str, tuple[str, str]] = {
    "none": WHOEVER,
    "another scheme": WHOEVER,
    "cut short": WHOEVER,
    "one letter more": WHOEVER,
    "in capitals": WHOEVER,
    "expired": ("and now_s < row.expires_at_s", ""),
    "revoked": ("and row.revoked_at_s is None", ""),
    "of one, with the secret of another": ("and hmac.compare_digest(_hash(secret), row.secret_sha256)", ""),
    "the hash, out of a stolen registry": ("hmac.compare_digest(_hash(secret), ", "hmac.compare_digest(secret, "),
}
NAMES = (
    "x' OR '1'='1", "x'; DROP TABLE devices; --", "%(name)s", "../../api.token", "..", "/", "dev-000\0", "dev-000\n",
    "+/#", "ü" * 99, "\u202e", "x" * 5000, "-1", "9" * 40, "",
)  # fmt: skip
# Sorts after every name that there is: what asks for what follows gets nothing.
LAST = "zzz' OR '1'='1"


@pytest.fixture(scope="module")
def filled(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Role, str]]:
    path = Path(shutil.copy(migrated, tmp_path_factory.mktemp("filled") / "control.sqlite"))
    database = Database(path)
    tokens = build(database)
    database.close()
    return path, tokens


@pytest.fixture(scope="module")
def standing_registry(filled: tuple[Path, dict[Role, str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "STRANGERS_BURST", int(MANY))
        kept = Kept(*filled, tmp_path_factory.mktemp("kept"))
    yield kept
    kept.database.close()


@pytest.fixture
def kept(standing_registry: Kept) -> Iterator[Kept]:
    """As it was for each test."""
    yield standing_registry
    standing_registry.put_back()


def every_route(router: Any) -> Iterator[Any]:
    for route in router.routes:
        if (within := getattr(route, "original_router", None)) is not None:
            yield from every_route(within)
        else:
            yield route


def test_of_every_operation_it_is_said_here_who_may_call_it(kept: Kept) -> None:
    """A new route is on no list, and fails here until it is."""
    worker = kept.world.worker
    found = operations(worker)
    changing = {one for one in found if not one.startswith("GET")}
    assert {deed.partition(",")[0] for deed in DEEDS} | {one for one in OPEN if one.startswith("POST")} == changing
    assert (set(READS) | OPEN) - set(found) == set()
    assert [route.path for route in every_route(worker.app) if not route.include_in_schema] == ["/api/v1/openapi.json"]


def test_a_role_that_may_not_is_refused_by_each_call_and_changes_nothing(kept: Kept) -> None:
    for operation, deed in DEEDS.items():
        for role in ROLES:
            if deed.needs in PERMISSIONS[role]:
                continue
            reply = kept.world.ask(kept.world.bearer(role), operation)
            assert (reply.status, reply.code) == (403, "E-API-ROLE"), (operation, role)
    assert kept.unchanged()


def test_without_the_look_at_roles_each_of_these_calls_is_carried_out(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a viewer revokes devices, starts rollouts and makes itself an admin."""
    monkeypatch.setattr(access, "check_allowed", lambda caller, permission: None)
    for operation, deed in DEEDS.items():
        deed.before(kept.database)
        before = rows(kept.database)
        reply = kept.world.ask(kept.world.bearer(Role.VIEWER), operation)
        assert reply.status in GOOD, (operation, reply.body)
        assert (rows(kept.database) != before) == deed.changes, operation
        kept.put_back()
    assert kept.unchanged()


def readers(world: World, roles: tuple[Role, ...] = ROLES) -> dict[str, set[Role]]:
    """Which of some roles each GET lets in."""
    return {
        operation: {
            role
            for role in roles
            if world.worker("GET", placed(operation), Authorization=world.bearer(role)).status not in (401, 403)
        }
        for operation in operations(world.worker)
        if operation.startswith("GET") and operation not in OPEN
    }


def who_may(operation: str) -> set[Role]:
    return {role for role in ROLES if READS.get(operation, Permission.READ) in PERMISSIONS[role]}


def test_each_role_reads_what_it_may(kept: Kept) -> None:
    found = readers(kept.world)
    assert len(found) > 20
    assert found == {operation: who_may(operation) for operation in found}


def test_without_the_look_at_roles_everybody_reads_all(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(access, "check_allowed", lambda caller, permission: None)
    found = readers(kept.world, (Role.VIEWER,))
    assert {operation for operation in found if not found[operation] <= who_may(operation)} == set(READS)


def wrong_tokens(kept: Kept) -> dict[str, str]:
    """What a thief may have, as the header that it sends."""
    now_s = time.time()
    ended = access.issue(kept.database, "ended", Role.ADMIN, actor="admin", now_s=now_s - 2 * DAY_S, valid_s=DAY_S)
    gone = access.issue(kept.database, "gone", Role.ADMIN, actor="admin", now_s=now_s, valid_s=DAY_S)
    access.revoke(kept.database, "gone", actor="admin", now_s=now_s)
    admin, viewer = kept.world.tokens[Role.ADMIN], kept.world.tokens[Role.VIEWER]
    prefix, number, secret = admin.split("_", 2)
    return {
        "none": "",
        "another scheme": f"Basic {TOKEN}",
        "cut short": f"Bearer {TOKEN[:-1]}",
        "one letter more": f"Bearer {TOKEN}x",
        "in capitals": f"Bearer {TOKEN.upper()}",
        "expired": f"Bearer {ended.text}",
        "revoked": f"Bearer {gone.text}",
        "of one, with the secret of another": f"Bearer {prefix}_{number}_{viewer.split('_', 2)[2]}",
        "the hash, out of a stolen registry": f"Bearer {prefix}_{number}_{hashlib.sha256(secret.encode()).hexdigest()}",
    }


def ask_for_all(kept: Kept, token: str) -> set[int]:
    """What the most wanted calls are answered."""
    world = kept.world
    read = world.worker("GET", "/api/v1/fleet", Authorization=token)
    return {read.status, *(world.ask(token, operation).status for operation in WANTED[1:])}


def test_a_token_that_does_not_hold_opens_nothing_and_changes_nothing(kept: Kept) -> None:
    tokens = wrong_tokens(kept)
    before = rows(kept.database)
    assert set(tokens) == set(WRONG)
    assert {wrong: ask_for_all(kept, token) for wrong, token in tokens.items()} == {wrong: {401} for wrong in WRONG}
    for operation in operations(kept.world.worker):
        for wrong in () if operation in OPEN else ("none", "expired"):
            method = operation.partition(" ")[0]
            reply = kept.world.worker(method, placed(operation), {}, Authorization=tokens[wrong])
            assert (reply.status, reply.code) == (401, "E-API-AUTH"), (operation, wrong)
    assert rows(kept.database) == before


@pytest.mark.parametrize("wrong", WRONG)
def test_without_the_one_check_a_wrong_token_opens_all(kept: Kept, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """The control."""
    token = wrong_tokens(kept)[wrong]
    replace(monkeypatch, Doorkeeper, "identify", *WRONG[wrong])
    assert {status // 100 for status in ask_for_all(kept, token)} == {2}


def test_a_token_of_another_fleet_is_nobodys_here(kept: Kept, migrated: Path, tmp_path: Path) -> None:
    other = Database(Path(shutil.copy(migrated, tmp_path / "other.sqlite")))
    theirs = access.issue(other, "a-admin", Role.ADMIN, actor="admin", now_s=time.time(), valid_s=DAY_S)
    assert ask_for_all(kept, f"Bearer {theirs.text}") == {401}
    assert kept.unchanged()
    # Control: the one thing that it lacks is its row.
    with other.read() as session:
        row = session.scalars(select(ApiToken)).one()
    other.close()
    with kept.database.write() as session:
        session.execute(delete(ApiToken).where(ApiToken.name == "a-admin"))
        session.merge(row)
    assert {status // 100 for status in ask_for_all(kept, f"Bearer {theirs.text}")} == {2}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def worker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """On both databases. Its tests change nothing that another one looks at."""
    if request.param == "sqlite":
        filled, _ = request.getfixturevalue("filled")
        worker = Worker(Path(shutil.copy(filled, tmp_path_factory.mktemp("both"))), requests_per_s=MANY)
    else:
        server: URL = request.getfixturevalue("migrated_postgres")
        with administration(server) as connection:
            connection.exec_driver_sql("CREATE DATABASE hostile TEMPLATE migrated")
        worker = Worker(server.set(database="hostile").render_as_string(), requests_per_s=MANY)
        build(worker.database)
    yield worker
    worker.close()


def spoilt(body: Any, name: str) -> Iterator[Any]:
    """A body with a name in the place of each of its texts, one after the other."""
    if isinstance(body, str):
        yield name
    for key in body if isinstance(body, dict) else range(len(body)) if isinstance(body, list) else ():
        for other in spoilt(body[key], name):
            copy = body.copy()
            copy[key] = other
            yield copy
        if isinstance(body, dict):
            yield {**body, name: body[key]}


def test_no_name_in_a_path_or_query_is_more_than_a_name(worker: Worker) -> None:
    """Neither SQL nor paths nor control characters: what is no name is not there, and nothing is changed or broken."""
    before = rows(worker.database)
    for operation, parameters in operations(worker).items():
        method = operation.partition(" ")[0]
        in_path = [one for one in parameters if f"{{{one}}}" in operation]
        in_query = [one for one in parameters if one not in in_path]
        asked = [placed(operation, **{parameter: name}) for parameter in in_path for name in NAMES]
        asked += [f"{placed(operation)}?{one}={quote(name, safe='')}" for one in in_query for name in NAMES]
        for path in asked:
            reply = worker(method, path, {})
            assert reply.status < 500, (method, path, reply.body)
            assert method == "GET" or reply.status >= 300, (method, path, reply.body)
    assert rows(worker.database) == before


def test_no_text_in_a_body_breaks_anything(worker: Worker) -> None:
    """A text that is allowed is kept as it is; whatever else is in there is refused."""
    kept = 0
    for operation, deed in DEEDS.items():
        for name in (*NAMES, "\ud800"):
            for body in spoilt(deed.body, name):
                reply = worker(operation.partition(" ")[0], f"/api/v1{deed.path}", body)
                assert reply.status < 500, (operation, body, reply.body)
                assert reply.status not in GOOD or "\0" not in name, (operation, body)
                if "reason" in body and reply.status in GOOD:
                    kept += 1
                    assert json.loads(reply.body)["frozen"]["reason"] == name
                    worker("POST", "/api/v1/fleet/thaw")
    assert kept > 10
    with worker.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Device)) == 5


def nested(levels: int) -> bytes:
    return b'{"reason":' + b"[" * levels + b"]" * levels + b"}"


def test_no_body_is_too_deep_to_be_refused(kept: Kept) -> None:
    for operation, deed in DEEDS.items():
        for levels in (100, 600, 100_000):
            reply = kept.world.worker(operation.partition(" ")[0], f"/api/v1{deed.path}", nested(levels))
            assert reply.status < 500, (operation, levels)
            assert not deed.body or reply.status >= 400, (operation, levels)


def test_a_look_at_texts_that_went_as_deep_as_the_client_says_would_break(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""

    def has_nul(given: Any) -> bool:
        return any(has_nul(one) for one in (given.values() if isinstance(given, dict) else given))

    monkeypatch.setattr(request, "_has_nul", has_nul)
    with pytest.raises(RecursionError):
        kept.world.worker("POST", "/api/v1/fleet/freeze", nested(600))


def test_without_the_look_at_its_texts_the_registry_would_hold_what_no_postgresql_can(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    ask = ("POST", "/api/v1/fleet/freeze", {"reason": "a\0b"})
    assert (kept.world.worker(*ask).status, kept.unchanged()) == (422, True)
    monkeypatch.setattr(request, "_has_nul", lambda given: False)
    assert (kept.world.worker(*ask).status, kept.unchanged()) == (200, False)


def test_unless_it_is_told_what_cannot_be_asked_the_api_would_break(
    migrated_postgres: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of what PostgreSQL cannot be asked: without that answer it is nobody's fault but the server's."""
    path, url = "/api/v1/groups?after=%00", migrated_postgres.set(database="migrated").render_as_string()
    worker = Worker(url)
    assert (worker("GET", path).status, worker("GET", path).code) == (422, "E-API-REQUEST")
    worker.close()
    replace(monkeypatch, problems, "install", "@app.exception_handler(DataError)")
    worker = Worker(url)
    with pytest.raises(DataError):
        worker("GET", path)
    worker.close()


def all_that_follows(worker: Worker, cursor: str) -> dict[str, int]:
    """How many items each list gives after a cursor."""
    found = {}
    for operation, parameters in operations(worker).items():
        if "after" in parameters:
            reply = worker("GET", f"{placed(operation)}?after={quote(cursor, safe='')}")
            found[operation] = len(json.loads(reply.body)["items"])
    return found


def test_a_cursor_that_was_tampered_with_shows_nothing_that_its_place_would_not(worker: Worker) -> None:
    """It is a place in the order, and no secret: what one may not read, no cursor shows."""
    whole = all_that_follows(worker, "")
    assert len(whole) >= 5
    assert min(whole.values()) >= 1
    assert all_that_follows(worker, LAST) == dict.fromkeys(whole, 0)


def test_a_cursor_that_became_sql_would_show_all(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    replace(monkeypatch, views, "api_tokens", "row.name > after", as_sql("name > '{after}'"))
    assert all_that_follows(kept.world.worker, LAST)["GET /api-tokens"] >= len(ROLES)


def as_sql(text: str) -> str:
    """An expression that pastes what comes from outside into SQL."""
    return f'__import__("sqlalchemy").text(f"{text}")'


def test_a_name_that_became_sql_would_hit_another(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with a name that is SQL an admin's token is revoked, whose name was not given."""
    path = "/api/v1/api-tokens/x' OR name = 'admin-2"
    assert kept.world.worker("DELETE", path).code == "E-NAME"
    assert kept.unchanged()
    replace(monkeypatch, access, "revoke", "ApiToken.name == name", as_sql("name = '{name}'"))
    assert kept.world.worker("DELETE", path).status == 200
    assert not kept.unchanged()


def twice(kept: Kept) -> tuple[int, bool]:
    """Let an admin make a group with a key, and a viewer ask the same with the same key; what is the viewer told?"""
    body = DEEDS["POST /groups"].body
    first, second = (
        kept.world.worker(
            "POST", "/api/v1/groups", body, Authorization=kept.world.bearer(role), **{"Idempotency-Key": "k"}
        )
        for role in (Role.ADMIN, Role.VIEWER)
    )
    assert (first.status, first.replayed) == (201, False)
    return second.status, second.replayed


def test_the_key_of_another_repeats_nothing(kept: Kept) -> None:
    assert twice(kept) == (403, False)


def test_a_key_that_belonged_to_nobody_would_tell_all_what_one_was_answered(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    replace(monkeypatch, IdempotencyKeys, "_answer", "KeyedRequest(caller.name, ", 'KeyedRequest("anybody", ')
    assert twice(kept) == (201, True)


def test_a_key_for_another_request_is_refused_and_without_that_look_it_would_lie(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: an answer to what was not asked, and a change that was never made."""
    assert twice(kept)[0] == 403

    def remove() -> Reply:
        token = kept.world.bearer(Role.ADMIN)
        return kept.world.worker("DELETE", "/api/v1/groups/all", Authorization=token, **{"Idempotency-Key": "k"})

    assert remove().code == "E-API-REUSED"
    before = rows(kept.database)
    compared = "(row.method, row.path, row.body_sha256) != (request.method, request.path, request.body_sha256)"
    replace(monkeypatch, idempotency, "recall", compared, "False")
    reply = remove()
    assert (reply.status, reply.replayed, rows(kept.database) == before) == (201, True, True)


def taken_of_an_endless_body(worker: Worker, most: int, **headers: str) -> tuple[int, int]:
    """Send a body that never ends, or breaks off at `most`; return the status, and how much of it was taken."""
    sent: list[Any] = []
    taken = 0

    async def receive() -> Any:
        nonlocal taken
        if taken >= most:
            return {"type": "http.disconnect"}
        taken += 65_536
        return {"type": "http.request", "body": b" " * 65_536, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(worker.app(worker.scope("POST", "/api/v1/groups", "", headers), receive, send))
    return (sent[0]["status"] if sent else 0), taken


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}, {"Authorization": ""}], ids=str)
def test_an_endless_body_is_cut_off_and_without_the_limit_it_is_read_on(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    most = 40 * limits.MAX_BODY_BYTES
    status, taken = taken_of_an_endless_body(kept.world.worker, most, **headers)
    assert (status, taken <= limits.MAX_BODY_BYTES + 65_536) == (413, True)
    assert kept.unchanged()
    monkeypatch.setattr(limits, "MAX_BODY_BYTES", 100 * limits.MAX_BODY_BYTES)  # Control
    assert taken_of_an_endless_body(kept.world.worker, most, **headers)[1] == most


def test_without_the_limits_of_rate_a_flood_and_a_guesser_are_served_on(
    filled: tuple[Path, dict[Role, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The control of the two buckets: with both, most calls are refused before the registry is asked, once named."""

    def flood(token: str) -> int:
        return sum(worker("GET", "/api/v1/releases", Authorization=f"Bearer {token}").status == 429 for _ in range(40))

    monkeypatch.setattr(limits, "STRANGERS_BURST", 8)
    # No time passes: no token comes back, however long the calls take here.
    monkeypatch.setattr(Buckets.__init__, "__defaults__", (lambda: 0.0,))
    worker = Worker(Path(shutil.copy(filled[0], tmp_path / "control.sqlite")), requests_per_s=2)
    assert flood(TOKEN) > 10
    assert flood("guess") == 32
    assert [record.getMessage() for record in caplog.records if "too many" in record.message] == [": too many requests"]
    monkeypatch.setattr(Buckets, "take", lambda self, key: 0.0)
    assert (flood(TOKEN), flood("guess")) == (0, 0)
    worker.close()
