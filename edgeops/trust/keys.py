"""Signing keys as files: PKCS#8 PEM, readable by their owner only, encrypted if there is a passphrase."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError

PASSPHRASE_VARIABLE = "EDGEOPS_KEY_PASSPHRASE"  # noqa: S105  a variable's name
KeyScheme = Literal["ed25519", "ecdsa"]
_SUFFIX, _PUBLIC_SUFFIX = ".pem", ".pub"
_ENCRYPTED_MARK = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
_MAX_KEY_BYTES = 16 << 10


def passphrase() -> bytes | None:
    """Return the passphrase of offline keys from the environment, or None."""
    return os.environ.get(PASSPHRASE_VARIABLE, "").encode() or None


def generate(scheme: KeyScheme = "ed25519") -> CryptoSigner:
    """Make a new key: Ed25519, or ECDSA on P-256."""
    return CryptoSigner.generate_ed25519() if scheme == "ed25519" else CryptoSigner.generate_ecdsa()


def save(signer: CryptoSigner, path: Path, secret: bytes | None = None) -> None:
    """Write a private key, mode 0600, and beside it the public one (`.pub`), by which it is found.

    Args:
        signer: The key.
        path: File that ends in `.pem`; there must be none.
        secret: Passphrase to encrypt it with; None: not encrypted.

    Raises:
        EdgeopsError: E-TRUST-KEY; the file exists. E-DISK-FULL or E-DISK-WRITE.
    """
    if path.exists():
        raise EdgeopsError("E-TRUST-KEY", f"{path} exists", "Keys are never overwritten; move it away first.")
    private = load_pem_private_key(signer.private_bytes, None)
    encryption: KeySerializationEncryption = BestAvailableEncryption(secret) if secret else NoEncryption()
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    # Private after public: a key that is there can be found.
    durable.write_file(path.with_suffix(_PUBLIC_SUFFIX), public)
    durable.write_file(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption), mode=0o600)


def remove(path: Path) -> None:
    """Remove a private key that nothing names, and its public half.

    Raises:
        EdgeopsError: E-DISK-WRITE.
    """
    for file in (path, path.with_suffix(_PUBLIC_SUFFIX)):
        durable.remove_tree(file)


def load(path: Path, secret: bytes | None = None) -> CryptoSigner:
    """Read a private key.

    Raises:
        EdgeopsError: E-TRUST-KEY; missing, not a key of a known kind, or encrypted and the passphrase does not fit.
            The error never shows anything of the file.
    """
    data = _read(path)
    encrypted = _ENCRYPTED_MARK in data
    if encrypted and secret is None:
        raise EdgeopsError("E-TRUST-KEY", f"{path} is encrypted", f"Give its passphrase in {PASSPHRASE_VARIABLE}.")
    try:
        private = load_pem_private_key(data, secret if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        why = "the passphrase does not fit, or the file is damaged" if encrypted else "not a private key in PEM"
        raise EdgeopsError("E-TRUST-KEY", f"{path}: {why}") from None
    if not isinstance(private, (Ed25519PrivateKey, EllipticCurvePrivateKey)):
        raise EdgeopsError("E-TRUST-KEY", f"{path}: neither Ed25519 nor ECDSA on P-256")
    public = private.public_key()
    return CryptoSigner(private, as_key(public, what=str(path)))


def load_public(path: Path) -> SSlibKey:
    """Read a public key (PEM, SubjectPublicKeyInfo).

    Raises:
        EdgeopsError: E-TRUST-KEY; missing, or not a key of a known kind.
    """
    try:
        public = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm):
        raise EdgeopsError("E-TRUST-KEY", f"{path}: not a public key in PEM") from None
    return as_key(public, what=str(path))


def as_key(public: object, *, what: str) -> SSlibKey:
    """Return a public key in the form that verifies envelopes and metadata.

    Raises:
        EdgeopsError: E-TRUST-KEY; neither Ed25519 nor ECDSA on P-256.
    """
    p256 = isinstance(public, EllipticCurvePublicKey) and isinstance(public.curve, SECP256R1)
    if p256 or isinstance(public, Ed25519PublicKey):
        return SSlibKey.from_crypto(public)  # type: ignore[arg-type]  # narrowed above, through a flag
    raise EdgeopsError("E-TRUST-KEY", f"{what}: neither Ed25519 nor ECDSA on P-256")


class KeyStore:
    """Private keys in folders, found by key id: what a person keeps apart may lie apart.

    Args:
        folders: Where the key files lie; those that do not exist are skipped.
        secret: Passphrase of the encrypted ones.
    """

    def __init__(self, folders: Sequence[Path], secret: bytes | None = None) -> None:
        self._folders, self._secret = folders, secret
        self._loaded: dict[str, CryptoSigner] = {}

    def files(self) -> dict[str, Path]:
        """Return the private key files by key id.

        Raises:
            EdgeopsError: E-TRUST-KEY; a public key file is not readable.
        """
        found: dict[str, Path] = {}
        for folder in self._folders:
            for public in sorted(folder.glob("*" + _PUBLIC_SUFFIX)):
                private = public.with_suffix(_SUFFIX)
                if private.is_file():
                    found.setdefault(load_public(public).keyid, private)
        return found

    def signers(self, keyids: Iterable[str]) -> list[CryptoSigner]:
        """Return the keys of these ids that are here.

        Raises:
            EdgeopsError: E-TRUST-KEY; one is here and cannot be read.
        """
        files = self.files()
        found = []
        for keyid in keyids:
            if keyid not in self._loaded and keyid in files:
                signer = load(files[keyid], self._secret)
                if signer.public_key.keyid != keyid:
                    raise EdgeopsError("E-TRUST-KEY", f"{files[keyid]} does not belong to the .pub file beside it")
                self._loaded[keyid] = signer
            if keyid in self._loaded:
                found.append(self._loaded[keyid])
        return found


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as source:
            return source.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise EdgeopsError("E-TRUST-KEY", f"{path}: {error.strerror}", "Name the folder that has the key.") from error
