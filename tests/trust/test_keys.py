"""Key files: whose they are, who can read them, and what an error may tell of them."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from raw_repository import refused
from securesystemslib.signer import CryptoSigner

from edgeops.contracts.errors import EdgeopsError
from edgeops.trust import keys
from edgeops.trust.device import DeviceIdentity
from edgeops.trust.founding import make_fleet


@pytest.mark.parametrize("scheme", ["ed25519", "ecdsa"])
@pytest.mark.parametrize("secret", [None, b"a passphrase"])
def test_a_key_is_read_back_as_it_was_written(tmp_path: Path, scheme: keys.KeyScheme, secret: bytes | None):
    signer = keys.generate(scheme)
    keys.save(signer, tmp_path / "k.pem", secret)
    assert keys.load(tmp_path / "k.pem", secret).private_bytes == signer.private_bytes
    assert keys.load_public(tmp_path / "k.pub") == signer.public_key
    assert (b"ENCRYPTED" in (tmp_path / "k.pem").read_bytes()) == (secret is not None)


def test_an_encrypted_key_needs_its_passphrase(tmp_path: Path):
    keys.save(keys.generate(), tmp_path / "k.pem", b"right")
    for secret in (None, b"wrong"):
        with refused("E-TRUST-KEY"):
            keys.load(tmp_path / "k.pem", secret)
    # A passphrase in the environment does no harm to keys that are not encrypted.
    keys.save(keys.generate(), tmp_path / "plain.pem")
    keys.load(tmp_path / "plain.pem", b"right")


def test_a_key_is_never_overwritten(tmp_path: Path):
    keys.save(keys.generate(), tmp_path / "k.pem")
    before = (tmp_path / "k.pem").read_bytes()
    with refused("E-TRUST-KEY"):
        keys.save(keys.generate(), tmp_path / "k.pem")
    assert (tmp_path / "k.pem").read_bytes() == before


def pem(private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"secret words",
        b"\0" * 200,
        pem(ec.generate_private_key(ec.SECP384R1())),
        pem(rsa.generate_private_key(65537, 2048)),
    ],
    ids=["empty", "text", "zeros", "P-384", "RSA"],
)
def test_only_ed25519_and_p256_keys_are_read(tmp_path: Path, content: bytes):
    (tmp_path / "k.pem").write_bytes(content)
    with refused("E-TRUST-KEY"):
        keys.load(tmp_path / "k.pem")
    with refused("E-TRUST-KEY"):
        keys.load_public(tmp_path / "k.pem")
    with refused("E-TRUST-KEY"):
        keys.load(tmp_path / "missing.pem")


def test_a_store_finds_keys_by_id_in_several_folders(tmp_path: Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "stick").mkdir()
    here, there, away = (keys.generate() for _ in range(3))
    keys.save(here, tmp_path / "home" / "a.pem")
    keys.save(there, tmp_path / "stick" / "b.pem", b"pass")
    keys.save(away, tmp_path / "home" / "c.pem")
    (tmp_path / "home" / "c.pem").unlink()
    ids = [signer.public_key.keyid for signer in (here, there, away)]
    store = keys.KeyStore([tmp_path / "home", tmp_path / "stick", tmp_path / "nowhere"], b"pass")
    assert [signer.public_key.keyid for signer in store.signers(ids)] == ids[:2]
    with refused("E-TRUST-KEY"):
        keys.KeyStore([tmp_path / "stick"], b"wrong").signers(ids)


def test_a_private_key_beside_another_public_key_is_refused(tmp_path: Path):
    one, other = keys.generate(), keys.generate()
    keys.save(one, tmp_path / "k.pem")
    keys.save(other, tmp_path / "o.pem")
    (tmp_path / "o.pub").rename(tmp_path / "k.pub")
    with refused("E-TRUST-KEY"):
        keys.KeyStore([tmp_path]).signers([other.public_key.keyid])


def modes(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}


def test_private_files_are_0600_and_their_folders_0700(tmp_path: Path):
    """Of a fleet's home and of a device, whatever the umask says."""
    before = os.umask(0)
    try:
        make_fleet(tmp_path / "home", "demo").delegate("m")
        DeviceIdentity.create(tmp_path / "device").next_key()
    finally:
        os.umask(before)
    found = modes(tmp_path)
    private = {name for name in found if name.endswith((".key",)) or (name.endswith(".pem") and "/keys/" in f"/{name}")}
    private -= {"home/ca/ca.pem"}
    assert {name: oct(found[name]) for name in private} == dict.fromkeys(private, "0o600")
    assert len(private) == 9
    for folder in ("home/keys", "home/ca", "device"):
        assert oct(found[folder]) == "0o700"


def test_no_private_key_appears_in_errors_logs_or_metadata(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Every private key of a fleet is searched for, in each of its written forms, in all that others can read."""
    caplog.set_level(logging.DEBUG)
    home = tmp_path / "home"
    publisher = make_fleet(home, "demo")
    publisher.delegate("m")
    identity = DeviceIdentity.create(tmp_path / "device")
    told = [repr(publisher), repr(identity), repr(identity.signer), str(publisher.status())]
    for path in (*(home / "keys").glob("*.pem"), home / "ca" / "ca.key"):
        whole = path.read_bytes()
        for damage in (whole[:-40], whole.replace(b"PRIVATE", b"PRIVAT"), whole + whole):
            path.write_bytes(damage)
            for read, arguments in ((keys.load, ()), (keys.load_public, ()), (keys.load, (b"x",))):
                try:
                    read(path, *arguments)
                except EdgeopsError as error:
                    told += [str(error), repr(error), repr(error.__cause__), repr(error.__context__)]
        path.write_bytes(whole)
    public = "".join(told) + caplog.text
    public += "".join(path.read_text() for path in (home / "repository").rglob("*.json"))
    public += (home / "fleet.json").read_text() + (home / "ca" / "ca.pem").read_text()
    signers = [keys.load(path) for path in (home / "keys").glob("*.pem")]
    signers += [keys.load(home / "ca" / "ca.key"), identity.signer]
    assert len(signers) == 8
    for signer in signers:
        for line in signer.private_bytes.decode().splitlines()[1:-1]:
            # The first bytes are the algorithm's name, the same for every key.
            assert line[24:] not in public
        assert raw_hex(signer) not in public
    # Control: the search does find what is there.
    assert signers[0].public_key.keyval["public"] in public


def raw_hex(signer: CryptoSigner) -> str:
    private = signer._private_key
    if isinstance(private, ec.EllipticCurvePrivateKey):
        return f"{private.private_numbers().private_value:064x}"
    return private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()).hex()
