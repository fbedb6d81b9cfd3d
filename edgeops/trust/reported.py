"""What a device says, signed by its own key: reported state, progress, telemetry."""

from __future__ import annotations

from typing import TypeVar

from securesystemslib.signer import Key, Signer

from edgeops.contracts.deployment import PROGRESS_TYPE, REPORTED_TYPE, TELEMETRY_TYPE, Progress, Reported
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.telemetry import Telemetry
from edgeops.contracts.wire import decode, encode
from edgeops.trust import envelopes

Statement = TypeVar("Statement", Reported, Progress, Telemetry)
_TYPES: dict[type[Reported | Progress | Telemetry], str] = {
    Reported: REPORTED_TYPE,
    Progress: PROGRESS_TYPE,
    Telemetry: TELEMETRY_TYPE,
}


def sign(statement: Reported | Progress | Telemetry, signer: Signer) -> bytes:
    """Return the signed envelope of a device's statement.

    Raises:
        EdgeopsError: E-WIRE-SIZE; too large for any reader.
    """
    return envelopes.seal(encode(statement), _TYPES[type(statement)], signer)


def verify(data: bytes, kind: type[Statement], *, key: Key, fleet: str, connection: str, unit: str) -> Statement:
    """Return a statement of this kind that this device made about this unit.

    Args:
        data: The envelope.
        kind: What it must be; a signature over another kind never counts.
        key: The key of the device's certificate.
        fleet: The fleet of the topic it came on.
        connection: The device of that topic.
        unit: The unit of that topic.

    Raises:
        EdgeopsError: E-WIRE-SIZE or E-WIRE-MALFORMED. E-TRUST-SIGNATURE; not signed by the device. E-TRUST-DEVICE;
            it speaks of another fleet, device or unit.
    """
    statement = decode(envelopes.unseal(data, _TYPES[kind], {key.keyid: key}), kind, what=kind.__name__.lower())
    meant = (statement.fleet, statement.connection, statement.unit)
    if meant != (fleet, connection, unit):
        raise EdgeopsError("E-TRUST-DEVICE", f"a statement of {'/'.join(meant)[:200]} came from {connection}/{unit}")
    return statement
