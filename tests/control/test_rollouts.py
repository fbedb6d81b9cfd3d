"""Rollouts on a real registry: groups, gates, supersession, and late or lying devices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from registry_fleet import (
    FLEET,
    MODEL,
    PROFILES,
    SpeakingDevice,
    add_devices,
    obey_all,
    open_registry,
    release,
    report_of,
)
from sqlalchemy import select

from edgeops.contracts.deployment import DeploymentState, Presence, Progress
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rollouts import RolloutState
from edgeops.control.database import Database
from edgeops.control.ingest.apply import Batch
from edgeops.control.models import AuditEntry, Generation, Rollout, RolloutMember, Unit
from edgeops.control.rollout import followers, freeze, manage
from edgeops.control.rollout.decide import Action
from edgeops.control.rollout.execute import advance
from edgeops.control.rollout.followers import take_in_followers
from edgeops.control.rollout.policy import Gates, Policy, Shadow
from edgeops.control.rollout.selection import Selection

NOW = 1_000_000.0


@pytest.fixture
def registry(registry_url: Path | str) -> Iterator[Database]:
    database = open_registry(registry_url)
    yield database
    database.close()


def begin(
    database: Database,
    version: str = "1.0.0",
    groups: tuple[str, ...] = ("100%",),
    *,
    gates: Gates | None = None,
    selection: Selection | None = None,
    now_s: float = NOW,
) -> int:
    return manage.create(
        database,
        release(version),
        Policy(groups=groups, gates=gates or Gates(timeout_s=100)),
        selection or Selection(),
        actor="test",
        now_s=now_s,
        start=True,
    )


def settle(database: Database, rollout_id: int, now_s: float = NOW) -> Action | None:
    """Take steps until the rollout waits or has ended; return the last action."""
    last = None
    for _ in range(50):
        step = advance(database, rollout_id, now_s)
        if step is None:
            return last
        last = step.decision.action
        if last is Action.WAIT:
            return last
    raise AssertionError("it does not settle")


def state_of(database: Database, rollout_id: int) -> tuple[str, str]:
    with database.read() as session:
        row = session.get_one(Rollout, rollout_id)
        return row.state, row.reason


def desired_versions(database: Database) -> dict[str, str | None]:
    names = {}
    with database.read() as session:
        for unit in session.scalars(select(Unit)):
            _, wanted = SpeakingDevice(database, unit.connection).desired()
            names[unit.connection] = wanted[0].release if wanted else None
    return names


def in_group(database: Database, rollout_id: int, position: int) -> list[str]:
    with database.read() as session:
        member = RolloutMember
        found = select(member.connection).where(member.rollout_id == rollout_id, member.position == position)
        return sorted(session.scalars(found))


def test_three_rollouts_as_in_the_main_job(registry: Database) -> None:
    """1.0.0 to all; 1.1.0 in two groups; a damaged 1.2.0 stops in its first group and never reaches the second."""
    names = add_devices(registry, 3)
    first = begin(registry)
    assert settle(registry, first) is Action.WAIT
    assert obey_all(registry, NOW) == 3
    assert settle(registry, first) is Action.FINISH
    assert state_of(registry, first)[0] == RolloutState.SUCCEEDED

    second = begin(registry, "1.1.0", ("67%", "100%"))
    settle(registry, second)
    early, late = in_group(registry, second, 0), in_group(registry, second, 1)
    assert (len(early), len(late)) == (2, 1)
    assert desired_versions(registry) == {n: "1.1.0" if n in early else "1.0.0" for n in names}
    obey_all(registry, NOW)
    settle(registry, second)
    assert set(desired_versions(registry).values()) == {"1.1.0"}
    obey_all(registry, NOW)
    settle(registry, second)
    assert state_of(registry, second)[0] == RolloutState.SUCCEEDED

    third = begin(registry, "1.2.0", ("67%", "100%"))
    settle(registry, third)
    early, late = in_group(registry, third, 0), in_group(registry, third, 1)
    for name in early:
        device = SpeakingDevice(registry, name)
        device.seq = 10
        device.obey(NOW, state=DeploymentState.FAILED, code="E-SELFTEST-GOLDEN")
    settle(registry, third)
    state, reason = state_of(registry, third)
    assert state == RolloutState.STOPPED
    for part in ("failure_max", "1 > 0 over 2 reports", "E-SELFTEST-GOLDEN ×2"):
        assert part in reason
    assert settle(registry, third, NOW + 1e6) is None
    assert desired_versions(registry)[late[0]] == "1.1.0"


def test_generations_rise_above_all_that_a_device_ever_saw(registry: Database) -> None:
    (name,) = add_devices(registry, 1)
    rollout = begin(registry)
    settle(registry, rollout)
    device = SpeakingDevice(registry, name)
    assert device.desired()[0] == 1
    # The registry was restored from a backup: the device has seen more.
    device.report((), observed=41, now_s=NOW)
    generation, wanted = device.desired()
    assert generation == 42
    assert wanted[0].release == "1.0.0"
    device.obey(NOW)
    settle(registry, rollout)
    assert state_of(registry, rollout)[0] == RolloutState.SUCCEEDED
    begin(registry, "1.1.0")
    settle(registry, 2)
    assert device.desired()[0] == 43
    with registry.read() as session:
        generations = list(session.scalars(select(Generation.generation).order_by(Generation.generation)))
    assert generations == [1, 42, 43]


def test_a_confirmed_report_that_names_another_bundle_is_a_failure(registry: Database) -> None:
    (name,) = add_devices(registry, 1)
    rollout = begin(registry)
    settle(registry, rollout)
    device = SpeakingDevice(registry, name)
    generation, (component,) = device.desired()
    lie = msgspec.structs.replace(component, digest="sha256:other")
    device.report((report_of(lie, generation, DeploymentState.CONFIRMED),), observed=generation, now_s=NOW)
    settle(registry, rollout)
    state, reason = state_of(registry, rollout)
    assert state == RolloutState.STOPPED
    assert "E-REPORT-DIGEST" in reason


def test_a_report_of_an_older_generation_proves_nothing(registry: Database) -> None:
    (name,) = add_devices(registry, 1)
    settle(registry, begin(registry))
    device = SpeakingDevice(registry, name)
    device.obey(NOW)
    settle(registry, 1)
    generation, (old,) = device.desired()
    second = begin(registry, "1.1.0")
    settle(registry, second)
    device.report((report_of(old, generation, DeploymentState.CONFIRMED),), observed=generation, now_s=NOW)
    assert settle(registry, second) is Action.WAIT
    device.obey(NOW)  # negative control: the report of the new one does
    settle(registry, second)
    assert state_of(registry, second)[0] == RolloutState.SUCCEEDED


def test_a_device_that_was_reached_and_fell_silent_times_out(registry: Database) -> None:
    add_devices(registry, 2)
    rollout = begin(registry)
    settle(registry, rollout)
    names = in_group(registry, rollout, 0)
    SpeakingDevice(registry, names[0]).obey(NOW)
    late = SpeakingDevice(registry, names[1])
    generation, (wanted,) = late.desired()
    assert settle(registry, rollout, NOW + 99) is Action.WAIT
    settle(registry, rollout, NOW + 100)
    state, reason = state_of(registry, rollout)
    assert state == RolloutState.STOPPED
    assert "E-ROLLOUT-TIMEOUT ×1" in reason
    # The device comes after all: the truth is shown, the rollout stays stopped.
    late.report((report_of(wanted, generation, DeploymentState.CONFIRMED),), observed=generation, now_s=NOW + 200)
    with registry.read() as session:
        member = session.get_one(RolloutMember, (rollout, names[1], "self"))
        assert member.state == DeploymentState.CONFIRMED
    assert state_of(registry, rollout)[0] == RolloutState.STOPPED


def test_offline_devices_neither_fail_nor_stall_a_group_and_get_the_release_when_they_return(
    registry: Database,
) -> None:
    names = add_devices(registry, 3, profiles=("intel-nuc",), online=False)
    rollout = begin(registry)
    settle(registry, rollout)
    device = SpeakingDevice(registry, names[0])
    device.obey(NOW)
    assert settle(registry, rollout, NOW + 50) is Action.WAIT
    settle(registry, rollout, NOW + 100)
    assert state_of(registry, rollout)[0] == RolloutState.SUCCEEDED
    assert set(desired_versions(registry).values()) == {"1.0.0"}


def test_a_group_that_nobody_answered_pauses_and_resume_gives_it_its_time_anew(registry: Database) -> None:
    names = add_devices(registry, 2, online=False)
    rollout = begin(registry)
    settle(registry, rollout)
    settle(registry, rollout, NOW + 100)
    assert state_of(registry, rollout)[0] == RolloutState.PAUSED
    manage.resume(registry, rollout, actor="test", now_s=NOW + 500)
    assert settle(registry, rollout, NOW + 510) is Action.WAIT
    for name in names:
        SpeakingDevice(registry, name).obey(NOW + 520)
    settle(registry, rollout, NOW + 530)
    assert state_of(registry, rollout)[0] == RolloutState.SUCCEEDED


def test_presence_alone_makes_a_device_reached(registry: Database) -> None:
    (name,) = add_devices(registry, 1, online=False)
    rollout = begin(registry)
    settle(registry, rollout)
    SpeakingDevice(registry, name).say(Presence(online=True, boot_id="b"), NOW + 1)
    settle(registry, rollout, NOW + 100)
    assert state_of(registry, rollout)[0] == RolloutState.STOPPED


def test_a_newer_rollout_supersedes_one_that_waits_for_the_same_devices_only(registry: Database) -> None:
    add_devices(registry, 4)
    first = begin(registry, selection=Selection(labels={"site": "a"}))
    other = begin(registry, selection=Selection(labels={"site": "b"}))
    for rollout in (first, other):
        settle(registry, rollout)
    second = begin(registry, "1.1.0", selection=Selection(labels={"site": "a"}))
    settle(registry, second)
    assert state_of(registry, first)[0] == RolloutState.SUPERSEDED
    assert state_of(registry, other)[0] == RolloutState.RUNNING
    assert advance(registry, first, NOW) is None
    obey_all(registry, NOW)
    for rollout in (second, other):
        settle(registry, rollout)
        assert state_of(registry, rollout)[0] == RolloutState.SUCCEEDED


def test_pause_holds_the_next_group_and_abort_ends(registry: Database) -> None:
    add_devices(registry, 3)
    rollout = begin(registry, groups=("34%", "100%"))
    settle(registry, rollout)
    manage.pause(registry, rollout, actor="test", now_s=NOW)
    obey_all(registry, NOW)
    assert settle(registry, rollout) is None
    assert list(desired_versions(registry).values()).count("1.0.0") == 1
    manage.resume(registry, rollout, actor="test", now_s=NOW)
    settle(registry, rollout)
    assert list(desired_versions(registry).values()).count("1.0.0") == 3
    manage.abort(registry, rollout, actor="test", now_s=NOW)
    with pytest.raises(EdgeopsError, match="E-ROLLOUT-STATE"):
        manage.resume(registry, rollout, actor="test", now_s=NOW)
    assert state_of(registry, rollout)[0] == RolloutState.ABORTED


def test_impossible_rollouts_are_refused_and_leave_nothing(registry: Database) -> None:
    add_devices(registry, 3)
    wrong = [
        (Policy(groups=("50%",)), Selection(), "E-ROLLOUT-INVALID"),
        (Policy(groups=("100%",), gates=Gates(failure_max=7)), Selection(), "E-ROLLOUT-INVALID"),
        (Policy(groups=("100%",)), Selection(devices=("nobody",)), "E-DEVICE-UNKNOWN"),
        (Policy(groups=("100%",)), Selection(labels={"site": "none"}), "E-ROLLOUT-INVALID"),
    ]
    for policy, selection, code in wrong:
        with pytest.raises(EdgeopsError, match=code):
            manage.create(registry, release("1.0.0"), policy, selection, actor="test", now_s=NOW)
    only_nuc = release("1.0.0", profiles=("intel-nuc",))
    with pytest.raises(EdgeopsError, match="no bundle for dev-000's profile raspberry-pi-4"):
        manage.create(
            registry, only_nuc, Policy(groups=("100%",)), Selection(devices=("dev-000",)), actor="test", now_s=NOW
        )
    with registry.read() as session:
        assert session.scalars(select(Rollout)).all() == []
        assert session.scalars(select(AuditEntry).where(AuditEntry.action == "rollout.create")).all() == []


def test_devices_without_a_bundle_are_left_out(registry: Database) -> None:
    add_devices(registry, 6)
    manage.create(
        registry, release("1.0.0", profiles=("intel-nuc",)), Policy(groups=("100%",)), Selection(),
        actor="test", now_s=NOW, start=True,
    )  # fmt: skip
    settle(registry, 1)
    assert sorted(map(str, desired_versions(registry).values())) == ["1.0.0"] * 2 + ["None"] * 4


def test_unreadable_gates_in_the_registry_stop_the_rollout(registry: Database) -> None:
    add_devices(registry, 3)
    rollout = begin(registry, groups=("34%", "100%"))
    settle(registry, rollout)
    obey_all(registry, NOW)
    with registry.write() as session:
        session.get_one(Rollout, rollout).policy = b'{"groups": ["34%", "100%"], "gates": {"failure_max": "5 %"}}'
    settle(registry, rollout)
    state, reason = state_of(registry, rollout)
    assert state == RolloutState.STOPPED
    assert "failure_max" in reason
    assert list(desired_versions(registry).values()).count("1.0.0") == 1


def test_each_beginning_of_the_order_holds_every_profile_by_its_share(registry: Database) -> None:
    add_devices(registry, 60)
    rollout = begin(registry, groups=("10%", "50%", "rest"))
    profiles = []
    with registry.read() as session:
        for position in range(3):
            found = select(RolloutMember.profile).where(
                RolloutMember.rollout_id == rollout, RolloutMember.position == position
            )
            rows = list(session.scalars(found))
            profiles.append({name: rows.count(name) for name in sorted(set(rows))})
    assert [sorted(counts.values()) for counts in profiles] == [[2, 2, 2], [8, 8, 8], [10, 10, 10]]


def test_a_component_of_another_model_is_kept(registry: Database) -> None:
    (name,) = add_devices(registry, 1)
    other = msgspec.structs.replace(release("3.0.0"), model="voices")
    manage.create(registry, other, Policy(groups=("100%",)), Selection(), actor="test", now_s=NOW, start=True)
    settle(registry, 1)
    settle(registry, begin(registry))
    generation, wanted = SpeakingDevice(registry, name).desired()
    assert generation == 2
    assert [(c.name, c.release) for c in wanted] == [("voices", "3.0.0"), (MODEL, "1.0.0")]
    # One report of the newest generation settles both rollouts.
    SpeakingDevice(registry, name).obey(NOW)
    for rollout in (1, 2):
        settle(registry, rollout)
        assert state_of(registry, rollout)[0] == RolloutState.SUCCEEDED


def test_revert_gives_back_what_each_device_had_before(registry: Database) -> None:
    """Who had 1.0.0 goes back to it, with a downgrade that is signed; who had nothing keeps what it has."""
    names = add_devices(registry, 3)
    first = begin(registry, selection=Selection(devices=tuple(names[:2])))
    settle(registry, first)
    obey_all(registry, NOW)
    settle(registry, first)
    second = begin(registry, "1.1.0")
    settle(registry, second)
    obey_all(registry, NOW)
    settle(registry, second)
    manage.revert(registry, second, actor="test", now_s=NOW)
    state, reason = state_of(registry, second)
    assert state == RolloutState.REVERTED
    assert "2 of 3 devices" in reason
    assert desired_versions(registry) == {names[0]: "1.0.0", names[1]: "1.0.0", names[2]: "1.1.0"}
    generation, (component,) = SpeakingDevice(registry, names[0]).desired()
    assert (generation, component.allow_downgrade) == (3, True)
    with pytest.raises(EdgeopsError, match="E-ROLLOUT-STATE"):
        manage.revert(registry, second, actor="test", now_s=NOW)


def test_revert_leaves_alone_who_got_another_release_since(registry: Database) -> None:
    add_devices(registry, 1)
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        rollout = begin(registry, version)
        settle(registry, rollout)
        obey_all(registry, NOW)
        settle(registry, rollout)
    manage.revert(registry, 2, actor="test", now_s=NOW)
    assert set(desired_versions(registry).values()) == {"1.2.0"}


def both_started_at_once(database: Database) -> list[str]:
    """Two people start one release each for the same device; the second one before the first is committed."""
    add_devices(database, 1)
    rollouts = [
        manage.create(database, release(v), Policy(groups=("100%",)), Selection(), actor="test", now_s=NOW)
        for v in ("1.0.0", "1.1.0")
    ]
    second = threading.Thread(target=manage.start, args=(database, rollouts[1]), kwargs={"actor": "b", "now_s": NOW})
    with database.write() as session:
        manage._start(session, rollouts[0], "a", NOW)
        second.start()
        second.join(0.5)
    second.join()
    return [state_of(database, rollout)[0] for rollout in rollouts]


def test_of_two_rollouts_that_are_started_at_once_one_supersedes_the_other(registry: Database) -> None:
    assert both_started_at_once(registry) == [RolloutState.SUPERSEDED, RolloutState.RUNNING]


def test_without_waiting_for_each_other_both_would_run(
    registry: Database, registry_url: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: on PostgreSQL neither sees the other. SQLite has one writer."""
    monkeypatch.setattr(manage, "one_at_a_time", lambda session, work: None)
    first = RolloutState.SUPERSEDED if isinstance(registry_url, Path) else RolloutState.RUNNING
    assert both_started_at_once(registry) == [first, RolloutState.RUNNING]


