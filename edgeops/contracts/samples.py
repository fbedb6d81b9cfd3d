"""Raw inputs of a model: how an operator asks a device for some, once, and its answer."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.contracts.wire import Wire, WireEnum

# DSSE payload types.
SAMPLES_TYPE = "application/vnd.edgeops.samples+json"
SAMPLES_ANSWER_TYPE = "application/vnd.edgeops.samples-answer+json"

# What an agent says in `Reported.features` if it knows `SamplesCommand`.
SAMPLES_FEATURE = "samples"

MAX_VALID_S = 7 * 86400.0
MAX_SAMPLES = 1000
MAX_SAMPLES_BYTES = 16 << 20
MAX_SAMPLES_S = 86400.0
# Bytes of an answer that one message carries: signed and in text it is 1.8 times as long.
MAX_PART_BYTES = 192 << 10
_LENGTH = struct.Struct(">I")


class SamplesWish(Wire, frozen=True, kw_only=True):
    """Give raw inputs of a model, as they come: so many, so many bytes, for so long, whichever ends first.

    Args:
        model: The model.
        count: How many requests at most.
        max_bytes: How many bytes at most.
        within_s: For how long at most, from when the device takes the command up.
        share: Which share of the requests is drawn, in (0, 1].
    """

    model: str
    count: int
    max_bytes: int
    within_s: float
    share: float = 1.0


class SamplesCommand(Wire, frozen=True, kw_only=True):
    """Asks one unit of one connection for raw inputs, signed by the key of desired state.

    Args:
        fleet: The fleet.
        connection: MQTT identity that this is meant for, and no other.
        unit: `self` or a child.
        id: Idempotency key: a device carries out one command of an id, however often it comes.
        issued_at_s: Control plane's clock.
        expires_at_s: From then on it is refused, and a device forgets that it knew it.
        wish: What is asked for.
    """

    fleet: str
    connection: str
    unit: str
    id: str
    issued_at_s: float
    expires_at_s: float
    wish: SamplesWish
    schema_version: int = msgspec.field(default=1, name="schema")


class AnswerState(WireEnum):
    """How far a device has come with a command."""

    ACCEPTED = "accepted"
    DONE = "done"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class SamplesAnswer(Wire, frozen=True, kw_only=True):
    """A device's answer to a command, or a part of it.

    Args:
        id: The command's.
        state: How far it has come; `done` has the data, in as many messages as it takes.
        at_s: Device time by the time rule; for people.
        code: Why it was refused.
        what: What happened, for people.
        offset: Where `data` begins in the whole.
        total: Bytes of the whole.
        sha256: Of the whole, lower-case hex.
        data: This part.
    """

    fleet: str
    connection: str
    unit: str
    id: str
    state: AnswerState
    at_s: float
    code: str = ""
    what: str = ""
    offset: int = 0
    total: int = 0
    sha256: str = ""
    data: bytes = b""
    schema_version: int = msgspec.field(default=1, name="schema")


class SampleTensor(Wire, frozen=True, kw_only=True):
    """A tensor as it was sent: little-endian, row by row."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


class Sample(Wire, frozen=True, kw_only=True):
    """The inputs of one request, and which bundle answered it."""

    at_s: float
    release: str
    digest: str
    inputs: dict[str, SampleTensor]


def check_samples_command(command: SamplesCommand) -> None:
    """Check what the form alone does not say.

    Raises:
        EdgeopsError: E-COMMAND; a bound is impossible. E-NAME.
    """
    check_name(command.id, "command id")
    if not 0 < command.expires_at_s - command.issued_at_s <= MAX_VALID_S:
        raise EdgeopsError("E-COMMAND", f"a command holds for more than 0 and at most {MAX_VALID_S:.0f} s")
    check_samples(command.wish)


def check_samples(wish: SamplesWish) -> None:
    """Check the bounds of a wish for samples.

    Raises:
        EdgeopsError: E-COMMAND or E-NAME.
    """
    check_name(wish.model, "model")
    for what, value, most in (
        ("count", wish.count, MAX_SAMPLES),
        ("max_bytes", wish.max_bytes, MAX_SAMPLES_BYTES),
        ("within_s", wish.within_s, MAX_SAMPLES_S),
        ("share", wish.share, 1.0),
    ):
        if not 0 < value <= most:
            raise EdgeopsError("E-COMMAND", f"samples: {what} is {value}, it must be above 0 and at most {most}")


def pack_sample(sample: Sample) -> bytes:
    """Return a sample as it lies in a file of samples: length and MessagePack."""
    body = msgspec.msgpack.encode(sample)
    return _LENGTH.pack(len(body)) + body


def unpack_samples(data: bytes) -> Iterator[Sample]:
    """Yield the samples of a file.

    Raises:
        EdgeopsError: E-WIRE-MALFORMED; it is cut off, or not of this form.
    """
    decoder, place = msgspec.msgpack.Decoder(Sample), 0
    while place < len(data):
        if place + _LENGTH.size > len(data):
            raise EdgeopsError("E-WIRE-MALFORMED", "the samples are cut off")
        (length,) = _LENGTH.unpack_from(data, place)
        place += _LENGTH.size
        try:
            yield decoder.decode(memoryview(data)[place : place + length])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EdgeopsError("E-WIRE-MALFORMED", f"a sample cannot be read: {error}") from error
        place += length
