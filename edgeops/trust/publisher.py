"""The publisher's end of TUF: publishes targets, delegates and replaces keys, keeps signatures fresh."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import Role, Signed, TargetFile

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.release import TargetCustom
from edgeops.contracts.wire import Wire, decode
from edgeops.trust import keys, roles
from edgeops.trust.edition import Edition, delegated_models
from edgeops.trust.repository import Repository

log = logging.getLogger(__name__)

FLEET_FILE = "fleet.json"
KEYS, REPOSITORY = "keys", "repository"
BLOB_KEY = "mcu-blobs"
WARN_BEFORE_DAYS = 45
_ONLINE = (roles.SNAPSHOT, roles.TIMESTAMP)


class NewTarget(NamedTuple):
    """A file to publish: its target path, where it lies now, and what ties it to a release (bundles only)."""

    path: str
    file: Path
    custom: TargetCustom | None = None


class PublishedTarget(NamedTuple):
    """A target as its signed description says."""

    length: int
    sha256: str
    custom: TargetCustom | None


class RoleStatus(NamedTuple):
    """How one role stands. A model's bins are shown as one, by the one that expires first."""

    role: str
    version: int
    expires_in_s: float
    threshold: int
    keys: int
    keys_here: int


class Loan(NamedTuple):
    """A snapshot and a timestamp for devices without network: file name → content, and until when a target holds."""

    files: Mapping[str, bytes]
    valid_until_s: float


class FleetFile(Wire, frozen=True, kw_only=True):
    """`fleet.json` of a fleet's home: the fleet's name and the hash of its first root, the anchor of everything."""

    fleet: str
    root_sha256: str
    schema_version: int = msgspec.field(default=1, name="schema")


