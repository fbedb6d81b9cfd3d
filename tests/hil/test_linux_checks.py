"""A rig with boards that run the agent: a good release passes, and each bad one is stopped by the matching check."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from command_runs import interrupt, running
from loopback_board import LOOPS_BACK, LoopbackBoard, can_loop_back
from rig_bundles import check_all_passed, skip_without
from rig_bundles import linux_bundle as bundle
from served_fleet import wait_for

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.profile import Budgets
from edgeops.contracts.rigs import BoardResult, Verdict
from edgeops.releases.bundles import open_bundle, seal
from hil.boards import ssh
from hil.boards.ssh import SshBoard
from hil.checks.plan import Effort, Subject
from hil.reservation import Reservation, resource_of
from hil.rig import Arm64VmSpec, BoardSpec, LocalSpec, Rig, SshSpec
from hil.run import Request, run_rig

pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the bundle is for x86-64: run it on such a machine"),
]
LOCAL = LocalSpec(name="local", profile="generic-x86-64")
VM = Arm64VmSpec(name="vm", profile="generic-arm64")


def run(board: BoardSpec, tested: Path, **effort: float) -> BoardResult:
    request = Request({board.profile: Subject(tested)}, Effort(**{"runs": 10, "cuts": 0, **effort}))  # type: ignore[arg-type]
    return run_rig(Rig(name="bench", title="a bench", boards=(board,)), request).boards[0]


def failed(result: BoardResult) -> dict[str, str]:
    return {check.check: check.code for check in result.checks if check.verdict is Verdict.FAILED}


@pytest.mark.vm
@pytest.mark.timeout(3600)
def test_a_good_release_passes_on_an_emulated_arm64_machine(tmp_path: Path) -> None:
    skip_without(VM)
    check_all_passed(run(VM, bundle(tmp_path, VM.profile), cuts=1, soak_s=1))


@pytest.mark.boards
@pytest.mark.parametrize(
    ("made", "stopped_by"),
    [
        ({"lie": 1.0}, {"golden": "E-SELFTEST-GOLDEN", "update": "E-SELFTEST-GOLDEN"}),
        (
            {"budgets": Budgets(latency_p95_ms=1e-6)},
            {"latency": "E-SELFTEST-BUDGET", "update": "E-SELFTEST-BUDGET"},
        ),
        ({"budgets": Budgets(size_mib=1e-6)}, {"size": "E-SELFTEST-BUDGET"}),
    ],
    ids=["it answers wrongly", "it is too slow", "it is too big"],
)
def test_a_bad_release_is_stopped_by_the_matching_check(
    tmp_path: Path, made: dict[str, object], stopped_by: dict[str, str]
) -> None:
    before = bundle(tmp_path / "before")
    request = Request(
        {LOCAL.profile: Subject(bundle(tmp_path / "bad", **made), before=before)}, Effort(runs=10, cuts=0)
    )
    found = run_rig(Rig(name="bench", title="a bench", boards=(LOCAL,)), request)
    assert failed(found.boards[0]) == stopped_by
    assert found.verdict is Verdict.FAILED


@pytest.mark.boards
def test_a_damaged_artifact_is_stopped_where_it_is_loaded(tmp_path: Path) -> None:
    """Sealed as it is: the bundle is whole, and what is in it is no model."""
    whole = open_bundle(bundle(tmp_path / "bad"))
    artifact = whole.directory / whole.manifest.artifact
    data = artifact.read_bytes()
    artifact.write_bytes(data[: len(data) // 2])
    tested = seal(whole.directory, whole.manifest).directory
    subject = Subject(tested, before=bundle(tmp_path / "before"))
    request = Request({LOCAL.profile: subject}, Effort(runs=10, cuts=0))
    result = run_rig(Rig(name="bench", title="a bench", boards=(LOCAL,)), request).boards[0]
    assert failed(result) == {"golden": "E-RUNTIME-LOAD", "update": "E-RUNTIME-LOAD"}


@pytest.mark.boards
def test_an_interrupt_at_any_time_leaves_no_agent_and_no_lock(tmp_path: Path, proof: Callable[[str], None]) -> None:
    tested, chance, moments = bundle(tmp_path), random.Random(11), 5
    spec = LocalSpec(name="local", profile=LOCAL.profile)
    for number in range(moments):
        keys = f'name = "local"\nkind = "local"\nprofile = "{LOCAL.profile}"'
        with running(tmp_path, keys, tested) as process:
            seen = interrupt(process, chance, 20.0)
            assert process.returncode != 0
            assert not psutil.wait_procs(seen, 20)[1], number
        Reservation(resource_of(Rig(name="bench", title="b", boards=(spec,)), spec)).release()
    proof(f"{moments} runs interrupted three times each; no agent was left")


@pytest.mark.boards
def test_a_run_that_is_killed_leaves_no_agent(tmp_path: Path) -> None:
    keys = f'name = "local"\nkind = "local"\nprofile = "{LOCAL.profile}"'
    with running(tmp_path, keys, bundle(tmp_path)) as process:
        run_of_it = psutil.Process(process.pid)
        # The agent and its worker.
        wait_for(lambda: len(run_of_it.children(recursive=True)) >= 2, "the board runs no agent")
        on_board = run_of_it.children(recursive=True)
        process.kill()
        assert not psutil.wait_procs(on_board, 60)[1]


def test_a_bundle_that_is_damaged_on_its_way_is_stopped_before_the_board_is_touched(tmp_path: Path) -> None:
    tested = bundle(tmp_path)
    flip = tested / "model.onnx"
    flip.write_bytes(flip.read_bytes()[:-1] + b"\0")
    result = run(LOCAL, tested)
    assert [(check.check, check.verdict, check.code) for check in result.checks] == [
        ("bundle", Verdict.FAILED, "E-BUNDLE-DAMAGED")
    ]


@pytest.mark.boards
@pytest.mark.skipif(not can_loop_back(), reason=LOOPS_BACK)
@pytest.mark.parametrize("key", ["its own", "another"])
def test_a_board_with_another_host_key_is_not_spoken_to(tmp_path: Path, key: str) -> None:
    with LoopbackBoard(tmp_path / "board") as there:
        known = there.folder / "known_hosts"
        if key == "another":
            known.write_text(f"[127.0.0.1]:{there.port} {(there.folder / 'other_key.pub').read_text()}")
        spec = SshSpec(
            name="ssh", profile=LOCAL.profile, host="127.0.0.1", port=there.port, boot_within_s=10.0,
            key_file=str(there.folder / "login_key"), known_hosts=str(known), python=sys.executable,
        )  # fmt: skip
        with SshBoard.of(spec, tmp_path) as board:
            if key == "another":
                with pytest.raises(EdgeopsError, match=r"[Hh]ost key"):
                    board.power_on()
            else:
                board.power_on()
        is_let_in = "Accepted publickey" in (there.folder / "sshd.log").read_text()
    assert is_let_in == (key == "its own")


def ssh_spec(there: LoopbackBoard) -> SshSpec:
    return SshSpec(
        name="ssh", profile=LOCAL.profile, host="127.0.0.1", port=there.port, python=sys.executable,
        key_file=str(there.folder / "login_key"), known_hosts=str(there.folder / "known_hosts"),
    )  # fmt: skip


@pytest.mark.boards
@pytest.mark.skipif(not can_loop_back(), reason=LOOPS_BACK)
def test_what_a_killed_run_left_on_a_board_is_ended_by_the_next_one_and_another_machines_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board without a power switch: nobody was left who could log in and end what ran there."""
    with LoopbackBoard(tmp_path / "board") as there:
        dead = SshBoard.of(ssh_spec(there), tmp_path)
        dead.power_on()
        dead.start("agent", "sh", "-c", "sleep 600 & sleep 600")
        (pid,) = dead._pids.values()
        dead._drop_link()  # and nothing more: as if it had been killed
        folder, group = there.root / dead.folder[1:], psutil.Process(int(pid))
        left = [group, *group.children(recursive=True)]
        assert folder.is_dir()
        # Another machine's run cannot know that nobody waits for it.
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(ssh, "_machine", lambda: "elsewhere 0")
            with SshBoard.of(ssh_spec(there), tmp_path) as stranger:
                with pytest.raises(EdgeopsError, match=f"run of another machine: .*process {pid}") as caught:
                    stranger.power_on()
                assert caught.value.code == "E-HIL-BUSY"
        assert all(one.is_running() for one in left)
        with SshBoard.of(ssh_spec(there), tmp_path) as board:
            board.power_on()
            assert not psutil.wait_procs(left, 60)[1]
            assert not folder.exists()
            assert (there.root / board.folder[1:]).is_dir()


