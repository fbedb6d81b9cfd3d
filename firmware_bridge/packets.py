"""SMP packets: a header and a CBOR map. `SPEC.md`, "Packet"."""

from __future__ import annotations

import enum
import struct
from collections.abc import Container
from typing import Any, NamedTuple

import cbor2

from edgeops.contracts.errors import EdgeopsError

_HEADER = struct.Struct(">BBHHBB")
_VERSION_2 = 1 << 3
_DEEPEST = 8


class Op(enum.IntEnum):
    """What a packet asks or answers."""

    READ = 0
    READ_RESPONSE = 1
    WRITE = 2
    WRITE_RESPONSE = 3


class Command(NamedTuple):
    """A command of a group, and the op that asks it."""

    group: int
    number: int
    op: Op


ECHO = Command(0, 0, Op.WRITE)
RESET = Command(0, 5, Op.WRITE)
PARAMETERS = Command(0, 6, Op.READ)
SYSTEM_INFO = Command(0, 7, Op.READ)
IMAGE_STATE = Command(1, 0, Op.READ)
SET_IMAGE_STATE = Command(1, 0, Op.WRITE)
UPLOAD = Command(1, 1, Op.WRITE)
ERASE = Command(1, 5, Op.WRITE)
STATISTICS = Command(2, 0, Op.READ)
STATISTICS_LIST = Command(2, 1, Op.READ)
MODEL_INFO = Command(224, 0, Op.READ)
MODEL_INPUT = Command(224, 1, Op.WRITE)
MODEL_RUN = Command(224, 2, Op.WRITE)
MODEL_OUTPUT = Command(224, 3, Op.READ)


class Packet(NamedTuple):
    """A packet, taken apart."""

    op: int
    group: int
    number: int
    sequence: int
    values: dict[str, Any]

    def answers(self, command: Command, sequences: Container[int]) -> bool:
        """Whether this is the answer to a command that was sent with one of these sequences."""
        asked = (command.op + 1, command.group, command.number)
        return (self.op, self.group, self.number) == asked and self.sequence in sequences


def encode(command: Command, sequence: int, values: dict[str, Any]) -> bytes:
    """Return a request as a packet of version 2."""
    body = cbor2.dumps(values)
    return _HEADER.pack(_VERSION_2 | command.op, 0, len(body), command.group, sequence, command.number) + body


def decode(packet: bytes) -> Packet:
    """Take a packet apart.

    Raises:
        EdgeopsError: E-MCU-ANSWER; it is not one.
    """
    if len(packet) < _HEADER.size:
        raise EdgeopsError("E-MCU-ANSWER", f"a packet of {len(packet)} bytes has no header")
    op, _, length, group, sequence, number = _HEADER.unpack_from(packet)
    body = packet[_HEADER.size :]
    if length != len(body):
        raise EdgeopsError("E-MCU-ANSWER", f"a packet says it has {length} bytes and has {len(body)}")
    try:
        values = cbor2.loads(body)
    except (cbor2.CBORError, ValueError, RecursionError) as error:
        raise EdgeopsError("E-MCU-ANSWER", f"a packet's body is not CBOR: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise EdgeopsError("E-MCU-ANSWER", "a packet's body is not a map with text keys")
    if not _is_plain(values, _DEEPEST):
        raise EdgeopsError("E-MCU-ANSWER", "a packet's body holds what no answer has: tags, or numbers beyond 64 bits")
    return Packet(op & 7, group, number, sequence, values)


def _is_plain(value: object, deepest: int) -> bool:
    """Say whether a value is of the kinds that answers have. CBOR knows more: numbers without end, loops, patterns."""
    if isinstance(value, dict):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list):
        parts = value
    elif isinstance(value, int):
        return -(1 << 63) <= value < 1 << 64
    else:
        return value is None or isinstance(value, str | bytes | float)
    return deepest > 0 and all(_is_plain(part, deepest - 1) for part in parts)


def shown(text: str, most: int) -> str:
    """Return so much of what a device says as may go into reports and logs, and onto a terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text[:most])
