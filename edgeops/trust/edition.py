"""The first and the next editions of the repository: what changes, signed, in the order in which it is written."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Iterable, Mapping, Sequence

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Role, Root, Snapshot, TargetFile, Targets, Timestamp

from edgeops.contracts.errors import EdgeopsError
from edgeops.trust import roles
from edgeops.trust.keys import KeyStore
from edgeops.trust.repository import AnyMetadata, MetadataFile, RepositoryState, to_bytes
from edgeops.trust.roles import ROOT, SNAPSHOT, TARGETS, TIMESTAMP


class Edition:
    """A change to a repository, made in memory; `sealed` gives the files that make it real.

    Args:
        state: The present repository.
        keys: The private keys that are at hand.
        now_s: When it is signed.
        lifetime_s: Life of the top-level roles.
        skip: Versions of snapshot and timestamp that were signed and given away: they are left out.
    """

    def __init__(
        self,
        state: RepositoryState,
        keys: KeyStore,
        now_s: float,
        *,
        lifetime_s: Mapping[str, float] = roles.LIFETIME_S,
        skip: int = 0,
    ) -> None:
        self.state, self._keys, self._now_s = state, keys, now_s
        self._lifetime_s, self._skip = lifetime_s, skip
        self.root: Root = copy.deepcopy(state.root.signed)
        self.targets: Targets = copy.deepcopy(state.targets.signed)
        self._touched: set[str] = set()
        self._roles: dict[str, Metadata[Targets]] = {}

    def models(self) -> list[str]:
        """Return the models that have a role."""
        return delegated_models(self.targets)

    def touch(self, role: str) -> None:
        """Sign a role anew, although its content may be as before."""
        self._touched.add(role)

    def due(self) -> dict[str, float]:
        """Return the roles that have less than half of their life left, and when they expire."""
        state = self.state
        top: list[tuple[str, Root | Targets | Snapshot | Timestamp]] = [
            (ROOT, state.root.signed),
            (TARGETS, state.targets.signed),
            (SNAPSHOT, state.snapshot.signed),
            (TIMESTAMP, state.timestamp.signed),
        ]
        found = {
            role: signed.expires.timestamp()
            for role, signed in top
            if roles.is_due(signed.expires, roles.LIFETIME_S[role], self._now_s)
        }
        for model in self.models():
            name = roles.model_role(model)
            for role, metadata in {name: self._role(name, state.targets.signed), **self.bins(model)}.items():
                if roles.is_due(metadata.signed.expires, roles.MODEL_LIFETIME_S, self._now_s):
                    found[role] = metadata.signed.expires.timestamp()
        return found

    def bins(self, model: str) -> dict[str, Metadata[Targets]]:
        """Return the hash bins of a model by name.

        Raises:
            EdgeopsError: E-TRUST-METADATA; the repository is damaged.
        """
        role = self._role(roles.model_role(model), self.state.targets.signed).signed
        return {name: self._role(name, role) for name in bin_names(role)}

    def way_to(self, model: str, path: str) -> tuple[str, str]:
        """Return the delegated roles between the top and a target: its model's role and its bin."""
        name = roles.model_role(model)
        return name, _bin_of(self._role(name, self.state.targets.signed).signed, path)

    def offline_until(self, paths: Iterable[str]) -> datetime.datetime:
        """Return when the first of the roles on the way to these targets expires that only offline keys renew."""
        found = [self.state.root.signed.expires, self.state.targets.signed.expires]
        for path in paths:
            model = roles.model_of_path(path)
            role, part = self.way_to(model, path)
            found.append(self._role(role, self.state.targets.signed).signed.expires)
            found.append(self.bins(model)[part].signed.expires)
        return min(found)

    def delegate(self, model: str, keys: Sequence[Key], threshold: int) -> None:
        """Give a model a role and empty bins, which these keys sign."""
        role = roles.delegate_model(model, list(keys), threshold)
        roles.delegated_keys(self.targets).update({key.keyid: key for key in keys})
        roles.delegated_roles(self.targets)[role.name] = role
        self.touch(TARGETS)
        bins = roles.Bins(model, roles.FIRST_BITS)
        signed = self._new_targets()
        signed.delegations = roles.bin_delegations(bins, list(keys), threshold)
        self._put(role.name, signed)
        for name in bin_names(signed):
            self._put(name, self._new_targets())

    def keyids(self, role: str) -> list[str]:
        """Return the keys of a role: a top-level one, or one that the top targets role delegates.

        Raises:
            EdgeopsError: E-TRUST-KEY; there is no such role.
        """
        if role in roles.LIFETIME_S:
            return list(self.root.roles[role].keyids)
        if role in roles.delegated_roles(self.targets):
            return list(roles.delegated_roles(self.targets)[role].keyids)
        raise EdgeopsError("E-TRUST-KEY", f"there is no role {role}", "See edgeops trust status.")

    def replace_key(self, role: str, old_keyid: str, new: Key) -> None:
        """Take one key of a role away and give it another; what the role signs is signed anew.

        Raises:
            EdgeopsError: E-TRUST-KEY; the role has no such key. E-TRUST-METADATA; the repository is damaged.
        """
        present = self.keyids(role)
        if old_keyid not in present or new.keyid in present:
            raise EdgeopsError("E-TRUST-KEY", f"role {role}: cannot replace {old_keyid[:16]} by {new.keyid[:16]}")
        if role in roles.LIFETIME_S:
            self.root.revoke_key(old_keyid, role)
            self.root.add_key(new, role)
            self.touch(ROOT)
            self.touch(role)
            return
        self.targets.revoke_key(old_keyid, role)
        self.targets.add_key(new, role)
        self.touch(TARGETS)
        if model := roles.model_of(role):
            bins = self.bins(model)
            signed = self._role(role, self.state.targets.signed).signed
            signed.revoke_key(old_keyid)
            signed.add_key(new)
            self._put(role, signed)
            for name, metadata in bins.items():
                self._put(name, metadata.signed)

    def add(self, model: str, files: Iterable[TargetFile]) -> None:
        """Add targets to a model's bins, and double the bins when they become too full.

        Raises:
            EdgeopsError: E-RELEASE-EXISTS; a path has other content already. E-TRUST-METADATA.
        """
        bins = self.bins(model)
        role = self._role(roles.model_role(model), self.state.targets.signed)
        for file in files:
            name = _bin_of(role.signed, file.path)
            present = bins[name].signed.targets.get(file.path)
            if present is not None and present != file:
                raise EdgeopsError("E-RELEASE-EXISTS", f"{file.path} is published with other content")
            if present is None:
                bins[name].signed.targets[file.path] = file
                self._put(name, bins[name].signed)
        self._grow(model, role.signed, bins)

    def remove(self, model: str, paths: Iterable[str]) -> None:
        """Take targets out of a model's bins; one that is not there stays away.

        Raises:
            EdgeopsError: E-TRUST-METADATA.
        """
        bins = self.bins(model)
        role = self._role(roles.model_role(model), self.state.targets.signed)
        for path in paths:
            name = _bin_of(role.signed, path)
            if bins[name].signed.targets.pop(path, None) is not None:
                self._put(name, bins[name].signed)

    def sealed(self) -> list[MetadataFile]:
        """Sign all that changed; return the files in the order to write them: `timestamp.json` turns the page.

        Raises:
            EdgeopsError: E-TRUST-KEY; fewer keys are here than the role's threshold. Nothing was written.
        """
        if not self._touched:
            return []
        changed = self._touched - {ROOT, SNAPSHOT, TIMESTAMP}
        files = [self._seal_delegated(name) for name in sorted(changed - {TARGETS})]
        if TARGETS in self._touched:
            files.append(self._seal_top(TARGETS, self.targets, self.state.targets.signed.version))
        snapshot = copy.deepcopy(self.state.snapshot.signed)
        if changed or SNAPSHOT in self._touched:
            snapshot.meta.update({f"{name}.json": MetaFile(self._next_version(name)) for name in changed})
            files.append(self._seal_top(SNAPSHOT, snapshot, self.state.snapshot.signed.version))
            self.touch(TIMESTAMP)
        if TIMESTAMP in self._touched:
            timestamp = copy.deepcopy(self.state.timestamp.signed)
            if SNAPSHOT in self._touched or changed:
                timestamp.snapshot_meta = MetaFile.from_data(snapshot.version, files[-1].data, ["sha256"])
            files.append(self._seal_top(TIMESTAMP, timestamp, self.state.timestamp.signed.version))
        return self._with_root(files) if ROOT in self._touched else files

    def _with_root(self, files: list[MetadataFile]) -> list[MetadataFile]:
        """Put the new root where no cut leaves a repository that does not verify, as far as keys allow."""
        self.root.version = self.state.root.signed.version + 1
        self.root.expires = roles.expiry(self._now_s, roles.LIFETIME_S[ROOT])
        metadata = Metadata(self.root)
        self._sign(metadata, ROOT, [self.state.root.signed.roles[ROOT], self.root.roles[ROOT]], both=True)
        file = MetadataFile(f"{self.root.version}.{ROOT}.json", to_bytes(metadata))
        old = self.state.root.signed
        for index, written in enumerate(files):
            role = written.name.removesuffix(".json").lstrip("0123456789").removeprefix(".")
            if role in (TARGETS, SNAPSHOT, TIMESTAMP) and not _verifies(old, role, written.data):
                # A lost key cannot sign for the old root: from here on only the new one can verify.
                return [*files[:index], file, *files[index:]]
        return [*files, file]

    def _seal_delegated(self, name: str) -> MetadataFile:
        metadata = self._roles[name]
        metadata.signed.version = self._next_version(name)
        metadata.signed.expires = roles.expiry(self._now_s, roles.MODEL_LIFETIME_S)
        self._sign(metadata, name, [self._delegation(name)])
        return MetadataFile(f"{metadata.signed.version}.{name}.json", to_bytes(metadata))

    def _seal_top(self, role: str, signed: Targets | Snapshot | Timestamp, version: int) -> MetadataFile:
        signed.version = version + 1 + (self._skip if role in (SNAPSHOT, TIMESTAMP) else 0)
        signed.expires = roles.expiry(self._now_s, self._lifetime_s[role])
        metadata: AnyMetadata = Metadata(signed)
        # While a root changes, what both the old and the new one accept is valid at every moment.
        self._sign(metadata, role, [self.state.root.signed.roles[role], self.root.roles[role]])
        name = f"{role}.json" if role == TIMESTAMP else f"{signed.version}.{role}.json"
        return MetadataFile(name, to_bytes(metadata))

    def _sign(self, metadata: AnyMetadata, name: str, accepting: Sequence[Role], *, both: bool = False) -> None:
        """Sign with every key at hand that one of the roles lists; the last of them (or all) must then accept."""
        metadata.signatures.clear()
        keyids = dict.fromkeys(keyid for role in accepting for keyid in role.keyids)
        for signer in self._keys.signers(keyids):
            metadata.sign(signer, append=True)
        for role in accepting if both else accepting[-1:]:
            here = [keyid for keyid in role.keyids if keyid in metadata.signatures]
            if len(here) < role.threshold:
                raise EdgeopsError(
                    "E-TRUST-KEY",
                    f"role {name} needs {role.threshold} of its {len(role.keyids)} keys, {len(here)} are here",
                    "Name the folder that has them with --keys.",
                )

    def _grow(self, model: str, role: Targets, bins: Mapping[str, Metadata[Targets]]) -> None:
        succinct = roles.succinct_roles(role)
        files = [file for metadata in bins.values() for file in metadata.signed.targets.values()]
        bits = roles.bits_for(len(files), succinct.bit_length)
        if bits == succinct.bit_length:
            return
        present = [roles.delegated_keys(role)[keyid] for keyid in succinct.keyids]
        role.delegations = roles.bin_delegations(roles.Bins(model, bits), present, succinct.threshold)
        self._put(roles.model_role(model), role)
        grown = {name: self._new_targets() for name in bin_names(role)}
        for file in files:
            grown[_bin_of(role, file.path)].targets[file.path] = file
        # Bins that are no more keep their last version in the snapshot: a role that vanishes from it is an attack.
        self._touched -= bins.keys()
        for name, signed in grown.items():
            self._put(name, signed)

    def _role(self, name: str, delegator: Targets) -> Metadata[Targets]:
        if name not in self._roles:
            self._roles[name] = self.state.role(name, delegator)
        return self._roles[name]

    def _put(self, name: str, signed: Targets) -> None:
        self._roles[name] = Metadata(signed)
        self.touch(name)

    def _new_targets(self) -> Targets:
        return Targets(expires=roles.expiry(self._now_s, roles.MODEL_LIFETIME_S))

    def _next_version(self, role: str) -> int:
        return self.state.version(role) + 1

    def _delegation(self, name: str) -> Role:
        model = roles.model_of(name)
        delegator = self.targets if model else self._roles[roles.model_role(roles.model_of_bin(name))].signed
        return delegator.get_delegated_role(name)