def test_a_clock_that_was_years_ahead_does_not_hold_a_group_for_years(registry: Database) -> None:
    """The time of the group, and of requests that count, is from when the clock was set right."""
    add_devices(registry, 2, profiles=PROFILES[:1])
    years_s = 3 * 366 * 86400.0
    rollout = begin(registry, gates=Gates(timeout_s=100, error_rate_max=0.1), now_s=NOW + years_s)
    settle(registry, rollout, NOW + years_s)
    assert settle(registry, rollout, NOW) is Action.WAIT
    obey_all(registry, NOW)
    SpeakingDevice(registry, "dev-000", boot_id="boot-2").served("1.0.0", [1.0] * 500, now_s=NOW, errors={})
    settle(registry, rollout, NOW + 101)
    assert state_of(registry, rollout)[0] == RolloutState.SUCCEEDED


@pytest.mark.parametrize(("shadow", "retries"), [(None, 1), (Shadow(), 0)], ids=["served at once", "shadows first"])
def test_whatever_devices_say_of_themselves_their_group_comes_to_an_end(
    registry: Database, shadow: Shadow | None, retries: int
) -> None:
    """One that says it is a shadow, where there are to be none, had the engine time it out again without end."""
    names = add_devices(registry, len(DeploymentState), profiles=PROFILES[:1])
    speakers = [SpeakingDevice(registry, name) for name in names]
    for speaker in speakers:
        speaker.report((), observed=0, now_s=NOW)
    gates = Gates(timeout_s=100, success_min=0.0, failure_max=0.99)
    policy = Policy(groups=("100%",), gates=gates, shadow=shadow, retries=retries)
    rollout = manage.create(
        registry, release("1.0.0"), policy, Selection(), actor="test", now_s=NOW, start=True
    )  # fmt: skip
    now_s = NOW
    while state_of(registry, rollout)[0] == RolloutState.RUNNING and now_s < NOW + 1000:
        settle(registry, rollout, now_s)
        for speaker, said in zip(speakers, DeploymentState, strict=True):
            speaker.obey(now_s, state=said)
        now_s += 110
    assert state_of(registry, rollout)[0] != RolloutState.RUNNING


