"""The base of everything that crosses a wire or rests in a file: frozen structs, canonical JSON, tolerant enums."""

from __future__ import annotations

import enum
from typing import TypeVar

import msgspec

from edgeops.contracts.errors import EdgeopsError

T = TypeVar("T")


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """A message or record that may be read by an older or newer edgeops: unknown fields are ignored."""


class Declared(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file that a person writes: an unknown key is a typing error and is refused."""


class WireEnum(str, enum.Enum):
    """An enum whose unknown values are read as `unknown`, so that an old reader survives a newer writer."""

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def _missing_(cls, value: object) -> WireEnum:
        return cls("unknown")


def encode(value: Wire | Declared) -> bytes:
    """Encode a struct as canonical JSON: UTF-8, keys sorted, no white space. The same value gives the same bytes."""
    return msgspec.json.encode(value, order="sorted")


def decode(data: bytes | str, kind: type[T], *, what: str) -> T:
    """Read and check JSON from a file, a message or a peer.

    Args:
        data: The JSON text, UTF-8.
        kind: The struct to read.
        what: What this is, for the error's reader: "manifest of bundle X".

    Raises:
        EdgeopsError: E-WIRE-MALFORMED; not JSON, or not of this shape; names the field.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EdgeopsError("E-WIRE-MALFORMED", f"{what}: {error}", "Fetch or write it again.") from error
