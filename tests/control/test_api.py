"""The REST API over real TLS: who comes in, what is refused and how, and that its documents tell the truth."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import urllib3
from served_fleet import MODEL, PROFILES, Fleet, Serving
from starlette.responses import PlainTextResponse

from edgeops.client import resources, rollout_resources
from edgeops.client.api import Api
from edgeops.contracts.enrolment import EnrolRequest
from edgeops.contracts.errors import ERROR_CODES, EdgeopsError
from edgeops.contracts.wire import encode
from edgeops.control.api import limits
from edgeops.control.pace import MAX_KEYS, Buckets

GOOD = {"model": MODEL, "version": "1.0.0"}
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "api.md"


class Http:
    """Requests without the product's client."""

    def __init__(self, serving: Serving, token: str | None = None) -> None:
        context = ssl.create_default_context(cafile=str(serving.home / "ca" / "ca.pem"))
        self._pool = urllib3.PoolManager(ssl_context=context, retries=False, timeout=60)
        self._base = serving.ready["api"]
        token = (serving.home / "api.token").read_text().strip() if token is None else token
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {**self._headers, "Content-Type": "application/json", **headers}
        answer = self._pool.request(method, self._base + path, body=data, headers=sent, redirect=False)
        return answer.status, answer.headers, answer.data


@pytest.fixture
def http(standing: Serving) -> Http:
    return Http(standing)


def openapi(http: Http) -> dict[str, Any]:
    status, _, data = http("GET", "/api/v1/openapi.json")
    assert status == 200
    return dict(json.loads(data))


def problem(answer: tuple[int, Any, Any]) -> tuple[int, str]:
    status, headers, data = answer
    assert headers["Content-Type"] == "application/problem+json"
    said = json.loads(data)
    assert said["status"] == status
    assert said["code"] in ERROR_CODES
    assert said["type"] == f"urn:edgeops:error:{said['code']}"
    return status, said["code"]


def test_a_bucket_fills_again_and_memory_stays_bounded() -> None:
    now_s = [0.0]
    buckets = Buckets(10.0, 5, lambda: now_s[0])
    assert [buckets.take("a") for _ in range(5)] == [0.0] * 5
    assert buckets.take("a") == pytest.approx(0.1)
    assert buckets.take("b") == 0.0  # the control: another one is not meant
    now_s[0] = 0.1
    assert (buckets.take("a"), buckets.take("a") > 0) == (0.0, True)
    for number in range(2 * MAX_KEYS):
        buckets.take(str(number))
    assert len(buckets._left) == MAX_KEYS


def test_who_asks_too_often_waits_and_a_guesser_slows_nobody_down() -> None:
    """Each middleware is the real one; the app behind it knows one token."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        known = (b"authorization", b"Bearer good") in scope["headers"]
        await PlainTextResponse("", 200 if known else 401)(scope, receive, send)

    # No time passes: no token comes back, however long it takes here.
    limited = limits.RateLimit(app, Buckets(0.001, 9, lambda: 0.0), Buckets(0.001, 3, lambda: 0.0))

    def ask(token: str, path: str = "/api/v1/devices") -> tuple[int, dict[bytes, bytes], bytes]:
        return answer_of(limited, path, token)

    assert [ask(f"Bearer guess-{number}")[0] for number in range(6)] == [401, 401, 401, 429, 429, 429]
    assert [ask("Bearer good")[0] for _ in range(9)] == [200] * 9
    status, headers, body = ask("Bearer good")
    assert (status, json.loads(body)["code"], headers[b"retry-after"]) == (429, "E-API-RATE", b"1000")
    # One that a monitor asks is always answered; the app's 401 shows that it came through.
    assert ask("", "/api/v1/health")[0] == 401


def answer_of(app: Any, path: str, token: str) -> tuple[int, dict[bytes, bytes], bytes]:
    """Make one request of an ASGI app; return status, headers and body."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": path, "client": ("10.0.0.1", 1), "query_string": b"",
        "headers": [(b"authorization", token.encode())] if token else [],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def test_without_the_token_nothing_below_api_is_told(standing: Serving) -> None:
    stranger, friend = Http(standing, "wrong"), Http(standing)
    for path, operations in openapi(friend)["paths"].items():
        if path.startswith("/bootstrap") or path == "/api/v1/health":
            continue
        for method in operations:
            asked = path.replace("{rollout_id}", "1").replace("{connection}", "x")
            assert problem(stranger(method.upper(), asked, {})) == (401, "E-API-AUTH"), (method, path)
    assert friend("GET", "/api/v1/devices")[0] == 200  # negative control


def test_the_token_is_private_and_stays(standing: Serving) -> None:
    token = standing.home / "api.token"
    assert token.stat().st_mode & 0o077 == 0
    assert len(token.read_text().strip()) >= 32


