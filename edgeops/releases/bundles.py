"""Bundles as files: write and check a bundle's directory, pack it into one reproducible file, and unpack it safely."""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec

from edgeops import durable
from edgeops.contracts.bundle import MANIFEST_NAME, AgentManifest, BundleManifest
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import decode, encode
from edgeops.releases.opening import (
    BLOCK,
    MAX_BUNDLE_BYTES,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    PATH,
    AgentBundle,
    Bundle,
    M,
    check_manifest,
    file_digest,
    open_agent_bundle,
    open_bundle,
    read_manifest,
    walk,
)

__all__ = [
    "EPOCH", "MAX_BUNDLE_BYTES", "MAX_FILES", "ZIP_ERRORS", "AgentBundle", "Bundle", "check_archive_end", "file_digest",
    "open_agent_bundle", "open_bundle", "pack", "packed_manifest", "read_manifest", "seal", "seal_agent", "unpack",
    "unpack_agent",
]  # fmt: skip

_END = struct.Struct("<4s4H2LH")  # end of central directory: signature, disks, counts, size, offset, comment length
_MAX_ENTRY_BYTES = 512
_HINT = "Make it with edgeops compile."
# What zipfile raises over damaged bytes, beside OSError.
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError, struct.error)
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date that a zip can hold: the same bundle gives the same bytes


B = TypeVar("B", Bundle, AgentBundle)


def seal(directory: Path, manifest: BundleManifest) -> Bundle:
    """Write the manifest of the files that lie in `directory`; its `files` are filled in here.

    Raises:
        EdgeopsError: E-BUNDLE-INVALID; a file's path is not allowed, or the manifest names a file that is not there.
    """
    manifest = _seal(directory, manifest)
    return Bundle(directory, manifest, manifest.digest())


def seal_agent(directory: Path, manifest: AgentManifest) -> AgentBundle:
    """Write the manifest of an agent's version, whose wheels lie in `directory/wheels`.

    Raises:
        EdgeopsError: E-BUNDLE-INVALID; not wheels, or not exactly one of edgeops in the manifest's version.
    """
    manifest = _seal(directory, manifest)
    return AgentBundle(directory, manifest, manifest.digest())


def _seal(directory: Path, manifest: M) -> M:
    names = sorted(walk(directory) - {MANIFEST_NAME})
    manifest = msgspec.structs.replace(manifest, files={name: file_digest(directory / name) for name in names})
    check_manifest(manifest)
    durable.write_file(directory / MANIFEST_NAME, encode(manifest))
    return manifest


def packed_manifest(source: Path, kind: type[M], expect_digest: str) -> M:
    """Read the manifest out of a bundle's file; the other files are not looked at.

    Raises:
        EdgeopsError: E-BUNDLE-DAMAGED; it has none, or not the one with this digest.
    """
    try:
        with zipfile.ZipFile(source) as archive, archive.open(MANIFEST_NAME) as member:
            data = member.read(MAX_MANIFEST_BYTES)
    except (OSError, KeyError, *ZIP_ERRORS) as error:
        raise EdgeopsError("E-BUNDLE-DAMAGED", f"{source}: {error}", "Fetch it again.") from error
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != expect_digest:
        raise EdgeopsError("E-BUNDLE-DAMAGED", f"{source}: its manifest is not {expect_digest}", "Fetch it again.")
    return decode(data, kind, what=str(source))


def pack(bundle: Bundle | AgentBundle, target: Path) -> None:
    """Write a bundle as one file: a zip, stored, sorted, without dates. The same bundle gives the same bytes.

    Raises:
        EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
    """
    temporary = target.parent / f".{target.name}.tmp"
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name in (MANIFEST_NAME, *sorted(bundle.manifest.files)):
                info = zipfile.ZipInfo(name, EPOCH)
                info.create_system = 3
                info.external_attr = 0o100644 << 16
                with (
                    archive.open(info, "w", force_zip64=False) as member,
                    (bundle.directory / name).open("rb") as source,
                ):
                    while block := source.read(BLOCK):
                        member.write(block)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise durable.disk_error(error, target) from error
    durable.rename(temporary, target)


