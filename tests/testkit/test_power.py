"""The power cutter: `durable` survives every cut, and each way to forget durability is caught."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeops import durable
from edgeops.testkit.power import cuts, recording

OLD, NEW = b"old" * 50, b"new content" * 40


def states_after_any_cut(folder: Path, act: Callable[[Path], None], scratch: Path) -> set[bytes | None]:
    """Every content that `file` may have after a cut during `act`; None: no such file."""
    with recording(folder) as journal:
        act(folder)
    seen: set[bytes | None] = set()
    for index, cut in enumerate(cuts(journal)):
        target = scratch / str(index)
        cut.tree.write_to(target)
        seen.add((target / "file").read_bytes() if (target / "file").exists() else None)
    assert len(journal.operations) >= 2
    return seen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "file").write_bytes(OLD)
    return tmp_path / "disk"


def test_write_file_leaves_the_old_or_the_new_content(folder: Path, tmp_path: Path):
    seen = states_after_any_cut(folder, lambda disk: durable.write_file(disk / "file", NEW), tmp_path / "cuts")
    assert seen == {OLD, NEW}


def in_place(disk: Path) -> None:
    (disk / "file").write_bytes(NEW)


def without_fsync(disk: Path) -> None:
    (disk / "tmp").write_bytes(NEW)
    (disk / "tmp").rename(disk / "file")
    durable.fsync_dir(disk)


def removed_first(disk: Path) -> None:
    (disk / "file").unlink()
    durable.write_file(disk / "file", NEW)


@pytest.mark.parametrize("mutant", [in_place, without_fsync, removed_first])
def test_a_writer_that_forgets_durability_is_caught(mutant: Callable[[Path], None], folder: Path, tmp_path: Path):
    """Negative control: each of these leaves something that is neither old nor new."""
    assert states_after_any_cut(folder, mutant, tmp_path / "cuts") - {OLD, NEW}


def test_a_forgotten_directory_fsync_may_lose_an_acknowledged_write(folder: Path):
    """Negative control: after the call returned, the old content may be back."""

    def forgetful(disk: Path) -> None:
        with (disk / "tmp").open("wb") as out:
            out.write(NEW)
            out.flush()
            os.fsync(out.fileno())
        (disk / "tmp").rename(disk / "file")

    def contents_after(act: Callable[[Path], None]) -> set[bytes]:
        with recording(folder) as journal:
            act(folder)
        last = [cut.tree for cut in cuts(journal) if cut.after == len(journal.operations)]
        return {bytes(tree.files[tree.names[0, "file"]]) for tree in last}

    assert contents_after(lambda disk: durable.write_file(disk / "file", b"x")) == {b"x"}
    assert contents_after(forgetful) == {b"x", NEW}


def test_recorder_sees_what_libraries_do(folder: Path, tmp_path: Path):
    """zipfile, shutil, pathlib, symlinks, directory renames: the recorded tree equals the real one."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("d/x", b"1" * 100_000)
    with recording(folder) as journal:
        with zipfile.ZipFile(tmp_path / "a.zip") as archive:
            archive.extractall(folder / "unpacked")
        shutil.copyfile(folder / "file", folder / "copy")
        shutil.copytree(folder / "unpacked", folder / "tree")
        (folder / "unpacked").rename(folder / "moved")
        (folder / "link").symlink_to("moved")
        (folder / "text").write_text("äö")
        with (folder / "text").open("a") as out:
            out.write("ü")
        shutil.rmtree(folder / "tree")
        durable.write_file(folder / "file", NEW)
        durable.remove_tree(folder / "copy")
    *_, last = (cut for cut in cuts(journal) if cut.case == "kept")
    last.tree.write_to(tmp_path / "replayed")
    assert listing(tmp_path / "replayed") == listing(folder)


def listing(root: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }
