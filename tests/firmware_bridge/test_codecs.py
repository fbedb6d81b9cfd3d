"""Both codecs, Python's and the firmware's, on the shared vectors and on whatever a line may bring."""

from __future__ import annotations

import functools
import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest
from c_codecs import CCodecs
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.tensors import TensorSpec
from firmware_bridge import blobs, frames, packets

pytestmark = pytest.mark.usefixtures("host_compiler")

VECTORS = Path(frames.__file__).parent / "vectors"
PACKETS = st.binary(min_size=frames.PACKET_HEADER, max_size=frames.PACKET_MAX)


def vectors(name: str) -> list[Any]:
    loaded = json.loads((VECTORS / f"{name}.json").read_text())["vectors"]
    return [pytest.param(vector, id=vector["name"]) for vector in loaded]


@pytest.fixture(scope="module")
def c() -> CCodecs:
    return CCodecs()


def refusal(act: Callable[[], object]) -> str | None:
    """The code of the error that this ends with, if it does."""
    try:
        act()
    except EdgeopsError as error:
        return error.code
    return None


def receive(stream: bytes, parts: int = 1) -> tuple[list[bytes], frames.Counts]:
    receiver = frames.FrameReceiver()
    size = max(1, len(stream) // parts)
    got = [packet for at in range(0, len(stream), size) for packet in receiver.feed(stream[at : at + size])]
    return got, receiver.counts


@pytest.mark.parametrize("vector", vectors("frames"))
def test_python_receives_the_frames_of_the_vectors(vector: dict[str, Any]):
    expected = [bytes.fromhex(packet) for packet in vector["packets"]]
    counts = frames.Counts(len(expected), vector["damaged"], vector["oversized"])
    for parts in (1, 3, 1000):
        assert receive(bytes.fromhex(vector["stream"]), parts) == (expected, counts)


@pytest.mark.parametrize("vector", vectors("frames"))
def test_the_firmware_receives_the_frames_of_the_vectors(vector: dict[str, Any], c: CCodecs):
    expected = [bytes.fromhex(packet) for packet in vector["packets"]]
    counts = frames.Counts(len(expected), vector["damaged"], vector["oversized"])
    assert c.receive(bytes.fromhex(vector["stream"])) == (expected, counts)


@given(st.lists(PACKETS, max_size=3))
def test_what_one_codec_sends_the_other_receives(sent: list[bytes]):
    c = CCodecs()
    for packet in sent:
        assert c.encode(packet) == frames.encode(packet)
    stream = b"".join(map(frames.encode, sent))
    assert c.receive(stream) == receive(stream) == (sent, frames.Counts(len(sent)))


@settings(max_examples=300)
@given(st.data())
def test_both_codecs_take_a_damaged_line_alike(data: st.DataObject):
    """Bytes changed, lost, doubled and put in between: both keep and drop the same frames."""
    c = CCodecs()
    sent = data.draw(st.lists(st.binary(min_size=8, max_size=200), min_size=1, max_size=4))
    stream = bytearray(b"".join(map(frames.encode, sent)))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(stream) - 1))
        noise = data.draw(st.binary(max_size=3) | st.sampled_from([b"\x06", b"\x09", b"\x04\x14", b"\n", b"=", b"A"]))
        stream[at : at + data.draw(st.integers(0, 5))] = noise
        stream = stream or bytearray(b"\n")
    got, counts = receive(bytes(stream))
    assert c.receive(bytes(stream)) == (got, counts)
    assert not set(got) - set(sent)


@given(st.binary(max_size=500))
def test_noise_is_no_packet_and_does_not_hurt_the_next_frame(noise: bytes):
    packet = b"whatever packet"
    stream = noise + frames.encode(packet)
    got, _ = receive(stream)
    assert got == [packet]
    assert CCodecs().receive(stream)[0] == [packet]


@pytest.mark.parametrize("vector", vectors("packets"))
def test_packets_are_those_of_the_vectors(vector: dict[str, Any], c: CCodecs):
    values = {key: bytes.fromhex(v["hex"]) if isinstance(v, dict) else v for key, v in vector["values"].items()}
    command = packets.Command(vector["group"], vector["command"], packets.Op(vector["op"]))
    raw = packets.encode(command, vector["sequence"], values)
    assert raw.hex() == vector["packet"]
    got = packets.decode(raw)
    assert (got.op, got.group, got.number, got.sequence, got.values) == (
        command.op, command.group, command.number, vector["sequence"], values,
    )  # fmt: skip
    assert c.is_map(raw[frames.PACKET_HEADER :])


CBOR = st.recursive(
    st.integers(0, 2**64 - 1) | st.binary(max_size=20) | st.text(max_size=20) | st.booleans() | st.none() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), CBOR, max_size=5), st.data())
def test_the_firmware_takes_whole_maps_and_no_part_of_one(value: dict[str, Any], data: st.DataObject):
    c = CCodecs()
    raw = cbor2.dumps(value)
    assert c.is_map(raw)
    assert not c.is_map(raw[: data.draw(st.integers(0, len(raw) - 1))])
    assert not c.is_map(raw + b"\x00")