def test_a_profile_that_was_stopped_is_not_tried_again_with_the_others(registry: Database) -> None:
    """Its device had the release, and failed after its requests had stopped the profile."""
    names = add_devices(registry, 4, profiles=PROFILES[:2])
    rollout = manage.create(
        registry, release("1.0.0"), Policy(groups=("100%",), gates=Gates(timeout_s=100, error_rate_max=0.1), retries=1),
        Selection(), actor="test", now_s=NOW, start=True,
    )  # fmt: skip
    settle(registry, rollout)
    bad = SpeakingDevice(registry, names[0])
    bad.obey(NOW)
    bad.served("1.0.0", [1.0] * 500, now_s=NOW, errors={"E-INFER-RUN": 400})
    settle(registry, rollout)
    assert state_of(registry, rollout)[0] == RolloutState.RUNNING
    for name in (names[0], names[1]):
        speaker = bad if name == names[0] else SpeakingDevice(registry, name)
        speaker.obey(NOW, state=DeploymentState.FAILED)
    settle(registry, rollout)
    generations = {name: SpeakingDevice(registry, name).desired()[0] for name in names[:2]}
    assert generations == {names[0]: 1, names[1]: 2}


def test_revert_does_not_give_back_what_a_device_had_refused(registry: Database) -> None:
    """1.1.0 stopped, as the first device refused it and kept 1.0.0; 1.2.0 serves, and is then found to be bad."""
    names = add_devices(registry, 2, profiles=PROFILES[:1])
    first = begin(registry)
    settle(registry, first)
    obey_all(registry, NOW)
    settle(registry, first)
    second = begin(registry, "1.1.0", gates=Gates(failure_max=0.4, success_min=0.6, timeout_s=100))
    settle(registry, second)
    for name, state in zip(names, (DeploymentState.FAILED, DeploymentState.CONFIRMED), strict=True):
        device = SpeakingDevice(registry, name)
        device.seq = 10
        device.obey(NOW, state=state)
    settle(registry, second)
    assert state_of(registry, second)[0] == RolloutState.STOPPED
    third = begin(registry, "1.2.0")
    settle(registry, third)
    obey_all(registry, NOW)
    settle(registry, third)
    assert set(desired_versions(registry).values()) == {"1.2.0"}
    manage.revert(registry, third, actor="test", now_s=NOW)
    # Who served 1.1.0 has it in its other slot; who refused it has 1.0.0 there.
    assert desired_versions(registry) == {names[0]: "1.0.0", names[1]: "1.1.0"}


