"""API tokens: who may do what with the control plane. Only a hash of each is kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import NamedTuple

from sqlalchemy import select

from edgeops.contracts.access import PERMISSIONS, Permission, Role
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.control import audit
from edgeops.control.database import Database
from edgeops.control.models import ApiToken

ADMIN_NAME = "admin"
PREFIX = "eo"
MAX_VALID_S = 366 * 86400.0
# How exactly the time of the last use is known: each note of it is a write.
USE_NOTED_EVERY_S = 3600.0


class Caller(NamedTuple):
    """Who asks: the token's name, and its role."""

    name: str
    role: Role


class IssuedToken(NamedTuple):
    """A new token: its number, its text, which nobody can be told again, and when it ends."""

    id: str
    text: str
    expires_at_s: float


def issue(database: Database, name: str, role: Role, *, actor: str, now_s: float, valid_s: float) -> IssuedToken:
    """Make a token.

    Args:
        database: The registry.
        name: Whose it is; it stands in the audit log, so no two tokens share one.
        role: What it may do.
        actor: Who asks.
        now_s: The control plane's clock.
        valid_s: How long it is valid, at most a year.

    Raises:
        EdgeopsError: E-NAME; not a name, or taken. E-CONFIG; the role or the time is impossible.
    """
    check_name(name, "token")
    if role is Role.UNKNOWN:
        raise EdgeopsError("E-CONFIG", "there is no such role", f"Roles: {', '.join(PERMISSIONS)}.")
    if not 0 < valid_s <= MAX_VALID_S:
        raise EdgeopsError("E-CONFIG", f"a token cannot be valid for {valid_s:g} s", "Give at most a year.")
    number, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    with database.write() as session:
        taken = session.scalars(select(ApiToken.id).where(ApiToken.name == name)).first()
        if name == ADMIN_NAME or taken is not None:
            raise EdgeopsError("E-NAME", f"there is a token named {name} already", "Choose another name.")
        session.add(
            ApiToken(
                id=number,
                secret_sha256=_hash(secret),
                name=name,
                role=role,
                created_at_s=now_s,
                created_by=actor,
                expires_at_s=now_s + valid_s,
                revoked_at_s=None,
                used_at_s=None,
            )
        )
        audit.record(session, at_s=now_s, actor=actor, action="access.create", subject=f"token/{name}", role=str(role))
    return IssuedToken(number, f"{PREFIX}_{number}_{secret}", now_s + valid_s)


def revoke(database: Database, name: str, *, actor: str, now_s: float) -> None:
    """End a token at once. A token that has been revoked stays so.

    Raises:
        EdgeopsError: E-NAME; there is none of this name.
    """
    with database.write() as session:
        row = session.scalars(select(ApiToken).where(ApiToken.name == name).with_for_update()).one_or_none()
        if row is None:
            raise EdgeopsError("E-NAME", f"there is no token named {name[:80]!r}", "See `edgeops access list`.")
        if row.revoked_at_s is None:
            row.revoked_at_s = now_s
            audit.record(session, at_s=now_s, actor=actor, action="access.revoke", subject=f"token/{name}")


class Doorkeeper:
    """Says who a bearer is.

    Args:
        database: The registry.
        admin_token: The token of the home's owner: it is always an admin's.
    """

    def __init__(self, database: Database, admin_token: str) -> None:
        self._database = database
        self._admin = _hash(admin_token)

    def identify(self, offered: str, now_s: float) -> Caller:
        """Return whose token this is.

        Raises:
            EdgeopsError: E-API-AUTH; nobody's, or it has ended. It is not said which.
        """
        if hmac.compare_digest(_hash(offered), self._admin):
            return Caller(ADMIN_NAME, Role.ADMIN)
        prefix, _, rest = offered.partition("_")
        number, _, secret = rest.partition("_")
        if prefix == PREFIX and len(number) == 16 and number.isascii() and number.isalnum():
            with self._database.read() as session:
                row = session.get(ApiToken, number)
            if (
                row is not None
                and hmac.compare_digest(_hash(secret), row.secret_sha256)
                and row.revoked_at_s is None
                and now_s < row.expires_at_s
            ):
                self._note_use(row, now_s)
                return Caller(row.name, Role(row.role))
        raise EdgeopsError(
            "E-API-AUTH", "the API token is missing, wrong, expired or revoked", "Ask an admin of the fleet for one."
        )

    def _note_use(self, row: ApiToken, now_s: float) -> None:
        if row.used_at_s is not None and now_s - row.used_at_s < USE_NOTED_EVERY_S:
            return
        with self._database.write(claims=False) as session:
            session.get_one(ApiToken, row.id).used_at_s = now_s


def check_allowed(caller: Caller, permission: Permission) -> None:
    """Refuse what a caller's role does not allow.

    Raises:
        EdgeopsError: E-API-ROLE.
    """
    if permission not in PERMISSIONS[caller.role]:
        able = ", ".join(role for role, allowed in PERMISSIONS.items() if permission in allowed)
        raise EdgeopsError(
            "E-API-ROLE", f"{caller.name} is {caller.role}, which may not {permission.value}", f"These may: {able}."
        )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
