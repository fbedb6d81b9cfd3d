"""`edgeops report` on what a real compile wrote, and on releases that are signed."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeops.cli.report import command
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Evidence
from edgeops.contracts.wire import decode
from edgeops.releases import assemble
from edgeops.releases.publish import publish
from edgeops.trust.founding import make_fleet


def run(*words: str) -> str:
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def failed(*words: str) -> EdgeopsError:
    error = CliRunner().invoke(command, words).exception
    assert isinstance(error, EdgeopsError), error
    return error


def told(*words: str) -> dict:
    return json.loads(run(*words, "--json"))


@pytest.fixture
def home(compiled: Path, tmp_path: Path) -> Path:
    """A fleet with two releases of the same bundles for one profile, and the second for one more."""
    make_fleet(tmp_path / "home", "demo")
    for version, profiles in (("1.0.0", ["small"]), ("1.1.0", ["small", "tiny"])):
        bundles = [compiled / profile / "bundle" for profile in profiles]
        assemble.create(tmp_path / "home", bundles, version=version)
        publish(tmp_path / "home", "shapes", version)
    return tmp_path / "home"


def test_compile_writes_all_that_the_report_needs(compiled: Path):
    report = told(str(compiled))
    assert [one["profile"] for one in report["profiles"]] == ["small", "tiny"]
    for one in report["profiles"]:
        assert one["verdict"] == "passed"
        assert one["quality"]["samples"] == 400
        artifact = one["quality"]["artifact"]
        assert artifact["low"] < artifact["value"] < artifact["high"]
        assert sum(map(sum, one["classes"]["matrix"]["counts"])) == 400
        assert one["classes"]["matrix"]["labels"] == ["circle", "square", "cross", "dots"]
        assert {row["step"] for row in one["apart"]} >= {"conversion", "both"}
        assert {figure["what"] for figure in one["figures"]} >= {"latency, median", "size", "memory, peak"}
        assert all(figure["how"] for figure in one["figures"])
        assert one["worst"]
        assert base64.b64decode(one["worst"][0]["picture"]).startswith(b"\x89PNG")
        assert len(one["drift"]) == 3
        assert sum(row["chosen"] for row in one["candidates"]) == 1


def test_counts_agree_with_the_metric(compiled: Path):
    evidence = decode((compiled / "small" / "evidence.json").read_bytes(), Evidence, what="evidence")
    seen, chosen = evidence.examination, next(one for one in evidence.candidates if one.chosen)
    assert seen is not None
    assert seen.source is not None
    assert seen.artifact is not None
    assert chosen.metric is not None
    assert sum(seen.artifact.right) / 400 == pytest.approx(chosen.metric.artifact)
    assert sum(seen.source.right) / 400 == pytest.approx(chosen.metric.source)


def test_all_three_forms_are_written_by_their_suffix(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run(str(compiled / "small" / "bundle"))
    assert (tmp_path / "shapes.html").read_text().startswith("<!doctype html>")
    run(str(next((compiled / "small").glob("*.edgeops"))), "--out", "a.md", "--out", "a.json")
    assert (tmp_path / "a.md").read_text().startswith("# Model report: shapes\n")
    assert json.loads((tmp_path / "a.json").read_text())["model"] == "shapes"
    assert failed(str(compiled), "--out", "a.pdf").code == "E-CONFIG"


def test_a_release_is_reported_from_its_signed_evidence(home: Path):
    report = told("shapes", "1.1.0", "--home", str(home))
    assert report["version"] == "1.1.0"
    small, tiny = report["profiles"]
    assert small["verdict"] == tiny["verdict"] == "passed"
    assert small["differences"]["same"]
    assert small["differences"]["against"] == "release 1.0.0, published before it"
    assert tiny["differences"]["against"] == "nothing for this profile"
    assert {row["what"]: row["value"] for row in report["lineage"]}["release"] == "shapes 1.1.0, number 2"
    assert told("shapes", "1.0.0", "--home", str(home))["profiles"][0]["differences"] is None
    assert failed("shapes", "2.0.0", "--home", str(home)).code == "E-RELEASE-UNKNOWN"


def test_a_bundle_is_compared_with_a_release_before_it_is_one(compiled: Path, home: Path):
    report = told(str(compiled), "--home", str(home), "--against", "1.0.0")
    assert [one["differences"]["same"] for one in report["profiles"]] == [True, False]
    # Nobody is there to be asked.
    assert failed(str(compiled), "--home", str(home), "--against", "deployed").code == "E-CONFIG"


def test_evidence_of_another_bundle_is_not_believed(compiled: Path, tmp_path: Path):
    shutil.copytree(compiled / "small", tmp_path / "small")
    evidence = json.loads((tmp_path / "small" / "evidence.json").read_bytes())
    evidence["bundle"] = "sha256:" + "0" * 64
    (tmp_path / "small" / "evidence.json").write_text(json.dumps(evidence))
    assert told(str(tmp_path / "small"))["profiles"][0]["verdict"] == "unknown"
    (tmp_path / "small" / "evidence.json").write_text("{}")
    assert failed(str(tmp_path / "small")).code == "E-WIRE-MALFORMED"
    assert failed(str(tmp_path)).code != ""


def test_what_is_no_bundle_is_refused(tmp_path: Path):
    assert failed(str(tmp_path)).code == "E-BUNDLE-INVALID"
    assert failed(str(tmp_path / "nowhere")).code == "E-BUNDLE-INVALID"
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert failed(str(tmp_path / "file")).code == "E-BUNDLE-DAMAGED"
