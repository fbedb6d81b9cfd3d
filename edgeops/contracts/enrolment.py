"""Enrolment: how a new device gets its identity and its first trust from a one-time token."""

from __future__ import annotations

import base64
import binascii

import msgspec

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Wire, WireEnum, decode, encode

_TOKEN_PREFIX = "eo1."  # noqa: S105  a format mark, not a secret


class ConnectionKind(WireEnum):
    """What joins a fleet: a device that runs releases, or a rig that tries them before."""

    DEVICE = "device"
    RIG = "rig"
    UNKNOWN = "unknown"


class EnrolmentToken(Wire, frozen=True, kw_only=True):
    """What an operator hands to a new device, once.

    Args:
        server: Base URL of the control plane, `https://host:port`.
        fleet: The fleet that the device joins.
        ca_sha256: SHA-256 of the fleet CA certificate (DER), lower-case hex.
        root_sha256: SHA-256 of the TUF root.json that the device must start from, lower-case hex.
        secret: One-time secret.
    """

    server: str
    fleet: str
    ca_sha256: str
    root_sha256: str
    secret: str

    def to_text(self) -> str:
        """Return the token as one word for command lines and files."""
        return _TOKEN_PREFIX + base64.urlsafe_b64encode(encode(self)).decode().rstrip("=")

    @classmethod
    def from_text(cls, text: str) -> EnrolmentToken:
        """Read a token.

        Raises:
            EdgeopsError: E-TOKEN; not a token. The text is not repeated: it holds a secret.
        """
        text = text.strip()
        if text.startswith(_TOKEN_PREFIX) and len(text) < 4096:
            body = text[len(_TOKEN_PREFIX) :]
            try:
                return decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), cls, what="enrolment token")
            except (binascii.Error, ValueError, EdgeopsError):
                pass
        raise EdgeopsError("E-TOKEN", "not an enrolment token", "Copy it whole, or make a new one.")


class EnrolRequest(Wire, frozen=True, kw_only=True):
    """A device's request: the token's secret, a wish for a name, its profile, and a CSR (PEM) for its own key.

    A rig has no profile: its boards have.
    """

    secret: str
    csr_pem: str
    profile: str
    name: str | None = None
    agent_version: str = ""
    kind: ConnectionKind = ConnectionKind.DEVICE
    schema_version: int = msgspec.field(default=1, name="schema")


class RenewalRequest(Wire, frozen=True, kw_only=True):
    """A device's wish for a new certificate, inside an envelope that its present key signs.

    Args:
        fleet: The device's fleet.
        connection: The device.
        csr_pem: A request for the certificate of its next key.
    """

    fleet: str
    connection: str
    csr_pem: str
    schema_version: int = msgspec.field(default=1, name="schema")


class RenewalMessage(Wire, frozen=True, kw_only=True):
    """What a device posts: who says that it speaks, and the envelope that proves it."""

    connection: str
    envelope: str
    schema_version: int = msgspec.field(default=1, name="schema")


class RenewalAnswer(Wire, frozen=True, kw_only=True):
    """The new certificate."""

    certificate_pem: str
    schema_version: int = msgspec.field(default=1, name="schema")


class BrokerAddress(Wire, frozen=True, kw_only=True):
    """Where the broker listens; `tls` False only on loopback."""

    host: str
    port: int
    tls: bool


class EnrolResponse(Wire, frozen=True, kw_only=True):
    """The device's identity and addresses.

    Args:
        connection: The device's MQTT identity, also the certificate's common name.
        certificate_pem: The device's certificate.
        ca_pem: The fleet CA's certificate.
        artifacts_url: Base URL of the TUF repository (`metadata/` and `targets/` below it); asks for the certificate.
        profile: The profile that the device was registered with.
    """

    fleet: str
    connection: str
    certificate_pem: str
    ca_pem: str
    broker: BrokerAddress
    artifacts_url: str
    profile: str
    schema_version: int = msgspec.field(default=1, name="schema")


class OfflineAnswer(Wire, frozen=True, kw_only=True):
    """What a person carries to a device without a network: the server's answer, and the first TUF root.

    The device believes nothing of it that its token does not vouch for.
    """

    response: EnrolResponse
    root_json: str
    schema_version: int = msgspec.field(default=1, name="schema")
