"""Device identity and the fleet's authority: who gets a certificate, for what key, and what it may be used for."""

from __future__ import annotations

import datetime
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_repository import refused

from edgeops.contracts.errors import EdgeopsError
from edgeops.testkit.power import cuts, recording
from edgeops.trust import certificates, keys
from edgeops.trust.authority import DEVICE_VALID_S, FleetAuthority
from edgeops.trust.device import DeviceIdentity

NOW_S = 1_900_000_000.0
NOW = datetime.datetime.fromtimestamp(NOW_S, tz=datetime.timezone.utc)


@pytest.fixture
def authority(tmp_path: Path) -> FleetAuthority:
    return FleetAuthority.create(tmp_path / "ca", "demo", now=lambda: NOW_S)


def enrolled(authority: FleetAuthority, directory: Path, name: str = "pi-1") -> DeviceIdentity:
    identity = DeviceIdentity.create(directory)
    identity.install(authority.issue_device(identity.csr_pem(name), name), authority.ca_pem)
    return DeviceIdentity.load(directory)


def test_a_device_enrols_with_a_key_that_never_leaves_it(authority: FleetAuthority, tmp_path: Path):
    identity = enrolled(authority, tmp_path / "d")
    files = identity.tls_files()
    certificate = files.certificate.read_bytes()
    assert certificates.common_name(certificate) == "pi-1"
    assert DeviceIdentity.public_key_from_certificate(certificate) == identity.signer.public_key
    assert files.ca.read_bytes() == authority.ca_pem
    csr = identity.csr_pem("pi-1")
    assert b"PRIVATE" not in csr
    assert identity.signer.private_bytes.splitlines()[2] not in csr


def test_certificates_verify_by_an_independent_verifier(authority: FleetAuthority, tmp_path: Path):
    """Extensions are strict enough for cryptography's WebPKI-style verifier, for both ends."""
    device = x509.load_pem_x509_certificate(enrolled(authority, tmp_path / "d").tls_files().certificate.read_bytes())
    server = x509.load_pem_x509_certificate(authority.issue_server(["control.local", "127.0.0.1"])[0])
    builder = PolicyBuilder().store(Store([x509.load_pem_x509_certificate(authority.ca_pem)])).time(NOW)
    verified = builder.build_client_verifier().verify(device, [])
    assert verified.subjects is not None
    assert [str(name.value) for name in verified.subjects] == ["edgeops://demo/pi-1"]
    builder.build_server_verifier(x509.DNSName("control.local")).verify(server, [])
    with pytest.raises(x509.verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("other.local")).verify(server, [])
    with pytest.raises(x509.verification.VerificationError):
        builder.build_client_verifier().verify(server, [])
    with pytest.raises(x509.verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("pi-1")).verify(device, [])
    stranger = FleetAuthority.create(tmp_path / "other", "demo", now=lambda: NOW_S)
    foreign = x509.load_pem_x509_certificate(enrolled(stranger, tmp_path / "e").tls_files().certificate.read_bytes())
    with pytest.raises(x509.verification.VerificationError):
        builder.build_client_verifier().verify(foreign, [])


def test_validity_allows_for_clocks(authority: FleetAuthority, tmp_path: Path):
    """Servers and CA hold from 1970 for devices without a clock; a device from a day ago, for servers that lag."""
    for pem in (authority.ca_pem, authority.issue_server(["a"])[0]):
        assert certificates.validity(pem).not_before_s == 0
    device = certificates.validity(enrolled(authority, tmp_path / "d").tls_files().certificate.read_bytes())
    assert device.not_before_s == NOW_S - 86400
    assert device.not_after_s == NOW_S + DEVICE_VALID_S


def test_serials_are_random_and_the_ca_signs_no_ca(authority: FleetAuthority):
    issued = [x509.load_pem_x509_certificate(authority.issue_server(["a"])[0]) for _ in range(20)]
    assert len({certificate.serial_number for certificate in issued}) == 20
    assert min(certificate.serial_number.bit_length() for certificate in issued) > 100
    for certificate in issued[:1]:
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    ca = x509.load_pem_x509_certificate(authority.ca_pem)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def csr(private: object, name: str = "x", extension: x509.ExtensionType | None = None) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    )
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
    algorithm = None if isinstance(private, ed25519.Ed25519PrivateKey) else SHA256()
    return builder.sign(private, algorithm).public_bytes(Encoding.PEM)  # type: ignore[arg-type]


