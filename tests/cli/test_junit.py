"""`--junit`: gates as test cases, read by another library; one that fails says its figures."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from junitparser import Error, Failure, JUnitXml, Skipped, TestCase

from edgeops.cli.compile import command as compile_command
from edgeops.cli.junit import junit_file
from edgeops.cli.release import command as release_command
from edgeops.client.rollout_resources import FigureInfo, RolloutInfo
from edgeops.contracts.errors import EdgeopsError
from edgeops.report.cases import of_rollout
from edgeops.report.junit import Case, Outcome, document
from edgeops.testkit.handovers import write_shapes_handover
from edgeops.trust.founding import make_fleet

PROFILE = """\
name = "small"
title = "for tests"
[cpu]
model = "any"
arch = "aarch64"
cores = 1
clock_mhz = 1
source = "none"
[memory]
ram_mib = 1024
source = "none"
[[runtimes]]
name = "onnxruntime"
runtime_min = "1.18"
onnx_ir_max = 9
onnx_opset_max = 17
precisions = ["fp32"]
source = "none"
"""


def read(path: Path) -> dict[str, TestCase]:
    return {f"{case.classname}/{case.name}": case for suite in JUnitXml.fromfile(str(path)) for case in suite}


def result(case: TestCase) -> object:
    return case.result[0] if case.result else None


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("junit")
    write_shapes_handover(folder / "shapes")
    (folder / "small.toml").write_text(PROFILE)
    return folder


def compiled(shapes: Path, out: Path, *more: str) -> tuple[BaseException | None, dict[str, TestCase]]:
    words = [str(shapes / "shapes"), "--profile", str(shapes / "small.toml"), "--out", str(out / "build")]
    done = CliRunner().invoke(compile_command, [*words, "--junit", str(out / "new" / "c.xml"), *more])
    return done.exception, read(out / "new" / "c.xml")


def test_compile_says_every_gate(shapes: Path, tmp_path: Path):
    error, cases = compiled(shapes, tmp_path)
    assert error is None
    assert all(result(case) is None or isinstance(result(case), Skipped) for case in cases.values())
    assert cases["compile.small/cosine:shape"].system_out.startswith("cosine:shape is 1, the limit is 0.9999")
    assert "compile.small/bundle" in cases


def test_a_gate_that_fails_is_a_failing_case_with_its_figures(shapes: Path, tmp_path: Path):
    text = (shapes / "shapes" / "handover.toml").read_text()
    other = tmp_path / "shapes"
    write_shapes_handover(other)
    (other / "handover.toml").write_text(text + "\n[budgets.small]\nsize_mib = 0.001\n")
    (tmp_path / "small.toml").write_text(PROFILE)
    error, cases = compiled(tmp_path, tmp_path)
    assert isinstance(error, EdgeopsError)
    assert error.code == "E-COMPILE-GATE"
    failed = result(cases["compile.small/size-mib"])
    assert isinstance(failed, Failure)
    assert "size-mib is 0.0" in failed.message
    assert "the limit is 0.001" in failed.message
    assert "misses by" in failed.text
    assert isinstance(result(cases["compile.small/bundle"]), Failure)
    assert result(cases["compile.small/cosine:shape"]) is None
    # The rejected bundle makes no gated release, and that reads as a failing case too.
    make_fleet(tmp_path / "home", "demo")
    words = ["create", "--home", str(tmp_path / "home"), "--version", "1.0.0", "--gated", "--junit"]
    rejected = str(tmp_path / "build" / "small" / "rejected" / "bundle")
    done = CliRunner().invoke(release_command, [*words, str(tmp_path / "r.xml"), rejected])
    assert isinstance(done.exception, EdgeopsError)
    assert done.exception.code == "E-RELEASE-GATE"
    assert isinstance(result(read(tmp_path / "r.xml")["release.small/size-mib"]), Failure)


def test_what_could_not_be_carried_out_is_an_error_not_a_failure(shapes: Path, tmp_path: Path):
    words = [str(tmp_path), "--profile", str(shapes / "small.toml"), "--junit", str(tmp_path / "c.xml")]
    assert CliRunner().invoke(compile_command, words).exit_code != 0
    (case,) = read(tmp_path / "c.xml").values()
    error = result(case)
    assert isinstance(error, Error)
    assert (case.name, error.type) == ("E-HANDOVER-MISSING", "E-HANDOVER-MISSING")


def test_a_release_says_what_was_verified(shapes: Path, tmp_path: Path):
    compiled(shapes, tmp_path)
    home = ["--home", str(tmp_path / "home")]
    make_fleet(tmp_path / "home", "demo")
    create = ["create", *home, "--version", "1.0.0", "--gated", str(tmp_path / "build" / "small" / "bundle")]
    for words in (create, ["publish", *home, "shapes", "1.0.0"], ["verify", *home, "shapes", "1.0.0"]):
        done = CliRunner().invoke(release_command, [*words, "--junit", str(tmp_path / f"{words[0]}.xml")])
        assert done.exit_code == 0, done.output
    assert "release.small/cosine:shape" in read(tmp_path / "create.xml")
    for name in ("publish", "verify"):
        cases = read(tmp_path / f"{name}.xml")
        assert {case.name for case in cases.values()} == {
            "bundle of small", "evidence of small", "bill of materials", "provenance",
        }  # fmt: skip
        assert all(result(case) is None for case in cases.values())


FIGURE = FigureInfo(group="10%", profile="small", gate="error-rate", value=0.2, limit=0.01, reported=40, holds=False,
                    lower=0.1, upper=0.3)  # fmt: skip


def rollout(state: str, *figures: FigureInfo) -> RolloutInfo:
    return RolloutInfo(
        id=1, model="m", version="1.0.0", state=state, reason="why", gates=None, groups=(), figures=figures,
        stopped_profiles={}, created_at_s=1.0, created_by="x", started_at_s=None, ended_at_s=None,
    )  # fmt: skip


def test_a_rollouts_gates_are_cases_with_their_figures():
    told = of_rollout(rollout("stopped", FIGURE, msgspec.structs.replace(FIGURE, gate="drift", holds=None)))
    assert [(case.name, case.outcome) for case in told] == [
        ("error-rate", Outcome.FAILED), ("drift", Outcome.SKIPPED), ("rollout", Outcome.FAILED),
    ]  # fmt: skip
    assert told[0].message == "error-rate is 0.2, surely between 0.1 and 0.3, the limit is 0.01, over 40"
    ends = {state: of_rollout(rollout(state))[-1].outcome for state in ("succeeded", "paused", "running", "reverted")}
    assert ends == {
        "succeeded": Outcome.PASSED, "paused": Outcome.FAILED, "running": Outcome.SKIPPED, "reverted": Outcome.FAILED,
    }  # fmt: skip


def test_no_text_breaks_the_document(tmp_path: Path):
    """What XML cannot hold is replaced, what it would take for markup is escaped."""
    nasty = "<a b='\"'>&\x00\x1b\ud800\uffff ]]> é\u2028"
    (tmp_path / "x.xml").write_bytes(document([Case(nasty, nasty, Outcome.FAILED, nasty, nasty, nasty)], nasty))
    (case,) = read(tmp_path / "x.xml").values()
    failed = result(case)
    assert isinstance(failed, Failure)
    assert failed.message == "<a b='\"'>&\ufffd\ufffd\ufffd\ufffd ]]> é\u2028"


def test_counts_are_those_of_the_cases(tmp_path: Path):
    cases = [Case("a", str(at), outcome) for at, outcome in enumerate((*Outcome, Outcome.FAILED))]
    (tmp_path / "x.xml").write_bytes(document(cases, "edgeops"))
    whole = JUnitXml.fromfile(str(tmp_path / "x.xml"))
    assert (whole.tests, whole.failures, whole.errors, whole.skipped) == (5, 2, 1, 1)


def test_the_file_is_written_whichever_way_a_command_ends(tmp_path: Path):
    with pytest.raises(EdgeopsError), junit_file(tmp_path / "a.xml", "compile"):
        raise EdgeopsError("E-COMPILE-LOCK", "differs")
    assert isinstance(result(read(tmp_path / "a.xml")["compile/E-COMPILE-LOCK"]), Failure)
    with junit_file(None, "compile"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.xml"]
