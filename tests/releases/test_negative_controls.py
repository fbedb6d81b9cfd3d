"""Each bad file is taken once the one check that stops it is removed: what is tested is the check."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
from bundle_making import make_bundle

from edgeops.contracts.errors import EdgeopsError
from edgeops.releases import bundles
from edgeops.releases.bundles import pack, unpack
from edgeops.releases.offline import OfflineRepository
from edgeops.trust.tuf_client import Target


def packed(folder: Path) -> Path:
    pack(make_bundle(folder / "bundle"), folder / "packed")
    return folder / "packed"


def refused(code: str, act: object) -> None:
    with pytest.raises(EdgeopsError) as caught:
        act()  # type: ignore[operator]
    assert caught.value.code == code


def test_without_the_look_at_its_entries_a_bundle_would_write_outside_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = packed(tmp_path)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("../outside", b"evil")
    refused("E-BUNDLE-INVALID", lambda: unpack(file, tmp_path / "out"))
    assert not (tmp_path / "outside").exists()
    monkeypatch.setattr(bundles, "_checked_entries", lambda archive, source: archive.infolist())
    unpack(file, tmp_path / "out" / "deep")
    assert (tmp_path / "out" / "outside").read_bytes() == b"evil"


def test_without_the_look_at_its_entries_a_small_file_would_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file, bomb, written = packed(tmp_path), 8 << 20, []
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("bomb", bytes(bomb), zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < bomb // 100

    def watched(directory: Path, **_: object) -> bundles.Bundle:
        written.append(sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()))
        raise EdgeopsError("E-BUNDLE-INVALID", "seen")

    monkeypatch.setattr(bundles, "open_bundle", watched)
    refused("E-BUNDLE-INVALID", lambda: unpack(file, tmp_path / "out"))
    assert written == []
    monkeypatch.setattr(bundles, "_checked_entries", lambda archive, source: archive.infolist())
    refused("E-BUNDLE-INVALID", lambda: unpack(file, tmp_path / "out"))
    assert written[0] > bomb


def test_changed_bytes_on_a_stick_are_taken_only_if_they_are_what_was_signed(tmp_path: Path):
    """The one fact that the check compares, as the holder of the model's key would forge it."""
    signed, changed = b"bundle", b"BUNDLE"
    honest = Target("m/1/pi.edgeops", 6, hashlib.sha256(signed).hexdigest(), None)  # type: ignore[arg-type]
    forged = honest._replace(sha256=hashlib.sha256(changed).hexdigest())
    with zipfile.ZipFile(tmp_path / "stick", "w") as archive:
        for target in (honest, forged):
            archive.writestr(f"targets/{target.remote_path}", changed)
    with OfflineRepository(tmp_path / "stick") as stick:
        refused("E-TRUST-TARGET", lambda: stick.save(honest, tmp_path / "got"))
        assert not (tmp_path / "got").exists()
        stick.save(forged, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == changed