def delegated_models(targets: Targets) -> list[str]:
    """Return the models that the top targets role delegates."""
    found = (roles.model_of(name) for name in roles.delegated_roles(targets))
    return [model for model in found if model is not None]


def bin_names(role: Targets) -> list[str]:
    """Return the names of a model role's bins."""
    return list(roles.succinct_roles(role).get_roles())


def _bin_of(role: Targets, path: str) -> str:
    return roles.succinct_roles(role).get_role_for_target(path)


def _verifies(root: Root, role: str, data: bytes) -> bool:
    metadata: Metadata[Targets] = Metadata.from_bytes(data)
    try:
        root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except RepositoryError:
        return False
    return True


def first_edition(
    signers: Mapping[str, Sequence[CryptoSigner]], thresholds: Mapping[str, int], now_s: float
) -> list[MetadataFile]:
    """Return the first edition, the root before all."""
    expires = {role: roles.expiry(now_s, lifetime_s) for role, lifetime_s in roles.LIFETIME_S.items()}
    root = Root(expires=expires[ROOT], consistent_snapshot=True)
    for role in roles.LIFETIME_S:
        for signer in signers[role]:
            root.add_key(signer.public_key, role)
        root.roles[role].threshold = thresholds.get(role, 1)
    targets = Targets(
        expires=expires[TARGETS],
        delegations=roles.first_delegations(signers[roles.DESIRED][0].public_key),
    )
    snapshot = Snapshot(expires=expires[SNAPSHOT])
    files = [
        MetadataFile("1.root.json", _signed(Metadata(root), signers[ROOT])),
        MetadataFile("1.targets.json", _signed(Metadata(targets), signers[TARGETS])),
        MetadataFile("1.snapshot.json", _signed(Metadata(snapshot), signers[SNAPSHOT])),
    ]
    timestamp = Timestamp(expires=expires[TIMESTAMP])
    timestamp.snapshot_meta = MetaFile.from_data(1, files[-1].data, ["sha256"])
    return [*files, MetadataFile("timestamp.json", _signed(Metadata(timestamp), signers[TIMESTAMP]))]


def _signed(metadata: AnyMetadata, signers: Sequence[CryptoSigner]) -> bytes:
    for signer in signers:
        metadata.sign(signer, append=True)
    return to_bytes(metadata)
