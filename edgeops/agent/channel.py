"""What supervisor and worker say to each other: small tagged messages in frames over a socket pair."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Union

import msgspec

from edgeops.agent.door import Door
from edgeops.contracts.deployment import SelfTestFigures
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.telemetry import ModelWindow

MAX_FRAME_BYTES = 20 << 20
_LENGTH = struct.Struct(">I")


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Check a bundle's bytes, load it, and run it once.

    Args:
        directory: Where the bundle lies.
        release: Its version, for clients.
        digest: What it must be.
        ram_mib: Memory of this class of device: no bundle may have more.
        threads: Inference threads.
        affinity: CPUs that the process may use; empty: any.
        cache_dir: Where the runtime may keep engines that it builds for this device.
        backends: Name → entry point of runtimes, as the supervisor found them; none: the worker looks for them.
    """

    directory: str
    release: str
    digest: str
    ram_mib: float
    threads: int = 1
    affinity: tuple[int, ...] = ()
    cache_dir: str | None = None
    backends: dict[str, str] = {}


class Test(msgspec.Struct, frozen=True, tag=True):
    """Replay the golden vectors, and hold latency and memory against the budgets."""


class Serve(msgspec.Struct, frozen=True, tag=True):
    """Begin to accept connections, over HTTP of those who may pass the door."""

    door: Door = Door()


class Probe(msgspec.Struct, frozen=True, tag=True):
    """Give a sign of life; with `infer`, by running a golden vector."""

    number: int
    infer: bool = True


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Accept no more connections, finish what is under way, and end."""


class Shadow(msgspec.Struct, frozen=True, tag=True):
    """See requests of what serves over the descriptor that comes along, and answer nobody; `cpu` as in the contract."""

    cpu: float


class Mirror(msgspec.Struct, frozen=True, tag=True):
    """Send a share of what is served over the descriptor that comes along."""

    share: float


class Draw(msgspec.Struct, frozen=True, tag=True):
    """Give the inputs of requests for a signed command, in place of any command before; `count` 0: of none.

    The other bounds are those of `contracts.commands.SamplesWish`.
    """

    id: str
    count: int
    max_bytes: int
    share: float


class Building(msgspec.Struct, frozen=True, tag=True):
    """The runtime builds an engine for this device before it can load the bundle; that may take minutes."""


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The bundle is whole, loaded and warm."""

    load_ms: float
    provider: str


class Tested(msgspec.Struct, frozen=True, tag=True):
    """The self-test passed."""

    figures: SelfTestFigures


class Serving(msgspec.Struct, frozen=True, tag=True):
    """Connections are accepted."""


class Closed(msgspec.Struct, frozen=True, tag=True):
    """No connection is accepted any more; what is under way is being finished."""


class Alive(msgspec.Struct, frozen=True, tag=True):
    """The answer to a probe."""

    number: int


class Counted(msgspec.Struct, frozen=True, tag=True):
    """What was served since the last such message."""

    window: ModelWindow


class Busy(msgspec.Struct, frozen=True, tag=True):
    """The application asks that no update disturbs it for so long; 0: no more."""

    for_s: float


class Drawn(msgspec.Struct, frozen=True, tag=True):
    """The inputs of a request, as in a file of samples; empty: the next is larger than the bounds allow."""

    id: str
    sample: bytes


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The bundle cannot be served; the worker ends."""

    code: str
    what: str


ToWorker = Union[Load, Test, Serve, Probe, Drain, Shadow, Mirror, Draw]  # noqa: UP007  evaluated at run time, also on Python 3.10
FromWorker = Union[Building, Loaded, Tested, Serving, Closed, Alive, Counted, Busy, Drawn, Refused]  # noqa: UP007


class Framing:
    """Takes bytes in and gives whole messages out."""

    def __init__(self, kind: object) -> None:
        self._decoder: msgspec.msgpack.Decoder[object] = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[object]:
        """Return the messages that are complete now.

        Raises:
            EdgeopsError: E-WIRE-MALFORMED; the other side does not keep to the form.
        """
        self._buffer += data
        messages = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise EdgeopsError("E-WIRE-MALFORMED", f"a frame of {length} bytes on the worker's channel")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            try:
                messages.append(self._decoder.decode(self._buffer[_LENGTH.size : end]))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise EdgeopsError("E-WIRE-MALFORMED", f"worker's channel: {error}") from error
            del self._buffer[:end]
        return messages


def send(channel: socket.socket, message: msgspec.Struct, descriptors: Sequence[int] = ()) -> None:
    """Send one message, and descriptors along with it; blocks until the operating system has it.

    Raises:
        OSError: The other side is gone.
    """
    body = msgspec.msgpack.encode(message)
    data = _LENGTH.pack(len(body)) + body
    sent = socket.send_fds(channel, [data], descriptors) if descriptors else 0
    channel.sendall(data[sent:])
