"""Groups of devices: named ones, those that a query finds, and rollouts to them."""

from __future__ import annotations

from pathlib import Path

import pytest
from registry_fleet import SpeakingDevice, add_devices, obey_all, open_registry, release
from served_fleet import Fleet, Serving, run
from sqlalchemy import select

from edgeops.contracts.deployment import ComponentKind, ComponentReport, DeploymentState, Failure, Slot
from edgeops.contracts.errors import EdgeopsError
from edgeops.control.database import Database
from edgeops.control.groups import manage as groups
from edgeops.control.groups.facts import facts_of
from edgeops.control.models import Device, RolloutMember
from edgeops.control.rollout import manage
from edgeops.control.rollout.execute import advance
from edgeops.control.rollout.followers import take_in_followers
from edgeops.control.rollout.policy import Policy
from edgeops.control.rollout.selection import Selection
from edgeops.control.units import enrolled

NOW = 1_800_000_000.0
ALL = Policy(groups=("100%",))


def members_of(database: Database, rollout: int) -> set[str]:
    with database.read() as session:
        return set(session.scalars(select(RolloutMember.connection).where(RolloutMember.rollout_id == rollout)))


def test_facts_are_what_the_device_reported_last(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    good, bad, silent = add_devices(database, 3)
    SpeakingDevice(database, good).report(
        (
            ComponentReport(
                name="lines", kind=ComponentKind.MODEL, state=DeploymentState.CONFIRMED, generation=1,
                active=Slot(release="1.2.0", digest="sha256:0", number=1),
            ),
        ),
        observed=1, now_s=NOW - 10,
    )  # fmt: skip
    failure = Failure(code="E-TRIAL", what="x", release="1.2.0", at_s=NOW)
    SpeakingDevice(database, bad).report(
        (
            ComponentReport(
                name="lines", kind=ComponentKind.MODEL, state=DeploymentState.FAILED, generation=1, failure=failure
            ),
        ),
        observed=1, now_s=NOW,
    )  # fmt: skip
    with database.read() as session:
        facts = facts_of(enrolled(session), NOW)
    assert (facts[good].releases, facts[good].states, facts[good].health) == (
        {"lines": "1.2.0"}, {"lines": "confirmed"}, "ok",
    )  # fmt: skip
    assert (facts[good].seen_s, facts[good].agent) == (10.0, "0.1.0")
    assert (facts[bad].health, facts[bad].releases) == ("failing", {})
    assert (facts[silent].seen_s, facts[silent].health) == (float("inf"), "ok")
    database.close()


def test_a_rollout_reaches_whom_its_query_finds(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    add_devices(database, 6)
    chosen = Selection(where="label.site = a and not profile = intel-nuc")
    rollout = manage.create(database, release("1.0.0"), ALL, chosen, actor="op", now_s=NOW)
    assert members_of(database, rollout) == {"dev-003", "dev-005"}
    with pytest.raises(EdgeopsError, match="column 1"):
        manage.create(database, release("1.0.0"), ALL, Selection(where="sites = a"), actor="op", now_s=NOW)
    with pytest.raises(EdgeopsError, match="no group"):
        manage.create(database, release("1.0.0"), ALL, Selection(group="none"), actor="op", now_s=NOW)
    with database.read() as session:
        assert len(session.scalars(select(RolloutMember.rollout_id).distinct()).all()) == 1
    database.close()


def test_who_joins_later_follows_if_the_group_holds_it_then(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    add_devices(database, 2)
    groups.create(database, "site-b", query="label.site = b", actor="op", now_s=NOW)
    rollout = manage.create(
        database, release("1.0.0"), ALL, Selection(group="site-b"), actor="op", now_s=NOW, start=True
    )
    advance(database, rollout, NOW)
    obey_all(database, NOW)
    assert members_of(database, rollout) == {"dev-000"}
    add_devices(database, 2, prefix="late", enrolled_at_s=NOW + 1)
    assert take_in_followers(database, NOW + 2)
    assert members_of(database, rollout) == {"dev-000", "late-000"}
    groups.remove(database, "site-b", actor="op", now_s=NOW + 3)
    add_devices(database, 2, prefix="later", enrolled_at_s=NOW + 4)
    assert not take_in_followers(database, NOW + 5)
    assert members_of(database, rollout) == {"dev-000", "late-000"}
    database.close()


def test_a_static_group_holds_the_named_devices_and_no_revoked_one(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    add_devices(database, 3)
    groups.create(database, "pilot", devices=["dev-002", "dev-000", "dev-000"], actor="op", now_s=NOW)
    with database.write() as session:
        session.get_one(Device, "dev-000").revoked_at_s = NOW
    with database.read() as session:
        assert groups.members(session, groups.group(session, "pilot"), NOW) == ["dev-002"]
    for name, wish, code in (
        ("pilot", {"devices": ["dev-001"]}, "E-GROUP"),
        ("both", {"devices": ["dev-001"], "query": "online"}, "E-GROUP"),
        ("neither", {}, "E-GROUP"),
        ("who", {"devices": ["dev-9"]}, "E-DEVICE-UNKNOWN"),
        ("how", {"query": "online and"}, "E-QUERY"),
        ("No Name", {"query": "online"}, "E-NAME"),
    ):
        with pytest.raises(EdgeopsError) as refused:
            groups.create(database, name, actor="op", now_s=NOW, **wish)  # type: ignore[arg-type]
        assert refused.value.code == code
    database.close()


def test_groups_by_the_command_line(standing: Serving, standing_fleet: Fleet) -> None:
    assert run(standing, "group", "create", "boards", "--where", "profile ~ *pi* or profile ~ jetson*") == (
        "group boards: 2 devices now\n"
    )
    assert run(standing, "group", "show", "boards").split() == ["device", "jetson-orin-nano-1", "raspberry-pi-4-1"]
    found = run(standing, "device", "list", "--where", "profile = intel-nuc", "--json")
    assert [device["connection"] for device in found] == ["intel-nuc-1"]
    made = run(standing, "rollout", "create", "lines", "1.0.0", "--group", "boards", "--json")
    assert set(made["groups"][0]["profiles"]) == {"jetson-orin-nano", "raspberry-pi-4"}
    run(standing, "group", "remove", "boards")
    assert run(standing, "group", "list").splitlines() == ["group\tdevices now\tquery\tmade by"]