def test_a_csr_not_signed_by_its_own_key_is_refused(authority: FleetAuthority):
    """Who asks must hold the private key: a stolen public key gets no certificate."""
    good = csr(ec.generate_private_key(ec.SECP256R1()))
    assert authority.issue_device(good, "pi-1")
    der = bytearray(x509.load_pem_x509_csr(good).public_bytes(Encoding.DER))
    der[-1] ^= 1
    bad = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE-----", "CERTIFICATE REQUEST-----").encode()
    with refused("E-ENROLL"):
        authority.issue_device(bad, "pi-1")


def test_only_p256_and_ed25519_keys_get_certificates(authority: FleetAuthority):
    for good in (ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()):
        assert authority.issue_device(csr(good), "pi-1")
    for bad in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        with refused("E-ENROLL"):
            authority.issue_device(csr(bad), "pi-1")


def test_nothing_but_the_key_is_taken_from_a_csr(authority: FleetAuthority):
    """Neither its name nor its wish to be a CA."""
    wish = csr(ec.generate_private_key(ec.SECP256R1()), "edgeops-control", x509.BasicConstraints(True, None))
    certificate = x509.load_pem_x509_certificate(authority.issue_device(wish, "pi-1"))
    assert certificates.common_name(certificate.public_bytes(Encoding.PEM)) == "pi-1"
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_no_device_can_have_the_name_of_a_part_of_the_control_plane(authority: FleetAuthority):
    """A broker gives rights by common name: the two kinds of names never meet."""
    request = csr(ec.generate_private_key(ec.SECP256R1()))
    with refused("E-ENROLL"):
        authority.issue_device(request, "edgeops-control")
    with refused("E-NAME"):
        authority.issue_client("pi-1")
    for name in ("../x", "a/b", "+", "#", "", "A", "x" * 64):
        with refused("E-NAME"):
            authority.issue_device(request, name)
    assert certificates.common_name(authority.issue_client("edgeops-control")[0]) == "edgeops-control"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=400))
def test_no_input_is_more_than_a_refused_csr_or_certificate(authority: FleetAuthority, data: bytes):
    with refused("E-ENROLL"):
        authority.issue_device(data, "pi-1")
    with refused("E-WIRE-MALFORMED"):
        certificates.public_key(data)
    with refused("E-TRUST-ROOT"):
        certificates.check_ca(data, "0" * 64)


def test_mutated_requests_and_certificates_never_break_the_reader(authority: FleetAuthority, tmp_path: Path):
    """Every byte of a real CSR and certificate changed, one at a time: refused with a code, or still well-formed."""
    private = ec.generate_private_key(ec.SECP256R1())
    request = x509.load_pem_x509_csr(csr(private)).public_bytes(Encoding.DER)
    issued = x509.load_pem_x509_certificate(authority.issue_device(csr(private), "pi-1"))
    certificate = issued.public_bytes(Encoding.DER)
    for place in range(len(request)):
        damaged = request[:place] + bytes([request[place] ^ 0x55]) + request[place + 1 :]
        pem = ssl.DER_cert_to_PEM_cert(damaged).replace("CERTIFICATE-----", "CERTIFICATE REQUEST-----")
        with refused("E-ENROLL"):
            authority.issue_device(pem.encode(), "pi-1")
    for place in range(0, len(certificate), 3):
        damaged = certificate[:place] + bytes([certificate[place] ^ 0x55]) + certificate[place + 1 :]
        with pytest.raises(EdgeopsError, match=r"E-WIRE-MALFORMED|E-TRUST-SIGNATURE"):
            certificates.check_issued_by(ssl.DER_cert_to_PEM_cert(damaged).encode(), authority.ca_pem)


def test_a_server_certificate_needs_real_hosts(authority: FleetAuthority):
    for hosts in ([], ["ho st\u00e9"]):
        with refused("E-CONFIG"):
            authority.issue_server(hosts)
    names = x509.load_pem_x509_certificate(authority.issue_server(["a.local", "::1", "10.0.0.1"])[0])
    found = names.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in found] == ["a.local", "::1", "10.0.0.1"]


