"""Release: one model version, one bundle per profile, signed as a whole through TUF."""

from __future__ import annotations

import msgspec

from edgeops.contracts.wire import Wire


class ReleaseTarget(Wire, frozen=True, kw_only=True):
    """One bundle of a release: its profile, digest, and its TUF target: path, length, SHA-256 of the file."""

    profile: str
    digest: str
    path: str
    length: int
    sha256: str


class Release(Wire, frozen=True, kw_only=True):
    """One model version. `number` grows with each release of a model: the order that anti-rollback holds."""

    model: str
    version: str
    number: int
    created_at_s: float
    targets: tuple[ReleaseTarget, ...]
    notes: str = ""
    schema_version: int = msgspec.field(default=1, name="schema")


class TargetCustom(Wire, frozen=True, kw_only=True, omit_defaults=True):
    """The `custom` field of a bundle's TUF target: what ties the bytes to model, version, profile and order.

    `blob_trailer` is there for a microcontroller's model: the signature that its blob is installed with, in base64.
    """

    model: str
    version: str
    number: int
    profile: str
    digest: str
    blob_trailer: str = ""


def target_path(model: str, version: str, profile: str) -> str:
    """Return the TUF target path of a release's bundle for one profile."""
    return f"{model}/{version}/{profile}.edgeops"
