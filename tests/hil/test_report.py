"""What a run's result looks like: to CI as JUnit XML, to people as a page, to others as a signed statement."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import encode
from hil.evidence import RigKey, seal, unseal
from hil.report import to_html, to_junit
from hil.results import BoardResult, CheckResult, RigResult, Verdict, worst

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
    suite = ET.fromstring(to_junit(RESULT)).find("testsuite")
    assert suite is not None
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    failure = suite.find("testcase[@name='golden']/failure")
    assert failure is not None
    assert failure.get("type") == "E-SELFTEST-GOLDEN"
    assert failure.text == "p95_ms: 1.25"
    assert suite.find("testcase[@name='update']/error") is not None


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


def test_a_result_is_believed_from_a_trusted_rig_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEOPS_RIG_KEYS", str(tmp_path / "keys"))
    mine, other = RigKey.of_rig("bench"), RigKey.of_rig("other")
    assert RigKey.of_rig("bench").public.keyid == mine.public.keyid
    assert (tmp_path / "keys/bench.pem").stat().st_mode & 0o777 == 0o600
    sealed = seal(RESULT, mine)
    assert unseal(sealed, {mine.public.keyid: mine.public}) == RESULT
    for data, key in ((sealed, other), (sealed.replace(b"payload", b"payLoad", 1), mine), (encode(RESULT), mine)):
        with pytest.raises(EdgeopsError):
            unseal(data, {key.public.keyid: key.public})


def test_nothing_checked_passes_nothing() -> None:
    assert worst([]) is Verdict.SKIPPED
    assert worst([Verdict.SKIPPED, Verdict.PASSED]) is Verdict.PASSED
    assert worst([Verdict.PASSED, Verdict.FAILED]) is Verdict.FAILED
    assert worst([Verdict.FAILED, Verdict.BROKEN]) is Verdict.BROKEN
