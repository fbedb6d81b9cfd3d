"""A rig with an emulated microcontroller: a good release passes, and each bad one is stopped by the matching check."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from command_runs import BENCH, interrupt, running
from model_code import HANG
from rig_bundles import mcu_bundle

from edgeops.cli import root
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.profile import Budgets
from edgeops.contracts.rigs import BoardResult, Verdict
from firmware_bridge.link import ANSWER_WITHIN_S
from hil.boards import mcu
from hil.checks.plan import Effort, Subject
from hil.reservation import Reservation, resource_of
from hil.rig import QemuMcuSpec, Rig, SerialMcuSpec
from hil.run import Request, run_rig

pytestmark = [pytest.mark.usefixtures("arm_compiler", "emulator"), pytest.mark.timeout(600)]
M4 = 'name = "m4"\nkind = "qemu-cortex-m"\nmachine = "mps2-an386"\nprofile = "cortex-m4"'
QUICK = Effort(runs=5, cuts=1)


def rig_of(*boards: QemuMcuSpec | SerialMcuSpec) -> Rig:
    return Rig(name=BENCH, title="a bench", boards=boards)


def m4(**changed: object) -> QemuMcuSpec:
    values = {"name": "m4", "profile": "cortex-m4", "machine": "mps2-an386", "boot_within_s": 60.0, **changed}
    return QemuMcuSpec(**values)  # type: ignore[arg-type]


def run(bundle: Path, *boards: QemuMcuSpec | SerialMcuSpec, effort: Effort = QUICK) -> BoardResult:
    profile = boards[0].profile if boards else "cortex-m4"
    request = Request({profile: Subject(bundle)}, effort)
    return run_rig(rig_of(*(boards or (m4(),))), request).boards[0]


def failed(result: BoardResult) -> dict[str, str]:
    return {check.check: check.code for check in result.checks if check.verdict is Verdict.FAILED}


def test_a_good_model_passes_everything_that_can_be_checked(tmp_path: Path) -> None:
    result = run(mcu_bundle(tmp_path / "bundle").directory)
    others = {check.check: check for check in result.checks if check.verdict is not Verdict.PASSED}
    assert list(others) == ["accuracy", "soak"], others
    assert result.verdict is Verdict.PASSED
    figures = {check.check: check.figures for check in result.checks}
    assert figures["golden"]["vectors"] == 1
    assert figures["power-cut"]["cuts"] == 1
    assert figures["latency"]["judged"] is False


def test_a_model_that_answers_wrongly_is_stopped_by_its_golden_vectors(tmp_path: Path) -> None:
    assert failed(run(mcu_bundle(tmp_path / "b", lie=1).directory, effort=Effort(runs=1, cuts=0))) == {
        "golden": "E-SELFTEST-GOLDEN"
    }


@pytest.mark.parametrize("timing", [True, pytest.param(False, marks=pytest.mark.boards)])
def test_a_model_that_is_too_slow_is_stopped_where_time_counts(tmp_path: Path, timing: bool) -> None:
    bundle = mcu_bundle(tmp_path / "b", budgets=Budgets(latency_p95_ms=1e-9)).directory
    result = run(bundle, m4(timing=timing), effort=Effort(runs=5, cuts=0))
    assert failed(result) == ({"latency": "E-SELFTEST-BUDGET"} if timing else {})


def test_a_model_that_is_too_big_is_never_sent(tmp_path: Path) -> None:
    result = run(mcu_bundle(tmp_path / "b", arena=1 << 20).directory)
    assert failed(result) == {"size": "E-SELFTEST-BUDGET"}
    assert {check.verdict for check in result.checks[2:]} == {Verdict.SKIPPED}


def test_a_board_that_is_another_one_is_broken_not_failed(tmp_path: Path) -> None:
    result = run(mcu_bundle(tmp_path / "b").directory, m4(machine="mps2-an385"))
    assert result.verdict is Verdict.BROKEN
    assert "another board answers: cortex-m3, expected cortex-m4" in result.checks[0].said


def test_a_board_that_says_garbage_or_nothing_is_broken(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
    line, end = os.openpty()
    stop = threading.Event()

    def babble() -> None:
        while not stop.wait(0.05):
            os.write(line, os.urandom(40))

    speaker = threading.Thread(target=babble)
    bundle = mcu_bundle(tmp_path / "b").directory
    spec = SerialMcuSpec(name="x", profile="cortex-m4", port=os.ttyname(end), signing_key=str(key), boot_within_s=1.0)
    silent = run(bundle, spec)
    speaker.start()
    try:
        noisy = run(bundle, spec)
    finally:
        stop.set()
        speaker.join()
        os.close(line)
        os.close(end)
    for result in (silent, noisy):
        assert result.checks[0].check == "boot"
        assert (result.verdict, result.checks[0].code) == (Verdict.BROKEN, "E-HIL-BOARD")


def test_a_line_that_is_lost_in_mid_test_says_nothing_of_the_release_and_ends_that_board_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulator hangs in the golden check: the board is power-cycled, and then the check could be made."""
    whole = mcu.QemuMcuBoard.link
    calls = []

    def dying(board: mcu.QemuMcuBoard, answer_within_s: float = ANSWER_WITHIN_S) -> object:
        calls.append(1)
        if len(calls) == 6 and board.name == "m4":
            board._board.ask("stop")
            return whole(board, 0.2)
        return whole(board, answer_within_s)

    monkeypatch.setattr(mcu.QemuMcuBoard, "link", dying)
    request = Request({"cortex-m4": Subject(mcu_bundle(tmp_path / "b").directory)}, Effort(runs=1, cuts=0))
    lost, other = run_rig(rig_of(m4(), m4(name="m4-again")), request).boards
    bad = next(check for check in lost.checks if check.verdict not in (Verdict.PASSED, Verdict.SKIPPED))
    assert (lost.verdict, bad.verdict, bad.code) == (Verdict.BROKEN, Verdict.BROKEN, "E-HIL-BOARD")
    assert "power-cycled" in bad.said
    # What the board did when it was silent is gone with its power, so it is asked for before.
    assert "QEMU: paused, pc 0x" in bad.said
    assert not failed(lost)
    assert lost.checks[-1].verdict is Verdict.SKIPPED
    assert other.verdict is Verdict.PASSED


