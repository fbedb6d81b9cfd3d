"""Group 0: no device gets a release before its rigs have passed it, whatever comes from where in whatever order."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from registry_fleet import PROFILES, release
from rig_house import BOARDS, NOW, RigHouse, board
from sqlalchemy import func, select

from edgeops.contracts.enrolment import ConnectionKind
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rig_runs import RigDoing
from edgeops.contracts.rigs import RigResult, Verdict
from edgeops.contracts.rollouts import RolloutState
from edgeops.contracts.samples import SamplesWish
from edgeops.control import commands, renewal, revocation
from edgeops.control.api import views
from edgeops.control.ingest import statements as checking
from edgeops.control.ingest.worker import nobody_is_online
from edgeops.control.models import AuditEntry, Generation, Rollout, Unit
from edgeops.control.rigs import runs
from edgeops.control.rollout import freeze, manage
from edgeops.control.rollout.decide import Action
from edgeops.control.rollout.execute import advance
from edgeops.control.rollout.plan import plan
from edgeops.control.rollout.policy import Policy
from edgeops.control.rollout.selection import Selection
from edgeops.trust import envelopes, keys


@pytest.fixture
def house(tmp_path: Path, registry_url: Path | str) -> Iterator[RigHouse]:
    house = RigHouse(tmp_path, registry_url)
    yield house
    house.database.close()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> tuple[RigHouse, Path]:
    folder = tmp_path_factory.mktemp("built")
    house = RigHouse(folder, Path(shutil.copy(migrated, folder / "control.sqlite")))
    house.database.close()
    return house, folder / "control.sqlite"


@pytest.fixture
def small(tmp_path: Path, built: tuple[RigHouse, Path]) -> Iterator[RigHouse]:
    """The same, on SQLite alone: a copy of one that was built."""
    house = RigHouse(tmp_path, Path(shutil.copy(built[1], tmp_path / "control.sqlite")), like=built[0])
    yield house
    house.database.close()


def given(house: RigHouse) -> int:
    """How many devices were ever given anything."""
    with house.database.read() as session:
        return session.scalar(select(func.count()).select_from(Generation)) or 0


def state(house: RigHouse, rollout_id: int = 1) -> str:
    with house.database.read() as session:
        return session.get_one(Rollout, rollout_id).state


def reason(house: RigHouse, rollout_id: int = 1) -> str:
    with house.database.read() as session:
        return session.get_one(Rollout, rollout_id).reason


def test_no_device_gets_the_release_before_every_rig_has_passed_it(house: RigHouse) -> None:
    house.begin("bench", "lab")
    assert house.step(1).decision.action is Action.WAIT
    assert sorted(house.sent()) == sorted(run.id for run in house.all_runs())
    house.passes("bench")
    waits = house.step(1).decision
    assert (waits.action, given(house)) == (Action.WAIT, 0)
    assert "rig lab: asked" in waits.reason
    assert "bench" not in waits.reason
    house.passes("lab")
    house.step(1)
    assert given(house) == 2
    house.settle(1)
    assert (state(house), given(house)) == (RolloutState.SUCCEEDED, 6)
    with house.database.read() as session:
        noted = [entry for entry in session.scalars(select(AuditEntry)) if entry.subject == "rollout/1"]
    acts = [entry.action for entry in noted]
    assert acts.index("rollout.rig-verdict") < acts.index("rollout.start-group")
    assert acts.count("rollout.ask-rigs") == 1
    verdicts = {entry.actor: entry.detail["verdict"] for entry in noted if entry.action == "rollout.rig-verdict"}
    assert verdicts == {"rig/bench": "passed", "rig/lab": "passed"}


def test_a_command_is_sent_again_until_it_is_answered_and_the_answer_counts_once(small: RigHouse) -> None:
    small.begin()
    small.step(1)
    run = small.run_of()
    assert small.sent() == [run.id]
    assert small.sent(NOW + 1) == []
    assert small.sent(NOW + runs.SEND_AGAIN_AFTER_S + 1) == [run.id]
    message = small.passes()
    assert small.sent(NOW + 200) == []
    # Told again, and with another verdict: the first one stands, and what was signed is kept.
    small.say(*message)
    small.say(*small.answer(run, small.result(run, {"nuc": Verdict.FAILED})))
    kept = small.run_of()
    assert (kept.verdict, kept.answer, small.rejected()) == ("passed", message[1], (0, ""))
    assert kept.statement is not None
    assert kept.certificate_pem.encode() == small.identities["bench"].certificate_pem
    command = small.command(run)
    assert {bundle.profile for bundle in command.bundles} == set(BOARDS.values())
    assert (command.rollout, command.attempt, command.version) == (1, 1, "1.0.0")


@pytest.mark.parametrize(
    ("on_failure", "ends"), [("stop", "stopped"), ("pause", "paused"), ("revert", "reverted")]
)  # fmt: skip
def test_a_failed_verdict_ends_the_rollout_and_names_board_and_check(
    small: RigHouse, on_failure: str, ends: str
) -> None:
    small.begin(on_failure=on_failure)
    small.step(1)
    run = small.run_of()
    small.say(*small.answer(run, small.result(run, {"nuc": Verdict.PASSED, "pi": Verdict.FAILED})))
    small.step(1)
    assert (state(small), given(small)) == (ends, 0)
    for part in ("group 0", "rig bench", "board pi", "golden", "outputs differ by 3", "E-SELFTEST-GOLDEN"):
        assert part in reason(small)
    with small.database.read() as session:
        shown = views.rollout_by_id(session, 1).rigs
    assert [(one.rig, one.state) for one in shown] == [("bench", "failed")]


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ({"nuc": Verdict.PASSED, "pi": Verdict.BROKEN}, "board pi (raspberry-pi-4): golden"),
        ({"nuc": Verdict.PASSED}, "no board ran the bundle for raspberry-pi-4"),
    ],
)
def test_a_rig_that_could_not_find_out_pauses_and_resume_asks_it_anew(
    small: RigHouse, verdicts: dict[str, Verdict], said: str
) -> None:
    small.begin()
    small.step(1)
    first = small.run_of()
    small.say(*small.answer(first, small.result(first, verdicts)))
    small.step(1)
    assert (state(small), given(small)) == (RolloutState.PAUSED, 0)
    assert said in reason(small)
    manage.resume(small.database, 1, actor="ann", now_s=NOW + 5)
    small.step(1, NOW + 5)
    second = small.run_of()
    assert (second.attempt, second.id != first.id, small.sent(NOW + 5)) == (2, True, [second.id])
    small.passes()
    small.settle(1, NOW + 6)
    assert state(small) == RolloutState.SUCCEEDED


def test_a_rig_that_ran_nothing_pauses_with_what_it_says(small: RigHouse) -> None:
    small.begin()
    small.step(1)
    run = small.run_of()
    small.say(*small.answer(run, None, code="E-TRUST-TARGET", what="lines/1.0.0 was not released"))
    small.step(1)
    assert (state(small), small.run_of().verdict) == (RolloutState.PAUSED, "refused")
    assert "E-TRUST-TARGET: lines/1.0.0 was not released" in reason(small)


def test_a_rig_that_never_answers_pauses_when_its_time_is_over_and_a_late_answer_is_none(small: RigHouse) -> None:
    small.begin(rig_timeout_s=50.0)
    small.report("bench", doing=RigDoing(id="another command", said="busy elsewhere"))
    assert small.step(1).decision.until_s == NOW + 50
    run = small.run_of()
    small.report("bench", doing=RigDoing(id=run.id, said="waits: board nuc is in use"))
    waits = small.step(1, NOW + 49).decision
    assert (waits.action, waits.reason) == (Action.WAIT, "group 0: rig bench: waits: board nuc is in use")
    small.step(1, NOW + 50)
    assert (state(small), given(small)) == (RolloutState.PAUSED, 0)
    assert "no verdict in 50 s; last: waits: board nuc is in use" in reason(small)
    late = small.answer(run, small.result(run))
    small.say(*late, now_s=NOW + 51)
    assert small.rejected()[1].startswith("E-RIG-VERDICT")
    manage.resume(small.database, 1, actor="ann", now_s=NOW + 60)
    small.step(1, NOW + 60)
    small.say(*late, now_s=NOW + 61)
    assert (small.run_of().attempt, small.run_of().verdict, given(small)) == (2, "", 0)
    # What the first asking was answered does not answer the second one either.
    old = small.result(run)
    small.say(*small.answer(small.run_of(), old), now_s=NOW + 62)
    assert small.rejected() == (3, small.rejected()[1])
    assert "it answers" in small.rejected()[1]


def test_a_rig_that_is_away_pauses_sooner_and_its_return_is_waited_for(small: RigHouse) -> None:
    small.online("bench", False, NOW - 500)
    small.begin(rig_gone_s=30.0)
    assert small.step(1).decision.until_s == NOW + 30
    assert "not connected" in reason(small)
    assert small.sent() == []
    small.online("bench", True, NOW + 10)
    assert small.step(1, NOW + 31).decision.until_s == NOW + 1000
    small.online("bench", False, NOW + 40)
    assert small.step(1, NOW + 69).decision.action is Action.WAIT
    small.step(1, NOW + 70)
    assert state(small) == RolloutState.PAUSED
    assert "has not been connected for 30 s" in reason(small)
    # A broker that starts anew knows of nobody who is connected: a rig has as long to come back.
    manage.resume(small.database, 1, actor="ann", now_s=NOW + 80)
    small.online("bench", True, NOW + 81)
    small.step(1, NOW + 81)
    nobody_is_online(small.database, NOW + 500)
    assert small.step(1, NOW + 529).decision.action is Action.WAIT
    small.online("bench", True, NOW + 529)
    assert small.step(1, NOW + 600).decision.action is Action.WAIT
    nobody_is_online(small.database, NOW + 600)
    small.step(1, NOW + 630)
    assert state(small) == RolloutState.PAUSED


def test_pause_and_resume_leave_a_rig_alone_that_runs_the_release(small: RigHouse) -> None:
    small.begin("bench", "lab")
    small.step(1)
    small.passes("lab")
    small.report("bench", doing=RigDoing(id=small.run_of().id, said="nuc: update"))
    manage.pause(small.database, 1, actor="ann", now_s=NOW + 1)
    manage.resume(small.database, 1, actor="ann", now_s=NOW + 2)
    small.step(1, NOW + 2)
    assert [run.attempt for run in small.all_runs()] == [1, 1]
    # One that is idle has not heard of it, or forgot it.
    small.report("bench")
    manage.pause(small.database, 1, actor="ann", now_s=NOW + 3)
    manage.resume(small.database, 1, actor="ann", now_s=NOW + 4)
    small.step(1, NOW + 4)
    assert [run.attempt for run in small.all_runs()] == [1, 1, 2]
    small.passes("bench")
    small.settle(1, NOW + 3)
    assert state(small) == RolloutState.SUCCEEDED


def test_a_frozen_fleet_asks_nobody_and_thawing_asks_those_anew_whose_time_ran_out(small: RigHouse) -> None:
    rollout_id = small.begin(rig_timeout_s=50.0)
    freeze.freeze(small.database, reason="", actor="ann", now_s=NOW)
    assert advance(small.database, rollout_id, NOW) is None
    assert small.all_runs() == []
    freeze.thaw(small.database, actor="ann", now_s=NOW)
    small.step(1)
    freeze.freeze(small.database, reason="", actor="ann", now_s=NOW + 10)
    freeze.thaw(small.database, actor="ann", now_s=NOW + 60)
    small.step(1, NOW + 60)
    assert [run.attempt for run in small.all_runs()] == [1, 2]
    assert state(small) == RolloutState.RUNNING


def test_a_revoked_rig_counts_for_nothing(small: RigHouse) -> None:
    small.begin()
    small.step(1)
    run = small.run_of()
    revocation.revoke(small.database, "bench", actor="ann", now_s=NOW)
    assert small.sent() == []
    small.say(*small.answer(run, small.result(run)))
    assert small.rejected()[1].startswith("E-DEVICE-UNKNOWN")
    small.step(1)
    assert (state(small), given(small)) == (RolloutState.PAUSED, 0)
    assert "rig bench: it is revoked" in reason(small)
    with pytest.raises(EdgeopsError) as caught:
        small.begin()
    assert caught.value.code == "E-RIG-UNFIT"


Forgery = Callable[[RigHouse, Any], tuple[str, bytes]]
FORGERIES: dict[str, tuple[Forgery, str]] = {
    "unsigned": (lambda h, run: h.answer(run, b"{}"), "E-WIRE-MALFORMED"),
    "signed by a stranger": (lambda h, run: signed(h, run, keys.generate()), "E-TRUST-SIGNATURE"),
    "signed by another rig": (lambda h, run: signed(h, run, h.rig_keys["lab"]), "E-TRUST-SIGNATURE"),
    "by the connection's key alone": (lambda h, run: signed(h, run, h.identities["bench"].signer), "E-TRUST-SIGNATURE"),
    "of another rig": (lambda h, run: h.answer(run, h.result(run, rig="lab")), "E-RIG-VERDICT"),
    "another rig's answer": (lambda h, run: h.answer(run, h.result(run, rig="lab"), by="lab"), "E-COMMAND-UNKNOWN"),
    "for another command": (lambda h, run: h.answer(run, h.result(run, command="c0")), "E-RIG-VERDICT"),
    "nobody's, run by hand": (lambda h, run: h.answer(run, h.result(run, command="", fleet="")), "E-RIG-VERDICT"),
    "of another fleet": (lambda h, run: h.answer(run, h.result(run, fleet="f2")), "E-RIG-VERDICT"),
    "from before it was asked": (lambda h, run: h.answer(run, h.result(run, at_s=NOW - 10_000)), "E-RIG-VERDICT"),
    "from the future": (lambda h, run: h.answer(run, h.result(run, at_s=NOW + 10_000)), "E-RIG-VERDICT"),
    "for another release": (lambda h, run: h.answer(run, another_release(h, run)), "E-RIG-VERDICT"),
    "for another bundle": (lambda h, run: h.answer(run, another_bundle(h, run)), "E-RIG-VERDICT"),
    "with result and reason": (lambda h, run: h.answer(run, h.result(run), code="E-HIL-BOARD"), "E-WIRE-MALFORMED"),
    "with neither": (lambda h, run: h.answer(run, None), "E-WIRE-MALFORMED"),
}  # fmt: skip


def signed(house: RigHouse, run: Any, key: Any) -> tuple[str, bytes]:
    return house.answer(run, house.result(run), signed_by=key)


def another_release(house: RigHouse, run: Any) -> RigResult:
    result = house.result(run)
    boards = tuple(msgspec.structs.replace(one, release="0.9.0") for one in result.boards)
    return msgspec.structs.replace(result, boards=boards)


def another_bundle(house: RigHouse, run: Any) -> RigResult:
    result = house.result(run)
    boards = tuple(msgspec.structs.replace(one, digest="sha256:" + "0" * 64) for one in result.boards)
    return msgspec.structs.replace(result, boards=boards)


def test_a_verdict_that_is_not_the_one_that_was_asked_for_lets_nothing_through(small: RigHouse) -> None:
    small.begin()
    small.step(1)
    run = small.run_of()
    for name, (forge, code) in FORGERIES.items():
        small.say(*forge(small, run))
        speaker = "lab" if name == "another rig's answer" else "bench"
        assert small.rejected(speaker)[1].startswith(code), (name, small.rejected(speaker))
        assert (small.step(1).decision.action, given(small), small.run_of().answer) == (Action.WAIT, 0, None), name
    assert small.rejected("bench")[0] + small.rejected("lab")[0] == len(FORGERIES)
    # It was nothing but that: the rig's own word is still waited for.
    small.passes()
    small.step(1)
    assert given(small) == 2


def test_a_verdict_of_an_earlier_rollout_of_the_same_release_is_none(small: RigHouse) -> None:
    small.begin()
    small.step(1)
    first = small.run_of()
    small.passes()
    manage.abort(small.database, 1, actor="ann", now_s=NOW)
    before = given(small)
    small.begin()
    small.step(2)
    second = small.run_of(rollout_id=2)
    small.say(*small.answer(second, small.result(first)))
    assert small.rejected()[1].startswith("E-RIG-VERDICT")
    assert (small.step(2).decision.action, given(small)) == (Action.WAIT, before)


def test_a_control_plane_that_does_not_check_the_signature_lets_forgeries_through(
    small: RigHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the forged verdicts above."""
    monkeypatch.setattr(
        checking.rig_results, "verified_by", lambda key, data, what: envelopes.read_unverified(data, RigResult)
    )
    small.begin()
    small.step(1)
    run = small.run_of()
    small.say(*FORGERIES["signed by a stranger"][0](small, run))
    small.step(1)
    assert given(small) == 2, "the forgery was not noticed, and devices got the release"


