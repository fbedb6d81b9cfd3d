"""Hostile calls before and beside the API's tokens: joining, a second person, the artifacts, another site's page.

Each is refused by one check, and does its damage when that one is taken out.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from api_worker import Worker
from enrolment_door import NOW
from enrolment_door import Door as Enrolment
from hostile_calls import DRAFT, UNSEEN, build
from mutants import replace
from sqlalchemy import delete, event
from sqlalchemy.exc import IntegrityError
from starlette.staticfiles import StaticFiles

from edgeops.contracts.enrolment import ConnectionKind
from edgeops.contracts.errors import EdgeopsError
from edgeops.control import enrolment
from edgeops.control.access import Doorkeeper
from edgeops.control.api import artifacts, limits, problems
from edgeops.control.database import Database
from edgeops.control.enrolment import TokenScope
from edgeops.control.models import ApiToken, Device, Rollout, Unit
from edgeops.control.rollout import freeze, manage
from edgeops.control.web import door as web
from edgeops.trust.authority import FleetAuthority


@pytest.fixture
def registry(migrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated, tmp_path / "control.sqlite"))


@pytest.fixture
def database(registry: Path) -> Iterator[Database]:
    database = Database(registry)
    yield database
    database.close()


@pytest.fixture
def joining(database: Database, tmp_path: Path) -> Enrolment:
    return Enrolment(database, FleetAuthority.create(tmp_path / "ca", "f1"), tmp_path)


class Join(NamedTuple):
    """Somebody who should not come in, and the check of a function that keeps them out; `also`: a second one."""

    comes: Callable[[Enrolment], enrolment.Enrolled]
    code: str
    function: str
    check: str
    instead: str = "False"
    also: str = ""


def with_a_used_token(door: Enrolment) -> enrolment.Enrolled:
    secret = door.token()
    door.knock(secret, key="first", name="cam-1")
    return door.knock(secret, key="second", name="cam-2")


def as_who_was_there_before(door: Enrolment) -> enrolment.Enrolled:
    secret = door.token()
    door.knock(secret, key="first", name="cam-1")
    return door.knock(secret, key="thief", name="cam-1")


def after_it_was_revoked(door: Enrolment) -> enrolment.Enrolled:
    secret = door.token()
    door.knock(secret, name="cam-1")
    with door.database.write() as session:
        session.get_one(Device, "cam-1").revoked_at_s = NOW
    return door.knock(secret, name="cam-1")


JOINS = {
    "with a token that was used": Join(with_a_used_token, "E-TOKEN", "enrol", "token.used_by is not None"),
    "with a token that ran out": Join(
        lambda door: door.knock(door.token(valid_s=10), now_s=NOW + 10),
        "E-TOKEN", "enrol", "now_s >= token.expires_at_s",
    ),
    "as another kind of device": Join(
        lambda door: door.knock(door.token(TokenScope(profile="raspberry-pi-4")), profile="intel-nuc"),
        "E-ENROLL", "enrol", "token.profile is not None and token.profile != request.profile",
    ),
    "as a rig": Join(
        lambda door: door.knock(door.token(TokenScope(name="cam-1")), name="cam-1", kind=ConnectionKind.RIG),
        "E-ENROLL", "enrol", "token.kind != request.kind",
    ),
    "under a name that is not the token's": Join(
        lambda door: door.knock(door.token(TokenScope(name="cam-1")), name="cam-2"),
        "E-ENROLL", "_name", "token.name is not None and request.name not in (None, token.name)",
    ),
    "under a name that would be a topic of others": Join(
        lambda door: door.knock(door.token(), name="+/#"),
        "E-NAME", "_name", 'check_name(wish, "device name")', "wish", "edgeops.trust.authority.check_name",
    ),
    "in the place of who joined before": Join(
        as_who_was_there_before, "E-TOKEN", "_again", "requested_key(request.csr_pem.encode()) != joined_with",
    ),
    "again after it was revoked": Join(
        after_it_was_revoked, "E-TOKEN", "_again", "device.revoked_at_s is not None",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", JOINS)
def test_nobody_joins_who_should_not_and_without_the_one_check_they_would(
    joining: Enrolment, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    join = JOINS[how]
    with pytest.raises(EdgeopsError) as refused:
        join.comes(joining)
    assert refused.value.code == join.code
    with joining.database.write() as session:
        for table in (Unit, Device):
            session.execute(delete(table))
    replace(monkeypatch, enrolment, join.function, join.check, join.instead)  # Control
    if join.also:
        monkeypatch.setattr(join.also, lambda value, what: value)
    assert join.comes(joining).connection in joining.devices()


def test_guessed_secrets_wait_and_without_that_look_nobody_would(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guess = {"secret": "guess", "csr_pem": "x", "profile": "intel-nuc"}
    monkeypatch.setattr(limits, "MAX_REFUSED", 3)
    worker = Worker(registry)

    def answers() -> list[int]:
        return [worker("POST", "/bootstrap/enrol", guess).status for _ in range(6)]

    assert answers() == [403] * 3 + [429] * 3
    monkeypatch.setattr(limits.Attempts, "check", lambda self, address: None)  # Control
    assert answers() == [403] * 6
    worker.close()


def test_nobody_approves_its_own_rollout_or_starts_one_of_a_frozen_fleet(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(database)
    freeze.freeze(database, reason="", actor="op", now_s=time.time())

    def approved() -> None:
        manage.approve(database, UNSEEN, actor="admin", now_s=time.time())

    def started() -> None:
        manage.start(database, DRAFT, actor="admin", now_s=time.time())

    for deed, code in ((approved, "E-ROLLOUT-APPROVAL"), (started, "E-FLEET-FROZEN")):
        with pytest.raises(EdgeopsError) as refused:
            deed()
        assert refused.value.code == code
    replace(monkeypatch, manage, "approve", "rollout.created_by == actor", "False")  # Control
    monkeypatch.setattr(manage, "check_not_frozen", lambda session: None)
    approved()
    started()
    with database.read() as session:
        assert session.get_one(Rollout, UNSEEN).approved_by == "admin"
        assert session.get_one(Rollout, DRAFT).started_at_s is not None


def ask(app: Any, path: str, *, kind: str = "http", peer: str | None = "dev-000", **headers: str) -> tuple[int, bytes]:
    """Ask an app for what a path says, as it stands; return status and body, of a websocket 101 or 0."""
    said: list[Any] = []
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def receive() -> dict[str, Any]:
        if kind == "http":
            await asyncio.Event().wait()  # nothing more comes
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        said.append(message)

    scope = {
        "type": kind, "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": sent, "edgeops.peer": peer, "scheme": "https", "server": ("h", 1), "client": ("c", 1),
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    if kind == "websocket":
        return (101 if said[0]["type"] == "websocket.accept" else 0), b""
    return said[0]["status"], b"".join(one.get("body", b"") for one in said[1:])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    repository = tmp_path / "home" / "repository"
    for folder in ("metadata", "targets"):
        (repository / folder).mkdir(parents=True)
        (repository / folder / "good").write_text("published")
    (repository.parent / "api.token").write_text("secret")
    (repository / "targets" / "link").symlink_to(repository.parent / "api.token")
    (repository / "metadata" / ".half").write_text("secret")
    return repository


def lookup_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    check = "os.path.commonpath([full_path, directory]) != str(directory)"
    replace(monkeypatch, StaticFiles, "lookup_path", check, "False")


def show_what_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(artifacts._PublishedFiles, "get_response")


def show_and_look_up_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path with `..` is refused twice."""
    lookup_anywhere(monkeypatch)
    show_what_is_hidden(monkeypatch)


