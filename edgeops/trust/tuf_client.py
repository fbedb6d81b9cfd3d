"""The device's end of TUF: what was released, verified from the first root on, by the time rule, cached durably."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import msgspec
from securesystemslib.signer import Key
from tuf.api import exceptions
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType
from tuf.ngclient.fetcher import FetcherInterface

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.measurement import CANDIDATES
from edgeops.contracts.release import TargetCustom, target_path
from edgeops.trust import roles
from edgeops.trust.time import Clock
from edgeops.trust.tuf_errors import translated

log = logging.getLogger(__name__)

# Beside the metadata `{role}.json`; no role's file can have these names.
_FIRST_ROOT, _LAST_FRESH = "first-root", "last-fresh"
_MAX_TIME_S = datetime.datetime(9999, 12, 31, tzinfo=datetime.timezone.utc).timestamp()


class Limits(NamedTuple):
    """What a server may make a device load and wait for. Lengths in bytes.

    Args:
        roots: New roots per refresh.
        delegations: Roles per lookup.
        root: Length of a root.
        timestamp: Length of a timestamp.
        snapshot: Length of a snapshot.
        targets: Length of targets metadata, top or delegated.
        grace_s: Time that any file may take.
        bytes_per_s: Speed below which a longer download is given up.
    """

    roots: int = 256
    delegations: int = 32
    root: int = 512_000
    timestamp: int = 16_384
    snapshot: int = 2_000_000
    targets: int = 5_000_000
    grace_s: float = 30.0
    bytes_per_s: float = 256.0


LIMITS = Limits()


class Target(NamedTuple):
    """A bundle's file as its signed description says.

    Args:
        path: TUF target path.
        length: Bytes.
        sha256: Lower-case hex.
        custom: What it is: model, version, release number, profile, bundle digest.
    """

    path: str
    length: int
    sha256: str
    custom: TargetCustom

    @property
    def remote_path(self) -> str:
        """Where it lies below `targets/` on the server."""
        folder, _, name = self.path.rpartition("/")
        return f"{folder}/{self.sha256}.{name}"


class CandidateTarget(NamedTuple):
    """The file of a bundle that was published to be measured: its path, bytes and SHA-256. It is no release."""

    path: str
    length: int
    sha256: str

    @property
    def remote_path(self) -> str:
        """Where it lies below `targets/` on the server."""
        folder, _, name = self.path.rpartition("/")
        return f"{folder}/{self.sha256}.{name}"


class TufClient:
    """Verified metadata of one repository. Not safe for use by two threads at once.

    A cached file never counts because it is cached: at each use it is verified again against those who delegate it
    now, and against the time.

    Args:
        metadata_dir: The cache; it holds the trusted root. The directory exists.
        metadata_url: Base URL of the repository's metadata.
        fetcher: Fetches URLs.
        clock: The time rule.
        limits: What the server may make this device load.
    """

    def __init__(
        self,
        metadata_dir: Path,
        metadata_url: str,
        fetcher: FetcherInterface,
        clock: Clock,
        *,
        limits: Limits = LIMITS,
    ) -> None:
        self._dir, self._url, self._fetcher, self._clock = metadata_dir, metadata_url.rstrip("/"), fetcher, clock
        self._limits = limits
        self._trusted: TrustedMetadataSet | None = None

    def by_way_of(self, metadata_url: str, fetcher: FetcherInterface) -> TufClient:
        """Return a client of the same cache, clock and limits that is given its metadata by another way.

        What it has kept is known to this one after `forget`.
        """
        return TufClient(self._dir, metadata_url, fetcher, self._clock, limits=self._limits)

    def forget(self) -> None:
        """Have what is believed read and verified again from the cache: somebody else may have written to it."""
        self._trusted = None

    def bootstrap(self, root_bytes: bytes, expect_sha256: str) -> None:
        """Take the first root, if it is the one that the enrolment token names. The same one again changes nothing.

        Raises:
            EdgeopsError: E-TRUST-ROOT; another one, not a root, or this device has a root from another token.
                E-DISK-FULL or E-DISK-WRITE.
        """
        got = hashlib.sha256(root_bytes).hexdigest()
        if got != expect_sha256:
            raise EdgeopsError(
                "E-TRUST-ROOT",
                f"the server's root has SHA-256 {got}, the token names {expect_sha256}",
                "Check the server's address, or make a new token.",
            )
        first = self._dir / _FIRST_ROOT
        if first.exists() and (self._dir / "root.json").exists():
            if first.read_text() != got:
                raise EdgeopsError(
                    "E-TRUST-ROOT", f"{self._dir} has a root from another token", "Remove the state directory first."
                )
            return
        try:
            TrustedMetadataSet(root_bytes, EnvelopeType.METADATA)
        except exceptions.RepositoryError as error:
            raise EdgeopsError("E-TRUST-ROOT", f"the root that the token names is not valid: {error}") from error
        durable.write_file(self._dir / "root.json", root_bytes)
        durable.write_file(first, got.encode())

    def refresh(self) -> None:
        """Fetch and verify what changed: roots, timestamp, snapshot, targets. Each is kept as soon as it is verified.

        Raises:
            EdgeopsError: E-TRUST-ROOT; there is no first root. E-TRUST-METADATA; not validly signed, rolled back, or
                mixed. E-TRUST-EXPIRED; the newest that the server has is expired. E-WIRE-SIZE; larger than allowed.
                E-NET-UNREACHABLE or E-NET-RESPONSE. E-DISK-FULL or E-DISK-WRITE.
        """
        self._trusted = None
        trusted = self._from_root()
        with translated():
            try:
                self._update_root(trusted)
            finally:
                self._clock.limit(trusted.root.expires.timestamp())
            self._update_timestamp(trusted)
            self._update_snapshot(trusted)
            self._update_targets(trusted)
        self._trusted = trusted
        durable.write_file(self._dir / _LAST_FRESH, repr(self._clock.now()).encode())

    def find(self, path: str) -> TargetFile:
        """Return a target's signed description. Metadata of roles on the way is fetched if needed.

        Raises:
            EdgeopsError: E-TRUST-TARGET; no role that may has published this path. Otherwise as `refresh`.
        """
        trusted = self._current()
        trusted.reference_time = self._reference_time()
        with translated():
            found = self._walk(trusted, path)
        if found is None:
            raise EdgeopsError("E-TRUST-TARGET", f"{path[:200]!r} was not released", "Check the release, then refresh.")
        return found

    def target(self, path: str) -> Target:
        """Return a bundle's signed description; its path, model, version and profile agree.

        Raises:
            EdgeopsError: E-TRUST-TARGET; not released, not a bundle, or its parts do not agree. Otherwise as `refresh`.
        """
        file = self.find(path)
        try:
            custom = msgspec.convert(file.custom, TargetCustom)
        except msgspec.ValidationError as error:
            raise EdgeopsError("E-TRUST-TARGET", f"{path} is not a bundle: {error}") from error
        if target_path(custom.model, custom.version, custom.profile) != path or custom.number < 1:
            raise EdgeopsError("E-TRUST-TARGET", f"{path} is described as {custom}")
        if "sha256" not in file.hashes:
            raise EdgeopsError("E-TRUST-TARGET", f"{path} is described without SHA-256")
        return Target(path, file.length, file.hashes["sha256"], custom)

    def candidate(self, path: str) -> CandidateTarget:
        """Return the signed description of a bundle that was published to be measured.

        Raises:
            EdgeopsError: E-TRUST-TARGET; not published, or no candidate. Otherwise as `refresh`.
        """
        parts = path.split("/")
        if len(parts) != 3 or parts[1] != CANDIDATES:
            raise EdgeopsError("E-TRUST-TARGET", f"{path[:200]!r} is no candidate")
        file = self.find(path)
        if "sha256" not in file.hashes:
            raise EdgeopsError("E-TRUST-TARGET", f"{path} is described without SHA-256")
        return CandidateTarget(path, file.length, file.hashes["sha256"])

    def desired_keys(self) -> dict[str, Key]:
        """Return the keys that may sign desired state, by key id: those of the role `desired-state`.

        Needs no network: metadata that was verified before serves until it expires.

        Raises:
            EdgeopsError: E-TRUST-METADATA; there is none yet, or it names no such role. E-TRUST-EXPIRED.
        """
        targets = self._current().targets
        role = roles.delegated_roles(targets).get(roles.DESIRED)
        if role is None:
            raise EdgeopsError("E-TRUST-METADATA", f"targets metadata has no role {roles.DESIRED}")
        known = roles.delegated_keys(targets)
        return {keyid: known[keyid] for keyid in role.keyids if keyid in known}

    @property
    def consistent_snapshot(self) -> bool:
        """Whether the repository names its files by version and hash.

        Raises:
            EdgeopsError: E-TRUST-ROOT, E-TRUST-METADATA, E-TRUST-EXPIRED.
        """
        return bool(self._current().root.consistent_snapshot)

    @property
    def last_fresh_s(self) -> float | None:
        """When `refresh` last succeeded, by the time rule; None: never."""
        try:
            return float((self._dir / _LAST_FRESH).read_text())
        except (OSError, ValueError):
            return None

    def expires_s(self) -> float | None:
        """Return when the cached metadata ceases to allow changes; None: there is none that is valid now.

        Past it, or None after enrolment, the device is stale: somebody holds back news, or the server is away.
        """
        try:
            trusted = self._current()
        except EdgeopsError:
            return None
        return _earliest_expiry(trusted)

    def _from_root(self) -> TrustedMetadataSet:
        """As `_from_cached_root`; where that is damaged, the first root is fetched again, known by its hash."""
        try:
            return self._from_cached_root()
        except EdgeopsError as error:
            if error.code not in ("E-TRUST-ROOT", "E-TRUST-METADATA") or not self._fetch_first_root():
                raise
            log.error("E-STATE-CORRUPT: the trusted root was damaged: %s", error.what)
        return self._from_cached_root()

    def _fetch_first_root(self) -> bool:
        """Fetch the root that the enrolment token named; those that follow are found from there, as after enrolment.

        Returns:
            Whether it is here now. It is not where the hash is lost too, or no server has that root.
        """
        try:
            expected = (self._dir / _FIRST_ROOT).read_text()
        except (OSError, UnicodeDecodeError):
            return False
        with translated():
            for version in range(1, 1 + self._limits.roots):
                try:
                    data = self._download(f"{version}.root.json", self._limits.root)
                except exceptions.DownloadHTTPError as error:
                    if error.status_code in (403, 404):
                        return False
                    raise
                if hashlib.sha256(data).hexdigest() == expected:
                    durable.write_file(self._dir / "root.json", data)
                    return True
        return False

    def _from_cached_root(self) -> TrustedMetadataSet:
        try:
            data = (self._dir / "root.json").read_bytes()
        except OSError as error:
            raise EdgeopsError("E-TRUST-ROOT", f"{self._dir} has no root", "Enrol the device.") from error
        with translated():
            trusted = TrustedMetadataSet(data, EnvelopeType.METADATA)
        trusted.reference_time = self._reference_time()
        return trusted

    def _reference_time(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(min(self._clock.now(), _MAX_TIME_S), tz=datetime.timezone.utc)

    def _current(self) -> TrustedMetadataSet:
        """Return what was verified, still valid now: of the last refresh, or from the cache.

        Raises:
            EdgeopsError: E-TRUST-ROOT, E-TRUST-METADATA, E-TRUST-EXPIRED.
        """
        if self._trusted is None:
            trusted = self._from_cached_root()
            self._clock.limit(trusted.root.expires.timestamp())
            with translated():
                trusted.update_timestamp(self._cached(Timestamp.type))
                trusted.update_snapshot(self._cached(Snapshot.type), trusted=True)
                trusted.update_targets(self._cached(Targets.type))
            self._trusted = trusted
        if self._clock.now() >= _earliest_expiry(self._trusted):
            self._trusted = None
            raise EdgeopsError("E-TRUST-EXPIRED", "the cached metadata has expired", "Refresh when the server is up.")
        return self._trusted

    def _update_root(self, trusted: TrustedMetadataSet) -> None:
        for version in range(trusted.root.version + 1, trusted.root.version + 1 + self._limits.roots):
            try:
                data = self._download(f"{version}.root.json", self._limits.root)
            except exceptions.DownloadHTTPError as error:
                if error.status_code in (403, 404):
                    return
                raise
            trusted.update_root(data)
            durable.write_file(self._dir / "root.json", data)

    def _update_timestamp(self, trusted: TrustedMetadataSet) -> None:
        # The cached one sets the floor for versions, also when it has expired.
        with contextlib.suppress(exceptions.RepositoryError, FileNotFoundError):
            trusted.update_timestamp(self._read(Timestamp.type))
        data = self._download("timestamp.json", self._limits.timestamp)
        try:
            trusted.update_timestamp(data)
        except exceptions.EqualVersionNumberError:
            return
        self._keep(Timestamp.type, data)

    def _update_snapshot(self, trusted: TrustedMetadataSet) -> None:
        try:
            trusted.update_snapshot(self._read(Snapshot.type), trusted=True)
        except (exceptions.RepositoryError, FileNotFoundError):
            meta = trusted.timestamp.snapshot_meta
            data = self._download(
                _remote_name(trusted.root, Snapshot.type, meta.version), meta.length or self._limits.snapshot
            )
            trusted.update_snapshot(data)
            self._keep(Snapshot.type, data)

    def _update_targets(self, trusted: TrustedMetadataSet) -> None:
        try:
            trusted.update_targets(self._read(Targets.type))
        except (exceptions.RepositoryError, FileNotFoundError):
            data = self._fetch_role(trusted, Targets.type)
            trusted.update_targets(data)
            self._keep(Targets.type, data)

    def _load_delegated(self, trusted: TrustedMetadataSet, role: str, delegator: Targets) -> Targets:
        """Return a delegated role's metadata, from the cache or else from the server.

        Verified against this delegator each time: another one may delegate a role of the same name to other keys.
        """
        meta = trusted.snapshot.meta.get(f"{role}.json")
        if meta is None:
            raise exceptions.RepositoryError(f"role {role} is not in the snapshot")
        try:
            return _verified(self._read(role), role, delegator, meta, trusted.reference_time)
        except (exceptions.RepositoryError, FileNotFoundError):
            data = self._fetch_role(trusted, role)
            targets = _verified(data, role, delegator, meta, trusted.reference_time)
            self._keep(role, data)
            return targets

    def _fetch_role(self, trusted: TrustedMetadataSet, role: str) -> bytes:
        meta = trusted.snapshot.meta.get(f"{role}.json")
        if meta is None:
            raise exceptions.RepositoryError(f"role {role} is not in the snapshot")
        return self._download(_remote_name(trusted.root, role, meta.version), meta.length or self._limits.targets)

    def _walk(self, trusted: TrustedMetadataSet, path: str) -> TargetFile | None:
        """Search the delegations depth first, in order of trust: TUF specification, section 5.6.7."""
        to_visit: list[tuple[str, Targets | None]] = [(Targets.type, None)]
        visited: set[str] = set()
        while to_visit and len(visited) <= self._limits.delegations:
            role, delegator = to_visit.pop()
            if role in visited:
                continue
            targets = self._load_delegated(trusted, role, delegator) if delegator else trusted.targets
            if (found := targets.targets.get(path)) is not None:
                return found
            visited.add(role)
            if targets.delegations is None:
                continue
            children: list[tuple[str, Targets | None]] = []
            for child, terminating in targets.delegations.get_roles_for_target(path):
                children.append((child, targets))
                if terminating:
                    to_visit.clear()
                    break
            to_visit.extend(reversed(children))
        return None

    def _download(self, name: str, max_length: int) -> bytes:
        """Fetch a metadata file within limits of size and time."""
        url, began_s = f"{self._url}/{name}", time.monotonic()
        data = bytearray()
        try:
            for block in self._fetcher.fetch(url):
                data += block
                if len(data) > max_length:
                    raise exceptions.DownloadLengthMismatchError(f"{url}: more than {max_length} bytes")
                if time.monotonic() - began_s > self._limits.grace_s + len(data) / self._limits.bytes_per_s:
                    raise exceptions.SlowRetrievalError(f"{url}: only {len(data)} bytes in {self._limits.grace_s} s")
        except OSError as error:
            raise exceptions.DownloadError(f"{url}: {error}") from error
        return bytes(data)

    def _path(self, role: str) -> Path:
        return self._dir / f"{quote(role, '')}.json"

    def _read(self, role: str) -> bytes:
        """Read a cached file; one that cannot be read is as good as missing.

        Raises:
            FileNotFoundError: There is none.
        """
        try:
            return self._path(role).read_bytes()
        except OSError as error:
            raise FileNotFoundError(role) from error

    def _cached(self, role: str) -> bytes:
        try:
            return self._read(role)
        except FileNotFoundError:
            raise exceptions.RepositoryError(f"no {role} metadata is cached") from None

    def _keep(self, role: str, data: bytes) -> None:
        durable.write_file(self._path(role), data)


def _remote_name(root: Root, role: str, version: int) -> str:
    name = f"{quote(role, '')}.json"
    return f"{version}.{name}" if root.consistent_snapshot else name


def _earliest_expiry(trusted: TrustedMetadataSet) -> float:
    signed = (trusted.root, trusted.timestamp, trusted.snapshot, trusted.targets)
    return min(part.expires.timestamp() for part in signed)


def _verified(data: bytes, role: str, delegator: Targets, meta: MetaFile, reference_time: datetime.datetime) -> Targets:
    """Return delegated metadata that the snapshot names and the delegator's keys signed, still valid.

    Raises:
        RepositoryError: It is not.
    """
    meta.verify_length_and_hashes(data)
    metadata: Metadata[Targets] = Metadata.from_bytes(data)
    targets = metadata.signed
    if not isinstance(targets, Targets):
        raise exceptions.RepositoryError(f"{role} is not targets metadata")
    delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    if targets.version != meta.version:
        raise exceptions.BadVersionNumberError(f"{role} is version {targets.version}, expected {meta.version}")
    if targets.is_expired(reference_time):
        raise exceptions.ExpiredMetadataError(f"{role} is expired")
    return targets
