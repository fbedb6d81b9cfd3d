"""One command takes a release from the registry through all emulated boards; a damaged one reaches none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rig_bundles import check_all_passed, linux_bundle, mcu_bundle, skip_without

from edgeops.contracts.rigs import RigResult, Verdict
from edgeops.contracts.wire import decode
from edgeops.releases import assemble, catalog
from edgeops.releases.publish import publish
from edgeops.trust.founding import make_fleet
from edgeops.trust.publisher import Publisher
from hil.rig import find_rig, read_rig

pytestmark = [pytest.mark.boards, pytest.mark.timeout(1500)]
RIG = read_rig(find_rig("emulated"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A fleet with a release for every board of the rig."""
    skip_without(*RIG.boards)
    bundles = [
        linux_bundle(tmp_path / board.profile, board.profile, model="adder")
        if board.profile.startswith("generic-")
        else mcu_bundle(tmp_path / board.profile / "bundle", profile=board.profile).directory
        for board in RIG.boards
    ]
    make_fleet(tmp_path / "home", "lab")
    assemble.create(tmp_path / "home", bundles, version="1.1.0")
    publish(tmp_path / "home", "adder", "1.1.0")
    return tmp_path / "home"


def run(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["hil", "run", RIG.name, "--release", "adder", "1.1.0", "--home", str(home), "--json", *words]
    return subprocess.run([sys.executable, "-m", "edgeops", *command], capture_output=True, text=True, check=False)


def test_one_command_takes_a_release_through_all_emulated_boards(home: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("rig.html", "rig.xml")]
    done = run(
        home, "--cuts", "1", "--soak", "1", "--runs", "10", "--report", str(files[0]), "--junit", str(files[1])
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = decode(done.stdout, RigResult, what="the result")
    assert [board.board for board in found.boards] == [board.name for board in RIG.boards]
    page, suites = files[0].read_text(), ElementTree.fromstring(files[1].read_bytes()).findall("testsuite")
    for board, suite in zip(found.boards, suites, strict=True):
        assert board.verdict is Verdict.PASSED
        assert board.release == "1.1.0"
        check_all_passed(board)
        latency = next(check.figures["p95_ms"] for check in board.checks if check.check == "latency")
        assert board.digest in page
        assert str(latency)[:5] in page
        assert int(suite.get("tests", "0")) == len(board.checks)


def test_a_release_that_is_damaged_in_the_registry_reaches_no_board(home: Path) -> None:
    release = catalog.release(home, "adder", "1.1.0")
    publisher = Publisher(home)
    file = publisher.target_file(release.targets[0].path, publisher.targets()[release.targets[0].path])
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(bytes(data))
    done = run(home)
    assert done.returncode != 0
    assert "E-TRUST-TARGET" in done.stderr or "E-BUNDLE-DAMAGED" in done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith("…")], "a board was used"
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.stdout)