@pytest.mark.boards
def test_a_model_that_hangs_the_board_is_failed_not_broken(tmp_path: Path) -> None:
    """The other side of it: silent again after its power was cycled, it is the model."""
    result = run(mcu_bundle(tmp_path / "b", extra=HANG).directory, effort=Effort(runs=1, cuts=0))
    assert result.verdict is Verdict.FAILED
    assert {check.verdict for check in result.checks if check.check in ("boot", "size")} == {Verdict.PASSED}
    # The report says where the processor is; its only line is the one that it answers on.
    assert result.console.startswith("QEMU: running, pc 0x")


def test_two_runs_never_share_a_board(tmp_path: Path) -> None:
    bundle = mcu_bundle(tmp_path / "b").directory
    with Reservation(resource_of(rig_of(m4()), m4())):
        result = run(bundle)
    assert (result.verdict, result.checks[0].code) == (Verdict.BROKEN, "E-HIL-BUSY")


@pytest.mark.parametrize(
    ("after_lines", "signals"),
    [(1, [signal.SIGINT]), (4, [signal.SIGINT, signal.SIGINT]), (8, [signal.SIGTERM])],
    ids=["at the beginning", "twice, by an impatient person", "by a CI that cancels"],
)
def test_an_interrupt_leaves_the_board_off_and_free(
    tmp_path: Path, after_lines: int, signals: list[signal.Signals]
) -> None:
    with running(tmp_path, M4, mcu_bundle(tmp_path / "b").directory, after_lines=after_lines) as process:
        children = psutil.Process(process.pid).children(recursive=True)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.02)
        process.communicate(timeout=60)
        assert process.returncode != 0
        assert not psutil.wait_procs(children, 60)[1]
    Reservation(resource_of(rig_of(m4()), m4())).release()


