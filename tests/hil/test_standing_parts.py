"""The parts of a rig's daemon: what it remembers, how it answers, and whether boards are free and off."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rig_runs import RigAnswer, RigBundle, RigCommand
from edgeops.contracts.rigs import BoardResult, CheckResult, RigResult, Verdict
from edgeops.control.ingest.statements import MAX_STATEMENT_BYTES
from edgeops.releases import rig_results
from edgeops.trust import keys
from edgeops.trust import reported as statements
from hil.checks import linux, mcu
from hil.checks.plan import CHECKS, Found, passed
from hil.checks.sequence import Step, run_steps
from hil.evidence import RigKey
from hil.reservation import Reservation
from hil.rig import PowerSwitch, Rig, SshSpec
from hil.standing import power
from hil.standing.answers import answer_with
from hil.standing.leases import LEASE_S, Leases
from hil.standing.records import MAX_REMEMBERED, Records

NOW = 1_800_000_000.0
BUNDLE = RigBundle(profile="generic-x86-64", target="m/1.0.0/generic-x86-64.edgeops", digest="sha256:" + "ab" * 32)


def command(id: str = "c1", *, rollout: int = 1, attempt: int = 1, at_s: float = NOW) -> RigCommand:
    return RigCommand(
        fleet="f1", connection="bench", unit="self", id=id, issued_at_s=at_s, expires_at_s=at_s + 100, rollout=rollout,
        attempt=attempt, model="m", version="1.0.0", bundles=(BUNDLE,),
    )  # fmt: skip


def answer(of: RigCommand) -> RigAnswer:
    return RigAnswer(fleet="f1", connection="bench", unit="self", id=of.id, code="E-HIL-BOARD", what="gone")


def test_a_command_is_run_until_it_is_answered_over_any_restart(tmp_path: Path) -> None:
    first, second = command("c2", rollout=2), command("c1", at_s=NOW + 1)
    records = Records(tmp_path / "r")
    assert records.of("c1") is None
    assert (records.accept(second, NOW), records.accept(first, NOW)) == (True, True)
    again = Records(tmp_path / "r")
    assert [one.id for one in again.waiting(NOW)] == ["c2", "c1"]
    again.answered(first, answer(first))
    last = Records(tmp_path / "r")
    assert [one.id for one in last.waiting(NOW)] == ["c1"]
    kept = last.of("c2")
    assert kept is not None
    assert kept.answer == answer(first)
    assert last.waiting(NOW + 200) == []


def test_a_later_asking_takes_the_place_of_an_earlier_one_and_never_the_other_way_round(tmp_path: Path) -> None:
    records = Records(tmp_path / "r")
    records.accept(command("old"), NOW)
    records.accept(command("other", rollout=2), NOW)
    assert records.accept(command("new", attempt=2), NOW)
    assert not records.accept(command("old"), NOW)
    assert sorted(one.id for one in records.waiting(NOW)) == ["new", "other"]


def test_what_expired_and_what_is_damaged_is_forgotten(tmp_path: Path) -> None:
    records = Records(tmp_path / "r")
    records.accept(command("dead"), NOW)
    (tmp_path / "r" / "torn.json").write_bytes(b'{"command":')
    records.accept(command("live", rollout=2, at_s=NOW + 150), NOW + 150)
    assert sorted(path.stem for path in (tmp_path / "r").glob("*.json")) == ["live"]


def test_the_number_of_commands_that_are_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_REMEMBERED >= 100
    monkeypatch.setattr("hil.standing.records.MAX_REMEMBERED", 5)
    records = Records(tmp_path / "r")
    for number in range(9):
        records.accept(command(f"n{number}", rollout=1 + number, at_s=NOW + number), NOW + number)
    assert sorted(path.stem for path in (tmp_path / "r").glob("*.json")) == [f"n{number}" for number in range(3, 9)]


def test_what_nobody_asks_for_any_more_is_given_up_and_an_absent_broker_says_nothing() -> None:
    leases = Leases(0.0)
    leases.heard("asked", 100.0)
    assert not leases.is_over("asked", 100.0 + LEASE_S)
    assert leases.is_over("asked", 101.0 + LEASE_S)
    leases.heard("asked", 101.0 + LEASE_S)
    assert not leases.is_over("asked", 102.0 + LEASE_S)
    # One of before a restart is waited for as long.
    assert not leases.is_over("from before", LEASE_S)
    assert leases.is_over("from before", LEASE_S + 1)
    leases.away(5000.0)
    assert not leases.is_over("asked", 5000.0 + LEASE_S)
    assert leases.is_over("asked", 5001.0 + LEASE_S)
    # Asked again, it is one like any other.
    leases.forget("asked")
    leases.heard("asked", 6000.0)
    assert not leases.is_over("asked", 6000.0 + LEASE_S)


def result(console: str = "", figures: int = 0, said: str = "they hold") -> RigResult:
    check = CheckResult(
        check="golden", verdict=Verdict.PASSED, said=said, figures={f"figure {n}": "x" * 1000 for n in range(figures)}
    )
    board = BoardResult(
        board="here", kind="local", profile=BUNDLE.profile, model="m", release="1.0.0", digest=BUNDLE.digest,
        checks=(check,), console=console,
    )  # fmt: skip
    return RigResult(rig="bench", run="r", at_s=5.0, duration_s=2.0, edgeops="0.1.0", host="h", boards=(board,))


def test_an_answer_names_its_command_and_its_time_under_the_rigs_signature() -> None:
    own, connection = RigKey(keys.generate()), keys.generate()
    told = answer_with(command(), result(console="boots"), own, connection, NOW)
    signed = rig_results.verified_by(own.public, told.statement.encode(), "answer")
    assert (signed.fleet, signed.command, signed.at_s) == ("f1", "c1", NOW - 2.0)
    assert signed.boards[0].console == "boots"
    with pytest.raises(EdgeopsError) as caught:
        rig_results.verified_by(connection.public_key, told.statement.encode(), "answer")
    assert caught.value.code == "E-TRUST-SIGNATURE"


@pytest.mark.parametrize(("figures", "kept"), [(3, 3), (400, 0)])
def test_an_answer_that_would_be_too_large_loses_consoles_then_figures_and_no_verdict(figures: int, kept: int) -> None:
    own, connection = RigKey(keys.generate()), keys.generate()
    told = answer_with(command(), result("x" * 400_000, figures), own, connection, NOW)
    assert len(statements.sign(told, connection)) <= MAX_STATEMENT_BYTES
    (board,) = rig_results.verified_by(own.public, told.statement.encode(), "answer").boards
    (check,) = board.checks
    assert (board.console, len(check.figures), check.said, check.verdict) == ("", kept, "they hold", Verdict.PASSED)


def test_an_answer_that_is_too_large_all_the_same_says_so() -> None:
    own, connection = RigKey(keys.generate()), keys.generate()
    told = answer_with(command(), result(said="x" * 600_000), own, connection, NOW)
    assert (told.statement, told.code) == ("", "E-WIRE-SIZE")


def test_boards_that_a_killed_run_left_with_power_are_switched_off_unless_somebody_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEOPS_CACHE", str(tmp_path / "cache"))
    note, host = tmp_path / "switched", f"pi-{os.getpid()}.lab"  # a host is one for all of this machine
    off = (sys.executable, "-c", f"open({str(note)!r}, 'a').write('off')")
    spec = SshSpec(name="pi", profile="raspberry-pi-4", host=host, power=PowerSwitch(on=("true",), off=off))
    rig = Rig(name="bench", title="a bench", boards=(spec,))
    with Reservation(f"ssh {host}:22"):
        assert f"board pi: ssh {host}:22 is in use by process" in power.in_use(rig, ["raspberry-pi-4"])
        assert power.in_use(rig, ["cortex-m4"]) == ""
        power.cut(rig)
        assert not note.exists()
    assert power.in_use(rig, ["raspberry-pi-4"]) == ""
    power.cut(rig)
    assert note.read_text() == "off"


@pytest.mark.parametrize(
    ("only", "made"),
    [
        ((), ["boot", "size", "golden", "install", "update", "soak"]),
        (("golden",), ["boot", "golden"]),
        (("size", "soak"), ["boot", "size", "install", "update", "soak"]),
        (("boot",), ["boot"]),
    ],
)
def test_only_the_checks_that_were_asked_for_and_what_they_need_are_made(
    only: tuple[str, ...], made: list[str]
) -> None:
    done: list[str] = []

    def step(name: str, is_needed: bool = False) -> Step:
        def check() -> Found:
            done.append(name)
            return passed("it holds")

        return Step(name, check, is_needed)

    steps = [
        step("boot", True),
        step("size"),
        step("golden"),
        step("install", True),
        step("update", True),
        step("soak"),
    ]
    assert {one.name for one in steps} <= set(CHECKS)
    results = list(run_steps(steps, lambda name: None, only))
    assert done == made
    left_out = {one.check for one in results if one.verdict is Verdict.SKIPPED}
    assert left_out == {one.name for one in steps} - set(made)


@pytest.mark.parametrize("module", [linux, mcu])
def test_every_check_that_there_is_can_be_asked_for(module: ModuleType) -> None:
    assert module.__file__ is not None
    named = re.findall(r'Step\("([a-z-]+)"', Path(module.__file__).read_text())
    assert sorted(named) == sorted(CHECKS)
