"""What a run's result looks like: to CI as JUnit XML, to people as a page, to others as a signed statement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from adder_bundles import MODEL, small_bundle
from click.testing import CliRunner
from rig_bundles import linux_bundle

from edgeops.cli import root
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rigs import BoardResult, CheckResult, RigResult, Verdict, worst
from edgeops.contracts.wire import encode
from edgeops.releases import assemble, rig_results
from edgeops.releases.publish import publish
from edgeops.report import sources
from edgeops.report.page import page
from edgeops.report.text import markdown
from edgeops.trust.founding import make_fleet
from hil.boards.mcu import emulated_key
from hil.evidence import RigKey, seal
from hil.report import to_html, to_junit

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


def check(name: str, verdict: Verdict, code: str = "") -> CheckResult:
    return CheckResult(check=name, verdict=verdict, said=HOSTILE, code=code, figures={"p95_ms": 1.25}, duration_s=2.0)


RESULT = RigResult(
    rig="bench", run="ab12", at_s=1.8e9, duration_s=12.0, edgeops="0.1.0", host="h",
    boards=(
        BoardResult(
            board="m4", kind="qemu-cortex-m", profile="cortex-m4", model="adder", digest="sha256:0", console=HOSTILE,
            checks=(
                check("boot", Verdict.PASSED), check("golden", Verdict.FAILED, "E-SELFTEST-GOLDEN"),
                check("update", Verdict.BROKEN, "E-HIL-BOARD"), check("soak", Verdict.SKIPPED),
            ),
        ),
    ),
)  # fmt: skip


def test_each_check_is_a_case_and_broken_is_an_error_not_a_failure() -> None:
    suite = ElementTree.fromstring(to_junit(RESULT)).find("testsuite")
    assert suite is not None
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    failure = suite.find("testcase[@name='golden']/failure")
    assert failure is not None
    assert failure.get("type") == "E-SELFTEST-GOLDEN"
    assert failure.text == "p95_ms: 1.25"
    assert suite.find("testcase[@name='update']/error") is not None


@pytest.mark.parametrize("option", ["--report", "--junit", "--evidence"])
def test_a_place_that_cannot_be_written_is_named_before_a_board_is_touched(tmp_path: Path, option: str) -> None:
    bundle = linux_bundle(tmp_path)
    words = ["hil", "run", "this-machine", "--bundle", str(bundle), "--check", "boot", option]
    done = CliRunner().invoke(root, [*words, str(tmp_path / "no-folder" / "out")])
    assert isinstance(done.exception, EdgeopsError)
    assert done.exception.code == "E-CONFIG"
    assert "boot" not in done.stderr


def test_a_place_that_fails_after_the_run_costs_neither_the_result_nor_the_other_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hil.run.run_rig", lambda *_args, **_named: RESULT)
    words = ["hil", "run", "this-machine", "--bundle", str(linux_bundle(tmp_path)), "--json"]
    done = CliRunner().invoke(root, [*words, "--report", "/dev/full", "--junit", str(tmp_path / "junit.xml")])
    assert json.loads(done.stdout)["run"] == RESULT.run
    assert (tmp_path / "junit.xml").read_bytes() == to_junit(RESULT)
    assert isinstance(done.exception, EdgeopsError)
    assert done.exception.code == "E-DISK-FULL"


def test_the_page_runs_and_loads_nothing_whatever_a_board_says() -> None:
    page = to_html(RESULT)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "default-src &#x27;none&#x27;" in page
    for word in ("src=", 'href="http', "url("):
        assert word not in page
    for word in ("golden", "E-SELFTEST-GOLDEN", "1.25", "sha256:0"):
        assert word in page


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEOPS_RIG_KEYS", str(tmp_path / "keys"))
    make_fleet(tmp_path / "home", "lab")
    return tmp_path / "home"


def trust(home: Path, key: RigKey, name: str = "bench") -> None:
    (home / "rig.pem").write_text(key.public_pem)
    rig_results.trust(home, name, home / "rig.pem")


def test_a_result_is_believed_from_the_rig_that_it_names_only(home: Path) -> None:
    mine, other = RigKey.of_rig("bench"), RigKey.of_rig("other")
    assert RigKey.of_rig("bench").public.keyid == mine.public.keyid
    assert (home.parent / "keys/bench.pem").stat().st_mode & 0o777 == 0o600
    sealed = seal(RESULT, mine)
    with pytest.raises(EdgeopsError) as caught:
        rig_results.verified(home, sealed, "x")
    assert caught.value.code == "E-TRUST-SIGNATURE"
    trust(home, mine)
    assert rig_results.verified(home, sealed, "x") == RESULT
    trust(home, other, "other")
    for data in (seal(RESULT, other), sealed.replace(b"payload", b"payLoad", 1), encode(RESULT)):
        with pytest.raises(EdgeopsError):
            rig_results.verified(home, data, "x")


def test_a_passed_result_joins_the_release_and_its_report(home: Path, tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    key = RigKey.of_rig("bench")
    trust(home, key)

    def result(digest: str, verdict: Verdict) -> Path:
        board = msgspec.structs.replace(RESULT.boards[0], digest=digest, checks=(check("golden", verdict),))
        file = tmp_path / "result"
        file.write_bytes(seal(msgspec.structs.replace(RESULT, boards=(board,)), key))
        return file

    for digest, verdict in (
        ("sha256:0", Verdict.PASSED),
        (bundle.digest, Verdict.FAILED),
        (bundle.digest, Verdict.SKIPPED),
    ):
        with pytest.raises(EdgeopsError) as caught:
            assemble.create(home, [bundle.directory], version="1.0.0", rig_results=[result(digest, verdict)])
        assert caught.value.code == "E-RELEASE-GATE"
    assemble.create(home, [bundle.directory], version="1.0.0", rig_results=[result(bundle.digest, Verdict.PASSED)])
    publish(home, MODEL, "1.0.0")
    report = sources.of_release(home, MODEL, "1.0.0")
    assert [(rig.rig, rig.boards[0].board) for rig in report.rigs] == [("bench", "m4")]
    assert "Measured on rig bench" in page(report)
    assert "| bench | m4 | golden | passed |" in markdown(report)
    (home / "rigs/bench.pem").unlink()
    assert sources.of_release(home, MODEL, "1.0.0").rigs == ()


def test_nothing_checked_passes_nothing() -> None:
    assert worst([]) is Verdict.SKIPPED
    assert worst([Verdict.SKIPPED, Verdict.PASSED]) is Verdict.PASSED
    assert worst([Verdict.PASSED, Verdict.FAILED]) is Verdict.FAILED
    assert worst([Verdict.FAILED, Verdict.BROKEN]) is Verdict.BROKEN


KEY = """
import sys
from hil.evidence import RigKey
sys.stdin.readline()
print(RigKey.of_rig("bench").public_pem.replace("\\n", ""))
"""


def test_two_that_use_a_rigs_key_first_at_once_get_one_key(tmp_path: Path) -> None:
    """A daemon that starts while a person asks for the key to carry it to the fleet."""
    environment = {**os.environ, "EDGEOPS_RIG_KEYS": str(tmp_path / "keys")}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", KEY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    for one in both:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    assert len({one.communicate(timeout=120)[0] for one in both}) == 1


def test_half_a_key_of_emulated_boards_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEOPS_CACHE", str(tmp_path))
    first = emulated_key().private_bytes_raw()
    assert emulated_key().private_bytes_raw() == first
    (tmp_path / "hil/emulated-mcu.key").write_bytes(first[:7])
    assert len(emulated_key().private_bytes_raw()) == len(first)
