"""What a model's Unix socket speaks: fixed headers, and tensors as raw bytes in the order of the manifest.

A frame is `HEADER` and a body. After the connection the server greets; then the client asks and the server answers, one
after the other. In a body, and in shared memory, each tensor begins at a multiple of `ALIGNMENT`.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable

import msgspec

from edgeops.contracts.tensors import TensorSpec
from edgeops.contracts.wire import Wire

FRAMES_VERSION = 1
ALIGNMENT = 16
# Kind, flags, length of the body in bytes, the client's mark: given back with the answer. Little-endian.
HEADER = struct.Struct("<HHIQ")
# Flag of an answer: an output is not finite.
NON_FINITE = 1


class Frame(enum.IntEnum):
    """Kinds of frames."""

    GREETING = 1
    INFER = 2
    ANSWER = 3
    REFUSAL = 4
    SHARE = 5
    INFER_SHARED = 6
    ANSWER_SHARED = 7
    BYE = 8


class Greeting(Wire, frozen=True, kw_only=True):
    """The first frame of a server.

    Args:
        frames: Version of this protocol.
        model: The model that it serves.
        release: Its version.
        digest: Its bundle.
        inputs: In the order of a request's body.
        outputs: In the order of an answer's body.
        states: Output → the input of the next call that takes its value.
    """

    frames: int
    model: str
    release: str
    digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: dict[str, str] = {}


class FrameRefusal(Wire, frozen=True, kw_only=True):
    """Why a request was not answered: `code` as in docs/reference/errors.md."""

    code: str
    error: str


class Place(msgspec.Struct, frozen=True):
    """Where a tensor lies in a body: bytes from its beginning."""

    spec: TensorSpec
    offset: int


def places(specs: Iterable[TensorSpec]) -> tuple[tuple[Place, ...], int]:
    """Lay tensors out one after the other.

    Returns:
        Where each lies, and the bytes that all take together.
    """
    found, offset = [], 0
    for spec in specs:
        found.append(Place(spec, offset))
        offset += -(-spec.nbytes // ALIGNMENT) * ALIGNMENT
    return tuple(found), offset
