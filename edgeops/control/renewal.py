"""Renews devices' certificates: on their own wish, signed by their key, and on an operator's."""

from __future__ import annotations

import functools

from sqlalchemy import select

from edgeops.contracts.enrolment import ConnectionKind, RenewalMessage
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.topics import SELF_UNIT
from edgeops.control import audit
from edgeops.control.assignment import reissue
from edgeops.control.database import Database
from edgeops.control.enrolment import CertificateIssuer
from edgeops.control.models import Device, Unit
from edgeops.trust import certificates, renewal
from edgeops.trust.authority import requested_key

# What the key before the present one signed counts for so long: messages on their way, and a device that was cut off
# between the issue of its certificate and its installation.
PREVIOUS_KEY_S = 7 * 86400.0


def renew(database: Database, issuer: CertificateIssuer, fleet: str, message: RenewalMessage, *, now_s: float) -> bytes:
    """Return the certificate (PEM) for a device's next key.

    A device that asks again for the same key gets the same answer, since the first one may have been lost on its way;
    or a new certificate of that key, if the device was away until the first one was due itself.

    Raises:
        EdgeopsError: E-ENROLL; no such device, revoked, its certificate ran out too long ago, or the request is not
            acceptable. E-TRUST-SIGNATURE, E-TRUST-DEVICE, E-WIRE-SIZE, E-WIRE-MALFORMED; see `trust.renewal.verify`.
    """
    with database.write() as session:
        device = session.get(Device, message.connection, with_for_update=True)
        if device is None or device.revoked_at_s is not None:
            raise EdgeopsError("E-ENROLL", f"there is no device {message.connection[:80]!r} that may renew")
        present = device.certificate_pem.encode()
        known = [present]
        if device.renewed_at_s is not None and now_s < device.renewed_at_s + PREVIOUS_KEY_S:
            known.append(device.previous_certificate_pem.encode())
        csr_pem = renewal.verify(message, tuple(map(certificates.public_key, known)), fleet)
        validity = certificates.validity(present)
        has_key = requested_key(csr_pem) == certificates.read(present, what="device certificate").public_key()
        if has_key and now_s < renewal.due_s(validity, device.connection):
            return present
        end_s = validity.not_after_s
        if now_s > end_s + renewal.GRACE_S:
            raise EdgeopsError(
                "E-ENROLL",
                f"the certificate ran out {(now_s - end_s) / 86400:.0f} days ago; it can be renewed within "
                f"{renewal.GRACE_S / 86400:.0f}",
                "Revoke the device, and enrol it anew under another name.",
            )
        if not has_key:
            # Only the key in use may ask for a further one: the one before has had its answer.
            renewal.verify(message, (certificates.public_key(present),), fleet)
            device.previous_certificate_pem, device.renewed_at_s = present.decode(), now_s
            # Only one of two machines with the old key has the new one.
            device.clone_signs, device.cloned_since_s = 0, None
        issued = issuer.issue_device(csr_pem, device.connection)
        older = [*device.older_certificates, _fact(present)]
        device.older_certificates = [fact for fact in older if fact["until_s"] > now_s]
        device.certificate_pem = issued.decode()
        subject = f"device/{device.connection}"
        audit.record(session, at_s=now_s, actor=subject, action="device.renew", subject=subject)
    return issued


def want_renewal(database: Database, connection: str, *, actor: str, now_s: float) -> None:
    """Have a device renew its certificate as soon as it hears of it, by its desired state.

    Raises:
        EdgeopsError: E-DEVICE-UNKNOWN; no such device, revoked, or a rig: that has no desired state.
    """
    with database.write() as session:
        device = session.get(Device, connection, with_for_update=True)
        if device is None or device.revoked_at_s is not None or device.kind != ConnectionKind.DEVICE:
            raise EdgeopsError(
                "E-DEVICE-UNKNOWN", f"there is no device {connection[:80]!r}", "See `edgeops device list`."
            )
        device.renew_wanted_at_s = now_s
        unit = session.scalars(
            select(Unit).where(Unit.connection == connection, Unit.unit == SELF_UNIT).with_for_update()
        ).one()
        if unit.desired_generation:
            unit.publish_wanted += 1
        else:
            reissue(session, unit, (), cause="renewal", now_s=now_s)
        audit.record(session, at_s=now_s, actor=actor, action="device.want-renewal", subject=f"device/{connection}")


@functools.lru_cache(maxsize=20_000)
def certificate_until_s(pem: str) -> float | None:
    """Return when a device's certificate (PEM) ends; None: it has none."""
    return certificates.validity(pem.encode()).not_after_s if pem else None


def _fact(pem: bytes) -> dict[str, float | str]:
    """Return what a revocation list needs to know of a certificate that was replaced."""
    read = certificates.read(pem, what="device certificate")
    # In hexadecimal: a serial number is larger than JSON's numbers are exact.
    return {"serial": f"{read.serial_number:x}", "until_s": certificates.validity(pem).not_after_s}
