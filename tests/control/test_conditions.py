"""Entity tags: what has not changed is not sent again, and what has changed is not removed unseen."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_worker import Worker
from pydantic import BaseModel
from registry_fleet import add_devices
from served_fleet import Serving
from test_api import Http, openapi, problem

from edgeops.contracts.errors import EdgeopsError
from edgeops.control.api import conditions
from edgeops.control.api.conditions import names

TAG = '"0f"'


@pytest.fixture
def group(standing: Serving) -> Iterator[str]:
    """The path of a group that was just made."""
    name = f"g{secrets.token_hex(4)}"
    standing.api.create_group(name, query="profile = intel-nuc")
    yield f"/api/v1/groups/{name}"
    with contextlib.suppress(EdgeopsError):
        standing.api.remove_group(name)


def test_every_get_has_a_tag_and_is_not_sent_twice(standing: Serving) -> None:
    http, seen = Http(standing), 0
    for path, operations in openapi(http)["paths"].items():
        if "get" not in operations or "{" in path or not path.startswith("/api/v1") or path == "/api/v1/health":
            continue
        # Between two requests a device may have been heard of: then the next two.
        for _ in range(10):
            tag = http("GET", path)[1]["ETag"]
            status, headers, data = http("GET", path, **{"If-None-Match": tag})
            if status == 304:
                break
        assert (status, data, headers["ETag"]) == (304, b"", tag), path
        assert tag.startswith('"')
        assert "Content-Type" not in headers
        status, _, data = http("GET", path, **{"If-None-Match": '"other"'})  # negative control
        assert (status, data != b"") == (200, True)
        seen += 1
    assert seen > 6


def test_a_change_changes_the_tag(standing: Serving, group: str) -> None:
    http = Http(standing)
    one, tag = http("GET", group)[1]["ETag"], http("GET", "/api/v1/groups")[1]["ETag"]
    assert http("GET", group, **{"If-None-Match": f'W/"x", {one}'})[0] == 304
    standing.api.remove_group(group.rpartition("/")[2])
    status, headers, _ = http("GET", "/api/v1/groups", **{"If-None-Match": tag})
    assert status == 200
    assert headers["ETag"] != tag


def test_an_error_has_no_tag(standing: Serving) -> None:
    answer = Http(standing)("GET", "/api/v1/groups/none", **{"If-None-Match": "*"})
    assert problem(answer) == (404, "E-GROUP")
    assert "ETag" not in answer[1]


def test_only_the_group_that_was_seen_is_removed(standing: Serving, group: str) -> None:
    http, path = Http(standing), group
    tag = http("GET", path)[1]["ETag"]
    for wrong in (TAG, f"W/{tag}", "", tag.strip('"')):
        assert problem(http("DELETE", path, **{"If-Match": wrong})) == (412, "E-API-CHANGED"), wrong
    assert http("GET", path)[1]["ETag"] == tag
    assert http("DELETE", path, **{"If-Match": f"{TAG}, {tag}"})[0] == 200
    assert problem(http("DELETE", path, **{"If-Match": tag})) == (404, "E-GROUP")


def test_a_condition_that_would_not_be_checked_is_refused(standing: Serving) -> None:
    http = Http(standing)
    for method, path in (("POST", "/api/v1/fleet/thaw"), ("DELETE", "/api/v1/api-tokens/none")):
        assert problem(http(method, path, **{"If-Match": TAG})) == (400, "E-API-REQUEST")
    assert http("POST", "/api/v1/fleet/thaw")[0] == 200  # negative control


def test_the_look_and_the_removal_are_one_transaction(
    registry_url: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who makes the group anew after the look comes after the removal: what was not seen is not removed."""
    worker, other = Worker(registry_url), Worker(registry_url)
    add_devices(worker.database, 3)
    worker("POST", "/api/v1/groups", {"name": "g", "devices": ["dev-000"]})
    tag = worker("GET", "/api/v1/groups/g").headers["etag"]
    look, replies = conditions.check_unchanged, []

    def make_anew() -> None:
        replies.append(other("DELETE", "/api/v1/groups/g"))
        replies.append(other("POST", "/api/v1/groups", {"name": "g", "devices": ["dev-001"]}))

    meanwhile = threading.Thread(target=make_anew)

    def slow_look(if_match: str | None, resource: BaseModel) -> None:
        look(if_match, resource)
        if if_match is not None:
            meanwhile.start()
            meanwhile.join(0.4)

    monkeypatch.setattr(conditions, "check_unchanged", slow_look)
    assert worker("DELETE", "/api/v1/groups/g", **{"If-Match": tag}).status == 200
    meanwhile.join()
    assert [reply.status for reply in replies] == [404, 201]
    assert json.loads(worker("GET", "/api/v1/groups/g").body)["devices"] == ["dev-001"]
    worker.close()
    other.close()


@pytest.mark.parametrize(
    ("header", "weak", "expected"),
    [
        (TAG, False, True),
        ("*", False, True),
        (f'"a", {TAG}', False, True),
        (f"W/{TAG}", False, False),
        (f"W/{TAG}", True, True),
        ("", True, False),
        ("0f", True, False),
        ('"0f', True, False),
        ('"*"', True, False),
    ],
)
def test_a_header_names_a_tag_as_rfc_9110_says(header: str, weak: bool, expected: bool) -> None:
    assert names(header, TAG, weak=weak) is expected
