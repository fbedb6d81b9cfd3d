"""The TUF repository on the publisher's disk: read with every signature checked, written so that no cut breaks it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.trust.roles import ROOT, SNAPSHOT, TARGETS, TIMESTAMP

Signed = TypeVar("Signed", Root, Timestamp, Snapshot, Targets)
AnyMetadata = Metadata[Any]
_BLOCK = 1 << 20
_SERIALIZER = JSONSerializer(compact=True)


class MetadataFile(NamedTuple):
    """One metadata file to write: its name below `metadata/`, and its content."""

    name: str
    data: bytes


class RepositoryState:
    """The top-level metadata of one moment, verified from the first root on; delegated roles are read on demand.

    Expiry is not judged here: the publisher must be able to renew what has expired.
    """

    def __init__(
        self,
        directory: Path,
        roots: Sequence[Metadata[Root]],
        timestamp: Metadata[Timestamp],
        snapshot: Metadata[Snapshot],
        targets: Metadata[Targets],
    ) -> None:
        self._directory = directory
        self.root = roots[-1]
        self.timestamp, self.snapshot, self.targets = timestamp, snapshot, targets

    def version(self, role: str) -> int:
        """Return a role's version in the snapshot; 0: there is none yet."""
        meta = self.snapshot.signed.meta.get(f"{role}.json")
        return meta.version if meta else 0

    def role(self, name: str, delegator: Targets) -> Metadata[Targets]:
        """Read a delegated role.

        Raises:
            EdgeopsError: E-TRUST-METADATA; missing, damaged, or not signed as its delegator says.
        """
        return _read_verified(self._directory, name, self.version(name), Targets, delegator)


