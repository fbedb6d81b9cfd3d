"""A TUF repository in memory that can do what no honest publisher does, by python-tuf's plain metadata API."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.ngclient.fetcher import FetcherInterface

from edgeops.contracts.errors import EdgeopsError
from edgeops.trust.time import Clock
from edgeops.trust.tuf_client import LIMITS, Limits, TufClient

URL = "http://repository/metadata"
NOW_S = 2_000_000_000.0
DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.fromtimestamp(NOW_S, tz=datetime.timezone.utc)
SIGNERS = [CryptoSigner.generate_ed25519() for _ in range(12)]
TOP = ("root", "timestamp", "snapshot", "targets")


@contextlib.contextmanager
def refused(code: str) -> Iterator[None]:
    """The block ends with an edgeops error of this code."""
    with pytest.raises(EdgeopsError) as caught:
        yield
    assert caught.value.code == code, caught.value


class MemoryFetcher(FetcherInterface):
    """Serves a dict of files, and notes what was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(f"{URL}/")
        self.asked.append(name)
        if name not in self.files:
            raise DownloadHTTPError(f"{name}: 404", 404)
        return iter([self.files[name]])


class RawRepository:
    """Every role's metadata and signers can be changed at will; `publish` signs and serves them."""

    def __init__(self) -> None:
        self.expires = NOW + 30 * DAY
        self.signers: dict[str, list[CryptoSigner]] = {role: [SIGNERS[index]] for index, role in enumerate(TOP)}
        self.root = Root(expires=self.expires, consistent_snapshot=True)
        for role in TOP:
            self.root.add_key(self.signers[role][0].public_key, role)
        self.timestamp = Timestamp(expires=self.expires)
        self.snapshot = Snapshot(expires=self.expires)
        self.roles: dict[str, Targets] = {"targets": Targets(expires=self.expires)}
        self.files: dict[str, bytes] = {}
        self.fetcher = MemoryFetcher(self.files)
        self.hashes = False
        self.publish_root()
        self.publish("targets")
        self.root_bytes = self.files["1.root.json"]

    def signed(self, role: str, signed: Root | Timestamp | Snapshot | Targets) -> bytes:
        metadata: Metadata = Metadata(signed)
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def serve(self, role: str, signed: Root | Snapshot | Targets) -> bytes:
        data = self.signed(role, signed)
        self.files[f"{signed.version}.{quote(role, '')}.json"] = data
        return data

    def publish_root(self) -> None:
        self.serve("root", self.root)

    def next_root(self) -> None:
        self.root.version += 1
        self.publish_root()

    def rotate(self, role: str, new: CryptoSigner) -> None:
        """Replace all keys of a top-level role; the root still has to be published."""
        for keyid in list(self.root.roles[role].keyids):
            self.root.revoke_key(keyid, role)
        self.root.add_key(new.public_key, role)
        self.signers[role] = [new]

    def publish(self, *roles: str, snapshot: bool = True) -> None:
        """Serve these targets roles as they are, then a new snapshot and timestamp that name them."""
        for role in roles:
            data = self.serve(role, self.roles[role])
            meta = MetaFile.from_data(self.roles[role].version, data, ["sha256"])
            self.snapshot.meta[f"{role}.json"] = meta if self.hashes else MetaFile(meta.version)
        if snapshot:
            self.publish_snapshot()

    def publish_snapshot(self) -> None:
        if "1.snapshot.json" in self.files:
            self.snapshot.version += 1
        data = self.serve("snapshot", self.snapshot)
        meta = MetaFile.from_data(self.snapshot.version, data, ["sha256"])
        self.timestamp.snapshot_meta = meta if self.hashes else MetaFile(meta.version)
        self.publish_timestamp()

    def publish_timestamp(self) -> None:
        if "timestamp.json" in self.files:
            self.timestamp.version += 1
        self.files["timestamp.json"] = self.signed("timestamp", self.timestamp)

    def delegate(
        self,
        delegator: str,
        role: str,
        signer: CryptoSigner,
        *,
        paths: tuple[str, ...] = ("*",),
        terminating: bool = False,
    ) -> None:
        parent = self.roles[delegator]
        if parent.delegations is None:
            parent.delegations = Delegations({}, roles={})
        assert parent.delegations.roles is not None
        parent.delegations.roles[role] = DelegatedRole(role, [], 1, terminating, paths=list(paths))
        parent.add_key(signer.public_key, role)
        self.roles.setdefault(role, Targets(expires=self.expires))
        self.signers.setdefault(role, [signer])

    def add_target(self, role: str, path: str, content: bytes = b"content") -> None:
        self.roles[role].targets[path] = TargetFile.from_data(path, content, ["sha256"])

    def client(
        self, directory: Path, *, limits: Limits = LIMITS, now_s: float = NOW_S, root: bytes | None = None
    ) -> TufClient:
        """A device's client, its first root taken; the same directory again is the same device restarted."""
        directory.mkdir(exist_ok=True)
        clock = Clock(directory / "floor", system=lambda: now_s, build_s=0)
        client = TufClient(directory, URL, self.fetcher, clock, limits=limits)
        first = self.root_bytes if root is None else root
        client.bootstrap(first, hashlib.sha256(first).hexdigest())
        return client


def version(directory: Path, role: str) -> int | None:
    """The version of a role that a device has kept."""
    path = directory / f"{quote(role, '')}.json"
    return Metadata.from_bytes(path.read_bytes()).signed.version if path.exists() else None


def kept(directory: Path) -> dict[str, bytes]:
    """All that a device has kept of metadata."""
    return {path.name: path.read_bytes() for path in directory.glob("*.json")}
