"""Releases: checked drafts, publication that is all or nothing, a catalogue that believes only signatures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from bundle_making import make_bundle

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Evidence, Host
from edgeops.contracts.release import Release
from edgeops.contracts.wire import encode
from edgeops.releases import assemble, catalog
from edgeops.releases.bundles import pack, unpack
from edgeops.releases.publish import publish
from edgeops.trust.founding import make_fleet
from edgeops.trust.publisher import Publisher

PROFILES = ("intel-nuc", "raspberry-pi-4")


def refused(code: str, act: Callable[[], object]) -> EdgeopsError:
    with pytest.raises(EdgeopsError) as caught:
        act()
    assert caught.value.code == code, caught.value
    return caught.value


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_fleet(tmp_path / "home", "demo")
    return tmp_path / "home"


def bundles(folder: Path, *, model: str = "adder", artifact: bytes = b"weights", evidence: bool = True) -> list[Path]:
    """Compile's layout: a bundle per profile, its evidence beside."""
    paths = []
    for profile in PROFILES:
        bundle = make_bundle(folder / profile / "bundle", model=model, profile=profile, artifact=artifact)
        if evidence:
            (folder / profile / "evidence.json").write_bytes(encode(evidence_of(bundle.digest, profile)))
        paths.append(bundle.directory)
    return paths


def evidence_of(digest: str, profile: str) -> Evidence:
    return Evidence(
        bundle=digest,
        model="adder",
        profile=profile,
        host=Host(arch="x86_64", cpu="test", cores=1, python="3.11", tools={}),
        candidates=(),
        calibration_samples=1,
        evaluation_samples=1,
        created_at_s=1.0,
    )


def release(home: Path, folder: Path, version: str, **made: object) -> Release:
    assemble.create(home, bundles(folder / version, **made), version=version)  # type: ignore[arg-type]
    return publish(home, "adder", version)


def test_a_release_goes_from_bundles_to_signed_targets(home: Path, tmp_path: Path):
    paths = bundles(tmp_path)
    draft = assemble.create(home, paths, version="1.0.0", model="adder", notes="first")
    assert (draft.number, [target.profile for target in draft.targets]) == (0, list(PROFILES))
    assert catalog.releases(home) == []
    assert catalog.drafts(home) == [draft]
    done = publish(home, "adder", "1.0.0")
    assert (done.number, done.notes, done.targets) == (1, "first", draft.targets)
    assert catalog.releases(home) == [done] == [catalog.release(home, "adder", "1.0.0")]
    assert catalog.drafts(home) == []
    targets = Publisher(home).targets()
    for target, path in zip(done.targets, paths, strict=True):
        signed = targets[target.path]
        assert signed.custom is not None
        assert msgspec.to_builtins(signed.custom) == {
            "model": "adder", "version": "1.0.0", "number": 1, "profile": target.profile, "digest": target.digest,
        }  # fmt: skip
        blob = Publisher(home).target_file(target.path, signed)
        assert unpack(blob, tmp_path / "out" / target.profile).digest == target.digest
        assert (tmp_path / "out" / target.profile / "model.bin").read_bytes() == (path / "model.bin").read_bytes()


def test_directories_and_packed_files_give_the_same_release(home: Path, tmp_path: Path):
    paths = bundles(tmp_path)
    packed = []
    for path, profile in zip(paths, PROFILES, strict=True):
        packed.append(tmp_path / f"{profile}.edgeops")
        pack(make_bundle(tmp_path / "again" / profile, profile=profile, artifact=b"weights"), packed[-1])
        del path
    one = assemble.create(home, paths, version="1.0.0")
    other = assemble.create(home, packed, version="1.1.0")
    assert [(target.digest, target.sha256) for target in one.targets] == [
        (target.digest, target.sha256) for target in other.targets
    ]


def test_numbers_grow_per_model_and_never_repeat(home: Path, tmp_path: Path):
    assert [release(home, tmp_path, version).number for version in ("1.0.0", "0.9.0", "2.0.0")] == [1, 2, 3]
    assemble.create(home, bundles(tmp_path / "other", model="other", evidence=False), version="1.0.0")
    assert publish(home, "other", "1.0.0").number == 1
    assert [(found.model, found.version) for found in catalog.releases(home)] == [
        ("adder", "1.0.0"), ("adder", "0.9.0"), ("adder", "2.0.0"), ("other", "1.0.0"),
    ]  # fmt: skip
    assert [found.version for found in catalog.releases(home, model="other")] == ["1.0.0"]