def test_what_was_superseded_before_a_device_took_it_up_is_not_given_back(registry: Database) -> None:
    (name,) = add_devices(registry, 1)
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        rollout = begin(registry, version)
        settle(registry, rollout)
        if version != "1.1.0":
            obey_all(registry, NOW)
            settle(registry, rollout)
    assert state_of(registry, 2)[0] == RolloutState.SUPERSEDED
    manage.revert(registry, 3, actor="test", now_s=NOW)
    assert desired_versions(registry) == {name: "1.0.0"}


def test_who_was_away_when_a_release_passed_is_given_back_that_release(registry: Database) -> None:
    """It has never run it, but the fleet does: what stops after it must not send that device to an older one."""
    names = add_devices(registry, 2, profiles=PROFILES[:1], online=False)
    for version in ("1.0.0", "1.1.0"):
        rollout = begin(registry, version)
        settle(registry, rollout)
        SpeakingDevice(registry, names[0], boot_id=f"boot-{version}").obey(NOW)
        settle(registry, rollout, NOW + 101)
        assert state_of(registry, rollout)[0] == RolloutState.SUCCEEDED
    third = begin(registry, "1.2.0")
    settle(registry, third)
    manage.abort(registry, third, actor="test", now_s=NOW)
    assert set(desired_versions(registry).values()) == {"1.1.0"}