def test_a_rig_is_no_device_anywhere(small: RigHouse) -> None:
    with small.database.read() as session:
        assert session.scalars(select(Unit).where(Unit.connection.in_(["bench", "lab"]))).all() == []
        assert views.fleet(session, "f1").devices == 6
        page = views.device_page(session, after="", limit=100, profile=None, online=None, where="", now_s=NOW)
        assert {device.connection for device in page.items}.isdisjoint({"bench", "lab"})
        for selection in (Selection(), Selection(where="online")):
            made = plan(session, release("1.0.0"), Policy(groups=("100%",)), selection, NOW)
            assert sum(made.groups[0].devices.values()) == 6
        with pytest.raises(EdgeopsError, match="no device is selected"):
            plan(session, release("1.0.0"), Policy(groups=("100%",)), Selection(where="name = bench"), NOW)
    wish = SamplesWish(model="lines", count=1, max_bytes=1000, within_s=1, share=1)
    database, by = small.database, {"actor": "ann", "now_s": NOW}
    for ask in (
        lambda: manage.create(
            database, release("1.0.0"), Policy(groups=("100%",)), Selection(devices=("bench",)), **by
        ),
        lambda: renewal.want_renewal(database, "bench", **by),
        lambda: commands.ask_for_samples(database, "bench", wish, **by),
    ):
        with pytest.raises(EdgeopsError) as caught:
            ask()
        assert caught.value.code == "E-DEVICE-UNKNOWN"


