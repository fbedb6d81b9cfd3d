"""A rig's word on a run: its result, signed with the rig's own key."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner, Key

from edgeops import durable
from edgeops.contracts.names import check_name
from edgeops.contracts.rigs import RIG_RESULT_TYPE, RigResult
from edgeops.contracts.wire import encode
from edgeops.releases.rig_results import MAX_RESULT_BYTES
from edgeops.trust import envelopes, keys


def key_folder() -> Path:
    """Return where rigs' keys lie: `$EDGEOPS_RIG_KEYS`, or `~/.config/edgeops/rigs`."""
    return Path(os.environ.get("EDGEOPS_RIG_KEYS") or Path.home() / ".config" / "edgeops" / "rigs")


class RigKey:
    """A rig's Ed25519 key.

    Args:
        signer: The private half.
    """

    def __init__(self, signer: CryptoSigner) -> None:
        self.signer = signer

    @classmethod
    def of_rig(cls, name: str) -> RigKey:
        """Return a rig's key on this machine; made at its first use.

        Raises:
            EdgeopsError: E-TRUST-KEY; it cannot be read. E-DISK-FULL or E-DISK-WRITE.
        """
        path = key_folder() / f"{check_name(name, 'rig')}.pem"
        if not path.exists():
            durable.make_private_dir(path.parent)
            # Two that use it first at once get one key: what one of them signed must hold for the other's word, too.
            with path.with_suffix(".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    keys.save(keys.generate(), path)
        return cls(keys.load(path))

    @property
    def public(self) -> Key:
        """The public half."""
        return self.signer.public_key

    @property
    def public_pem(self) -> str:
        """The public half as a file for `edgeops release trust-rig`."""
        raw = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.public.keyval["public"]))
        return raw.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def seal(result: RigResult, key: RigKey) -> bytes:
    """Return a result as a signed statement.

    Raises:
        EdgeopsError: E-WIRE-SIZE.
    """
    return envelopes.seal(encode(result), RIG_RESULT_TYPE, key.signer, max_bytes=MAX_RESULT_BYTES)
