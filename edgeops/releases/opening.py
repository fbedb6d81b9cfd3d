"""Bundles as folders: read the manifest and check every byte. What a worker needs of bundles, and no more."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from edgeops.contracts.bundle import BUNDLE_SCHEMA, MANIFEST_NAME, AgentManifest, BundleManifest, FileEntry
from edgeops.contracts.deployment import AGENT_COMPONENT
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name, check_version
from edgeops.contracts.wire import decode

MAX_FILES = 512
MAX_MANIFEST_BYTES = 8 << 20
MAX_BUNDLE_BYTES = 2_000_000_000  # below what a zip holds without its 64-bit extension
PATH = re.compile(r"(?!.*(^|/)\.)[A-Za-z0-9._-]{1,96}(/[A-Za-z0-9._-]{1,96}){0,3}")
BLOCK = 1 << 20
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


M = TypeVar("M", BundleManifest, AgentManifest)


def file_digest(path: Path) -> FileEntry:
    """Return a file's SHA-256 and length."""
    digest, length = hashlib.sha256(), 0
    with path.open("rb") as source:
        while block := source.read(BLOCK):
            digest.update(block)
            length += len(block)
    return FileEntry(sha256=digest.hexdigest(), length=length)


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
    present = walk(directory) - {MANIFEST_NAME}
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
    check_manifest(manifest)
    # A newer writer's fields are not known here: the digest is always over the bytes as they are.
    return manifest, "sha256:" + hashlib.sha256(data).hexdigest()


def check_manifest(manifest: BundleManifest | AgentManifest) -> None:
    """Hold a manifest against the rules of bundles.

    Raises:
        EdgeopsError: E-BUNDLE-INVALID or E-NAME.
    """
    if manifest.schema_version > BUNDLE_SCHEMA:
        raise EdgeopsError(
            "E-BUNDLE-INVALID",
            f"bundle schema {manifest.schema_version} is newer than {BUNDLE_SCHEMA}",
            "Update edgeops on this machine.",
        )
    check_name(manifest.profile, "profile")
    for name in manifest.files:
        if not PATH.fullmatch(name) or name == MANIFEST_NAME:
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


def walk(directory: Path) -> set[str]:
    """Return the paths of all files below a folder.

    Raises:
        EdgeopsError: E-BUNDLE-INVALID; one of them is no plain file.
    """
    return {path.relative_to(directory).as_posix() for path in _entries(directory)}


def _entries(directory: Path) -> Iterator[Path]:
    for root, directories, files in os.walk(directory):
        for name in (*files, *(name for name in directories if (Path(root) / name).is_symlink())):
            path = Path(root) / name
            if path.is_symlink() or not path.is_file():
                raise EdgeopsError("E-BUNDLE-INVALID", f"{path}: not a plain file")
            yield path
