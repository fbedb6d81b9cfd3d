"""Bundles as files: write and check a bundle's directory, pack it into one reproducible file, and unpack it safely."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

import msgspec

from edgeops import durable
from edgeops.contracts.bundle import BUNDLE_SCHEMA, MANIFEST_NAME, AgentManifest, BundleManifest, FileEntry
from edgeops.contracts.deployment import AGENT_COMPONENT
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name, check_version
from edgeops.contracts.wire import decode, encode

MAX_FILES = 512
MAX_MANIFEST_BYTES = 8 << 20
MAX_BUNDLE_BYTES = 2_000_000_000  # below what a zip holds without its 64-bit extension
_PATH = re.compile(r"(?!.*(^|/)\.)[A-Za-z0-9._-]{1,96}(/[A-Za-z0-9._-]{1,96}){0,3}")
_BLOCK = 1 << 20
_END = struct.Struct("<4s4H2LH")  # end of central directory: signature, disks, counts, size, offset, comment length
_MAX_ENTRY_BYTES = 512
_HINT = "Make it with edgeops compile."
# What zipfile raises over damaged bytes, beside OSError.
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError, struct.error)
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date that a zip can hold: the same bundle gives the same bytes


_WHEEL = re.compile(r"wheels/(?P<name>[A-Za-z0-9._]+)-(?P<version>[A-Za-z0-9._]+)(-[^/-]+){3,4}\.whl")


class Bundle(NamedTuple):
    """A checked bundle: its directory, manifest and digest."""

    directory: Path
    manifest: BundleManifest
    digest: str


class AgentBundle(NamedTuple):
    """A checked bundle of an agent's version: its directory, manifest and digest."""

    directory: Path
    manifest: AgentManifest
    digest: str


B = TypeVar("B", Bundle, AgentBundle)
M = TypeVar("M", BundleManifest, AgentManifest)


def file_digest(path: Path) -> FileEntry:
    """Return a file's SHA-256 and length."""
    digest, length = hashlib.sha256(), 0
    with path.open("rb") as source:
        while block := source.read(_BLOCK):
            digest.update(block)
            length += len(block)
    return FileEntry(sha256=digest.hexdigest(), length=length)


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
    names = sorted(_walk(directory) - {MANIFEST_NAME})
    manifest = msgspec.structs.replace(manifest, files={name: file_digest(directory / name) for name in names})
    _check_manifest(manifest)
    durable.write_file(directory / MANIFEST_NAME, encode(manifest))
    return manifest


def open_bundle(directory: Path, *, expect_digest: str | None = None) -> Bundle:
    """Read a bundle's directory and check every byte of it.

    Args:
        directory: The bundle.
        expect_digest: The digest that the bundle must have.

    Raises:
        EdgeopsError: E-BUNDLE-DAMAGED; a file is missing, superfluous or changed, or the digest is another one.
            E-BUNDLE-INVALID; the manifest breaks the bundle rules.
    """
    return Bundle(directory, *_open(directory, BundleManifest, expect_digest))


def open_agent_bundle(directory: Path, *, expect_digest: str | None = None) -> AgentBundle:
    """Read a bundle of an agent's version and check every byte of it; arguments and errors as `open_bundle`."""
    return AgentBundle(directory, *_open(directory, AgentManifest, expect_digest))


def _open(directory: Path, kind: type[M], expect_digest: str | None) -> tuple[M, str]:
    manifest, digest = _read_manifest(directory, kind)
    if expect_digest is not None and digest != expect_digest:
        raise EdgeopsError("E-BUNDLE-DAMAGED", f"{directory}: digest is {digest}, expected {expect_digest}")
    present = _walk(directory) - {MANIFEST_NAME}
    if present != set(manifest.files):
        odd = sorted(present ^ set(manifest.files))[:3]
        raise EdgeopsError("E-BUNDLE-DAMAGED", f"{directory}: files missing or superfluous: {', '.join(odd)}")
    for name, entry in manifest.files.items():
        if file_digest(directory / name) != entry:
            raise EdgeopsError("E-BUNDLE-DAMAGED", f"{directory / name}: content differs from the manifest")
    return manifest, digest


def read_manifest(directory: Path) -> tuple[BundleManifest, str]:
    """Read a bundle's manifest and digest without checking its files.

    Raises:
        EdgeopsError: E-BUNDLE-DAMAGED; missing or not canonical. E-BUNDLE-INVALID; it breaks the bundle rules.
    """
    return _read_manifest(directory, BundleManifest)