def unpack(source: Path, directory: Path, *, expect_digest: str | None = None) -> Bundle:
    """Unpack a bundle's file into a new directory and check every byte.

    Nothing is written outside `directory`; sizes are checked before and while writing.

    Raises:
        EdgeopsError: E-BUNDLE-INVALID; not a bundle, or an entry that no bundle has. E-BUNDLE-DAMAGED; its bytes are
            not those that the manifest names. E-DISK-FULL or E-DISK-WRITE. `directory` is then not there; one that
            was there before stays as it is.
    """
    return _unpack(source, directory, lambda: open_bundle(directory, expect_digest=expect_digest))


def unpack_agent(source: Path, directory: Path, *, expect_digest: str | None = None) -> AgentBundle:
    """Unpack the file of an agent's version; arguments and errors as `unpack`."""
    return _unpack(source, directory, lambda: open_agent_bundle(directory, expect_digest=expect_digest))


def _unpack(source: Path, directory: Path, check: Callable[[], B]) -> B:
    check_archive_end(source, max_entries=MAX_FILES)
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise durable.disk_error(error, directory) from error
    try:
        with zipfile.ZipFile(source) as archive:
            for info in _checked_entries(archive, source):
                target = directory / info.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                left = info.file_size
                with archive.open(info) as member, target.open("xb") as out:
                    while block := member.read(min(BLOCK, left + 1)):
                        left -= len(block)
                        if left < 0:
                            raise EdgeopsError("E-BUNDLE-INVALID", f"{source}: {info.filename} is longer than it says")
                        out.write(block)
        return check()
    except ZIP_ERRORS as error:
        durable.remove_tree(directory)
        raise EdgeopsError("E-BUNDLE-DAMAGED", f"{source}: {error}", "Fetch it again.") from error
    except OSError as error:
        durable.remove_tree(directory)
        raise durable.disk_error(error, directory) from error
    except EdgeopsError:
        durable.remove_tree(directory)
        raise


def check_archive_end(source: Path, *, max_entries: int) -> None:
    """Look at a zip's last bytes before its directory is read into memory: ours are small and end the file.

    Raises:
        EdgeopsError: E-BUNDLE-INVALID; not a readable file, or too many entries. E-BUNDLE-DAMAGED; not a zip, or
            truncated.
    """
    try:
        with source.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END.size))
            end = file.read(_END.size)
    except OSError as error:
        raise EdgeopsError("E-BUNDLE-INVALID", f"{source}: {error.strerror}", "Name a bundle.") from error
    if len(end) < _END.size or not end.startswith(b"PK\5\6"):
        raise EdgeopsError("E-BUNDLE-DAMAGED", f"{source}: not a bundle, or truncated", "Fetch it again.")
    _, _, _, _, entries, directory_bytes, _, _ = _END.unpack(end)
    if entries > max_entries or directory_bytes > max_entries * _MAX_ENTRY_BYTES:
        raise EdgeopsError("E-BUNDLE-INVALID", f"{source}: more than {max_entries} files", _HINT)


def _checked_entries(archive: zipfile.ZipFile, source: Path) -> list[zipfile.ZipInfo]:
    entries = archive.infolist()
    names = [info.filename for info in entries]
    problem = None
    if len(entries) > MAX_FILES:
        problem = f"more than {MAX_FILES} files"
    elif len(set(names)) != len(names):
        problem = "a name appears twice"
    elif MANIFEST_NAME not in names:
        problem = f"no {MANIFEST_NAME}"
    elif sum(info.file_size for info in entries) > MAX_BUNDLE_BYTES:
        problem = f"larger than {MAX_BUNDLE_BYTES} bytes"
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    for info in entries:
        if info.filename in folders:
            problem = f"{info.filename} is a file and a folder"
        elif not PATH.fullmatch(info.filename):
            problem = f"path {info.filename[:80]!r} is not allowed"
        elif info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            problem = f"{info.filename} is compressed"
        elif (info.external_attr >> 16) & 0o170000 not in (0, 0o100000):
            problem = f"{info.filename} is not a plain file"
    if problem is not None:
        raise EdgeopsError("E-BUNDLE-INVALID", f"{source}: {problem}", _HINT)
    return entries