def test_another_ca_is_not_trusted(standing: Serving, tmp_path: Path) -> None:
    from edgeops.trust.authority import FleetAuthority

    FleetAuthority.create(tmp_path / "ca", "other")
    token = (standing.home / "api.token").read_text().strip()
    with pytest.raises(EdgeopsError, match="E-NET-UNREACHABLE"):
        Api(standing.ready["api"], token, tmp_path / "ca" / "ca.pem").health()
    assert standing.api.health().status == "ok"  # negative control


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_gate_that_is_no_number_is_not_sent_as_no_gate(standing: Serving, number: float) -> None:
    """JSON knows no such number: `null` stands for it, which asks for no gate at all."""
    wish = rollout_resources.RolloutWish(
        model="adder", version="1.0.0", gates=rollout_resources.GatesInfo(error_rate_max=number)
    )
    assert b'"error_rate_max":null' in msgspec.json.encode(wish)
    with pytest.raises(EdgeopsError) as caught:
        Api.from_home(standing.home).create_rollout(wish)
    assert caught.value.code == "E-API-REQUEST"
    assert "gates.error_rate_max" in caught.value.what


def test_plain_http_is_refused_by_the_client(standing: Serving) -> None:
    with pytest.raises(EdgeopsError, match="E-CONFIG"):
        Api(standing.ready["api"].replace("https", "http"), "t", standing.home / "ca" / "ca.pem")


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/api/v1/devices/nobody", None, (404, "E-DEVICE-UNKNOWN")),
        ("GET", "/api/v1/devices?limit=0", None, (422, "E-API-REQUEST")),
        ("GET", "/api/v1/devices?limit=many", None, (422, "E-API-REQUEST")),
        ("GET", "/api/v1/rollouts/4711", None, (404, "E-ROLLOUT-UNKNOWN")),
        ("GET", "/api/v1/rollouts/99999999999999999999999", None, (422, "E-API-REQUEST")),
        ("GET", "/api/v1/rollouts/-1", None, (422, "E-API-REQUEST")),
        ("POST", "/api/v1/rollouts/4711/start", None, (404, "E-ROLLOUT-UNKNOWN")),
        ("POST", "/api/v1/rollouts", {"model": MODEL, "version": "9.9.9"}, (404, "E-RELEASE-UNKNOWN")),
        ("POST", "/api/v1/rollouts", {"model": "No Model", "version": "1.0.0"}, (422, "E-API-REQUEST")),
        ("POST", "/api/v1/rollouts", {**GOOD, "colour": 1}, (422, "E-API-REQUEST")),
        ("POST", "/api/v1/rollouts", b"{not json", (422, "E-API-REQUEST")),
        ("POST", "/api/v1/rollouts", b"\xff\xfe\x00", (400, "E-API-REQUEST")),
        ("POST", "/api/v1/rollouts", b'{"model": "lines", "version": "1.0.0", "gates": {"timeout_s": NaN}}',
         (422, "E-API-REQUEST")),
        ("POST", "/api/v1/rollouts", {**GOOD, "schedule": {"not_before_s": 1e300}}, (422, "E-API-REQUEST")),
        ("POST", "/api/v1/rollouts/plan",
         {**GOOD, "schedule": {"not_before_s": 253_402_300_799, "window": "22:00-05:00"}}, (422, "E-API-REQUEST")),
        ("POST", "/api/v1/rollouts", b'{"model": "lines", "version": "1.0.0", "schedule": {"not_before_s": NaN}}',
         (422, "E-API-REQUEST")),
        ("POST", "/api/v1/rollouts", {**GOOD, "groups": [], "rate": {"per_minute": 10**400}}, (422, "E-API-REQUEST")),
        ("POST", "/api/v1/rollouts", {**GOOD, "groups": ["50%"]}, (422, "E-ROLLOUT-INVALID")),
        ("POST", "/api/v1/rollouts", {**GOOD, "devices": ["no"]}, (404, "E-DEVICE-UNKNOWN")),
        ("POST", "/api/v1/enrolment-tokens", {"valid_s": -1}, (422, "E-API-REQUEST")),
        ("POST", "/api/v1/enrolment-tokens", {"valid_s": 1e12}, (422, "E-API-REQUEST")),
        ("POST", "/api/v1/enrolment-tokens", {"profile": "../x"}, (422, "E-API-REQUEST")),
        ("POST", "/api/v1/enrolment-tokens", {"labels": {"A b": "c"}}, (422, "E-NAME")),
        ("POST", "/bootstrap/enrol", b"", (400, "E-WIRE-MALFORMED")),
        ("POST", "/bootstrap/enrol", b"[]", (400, "E-WIRE-MALFORMED")),
        ("GET", "/api/v1/nothing", None, (404, "E-API-REQUEST")),
        ("DELETE", "/api/v1/devices", None, (405, "E-API-REQUEST")),
    ],
)  # fmt: skip
def test_bad_requests_are_problems_with_a_code(
    http: Http, standing_fleet: Fleet, method: str, path: str, body: Any, expected: tuple[int, str]
) -> None:
    assert problem(http(method, path, body)) == expected


