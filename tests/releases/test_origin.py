"""Bill of materials and provenance: part of the signed release, of exactly its files, verified when they are read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from bundle_making import make_bundle
from click.testing import CliRunner
from cyclonedx.model.bom import Bom

from edgeops.cli.release import command
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import CandidateEvidence, Evidence, Host, Metric
from edgeops.contracts.examination import HandedOver
from edgeops.contracts.provenance import PAYLOAD_TYPE, Statement
from edgeops.contracts.release import Release
from edgeops.contracts.wire import decode, encode
from edgeops.releases import assemble, catalog, materials, provenance
from edgeops.releases.publish import publish
from edgeops.releases.verify import verify
from edgeops.trust import envelopes
from edgeops.trust.founding import make_fleet
from edgeops.trust.publisher import Publisher

PROFILES = ("intel-nuc", "raspberry-pi-4")
METRIC = Metric(
    name="accuracy", source=0.95, artifact=0.9, drop=0.05, drop_low=0.0, drop_high=0.1, confidence=0.95, samples=10,
    source_interval=(0.9, 1.0), artifact_interval=(0.8, 0.95),
)  # fmt: skip


def compiled(folder: Path, *, passed: bool = True) -> list[Path]:
    """Bundles as a compile leaves them, with what it knows of the hand-over."""
    found = []
    for profile in PROFILES:
        bundle = make_bundle(folder / profile / "bundle", profile=profile)
        evidence = Evidence(
            bundle=bundle.digest, model="adder", profile=profile, calibration_samples=1, evaluation_samples=10,
            host=Host(arch="x86_64", cpu="c", cores=1, python="3.11", tools={"onnx": "1.18.0"}), created_at_s=1.8e9,
            candidates=(
                CandidateEvidence(
                    scheme="float", runtime="onnxruntime", precision="fp32", size_bytes=280, metric=METRIC,
                    passed=passed, chosen=passed, reason="first" if passed else "cosine 0.9, needs 0.99",
                ),
            ),
            handed_over=HandedOver(
                digest="sha256:" + "11" * 32, file="model.onnx", files={"model.onnx": "22" * 32, "c.npz": "33" * 32}
            ),
        )  # fmt: skip
        (folder / profile / "evidence.json").write_bytes(encode(evidence))
        found.append(bundle.directory)
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_fleet(tmp_path / "home", "demo")
    return tmp_path / "home"


@pytest.fixture
def released(home: Path, tmp_path: Path) -> Release:
    assemble.create(home, compiled(tmp_path / "build"), version="1.0.0", gated=True)
    return publish(home, "adder", "1.0.0", run="https://ci.example/42")


def refused(code: str, act: Callable[[], object]) -> EdgeopsError:
    with pytest.raises(EdgeopsError) as caught:
        act()
    assert caught.value.code == code, caught.value
    return caught.value


def bill_of(home: Path, release: Release) -> dict:
    data = catalog.bill_of_materials(Publisher(home), release)
    assert data is not None
    return json.loads(data)


def test_bill_names_bundles_model_data_runtime_and_tools(home: Path, released: Release):
    bill = bill_of(home, released)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["type"] == "machine-learning-model"
    parts = {part["bom-ref"]: part for part in bill["components"]}
    for target in released.targets:
        bundle = parts[f"bundle/{target.profile}"]
        assert bundle["hashes"] == [{"alg": "SHA-256", "content": target.sha256}]
        card = bundle["modelCard"]
        assert card["modelParameters"]["inputs"] == [{"format": "x: uint8[1, 4]"}]
        (metric,) = card["quantitativeAnalysis"]["performanceMetrics"]
        assert (metric["type"], metric["value"], metric["slice"]) == ("accuracy", "0.9", target.profile)
        assert metric["confidenceInterval"] == {"lowerBound": "0.8", "upperBound": "0.95"}
    assert parts[f"source/{'22' * 32}"]["type"] == "machine-learning-model"
    assert parts[f"source/{'33' * 32}"]["type"] == "data"
    assert parts["runtime/onnxruntime"]["purl"] == "pkg:pypi/onnxruntime"
    tools = {tool["name"]: tool["version"] for tool in bill["metadata"]["tools"]["components"]}
    assert tools["onnx"] == "1.18.0"
    assert "edgeops" in tools
    needs = {one["ref"]: set(one.get("dependsOn", [])) for one in bill["dependencies"]}
    assert needs["release"] == {f"bundle/{profile}" for profile in PROFILES}
    assert needs["bundle/intel-nuc"] == {f"source/{'22' * 32}", f"source/{'33' * 32}", "runtime/onnxruntime"}


def test_bill_is_read_by_its_library_and_comes_out_the_same_twice(home: Path, released: Release):
    bill = bill_of(home, released)
    for part in bill["components"]:
        part.pop("modelCard", None)
    read = Bom.from_json(bill)
    assert len(read.components) == len(bill["components"])
    parts = [
        materials.Part(target, catalog.manifests(Publisher(home), released)[target.profile], None)
        for target in released.targets
    ]
    assert materials.bill_of_materials(released, parts) == materials.bill_of_materials(released, parts)


def test_provenance_names_files_hand_over_tools_and_run(home: Path, released: Release):
    found = catalog.where_from(Publisher(home), released)
    assert found is not None
    subjects = {one.name: one.digest["sha256"] for one in found.subject}
    assert subjects.keys() == {*(target.path for target in released.targets), "adder/1.0.0/materials.cdx.json"}
    text = json.loads(encode(found))
    assert (text["_type"], text["predicateType"]) == (
        "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1",
    )  # fmt: skip
    asked = text["predicate"]["buildDefinition"]
    assert asked["externalParameters"]["profiles"]["intel-nuc"]["handover"] == "sha256:" + "11" * 32
    assert asked["internalParameters"]["hosts"]["intel-nuc"]["tools"] == {"onnx": "1.18.0"}
    assert {one["uri"] for one in asked["resolvedDependencies"]} == {"file:model.onnx", "file:c.npz"}
    run = text["predicate"]["runDetails"]
    assert run["builder"]["id"] == "urn:edgeops:fleet:demo"
    assert run["metadata"] == {"finishedOn": "2027-01-15T08:00:00Z", "invocationId": "https://ci.example/42"}


def test_verify_looks_at_every_byte(home: Path, released: Release):
    assert all(one.there for one in verify(home, released))
    folder = home / "repository" / "targets" / "adder" / "1.0.0"
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert refused("E-TRUST-TARGET", lambda: verify(home, catalog.release(home, "adder", "1.0.0")))
        file.write_bytes(whole)
    assert all(one.there for one in verify(home, released))


def sealed(home: Path, statement: Statement, kind: str = PAYLOAD_TYPE) -> bytes:
    return envelopes.seal(encode(statement), kind, Publisher(home).model_signer("adder"))


def test_a_statement_of_other_files_is_refused(home: Path, released: Release, tmp_path: Path):
    """Negative control of the checks on reading: signed by the right key, and yet not of this release."""
    found = catalog.where_from(Publisher(home), released)
    assert found is not None
    wrong = [
        msgspec.structs.replace(found, subject=found.subject[1:]),
        msgspec.structs.replace(found, predicate_type="https://example/other"),
        msgspec.structs.replace(
            found, subject=(msgspec.structs.replace(found.subject[0], digest={"sha256": "0" * 64}), *found.subject[1:])
        ),
    ]
    for statement in wrong:
        refused("E-TRUST-TARGET", lambda s=statement: provenance.check(s, released, {}, what="it"))
    stranger = make_fleet(tmp_path / "stranger", "other")
    stranger.delegate("adder")
    keys = Publisher(home).models()["adder"]
    forged = envelopes.seal(encode(found), PAYLOAD_TYPE, stranger.model_signer("adder"))
    refused("E-TRUST-SIGNATURE", lambda: envelopes.unseal(forged, PAYLOAD_TYPE, keys))
    as_evidence = sealed(home, found, "application/vnd.edgeops.evidence+json")
    refused("E-TRUST-SIGNATURE", lambda: envelopes.unseal(as_evidence, PAYLOAD_TYPE, keys))


def test_a_bill_of_other_bundles_or_of_a_wrong_form_is_refused(home: Path, released: Release):
    bill = bill_of(home, released)
    good = json.dumps(bill).encode()
    materials.check_form(good, what="it")
    materials.check_names(good, released, what="it")
    next(part for part in bill["components"] if part["bom-ref"] == "bundle/intel-nuc")["hashes"] = []
    refused("E-TRUST-TARGET", lambda: materials.check_names(json.dumps(bill).encode(), released, what="it"))
    other = msgspec.structs.replace(released, version="1.0.1")
    refused("E-TRUST-TARGET", lambda: materials.check_names(good, other, what="it"))
    for data in (b"\xff", b"{", b"{}", good.replace(b'"machine-learning-model"', b'"magic"')):
        refused("E-WIRE-MALFORMED", lambda d=data: materials.check_form(d, what="it"))


def test_a_release_without_both_is_told_so(home: Path, released: Release, tmp_path: Path):
    """As those are that were published before; and --no-bom."""
    assemble.create(home, compiled(tmp_path / "two"), version="1.1.0")
    bare = publish(home, "adder", "1.1.0", with_materials=False)
    assert catalog.bill_of_materials(Publisher(home), bare) is None
    found = {one.what: one.there for one in verify(home, bare)}
    assert (found["bill of materials"], found["provenance"]) == (False, True)
    assert catalog.where_from(Publisher(home), msgspec.structs.replace(released, version="0.0.1")) is None


def test_without_the_library_nothing_is_published(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assemble.create(home, compiled(tmp_path / "build"), version="1.0.0")
    monkeypatch.setitem(sys.modules, "cyclonedx.model.bom", None)
    assert "edgeops[sbom]" in refused("E-DEPENDENCY", lambda: publish(home, "adder", "1.0.0")).next_step
    assert catalog.releases(home) == []


def test_only_bundles_that_passed_make_a_gated_release(home: Path, tmp_path: Path):
    failed = compiled(tmp_path / "failed", passed=False)
    why = refused("E-RELEASE-GATE", lambda: assemble.create(home, failed, version="1.0.0", gated=True))
    assert "cosine 0.9, needs 0.99" in why.what
    (tmp_path / "failed" / "intel-nuc" / "evidence.json").unlink()
    refused("E-RELEASE-GATE", lambda: assemble.create(home, failed[:1], version="1.0.0", gated=True))
    assert catalog.drafts(home) == []
    # Not asked for, it is as it was.
    assert assemble.create(home, failed, version="1.0.0").version == "1.0.0"


def test_verified_documents_are_written_out(home: Path, released: Release, tmp_path: Path):
    words = ["verify", "--home", str(home), "adder", "1.0.0", "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert {one["what"] for one in json.loads(result.stdout)} >= {"bundle of intel-nuc", "provenance"}
    assert json.loads((tmp_path / "out" / "materials.cdx.json").read_bytes()) == bill_of(home, released)
    assert decode((tmp_path / "out" / "provenance.json").read_bytes(), Statement, what="it").subject