class Repository:
    """The folder that is served: `metadata/` and `targets/`.

    What is read is verified against the first root before anything is signed on top of it: whoever can write to the
    served folder cannot make the publisher sign what they put there.

    Args:
        directory: The repository.
        first_root_sha256: SHA-256 of `1.root.json`.
    """

    def __init__(self, directory: Path, first_root_sha256: str) -> None:
        self._directory = directory
        self._metadata = directory / "metadata"
        self._targets = directory / "targets"
        self._first_root_sha256 = first_root_sha256
        self._thread_lock = threading.RLock()
        self._holds = 0

    def load(self) -> RepositoryState:
        """Read the present state.

        Raises:
            EdgeopsError: E-TRUST-METADATA; something is missing, damaged, or not validly signed.
        """
        roots = self._roots()
        root = roots[-1].signed
        timestamp = _read_verified(self._metadata, TIMESTAMP, None, Timestamp, root)
        meta = timestamp.signed.snapshot_meta
        snapshot = _read_verified(self._metadata, SNAPSHOT, meta.version, Snapshot, root)
        top = snapshot.signed.meta[f"{TARGETS}.json"]
        targets = _read_verified(self._metadata, TARGETS, top.version, Targets, root)
        return RepositoryState(self._metadata, roots, timestamp, snapshot, targets)

    def mark(self) -> object:
        """Return what differs after each change: `timestamp.json` is replaced then, and written last."""
        try:
            stat = (self._metadata / f"{TIMESTAMP}.json").stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def root_bytes(self) -> bytes:
        """Return the newest root as it is served.

        Raises:
            EdgeopsError: E-TRUST-METADATA.
        """
        version = self._roots()[-1].signed.version
        return (self._metadata / f"{version}.{ROOT}.json").read_bytes()

    def files_of(self, state: RepositoryState, delegated: Iterable[str]) -> list[Path]:
        """Return the files of a state: all roots, the top-level roles, and these delegated roles."""
        names = [f"{version}.{ROOT}.json" for version in range(1, state.root.signed.version + 1)]
        names += [f"{TIMESTAMP}.json", f"{state.snapshot.signed.version}.{SNAPSHOT}.json"]
        names += [f"{state.version(role)}.{role}.json" for role in (TARGETS, *sorted(delegated))]
        return [self._metadata / name for name in names]

    def commit(self, files: Sequence[MetadataFile]) -> None:
        """Write metadata files, each durably, in this order.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE; the files before are written.
        """
        for file in files:
            durable.write_file(self._metadata / file.name, file.data)

    def make(self) -> None:
        """Make the empty folders.

        Raises:
            EdgeopsError: E-DISK-WRITE.
        """
        try:
            for directory in (self._metadata, self._targets):
                directory.mkdir(parents=True)
            durable.fsync_dir(self._directory)
        except OSError as error:
            raise durable.disk_error(error, self._directory) from error

    def blob(self, path: str, sha256: str) -> Path:
        """Return where a target's file lies: its name begins with its hash (consistent snapshots)."""
        folder, _, name = path.rpartition("/")
        return self._targets / folder / f"{sha256}.{name}"

    def store(self, source: Path, path: str) -> TargetFile:
        """Copy a file in as a target, durably; nothing refers to it yet.

        Raises:
            EdgeopsError: E-RELEASE-INVALID; the file cannot be read. E-DISK-FULL or E-DISK-WRITE.
        """
        digest, length = hashlib.sha256(), 0
        folder = (self._targets / path).parent
        temporary = folder / f".{Path(path).name}.tmp"
        try:
            reading = source.open("rb")
        except OSError as error:
            raise EdgeopsError("E-RELEASE-INVALID", f"{source}: {error.strerror}") from error
        with reading:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with temporary.open("wb") as out:
                    while block := reading.read(_BLOCK):
                        digest.update(block)
                        length += len(block)
                        out.write(block)
                    out.flush()
                    os.fsync(out.fileno())
                for parent in (folder.parent, self._targets):
                    durable.fsync_dir(parent)
            except OSError as error:
                temporary.unlink(missing_ok=True)
                raise durable.disk_error(error, folder) from error
        durable.rename(temporary, self.blob(path, digest.hexdigest()))
        return TargetFile(length, {"sha256": digest.hexdigest()}, path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the repository for one change; changes of other threads and processes are waited for. May be nested.

        Raises:
            EdgeopsError: E-DISK-WRITE.
        """
        with self._thread_lock, contextlib.ExitStack() as stack:
            if self._holds == 0:
                path = self._directory / ".lock"
                try:
                    lock = stack.enter_context(path.open("w"))
                except OSError as error:
                    raise durable.disk_error(error, path) from error
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._holds += 1
            try:
                yield
            finally:
                self._holds -= 1

    def _roots(self) -> list[Metadata[Root]]:
        first = _read(self._metadata, ROOT, 1)
        if hashlib.sha256(first).hexdigest() != self._first_root_sha256:
            raise EdgeopsError("E-TRUST-METADATA", f"{self._metadata}/1.root.json is not this fleet's first root")
        roots: list[Metadata[Root]] = [parse(first, Root, what="1.root.json")]
        _verify(roots[0], ROOT, roots[0].signed, what="1.root.json")
        while (self._metadata / f"{len(roots) + 1}.{ROOT}.json").exists():
            version = len(roots) + 1
            following = _read_verified(self._metadata, ROOT, version, Root, roots[-1].signed)
            _verify(following, ROOT, following.signed, what=f"{version}.root.json")
            roots.append(following)
        return roots


def parse(data: bytes, kind: type[Signed], *, what: str) -> Metadata[Signed]:
    """Read metadata without judging who signed it.

    Raises:
        EdgeopsError: E-TRUST-METADATA; malformed, or of another kind.
    """
    try:
        metadata = Metadata[Signed].from_bytes(data)
    except RepositoryError as error:
        raise EdgeopsError("E-TRUST-METADATA", f"{what}: {error}") from error
    if not isinstance(metadata.signed, kind):
        raise EdgeopsError("E-TRUST-METADATA", f"{what} is {metadata.signed.type} metadata")
    return metadata


def to_bytes(metadata: AnyMetadata) -> bytes:
    """Return metadata as it is served."""
    return metadata.to_bytes(_SERIALIZER)


def _read(directory: Path, role: str, version: int | None) -> bytes:
    path = directory / (f"{role}.json" if version is None else f"{version}.{role}.json")
    try:
        return path.read_bytes()
    except OSError as error:
        raise EdgeopsError("E-TRUST-METADATA", f"{path}: {error.strerror}", "Restore the repository.") from error


def _read_verified(
    directory: Path, role: str, version: int | None, kind: type[Signed], delegator: Root | Targets
) -> Metadata[Signed]:
    what = f"{role} metadata" + (f" version {version}" if version else "")
    metadata = parse(_read(directory, role, version), kind, what=what)
    _verify(metadata, role, delegator, what=what)
    if version is not None and metadata.signed.version != version:
        raise EdgeopsError("E-TRUST-METADATA", f"{what} says that it is version {metadata.signed.version}")
    return metadata


def _verify(metadata: AnyMetadata, role: str, delegator: Root | Targets, *, what: str) -> None:
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        raise EdgeopsError("E-TRUST-METADATA", f"{what}: {error}", "Restore the repository.") from error
