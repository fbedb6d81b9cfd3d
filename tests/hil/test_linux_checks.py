"""A rig with boards that run the agent: a good release passes, and each bad one is stopped by the matching check."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from rig_bundles import check_all_passed
from rig_bundles import linux_bundle as bundle

from edgeops.contracts.profile import Budgets
from edgeops.contracts.rigs import BoardResult, Verdict
from hil.checks.plan import Effort, Subject
from hil.rig import Arm64UserSpec, Arm64VmSpec, BoardSpec, LocalSpec, Rig, SshSpec
from hil.run import Request, run_rig

pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the bundle is for x86-64: run it on such a machine"),
]
LOCAL = LocalSpec(name="local", profile="generic-x86-64")
ARM64 = Arm64UserSpec(name="arm64", profile="generic-arm64")
VM = Arm64VmSpec(name="vm", profile="generic-arm64")


def run(board: BoardSpec, tested: Path, **effort: float) -> BoardResult:
    request = Request({board.profile: Subject(tested)}, Effort(**{"runs": 10, "cuts": 0, **effort}))  # type: ignore[arg-type]
    return run_rig(Rig(name="bench", title="a bench", boards=(board,)), request).boards[0]


def failed(result: BoardResult) -> dict[str, str]:
    return {check.check: check.code for check in result.checks if check.verdict is Verdict.FAILED}


@pytest.mark.boards
def test_a_good_release_passes_on_this_machine(tmp_path: Path) -> None:
    check_all_passed(run(LOCAL, bundle(tmp_path), cuts=2, soak_s=1))


@pytest.mark.boards
def test_a_good_release_passes_on_an_emulated_arm64_debian(tmp_path: Path) -> None:
    check_all_passed(run(ARM64, bundle(tmp_path, ARM64.profile), cuts=1, soak_s=1))


@pytest.mark.vm
@pytest.mark.timeout(3600)
def test_a_good_release_passes_on_an_emulated_arm64_machine(tmp_path: Path) -> None:
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
