"""A new fleet's home: its keys, its certificate authority and an empty repository."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from securesystemslib.signer import CryptoSigner

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.contracts.wire import encode
from edgeops.trust import keys, roles
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.edition import first_edition
from edgeops.trust.publisher import FLEET_FILE, KEYS, REPOSITORY, FleetFile, Publisher
from edgeops.trust.repository import Repository

CA = "ca"


class KeyPlan(NamedTuple):
    """How many keys a role has, and how many of them must sign."""

    keys: int = 1
    threshold: int = 1


ONE_KEY = KeyPlan()


def make_fleet(
    home: Path,
    fleet: str,
    *,
    root: KeyPlan = ONE_KEY,
    targets: KeyPlan = ONE_KEY,
    scheme: keys.KeyScheme = "ed25519",
    secret: bytes | None = None,
    now: Callable[[], float] = time.time,
) -> Publisher:
    """Make a fleet: keys, certificate authority and an empty repository; return its publisher.

    `root` and `targets` are the offline keys: they are encrypted if there is a passphrase, and may be moved away.
    The online ones (`snapshot`, `timestamp`, `desired`) are not: the control plane uses them unattended.

    Args:
        home: The fleet's home; made if missing.
        fleet: The fleet's name.
        root: Keys and threshold of the root role.
        targets: Keys and threshold of the top targets role.
        scheme: Kind of the offline keys.
        secret: Passphrase; None: from EDGEOPS_KEY_PASSPHRASE.
        now: Clock.

    Raises:
        EdgeopsError: E-NAME. E-CONFIG; there is a fleet already, or an impossible threshold. E-DISK-FULL or
            E-DISK-WRITE.
    """
    check_name(fleet, "fleet")
    for name in (FLEET_FILE, KEYS, CA, REPOSITORY):
        if (home / name).exists():
            raise EdgeopsError(
                "E-CONFIG", f"{home / name} exists", "Name a new folder; nothing of a fleet is ever overwritten."
            )
    for plan in (root, targets):
        if not 1 <= plan.threshold <= plan.keys:
            raise EdgeopsError("E-CONFIG", f"{plan.threshold} of {plan.keys} keys is impossible")
    secret = secret or keys.passphrase()
    durable.make_private_dir(home / KEYS)
    signers: dict[str, list[CryptoSigner]] = {}
    for role, plan in ((roles.ROOT, root), (roles.TARGETS, targets)):
        signers[role] = [
            _new_key(home / KEYS, role if plan.keys == 1 else f"{role}-{number}", scheme, secret)
            for number in range(1, plan.keys + 1)
        ]
    for role in (roles.SNAPSHOT, roles.TIMESTAMP, roles.DESIRED):
        signers[role] = [_new_key(home / KEYS, role.removesuffix("-state"), "ed25519", None)]
    FleetAuthority.create(home / CA, fleet, now)
    files = first_edition(signers, {roles.ROOT: root.threshold, roles.TARGETS: targets.threshold}, now())
    first_root = hashlib.sha256(files[0].data).hexdigest()
    repository = Repository(home / REPOSITORY, first_root)
    repository.make()
    repository.commit(files)
    # Last: a home is one only if all the rest is there.
    durable.write_file(home / FLEET_FILE, encode(FleetFile(fleet=fleet, root_sha256=first_root)))
    return Publisher(home, secret=secret, now=now)


def _new_key(folder: Path, name: str, scheme: keys.KeyScheme, secret: bytes | None) -> CryptoSigner:
    signer = keys.generate(scheme)
    keys.save(signer, folder / f"{name}.pem", secret)
    return signer
