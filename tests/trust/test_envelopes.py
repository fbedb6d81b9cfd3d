"""Signed envelopes: one type, one signer, one size; everything else is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_repository import SIGNERS, refused
from securesystemslib.signer import CryptoSigner, Key

from edgeops.contracts.errors import EdgeopsError
from edgeops.trust.envelopes import MAX_ENVELOPE_BYTES, seal, unseal

KIND, OTHER_KIND = "application/vnd.test+json", "application/vnd.other+json"
SIGNER, STRANGER = SIGNERS[0], SIGNERS[1]
ECDSA = CryptoSigner.generate_ecdsa()


def known(*signers: CryptoSigner) -> dict[str, Key]:
    return {signer.public_key.keyid: signer.public_key for signer in signers}


@given(st.binary(max_size=300))
def test_what_was_sealed_is_what_is_unsealed(payload: bytes):
    for signer in (SIGNER, ECDSA):
        assert unseal(seal(payload, KIND, signer), KIND, known(SIGNER, ECDSA)) == payload


def test_a_stranger_s_signature_is_refused():
    with refused("E-TRUST-SIGNATURE"):
        unseal(seal(b"x", KIND, STRANGER), KIND, known(SIGNER))
    with refused("E-TRUST-SIGNATURE"):
        unseal(seal(b"x", KIND, SIGNER), KIND, {})
    assert unseal(seal(b"x", KIND, STRANGER), KIND, known(SIGNER, STRANGER)) == b"x"


def test_a_signature_over_another_type_never_counts():
    """Neither as it is, nor with the type rewritten on the envelope."""
    sealed = seal(b"x", OTHER_KIND, SIGNER)
    with refused("E-TRUST-SIGNATURE"):
        unseal(sealed, KIND, known(SIGNER))
    with refused("E-TRUST-SIGNATURE"):
        unseal(changed(sealed, payloadType=KIND), KIND, known(SIGNER))
    assert unseal(sealed, OTHER_KIND, known(SIGNER)) == b"x"


def changed(sealed: bytes, **fields: Any) -> bytes:
    return json.dumps({**json.loads(sealed), **fields}).encode()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"payload": base64.b64encode(b"y").decode()}, "E-TRUST-SIGNATURE"),
        ({"payload": "%%%"}, "E-WIRE-MALFORMED"),
        ({"payload": 5}, "E-WIRE-MALFORMED"),
        ({"payloadType": None}, "E-WIRE-MALFORMED"),
        ({"signatures": []}, "E-TRUST-SIGNATURE"),
        ({"signatures": {}}, "E-WIRE-MALFORMED"),
        ({"signatures": [{"keyid": "a"}]}, "E-WIRE-MALFORMED"),
        ({"signatures": [{"keyid": "a", "sig": "QQ=="}]}, "E-TRUST-SIGNATURE"),
        ({"signatures": [{"keyid": SIGNER.public_key.keyid, "sig": "QQ=="}]}, "E-TRUST-SIGNATURE"),
        ({"signatures": [{"keyid": SIGNER.public_key.keyid, "sig": ""}]}, "E-TRUST-SIGNATURE"),
        ({"signatures": [{"keyid": "a", "sig": "QQ=="}] * 2}, "E-WIRE-MALFORMED"),
        ({"signatures": [{"keyid": str(n), "sig": "QQ=="} for n in range(17)]}, "E-WIRE-MALFORMED"),
    ],
)
def test_every_damaged_part_is_an_error_with_a_code(fields: dict[str, Any], code: str):
    with refused(code):
        unseal(changed(seal(b"x", KIND, SIGNER), **fields), KIND, known(SIGNER))


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b"1e999"])
def test_what_is_no_envelope_is_an_error_with_a_code(data: bytes):
    with refused("E-WIRE-MALFORMED"):
        unseal(data, KIND, known(SIGNER))


def test_sizes_are_limited_at_both_ends():
    with refused("E-WIRE-SIZE"):
        seal(b"x" * MAX_ENVELOPE_BYTES, KIND, SIGNER)
    with refused("E-WIRE-SIZE"):
        unseal(b" " * (MAX_ENVELOPE_BYTES + 1), KIND, known(SIGNER))
    large = seal(b"x" * (MAX_ENVELOPE_BYTES // 2), KIND, SIGNER)
    assert len(unseal(large, KIND, known(SIGNER))) == MAX_ENVELOPE_BYTES // 2


def test_unknown_fields_of_a_newer_writer_are_ignored():
    assert unseal(changed(seal(b"x", KIND, SIGNER), extra=[1]), KIND, known(SIGNER)) == b"x"


SEALED = seal(b'{"generation": 7}', KIND, SIGNER)


@settings(max_examples=300)
@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_no_changed_byte_changes_the_payload(place: int, flip: int):
    """Any single byte changed: refused, or exactly the same payload."""
    damaged = bytearray(SEALED)
    damaged[place] ^= flip
    try:
        payload = unseal(bytes(damaged), KIND, known(SIGNER))
    except EdgeopsError as error:
        payload = {"E-TRUST-SIGNATURE": None, "E-WIRE-MALFORMED": None}[error.code]
    assert payload in (None, b'{"generation": 7}')
