"""Desired state as a signed statement for one unit of one device."""

from __future__ import annotations

from collections.abc import Mapping

from securesystemslib.signer import Key, Signer

from edgeops.contracts.deployment import DESIRED_TYPE, Desired
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import decode, encode
from edgeops.trust import envelopes


def issue(desired: Desired, signer: Signer) -> bytes:
    """Return the signed envelope of a desired state.

    Raises:
        EdgeopsError: E-WIRE-SIZE; too large for any reader.
    """
    return envelopes.seal(encode(desired), DESIRED_TYPE, signer)


def verify(
    data: bytes,
    *,
    keys: Mapping[str, Key],
    fleet: str,
    connection: str,
    unit: str,
    floor_generation: int,
    now_s: float,
) -> Desired:
    """Return a desired state that may be acted on; in every other case nothing changes.

    The same generation passes again: the control plane re-signs a statement before it expires.

    Args:
        data: The envelope.
        keys: Keys of the TUF role `desired-state`, from verified metadata.
        fleet: This device's fleet.
        connection: This device.
        unit: The unit whose topic it came on.
        floor_generation: The newest generation that was accepted for this unit.
        now_s: Time by the time rule.

    Raises:
        EdgeopsError: E-WIRE-SIZE or E-WIRE-MALFORMED. E-TRUST-SIGNATURE; not signed by one of `keys`. E-TRUST-DEVICE;
            for another fleet, device or unit. E-TRUST-EXPIRED. E-TRUST-REPLAY; older than what was accepted.
    """
    payload = envelopes.unseal(data, DESIRED_TYPE, keys)
    desired = decode(payload, Desired, what="desired state")
    meant = (desired.fleet, desired.connection, desired.unit)
    if meant != (fleet, connection, unit):
        raise EdgeopsError(
            "E-TRUST-DEVICE", f"desired state for {'/'.join(meant)[:200]}, this is {fleet}/{connection}/{unit}"
        )
    if not desired.issued_at_s < desired.expires_at_s:
        raise EdgeopsError("E-WIRE-MALFORMED", "desired state: expires before it was issued")
    if now_s >= desired.expires_at_s:
        raise EdgeopsError(
            "E-TRUST-EXPIRED",
            f"desired state of generation {desired.generation} expired {now_s - desired.expires_at_s:.0f} s ago",
            "The control plane signs it anew when it is up; check this device's clock.",
        )
    if desired.generation < floor_generation:
        raise EdgeopsError(
            "E-TRUST-REPLAY", f"desired state of generation {desired.generation}, {floor_generation} was accepted"
        )
    return desired
