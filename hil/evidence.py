"""A rig's word on a run: its result, signed with the rig's own key."""

from __future__ import annotations

import os
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Key

from edgeops import durable
from edgeops.contracts.names import check_name
from edgeops.contracts.wire import decode, encode
from edgeops.trust import envelopes, keys
from hil.results import RigResult

PAYLOAD_TYPE = "application/vnd.edgeops.rig-result+json"
MAX_BYTES = 8 << 20


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
            keys.save(keys.generate(), path)
        return cls(keys.load(path))

    @property
    def public(self) -> Key:
        """The public half."""
        return self.signer.public_key


def seal(result: RigResult, key: RigKey) -> bytes:
    """Return a result as a signed statement.

    Raises:
        EdgeopsError: E-WIRE-SIZE.
    """
    return envelopes.seal(encode(result), PAYLOAD_TYPE, key.signer, max_bytes=MAX_BYTES)


def unseal(data: bytes, trusted: dict[str, Key]) -> RigResult:
    """Return a result that one of the trusted rigs' keys signed.

    Raises:
        EdgeopsError: E-TRUST-SIGNATURE; none of them did. E-WIRE-MALFORMED or E-WIRE-SIZE.
    """
    payload = envelopes.unseal(data, PAYLOAD_TYPE, trusted, max_bytes=MAX_BYTES)
    return decode(payload, RigResult, what="a rig's result")