class Publisher:
    """The repository of one fleet and the keys that are at hand here.

    Args:
        home: The fleet's home.
        key_folders: Folders with private keys beside `home/keys`, such as a mounted stick with the offline ones.
        secret: Passphrase of encrypted keys; None: from EDGEOPS_KEY_PASSPHRASE.
        now: Clock, seconds since 1970-01-01 UTC.

    Raises:
        EdgeopsError: E-TRUST-KEY; the home is not set up.
    """

    def __init__(
        self,
        home: Path,
        *,
        key_folders: Sequence[Path] = (),
        secret: bytes | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        try:
            fleet_file = decode((home / FLEET_FILE).read_bytes(), FleetFile, what=str(home / FLEET_FILE))
        except OSError as error:
            raise EdgeopsError("E-TRUST-KEY", f"{home} is not a fleet's home", "Run edgeops trust init.") from error
        self._home, self._now = home, now
        self._fleet_file = fleet_file
        self._secret = secret or keys.passphrase()
        self._keys = keys.KeyStore([home / KEYS, *key_folders], self._secret)
        self._repository = Repository(home / REPOSITORY, fleet_file.root_sha256)

    @property
    def home(self) -> Path:
        """The fleet's home."""
        return self._home

    @property
    def fleet(self) -> str:
        """The fleet's name."""
        return self._fleet_file.fleet

    def root_bytes(self) -> bytes:
        """Return the newest root, the one that new devices start from.

        Raises:
            EdgeopsError: E-TRUST-METADATA; the repository is damaged.
        """
        return self._repository.root_bytes()

    def root_sha256(self) -> str:
        """Return the SHA-256 of the newest root, lower-case hex.

        Raises:
            EdgeopsError: E-TRUST-METADATA; the repository is damaged.
        """
        return hashlib.sha256(self.root_bytes()).hexdigest()

    def edition_mark(self) -> object:
        """Return what differs after each change of the repository, and costs no reading."""
        return self._repository.mark()

    def desired_signer(self) -> CryptoSigner:
        """Return the key that signs desired state.

        Raises:
            EdgeopsError: E-TRUST-KEY; it is not here. E-TRUST-METADATA; the repository is damaged.
        """
        return self._one_signer(roles.DESIRED)

    def targets(self) -> dict[str, PublishedTarget]:
        """Return every published target by path.

        Raises:
            EdgeopsError: E-TRUST-METADATA; the repository is damaged.
        """
        edition = self._edition()
        return {
            path: PublishedTarget(target.length, target.hashes["sha256"], _custom(target))
            for model in edition.models()
            for role in edition.bins(model).values()
            for path, target in role.signed.targets.items()
        }

    def models(self) -> dict[str, dict[str, Key]]:
        """Return who may publish what: each model that has a role, and its keys by key id.

        Raises:
            EdgeopsError: E-TRUST-METADATA; the repository is damaged.
        """
        targets = self._repository.load().targets.signed
        known = roles.delegated_keys(targets)
        return {
            model: {keyid: known[keyid] for keyid in roles.delegated_roles(targets)[roles.model_role(model)].keyids}
            for model in delegated_models(targets)
        }

    def model_signer(self, model: str) -> CryptoSigner:
        """Return a key that may publish a model, for statements about its releases.

        Raises:
            EdgeopsError: E-TRUST-KEY; none is here. E-TRUST-METADATA; the repository is damaged.
        """
        return self._one_signer(roles.model_role(model))

    def blob_signer(self) -> CryptoSigner:
        """Return the key that signs microcontrollers' blobs, which their firmware holds; it is made when first asked
        for, and encrypted as offline keys are.

        Raises:
            EdgeopsError: E-TRUST-KEY; its private half is not here, or cannot be read. E-DISK-FULL or E-DISK-WRITE.
        """
        path = self._home / KEYS / f"{BLOB_KEY}.pem"
        if not path.with_suffix(".pub").exists():
            keys.save(keys.generate(), path, self._secret)
        keyid = keys.load_public(path.with_suffix(".pub")).keyid
        found = self._keys.signers([keyid])
        if not found:
            raise EdgeopsError("E-TRUST-KEY", f"the key {BLOB_KEY} is not here", "Name the folder that has it.")
        return found[0]

    def target_file(self, path: str, target: PublishedTarget) -> Path:
        """Return where a published target's file lies. Whoever reads it checks its hash."""
        return self._repository.blob(path, target.sha256)

    def metadata_files(self, paths: Sequence[str]) -> list[Path]:
        """Return the metadata files that a device needs to find these targets, from the first root on.

        Raises:
            EdgeopsError: E-RELEASE-INVALID; not paths of targets. E-TRUST-METADATA; the repository is damaged.
        """
        edition = self._edition()
        names = {name for path in paths for name in edition.way_to(roles.model_of_path(path), path)}
        return self._repository.files_of(edition.state, names)

    def valid_until_s(self, paths: Sequence[str]) -> float:
        """Return until when these targets, fetched now, may be installed.

        Raises:
            EdgeopsError: As `metadata_files`.
        """
        state = self._repository.load()
        online = (state.timestamp.signed.expires, state.snapshot.signed.expires)
        return min(self._edition().offline_until(paths), *online).timestamp()

    def lend(self, paths: Sequence[str], valid_for_s: float) -> Loan:
        """Sign a snapshot and a timestamp that hold for longer, for a device that no server reaches.

        They are never served: the repository goes on with the versions after them, which hold for as long as ever, so
        that a device with network still notices soon when news is held back.

        Raises:
            EdgeopsError: E-TRUST-KEY; an online key is not here. Otherwise as `metadata_files`; E-DISK-FULL or
                E-DISK-WRITE.
        """
        with self._repository.locked():
            state, now_s = self._repository.load(), self._now()
            lifetime_s = {**roles.LIFETIME_S, **dict.fromkeys(_ONLINE, valid_for_s)}
            lent = Edition(state, self._keys, now_s, lifetime_s=lifetime_s)
            following = Edition(state, self._keys, now_s, skip=1)
            lent.touch(roles.SNAPSHOT)
            following.touch(roles.SNAPSHOT)
            files = lent.sealed()
            # First: what is given away is then older than what is served, and no device goes back to it.
            self._repository.commit(following.sealed())
            until = min(self._edition().offline_until(paths), roles.expiry(now_s, valid_for_s))
            return Loan({file.name: file.data for file in files}, until.timestamp())

    def changing(self) -> contextlib.AbstractContextManager[None]:
        """Hold the repository, so that what is read and what is published then belong together."""
        return self._repository.locked()

    def publish(self, targets: Sequence[NewTarget]) -> None:
        """Publish files, all or none. A cut at any point leaves the previous repository valid.

        A model that is published for the first time gets a role and a key of its own; that needs the targets key.

        Raises:
            EdgeopsError: E-RELEASE-EXISTS; a path has other content already. E-RELEASE-INVALID; not a path of the
                form model/version/file. E-TRUST-KEY; a needed key is not here. E-TRUST-METADATA; the repository is
                damaged. E-DISK-FULL or E-DISK-WRITE.
        """
        by_model: dict[str, list[NewTarget]] = {}
        for target in targets:
            by_model.setdefault(roles.model_of_path(target.path), []).append(target)
        with self._repository.locked():
            edition = self._edition()
            for model, of_model in by_model.items():
                if model not in edition.models():
                    self._delegate(edition, model)
                edition.add(model, [self._store(target) for target in of_model])
            self._repository.commit(edition.sealed())

    def withdraw(self, model: str, paths: Sequence[str]) -> None:
        """Take targets of a model out of the repository, and their files.

        Raises:
            EdgeopsError: E-TRUST-KEY; a needed key is not here. E-TRUST-METADATA; the repository is damaged.
                E-DISK-FULL or E-DISK-WRITE; a file may be left that nothing names.
        """
        with self._repository.locked():
            edition, published = self._edition(), self.targets()
            files = [self._repository.blob(path, published[path].sha256) for path in paths if path in published]
            edition.remove(model, paths)
            self._repository.commit(edition.sealed())
            for file in files:
                durable.remove_tree(file)

    def delegate(self, model: str, public: Sequence[Key] = (), threshold: int = 1) -> None:
        """Say who may publish a model, before its first release.

        Args:
            model: The model.
            public: Keys that may; none: a new key is made here.
            threshold: How many of them must sign.

        Raises:
            EdgeopsError: E-CONFIG; the model has a role already, or an impossible threshold. E-TRUST-KEY; a needed
                key is not here: the model's own keys sign its empty bins. E-TRUST-METADATA. E-DISK-FULL, E-DISK-WRITE.
        """
        with self._repository.locked():
            edition = self._edition()
            if model in edition.models():
                raise EdgeopsError("E-CONFIG", f"model {model} has a role", "Use edgeops trust rotate to change keys.")
            if public and not 1 <= threshold <= len(public):
                raise EdgeopsError("E-CONFIG", f"{threshold} of {len(public)} keys is impossible")
            self._delegate(edition, model, public, threshold)
            self._repository.commit(edition.sealed())

    def rotate(self, role: str, *, old: str | None = None, new: Key | None = None) -> tuple[str, str]:
        """Replace a key of a role; the old one is worth nothing to any device that has refreshed.

        Args:
            role: As `status` names it.
            old: Key id, or its beginning; None: the role has only one.
            new: The new key, which must be in one of the key folders; None: a new one is made in `home/keys`.

        Returns:
            Key ids: the old one's and the new one's.

        Raises:
            EdgeopsError: E-TRUST-KEY; no such role or key, or too few keys are here: a new root needs the threshold
                of the old and of the new one. E-TRUST-METADATA; the repository is damaged. E-DISK-FULL, E-DISK-WRITE.
        """
        with self._repository.locked():
            edition = self._edition()
            listed = edition.keyids(role)
            chosen = [keyid for keyid in listed if keyid.startswith(old or "")]
            if len(chosen) != 1:
                raise EdgeopsError(
                    "E-TRUST-KEY",
                    f"role {role}: {len(chosen)} of its keys begin with {old or ''!r}",
                    f"Name one of: {', '.join(keyid[:16] for keyid in listed)}.",
                )
            made: Path | None = None
            if new is None:
                signer = keys.generate()
                secret = None if role in (*_ONLINE, roles.DESIRED) else self._secret
                made = self._home / KEYS / f"{role}-{signer.public_key.keyid[:8]}.pem"
                keys.save(signer, made, secret)
                new = signer.public_key
            try:
                edition.replace_key(role, chosen[0], new)
                files = edition.sealed()
            except EdgeopsError:
                # Nothing names the new key yet; once the first file is written, something may.
                if made is not None:
                    keys.remove(made)
                raise
            self._repository.commit(files)
            return chosen[0], new.keyid

    def renew(self, *, offline: bool = False) -> list[str]:
        """Sign anew what has less than half of its life left; return the roles.

        The control plane calls it without `offline` at each start and every hour: that needs only online keys.

        Args:
            offline: Renew root, targets and models too; their keys must be here.

        Raises:
            EdgeopsError: E-TRUST-KEY; a needed key is not here. E-TRUST-METADATA; the repository is damaged.
                E-DISK-FULL or E-DISK-WRITE.
        """
        with self._repository.locked():
            edition = self._edition()
            due = edition.due()
            if not offline:
                left = {role: (due[role] - self._now()) / roles.DAY_S for role in due if role not in _ONLINE}
                if left and min(left.values()) < WARN_BEFORE_DAYS:
                    log.warning(
                        "role %s expires in %.0f days: edgeops trust renew",
                        *min(left.items(), key=lambda item: item[1]),
                    )
                due = {role: due[role] for role in _ONLINE if role in due}
            for role in due:
                edition.touch(role)
            self._repository.commit(edition.sealed())
            return list(due)

    def status(self) -> list[RoleStatus]:
        """Return how every role stands.

        Raises:
            EdgeopsError: E-TRUST-METADATA; the repository is damaged. E-TRUST-KEY; a public key file is not readable.
        """
        state = self._repository.load()
        edition = Edition(state, self._keys, self._now())
        here = self._keys.files()
        root, top = state.root.signed, state.targets.signed
        rows: list[tuple[str, Signed, Role]] = [
            (roles.ROOT, root, root.roles[roles.ROOT]),
            (roles.TARGETS, top, root.roles[roles.TARGETS]),
            (roles.SNAPSHOT, state.snapshot.signed, root.roles[roles.SNAPSHOT]),
            (roles.TIMESTAMP, state.timestamp.signed, root.roles[roles.TIMESTAMP]),
            (roles.DESIRED, top, roles.delegated_roles(top)[roles.DESIRED]),
        ]
        for model in edition.models():
            name = roles.model_role(model)
            signed = [state.role(name, top).signed, *(part.signed for part in edition.bins(model).values())]
            rows.append((name, min(signed, key=lambda part: part.expires), roles.delegated_roles(top)[name]))
        return [
            RoleStatus(
                name,
                signed.version,
                signed.expires.timestamp() - self._now(),
                role.threshold,
                len(role.keyids),
                len(here.keys() & set(role.keyids)),
            )
            for name, signed, role in rows
        ]

    def _one_signer(self, role: str) -> CryptoSigner:
        delegated = roles.delegated_roles(self._repository.load().targets.signed).get(role)
        found = self._keys.signers(delegated.keyids) if delegated else []
        if not found:
            raise EdgeopsError("E-TRUST-KEY", f"no key of the role {role} is here", f"See {self._home / KEYS}.")
        return found[0]

    def _edition(self) -> Edition:
        return Edition(self._repository.load(), self._keys, self._now())

    def _delegate(self, edition: Edition, model: str, public: Sequence[Key] = (), threshold: int = 1) -> None:
        if not public:
            path = self._home / KEYS / f"{roles.model_role(model)}.pem"
            # One that is there was made by a try that was cut before it published anything.
            if not path.exists():
                keys.save(keys.generate(), path, self._secret)
            public = [keys.load_public(path.with_suffix(".pub"))]
        edition.delegate(model, public, threshold)

    def _store(self, target: NewTarget) -> TargetFile:
        file = self._repository.store(target.file, target.path)
        if target.custom is not None:
            file.unrecognized_fields["custom"] = msgspec.to_builtins(target.custom)
        return file


def _custom(target: TargetFile) -> TargetCustom | None:
    return None if target.custom is None else msgspec.convert(target.custom, TargetCustom)
