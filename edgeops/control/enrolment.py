"""How a device joins: one-time tokens of which only hashes are kept, and a certificate for the device's own key."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeops.contracts.enrolment import ConnectionKind, EnrolmentToken, EnrolRequest
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.contracts.topics import SELF_UNIT
from edgeops.control import audit
from edgeops.control.assignment import new_unit
from edgeops.control.database import Database
from edgeops.control.models import Device, EnrolmentTokenRow, RigRow
from edgeops.trust import certificates
from edgeops.trust.authority import CLIENT_PREFIX, requested_key

TOKEN_VALID_S = 24 * 3600.0
TOKEN_VALID_MAX_S = 90 * 86400.0
CONTROL_IDENTITY = f"{CLIENT_PREFIX}control"  # common name of the control plane's own certificate
MAX_CSR_BYTES = 16 << 10
MAX_LABELS = 32


class CertificateIssuer(Protocol):
    """What enrolment needs of the fleet's certificate authority."""

    def issue_device(self, csr_pem: bytes, connection: str) -> bytes:
        """Return a certificate for the key of a CSR. Raises E-ENROLL if the CSR is not acceptable."""


class TokenScope(NamedTuple):
    """What a token allows: a profile and a name if they are given, and the labels that its device gets.

    One for a rig has a name, the rig's, and no profile.
    """

    profile: str | None = None
    name: str | None = None
    labels: Mapping[str, str] = {}
    kind: ConnectionKind = ConnectionKind.DEVICE


class FirstTrust(NamedTuple):
    """What a token tells a device to trust: server address, fleet, hashes of CA certificate and root.json."""

    server: str
    fleet: str
    ca_sha256: str
    root_sha256: str


class IssuedToken(NamedTuple):
    """A new token: its text is shown once and not kept."""

    id: str
    text: str
    expires_at_s: float


class Enrolled(NamedTuple):
    """A device that joined."""

    connection: str
    certificate_pem: bytes
    profile: str


def issue_token(
    database: Database,
    trust: FirstTrust,
    scope: TokenScope,
    *,
    actor: str,
    now_s: float,
    valid_s: float = TOKEN_VALID_S,
) -> IssuedToken:
    """Make a one-time token.

    Raises:
        EdgeopsError: E-NAME; a name or label is not valid. E-CONFIG; an impossible life time, too many labels, or a
            rig without a name or with a profile.
    """
    if not 0 < valid_s <= TOKEN_VALID_MAX_S:
        raise EdgeopsError("E-CONFIG", f"a token cannot be valid for {valid_s} s", "Give at most 90 days.")
    check_labels(scope.labels)
    if scope.kind is ConnectionKind.RIG and (scope.name is None or scope.profile is not None):
        raise EdgeopsError("E-CONFIG", "a rig joins under its own name, and without a profile", "Name the rig.")
    for value, what in ((scope.profile, "profile"), (scope.name, "device name")):
        if value is not None:
            check_name(value, what)
    secret, token_id = secrets.token_urlsafe(32), secrets.token_hex(6)
    row = EnrolmentTokenRow(
        id=token_id,
        secret_sha256=_hash(secret),
        profile=scope.profile,
        name=scope.name,
        labels=dict(scope.labels),
        created_at_s=now_s,
        created_by=actor,
        expires_at_s=now_s + valid_s,
        used_at_s=None,
        used_by=None,
        kind=scope.kind,
    )
    with database.write() as session:
        session.add(row)
        audit.record(session, at_s=now_s, actor=actor, action="token.create", subject=f"token/{token_id}")
    text = EnrolmentToken(
        server=trust.server,
        fleet=trust.fleet,
        ca_sha256=trust.ca_sha256,
        root_sha256=trust.root_sha256,
        secret=secret,
    ).to_text()
    return IssuedToken(token_id, text, now_s + valid_s)