@pytest.mark.boards
@pytest.mark.skipif(not can_loop_back(), reason=LOOPS_BACK)
def test_a_board_whose_link_is_lost_in_mid_test_says_nothing_of_the_release(tmp_path: Path) -> None:
    tested, lost = bundle(tmp_path / "b"), threading.Event()
    with LoopbackBoard(tmp_path / "board") as there:

        def say(line: str) -> None:
            if line.endswith("golden"):
                there.power_off()
                lost.set()

        request = Request({LOCAL.profile: Subject(tested)}, Effort(runs=10, cuts=0))
        (result,) = run_rig(Rig(name="bench", title="a bench", boards=(ssh_spec(there),)), request, say=say).boards
    assert lost.is_set()
    verdicts = {check.check: (check.verdict, check.code) for check in result.checks}
    assert verdicts["boot"] == (Verdict.PASSED, "")
    assert verdicts["golden"] == (Verdict.BROKEN, "E-HIL-BOARD")
    assert {verdict for verdict, _ in list(verdicts.values())[3:]} == {Verdict.SKIPPED}
    assert result.verdict is Verdict.BROKEN


def test_a_board_that_boots_into_garbage_is_broken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def babble() -> None:
            with contextlib.suppress(OSError):
                while True:
                    line, _ = server.accept()
                    with line:
                        line.sendall(os.urandom(4000) + b"\r\n")

        threading.Thread(target=babble, daemon=True).start()
        noisy = SshSpec(name="noisy", profile=LOCAL.profile, host="127.0.0.1", port=port, boot_within_s=1.0)
        result = run(noisy, bundle(tmp_path))
        server.shutdown(socket.SHUT_RDWR)
    assert (result.verdict, result.checks[0].check, result.checks[0].code) == (Verdict.BROKEN, "boot", "E-HIL-BOARD")


def test_a_board_that_never_answers_is_broken_and_says_nothing_of_the_release(tmp_path: Path) -> None:
    nowhere = SshSpec(name="gone", profile=LOCAL.profile, host="127.0.0.1", port=9, boot_within_s=1.0)
    result = run(nowhere, bundle(tmp_path))
    assert (result.verdict, result.checks[0].check, result.checks[0].code) == (Verdict.BROKEN, "boot", "E-HIL-BOARD")
    assert {check.verdict for check in result.checks[1:]} == {Verdict.SKIPPED}


def test_a_board_that_answers_for_another_is_broken(tmp_path: Path) -> None:
    stranger = LocalSpec(name="stranger", profile="generic-arm64")
    result = run(stranger, bundle(tmp_path, stranger.profile))
    assert "another board answers: x86_64, expected aarch64" in result.checks[0].said
    assert result.verdict is Verdict.BROKEN