def let_everybody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    replace(monkeypatch, artifacts._NotForRevoked, "__call__", "(peer is None or self._is_revoked(peer))", "False")


@pytest.mark.parametrize(
    ("path", "peer", "status", "weaken"),
    [
        ("/targets/../../api.token", "dev-000", 404, show_and_look_up_all),
        ("/targets/a/../../../api.token", "dev-000", 404, show_and_look_up_all),
        ("/targets/link", "dev-000", 404, lookup_anywhere),
        ("/metadata/.half", "dev-000", 404, show_what_is_hidden),
        ("/targets/good", "revoked", 403, let_everybody_in),
        ("/targets/good", None, 403, let_everybody_in),
    ],
)
def test_only_published_files_go_out_to_devices_and_without_the_one_check_others_would(
    repository: Path, monkeypatch: pytest.MonkeyPatch, path: str, peer: str | None, status: int, weaken: Any
) -> None:
    def asked() -> tuple[int, bytes]:
        return ask(artifacts.artifacts_app(repository, lambda name: name == "revoked"), path, peer=peer)

    assert ask(artifacts.artifacts_app(repository, lambda name: False), "/targets/good") == (200, b"published")
    assert asked()[0] == status
    weaken(monkeypatch)  # Control
    assert asked() == (200, b"published" if "good" in path else b"secret")


def test_another_sites_page_opens_no_websocket_and_without_that_look_it_would(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser sends the cookie along: what tells the two apart is the origin."""

    async def pages(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    app = web.Door(pages, Doorkeeper(database, "the-owners-token"), "f1")
    headers = {"host": "h:1", "cookie": f"{web.COOKIE}=the-owners-token"}

    def opened_from(origin: str) -> int:
        return ask(app, f"{web.PATH}/ws", kind="websocket", origin=origin, **headers)[0]

    assert [opened_from(origin) for origin in ("https://h:1", "https://evil.example", "null")] == [101, 0, 0]
    check = "origin is not None and origin != f\"https://{connection.headers.get('host', '')}\""
    replace(monkeypatch, web.Door, "_is_known", check, "False")  # Control
    assert opened_from("https://evil.example") == 101


def two_at_once(url: str) -> tuple[int, str]:
    """Let another request make the same token between one's look and its change; return what that one is told."""
    worker, other = Worker(url), Worker(url)
    ask = ("POST", "/api/v1/api-tokens", {"name": "twin", "role": "viewer"})
    replies = []

    def first_the_other(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO api_tokens") and not replies:
            replies.append(other.apart(*ask))

    event.listen(worker.database._engine, "before_cursor_execute", first_the_other)
    try:
        reply = worker(*ask)
        assert replies[0].status == 201
        assert worker(*ask).code == "E-NAME"
        return reply.status, reply.code
    finally:
        worker.close()
        other.close()


@pytest.mark.parametrize("registry_url", ["postgresql"], indirect=True)
def test_of_two_who_make_the_same_at_once_one_is_told_to_try_again(
    registry_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert two_at_once(registry_url) == (503, "E-STATE-LOCKED")
    replace(monkeypatch, problems, "install", "@app.exception_handler(IntegrityError)")  # Control
    with Database(registry_url).write() as session:
        session.execute(delete(ApiToken))
    with pytest.raises(IntegrityError):
        two_at_once(registry_url)
