"""A device's figures as they come from far away: believed for the device's own signature, not for who hands them on."""

from __future__ import annotations

import hashlib

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import FiguresOrigin
from edgeops.contracts.measurement import MeasureAnswer, Measurements
from edgeops.contracts.topics import SELF_UNIT
from edgeops.trust import certificates, reported


def verified_figures(
    envelope: bytes, certificate_pem: bytes, *, ca_pem: bytes, fleet: str, connection: str
) -> tuple[Measurements, FiguresOrigin]:
    """Return what a device measured, and where it comes from.

    Args:
        envelope: The answer as the device signed it.
        certificate_pem: The certificate that it had then.
        ca_pem: The fleet's CA.
        fleet: The fleet.
        connection: The device whose figures these must be.

    Raises:
        EdgeopsError: E-TRUST-SIGNATURE; the certificate is not of this CA, or its key did not sign. E-TRUST-DEVICE; of
            another fleet or device. E-TRUST-EXPIRED; measured when the certificate did not hold. E-MEASURE-REFUSED;
            the device measured nothing. E-WIRE-SIZE or E-WIRE-MALFORMED.
    """
    certificates.check_issued_by(certificate_pem, ca_pem)
    if certificates.common_name(certificate_pem) != connection:
        raise EdgeopsError(
            "E-TRUST-DEVICE", f"a certificate of {certificates.common_name(certificate_pem)[:80]}, not of {connection}"
        )
    key = certificates.public_key(certificate_pem)
    answer = reported.verify(envelope, MeasureAnswer, key=key, fleet=fleet, connection=connection, unit=SELF_UNIT)
    found = answer.measurements
    if found is None:
        raise EdgeopsError("E-MEASURE-REFUSED", f"{connection}: {answer.code}: {answer.what}", "Ask it again.")
    if found.device != connection:
        raise EdgeopsError("E-TRUST-DEVICE", f"{connection} speaks for {found.device[:80]}")
    holds = certificates.validity(certificate_pem)
    if not holds.not_before_s <= found.at_s <= holds.not_after_s:
        raise EdgeopsError("E-TRUST-EXPIRED", f"{connection} measured when its certificate did not hold")
    origin = FiguresOrigin(
        device=connection,
        at_s=found.at_s,
        sha256=hashlib.sha256(envelope).hexdigest(),
        signed_by=certificates.sha256(certificate_pem),
    )
    return found, origin
