"""The pytest plugin, by the example that comes with it: real pytest runs on real boards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from adder_bundles import small_bundle
from command_runs import BENCH

from hil.reservation import Reservation, resource_of
from hil.rig import read_rig

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(300)


def run(folder: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "hil.pytest_plugin", "-p", "no:cacheprovider", "-q", "-rs",
         "-c", "/dev/null", "--rootdir", str(folder), *words],
        cwd=folder, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.boards
def test_the_example_passes_on_this_machine(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle").directory
    status, said = run(tmp_path, str(ROOT / "examples/hil"), "--bundle", str(bundle))
    assert status == 0, said
    assert "3 passed, 1 skipped" in said
    assert "rig this-machine has no fitting board" in said


@pytest.mark.usefixtures("arm_compiler", "emulator")
def test_a_test_runs_once_for_each_fitting_board(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "import pytest\n"
        "def test_one(mcu):\n    assert mcu.link().echo('x') == 'x'\n"
        "@pytest.mark.hil(profile='cortex-m7')\ndef test_other(mcu):\n    assert mcu.profile == 'cortex-m7'\n"
    )
    only = ("--rig", "emulated", "--rig-board", "m4", "--rig-board", "m7")
    status, said = run(tmp_path, "test_mine.py", "-vv", *only)
    assert status == 0, said
    for name in ("test_one[m4] PASSED", "test_one[m7] PASSED", "test_other[m7] PASSED"):
        assert name in said, said
    assert "3 passed" in said


def test_a_wrong_rig_ends_the_run_before_its_first_test(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('name = "bad"\ntitle = "b"\nspeed = 3\n')
    status, said = run(tmp_path, "--rig", str(tmp_path / "bad.toml"))
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "bad.toml:3: " in said


@pytest.mark.usefixtures("arm_compiler", "emulator")
def test_a_board_in_use_fails_its_test_and_a_hung_one_is_power_cycled(tmp_path: Path) -> None:
    rig = tmp_path / f"{BENCH}.toml"
    rig.write_text(
        f'name = "{BENCH}"\ntitle = "b"\n[[boards]]\nname = "m4"\nkind = "qemu-cortex-m"\nmachine = "mps2-an385"\n'
        'profile = "cortex-m4"\nboot_within_s = 1\n'
    )
    (tmp_path / "test_mine.py").write_text("def test_one(mcu):\n    raise AssertionError('never')\n")
    described = read_rig(rig)
    with Reservation(resource_of(described, described.boards[0])):
        status, said = run(tmp_path, "test_mine.py", "--rig", str(rig))
    assert status == 1
    assert "E-HIL-BUSY" in said
    status, said = run(tmp_path, "test_mine.py", "--rig", str(rig))
    assert status == 1
    assert "m4 was power-cycled" in said
    assert "power-cycled once, and still" in said
