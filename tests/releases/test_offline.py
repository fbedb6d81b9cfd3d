"""A release on a stick: verified the same way as over the network, with the same anti-rollback."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_making import make_bundle
from fleet_device import FolderFetcher
from raw_repository import URL

from edgeops.contracts.errors import EdgeopsError
from edgeops.releases import assemble
from edgeops.releases.bundles import unpack
from edgeops.releases.export import export
from edgeops.releases.offline import INDEX_NAME, OfflineRepository
from edgeops.releases.publish import publish
from edgeops.trust.founding import make_fleet
from edgeops.trust.publisher import Publisher
from edgeops.trust.time import Clock
from edgeops.trust.tuf_client import TufClient

NOW_S = 1_900_000_000.0
PROFILES = ("intel-nuc", "raspberry-pi-4")


def refused(code: str, act: Callable[[], object]) -> None:
    with pytest.raises(EdgeopsError) as caught:
        act()
    assert caught.value.code == code, caught.value


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_fleet(tmp_path / "home", "demo", now=lambda: NOW_S)
    release(tmp_path / "home", tmp_path, "1.0.0")
    return tmp_path / "home"


def release(home: Path, folder: Path, version: str) -> None:
    paths = [
        make_bundle(folder / version / profile, profile=profile, artifact=version.encode() * 50).directory
        for profile in PROFILES
    ]
    assemble.create(home, paths, version=version)
    publish(home, "adder", version, now=lambda: NOW_S)


def client(home: Path, state: Path, stick: OfflineRepository, *, now_s: float = NOW_S) -> TufClient:
    """A device that was enrolled with the first root."""
    state.mkdir(exist_ok=True)
    found = TufClient(state, stick.metadata_url, stick, Clock(state / "floor", system=lambda: now_s, build_s=0))
    root = (home / "repository" / "metadata" / "1.root.json").read_bytes()
    found.bootstrap(root, hashlib.sha256(root).hexdigest())
    return found


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """The same archive with entries changed or left out."""
    changed = path.with_suffix(".changed")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for info in old.infolist():
            if (data := change(info.filename, old.read(info))) is not None:
                new.writestr(info, data)
    return changed


def test_a_device_installs_from_a_stick_without_network(home: Path, tmp_path: Path):
    made = export(home, "adder", "1.0.0", tmp_path / "usb.edgeops", profiles=["intel-nuc"])
    assert made.length == made.path.stat().st_size
    assert made.valid_until_s == NOW_S + 7 * 86400
    shutil.move(home / "repository" / "targets", tmp_path / "away")
    with OfflineRepository(made.path) as stick:
        assert stick.index.targets == ("adder/1.0.0/intel-nuc.edgeops",)
        device = client(home, tmp_path / "device", stick)
        device.refresh()
        target = device.target(stick.index.targets[0])
        stick.save(target, tmp_path / "got.edgeops")
    assert unpack(tmp_path / "got.edgeops", tmp_path / "out", expect_digest=target.custom.digest)


def test_the_same_release_gives_the_same_file(home: Path, tmp_path: Path):
    for name in ("a", "b"):
        export(home, "adder", "1.0.0", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_rotated_roots_are_on_the_stick(home: Path, tmp_path: Path):
    """A device from long ago walks from its first root to the newest, offline too."""
    for role in ("root", "timestamp", "model-adder"):
        Publisher(home, now=lambda: NOW_S).rotate(role)
    made = export(home, "adder", "1.0.0", tmp_path / "usb")
    with OfflineRepository(made.path) as stick:
        device = client(home, tmp_path / "device", stick)
        device.refresh()
        assert device.target("adder/1.0.0/intel-nuc.edgeops")


def test_an_older_stick_rolls_nothing_back(home: Path, tmp_path: Path):
    old = export(home, "adder", "1.0.0", tmp_path / "old").path
    release(home, tmp_path, "1.1.0")
    new = export(home, "adder", "1.1.0", tmp_path / "new").path
    with OfflineRepository(new) as stick:
        client(home, tmp_path / "device", stick).refresh()
    with OfflineRepository(old) as stick:
        refused("E-TRUST-METADATA", client(home, tmp_path / "device", stick).refresh)
        # Control: a device that has seen nothing newer takes it.
        client(home, tmp_path / "fresh", stick).refresh()


def test_a_stick_is_worth_nothing_after_its_time(home: Path, tmp_path: Path):
    made = export(home, "adder", "1.0.0", tmp_path / "usb")
    with OfflineRepository(made.path) as stick:
        refused("E-TRUST-EXPIRED", client(home, tmp_path / "late", stick, now_s=made.valid_until_s + 1).refresh)
        client(home, tmp_path / "in-time", stick, now_s=made.valid_until_s - 1).refresh()


def test_a_changed_bundle_on_a_stick_is_refused(home: Path, tmp_path: Path):
    made = export(home, "adder", "1.0.0", tmp_path / "usb").path
    changes: list[tuple[Callable[[str, bytes], bytes | None], str]] = [
        (lambda name, data: data[:-1] + b"x" if name.startswith("targets/") else data, "E-TRUST-TARGET"),
        (lambda name, data: data[:-1] if name.startswith("targets/") else data, "E-TRUST-TARGET"),
        (lambda name, data: None if name.startswith("targets/") else data, "E-TRUST-TARGET"),
        (lambda name, data: data + b"x" * 99 if name.startswith("targets/") else data, "E-RELEASE-INVALID"),
    ]
    for index, (change, code) in enumerate(changes):
        with OfflineRepository(rewritten(made, change)) as stick:
            device = client(home, tmp_path / f"device-{index}", stick)
            device.refresh()
            target = device.target("adder/1.0.0/intel-nuc.edgeops")
            refused(code, lambda stick=stick, target=target: stick.save(target, tmp_path / "got"))
    assert not (tmp_path / "got").exists()
    assert not (tmp_path / ".got.tmp").exists()


def test_another_fleets_stick_is_refused(home: Path, tmp_path: Path):
    make_fleet(tmp_path / "other", "demo", now=lambda: NOW_S)
    release(tmp_path / "other", tmp_path / "x", "1.0.0")
    made = export(tmp_path / "other", "adder", "1.0.0", tmp_path / "usb")
    with OfflineRepository(made.path) as stick:
        refused("E-TRUST-METADATA", client(home, tmp_path / "device", stick).refresh)


def test_the_index_is_only_a_hint(home: Path, tmp_path: Path):
    """A lie in it leads to nothing that was not signed; without it the file says that it is none."""
    made = export(home, "adder", "1.0.0", tmp_path / "usb").path
    lying = rewritten(made, lambda name, data: data.replace(b"1.0.0", b"9.9.9") if name == INDEX_NAME else data)
    with OfflineRepository(lying) as stick:
        device = client(home, tmp_path / "device", stick)
        device.refresh()
        refused("E-TRUST-TARGET", lambda: device.target(stick.index.targets[0]))
    for change in (lambda data: None, lambda data: b"[]"):
        bad = rewritten(made, lambda name, data, change=change: change(data) if name == INDEX_NAME else data)
        with OfflineRepository(bad) as stick:
            refused("E-RELEASE-INVALID", lambda stick=stick: stick.index)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "targets/../../x", "metadata/a/b", "targets/a/b", "x"])
def test_entries_that_no_export_has_are_refused(home: Path, tmp_path: Path, name: str):
    made = export(home, "adder", "1.0.0", tmp_path / "usb").path
    with zipfile.ZipFile(made, "a") as archive:
        archive.writestr(name, b"x")
    refused("E-RELEASE-INVALID", lambda: OfflineRepository(made))


def test_what_is_no_export_is_refused(home: Path, tmp_path: Path):
    (tmp_path / "empty").write_bytes(b"")
    refused("E-BUNDLE-DAMAGED", lambda: OfflineRepository(tmp_path / "empty"))
    refused("E-BUNDLE-INVALID", lambda: OfflineRepository(tmp_path / "missing"))
    refused("E-RELEASE-UNKNOWN", lambda: export(home, "adder", "9.0.0", tmp_path / "usb"))
    refused("E-RELEASE-UNKNOWN", lambda: export(home, "adder", "1.0.0", tmp_path / "usb", profiles=["toaster"]))
    assert not (tmp_path / "usb").exists()


def live(home: Path, state: Path, *, now_s: float) -> TufClient:
    """A device that reads the served repository."""
    state.mkdir(exist_ok=True)
    found = TufClient(
        state, URL, FolderFetcher(home / "repository"), Clock(state / "floor", system=lambda: now_s, build_s=0)
    )
    found.bootstrap((home / "repository" / "metadata" / "1.root.json").read_bytes(), Publisher(home).root_sha256())
    return found


def test_an_export_may_hold_for_months_while_the_served_metadata_holds_for_a_week(home: Path, tmp_path: Path):
    made = export(home, "adder", "1.0.0", tmp_path / "usb", valid_for_s=90 * 86400.0, now=lambda: NOW_S)
    assert made.valid_until_s == NOW_S + 90 * 86400
    in_time_s, late_s = made.valid_until_s - 1, made.valid_until_s + 1
    with OfflineRepository(made.path) as stick:
        device = client(home, tmp_path / "device", stick, now_s=in_time_s)
        device.refresh()
        assert device.target("adder/1.0.0/intel-nuc.edgeops")
        refused("E-TRUST-EXPIRED", client(home, tmp_path / "late", stick, now_s=late_s).refresh)
        # What is served is newer and holds for a week: a freeze still shows, and the stick is no way back.
        online = live(home, tmp_path / "online", now_s=NOW_S)
        online.refresh()
        assert online.expires_s() == NOW_S + 7 * 86400
        refused("E-TRUST-METADATA", client(home, tmp_path / "online", stick).refresh)
    # A device that took the stick goes on with the served repository, when it is renewed too.
    live(home, tmp_path / "device", now_s=NOW_S).refresh()
    Publisher(home, now=lambda: in_time_s).renew()
    live(home, tmp_path / "device", now_s=in_time_s).refresh()


def test_an_export_never_holds_for_longer_than_what_offline_keys_signed(home: Path, tmp_path: Path):
    made = export(home, "adder", "1.0.0", tmp_path / "usb", valid_for_s=3650 * 86400.0, now=lambda: NOW_S)
    assert made.valid_until_s == NOW_S + 365 * 86400
    with OfflineRepository(made.path) as stick:
        refused("E-TRUST-EXPIRED", client(home, tmp_path / "late", stick, now_s=made.valid_until_s).refresh)


def test_a_failed_write_of_an_export_leaves_a_repository_that_goes_on(home: Path, tmp_path: Path):
    with pytest.raises(EdgeopsError):
        export(home, "adder", "1.0.0", tmp_path / "no" / "usb", valid_for_s=90 * 86400.0, now=lambda: NOW_S)
    release(home, tmp_path, "1.1.0")
    live(home, tmp_path / "device", now_s=NOW_S).refresh()