def enrol(database: Database, issuer: CertificateIssuer, request: EnrolRequest, *, now_s: float) -> Enrolled:
    """Let a device in: the token is consumed, the device registered and its certificate issued, all or nothing.

    A device that asks again with the same key gets the same answer: the first one may have been lost on its way.

    Raises:
        EdgeopsError: E-TOKEN; the token is unknown, used or expired; the answer does not say which. E-ENROLL; profile
            or name do not fit the token, the name is taken, or the CSR is not acceptable: the token stays usable.
    """
    if len(request.csr_pem) > MAX_CSR_BYTES:
        raise EdgeopsError("E-ENROLL", "the certificate request is too large")
    if request.kind is not ConnectionKind.RIG:
        check_name(request.profile, "profile")
    with database.write() as session:
        token = session.scalars(
            select(EnrolmentTokenRow).where(EnrolmentTokenRow.secret_sha256 == _hash(request.secret)).with_for_update()
        ).one_or_none()
        if token is None or now_s >= token.expires_at_s:
            raise _refused()
        if token.used_by is not None:
            return _again(session, token, request, now_s)
        if token.kind != request.kind:
            raise EdgeopsError("E-ENROLL", f"the token is for a {token.kind}, this is a {request.kind}")
        if token.profile is not None and token.profile != request.profile:
            raise EdgeopsError("E-ENROLL", f"the token is for profile {token.profile}, not {request.profile}")
        profile = "" if request.kind is ConnectionKind.RIG else request.profile
        connection = _name(session, request, token)
        certificate_pem = issuer.issue_device(request.csr_pem.encode(), connection)
        session.add(
            Device(
                connection=connection,
                profile=profile,
                labels=token.labels,
                certificate_pem=certificate_pem.decode(),
                enrolled_at_s=now_s,
                revoked_at_s=None,
                agent_version=request.agent_version[:64],
                online=False,
                presence_at_s=None,
                last_seen_s=None,
                rejected_messages=0,
                rejected_last="",
                kind=request.kind,
            )
        )
        session.flush()
        if request.kind is ConnectionKind.RIG:
            session.add(RigRow(connection=connection, gone_since_s=now_s))
        else:
            session.add(new_unit(connection, SELF_UNIT, profile=profile, now_s=now_s))
        token.used_at_s, token.used_by = now_s, connection
        audit.record(
            session,
            at_s=now_s,
            actor=f"token/{token.id}",
            action=f"{request.kind}.enrol",
            subject=f"device/{connection}",
        )
    return Enrolled(connection, certificate_pem, profile)


def _again(session: Session, token: EnrolmentTokenRow, request: EnrolRequest, now_s: float) -> Enrolled:
    """Return what a token's device was given, to it alone: the request is signed by the key that it joined with.

    Raises:
        EdgeopsError: E-TOKEN; another key, or the device was revoked since. E-ENROLL; the request is not acceptable.
    """
    device = session.get(Device, token.used_by)
    profile = "" if request.kind is ConnectionKind.RIG else request.profile
    joined_as = None if device is None else (device.kind, device.profile)
    if device is None or device.revoked_at_s is not None or joined_as != (request.kind, profile):
        raise _refused()
    given = device.certificate_pem.encode()
    joined_with = certificates.read(given, what="device certificate").public_key()
    if requested_key(request.csr_pem.encode()) != joined_with:
        raise _refused()
    subject = f"device/{device.connection}"
    audit.record(session, at_s=now_s, actor=f"token/{token.id}", action="device.enrol-again", subject=subject)
    return Enrolled(device.connection, given, device.profile)


def _refused() -> EdgeopsError:
    return EdgeopsError("E-TOKEN", "the token is unknown, used or expired", "Make a new one.")


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuse labels that could not be asked for later.

    Raises:
        EdgeopsError: E-NAME or E-CONFIG.
    """
    if len(labels) > MAX_LABELS:
        raise EdgeopsError("E-CONFIG", f"{len(labels)} labels; at most {MAX_LABELS} are kept")
    for key, value in labels.items():
        check_name(key, "label")
        check_name(value, f"value of label {key}")


def _name(session: Session, request: EnrolRequest, token: EnrolmentTokenRow) -> str:
    """Return the new device's name.

    Raises:
        EdgeopsError: E-NAME, or E-ENROLL; the name is not the token's, or taken.
    """
    if token.name is not None and request.name not in (None, token.name):
        raise EdgeopsError("E-ENROLL", f"the token is for the name {token.name}, not {request.name}")
    wish = token.name or request.name
    if wish is None:
        wish = f"{request.profile[:48]}-{secrets.token_hex(4)}"
    if session.get(Device, check_name(wish, "device name")) is not None:
        raise EdgeopsError("E-ENROLL", f"there is already a device {wish}", "Choose another name.")
    return wish


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
