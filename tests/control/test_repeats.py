"""A repeated request changes nothing a second time: over real TLS, at every death, on two workers, by the client."""

from __future__ import annotations

import io
import json
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from api_worker import WISH, Reply, Worker, main
from crash_lanes import CONTEXT
from registry_fleet import add_devices
from served_fleet import MODEL, Fleet, Serving
from sqlalchemy import event, func, select, update
from test_api import Http, problem

from edgeops.client.api import Api
from edgeops.client.rollout_resources import RolloutWish
from edgeops.client.session import RETRY_MAX_S, TRIES
from edgeops.contracts.errors import EdgeopsError
from edgeops.control import idempotency, retention
from edgeops.control.access import Doorkeeper
from edgeops.control.api import access_resources
from edgeops.control.database import Database
from edgeops.control.idempotency import CLAIM, Claim, KeyedRequest
from edgeops.control.models import AuditEntry, Device, RequestKey, Rollout

NOW = 1_000_000.0
ROLLOUTS = "/api/v1/rollouts"


def key() -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(8)}


@pytest.fixture
def database(registry_url: Path | str) -> Iterator[Database]:
    database = Database(registry_url)
    add_devices(database, 3)
    yield database
    database.close()


def rollouts(database: Database) -> int:
    with database.read() as session:
        made = session.scalar(select(func.count()).select_from(Rollout)) or 0
        noted = session.scalar(
            select(func.count()).select_from(AuditEntry).where(AuditEntry.action == "rollout.create")
        )
    assert made == noted
    return made


def keys(database: Database) -> dict[str, int | None]:
    with database.read() as session:
        return {row.key: row.status for row in session.scalars(select(RequestKey))}


def test_a_repeat_is_answered_as_the_first_and_changes_nothing(standing: Serving) -> None:
    http, mine = Http(standing), key()
    body = {"name": f"g{secrets.token_hex(4)}", "query": "profile = intel-nuc"}
    status, headers, data = http("POST", "/api/v1/groups", body, **mine)
    assert status == 201
    assert "Idempotency-Replayed" not in headers
    again = http("POST", "/api/v1/groups", body, **mine)
    assert (again[0], again[2]) == (status, data)
    assert again[1]["Idempotency-Replayed"] == "true"
    assert again[1]["Content-Type"] == headers["Content-Type"]
    assert http("DELETE", f"/api/v1/groups/{body['name']}", **mine)[0] == 422
    assert problem(http("POST", "/api/v1/groups", {**body, "query": ""}, **mine)) == (422, "E-API-REUSED")
    assert problem(http("POST", "/api/v1/groups", body)) == (404, "E-GROUP")  # negative control: a request of its own
    standing.api.remove_group(body["name"])


def test_a_key_belongs_to_who_sent_it(standing: Serving, standing_fleet: Fleet) -> None:
    mine = key()
    name = f"n{secrets.token_hex(4)}"
    other = Http(standing, standing.api.create_api_token(name, "engineer", valid_s=60).token)
    assert Http(standing)("POST", ROLLOUTS, WISH, **mine)[0] == 201
    status, headers, data = other("POST", ROLLOUTS, WISH, **mine)
    assert (status, json.loads(data)["created_by"]) == (201, name)
    assert "Idempotency-Replayed" not in headers