def _read_manifest(directory: Path, kind: type[M]) -> tuple[M, str]:
    path = directory / MANIFEST_NAME
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise EdgeopsError("E-BUNDLE-INVALID", f"{path}: larger than {MAX_MANIFEST_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise EdgeopsError("E-BUNDLE-DAMAGED", f"{path}: {error.strerror}", "Name a bundle's directory.") from error
    try:
        manifest = decode(data, kind, what=str(path))
    except EdgeopsError as error:
        raise EdgeopsError("E-BUNDLE-DAMAGED", error.what, "Fetch or compile it again.") from error
    _check_manifest(manifest)
    # A newer writer's fields are not known here: the digest is always over the bytes as they are.
    return manifest, "sha256:" + hashlib.sha256(data).hexdigest()


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
                    while block := source.read(_BLOCK):
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
                    while block := member.read(min(_BLOCK, left + 1)):
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
        elif not _PATH.fullmatch(info.filename):
            problem = f"path {info.filename[:80]!r} is not allowed"
        elif info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            problem = f"{info.filename} is compressed"
        elif (info.external_attr >> 16) & 0o170000 not in (0, 0o100000):
            problem = f"{info.filename} is not a plain file"
    if problem is not None:
        raise EdgeopsError("E-BUNDLE-INVALID", f"{source}: {problem}", _HINT)
    return entries


def _check_manifest(manifest: BundleManifest | AgentManifest) -> None:
    if manifest.schema_version > BUNDLE_SCHEMA:
        raise EdgeopsError(
            "E-BUNDLE-INVALID",
            f"bundle schema {manifest.schema_version} is newer than {BUNDLE_SCHEMA}",
            "Update edgeops on this machine.",
        )
    check_name(manifest.profile, "profile")
    for name in manifest.files:
        if not _PATH.fullmatch(name) or name == MANIFEST_NAME:
            raise EdgeopsError("E-BUNDLE-INVALID", f"path {name[:80]!r} is not allowed")
    if len(manifest.files) >= MAX_FILES or sum(entry.length for entry in manifest.files.values()) > MAX_BUNDLE_BYTES:
        raise EdgeopsError("E-BUNDLE-INVALID", f"more than {MAX_FILES} files or {MAX_BUNDLE_BYTES} bytes")
    if isinstance(manifest, AgentManifest):
        _check_agent(manifest)
    else:
        _check_model(manifest)


def _check_agent(manifest: AgentManifest) -> None:
    check_version(manifest.agent)
    wheels = [_WHEEL.fullmatch(name) for name in manifest.files]
    own = [wheel["version"] for wheel in wheels if wheel is not None and wheel["name"] == "edgeops"]
    if None in wheels or own != [manifest.agent]:
        raise EdgeopsError("E-BUNDLE-INVALID", f"not wheels, or not exactly one of edgeops {manifest.agent}")


def _check_model(manifest: BundleManifest) -> None:
    if check_name(manifest.model, "model") == AGENT_COMPONENT:
        raise EdgeopsError("E-BUNDLE-INVALID", f"{AGENT_COMPONENT} is the agent's own name", "Rename the model.")
    golden = manifest.golden
    needed = {
        manifest.artifact,
        *golden.inputs.values(),
        *golden.source_outputs.values(),
        *golden.artifact_outputs.values(),
    }
    if missing := sorted(needed - set(manifest.files)):
        raise EdgeopsError("E-BUNDLE-INVALID", f"the manifest names files that are not there: {', '.join(missing[:3])}")
    inputs, outputs = [spec.name for spec in manifest.inputs], [info.tensor.name for info in manifest.outputs]
    agree = (
        sorted(inputs) == sorted(binding.device for binding in manifest.input_bindings) == sorted(golden.inputs)
        and sorted(outputs) == sorted(binding.device for binding in manifest.output_bindings)
        and sorted(outputs) == sorted(golden.artifact_outputs) == sorted(golden.tolerances)
    )
    if not agree or not inputs or not outputs or golden.count < 1:
        raise EdgeopsError("E-BUNDLE-INVALID", "inputs, outputs, bindings and golden vectors do not agree")


def _walk(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in _entries(directory)}


def _entries(directory: Path) -> Iterator[Path]:
    for root, directories, files in os.walk(directory):
        for name in (*files, *(name for name in directories if (Path(root) / name).is_symlink())):
            path = Path(root) / name
            if path.is_symlink() or not path.is_file():
                raise EdgeopsError("E-BUNDLE-INVALID", f"{path}: not a plain file")
            yield path
