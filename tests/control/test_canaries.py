"""Canaries beside a control arm of the old release, and what happens to devices that were told of a bad one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_fleet import SpeakingDevice, add_devices, obey_all, open_registry, release
from sqlalchemy import func, select

from edgeops.contracts.deployment import DeploymentState
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rollouts import RolloutState
from edgeops.control.database import Database
from edgeops.control.ingest.rollups import traffic_in
from edgeops.control.models import Device, Rollout, RolloutMember, Unit
from edgeops.control.rollout import manage
from edgeops.control.rollout.decide import Action
from edgeops.control.rollout.execute import advance
from edgeops.control.rollout.plan import plan
from edgeops.control.rollout.policy import Gates, Policy, Rate, Shadow, check_policy
from edgeops.control.rollout.selection import Selection
from edgeops.control.telemetry_models import ArmRollup

NOW = 1_800_000_000.0
FIRST = Policy(groups=("100%",))
GATES = Gates(timeout_s=7200, latency_p95_ratio_max=1.3)


@pytest.fixture
def database(registry_url: Path | str) -> Iterator[Database]:
    opened = open_registry(registry_url)
    yield opened
    opened.close()


def begin(database: Database, policy: Policy, version: str, now_s: float = NOW) -> int:
    wanted = release(version, number=int(version.split(".")[1]) + 1)
    return manage.create(database, wanted, policy, Selection(), actor="op", now_s=now_s, start=True)


def go(database: Database, rollout: int, now_s: float = NOW) -> None:
    while (step := advance(database, rollout, now_s)) is not None:
        if step.decision.action is Action.WAIT:
            break


def through(database: Database, version: str, now_s: float = NOW) -> int:
    rollout = begin(database, FIRST, version, now_s)
    go(database, rollout, now_s)
    obey_all(database, now_s)
    go(database, rollout, now_s)
    assert state_of(database, rollout) == RolloutState.SUCCEEDED
    return rollout


def state_of(database: Database, rollout: int) -> str:
    with database.read() as session:
        return session.get_one(Rollout, rollout).state


def arms(database: Database, rollout: int) -> dict[str, str]:
    with database.read() as session:
        rows = session.scalars(select(RolloutMember).where(RolloutMember.rollout_id == rollout))
        return {row.connection: row.arm for row in rows}


def wants(database: Database) -> dict[str, str | None]:
    with database.read() as session:
        names = session.scalars(select(Unit.connection)).all()
    return {name: next((part.release for part in SpeakingDevice(database, name).desired()[1]), None) for name in names}


def serve_all(database: Database, rollout: int, now_s: float, *, new_ms: float, seed: int) -> None:
    """Every device tells of a window. Those of neither arm stand in a hot hall and are three times as slow."""
    draw = random.Random(seed)
    wanted, arm = wants(database), arms(database, rollout)
    for name in sorted(wanted):
        typical_ms = {"canary": new_ms, "control": 10.0, "": 30.0}[arm[name]]
        values = [draw.uniform(0.5, 1.5) * typical_ms for _ in range(400)]
        device = SpeakingDevice(database, name, boot_id=f"serving-{seed}")
        device.served(str(wanted[name]), values, now_s=now_s, errors={})


@pytest.mark.parametrize(
    ("control", "new_ms", "ends"),
    [("10%", 20.0, RolloutState.STOPPED), ("10%", 10.0, RolloutState.RUNNING), ("", 20.0, RolloutState.RUNNING)],
)
def test_a_canary_is_compared_with_its_control_arm_and_nobody_else(
    database: Database, control: str, new_ms: float, ends: RolloutState
) -> None:
    """Twice as slow as its control arm, it is stopped. Beside all others, of whom most are slow, it would pass."""
    add_devices(database, 40, profiles=("intel-nuc",))
    through(database, "1.0.0")
    policy = Policy(groups=("10%", "100%"), gates=GATES, control=control, bake_s=60)
    rollout = begin(database, policy, "1.1.0", NOW + 10)
    go(database, rollout, NOW + 10)
    for name in [name for name, version in wants(database).items() if version == "1.1.0"]:
        SpeakingDevice(database, name, boot_id="new").obey(NOW + 11)
    if not control:
        give_arms(database, rollout)
    for look in range(3):
        serve_all(database, rollout, NOW + 20 + look, new_ms=new_ms, seed=look)
        go(database, rollout, NOW + 20 + look)
    go(database, rollout, NOW + 100)
    assert state_of(database, rollout) == ends
    assert (Counter(wants(database).values())["1.1.0"] == 40) == (ends == RolloutState.RUNNING)


def give_arms(database: Database, rollout: int) -> None:
    """The same devices would be the arms, but the rollout does not know: it compares with all others."""
    with database.write() as session:
        rows = session.scalars(select(RolloutMember).where(RolloutMember.rollout_id == rollout)).all()
        for row in rows:
            row.arm = "canary" if row.generation is not None else ""
        for row in [row for row in rows if not row.arm][:4]:
            row.arm = "control"


def test_arms_hold_every_profile_by_its_share_and_the_plan_says_how_many(database: Database) -> None:
    add_devices(database, 60)
    policy = Policy(groups=("10%", "50%", "100%"), gates=GATES, control="20%")
    with database.read() as session:
        assert plan(session, release("1.0.0"), policy, Selection(), NOW).control == 12
    rollout = begin(database, policy, "1.0.0")
    with database.read() as session:
        rows = session.execute(
            select(RolloutMember.arm, RolloutMember.profile, func.count())
            .where(RolloutMember.rollout_id == rollout)
            .group_by(RolloutMember.arm, RolloutMember.profile)
        )
        counted = {(arm, profile): number for arm, profile, number in rows}
    assert {number for (arm, _), number in counted.items() if arm == "canary"} == {2}
    assert {number for (arm, _), number in counted.items() if arm == "control"} == {4}
    go(database, rollout)
    told = {name for name, version in wants(database).items() if version == "1.0.0"}
    assert told == {name for name, arm in arms(database, rollout).items() if arm == "canary"}


def test_an_arm_counts_its_own_release_while_the_canary_is_under_way(database: Database) -> None:
    add_devices(database, 10, profiles=("intel-nuc",))
    through(database, "1.0.0")
    rollout = begin(database, Policy(groups=("2", "rest"), gates=GATES, control="3"), "1.1.0", NOW + 10)
    serve_all(database, rollout, NOW + 10, new_ms=10.0, seed=0)  # before it began
    go(database, rollout, NOW + 10)
    obey_all(database, NOW + 11)
    canary = next(name for name, arm in arms(database, rollout).items() if arm == "canary")
    # A canary's last words of the old release are of neither arm.
    SpeakingDevice(database, canary, boot_id="late").served("1.0.0", [1.0] * 7, now_s=NOW + 12, errors={})
    serve_all(database, rollout, NOW + 13, new_ms=10.0, seed=1)
    assert counts(database) == {"canary": 800, "control": 1200}
    go(database, rollout, NOW + 14)
    assert Counter(wants(database).values()) == {"1.1.0": 10}
    obey_all(database, NOW + 15)
    serve_all(database, rollout, NOW + 16, new_ms=10.0, seed=2)
    assert counts(database) == {"canary": 800, "control": 1200}


def counts(database: Database) -> dict[str, int]:
    with database.read() as session:
        return {row.arm: traffic_in(row).requests for row in session.scalars(select(ArmRollup))}


@pytest.mark.parametrize(
    "policy",
    [
        Policy(groups=("100%",), gates=GATES, control="10%"),
        Policy(rate=Rate(per_minute=5), gates=GATES, control="10%"),
        Policy(groups=("10%", "100%"), gates=Gates(), control="10%"),
        Policy(groups=("10%", "100%"), gates=GATES, control="10%", shadow=Shadow()),
        Policy(groups=("10%", "100%"), gates=GATES, control="ten"),
        Policy(groups=("10%", "100%"), gates=GATES, control="0"),
        Policy(groups=("60%", "100%"), gates=GATES, control="50%"),
    ],
)
def test_impossible_control_arms_are_refused(policy: Policy) -> None:
    with pytest.raises(EdgeopsError, match=r"E-ROLLOUT-INVALID.*control"):
        check_policy(policy, 20)


@pytest.mark.parametrize("end", ["stop", "abort"])
def test_who_was_away_comes_back_after_weeks_and_does_not_take_what_was_stopped(database: Database, end: str) -> None:
    """It gets back what it had, or nothing where it had nothing; who has the release keeps it."""
    add_devices(database, 4, profiles=("intel-nuc",))
    through(database, "1.0.0")
    add_devices(database, 1, profiles=("intel-nuc",), prefix="new", enrolled_at_s=0.0)
    offline(database, "dev-002", "dev-003", "new-000")
    policy = Policy(groups=("100%",), gates=Gates(success_min=0.5, failure_max=0.2, min_count=2, timeout_s=100))
    rollout = begin(database, policy, "1.1.0", NOW + 10)
    go(database, rollout, NOW + 10)
    assert set(wants(database).values()) == {"1.1.0"}
    SpeakingDevice(database, "dev-000", boot_id="n").obey(NOW + 11)
    if end == "stop":
        SpeakingDevice(database, "dev-001", boot_id="n").obey(NOW + 12, state=DeploymentState.FAILED)
        go(database, rollout, NOW + 13)
        assert state_of(database, rollout) == RolloutState.STOPPED
    else:
        manage.abort(database, rollout, actor="op", now_s=NOW + 13)
    wanted = wants(database)
    assert wanted["dev-000"] == "1.1.0"
    assert {name: wanted[name] for name in ("dev-002", "dev-003", "new-000")} == {
        "dev-002": "1.0.0", "dev-003": "1.0.0", "new-000": None,
    }  # fmt: skip
    before = members(database, rollout)
    obey_all(database, NOW + 30 * 86400)
    assert members(database, rollout) == before  # what they confirm now is no word on this rollout


def offline(database: Database, *names: str) -> None:
    with database.write() as session:
        for name in names:
            session.get_one(Device, name).online = False


def members(database: Database, rollout: int) -> dict[str, str]:
    with database.read() as session:
        rows = session.scalars(select(RolloutMember).where(RolloutMember.rollout_id == rollout))
        return {row.connection: row.state for row in rows}


def test_a_profile_that_went_back_does_not_count_against_the_others(database: Database) -> None:
    """Its devices confirm the old release: that is no failure of the rollout, which goes on for the other profile."""
    add_devices(database, 20, profiles=("intel-nuc", "raspberry-pi-4"))
    through(database, "1.0.0")
    gates = Gates(success_min=0.9, failure_max=0.1, timeout_s=100, error_rate_max=0.05)
    policy = Policy(groups=("50%", "100%"), gates=gates, on_failure="revert")
    rollout = begin(database, policy, "1.1.0", NOW + 10)
    go(database, rollout, NOW + 10)
    obey_all(database, NOW + 11)
    for name, errors in (("dev-000", {"E-INFER-VALUES": 1000}), ("dev-001", {})):
        SpeakingDevice(database, name, boot_id="t").served("1.1.0", [1.0] * 2000, now_s=NOW + 12, errors=errors)
    go(database, rollout, NOW + 13)
    obey_all(database, NOW + 14)
    go(database, rollout, NOW + 15)
    obey_all(database, NOW + 16)
    go(database, rollout, NOW + 17)
    with database.read() as session:
        row = session.get_one(Rollout, rollout)
        assert (row.state, "without profiles intel-nuc" in row.reason) == (RolloutState.STOPPED, True)
    assert Counter(wants(database).values()) == {"1.0.0": 10, "1.1.0": 10}
    assert DeploymentState.FAILED not in members(database, rollout).values()