def test_a_refused_request_may_be_repeated(standing: Serving) -> None:
    """4xx changed nothing, so its key is free: once the reason is gone the same request is carried out."""
    http, mine, name = Http(standing), key(), f"g{secrets.token_hex(4)}"
    for _ in range(2):
        refused = http("DELETE", f"/api/v1/groups/{name}", **mine)
        assert problem(refused) == (404, "E-GROUP")
        assert "Idempotency-Replayed" not in refused[1]
    standing.api.create_group(name, query="profile = intel-nuc")
    assert http("DELETE", f"/api/v1/groups/{name}", **mine)[0] == 200
    assert http("DELETE", f"/api/v1/groups/{name}", **mine)[1]["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize("wrong", ["", " ", "a b", "ü", "x" * 129, "a\tb"])
def test_a_key_that_is_none_is_refused_and_nothing_is_done(
    standing: Serving, standing_fleet: Fleet, wrong: str
) -> None:
    http, before = Http(standing), len(standing.api.rollouts())
    assert problem(http("POST", ROLLOUTS, WISH, **{"Idempotency-Key": wrong})) == (400, "E-API-IDEMPOTENCY")
    assert len(standing.api.rollouts()) == before
    assert http("POST", f"{ROLLOUTS}/plan", WISH, **{"Idempotency-Key": "~" * 128})[0] == 200  # negative control
    stranger = Http(standing, "")("POST", ROLLOUTS, WISH, **{"Idempotency-Key": wrong})
    assert problem(stranger) == (401, "E-API-AUTH")


def test_two_keys_are_none(standing: Serving) -> None:
    http = Http(standing)
    sent = urllib3.HTTPHeaderDict({**http._headers, "Content-Type": "application/json"})
    for value in ("a", "b"):
        sent.add("Idempotency-Key", value)
    answer = http._pool.request("POST", http._base + ROLLOUTS, body=json.dumps(WISH).encode(), headers=sent)
    assert json.loads(answer.data)["code"] == "E-API-IDEMPOTENCY"


def test_bodies_are_bounded_with_a_key_too(standing: Serving) -> None:
    assert problem(Http(standing)("POST", ROLLOUTS, b" " * (300 << 10), **key())) == (413, "E-WIRE-SIZE")


@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/v1/enrolment-tokens", {}), ("/api/v1/api-tokens", {"name": "", "role": "viewer", "valid_s": 60})],
)
def test_an_answer_with_a_secret_is_kept_nowhere(standing: Serving, path: str, body: dict[str, Any]) -> None:
    http, mine = Http(standing), key()
    if "name" in body:
        body = {**body, "name": f"s{secrets.token_hex(4)}"}
    status, _, data = http("POST", path, body, **mine)
    assert status == 201
    before = http("GET", path)[2]
    assert problem(http("POST", path, body, **mine)) == (409, "E-API-DONE")
    assert http("GET", path)[2] == before
    files = [file.read_bytes() for file in standing.home.glob("control.sqlite*")]
    assert any(mine["Idempotency-Key"].encode() in file for file in files)  # negative control: the key is found
    secret = json.loads(data)["token"].encode()
    assert not any(secret in file or secret.split(b"_")[-1] in file for file in files)


def test_every_answer_with_a_secret_says_so(standing: Serving) -> None:
    """A new route whose answer holds a secret has to be `ToldOnce`; the look finds those that are."""
    document = json.loads(Http(standing)("GET", "/api/v1/openapi.json")[2])
    found = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method == "get" or not path.startswith("/api/v1"):
                continue
            text = json.dumps([answer.get("content") for answer in operation["responses"].values()])
            for name in (part.split('"')[0] for part in text.split("#/components/schemas/")[1:]):
                fields = set(document["components"]["schemas"][name]["properties"])
                if any(word in field for field in fields for word in ("token", "secret", "key", "password")):
                    found.add(name)
    assert found == {"TokenCreated", "ApiTokenCreated"}
    assert all(issubclass(getattr(access_resources, name), access_resources.ToldOnce) for name in found)


def test_after_a_day_a_key_is_forgotten(database: Database, registry_url: Path | str) -> None:
    worker, mine = Worker(registry_url), key()
    assert worker("POST", ROLLOUTS, WISH, **mine).status == 201
    now_s = time.time()
    retention.prune(database, now_s + 86400 - 60)
    assert worker("POST", ROLLOUTS, WISH, **mine).replayed
    retention.prune(database, now_s + 86400 + 60)
    assert keys(database) == {}
    worker.close()


def claimed(name: str) -> Claim:
    return Claim(KeyedRequest("admin", name, "POST", "/x", "0" * 64), NOW)