def test_the_authority_is_read_back_and_never_overwritten(authority: FleetAuthority, tmp_path: Path):
    again = FleetAuthority.load(tmp_path / "ca")
    assert (again.fleet, again.ca_sha256, again.ca_pem) == ("demo", authority.ca_sha256, authority.ca_pem)
    with refused("E-TRUST-KEY"):
        FleetAuthority.create(tmp_path / "ca", "demo")
    assert FleetAuthority.load(tmp_path / "ca").ca_pem == authority.ca_pem
    FleetAuthority.create(tmp_path / "other", "demo")
    shutil.copy(tmp_path / "other" / "ca.key", tmp_path / "ca" / "ca.key")
    for broken in (tmp_path / "ca", tmp_path / "nowhere"):
        with refused("E-TRUST-KEY"):
            FleetAuthority.load(broken)


def test_the_token_pins_the_ca(authority: FleetAuthority, tmp_path: Path):
    certificates.check_ca(authority.ca_pem, authority.ca_sha256)
    impostor = FleetAuthority.create(tmp_path / "other", "demo")
    with refused("E-TRUST-ROOT"):
        certificates.check_ca(impostor.ca_pem, authority.ca_sha256)


def test_an_interrupted_enrolment_goes_on_with_the_same_key(authority: FleetAuthority, tmp_path: Path):
    first = DeviceIdentity.create(tmp_path / "d")
    assert DeviceIdentity.create(tmp_path / "d").signer.public_key == first.signer.public_key
    with refused("E-TRUST-KEY"):
        DeviceIdentity.load(tmp_path / "d")


def test_a_certificate_for_another_key_or_by_another_ca_is_not_installed(authority: FleetAuthority, tmp_path: Path):
    identity = enrolled(authority, tmp_path / "d")
    before = {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()}
    other_ca = FleetAuthority.create(tmp_path / "other", "demo")
    request = identity.csr_pem("pi-1")
    for pem, ca, code in (
        (authority.issue_device(csr(ec.generate_private_key(ec.SECP256R1())), "pi-1"), authority.ca_pem, "E-TRUST-KEY"),
        (other_ca.issue_device(request, "pi-1"), authority.ca_pem, "E-TRUST-SIGNATURE"),
        (authority.issue_device(request, "pi-1"), other_ca.ca_pem, "E-TRUST-SIGNATURE"),
        (b"nothing", authority.ca_pem, "E-WIRE-MALFORMED"),
    ):
        with refused(code):
            identity.install(pem, ca)
        assert {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()} == before


def test_a_new_key_and_its_certificate_are_taken_together(authority: FleetAuthority, tmp_path: Path):
    old = enrolled(authority, tmp_path / "d")
    following = old.next_key()
    assert DeviceIdentity.load(tmp_path / "d").signer.public_key == old.signer.public_key
    following.install(authority.issue_device(following.csr_pem("pi-1"), "pi-1"), authority.ca_pem)
    now = DeviceIdentity.load(tmp_path / "d")
    assert now.signer.public_key == following.signer.public_key != old.signer.public_key
    assert not (tmp_path / "d" / "device.next.key").exists()


def test_a_power_cut_at_any_point_leaves_a_whole_identity(
    authority: FleetAuthority, tmp_path: Path, proof: Callable[[str], None]
):
    """Old key with old certificate, or new with new: enrolment and renewal cut at every file operation."""
    directory = tmp_path / "d"
    old = enrolled(authority, directory)
    with recording(directory) as journal:
        following = old.next_key()
        following.install(authority.issue_device(following.csr_pem("pi-1"), "pi-1"), authority.ca_pem)
    seen = set()
    for index, cut in enumerate(cuts(journal)):
        cut.tree.write_to(tmp_path / "cut" / str(index))
        found = DeviceIdentity.load(tmp_path / "cut" / str(index))
        seen.add(found.signer.public_key.keyid)
        key = load_pem_private_key(found.tls_files().key.read_bytes(), None)
        certificate = x509.load_pem_x509_certificate(found.tls_files().certificate.read_bytes())
        assert key.public_key() == certificate.public_key()
    assert seen == {old.signer.public_key.keyid, following.signer.public_key.keyid}
    proof(f"{index + 1} cuts of a renewal survived")


def test_a_device_key_of_another_kind_still_signs(tmp_path: Path):
    """The control plane accepts Ed25519 identities too: keys that a secure element may make."""
    signer = keys.generate("ed25519")
    keys.save(signer, tmp_path / "k.pem")
    authority = FleetAuthority.create(tmp_path / "ca", "demo")
    private = load_pem_private_key((tmp_path / "k.pem").read_bytes(), None)
    assert certificates.public_key(authority.issue_device(csr(private), "pi-1")) == signer.public_key
