"""A device's identity: a key made on the device that never leaves it, and the fleet's certificate for it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.trust import certificates, keys

log = logging.getLogger(__name__)

KEY_NAME = "device.key"
NEXT_KEY_NAME = "device.next.key"
CERTIFICATE_NAME = "device.pem"
CA_NAME = "ca.pem"


class IdentityFiles(NamedTuple):
    """PEM files for mutual TLS."""

    ca: Path
    certificate: Path
    key: Path


class DeviceIdentity:
    """One device's key and certificate in one directory, mode 0700.

    A next key (`next_key`) waits beside the old one until its certificate is installed. The certificate is replaced
    first, the key after it; a cut between the two is repaired by `load`, since the key in waiting fits.

    Args:
        directory: Where the files lie; `create` and `load` make one of these.
        signer: The key in use.
    """

    def __init__(self, directory: Path, signer: CryptoSigner) -> None:
        self._directory = directory
        self._signer = signer

    @classmethod
    def create(cls, directory: Path) -> DeviceIdentity:
        """Make the device's key, P-256, or take the one that is there: an interrupted enrolment goes on with it.

        Raises:
            EdgeopsError: E-TRUST-KEY; the key that is there is not readable. E-DISK-FULL or E-DISK-WRITE.
        """
        durable.make_private_dir(directory)
        path = directory / KEY_NAME
        if not path.exists():
            durable.write_file(path, keys.generate("ecdsa").private_bytes, mode=0o600)
        return cls(directory, keys.load(path))

    @classmethod
    def load(cls, directory: Path) -> DeviceIdentity:
        """Read an enrolled device's identity.

        Raises:
            EdgeopsError: E-TRUST-KEY; there is no identity, or key and certificate do not belong together.
        """
        certificate = directory / CERTIFICATE_NAME
        if not certificate.exists() or not (directory / CA_NAME).exists():
            raise EdgeopsError("E-TRUST-KEY", f"{directory} has no device certificate", "Enrol the device.")
        certified = certificates.public_key(certificate.read_bytes())
        following = directory / NEXT_KEY_NAME
        signer = keys.load(directory / KEY_NAME)
        if signer.public_key != certified and following.exists() and keys.load(following).public_key == certified:
            durable.rename(following, directory / KEY_NAME)
            signer = keys.load(directory / KEY_NAME)
        if signer.public_key != certified:
            raise EdgeopsError("E-TRUST-KEY", f"{certificate} is for another key", "Enrol the device anew.")
        return cls(directory, signer)

    @property
    def directory(self) -> Path:
        """Where the files lie."""
        return self._directory

    @property
    def certificate_pem(self) -> bytes:
        """The certificate in use.

        Raises:
            EdgeopsError: E-TRUST-KEY; it cannot be read.
        """
        try:
            return (self._directory / CERTIFICATE_NAME).read_bytes()
        except OSError as error:
            raise EdgeopsError("E-TRUST-KEY", f"{error.filename}: {error.strerror}", "Enrol the device.") from error

    @property
    def signer(self) -> CryptoSigner:
        """The key that signs what this device says."""
        return self._signer

    def next_key(self) -> DeviceIdentity:
        """Return the key to follow the present one, made if none waits; `csr_pem` and `install` complete the change.

        The one that waits may have its certificate already, in an answer that was lost.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
        """
        path = self._directory / NEXT_KEY_NAME
        if path.exists():
            try:
                return DeviceIdentity(self._directory, keys.load(path))
            except EdgeopsError as error:
                log.warning("the next key is damaged, another is made: %s", error)
        durable.write_file(path, keys.generate("ecdsa").private_bytes, mode=0o600)
        return DeviceIdentity(self._directory, keys.load(path))

    def csr_pem(self, common_name: str) -> bytes:
        """Return a certificate request for this key. The authority decides the name; this one is a wish.

        Raises:
            EdgeopsError: E-NAME.
        """
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, check_name(common_name, "device name"))])
        private = load_pem_private_key(self._signer.private_bytes, None)
        request = x509.CertificateSigningRequestBuilder().subject_name(name)
        return request.sign(private, SHA256()).public_bytes(Encoding.PEM)  # type: ignore[arg-type]  # P-256, made here

    def install(self, certificate_pem: bytes, ca_pem: bytes) -> None:
        """Take the certificate for this key. Check `ca_pem` against the token before.

        Raises:
            EdgeopsError: E-TRUST-KEY; it is for another key. E-TRUST-SIGNATURE; this CA did not sign it.
                E-WIRE-MALFORMED; not certificates. E-DISK-FULL or E-DISK-WRITE. The old identity stays whole.
        """
        if certificates.public_key(certificate_pem) != self._signer.public_key:
            raise EdgeopsError("E-TRUST-KEY", "the certificate is for another key", "Enrol the device anew.")
        certificates.check_issued_by(certificate_pem, ca_pem)
        durable.write_file(self._directory / CA_NAME, ca_pem)
        durable.write_file(self._directory / CERTIFICATE_NAME, certificate_pem)
        following = self._directory / NEXT_KEY_NAME
        if following.exists() and keys.load(following).public_key == self._signer.public_key:
            durable.rename(following, self._directory / KEY_NAME)

    def tls_files(self) -> IdentityFiles:
        """Return the PEM files for mutual TLS: CA, certificate, key."""
        return IdentityFiles(self._directory / CA_NAME, self._directory / CERTIFICATE_NAME, self._directory / KEY_NAME)

    @staticmethod
    def public_key_from_certificate(pem: bytes) -> SSlibKey:
        """Return the key that a device's certificate vouches for.

        Raises:
            EdgeopsError: E-WIRE-MALFORMED; not a certificate. E-TRUST-KEY; a key of another kind.
        """
        return certificates.public_key(pem)