def test_of_several_transactions_the_first_that_is_committed_takes_the_key(database: Database) -> None:
    token = CLAIM.set(claimed("k"))
    try:
        with database.write(claims=False) as session:
            session.get_one(Device, "dev-000").agent_version = "a note beside"
        assert keys(database) == {}
        with pytest.raises(RuntimeError), database.write():
            raise RuntimeError
        assert keys(database) == {}
        for profile in ("one", "two"):
            with database.write() as session:
                session.get_one(Device, "dev-000").profile = profile
    finally:
        CLAIM.reset(token)
    assert keys(database) == {"k": None}
    with database.read() as session:
        assert session.get_one(Device, "dev-000").profile == "two"


def test_the_note_of_a_tokens_use_takes_no_key(database: Database, registry_url: Path | str) -> None:
    """A request that is refused after its token's use was noted leaves its key free."""
    worker = Worker(registry_url)
    made = json.loads(worker("POST", "/api/v1/api-tokens", {"name": "op", "role": "operator", "valid_s": 60}).body)
    token = CLAIM.set(claimed("k"))
    try:
        Doorkeeper(database, "x").identify(made["token"], time.time())
    finally:
        CLAIM.reset(token)
        worker.close()
    assert keys(database) == {}
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(RequestKey)) == 0


def deaths(registry_url: Path | str, *, mutant: str = "", everywhere: bool = False) -> int:
    """Let workers die at each point of `POST /rollouts`; return how many there are."""
    counted = CONTEXT.Value("i", 0)
    process = CONTEXT.Process(target=main, args=(registry_url, mutant, everywhere, counted))
    process.start()
    process.join(240)
    assert process.exitcode == 0
    return int(counted.value)


def faults(registry_url: Path | str, points: int) -> list[str]:
    """Repeat each request that was cut off, and say what is wrong: it must have been carried out once."""
    found, worker = [], Worker(registry_url)
    with worker.database.read() as session:
        before = session.scalar(select(func.count()).select_from(Rollout)) or 0
        left = len(session.scalars(select(RequestKey)).all())
    if before != left:
        found.append(f"{left} keys, {before} rollouts")
    for point in range(1, points + 1):
        again = worker("POST", ROLLOUTS, WISH, **{"Idempotency-Key": f"p{point}"})
        # On a busy machine the time may be over in which it counts as under way.
        told = (201, ""), (409, "E-API-BUSY"), (409, "E-API-DONE")
        if (again.status, again.code if again.status != 201 else "") not in told:
            found.append(f"point {point}: {again}")
        if again.status == 409 and not told_to_read(worker, f"p{point}"):
            found.append(f"point {point}: a later repeat is not told to read")
    if rollouts(worker.database) != points + 1:
        found.append(f"{points + 1} requests made {rollouts(worker.database)} rollouts")
    worker.close()
    return found


def told_to_read(worker: Worker, name: str) -> bool:
    with worker.database.write() as session:
        session.execute(
            update(RequestKey)
            .where(RequestKey.key == name)
            .values(at_s=RequestKey.at_s - idempotency.UNDER_WAY_S)
        )  # fmt: skip
    again = worker("POST", ROLLOUTS, WISH, **{"Idempotency-Key": name})
    return (again.status, again.code) == (409, "E-API-DONE")


def test_death_at_each_commit_makes_no_change_twice_and_loses_none(
    database: Database, registry_url: Path | str
) -> None:
    points = deaths(registry_url)
    assert points == 4
    assert faults(registry_url, points) == []


@pytest.mark.full
def test_death_at_each_statement_makes_no_change_twice_and_loses_none(
    database: Database, registry_url: Path | str
) -> None:
    points = deaths(registry_url, everywhere=True)
    assert points > 15
    assert faults(registry_url, points) == []


@pytest.mark.parametrize("mutant", ["key first", "key last"])
def test_a_key_in_a_transaction_of_its_own_is_noticed(
    database: Database, registry_url: Path | str, mutant: str
) -> None:
    """The negative control: death between the two leaves a key without its change, or a change without its key."""
    points = deaths(registry_url, mutant=mutant)
    assert points == 6
    assert faults(registry_url, points)