@pytest.mark.parametrize(
    "mutant",
    ["", pytest.param("from hil.boards import mcu\nmcu.ending_with_us = list", marks=pytest.mark.boards)],
    ids=["the kernel sees to it", "control: it does not"],
)
def test_a_run_that_is_killed_leaves_no_board_running(tmp_path: Path, mutant: str) -> None:
    with running(tmp_path, M4, mcu_bundle(tmp_path / "b").directory, after_lines=4, mutant=mutant) as process:
        emulators = psutil.Process(process.pid).children(recursive=True)
        assert emulators
        process.kill()
        process.wait(30)
        left = psutil.wait_procs(emulators, 60 if not mutant else 2)[1]
        for one in left:
            one.kill()
    assert bool(left) == bool(mutant)


@pytest.mark.boards
def test_an_interrupt_at_any_time_leaves_the_board_off_and_free(tmp_path: Path, proof: Callable[[str], None]) -> None:
    """Moments over the whole length of a run, also while it opens and closes the board, each followed by more."""
    bundle, chance, moments = mcu_bundle(tmp_path / "b").directory, random.Random(10), 12
    for number in range(moments):
        with running(tmp_path, M4, bundle) as process:
            seen = interrupt(process, chance, 5.0)
            assert process.returncode != 0
            assert not psutil.wait_procs(seen, 60)[1], number
        Reservation(resource_of(rig_of(m4()), m4())).release()
    proof(f"{moments} runs interrupted three times each; every board was off and free")


@pytest.mark.boards
def test_control_a_board_that_is_not_switched_off_is_seen(tmp_path: Path, proof: Callable[[str], None]) -> None:
    """With the mutant that forgets to, the emulator runs on: so the tests above would notice."""
    mutant = "from hil.boards import mcu\nmcu.QemuMcuBoard.close = lambda *_: None\nmcu.ending_with_us = list"
    bundle = mcu_bundle(tmp_path / "b").directory
    with running(tmp_path, M4, bundle, after_lines=4, mutant=mutant) as process:
        emulators = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        left = psutil.wait_procs(emulators, 2)[1]
        for one in left:
            one.kill()
    assert left
    proof("caught: the mutant that forgets to switch off")


def test_a_board_of_a_rig_measures_and_emulated_figures_are_estimates(tmp_path: Path) -> None:
    good, lying = mcu_bundle(tmp_path / "a" / "good"), mcu_bundle(tmp_path / "b" / "lying", lie=1)
    rig = tmp_path / f"{BENCH}.toml"
    board = 'name = "m4"\nkind = "qemu-cortex-m"\nmachine = "mps2-an386"\nprofile = "cortex-m4"\n'
    rig.write_text(f'name = "{BENCH}"\ntitle = "b"\n[[boards]]\n{board}')
    words = ["measure", str(good.directory), str(lying.directory), "--device", f"rig:{rig}", "--runs", "5", "--json"]
    done = CliRunner().invoke(root, words)
    found = json.loads(done.stdout)
    assert found["device"] == f"rig:{BENCH}/m4"
    assert (found["source"], found["arch"]) == ("estimated", "armv7e-m")
    assert found["bundles"][0]["measured"]["golden_vectors"] == 1
    assert found["bundles"][0]["measured"]["latency"]["runs"] == 5
    assert found["bundles"][1]["failure"].startswith("E-SELFTEST-GOLDEN")
    assert isinstance(done.exception, EdgeopsError)
    assert done.exception.code == "E-MEASURE"
    rig.write_text(f'name = "{BENCH}"\ntitle = "b"\npurposes = ["soak"]\n[[boards]]\n{board}')
    refused = CliRunner().invoke(root, words)
    assert isinstance(refused.exception, EdgeopsError)
    assert refused.exception.code == "E-HIL-RIG"
