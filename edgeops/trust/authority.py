"""The fleet's certificate authority: certificates for devices, servers and the control plane's own client."""

from __future__ import annotations

import datetime
import ipaddress
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from securesystemslib.signer import CryptoSigner

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.trust import certificates, keys

PublicKey = EllipticCurvePublicKey | Ed25519PublicKey

CA_KEY_NAME, CA_NAME = "ca.key", "ca.pem"
CA_VALID_S = 20 * 365 * 86400.0
DEVICE_VALID_S = 365 * 86400.0
BRIEF_VALID_S = 300.0
SERVER_VALID_S = 397 * 86400.0
SKEW_S = 86400.0
MAX_CSR_BYTES = 16 << 10
CLIENT_PREFIX = "edgeops-"
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


class FleetAuthority:
    """One fleet's CA: an ECDSA P-256 key and its self-signed certificate.

    CA and server certificates hold from 1970 on: a device that boots without a clock must be able to connect. Their
    end is what limits them. Names of clients begin with `edgeops-`, names of devices never do: a broker gives rights
    by name.

    Args:
        ca_pem: The CA certificate.
        signer: Its key.
        now: Clock, seconds since 1970-01-01 UTC.
    """

    def __init__(self, ca_pem: bytes, signer: CryptoSigner, now: Callable[[], float] = time.time) -> None:
        self._ca_pem, self._signer, self._now = ca_pem, signer, now
        self._ca = certificates.read(ca_pem, what="CA certificate")
        if certificates.public_key(ca_pem) != signer.public_key:
            raise EdgeopsError("E-TRUST-KEY", "the CA's key and certificate do not belong together")
        self._private = _private(signer)

    @classmethod
    def create(cls, directory: Path, fleet: str, now: Callable[[], float] = time.time) -> FleetAuthority:
        """Make a fleet's CA.

        Raises:
            EdgeopsError: E-NAME. E-TRUST-KEY; there is one already. E-DISK-FULL or E-DISK-WRITE.
        """
        check_name(fleet, "fleet")
        durable.make_private_dir(directory)
        if (directory / CA_KEY_NAME).exists():
            raise EdgeopsError("E-TRUST-KEY", f"{directory} has a CA", "Keys are never overwritten.")
        signer = keys.generate("ecdsa")
        private = _private(signer)
        name = _name(fleet, "ca", f"{fleet} fleet CA")
        public = private.public_key()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_EPOCH)
            .not_valid_after(_at(now() + CA_VALID_S))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(private, SHA256())
        )
        pem = certificate.public_bytes(Encoding.PEM)
        durable.write_file(directory / CA_KEY_NAME, signer.private_bytes, mode=0o600)
        durable.write_file(directory / CA_NAME, pem)
        return cls(pem, signer, now)

    @classmethod
    def load(cls, directory: Path, now: Callable[[], float] = time.time) -> FleetAuthority:
        """Read a fleet's CA.

        Raises:
            EdgeopsError: E-TRUST-KEY; missing or damaged.
        """
        try:
            pem = (directory / CA_NAME).read_bytes()
        except OSError as error:
            raise EdgeopsError(
                "E-TRUST-KEY", f"{directory / CA_NAME}: {error.strerror}", "Run edgeops trust init."
            ) from error
        return cls(pem, keys.load(directory / CA_KEY_NAME), now)

    @property
    def fleet(self) -> str:
        """The fleet's name."""
        return str(self._ca.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)

    @property
    def ca_pem(self) -> bytes:
        """The CA certificate."""
        return self._ca_pem

    @property
    def ca_sha256(self) -> str:
        """SHA-256 of the CA certificate (DER), lower-case hex."""
        return certificates.sha256(self._ca_pem)

    def issue_device(self, csr_pem: bytes, connection: str) -> bytes:
        """Return a device's certificate for the key of its request. Nothing else of the request is taken over.

        Args:
            csr_pem: The request, signed by its own key: who asks has the private key.
            connection: The device's name; the certificate's common name.

        Raises:
            EdgeopsError: E-NAME. E-ENROLL; the request is malformed, not validly signed by its own key, its key is
                neither P-256 nor Ed25519, or the name is reserved.
        """
        check_name(connection, "connection")
        if connection.startswith(CLIENT_PREFIX):
            raise EdgeopsError("E-ENROLL", f"names that begin with {CLIENT_PREFIX!r} are reserved")
        public = requested_key(csr_pem)
        now_s = self._now()
        return self._issue(
            public,
            _name(self.fleet, "device", connection),
            not_before=_at(now_s - SKEW_S),
            not_after=_at(now_s + DEVICE_VALID_S),
            usage=ExtendedKeyUsageOID.CLIENT_AUTH,
            names=[x509.UniformResourceIdentifier(f"edgeops://{self.fleet}/{connection}")],
        )

    def revocation_list(self, revoked: Mapping[int, float]) -> bytes:
        """Return a signed revocation list, PEM. It does not run out while the CA lives: a late one would shut all out.

        Args:
            revoked: Serial number → since when, in seconds since 1970.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._ca.subject)
            .last_update(_at(self._now() - SKEW_S))
            .next_update(self._ca.not_valid_after_utc)
        )
        for serial, at_s in sorted(revoked.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_at(at_s)).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._private, SHA256()).public_bytes(Encoding.PEM)

    def issue_brief_client(self, connection: str) -> tuple[bytes, bytes]:
        """Return a certificate and a new key (both PEM) of a device's name, for minutes: to end the device's session.

        Raises:
            EdgeopsError: E-NAME.
        """
        check_name(connection, "connection")
        signer = keys.generate("ecdsa")
        now_s = self._now()
        public = _private(signer).public_key()
        certificate = self._issue(
            public,
            _name(self.fleet, "device", connection),
            not_before=_at(now_s - SKEW_S),
            not_after=_at(now_s + BRIEF_VALID_S),
            usage=ExtendedKeyUsageOID.CLIENT_AUTH,
            names=[x509.UniformResourceIdentifier(f"edgeops://{self.fleet}/{connection}")],
        )
        return certificate, signer.private_bytes

    def issue_server(self, hosts: Sequence[str]) -> tuple[bytes, bytes]:
        """Return a certificate and a new key (both PEM) for a server at these names or addresses.

        Raises:
            EdgeopsError: E-CONFIG; no host, or one that is neither a name nor an address.
        """
        if not hosts:
            raise EdgeopsError("E-CONFIG", "a server certificate needs a host name or address")
        signer = keys.generate("ecdsa")
        certificate = self._issue(
            _private(signer).public_key(),
            _name(self.fleet, "server", hosts[0][:64]),
            not_before=_EPOCH,
            not_after=_at(self._now() + SERVER_VALID_S),
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            names=[_host(host) for host in hosts],
        )
        return certificate, signer.private_bytes

    def issue_client(self, name: str) -> tuple[bytes, bytes]:
        """Return a certificate and a new key (both PEM) for a part of the control plane that is a client itself.

        Raises:
            EdgeopsError: E-NAME; the name does not begin with `edgeops-`: a device could have it.
        """
        check_name(name, "client")
        if not name.startswith(CLIENT_PREFIX):
            raise EdgeopsError("E-NAME", f"client {name!r} must begin with {CLIENT_PREFIX!r}")
        signer = keys.generate("ecdsa")
        now_s = self._now()
        certificate = self._issue(
            _private(signer).public_key(),
            _name(self.fleet, "client", name),
            not_before=_at(now_s - SKEW_S),
            not_after=_at(now_s + SERVER_VALID_S),
            usage=ExtendedKeyUsageOID.CLIENT_AUTH,
            names=[x509.UniformResourceIdentifier(f"edgeops://{self.fleet}/{name}")],
        )
        return certificate, signer.private_bytes

    def _issue(
        self,
        public: PublicKey,
        subject: x509.Name,
        *,
        not_before: datetime.datetime,
        not_after: datetime.datetime,
        usage: x509.ObjectIdentifier,
        names: Sequence[x509.GeneralName],
    ) -> bytes:
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._ca.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(min(not_after, self._ca.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                    self._ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
                ),
                critical=False,
            )
            .sign(self._private, SHA256())
        )
        return certificate.public_bytes(Encoding.PEM)


def requested_key(csr_pem: bytes) -> PublicKey:
    """Return the key that a certificate request is for, and signed by.

    Raises:
        EdgeopsError: E-ENROLL; not a request, not signed by its own key, or a key of a kind that is not issued for.
    """
    try:
        if len(csr_pem) > MAX_CSR_BYTES:
            raise ValueError(f"{len(csr_pem)} bytes")
        request = x509.load_pem_x509_csr(csr_pem)
        public = request.public_key()
        signed = request.is_signature_valid
    except certificates.UNREADABLE as error:
        raise EdgeopsError("E-ENROLL", f"not a certificate request: {error}") from error
    if not signed:
        raise EdgeopsError("E-ENROLL", "the certificate request is not signed by its own key")
    try:
        keys.as_key(public, what="certificate request")
    except EdgeopsError as error:
        raise EdgeopsError("E-ENROLL", error.what) from error
    assert isinstance(public, (EllipticCurvePublicKey, Ed25519PublicKey))
    return public


def _private(signer: CryptoSigner) -> EllipticCurvePrivateKey:
    private = load_pem_private_key(signer.private_bytes, None)
    if not isinstance(private, EllipticCurvePrivateKey):
        raise EdgeopsError("E-TRUST-KEY", "the CA's key is not an ECDSA key")
    return private


def _name(fleet: str, role: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise EdgeopsError("E-CONFIG", f"{host!r} is neither a host name nor an address") from error


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _at(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), tz=datetime.timezone.utc)