@pytest.mark.parametrize(
    "raw",
    ["", "80", "01", "a1", "a101", "a1613a", "bf", "bf6161", "ff", "a161615f", "bb" + "ff" * 8, "a16161" + "81" * 12],
)
def test_the_firmware_refuses_what_is_no_map(raw: str, c: CCodecs):
    assert not c.is_map(bytes.fromhex(raw))


@given(st.binary(max_size=60))
def test_any_body_is_decoded_or_refused(body: bytes):
    """A device that answers garbage costs an error with a code, nothing else."""
    header = bytes([9, 0, *len(body).to_bytes(2, "big"), 0, 0, 1, 0])
    assert refusal(lambda: packets.decode(header + body)) in (None, "E-MCU-ANSWER")


@pytest.mark.parametrize("vector", vectors("blobs"))
def test_blobs_are_those_of_the_vectors(vector: dict[str, Any]):
    header = blobs.Header(
        blobs.Cpu(vector["cpu"]), vector["entry"], vector["arena_size"], vector["arena_align"],
        TensorSpec(name="input", dtype=vector["input"]["dtype"], shape=tuple(vector["input"]["shape"])),
        TensorSpec(name="output", dtype=vector["output"]["dtype"], shape=tuple(vector["output"]["shape"])),
        vector["name"],
    )  # fmt: skip
    code = bytes.fromhex(vector["code"])
    blob = blobs.pack(header, code)
    assert blob.hex() == vector["header"] + vector["code"]
    assert blobs.read(blob) == header
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["seed"]))
    public = key.public_key().public_bytes_raw()
    trailer = blobs.sign(blob, version=vector["version"], counter=vector["counter"], public_key=public, signer=key.sign)
    assert trailer.hex() == vector["trailer"]
    assert blobs.identity(blob + trailer).hex() == vector["identity"]
    assert blobs.read_trailer(trailer) == (blobs.key_id(public), vector["counter"], vector["version"])


@pytest.mark.parametrize("vector", vectors("blobs"))
def test_no_byte_of_a_blob_can_change_unnoticed(vector: dict[str, Any]):
    blob, trailer = bytes.fromhex(vector["header"] + vector["code"]), bytes.fromhex(vector["trailer"])
    for at in range(len(blob)):
        changed = bytearray(blob)
        changed[at] ^= 0x10
        code = refusal(functools.partial(blobs.read, bytes(changed)))
        # Some changes leave a header that is right in itself: then it is another blob, under another identity.
        if code is None:
            assert at < blobs.HEADER_SIZE
            assert blobs.identity(bytes(changed) + trailer) != blobs.identity(blob + trailer)
        else:
            assert code in ("E-MCU-BLOB", "E-MODEL-UNSUPPORTED")
    for keep in (0, 3, 159, 160, len(blob) - 1):
        with pytest.raises(EdgeopsError, match="E-MCU-BLOB"):
            blobs.read(blob[:keep])


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_digests_are_those_of_the_standard(parts: list[bytes]):
    c = CCodecs()
    whole = b"".join(parts)
    assert c.sha256(*parts) == hashlib.sha256(whole).digest()
    assert c.sha512(*parts) == hashlib.sha512(whole).digest()
    assert c.library.eo_crc32(whole, len(whole)) == zlib.crc32(whole)


def test_digests_at_every_length_around_their_blocks(c: CCodecs):
    for length in range(300):
        data = bytes(range(256)) * 2
        assert c.sha256(data[:length]) == hashlib.sha256(data[:length]).digest()
        assert c.sha512(data[:length]) == hashlib.sha512(data[:length]).digest()
    assert c.library.eo_crc16(0, b"123456789", 9) == 0x31C3


# RFC 8032, 7.1: TEST 1, 2, 3: public key, message, signature.
RFC_8032 = [
    ("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
    ("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),
    ("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "message", "signature"), RFC_8032, ids=["test-1", "test-2", "test-3"])
def test_the_firmware_accepts_the_signatures_of_rfc_8032_and_no_other(
    key: str, message: str, signature: str, c: CCodecs
):
    public, text, good = map(bytes.fromhex, (key, message, signature))
    assert c.verify(good, public, text)
    assert not c.verify(good, public, text + b"\0")
    for at in (0, 31, 32, 63):
        assert not c.verify(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], public, text)
    for other, _, _ in RFC_8032:
        assert c.verify(good, bytes.fromhex(other), text) == (other == key)


def test_a_signature_with_s_beyond_the_order_is_refused(c: CCodecs):
    """RFC 8032, 5.1.7: otherwise anybody makes a second signature out of a valid one."""
    order = 2**252 + 27742317777372353535851937790883648493
    key, message, signature = (bytes.fromhex(part) for part in RFC_8032[1])
    s = int.from_bytes(signature[32:], "little") + order
    assert not c.verify(signature[:32] + s.to_bytes(32, "little"), key, message)


@settings(max_examples=25)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300))
def test_the_firmware_agrees_with_another_library(seed: bytes, message: bytes):
    key = Ed25519PrivateKey.from_private_bytes(seed)
    assert CCodecs().verify(key.sign(message), key.public_key().public_bytes_raw(), message)
