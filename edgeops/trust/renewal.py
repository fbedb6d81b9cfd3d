"""When a device renews its certificate, and how it proves that it is the one who may.

The request is signed by the key in use, over HTTPS that asks for no certificate: so a device whose certificate ran out
while it was away can still renew it, for a while.
"""

from __future__ import annotations

import hashlib

from securesystemslib.signer import Key, Signer

from edgeops.contracts.deployment import RENEWAL_TYPE
from edgeops.contracts.enrolment import RenewalMessage, RenewalRequest
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import decode, encode
from edgeops.trust import envelopes
from edgeops.trust.certificates import Validity

# How long after its end a certificate can still be renewed: a device that was away longer enrols anew.
GRACE_S = 60 * 86400.0
_AT_SHARE, _SPREAD_SHARE = 2 / 3, 1 / 24
MAX_MESSAGE_BYTES = 64 << 10


def due_s(validity: Validity, connection: str) -> float:
    """Return when a certificate is to be renewed, in seconds since 1970: two thirds through its life.

    A fleet that enrolled on one day is spread over a twenty-fourth of that life; a device's place is always the same.
    """
    life_s = validity.not_after_s - validity.not_before_s
    place = int.from_bytes(hashlib.sha256(connection.encode()).digest()[:8], "big") / 2**64
    return validity.not_before_s + life_s * (_AT_SHARE + _SPREAD_SHARE * place)


def sign(fleet: str, connection: str, csr_pem: bytes, signer: Signer) -> bytes:
    """Return the message with which a device asks for the certificate of its next key.

    Args:
        fleet: Its fleet.
        connection: The device.
        csr_pem: For the next key.
        signer: The key in use.
    """
    request = RenewalRequest(fleet=fleet, connection=connection, csr_pem=csr_pem.decode())
    envelope = envelopes.seal(encode(request), RENEWAL_TYPE, signer)
    return encode(RenewalMessage(connection=connection, envelope=envelope.decode()))


def verify(message: RenewalMessage, keys: tuple[Key, ...], fleet: str) -> bytes:
    """Return the certificate request (PEM) of a message that one of a device's keys signed.

    Raises:
        EdgeopsError: E-WIRE-SIZE or E-WIRE-MALFORMED. E-TRUST-SIGNATURE; by none of the keys. E-TRUST-DEVICE; it is of
            another fleet or device.
    """
    data = message.envelope.encode()
    payload = envelopes.unseal(data, RENEWAL_TYPE, {key.keyid: key for key in keys}, max_bytes=MAX_MESSAGE_BYTES)
    request = decode(payload, RenewalRequest, what="renewal request")
    if (request.fleet, request.connection) != (fleet, message.connection):
        raise EdgeopsError("E-TRUST-DEVICE", f"a renewal of {request.fleet[:80]}/{request.connection[:80]}")
    return request.csr_pem.encode()
