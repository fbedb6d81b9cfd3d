"""Bundles as files: the same bytes each time, every damage noticed, and nothing written where it does not belong."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from bundle_making import make_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import MAX_FILES, Bundle, open_bundle, pack, read_manifest, seal, unpack


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture
def packed(bundle: Bundle, tmp_path: Path) -> Path:
    pack(bundle, tmp_path / "b.edgeops")
    return tmp_path / "b.edgeops"


def refused(code: str, act: Callable[[], object]) -> EdgeopsError:
    with pytest.raises(EdgeopsError) as caught:
        act()
    assert caught.value.code == code, caught.value
    return caught.value


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_comes_out_of_its_file_as_it_went_in(bundle: Bundle, packed: Path, tmp_path: Path):
    again = unpack(packed, tmp_path / "out", expect_digest=bundle.digest)
    assert (again.digest, again.manifest) == (bundle.digest, bundle.manifest)
    assert contents(tmp_path / "out") == contents(bundle.directory)


def test_the_same_bundle_gives_the_same_bytes(bundle: Bundle, packed: Path, tmp_path: Path):
    """Whenever it is packed, whatever its files' dates, modes and order on disk."""
    copy = tmp_path / "copy"
    for path in sorted(bundle.directory.rglob("*"), reverse=True):
        if path.is_file():
            target = copy / path.relative_to(bundle.directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            os.utime(target, (1, 1))
            target.chmod(0o600)
    pack(open_bundle(copy), tmp_path / "copy.edgeops")
    assert (tmp_path / "copy.edgeops").read_bytes() == packed.read_bytes()


def test_sealing_again_gives_the_same_digest(bundle: Bundle, tmp_path: Path):
    other = make_bundle(tmp_path / "again")
    assert other.digest == bundle.digest
    assert make_bundle(tmp_path / "changed", artifact=b"other").digest != bundle.digest


def test_every_changed_byte_of_a_file_is_noticed(bundle: Bundle, tmp_path: Path):
    folder = tmp_path / "b"
    for name in (*bundle.manifest.files, "manifest.json"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(bundle.directory, folder)
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        refused("E-BUNDLE-DAMAGED", lambda: open_bundle(folder, expect_digest=bundle.digest))


def test_missing_extra_and_linked_files_are_refused(bundle: Bundle, tmp_path: Path):
    def damaged(code: str, change: Callable[[Path], object]) -> None:
        folder = tmp_path / "b"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(bundle.directory, folder)
        change(folder)
        refused(code, lambda: open_bundle(folder))

    damaged("E-BUNDLE-DAMAGED", lambda folder: (folder / "model.bin").unlink())
    damaged("E-BUNDLE-DAMAGED", lambda folder: (folder / "manifest.json").unlink())
    damaged("E-BUNDLE-DAMAGED", lambda folder: (folder / "extra").write_bytes(b""))
    damaged("E-BUNDLE-INVALID", lambda folder: (folder / "link").symlink_to("/etc/passwd"))
    damaged("E-BUNDLE-INVALID", lambda folder: (folder / "folder-link").symlink_to("golden"))
    damaged("E-BUNDLE-INVALID", lambda folder: os.mkfifo(folder / "pipe"))

    def swap(folder: Path) -> None:
        (folder / "model.bin").rename(tmp_path / "elsewhere")
        (folder / "model.bin").symlink_to(tmp_path / "elsewhere")

    damaged("E-BUNDLE-INVALID", swap)


def test_a_bundle_with_another_digest_than_expected_is_refused(bundle: Bundle, packed: Path, tmp_path: Path):
    refused("E-BUNDLE-DAMAGED", lambda: unpack(packed, tmp_path / "out", expect_digest="sha256:" + "0" * 64))
    assert not (tmp_path / "out").exists()


# Archives that nobody honest makes


def archive(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED, **attributes: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as made:
        for name, data in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            made.writestr(info, data)
    return out.getvalue()


def entries_of(bundle: Bundle) -> list[tuple[str, bytes]]:
    return sorted(contents(bundle.directory).items(), key=lambda entry: entry[0] != "manifest.json")


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "a/../../x", "..", ".", "a//b", "a\\b", "C:x", ".hidden", "a/.hidden", "ä", "a b",
     "x" * 97, "a/b/c/d/e", "dir/", ""],
)  # fmt: skip
def test_a_path_that_leaves_the_folder_or_hides_is_refused(bundle: Bundle, tmp_path: Path, name: str):
    path = tmp_path / "in" / "evil.edgeops"
    path.parent.mkdir()
    path.write_bytes(archive([*entries_of(bundle), (name, b"x")]))
    before = contents(tmp_path)
    refused("E-BUNDLE-INVALID", lambda: unpack(path, tmp_path / "in" / "out"))
    assert contents(tmp_path) == before


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda entries: archive([*entries, entries[1]]), "twice"),
        (lambda entries: archive(entries[1:]), "no manifest.json"),
        (lambda entries: archive(entries, zipfile.ZIP_DEFLATED), "compressed"),
        (lambda entries: archive(entries, external_attr=0o120777 << 16), "plain file"),
        (lambda entries: archive(entries, external_attr=0o060644 << 16), "plain file"),
        (lambda entries: archive([*entries, ("model.bin/x", b"")]), "file and a folder"),
        (lambda entries: archive([*entries, *((f"f{n}", b"") for n in range(MAX_FILES))]), "more than"),
    ],
    ids=["duplicate", "no manifest", "compressed", "symlink", "device", "file and folder", "many"],
)
def test_an_archive_with_entries_that_no_bundle_has_is_refused(
    bundle: Bundle, tmp_path: Path, make: Callable[[list[tuple[str, bytes]]], bytes], why: str
):
    (tmp_path / "evil.edgeops").write_bytes(make(entries_of(bundle)))
    error = refused("E-BUNDLE-INVALID", lambda: unpack(tmp_path / "evil.edgeops", tmp_path / "out"))
    assert why in error.what
    assert not (tmp_path / "out").exists()


