"""How a rollout goes: by rate, in time, with patience, and what it does where a gate is tripped."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from registry_fleet import SpeakingDevice, add_devices, obey_all, open_registry, release
from served_fleet import MODEL, Fleet, Serving, run
from sqlalchemy import select

from edgeops.contracts.deployment import DeploymentState, Shadowing
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rollouts import RolloutState
from edgeops.contracts.telemetry import ShadowFigures
from edgeops.control import publishing
from edgeops.control.database import Database
from edgeops.control.models import Rollout, RolloutGroup, RolloutMember, RolloutProfile, Unit
from edgeops.control.rollout import manage
from edgeops.control.rollout.decide import Action
from edgeops.control.rollout.execute import Step, advance
from edgeops.control.rollout.plan import plan
from edgeops.control.rollout.policy import Gates, Policy, Rate, Shadow, check_policy
from edgeops.control.rollout.regression import Arms, Requests, measure_shadow
from edgeops.control.rollout.schedule import Schedule
from edgeops.control.rollout.selection import Selection

NOW = 1_800_000_000.0


def begin(database: Database, policy: Policy, version: str = "1.0.0", now_s: float = NOW) -> int:
    wanted = release(version, number=int(version.split(".")[1]) + 1)
    return manage.create(database, wanted, policy, Selection(), actor="op", now_s=now_s, start=True)


def go(database: Database, rollout: int, now_s: float) -> Step | None:
    """Take all steps that can be taken now; return the last."""
    last = None
    while (step := advance(database, rollout, now_s)) is not None:
        last = step
        if step.decision.action is Action.WAIT:
            break
    return last


def state_of(database: Database, rollout: int) -> str:
    with database.read() as session:
        return session.get_one(Rollout, rollout).state


def wants(database: Database) -> dict[str, str | None]:
    """Device → version that it should run."""
    with database.read() as session:
        names = session.scalars(select(Unit.connection)).all()
    return {name: next((part.release for part in SpeakingDevice(database, name).desired()[1]), None) for name in names}


def test_a_ramp_grows_each_minute_that_passes(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    add_devices(database, 17)
    rollout = begin(database, Policy(rate=Rate(per_minute=2, factor=2)))
    with database.read() as session:
        groups = session.scalars(select(RolloutGroup).order_by(RolloutGroup.position)).all()
    assert [group.label for group in groups] == ["minute 1", "minute 2", "minute 3", "minute 4"]
    given = []
    for minute in range(4):
        step = go(database, rollout, NOW + 60 * minute)
        assert step is not None
        given.append(obey_all(database, NOW + 60 * minute + 1))
        # Within the minute nothing more is given, though every gate holds.
        go(database, rollout, NOW + 60 * minute + 59)
        assert obey_all(database, NOW + 60 * minute + 59) == 0
    assert given == [2, 4, 8, 3]
    go(database, rollout, NOW + 300)
    assert state_of(database, rollout) == RolloutState.SUCCEEDED
    database.close()


def test_a_group_bakes_before_the_next_and_a_regression_in_that_time_stops(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    names = add_devices(database, 4, profiles=("intel-nuc",))
    gates = Gates(timeout_s=7200, error_rate_max=0.05)
    rollout = begin(database, Policy(groups=("50%", "100%"), bake_s=1800, gates=gates))
    go(database, rollout, NOW)
    obey_all(database, NOW + 1)
    SpeakingDevice(database, names[0], boot_id="t").served("1.0.0", [1.0] * 2000, now_s=NOW + 60, errors={})
    step = go(database, rollout, NOW + 61)
    assert step is not None
    assert "it serves 1800 s before it passes" in step.decision.reason
    broken = SpeakingDevice(database, names[0], boot_id="u")
    broken.served("1.0.0", [], now_s=NOW + 1000, errors={"E-INFER-VALUES": 1000})
    go(database, rollout, NOW + 1001)
    assert state_of(database, rollout) == RolloutState.STOPPED
    assert sum(version is not None for version in wants(database).values()) == 2
    database.close()


def test_drift_stops_the_profile_that_drifts_and_heat_the_one_that_is_hot(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    profiles = ("intel-nuc", "jetson-orin-nano", "raspberry-pi-4")
    names = add_devices(database, 6, profiles=profiles)
    gates = Gates(timeout_s=7200, drift_max=0.3, temperature_c_max=85)
    policy = Policy(groups=("50%", "100%"), bake_s=60, gates=gates)
    wanted = release("1.0.0")
    refused = {"intel-nuc": {"input x": (9, 1)}, "jetson-orin-nano": {}}
    with pytest.raises(EdgeopsError, match="for jetson-orin-nano, raspberry-pi-4 have no drift reference"):
        manage.create(database, wanted, policy, Selection(), actor="op", now_s=NOW, references=refused)
    references = {name: {"input x": (90, 10), "confidence": (5, 95)} for name in profiles}
    rollout = manage.create(
        database, wanted, policy, Selection(), actor="op", now_s=NOW, start=True, references=references
    )
    go(database, rollout, NOW)
    obey_all(database, NOW + 1)
    with database.read() as session:
        given = session.execute(
            select(RolloutMember.profile, RolloutMember.connection).where(RolloutMember.generation.is_not(None))
        ).all()
    assert sorted(profile for profile, _ in given) == sorted(profiles)
    usual, other = (900, 100), (10, 990)
    seen = {"intel-nuc": (other, 60.0), "jetson-orin-nano": (usual, 60.0), "raspberry-pi-4": (usual, 91.5)}
    for profile, name in given:
        counts, hot = seen[profile]
        # What is impossible is not counted.
        for number, confidence in enumerate(((50, 950), (-1, 3), (1 << 60, 0))):
            device = SpeakingDevice(database, name, boot_id=f"t{number}")
            told = {"inputs": {"x": counts}, "confidence": confidence}
            device.served("1.0.0", [1.0] * 1000, now_s=NOW + 2, errors={}, temperature_c=hot, **told)
    go(database, rollout, NOW + 70)
    with database.read() as session:
        rows = session.scalars(select(RolloutProfile).where(RolloutProfile.stopped_at_s.is_not(None)))
        stopped = {row.profile: row.reason for row in rows}
    assert set(stopped) == {"intel-nuc", "raspberry-pi-4"}
    assert "drift_max 0.89 " in stopped["intel-nuc"]
    assert "temperature_c_max 91.5 " in stopped["raspberry-pi-4"]
    assert len(names) == 6
    assert sum(version is not None for version in wants(database).values()) == 4, "one of two, and both that are well"
    database.close()


def test_groups_start_only_in_their_window(registry_url: Path | str) -> None:
    """NOW is 2027-01-15 08:00 UTC."""
    database = open_registry(registry_url)
    add_devices(database, 2)
    schedule = Schedule(window="22:00-23:00", time_zone="UTC")
    rollout = begin(database, Policy(groups=("50%", "100%"), schedule=schedule, gates=Gates(timeout_s=50_000)))
    step = go(database, rollout, NOW)
    assert step is not None
    assert step.decision.until_s == NOW + 14 * 3600
    assert "2027-01-15T22:00+00:00" in step.decision.reason
    assert obey_all(database, NOW) == 0
    go(database, rollout, NOW + 14 * 3600)
    # It confirms only after the window has closed: what has begun is finished, what has not waits for tomorrow.
    assert obey_all(database, NOW + 15.5 * 3600) == 1
    step = go(database, rollout, NOW + 15.5 * 3600)
    assert step is not None
    assert step.decision.until_s == NOW + 38 * 3600
    go(database, rollout, NOW + 38 * 3600)
    assert obey_all(database, NOW + 38 * 3600) == 1
    database.close()


@pytest.mark.parametrize("retries", [0, 2])
def test_a_device_that_fails_gets_it_again_as_often_as_said(registry_url: Path | str, retries: int) -> None:
    database = open_registry(registry_url)
    (name,) = add_devices(database, 1)
    rollout = begin(database, Policy(groups=("100%",), retries=retries, gates=Gates(timeout_s=100)))
    device = SpeakingDevice(database, name)
    generations = []
    for number in range(retries + 1):
        go(database, rollout, NOW + number)
        generations.append(device.desired()[0])
        device.obey(NOW + number, state=DeploymentState.FAILED)
    go(database, rollout, NOW + retries + 1)
    assert state_of(database, rollout) == RolloutState.STOPPED
    assert generations == list(range(1, retries + 2))
    assert device.desired()[0] == retries + 1
    database.close()


def test_one_more_try_may_be_enough_and_a_late_word_of_the_first_changes_nothing(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    (name,) = add_devices(database, 1)
    rollout = begin(database, Policy(groups=("100%",), retries=1, gates=Gates(timeout_s=100)))
    go(database, rollout, NOW)
    device = SpeakingDevice(database, name)
    go(database, rollout, NOW + 100)  # its time is over: timed out, and tried again
    assert device.desired()[0] == 2
    first = device.desired()
    device.report((), observed=1, now_s=NOW + 101)
    go(database, rollout, NOW + 102)
    assert (state_of(database, rollout), device.desired()) == (RolloutState.RUNNING, first)
    device.obey(NOW + 103)
    go(database, rollout, NOW + 104)
    assert state_of(database, rollout) == RolloutState.SUCCEEDED
    manage.revert(database, rollout, actor="op", now_s=NOW + 105)
    assert device.desired()[0] == 2  # before the rollout it had nothing: its first try is no state to go back to
    database.close()


def published(database: Database) -> dict[str, bool]:
    """Device → whether what is published for it says not to wait."""
    pending = publishing._pending(database, "demo", NOW)
    return {one.connection: one.desired.override_holds for one in pending}


def test_held_devices_are_told_to_wait_no_longer_and_nobody_else_is(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    first, second = add_devices(database, 2)
    rollout = begin(database, Policy(groups=("100%",), gates=Gates(timeout_s=100)))
    with pytest.raises(EdgeopsError, match="E-ROLLOUT-UNKNOWN"):
        manage.override_holds(database, rollout + 1, actor="op", now_s=NOW)
    go(database, rollout, NOW)
    held = SpeakingDevice(database, first)
    held.obey(NOW + 1, state=DeploymentState.HELD)
    SpeakingDevice(database, second).obey(NOW + 1)
    assert published(database) == {first: False, second: False}
    manage.override_holds(database, rollout, actor="op", now_s=NOW + 2)
    assert published(database) == {first: True, second: False}
    assert held.desired()[0] == 2
    held.obey(NOW + 3)
    go(database, rollout, NOW + 4)
    assert state_of(database, rollout) == RolloutState.SUCCEEDED
    with pytest.raises(EdgeopsError, match="E-ROLLOUT-STATE"):
        manage.override_holds(database, rollout, actor="op", now_s=NOW + 5)
    # A later rollout says it for itself, or does not.
    later = begin(database, Policy(groups=("100%",), override_holds=True), "1.1.0", NOW + 10)
    go(database, later, NOW + 10)
    assert published(database) == {first: True, second: True}
    manage.abort(database, later, actor="op", now_s=NOW + 11)
    last = begin(database, Policy(groups=("100%",)), "1.2.0", NOW + 12)
    go(database, last, NOW + 12)
    assert published(database) == {first: False, second: False}
    database.close()


def test_a_rejected_bundle_is_not_tried_again(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    (name,) = add_devices(database, 1)
    rollout = begin(database, Policy(groups=("100%",), retries=5, gates=Gates(timeout_s=100)))
    go(database, rollout, NOW)
    SpeakingDevice(database, name).obey(NOW, state=DeploymentState.REJECTED)
    go(database, rollout, NOW + 1)
    assert state_of(database, rollout) == RolloutState.STOPPED
    database.close()


@pytest.mark.parametrize(
    ("on_failure", "ends", "first_group_wants"),
    [("stop", "stopped", "1.1.0"), ("pause", "paused", "1.1.0"), ("revert", "reverted", "1.0.0")],
)
def test_a_tripped_gate_does_what_was_asked(
    registry_url: Path | str, on_failure: str, ends: str, first_group_wants: str
) -> None:
    database = open_registry(registry_url)
    add_devices(database, 4, profiles=("intel-nuc",))
    old = begin(database, Policy(groups=("100%",)))
    go(database, old, NOW)
    obey_all(database, NOW)
    go(database, old, NOW)
    policy = Policy(groups=("50%", "100%"), gates=Gates(timeout_s=100), on_failure=on_failure)  # type: ignore[arg-type]
    rollout = begin(database, policy, "1.1.0", NOW + 10)
    go(database, rollout, NOW + 10)
    with database.read() as session:
        first = session.scalars(
            select(RolloutMember.connection).where(
                RolloutMember.rollout_id == rollout, RolloutMember.generation.is_not(None)
            )
        ).all()
    SpeakingDevice(database, first[0], boot_id="b").obey(NOW + 11, state=DeploymentState.FAILED)
    SpeakingDevice(database, first[1], boot_id="b").obey(NOW + 11)
    step = go(database, rollout, NOW + 12)
    assert state_of(database, rollout) == ends
    assert step is not None
    assert step.published == (on_failure == "revert")
    wanted = wants(database)
    assert {wanted[name] for name in first} == {first_group_wants}
    assert {version for name, version in wanted.items() if name not in first} == {"1.0.0"}
    database.close()


def test_only_the_profile_that_failed_goes_back(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    add_devices(database, 20, profiles=("intel-nuc", "raspberry-pi-4"))
    old = begin(database, Policy(groups=("100%",)))
    go(database, old, NOW)
    obey_all(database, NOW)
    go(database, old, NOW)
    gates = Gates(success_min=0.5, failure_max=0.5, timeout_s=100, error_rate_max=0.05)
    rollout = begin(database, Policy(groups=("50%", "100%"), gates=gates, on_failure="revert"), "1.1.0", NOW + 10)
    go(database, rollout, NOW + 10)
    obey_all(database, NOW + 11)
    for name, errors in (("dev-000", {"E-INFER-VALUES": 1000}), ("dev-001", {})):
        SpeakingDevice(database, name, boot_id="t").served("1.1.0", [1.0] * 2000, now_s=NOW + 12, errors=errors)
    go(database, rollout, NOW + 13)
    wanted = wants(database)
    assert state_of(database, rollout) == RolloutState.RUNNING
    assert {wanted[f"dev-{number:03d}"] for number in range(0, 20, 2)} == {"1.0.0"}
    assert {wanted[f"dev-{number:03d}"] for number in range(1, 20, 2)} == {"1.1.0"}
    database.close()


@pytest.mark.parametrize(
    "policy",
    [
        Policy(groups=("100%",), rate=Rate(per_minute=1)),
        Policy(),
        Policy(rate=Rate(per_minute=0)),
        Policy(rate=Rate(per_minute=1, factor=0.5)),
        Policy(rate=Rate(per_minute=1), gates=Gates(timeout_s=60)),
        Policy(groups=("100%",), bake_s=3600),
        Policy(groups=("100%",), bake_s=float("nan")),
        Policy(groups=("100%",), retries=11),
        Policy(groups=("100%",), schedule=Schedule(window="noon")),
    ],
)
def test_impossible_strategies_are_refused(policy: Policy) -> None:
    with pytest.raises(EdgeopsError) as refused:
        check_policy(policy, 10)
    assert refused.value.code == "E-ROLLOUT-INVALID"


def test_a_ramp_that_would_take_for_ever_is_refused() -> None:
    with pytest.raises(EdgeopsError, match="Raise the rate"):
        check_policy(Policy(rate=Rate(per_minute=1)), 10_000)


def test_a_plan_says_what_the_rollout_then_does(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    add_devices(database, 9)
    policy = Policy(groups=("34%", "100%"), bake_s=60)
    with database.read() as session:
        made = plan(session, release("1.0.0"), policy, Selection(), NOW)
    assert made.typical_s is None
    assert (made.online, made.least_s, made.first_start_s) == (9, 120, NOW)
    rollout = begin(database, policy)
    go(database, rollout, NOW)
    obey_all(database, NOW + 30)
    with database.read() as session:
        for position, group in enumerate(made.groups):
            found = session.scalars(
                select(RolloutMember.profile).where(
                    RolloutMember.rollout_id == rollout, RolloutMember.position == position
                )
            ).all()
            assert {profile: found.count(profile) for profile in sorted(set(found))} == group.devices
            assert group.bytes == len(found)
        assert plan(session, release("1.1.0"), policy, Selection(), NOW).typical_s == 30
    database.close()


def test_plan_explain_and_watch_by_the_command_line(served: Serving, fleet: Fleet) -> None:
    said = run(served, "rollout", "create", MODEL, "1.2.0", "--groups", "67%,100%", "--plan")
    assert said.splitlines()[0].startswith(f"{MODEL} 1.2.0: 3 devices, 3 online now, ")
    assert "how long they need is not known" in said
    assert run(served, "rollout", "status").splitlines()[1:] == []
    made = run(served, "rollout", "create", MODEL, "1.2.0", "--groups", "67%,100%", "--start", "--json")
    with pytest.raises(EdgeopsError, match="is stopped"):
        run(served, "rollout", "watch", str(made["id"]))
    told = run(served, "rollout", "explain", str(made["id"]))
    assert "1 (67%)\tall\tfailure_max\t1\t\t\t0\t2\ttripped" in told
    assert "E-SELFTEST-GOLDEN" in told
    explained = run(served, "rollout", "explain", str(made["id"]), "--json")
    assert len(explained["devices"]) == 2


SHADOWED = Policy(
    groups=("50%", "100%"),
    shadow=Shadow(share=0.5, cpu=0.2),
    gates=Gates(timeout_s=7200, agreement_min=0.95),
)


class ShadowFleet:
    """Four devices of one profile that run 1.0.0 and know shadows, and a rollout of 1.1.0 that has just begun."""

    def __init__(self, registry_url: Path | str, policy: Policy = SHADOWED) -> None:
        self.database = open_registry(registry_url)
        names = add_devices(self.database, 4, profiles=("intel-nuc",))
        self.devices = {name: SpeakingDevice(self.database, name) for name in names}
        for device in self.devices.values():
            device.obey(NOW)
        first = begin(self.database, Policy(groups=("100%",), gates=Gates(timeout_s=7200)))
        go(self.database, first, NOW)
        self.obey(NOW + 1)
        go(self.database, first, NOW + 2)
        self.rollout = begin(self.database, policy, "1.1.0", NOW + 3)
        self.go(NOW + 3)

    def go(self, now_s: float) -> Step | None:
        return go(self.database, self.rollout, now_s)

    def obey(self, now_s: float) -> None:
        for device in self.devices.values():
            device.obey_or_shadow(now_s)

    def shadows(self) -> list[str]:
        """The devices that are to run 1.1.0 beside what serves."""
        parts = {name: device.desired()[1] for name, device in self.devices.items()}
        return [name for name, held in parts.items() if any(one.shadow and one.release == "1.1.0" for one in held)]

    def serving(self) -> list[str]:
        """The devices that are to let 1.1.0 serve."""
        parts = {name: device.desired()[1] for name, device in self.devices.items()}
        return [name for name, held in parts.items() if any(not one.shadow and one.release == "1.1.0" for one in held)]

    def compared(self, compared: int, agreed: int, now_s: float) -> None:
        """The first device that is a shadow says how it compared."""
        figures = ShadowFigures(compared=compared, agreed=agreed)
        self.devices[self.shadows()[0]].served("1.1.0", [], now_s=now_s, errors={}, shadow=figures)


def test_a_shadow_serves_once_it_agrees_for_sure_group_by_group(registry_url: Path | str) -> None:
    fleet = ShadowFleet(registry_url)
    early = fleet.shadows()
    assert len(early) == 2
    (part,) = fleet.devices[early[0]].desired()[1]
    assert part.shadow == Shadowing(share=0.5, cpu=0.2)
    fleet.obey(NOW + 4)
    fleet.go(NOW + 5)
    assert fleet.shadows() == early, "nothing was compared"
    fleet.compared(100, 100, NOW + 6)
    step = fleet.go(NOW + 7)
    assert step is not None
    assert "agreement_min 1 (" in step.decision.figures[-1].text()
    assert step.decision.figures[-1].holds is None
    assert fleet.shadows() == early, "too few to be sure"
    fleet.compared(2000, 1990, NOW + 8)
    fleet.go(NOW + 9)
    assert (fleet.serving(), fleet.shadows()) == (early, [])
    fleet.obey(NOW + 10)
    fleet.go(NOW + 11)
    assert len(fleet.shadows()) == 2, "what the first group showed holds for the profile; the second shadows first too"
    fleet.obey(NOW + 12)
    fleet.go(NOW + 13)
    fleet.obey(NOW + 14)
    fleet.go(NOW + 15)
    assert len(fleet.serving()) == 4
    assert state_of(fleet.database, fleet.rollout) == RolloutState.SUCCEEDED
    fleet.database.close()


def test_a_shadow_that_disagrees_stops_the_rollout_and_goes(registry_url: Path | str) -> None:
    fleet = ShadowFleet(registry_url)
    fleet.obey(NOW + 4)
    fleet.compared(2000, 1500, NOW + 5)
    fleet.go(NOW + 6)
    assert state_of(fleet.database, fleet.rollout) == RolloutState.STOPPED
    assert not fleet.shadows()
    assert not fleet.serving()
    assert set(wants(fleet.database).values()) == {"1.0.0"}
    with fleet.database.read() as session:
        assert "agreement_min 0.75 " in session.get_one(Rollout, fleet.rollout).reason
    fleet.database.close()


def test_a_shadow_that_nobody_asks_pauses_and_ends_with_its_rollout(registry_url: Path | str) -> None:
    fleet = ShadowFleet(registry_url)
    fleet.obey(NOW + 4)
    fleet.go(NOW + 7300)
    assert state_of(fleet.database, fleet.rollout) == RolloutState.PAUSED
    assert len(fleet.shadows()) == 2, "a shadow has not timed out"
    manage.abort(fleet.database, fleet.rollout, actor="op", now_s=NOW + 7301)
    assert not fleet.shadows()
    assert set(wants(fleet.database).values()) == {"1.0.0"}
    fleet.database.close()


def test_an_agent_that_does_not_know_shadows_gets_none(registry_url: Path | str) -> None:
    """It would leave the wish out that it does not know, and let the release serve."""
    database = open_registry(registry_url)
    (name,) = add_devices(database, 1, profiles=("intel-nuc",))
    device = SpeakingDevice(database, name)
    device.features = ()
    device.obey(NOW)
    rollout = begin(database, msgspec.structs.replace(SHADOWED, groups=("100%",)))
    go(database, rollout, NOW + 1)
    assert state_of(database, rollout) == RolloutState.STOPPED
    assert device.desired()[1] == ()
    with database.read() as session:
        assert "E-AGENT-FEATURE ×1" in session.get_one(Rollout, rollout).reason
    database.close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shadow": None}, "agreement_min without a shadow"),
        ({"gates": Gates(agreement_min=1.0)}, "no sample can show full agreement"),
        ({"shadow": Shadow(share=0.0)}, "share 0.0"),
        ({"shadow": Shadow(cpu=1.5)}, "cpu 1.5"),
    ],
)
def test_an_impossible_shadow_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(EdgeopsError) as refused:
        check_policy(msgspec.structs.replace(SHADOWED, **changes), 10)
    assert refused.value.code == "E-ROLLOUT-INVALID"
    assert says in f"{refused.value.what} {refused.value.next_step}"


def test_agreement_below_the_limit_is_not_missed_and_above_it_not_refused_however_often_it_is_looked_at() -> None:
    """2,000 comparisons, looked at after every 50; the control looks at the plain share alone."""
    draw = random.Random(7)

    def verdicts(agreement: float) -> tuple[list[bool | None], bool]:
        compared = agreed = 0
        found, plain_refuses = [], False
        for _ in range(40):
            agreed += sum(draw.random() < agreement for _ in range(50))
            compared += 50
            arms = Arms(new=Requests(compared=compared, agreed=agreed))
            (measured,) = measure_shadow(Gates(agreement_min=0.95), arms, profiles=1)
            found.append(measured.holds)
            plain_refuses = plain_refuses or agreed / compared < 0.95
        return found, plain_refuses

    fair = [verdicts(0.95) for _ in range(200)]
    assert sum(False in found for found, _ in fair) <= 200 * 0.01 + 4
    assert sum(plain for _, plain in fair) > 100, "the control: the plain share refuses what is as good as it must be"
    assert all(verdicts(0.85)[0][-1] is False for _ in range(20)), "caught within 2,000 comparisons"
    assert all(verdicts(0.99)[0][-1] is True for _ in range(20)), "let through within 2,000 comparisons"