def test_a_frozen_fleet_starts_and_continues_nothing_and_thawing_gives_time_anew(registry: Database) -> None:
    add_devices(registry, 3)
    rollout = begin(registry, groups=("34%", "100%"))
    settle(registry, rollout)
    freeze.freeze(registry, reason="smoke", actor="ops", now_s=NOW)
    obey_all(registry, NOW)
    assert settle(registry, rollout, NOW + 1000) is None
    with pytest.raises(EdgeopsError, match="E-FLEET-FROZEN: ops froze the fleet: smoke"):
        begin(registry, "1.1.0")
    assert list(desired_versions(registry).values()).count("1.0.0") == 1
    freeze.thaw(registry, actor="ops", now_s=NOW + 1000)
    assert settle(registry, rollout, NOW + 1001) is Action.WAIT
    assert list(desired_versions(registry).values()).count("1.0.0") == 3
    obey_all(registry, NOW + 1002)
    settle(registry, rollout, NOW + 1002)
    assert state_of(registry, rollout)[0] == RolloutState.SUCCEEDED


def test_devices_that_join_later_get_what_their_like_got(registry: Database) -> None:
    add_devices(registry, 3)
    assert not take_in_followers(registry, NOW)
    rollout = begin(registry)
    settle(registry, rollout)
    obey_all(registry, NOW)
    settle(registry, rollout)
    late = add_devices(registry, 3, prefix="new", enrolled_at_s=NOW + 10)
    assert take_in_followers(registry, NOW + 11)
    assert set(desired_versions(registry).values()) == {"1.0.0"}
    assert not take_in_followers(registry, NOW + 12)
    obey_all(registry, NOW + 12)
    with registry.read() as session:
        members = [session.get_one(RolloutMember, (rollout, name, "self")).state for name in late]
    assert members == [DeploymentState.CONFIRMED] * 3