def test_a_version_is_released_once(home: Path, tmp_path: Path):
    first = release(home, tmp_path, "1.0.0")
    for act in (
        lambda: assemble.create(home, bundles(tmp_path / "b", artifact=b"other"), version="1.0.0"),
        lambda: publish(home, "adder", "1.0.0"),
    ):
        refused("E-RELEASE-EXISTS", act)
    assert catalog.releases(home) == [first]
    assemble.create(home, bundles(tmp_path / "c"), version="1.1.0")
    refused("E-RELEASE-EXISTS", lambda: assemble.create(home, bundles(tmp_path / "d"), version="1.1.0"))


def test_unknown_drafts_releases_and_homes_are_told_apart(home: Path, tmp_path: Path):
    refused("E-RELEASE-UNKNOWN", lambda: publish(home, "adder", "1.0.0"))
    refused("E-RELEASE-UNKNOWN", lambda: catalog.release(home, "adder", "1.0.0"))
    refused("E-TRUST-KEY", lambda: catalog.releases(tmp_path))
    refused("E-TRUST-KEY", lambda: assemble.create(tmp_path / "no", bundles(tmp_path / "b"), version="1.0.0"))
    for model, version in (("../x", "1.0.0"), ("adder", "one"), ("adder", "../1.0.0")):
        refused("E-NAME", lambda model=model, version=version: publish(home, model, version))


def test_bundles_that_make_no_release_leave_no_draft(home: Path, tmp_path: Path):
    good = bundles(tmp_path / "good")
    twice = make_bundle(tmp_path / "twice", artifact=b"z").directory
    other = make_bundle(tmp_path / "other", model="other", profile="jetson").directory
    damaged = make_bundle(tmp_path / "damaged", profile="jetson").directory
    (damaged / "model.bin").write_bytes(b"changed")
    for paths, arguments, code in (
        ([], {}, "E-RELEASE-INVALID"),
        ([*good, twice], {}, "E-RELEASE-INVALID"),
        ([*good, other], {}, "E-RELEASE-INVALID"),
        (good, {"model": "other"}, "E-RELEASE-INVALID"),
        ([*good, damaged], {}, "E-BUNDLE-DAMAGED"),
        ([tmp_path / "missing"], {}, "E-BUNDLE-INVALID"),
        (good, {"version": "1"}, "E-NAME"),
    ):
        refused(code, lambda p=paths, a=arguments: assemble.create(home, p, **{"version": "1.0.0", **a}))
        assert catalog.drafts(home) == []
        assert not list((home / "releases").glob("*")) or not list((home / "releases").glob("*/*"))


def test_a_draft_that_was_changed_is_not_published(home: Path, tmp_path: Path):
    assemble.create(home, bundles(tmp_path), version="1.0.0")
    file = home / "releases" / "adder" / "1.0.0" / "intel-nuc.edgeops"
    whole = file.read_bytes()
    for damage in (whole[:-1], whole.replace(b"weights", b"weightz"), None):
        if damage is None:
            file.unlink()
        else:
            file.write_bytes(damage)
        refused("E-BUNDLE-DAMAGED", lambda: publish(home, "adder", "1.0.0"))
        assert catalog.releases(home) == []
    (home / "releases" / "adder" / "1.0.0" / "release.json").write_bytes(b"{}")
    refused("E-STATE-CORRUPT", lambda: publish(home, "adder", "1.0.0"))


def test_evidence_is_a_signed_statement_apart_from_the_bundle(home: Path, tmp_path: Path):
    """It names the digest; other measurements change no digest; and a stranger's signature is none."""
    one = release(home, tmp_path, "1.0.0")
    found = catalog.evidence(Publisher(home), "adder", "1.0.0")
    assert {profile: evidence.bundle for profile, evidence in found.items()} == {
        target.profile: target.digest for target in one.targets
    }
    without = release(home, tmp_path, "1.1.0", evidence=False)
    assert [target.digest for target in without.targets] == [target.digest for target in one.targets]
    assert catalog.evidence(Publisher(home), "adder", "1.1.0") == {}
    publisher = Publisher(home)
    publisher.rotate("model-adder")
    refused("E-TRUST-SIGNATURE", lambda: catalog.evidence(publisher, "adder", "1.0.0"))