def test_bodies_are_bounded_announced_or_not(standing: Serving, http: Http) -> None:
    large = b" " * (300 << 10)
    assert problem(http("POST", "/bootstrap/enrol", large)) == (413, "E-WIRE-SIZE")
    context = ssl.create_default_context(cafile=str(standing.home / "ca" / "ca.pem"))
    pool = urllib3.PoolManager(ssl_context=context, retries=False)
    chunks = (b" " * 4096 for _ in range(100))
    answer = pool.request("POST", standing.ready["api"] + "/bootstrap/enrol", body=chunks, chunked=True)
    assert (answer.status, json.loads(answer.data)["code"]) == (413, "E-WIRE-SIZE")
    assert http("POST", "/bootstrap/enrol", b" " * (200 << 10))[0] == 400  # negative control: read, and not a request


def test_a_wrong_token_secret_is_refused_over_http(http: Http) -> None:
    wish = EnrolRequest(secret="guess", csr_pem="x", profile="intel-nuc")
    assert problem(http("POST", "/bootstrap/enrol", encode(wish))) == (403, "E-TOKEN")


def test_devices_come_in_pages_without_gap_or_repeat(http: Http, standing_fleet: Fleet) -> None:
    names, after = [], ""
    while after is not None:
        page = json.loads(http("GET", f"/api/v1/devices?limit=1&after={after}")[2])
        names += [device["connection"] for device in page["items"]]
        after = page["next"]
    assert names == sorted(f"{profile}-1" for profile in PROFILES)
    by_profile = json.loads(http("GET", "/api/v1/devices?profile=intel-nuc&online=true")[2])
    assert [device["connection"] for device in by_profile["items"]] == ["intel-nuc-1"]


def test_releases_are_the_published_ones(standing: Serving) -> None:
    releases = standing.api.releases()
    assert [(release.model, release.version) for release in releases] == [
        (MODEL, version) for version in ("1.0.0", "1.1.0", "1.2.0")
    ]
    assert {target.profile for target in releases[0].targets} == set(PROFILES)


def test_a_token_is_shown_once(standing: Serving) -> None:
    created = standing.api.create_token(profile="intel-nuc", labels={"site": "a"}, valid_s=60)
    assert 0 < created.expires_at_s - time.time() <= 60
    listed = next(token for token in standing.api.tokens() if token.id == created.id)
    assert (listed.profile, listed.labels, listed.used_at_s) == ("intel-nuc", {"site": "a"}, None)
    assert created.token not in str(standing.api.tokens())


def test_every_path_is_in_the_reference_and_the_other_way_round(http: Http) -> None:
    paths = {f"{method.upper()} {path}" for path, operations in openapi(http)["paths"].items() for method in operations}
    written = set(re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", REFERENCE.read_text(), re.MULTILINE))
    assert paths == written


def test_the_openapi_document_is_whole(http: Http) -> None:
    document = openapi(http)
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    for reference in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)):
        assert reference in schemas, reference
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["summary"]
            assert "default" in operation["responses"]


@pytest.mark.parametrize(
    ("struct", "schema"),
    [
        (resources.TokenCreated, "TokenCreated"),
        (resources.Token, "Token"),
        (resources.FailureInfo, "FailureResource"),
        (resources.ComponentInfo, "ComponentResource"),
        (resources.UnitInfo, "UnitResource"),
        (resources.DeviceInfo, "DeviceResource"),
        (resources.DeviceDetail, "DeviceDetail"),
        (resources.ProgressInfo, "ProgressResource"),
        (rollout_resources.GatesInfo, "GatesResource"),
        (rollout_resources.CountsInfo, "CountsResource"),
        (rollout_resources.GroupInfo, "GroupResource"),
        (rollout_resources.FigureInfo, "FigureResource"),
        (rollout_resources.RolloutInfo, "RolloutResource"),
        (rollout_resources.MemberInfo, "MemberResource"),
        (resources.FleetInfo, "Fleet"),
        (resources.FreezeInfo, "FreezeResource"),
        (resources.AuditInfo, "AuditResource"),
        (resources.BrokerInfo, "BrokerHealth"),
        (resources.HealthInfo, "Health"),
    ],
)
def test_the_client_reads_every_field_that_the_server_writes(http: Http, struct: Any, schema: str) -> None:
    fields = {field.encode_name for field in msgspec.structs.fields(struct)}
    assert fields == set(openapi(http)["components"]["schemas"][schema]["properties"])


def test_guessed_enrolment_secrets_are_answered_with_a_wait(served: Serving) -> None:
    guess = Http(served, token="")
    wish = EnrolRequest(secret="guess", csr_pem="x", profile="intel-nuc")
    answers = [problem(guess("POST", "/bootstrap/enrol", encode(wish))) for _ in range(25)]
    assert set(answers[:20]) == {(403, "E-TOKEN")}
    assert set(answers[20:]) == {(429, "E-API-RATE")}
    assert guess("POST", "/bootstrap/enrol", encode(wish))[1]["Retry-After"] == "60"
    assert len(list(served.api.devices())) == 0
