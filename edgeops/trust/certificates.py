"""Facts about X.509 certificates: what they are pinned by, whose they are, and when they hold."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from securesystemslib.signer import SSlibKey

from edgeops.contracts.errors import EdgeopsError
from edgeops.trust.keys import as_key

MAX_PEM_BYTES = 64 << 10
# All that cryptography raises for input that it cannot read; much of a certificate is parsed only when it is asked for.
UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


class Validity(NamedTuple):
    """When a certificate holds, seconds since 1970-01-01 UTC."""

    not_before_s: float
    not_after_s: float


def read(pem: bytes, *, what: str) -> x509.Certificate:
    """Read one certificate.

    Raises:
        EdgeopsError: E-WIRE-MALFORMED.
    """
    try:
        if len(pem) > MAX_PEM_BYTES:
            raise ValueError(f"{len(pem)} bytes")
        return x509.load_pem_x509_certificate(pem)
    except UNREADABLE as error:
        raise EdgeopsError("E-WIRE-MALFORMED", f"{what} is not a certificate: {error}") from error


def sha256(pem: bytes) -> str:
    """Return the SHA-256 of a certificate (DER), lower-case hex: what a token pins the fleet's CA by.

    Raises:
        EdgeopsError: E-WIRE-MALFORMED.
    """
    return hashlib.sha256(read(pem, what="CA certificate").public_bytes(Encoding.DER)).hexdigest()


def check_ca(pem: bytes, expect_sha256: str) -> None:
    """Refuse a CA certificate that is not the one that the token names.

    Raises:
        EdgeopsError: E-TRUST-ROOT; another one, or no certificate at all.
    """
    try:
        got = sha256(pem)
    except EdgeopsError as error:
        raise EdgeopsError("E-TRUST-ROOT", error.what) from error
    if got != expect_sha256:
        raise EdgeopsError(
            "E-TRUST-ROOT",
            f"the server's CA has SHA-256 {got}, the token names {expect_sha256}",
            "Check the server's address, or make a new token.",
        )


def public_key(pem: bytes) -> SSlibKey:
    """Return the key that a certificate vouches for, in the form that verifies envelopes.

    Raises:
        EdgeopsError: E-WIRE-MALFORMED; not a certificate. E-TRUST-KEY; neither Ed25519 nor ECDSA on P-256.
    """
    certificate = read(pem, what="device certificate")
    try:
        public = certificate.public_key()
    except UNREADABLE as error:
        raise EdgeopsError("E-TRUST-KEY", "a device certificate with a key of an unknown kind") from error
    return as_key(public, what="device certificate")


def common_name(pem: bytes) -> str:
    """Return the common name: for a device its connection.

    Raises:
        EdgeopsError: E-WIRE-MALFORMED; not a certificate, or not exactly one common name.
    """
    try:
        names = read(pem, what="certificate").subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    except UNREADABLE as error:
        raise EdgeopsError("E-WIRE-MALFORMED", "a certificate with an unreadable name") from error
    if len(names) != 1 or not isinstance(names[0].value, str):
        raise EdgeopsError("E-WIRE-MALFORMED", "a certificate without exactly one common name")
    return names[0].value


def validity(pem: bytes) -> Validity:
    """Return when a certificate holds.

    Raises:
        EdgeopsError: E-WIRE-MALFORMED.
    """
    certificate = read(pem, what="certificate")
    return Validity(certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())


def check_issued_by(pem: bytes, ca_pem: bytes) -> None:
    """Refuse a certificate that the CA did not sign.

    Raises:
        EdgeopsError: E-TRUST-SIGNATURE; not signed by this CA. E-WIRE-MALFORMED; not certificates.
    """
    certificate, ca = read(pem, what="certificate"), read(ca_pem, what="CA certificate")
    try:
        certificate.verify_directly_issued_by(ca)
    except (*UNREADABLE, InvalidSignature) as error:
        raise EdgeopsError("E-TRUST-SIGNATURE", "a certificate is not signed by the fleet's CA") from error