def race(registry_url: Path | str, headers: dict[str, str], *, first_fails: bool = False) -> list[Reply]:
    """Two workers get one request: the second begins while the first is in its transaction."""
    workers = [Worker(registry_url) for _ in range(2)]
    inside, replies = threading.Event(), {}

    def wait_inside(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO rollouts") and not inside.is_set():
            inside.set()
            time.sleep(0.3)
            if first_fails:
                raise EdgeopsError("E-DISK-FULL", "the database: full")

    def ask(number: int) -> None:
        replies[number] = workers[number]("POST", ROLLOUTS, WISH, **headers)

    event.listen(workers[0].database._engine, "before_cursor_execute", wait_inside)
    first = threading.Thread(target=ask, args=(0,))
    first.start()
    assert inside.wait(60)
    ask(1)
    first.join()
    for worker in workers:
        worker.close()
    return [replies[0], replies[1]]


def test_of_two_workers_with_one_key_one_makes_the_change(database: Database, registry_url: Path | str) -> None:
    mine = key()
    first, second = race(registry_url, mine)
    assert rollouts(database) == 1
    assert (first.status, first.replayed) == (201, False)
    if second.status == 409:
        assert (second.code, second.headers["retry-after"]) == ("E-API-BUSY", "1")
    else:
        assert (second.replayed, second.body) == (True, first.body)
    worker = Worker(registry_url)
    assert worker("POST", ROLLOUTS, WISH, **mine).body == first.body
    worker.close()


def test_a_worker_that_waits_for_one_that_fails_makes_the_change(database: Database, registry_url: Path | str) -> None:
    first, second = race(registry_url, key(), first_fails=True)
    assert (first.status, first.code) == (503, "E-DISK-FULL")
    assert (second.status, second.replayed) == (201, False)
    assert rollouts(database) == 1


def test_two_workers_without_a_key_make_two(database: Database, registry_url: Path | str) -> None:
    """The negative control of the race."""
    assert [reply.status for reply in race(registry_url, {})] == [201, 201]
    assert rollouts(database) == 2


def test_an_answer_that_could_not_be_kept_is_no_second_change(
    database: Database, registry_url: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, mine = Worker(registry_url), key()

    def full(*_: object) -> None:
        raise EdgeopsError("E-DISK-FULL", "the database: full")

    with monkeypatch.context() as patched:
        patched.setattr(idempotency, "keep", full)
        assert worker("POST", ROLLOUTS, WISH, **mine).status == 201
    assert worker("POST", ROLLOUTS, WISH, **mine).code == "E-API-BUSY"
    assert told_to_read(worker, mine["Idempotency-Key"])
    assert rollouts(database) == 1
    worker.close()


def test_a_change_whose_rest_failed_is_repeated_with_its_failure(database: Database, registry_url: Path | str) -> None:
    """The device is revoked, its session could not be ended: a repeat says so again, and a new request tries again."""
    tried: list[str] = []

    def refuse(connection: str) -> None:
        tried.append(connection)
        raise EdgeopsError("E-BROKER", "its live session could not be ended")

    worker, mine = Worker(registry_url, shut_out=refuse), key()
    first = worker("POST", "/api/v1/devices/dev-000/revoke", **mine)
    assert (first.status, first.code, first.replayed) == (503, "E-BROKER", False)
    again = worker("POST", "/api/v1/devices/dev-000/revoke", **mine)
    assert (again.status, again.body, again.replayed) == (503, first.body, True)
    assert tried == ["dev-000"]
    worker("POST", "/api/v1/devices/dev-000/revoke", **key())
    assert tried == ["dev-000"] * 2
    worker.close()


class Line:
    """A client's connection pool that loses answers on their way, or puts others in their place."""

    def __init__(self, pool: Any, *mishaps: Any) -> None:
        self._pool, self._mishaps = pool, list(mishaps)
        self.keys: list[str | None] = []

    def request(self, method: str, url: str, **options: Any) -> Any:
        self.keys.append(options["headers"].get("Idempotency-Key"))
        mishap = self._mishaps.pop(0) if self._mishaps else None
        if isinstance(mishap, urllib3.HTTPResponse):
            return mishap
        if mishap == "strip the key":
            options["headers"] = {k: v for k, v in options["headers"].items() if k != "Idempotency-Key"}
        answer = self._pool.request(method, url, **options)
        if mishap is not None:
            answer.read()
            raise urllib3.exceptions.ProtocolError("Connection aborted.", ConnectionResetError())
        return answer


def unwell(status: int = 503, **headers: str) -> urllib3.HTTPResponse:
    said = {"code": "E-BROKER", "detail": "away", "next_step": "", "status": status, "title": "", "type": ""}
    return urllib3.HTTPResponse(io.BytesIO(json.dumps(said).encode()), headers, status, preload_content=False)


def client(serving: Serving, *mishaps: Any) -> tuple[Api, Line, list[float]]:
    waits: list[float] = []
    token = (serving.home / "api.token").read_text().strip()
    api = Api(serving.ready["api"], token, serving.home / "ca" / "ca.pem", sleep=waits.append)
    api._session._pool = line = Line(api._session._pool, *mishaps)  # type: ignore[assignment]
    return api, line, waits


def made_by(serving: Serving, *mishaps: Any) -> int:
    """Create one rollout over a bad line; return how many there are then."""
    before = len(serving.api.rollouts())
    api, line, _ = client(serving, *mishaps)
    api.create_rollout(RolloutWish(model=MODEL, version="1.0.0"))
    assert len(set(line.keys)) == 1
    assert len(line.keys) == len(mishaps) + 1
    return len(serving.api.rollouts()) - before


def test_the_client_asks_again_and_the_change_is_made_once(standing: Serving, standing_fleet: Fleet) -> None:
    assert made_by(standing, "lost", unwell(), "lost") == 1
    assert made_by(standing, "strip the key") == 2  # negative control: what repeats without a key do


def test_each_change_of_the_client_has_a_key_of_its_own_and_reads_have_none(standing: Serving) -> None:
    api, line, waits = client(standing)
    api.thaw()
    api.thaw()
    api.fleet()
    assert len(set(line.keys)) == 3
    assert line.keys[2] is None
    assert waits == []


def test_the_client_gives_up_after_bounded_tries(standing: Serving) -> None:
    api, line, waits = client(standing, *[unwell() for _ in range(20)])
    with pytest.raises(EdgeopsError, match="E-BROKER"):
        api.thaw()
    assert len(line.keys) == TRIES
    assert len(waits) == TRIES - 1
    assert all(0 <= wait <= RETRY_MAX_S for wait in waits)


def test_the_client_waits_as_long_as_it_is_told_but_not_for_ever(standing: Serving) -> None:
    api, _, waits = client(standing, unwell(409, **{"Retry-After": "1"}), unwell(**{"Retry-After": "86400"}))
    api.thaw()
    assert waits[0] >= 1
    assert waits[1] == RETRY_MAX_S


@pytest.mark.parametrize("final", [unwell(409), unwell(429, **{"Retry-After": "60"}), unwell(500),
                                   unwell(**{"Idempotency-Replayed": "true"})])  # fmt: skip
def test_the_client_takes_a_final_answer_as_it_is(standing: Serving, final: urllib3.HTTPResponse) -> None:
    api, line, _ = client(standing, final)
    with pytest.raises(EdgeopsError):
        api.thaw()
    assert len(line.keys) == 1


def test_the_client_asks_nobody_twice_who_is_not_of_the_fleet(standing: Serving, tmp_path: Path) -> None:
    from edgeops.trust.authority import FleetAuthority

    FleetAuthority.create(tmp_path / "ca", "other")
    waits: list[float] = []
    with pytest.raises(EdgeopsError, match="E-NET-UNREACHABLE"):
        Api(standing.ready["api"], "t", tmp_path / "ca" / "ca.pem", sleep=waits.append).health()
    assert waits == []
