"""A device measures every candidate, and its figures decide which one is chosen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgeops import compiler
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Latency, Source
from edgeops.contracts.measurement import Measurements
from edgeops.contracts.wire import decode, encode
from edgeops.testkit.handovers import write_shapes_handover

PROFILE = "raspberry-pi-4"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Measurements]:
    """All candidates for an Arm board, kept as bundles, and what `edgeops measure` says of them here."""
    place = tmp_path_factory.mktemp("elsewhere")
    handover = write_shapes_handover(place / "handover")
    compiler.compile(handover, [PROFILE], place / "out", elsewhere=compiler.Elsewhere(keep_candidates=True))
    bundles = sorted(str(path) for path in (place / "out" / PROFILE / "candidates").glob("*/bundle"))
    assert len(bundles) >= 4
    done = subprocess.run(
        [sys.executable, "-m", "edgeops", "measure", "--json", "--runs", "5", "--name", "pi-7", *bundles],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = decode(done.stdout, Measurements, what="answer")
    # As a board of that profile would say: its architecture, and latencies of its own.
    return handover, msgspec.structs.replace(found, arch="aarch64")


def with_latency(found: Measurements, fastest: str) -> Measurements:
    """The same figures, but one scheme takes 1 ms and all others 9."""

    def one(bundle: Any) -> Any:
        p50_ms = 1.0 if bundle.scheme == fastest else 9.0
        latency = msgspec.structs.replace(bundle.measured.latency, p50_ms=p50_ms, p95_ms=p50_ms)
        return msgspec.structs.replace(bundle, measured=msgspec.structs.replace(bundle.measured, latency=latency))

    return msgspec.structs.replace(found, bundles=tuple(map(one, found.bundles)))


@pytest.mark.parametrize("fastest", ["litert-fp16-weights", "onnxruntime-int8"])
def test_the_fastest_on_the_device_is_chosen(measured: tuple[Path, Measurements], tmp_path: Path, fastest: str) -> None:
    handover, found = measured
    assert fastest in {bundle.scheme for bundle in found.bundles}
    figures = compiler.Elsewhere(figures=with_latency(found, fastest))
    result = compiler.compile(handover, [PROFILE], tmp_path / "out", elsewhere=figures).profiles[0]
    assert (result.passed, result.chosen.scheme) == (True, fastest)
    assert (result.chosen.source, result.chosen.measured_on) == (Source.MEASURED_DEVICE, "pi-7")
    assert result.chosen.latency is not None
    assert result.chosen.latency.p50_ms == 1.0
    ratio = next(gate for gate in result.chosen.gates if gate.gate == "latency-ratio")
    assert ratio.binding


def test_without_the_device_another_is_chosen(measured: tuple[Path, Measurements], tmp_path: Path) -> None:
    """The control: on another architecture this host's latency decides nothing, and the profile's order does."""
    result = compiler.compile(measured[0], [PROFILE], tmp_path / "out").profiles[0]
    assert result.chosen.scheme == "litert-int8"
    assert result.chosen.source is Source.MEASURED_HOST


def test_what_was_not_measured_is_not_chosen(measured: tuple[Path, Measurements], tmp_path: Path) -> None:
    handover, found = measured
    fast = with_latency(found, "litert-int8")
    # Another scheme may have made the very same artifact.
    artifact = next(bundle.artifact_sha256 for bundle in fast.bundles if bundle.scheme == "litert-int8")
    fewer = msgspec.structs.replace(fast, bundles=tuple(b for b in fast.bundles if b.artifact_sha256 != artifact))
    result = compiler.compile(
        handover, [PROFILE], tmp_path / "out", elsewhere=compiler.Elsewhere(figures=fewer)
    ).profiles[0]
    assert result.chosen.scheme != "litert-int8"
    lost = next(one for one in result.evidence.candidates if one.scheme == "litert-int8")
    assert "no figures of pi-7" in lost.reason


def test_figures_of_another_architecture_or_of_other_artifacts_are_refused(
    measured: tuple[Path, Measurements], tmp_path: Path
) -> None:
    handover, found = measured

    def each(**changes: object) -> Measurements:
        return msgspec.structs.replace(
            found, bundles=tuple(msgspec.structs.replace(bundle, **changes) for bundle in found.bundles)
        )

    first = found.bundles[0].measured
    assert first is not None
    instant = msgspec.structs.replace(first, latency=Latency(p50_ms=0.0, p95_ms=0.0, runs=1))
    unproved = msgspec.structs.replace(first, golden_vectors=0)
    for figures, says in (
        (each(profile="raspberry-pi-5"), "has measured bundles of raspberry-pi-5"),
        (each(measured=instant), "impossible figures"),
        (each(measured=unproved), "impossible figures"),
        (msgspec.structs.replace(found, source=Source.ESTIMATED), "are estimated"),
        (msgspec.structs.replace(found, arch="x86_64"), "is x86_64, profile raspberry-pi-4 is aarch64"),
        (each(artifact_sha256="0" * 64), "has measured no candidate"),
    ):
        with pytest.raises(EdgeopsError, match=says) as refused:
            compiler.compile(handover, [PROFILE], tmp_path / "out", elsewhere=compiler.Elsewhere(figures=figures))
        assert refused.value.code == "E-CONFIG"
    assert not (tmp_path / "out" / PROFILE / "bundle").exists()


def test_another_profile_is_chosen_by_this_host_and_the_lock_says_what_decided(
    measured: tuple[Path, Measurements], tmp_path: Path
) -> None:
    handover, found = measured
    figures = compiler.Elsewhere(figures=with_latency(found, "litert-fp32"))
    result = compiler.compile(handover, [PROFILE, "generic-arm64"], tmp_path / "out", elsewhere=figures)
    assert [one.chosen.scheme for one in result.profiles] == ["litert-fp32", "litert-int8"]
    locked = json.loads((tmp_path / "out" / "compile.lock").read_text())["profiles"]
    assert (locked[PROFILE]["measured_on"], locked["generic-arm64"]["measured_on"]) == ("pi-7", "")


def test_by_the_command_line(measured: tuple[Path, Measurements], tmp_path: Path) -> None:
    handover, found = measured
    (tmp_path / "pi-7.json").write_bytes(encode(with_latency(found, "litert-fp32")))
    given = ["compile", str(handover), "--profile", PROFILE, "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "edgeops", *given, "--measured-on", str(tmp_path / "pi-7.json")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["profiles"][0]["scheme"] == "litert-fp32"