def test_newcomers_of_a_running_rollout_wait_for_its_last_group(registry: Database) -> None:
    add_devices(registry, 3)
    rollout = begin(registry, groups=("34%", "100%"))
    settle(registry, rollout)
    (late,) = add_devices(registry, 1, prefix="new", enrolled_at_s=NOW + 1)
    assert not take_in_followers(registry, NOW + 1)
    assert desired_versions(registry)[late] is None
    obey_all(registry, NOW)
    settle(registry, rollout)
    assert desired_versions(registry)[late] == "1.0.0"


def test_newcomers_get_nothing_that_was_stopped_or_was_for_named_devices(registry: Database) -> None:
    names = add_devices(registry, 3)
    rollout = begin(registry, selection=Selection(devices=tuple(names)))
    settle(registry, rollout)
    obey_all(registry, NOW)
    settle(registry, rollout)
    bad = begin(registry, "1.1.0")
    settle(registry, bad)
    for name in names:
        device = SpeakingDevice(registry, name)
        device.seq = 10
        device.obey(NOW, state=DeploymentState.FAILED)
    settle(registry, bad)
    assert state_of(registry, bad)[0] == RolloutState.STOPPED
    (late,) = add_devices(registry, 1, prefix="new", enrolled_at_s=NOW + 1)
    assert not take_in_followers(registry, NOW + 1)
    assert desired_versions(registry)[late] is None


