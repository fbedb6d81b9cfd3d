"""What the report says of bundles and evidence, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from report_samples import piece

from edgeops.client.resources import ComponentInfo, DeviceInfo, UnitInfo
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Evidence, Source
from edgeops.contracts.wire import decode, encode
from edgeops.releases.pieces import Piece
from edgeops.report import sources
from edgeops.report.differences import compared, differences
from edgeops.report.gather import FAILED, PASSED, gather, profile_report
from edgeops.report.model import Report

replace = msgspec.structs.replace


def changed(one: Piece, **fields: object) -> Piece:
    """The piece with other values in the record of its chosen candidate."""
    assert one.evidence is not None
    records = tuple(replace(item, **fields) if item.chosen else item for item in one.evidence.candidates)
    return one._replace(evidence=replace(one.evidence, candidates=records))


def test_each_figure_says_how_it_was_obtained(tmp_path: Path):
    one = piece(tmp_path)
    figures = {figure.what: figure for figure in profile_report(one).figures}
    assert figures["latency, median"].how == "measured on device pi-1, 50 runs"
    assert figures["size"].how == "counted: the artifact's files"
    here = {figure.what: figure.how for figure in profile_report(changed(one, source=Source.MEASURED_HOST)).figures}
    assert (
        here["latency, median"]
        == "measured on the compile host, x86_64, a cpu, 2 cores, 50 runs; the device is aarch64"
    )
    assert here["memory, peak"].endswith("the whole process that only runs it")
    estimated = profile_report(changed(one, source=Source.ESTIMATED)).figures
    assert [figure.how for figure in estimated if figure.what.startswith("latency")] == ["estimated", "estimated"]


def test_a_bundle_that_failed_is_not_told_as_good(tmp_path: Path):
    one = piece(tmp_path)
    assert profile_report(one).verdict == PASSED
    assert profile_report(changed(one, chosen=False, passed=False)).verdict == FAILED
    assert profile_report(one._replace(evidence=None)).verdict == "unknown"


def test_evidence_of_before_the_report_is_read(tmp_path: Path):
    """It has no examination, no hand-over and no intervals: the report says what it can."""
    data = (Path(__file__).parents[1] / "golden" / "wire" / "evidence-before-reports.json").read_bytes()
    evidence = decode(data, Evidence, what="evidence")
    assert (evidence.examination, evidence.handed_over, evidence.arch) == (None, None, "")
    one = piece(tmp_path)
    told = gather([one._replace(evidence=replace(evidence, bundle=one.digest))], made_at_s=1.0)
    assert told.profiles[0].classes is None
    assert told.profiles[0].quality is not None
    assert told.profiles[0].quality.source.low is None


@pytest.mark.parametrize(
    "table",
    [{"support": (1, 2)}, {"pairs": ((0, 9, 1),)}, {"pairs": ((-1, 0, 1),)}, {"right": (1, 1, 1, -1)}],
)
def test_counts_that_contradict_each_other_are_refused(tmp_path: Path, table: dict[str, object]):
    one = piece(tmp_path)
    assert one.evidence is not None
    assert one.evidence.examination is not None
    seen = one.evidence.examination
    assert seen.artifact is not None
    bad = replace(one.evidence, examination=replace(seen, artifact=replace(seen.artifact, **table)))
    with pytest.raises(EdgeopsError) as caught:
        profile_report(one._replace(evidence=bad))
    assert caught.value.code == "E-WIRE-MALFORMED"


@pytest.mark.parametrize("data", [b"<svg onload='x'/>", b"\x89PNG\r\n\x1a\n" + b"x" * (1 << 20)])
def test_a_picture_that_is_no_small_png_is_left_out(tmp_path: Path, data: bytes):
    one = piece(tmp_path)
    assert one.evidence is not None
    assert one.evidence.examination is not None
    seen = one.evidence.examination
    worst = (replace(seen.worst[0], picture=data), seen.worst[0])
    told = profile_report(one._replace(evidence=replace(one.evidence, examination=replace(seen, worst=worst))))
    assert [bool(sample.picture) for sample in told.worst] == [False, True]


def test_bundles_of_two_models_are_no_report(tmp_path: Path):
    one, other = piece(tmp_path / "a"), piece(tmp_path / "b")
    with pytest.raises(EdgeopsError) as caught:
        gather([one, other._replace(manifest=replace(other.manifest, model="other"))], made_at_s=1.0)
    assert caught.value.code == "E-RELEASE-INVALID"


def test_what_clients_would_see_is_told_apart_from_what_they_would_not(tmp_path: Path):
    old = piece(tmp_path / "a")
    shape = replace(old.manifest.inputs[0], shape=(1, 8))
    new = changed(piece(tmp_path / "b", artifact=b"other"), size_bytes=1024, peak_memory_mib=90.0)
    new = new._replace(manifest=replace(new.manifest, inputs=(shape,), nan_policy="flag"))
    told = {change.what: change for change in differences("1.0.0", old, new).changes}
    assert (told["input x"].breaking, told["input x"].after) == (True, "uint8 1 × 8")
    assert (told["outputs that are not finite"].breaking, told["outputs that are not finite"].better) == (False, None)
    assert (told["size"].better, told["memory, peak"].better) == (True, False)
    assert "runtime" not in told
    same = differences("1.0.0", old, old)
    assert (same.same, same.changes) == (True, ())


def test_a_profile_that_devices_did_not_have_has_nothing_to_compare_with(tmp_path: Path):
    one, other = piece(tmp_path / "a"), piece(tmp_path / "b", profile="raspberry-pi-4")
    report = gather([one, other], made_at_s=1.0)
    now = {item.manifest.profile: item for item in (one, other)}
    found = compared(report, now, {"intel-nuc": ("1.0.0", one)})
    assert [item.differences is not None and item.differences.same for item in found.profiles] == [True, False]


def device(
    name: str, profile: str, active: str | None, *, component: str = "adder", kind: str = "model", behind: str = ""
) -> DeviceInfo:
    held = ComponentInfo(
        name=component, kind=kind, desired_release=active, active_release=active, state="confirmed", failure=None,
        requests=0, errors=0, latency_p50_ms=None, latency_p95_ms=None, endpoint=None,
    )  # fmt: skip
    unit = UnitInfo(
        unit="self", profile=behind,
        desired_generation=1, observed_generation=1, published=True, reported_at_s=1.0, stale_s=1.0,
        refused=None, components=(held,),
    )  # fmt: skip
    return DeviceInfo(
        connection=name, profile=profile, labels={}, agent_version="", online=True, enrolled_at_s=1.0,
        revoked_at_s=None,
        certificate_until_s=None, certificate_renewed_at_s=None, cloned_since_s=None, last_seen_s=None,
        rejected_messages=0, rejected_last="", units=(unit,),
    )  # fmt: skip


def test_what_most_devices_serve_counts_as_deployed():
    served = sources.served(
        "adder",
        [
            device("a", "intel-nuc", "1.0.0"), device("b", "intel-nuc", "1.1.0"), device("c", "intel-nuc", "1.1.0"),
            device("d", "intel-nuc", None), device("e", "intel-nuc", "9.0.0", component="other"),
            device("f", "raspberry-pi-4", "1.0.0"), device("g", "raspberry-pi-4", "0.2.0", kind="agent"),
            device("h", "raspberry-pi-4", "1.0.0", behind="cortex-m4"),
        ],
    )  # fmt: skip
    assert {profile: found.most_common(1) for profile, found in served.items()} == {
        "intel-nuc": [("1.1.0", 2)],
        "raspberry-pi-4": [("1.0.0", 1)],
        # A unit behind a gateway has a profile of its own.
        "cortex-m4": [("1.0.0", 1)],
    }


def test_json_form_is_read_back_whole(tmp_path: Path):
    report = gather([piece(tmp_path)], made_at_s=1.0)
    assert decode(encode(report), Report, what="report") == report