def test_an_extra_file_in_the_archive_is_refused(bundle: Bundle, tmp_path: Path):
    (tmp_path / "x.edgeops").write_bytes(archive([*entries_of(bundle), ("extra", b"x")]))
    refused("E-BUNDLE-DAMAGED", lambda: unpack(tmp_path / "x.edgeops", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_zip_bombs_write_next_to_nothing(bundle: Bundle, tmp_path: Path):
    """Compressed, with a lying size, overlapping, or with an endless directory: refused before they unfold."""
    bomb = archive([*entries_of(bundle), ("zeros", b"\0" * (64 << 20))], zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 20
    (tmp_path / "bomb").write_bytes(bomb)
    refused("E-BUNDLE-INVALID", lambda: unpack(tmp_path / "bomb", tmp_path / "out"))

    stored = archive(entries_of(bundle))
    central = stored.index(b"PK\x01\x02")
    lying = bytearray(stored)
    lying[central + 20 : central + 28] = struct.pack("<2L", 3_000_000_000, 3_000_000_000)
    (tmp_path / "lying").write_bytes(lying)
    refused("E-BUNDLE-INVALID", lambda: unpack(tmp_path / "lying", tmp_path / "out"))

    end = bytearray(stored)
    end[-14:-10] = struct.pack("<2H", 60_000, 60_000)
    (tmp_path / "many").write_bytes(end)
    refused("E-BUNDLE-INVALID", lambda: unpack(tmp_path / "many", tmp_path / "out"))
    end = bytearray(stored)
    end[-10:-6] = struct.pack("<L", 1 << 30)
    (tmp_path / "directory").write_bytes(end)
    refused("E-BUNDLE-INVALID", lambda: unpack(tmp_path / "directory", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [0, 1, 21, 22, 100, 1000, -1, -22, -23])
def test_truncated_files_are_refused(packed: Path, tmp_path: Path, keep: int):
    data = packed.read_bytes()
    packed.write_bytes(data[:keep])
    refused("E-BUNDLE-DAMAGED", lambda: unpack(packed, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_is_no_file_is_refused(tmp_path: Path):
    for path in (tmp_path / "missing", tmp_path):
        refused("E-BUNDLE-INVALID", lambda path=path: unpack(path, tmp_path / "out"))


def test_a_folder_that_is_there_is_never_touched(packed: Path, tmp_path: Path):
    """The active slot is safe from an update that was told to unpack over it."""
    (tmp_path / "slot").mkdir()
    (tmp_path / "slot" / "precious").write_bytes(b"x")
    refused("E-DISK-WRITE", lambda: unpack(packed, tmp_path / "slot"))
    assert (tmp_path / "slot" / "precious").read_bytes() == b"x"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_noticed_or_harmless(
    bundle: Bundle, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    """Either refused with a code, or what comes out is the bundle itself, byte for byte."""
    folder = tmp_path_factory.mktemp("mutant")
    pack(bundle, folder / "b.edgeops")
    mutant = bytearray((folder / "b.edgeops").read_bytes())
    place = data.draw(st.integers(0, len(mutant) - 1))
    mutant[place] ^= data.draw(st.integers(1, 255))
    (folder / "b.edgeops").write_bytes(mutant)
    try:
        unpack(folder / "b.edgeops", folder / "out", expect_digest=bundle.digest)
    except EdgeopsError as error:
        assert error.code in ("E-BUNDLE-DAMAGED", "E-BUNDLE-INVALID")  # noqa: PT017  one of two good ends
        assert not (folder / "out").exists()
    else:
        assert contents(folder / "out") == contents(bundle.directory)
    assert {path.name for path in folder.iterdir()} <= {"b.edgeops", "out"}
    shutil.rmtree(folder)


@pytest.mark.full
def test_each_changed_byte_is_noticed_or_harmless(bundle: Bundle, packed: Path, tmp_path: Path):
    """Every byte of a packed bundle, two ways each."""
    whole = packed.read_bytes()
    for place in range(len(whole)):
        for flip in (0x01, 0xFF):
            packed.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            try:
                unpack(packed, tmp_path / "out", expect_digest=bundle.digest)
            except EdgeopsError:
                assert not (tmp_path / "out").exists()
            else:
                assert contents(tmp_path / "out") == contents(bundle.directory)
                shutil.rmtree(tmp_path / "out")


# Manifests


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 99},
        {"model": "Not A Name"},
        {"profile": "../x"},
        {"artifact": "missing.bin"},
        {"artifact": "../../etc/passwd"},
        {"input_bindings": ()},
        {"inputs": (), "input_bindings": ()},
    ],
)
def test_a_manifest_that_breaks_the_rules_is_not_sealed(bundle: Bundle, tmp_path: Path, change: dict[str, object]):
    shutil.copytree(bundle.directory, tmp_path / "b")
    manifest = msgspec.structs.replace(bundle.manifest, **change)
    with pytest.raises(EdgeopsError, match=r"E-BUNDLE-INVALID|E-NAME"):
        seal(tmp_path / "b", manifest)


def test_a_newer_writers_manifest_fields_are_read_and_their_bytes_count(bundle: Bundle, tmp_path: Path):
    shutil.copytree(bundle.directory, tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    path.write_bytes(path.read_bytes()[:-1] + b',"zzz":1}')
    manifest, digest = read_manifest(tmp_path / "b")
    assert manifest == bundle.manifest
    assert digest != bundle.digest


def test_a_file_path_in_a_manifest_may_not_leave_the_bundle(bundle: Bundle, tmp_path: Path):
    """Also where the manifest was written by hand and its file is really there."""
    shutil.copytree(bundle.directory, tmp_path / "in" / "b")
    (tmp_path / "in" / "x").write_bytes(b"x")
    path = tmp_path / "in" / "b" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"model.bin":{', b'"../x":{"length":1,"sha256":""},"model.bin":{'))
    refused("E-BUNDLE-INVALID", lambda: open_bundle(tmp_path / "in" / "b"))


def test_more_files_than_a_bundle_may_have_are_not_sealed(bundle: Bundle, tmp_path: Path):
    shutil.copytree(bundle.directory, tmp_path / "b")
    for number in range(MAX_FILES):
        (tmp_path / "b" / f"f{number}").touch()
    refused("E-BUNDLE-INVALID", lambda: seal(tmp_path / "b", bundle.manifest))


def test_a_name_that_is_no_text_is_damage_and_nothing_is_left(tmp_path: Path):
    """Found by fuzzing: the entry before the bytes says that its name is UTF-8, the one in the directory does not."""
    pack(make_bundle(tmp_path / "bundle"), tmp_path / "packed")
    data = bytearray((tmp_path / "packed").read_bytes())
    start = data.index(b"PK\3\4")
    data[start + 7] |= 0x08
    data[start + 30 + 4] = 0xAF
    (tmp_path / "damaged").write_bytes(data)
    with pytest.raises(EdgeopsError) as caught:
        unpack(tmp_path / "damaged", tmp_path / "out")
    assert caught.value.code == "E-BUNDLE-DAMAGED"
    assert not (tmp_path / "out").exists()