@pytest.mark.parametrize("meanwhile", ["taken in", "aborted"])
def test_who_joins_is_taken_in_once_and_into_no_rollout_that_has_ended(
    registry: Database, registry_url: Path | str, meanwhile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker does the same, or somebody aborts, between the look for newcomers and their release."""
    add_devices(registry, 1)
    rollout = begin(registry)
    settle(registry, rollout)
    obey_all(registry, NOW)
    add_devices(registry, 1, prefix="late", enrolled_at_s=NOW + 1)
    other, failed = Database(registry_url), []

    def join() -> None:
        try:
            take_in_followers(other, NOW + 2)
        except Exception as error:  # noqa: BLE001
            failed.append(error)

    worker = threading.Thread(target=join)
    with registry.write() as session:
        if meanwhile == "aborted":
            row = manage._locked(session, rollout, [RolloutState.RUNNING])
            row.state = RolloutState.ABORTED
            session.flush()
        else:
            followers._take_in(session, NOW + 2)
        worker.start()
        worker.join(0.5)
    worker.join()
    other.close()
    assert failed == []
    with registry.read() as session:
        late = session.scalars(select(RolloutMember).where(RolloutMember.connection == "late-000")).all()
    assert len(late) == (meanwhile == "taken in")


@pytest.mark.parametrize("step", ["try again", "time out", "abort"])
def test_a_step_and_ingest_do_not_wait_for_each_other(registry: Database, step: str) -> None:
    """A device speaks while its rollout takes a step: whoever has the unit first goes first."""
    add_devices(registry, 2, profiles=PROFILES[:1])
    rollout = manage.create(
        registry, release("1.0.0"), Policy(groups=("100%",), gates=Gates(timeout_s=100), retries=1), Selection(),
        actor="test", now_s=NOW, start=True,
    )  # fmt: skip
    settle(registry, rollout)
    speaker = SpeakingDevice(registry, "dev-000")
    if step == "try again":
        speaker.obey(NOW, state=DeploymentState.FAILED)
    statement = Progress(
        fleet=FLEET, connection="dev-000", unit="self", boot_id="boot-1", seq=9, at_s=NOW, component=MODEL,
        generation=1, step=9, state=DeploymentState.TRIAL, release="1.0.0",
    )  # fmt: skip
    failed: list[Exception] = []

    def take_step() -> None:
        try:
            if step == "abort":
                manage.abort(registry, rollout, actor="test", now_s=NOW)
            else:
                advance(registry, rollout, NOW + (101 if step == "time out" else 0))
        except EdgeopsError as error:
            failed.append(error)

    other = threading.Thread(target=take_step)
    with registry.write() as session:
        batch = Batch(session, ["dev-000"], NOW)
        batch.look_for_repeated([statement])
        other.start()
        other.join(0.5)
        member = session.get_one(RolloutMember, (rollout, "dev-000", "self"))
        batch.apply(batch.devices["dev-000"], statement)
        member.detail = "it speaks"
        batch.finish()
    other.join()
    assert failed == []


def test_a_rollout_is_made_while_its_devices_speak(registry: Database, registry_url: Path | str) -> None:
    """On PostgreSQL: a row that names a unit does not wait for what is noted of it. SQLite has one writer."""
    add_devices(registry, 2)
    wish = (release("1.0.0"), Policy(groups=("100%",)), Selection())
    made = threading.Thread(target=manage.create, args=(registry, *wish), kwargs={"actor": "test", "now_s": NOW})
    with registry.write() as session:
        Batch(session, ["dev-000", "dev-001"], NOW)
        made.start()
        made.join(0.5 if isinstance(registry_url, Path) else 60)
        assert made.is_alive() == isinstance(registry_url, Path)
    made.join()
