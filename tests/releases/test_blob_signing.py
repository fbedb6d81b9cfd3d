"""Publishing signs a microcontroller's blob apart from its bundle; the device takes it, and nobody else's."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from bundle_making import make_bundle

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.tensors import TensorSpec
from edgeops.releases import assemble
from edgeops.releases.blob_signing import raw_public, raw_trailer
from edgeops.releases.publish import publish
from edgeops.trust.founding import make_fleet
from edgeops.trust.publisher import Publisher
from firmware_bridge import blobs

SPEC = TensorSpec(name="x", dtype="int8", shape=(1, 4))
CODE = bytes(range(64))


def blob(cpu: blobs.Cpu = blobs.Cpu.CORTEX_M4) -> bytes:
    return blobs.pack(blobs.Header(cpu, blobs.HEADER_SIZE, 16, 16, SPEC, SPEC, "adder"), CODE)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_fleet(tmp_path / "home", "demo")
    return tmp_path / "home"


def release(
    home: Path, folder: Path, version: str, *, artifact: bytes | None = None, counter: int | None = None
) -> str:
    bundles = [
        make_bundle(folder / version / "m4", profile="cortex-m4", artifact=artifact or blob(), runtime="mcu").directory,
        make_bundle(folder / version / "pc", profile="intel-nuc").directory,
    ]
    assemble.create(home, bundles, version=version)
    publish(home, "adder", version, blob_counter=counter)
    targets = Publisher(home).targets()
    linux = targets[f"adder/{version}/intel-nuc.edgeops"].custom
    assert linux is not None
    assert linux.blob_trailer == ""
    found = targets[f"adder/{version}/cortex-m4.edgeops"].custom
    assert found is not None
    return found.blob_trailer


def test_a_published_blob_has_a_trailer_that_its_key_signed(home: Path, tmp_path: Path):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    trailer = raw_trailer(release(home, tmp_path, "1.2.0"))
    public = raw_public(Publisher(home).blob_signer())
    said = blobs.read_trailer(trailer)
    assert said == blobs.Signature(blobs.key_id(public), 1, "1.2.0")
    message = b"edgeops mcu model blob 1".ljust(32, b"\0") + blob()[: blobs.HEADER_SIZE] + trailer[:96]
    Ed25519PublicKey.from_public_bytes(public).verify(trailer[96:], message)


def test_bundles_digest_and_bytes_do_not_depend_on_the_key(tmp_path: Path):
    found = set()
    for name in ("one", "two"):
        make_fleet(tmp_path / name, "demo")
        release(tmp_path / name, tmp_path / f"{name}-bundles", "1.0.0")
        target = Publisher(tmp_path / name).targets()["adder/1.0.0/cortex-m4.edgeops"]
        assert target.custom is not None
        found.add((target.sha256, target.custom.digest))
    assert len(found) == 1


def test_the_counter_never_falls(home: Path, tmp_path: Path):
    def counter(text: str) -> int:
        return blobs.read_trailer(base64.b64decode(text)).counter

    assert counter(release(home, tmp_path, "1.0.0")) == 1
    assert counter(release(home, tmp_path, "2.0.0", counter=7)) == 7
    assert counter(release(home, tmp_path, "3.0.0")) == 7
    with pytest.raises(EdgeopsError, match="7 is published already") as caught:
        release(home, tmp_path, "4.0.0", counter=6)
    assert caught.value.code == "E-CONFIG"


def test_a_damaged_blob_is_not_published(home: Path, tmp_path: Path):
    damaged = bytearray(blob())
    damaged[-1] ^= 1
    with pytest.raises(EdgeopsError) as caught:
        release(home, tmp_path, "1.0.0", artifact=bytes(damaged))
    assert caught.value.code == "E-MCU-BLOB"
    assert Publisher(home).targets() == {}


def test_without_the_private_half_nothing_is_published(home: Path, tmp_path: Path):
    Publisher(home).blob_signer()
    (home / "keys" / "mcu-blobs.pem").rename(tmp_path / "kept-apart.pem")
    with pytest.raises(EdgeopsError) as caught:
        release(home, tmp_path, "1.0.0")
    assert caught.value.code == "E-TRUST-KEY"
    assert Publisher(home).targets() == {}


@pytest.mark.parametrize("text", ["", "!!", base64.b64encode(b"short").decode()])
def test_what_is_no_trailer_is_refused(text: str):
    with pytest.raises(EdgeopsError) as caught:
        raw_trailer(text)
    assert caught.value.code == "E-MCU-BLOB"
