"""`inspect`, `cache` and `toolchain` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeops import compiler
from edgeops.cli.cache import command as cache
from edgeops.cli.inspect import command as inspect
from edgeops.cli.toolchain import command as toolchain
from edgeops.contracts.errors import EdgeopsError


def run(command, *words: str) -> str:
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def failed(command, *words: str) -> EdgeopsError:
    error = CliRunner().invoke(command, words).exception
    assert isinstance(error, EdgeopsError)
    return error


def test_inspect_shows_bundles_files_and_handovers(shapes_handover: Path, profile, tmp_path: Path):
    one = compiler.compile(shapes_handover, [profile("onnxruntime", "fp32")], tmp_path / "out").profiles[0]
    shown = json.loads(run(inspect, str(one.packaged.directory), "--json"))
    assert shown["digest"] == one.packaged.digest
    assert shown["golden_vectors"] == 16
    assert json.loads(run(inspect, str(one.packaged.file), "--json")) == shown
    handover = json.loads(run(inspect, str(shapes_handover), "--json"))
    assert (handover["kind"], handover["model"]) == ("hand-over", "shapes")
    assert "sha256:" in run(inspect, str(one.packaged.file))


def test_inspect_refuses_what_is_damaged(shapes_handover: Path, profile, tmp_path: Path):
    one = compiler.compile(shapes_handover, [profile("onnxruntime", "fp32")], tmp_path / "out").profiles[0]
    artifact = one.packaged.directory / "model.onnx"
    data = bytearray(artifact.read_bytes())
    data[len(data) // 2] ^= 1
    artifact.write_bytes(data)
    assert failed(inspect, str(one.packaged.directory)).code == "E-BUNDLE-DAMAGED"
    assert failed(inspect, str(tmp_path / "nowhere")).code == "E-HANDOVER-MISSING"


def test_cache_shows_and_clears(own_cache: Path, shapes_handover: Path, profile, tmp_path: Path):
    compiler.compile(shapes_handover, [profile("onnxruntime", "fp32")], tmp_path / "out")
    shown = json.loads(run(cache, "show", "--json"))
    assert shown["path"] == str(own_cache / "compile")
    assert shown["products"] > 5
    assert json.loads(run(cache, "clear", "--unused-days", "1", "--json"))["products"] == 0
    assert json.loads(run(cache, "clear", "--json"))["products"] == shown["products"]
    assert json.loads(run(cache, "show", "--json"))["products"] == 0


def test_toolchain_lists_and_examines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert json.loads(run(toolchain, "list", "--json"))[0]["name"] == "onnx2tf"
    monkeypatch.setenv("EDGEOPS_CACHE", str(tmp_path / "empty"))
    assert json.loads(run(toolchain, "list", "--json"))[0]["installed"] is False
    error = failed(toolchain, "doctor")
    assert error.code == "E-TOOLCHAIN"
    assert "labgrid" not in error.what, "it is installed by its name only, and missing it is no fault"