def test_evidence_of_another_bundle_is_not_taken(home: Path, tmp_path: Path):
    """What was measured on the whole bundle says nothing of a damaged one."""
    paths = bundles(tmp_path)
    (tmp_path / "intel-nuc" / "evidence.json").write_bytes(encode(evidence_of("sha256:other", "intel-nuc")))
    assemble.create(home, paths, version="1.0.0")
    publish(home, "adder", "1.0.0")
    assert set(catalog.evidence(Publisher(home), "adder", "1.0.0")) == {"raspberry-pi-4"}
    (tmp_path / "raspberry-pi-4" / "evidence.json").write_bytes(b"broken")
    refused("E-WIRE-MALFORMED", lambda: assemble.create(home, paths, version="1.1.0"))


def test_the_catalogue_believes_signed_targets_only(home: Path, tmp_path: Path):
    """A description that was changed on disk is refused, not listed."""
    release(home, tmp_path, "1.0.0")
    (path,) = (home / "repository" / "targets" / "adder" / "1.0.0").glob("*.release.json")
    path.write_bytes(path.read_bytes().replace(b'"number":1', b'"number":9'))
    refused("E-TRUST-TARGET", lambda: catalog.releases(home))
    path.unlink()
    refused("E-TRUST-TARGET", lambda: catalog.releases(home))


def test_a_release_by_a_key_that_may_not_publish_the_model_is_not_published(home: Path, tmp_path: Path):
    release(home, tmp_path, "1.0.0")
    assemble.create(home, bundles(tmp_path / "two"), version="1.1.0")
    for name in ("model-adder.pem", "model-adder.pub"):
        (home / "keys" / name).unlink()
    refused("E-TRUST-KEY", lambda: publish(home, "adder", "1.1.0"))
    assert [found.version for found in catalog.releases(home)] == ["1.0.0"]
    assert [found.version for found in catalog.drafts(home)] == ["1.1.0"]


def test_a_cut_publication_goes_on_where_it_was(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each durable call fails in turn: the catalogue is the old or the new one, and publishing again succeeds."""
    first = release(home, tmp_path, "1.0.0")
    draft = assemble.create(home, bundles(tmp_path / "two", artifact=b"two"), version="1.1.0")
    shutil.copytree(home, tmp_path / "template")
    calls, fail_at = 0, 0

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object, **options: object) -> None:
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise EdgeopsError("E-DISK-FULL", "no space")
            real(*args, **options)

        return call

    for name in ("write_file", "rename", "remove_tree"):
        monkeypatch.setattr(durable, name, counted(getattr(durable, name)))
    publish(home, "adder", "1.1.0")
    total = calls
    assert total > 8
    for k in range(1, total + 1):
        again = tmp_path / f"home-{k}"
        shutil.copytree(tmp_path / "template", again)
        calls, fail_at = 0, k
        refused("E-DISK-FULL", lambda again=again: publish(again, "adder", "1.1.0"))
        fail_at = 0
        assert [found.version for found in catalog.releases(again)] in (["1.0.0"], ["1.0.0", "1.1.0"])
        done = publish(again, "adder", "1.1.0")
        assert (done.number, done.targets) == (2, draft.targets)
        assert catalog.releases(again) == [first, done]
        assert catalog.drafts(again) == []


def test_two_publishers_at_once_get_two_numbers(home: Path, tmp_path: Path):
    release(home, tmp_path, "1.0.0")
    versions = [f"1.{n}.0" for n in range(1, 5)]
    for version in versions:
        assemble.create(home, bundles(tmp_path / version, artifact=version.encode()), version=version)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda version: publish(home, "adder", version), versions))
    assert sorted(found.number for found in done) == [2, 3, 4, 5]


def test_a_leftover_of_an_interrupted_create_is_no_draft(home: Path, tmp_path: Path):
    assemble.create(home, bundles(tmp_path), version="1.0.0")
    shutil.copytree(home / "releases" / "adder", home / "releases" / ".draft-x" / "draft")
    assert len(catalog.drafts(home)) == 1