def test_only_rigs_that_can_run_it_and_whose_key_is_trusted_stand_before_a_rollout(small: RigHouse) -> None:
    def refused(*rigs: str) -> str:
        with pytest.raises(EdgeopsError) as caught:
            small.begin(*rigs)
        return f"{caught.value.code}: {caught.value.what}"

    assert refused("nobody").startswith("E-RIG-UNKNOWN: there is no rig")
    assert refused("dev-000") == "E-RIG-UNKNOWN: dev-000 is a device, no rig"
    assert refused("bench", "bench").startswith("E-ROLLOUT-INVALID")
    small.report("lab", {"m4": "cortex-m4"})
    assert refused("lab") == "E-RIG-UNFIT: rig lab: it has boards of cortex-m4, and the release none for those"
    small.report("lab", features=())
    assert "runs nothing for rollouts" in refused("lab")
    del small.rig_keys["bench"]
    assert "its key is not trusted" in refused("bench")
    with small.database.read() as session:
        assert session.scalars(select(Rollout)).all() == []


def test_profiles_that_no_rig_has_a_board_of_are_listed(small: RigHouse) -> None:
    with small.database.read() as session:
        made = plan(
            session, release("1.0.0"), Policy(groups=("100%",), rigs=("bench",)), Selection(), NOW, small.rig_keys
        )
    assert made.rigs == {"bench": sorted(BOARDS.values())}
    assert made.uncovered == tuple(sorted(set(PROFILES) - set(BOARDS.values())))
    small.begin()
    small.step(1)
    with small.database.read() as session:
        shown = views.rollout_by_id(session, 1)
    assert shown.uncovered_profiles == list(made.uncovered)
    assert [(one.state, one.attempt, one.profiles) for one in shown.rigs] == [("waiting", 1, sorted(BOARDS.values()))]


def test_a_replayed_report_of_a_rig_changes_nothing(small: RigHouse) -> None:
    old = small.report("bench", {"nuc": "intel-nuc"}, boot_id="b0", seq=1)
    small.report("bench", boot_id="b2", seq=1)
    small.say(*old)
    assert small.rejected()[1].startswith("E-REPORT-STALE")
    with small.database.read() as session:
        assert runs.known(session, ["bench"])["bench"].profiles == set(BOARDS.values())


def test_a_token_is_for_a_rig_or_for_a_device(small: RigHouse, tmp_path: Path) -> None:
    with pytest.raises(EdgeopsError) as caught:
        small.join(tmp_path / "x", "x", kind=ConnectionKind.DEVICE, profile="intel-nuc")
    assert (caught.value.code, caught.value.what) == ("E-ENROLL", "the token is for a rig, this is a device")


def test_a_check_that_failed_counts_though_another_board_broke(small: RigHouse) -> None:
    small.begin()
    small.step(1)
    run = small.run_of()
    command = small.command(run)
    boards = (board("pi", command, Verdict.BROKEN), board("nuc", command, Verdict.FAILED))
    small.say(*small.answer(run, small.result(run, boards=boards)))
    small.step(1)
    assert state(small) == RolloutState.STOPPED
