"""Versions of the agent as releases: wheels per profile, one version, and nothing else among them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from edgeops.contracts.deployment import AGENT_COMPONENT
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases import assemble
from edgeops.releases.bundles import open_agent_bundle, open_bundle, unpack, unpack_agent
from edgeops.releases.catalog import DRAFTS, draft_dir
from edgeops.releases.publish import publish
from edgeops.trust.founding import make_fleet

PROFILES = ("intel-nuc", "raspberry-pi-4")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_fleet(tmp_path / "home", "demo")
    return tmp_path / "home"


def wheels(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        with zipfile.ZipFile(folder / name, "w") as wheel:
            wheel.writestr("METADATA", name)
    return folder


def test_one_release_holds_the_wheels_of_each_profile(home: Path, tmp_path: Path) -> None:
    own = wheels(tmp_path / "own", "edgeops-1.2.0-py3-none-any.whl")
    more = wheels(tmp_path / "more", "edgeops-1.2.0-py3-none-any.whl", "x-1.0-2-cp311-cp311-manylinux2014_aarch64.whl")
    draft = assemble.create_agent(home, dict(zip(PROFILES, (own, more), strict=True)))
    assert (draft.model, draft.version) == (AGENT_COMPONENT, "1.2.0")
    for target, expected in zip(draft.targets, (1, 2), strict=True):
        packed = draft_dir(home, draft.model, draft.version) / f"{target.profile}.edgeops"
        bundle = unpack_agent(packed, tmp_path / target.profile, expect_digest=target.digest)
        assert (bundle.manifest.agent, bundle.manifest.profile) == ("1.2.0", target.profile)
        assert len(bundle.manifest.files) == expected
        with pytest.raises(EdgeopsError):
            unpack(packed, tmp_path / "model", expect_digest=target.digest)
    assert publish(home, AGENT_COMPONENT, "1.2.0").number == 1
    with pytest.raises(EdgeopsError) as caught:
        assemble.create_agent(home, {PROFILES[0]: own})
    assert caught.value.code == "E-RELEASE-EXISTS"


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ((), "E-BUNDLE-INVALID"),
        (("numpy-2.0.0-py3-none-any.whl",), "E-BUNDLE-INVALID"),
        (("edgeops-1.2.0-py3-none-any.whl", "edgeops-1.3.0-py3-none-any.whl"), "E-BUNDLE-INVALID"),
        (("edgeops-1.2.0-py3-none-any.whl", "notes.txt"), "E-BUNDLE-INVALID"),
        (("edgeops-1.2-py3-none-any.whl",), "E-NAME"),
        (("edgeops-1.2.0-py3-none-any.whl", "e vil-1.0-py3-none-any.whl"), "E-BUNDLE-INVALID"),
    ],
)
def test_what_is_no_version_of_the_agent_is_refused(
    home: Path, tmp_path: Path, names: tuple[str, ...], code: str
) -> None:
    with pytest.raises(EdgeopsError) as caught:
        assemble.create_agent(home, {PROFILES[0]: wheels(tmp_path / "wheels", *names)})
    assert caught.value.code == code
    assert not list((home / DRAFTS).rglob("*.edgeops"))


def test_folders_of_two_versions_and_unknown_profiles_are_refused(home: Path, tmp_path: Path) -> None:
    first = wheels(tmp_path / "first", "edgeops-1.2.0-py3-none-any.whl")
    second = wheels(tmp_path / "second", "edgeops-1.3.0-py3-none-any.whl")
    for folders, code in (
        (dict(zip(PROFILES, (first, second), strict=True)), "E-RELEASE-INVALID"),
        ({"toaster": first}, "E-PROFILE-UNKNOWN"),
        ({}, "E-RELEASE-INVALID"),
    ):
        with pytest.raises(EdgeopsError) as caught:
            assemble.create_agent(home, folders)
        assert caught.value.code == code


def test_a_changed_wheel_is_noticed(home: Path, tmp_path: Path) -> None:
    draft = assemble.create_agent(home, {PROFILES[0]: wheels(tmp_path / "w", "edgeops-1.2.0-py3-none-any.whl")})
    packed = draft_dir(home, draft.model, draft.version) / f"{PROFILES[0]}.edgeops"
    bundle = unpack_agent(packed, tmp_path / "a")
    (bundle.directory / "wheels" / "edgeops-1.2.0-py3-none-any.whl").write_bytes(b"other")
    with pytest.raises(EdgeopsError) as caught:
        open_agent_bundle(bundle.directory, expect_digest=bundle.digest)
    assert caught.value.code == "E-BUNDLE-DAMAGED"
    with pytest.raises(EdgeopsError):
        open_bundle(bundle.directory)
