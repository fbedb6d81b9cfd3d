"""Signed statements: DSSE envelopes with one payload type each, within a size limit."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import TypeVar

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key, Signer

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Wire, decode

MAX_ENVELOPE_BYTES = 1 << 20
MAX_SIGNATURES = 16

W = TypeVar("W", bound=Wire)


class _Signature(Wire, frozen=True, kw_only=True):
    keyid: str
    sig: str


class _Envelope(Wire, frozen=True, kw_only=True):
    payload: str
    payloadType: str  # noqa: N815  DSSE's own name
    signatures: tuple[_Signature, ...]


def seal(payload: bytes, payload_type: str, signer: Signer, *, max_bytes: int = MAX_ENVELOPE_BYTES) -> bytes:
    """Sign a payload together with its type; return the envelope as JSON.

    Raises:
        EdgeopsError: E-WIRE-SIZE; the envelope would be larger than any reader takes.

    Source: DSSE v1.0, github.com/secure-systems-lab/dsse.
    """
    envelope = Envelope(payload, payload_type, {})
    envelope.sign(signer)
    data = json.dumps(envelope.to_dict(), sort_keys=True, separators=(",", ":")).encode()
    if len(data) > max_bytes:
        raise EdgeopsError("E-WIRE-SIZE", f"an envelope of {len(data)} bytes; {max_bytes} are allowed")
    return data


def payload_type(data: bytes) -> str:
    """Return what kind of statement an envelope says that it is. Nothing is verified.

    Raises:
        EdgeopsError: E-WIRE-SIZE; too large. E-WIRE-MALFORMED; not an envelope.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise EdgeopsError("E-WIRE-SIZE", f"an envelope of {len(data)} bytes; {MAX_ENVELOPE_BYTES} are allowed")
    return decode(data, _Envelope, what="signed envelope").payloadType


def read_unverified(data: bytes, kind: type[W]) -> W:
    """Return what an envelope holds that was verified before it was kept.

    Raises:
        EdgeopsError: E-WIRE-SIZE or E-WIRE-MALFORMED.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise EdgeopsError("E-WIRE-SIZE", f"an envelope of {len(data)} bytes; {MAX_ENVELOPE_BYTES} are allowed")
    form = decode(data, _Envelope, what="signed envelope")
    try:
        payload = base64.b64decode(form.payload, validate=True)
    except ValueError as error:
        raise EdgeopsError("E-WIRE-MALFORMED", f"signed envelope: {error}") from error
    return decode(payload, kind, what=kind.__name__.lower())


def unseal(data: bytes, payload_type: str, keys: Mapping[str, Key], *, max_bytes: int = MAX_ENVELOPE_BYTES) -> bytes:
    """Return the payload of an envelope that one of `keys` signed as a statement of this type.

    Args:
        data: The envelope.
        payload_type: What kind of statement it must be; a signature over another kind never counts.
        keys: Keys that may sign it, by key id.
        max_bytes: Largest envelope that is read.

    Raises:
        EdgeopsError: E-WIRE-SIZE; too large. E-WIRE-MALFORMED; not an envelope. E-TRUST-SIGNATURE; another type, or
            no valid signature by one of the keys.
    """
    if len(data) > max_bytes:
        raise EdgeopsError("E-WIRE-SIZE", f"an envelope of {len(data)} bytes; {max_bytes} are allowed")
    form = decode(data, _Envelope, what="signed envelope")
    if form.payloadType != payload_type:
        raise EdgeopsError("E-TRUST-SIGNATURE", f"expected a {payload_type}, got a {form.payloadType[:100]!r}")
    if len(form.signatures) > MAX_SIGNATURES:
        raise EdgeopsError("E-WIRE-MALFORMED", f"signed envelope: {len(form.signatures)} signatures")
    try:
        envelope = Envelope.from_dict(
            {
                "payload": form.payload,
                "payloadType": form.payloadType,
                "signatures": [{"keyid": item.keyid, "sig": item.sig} for item in form.signatures],
            }
        )
    except ValueError as error:
        raise EdgeopsError("E-WIRE-MALFORMED", f"signed envelope: {error}") from error
    try:
        envelope.verify(list(keys.values()), 1)
    except (VerificationError, ValueError) as error:
        signers = ", ".join(keyid[:16] for keyid in envelope.signatures) or "nobody"
        raise EdgeopsError(
            "E-TRUST-SIGNATURE",
            f"a {payload_type} is not validly signed by a key that may sign it (signed by {signers})",
        ) from error
    return envelope.payload
