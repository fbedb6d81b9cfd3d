"""A candidate beside what serves: it sees a share of the live inputs, answers nobody, and its answers are compared.

What serves never waits for it. The candidate says when it can take a sample; one that is drawn while it cannot is
skipped and counted. So its pace alone says what it costs: it waits after each sample until it is within its budget.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.agent.worker.engine import Engine
from edgeops.agent.worker.meter import classed_output
from edgeops.contracts.bundle import BundleManifest
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.telemetry import ModelWindow, ShadowFigures

# Answers without classes agree if they are so near each other: `distance`.
AGREES_WITHIN = 0.1
MAX_SAMPLE_BYTES = 256 << 20
_READY = b"."
_LENGTH = struct.Struct(">I")

Tensors = Mapping[str, NDArray[Any]]


class _Tensor(msgspec.Struct, frozen=True, array_like=True):
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class _Sample(msgspec.Struct, frozen=True, array_like=True):
    feeds: dict[str, _Tensor]
    answer: dict[str, _Tensor]
    skipped: int


_DECODER = msgspec.msgpack.Decoder(_Sample)


class Mirror(asyncio.Protocol):
    """In the worker that serves: draws requests and sends them to the candidate.

    Args:
        share: Which share of the requests is drawn, in (0, 1].
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._ready = False
        self._skipped = 0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None

    async def start(self, line: socket.socket) -> None:
        """Begin, on one end of a socket pair."""
        line.setblocking(False)
        await self._loop.create_connection(lambda: self, sock=line)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hold the line."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """The candidate can take a sample."""
        self._ready = True

    def connection_lost(self, exc: Exception | None) -> None:
        """The candidate is gone."""
        self._ready, self._transport = False, None

    @property
    def ended(self) -> bool:
        """Whether the candidate is gone."""
        return self._transport is None

    def offer(self, feeds: Tensors, answer: Tensors) -> None:
        """Draw a request that was answered, or not. May be called from any thread, by one at a time."""
        if random.random() >= self._share:  # noqa: S311  it draws a sample, it hides nothing
            return
        if not self._ready:
            self._skipped += 1
            return
        self._ready = False
        body = msgspec.msgpack.encode(_Sample(_packed(feeds), _packed(answer), self._skipped))
        if len(body) > MAX_SAMPLE_BYTES:
            self._skipped, self._ready = self._skipped + 1, True
            return
        self._skipped = 0
        self._loop.call_soon_threadsafe(self._send, body)

    def close(self) -> None:
        """Draw no more."""
        if self._transport is not None:
            self._transport.close()

    def _send(self, body: bytes) -> None:
        if self._transport is not None:
            self._transport.writelines((_LENGTH.pack(len(body)), body))


class Shadow(asyncio.Protocol):
    """In the candidate's worker: runs what it is sent, and compares.

    Args:
        engine: The candidate.
        cpu: How much of one processor it may take, in (0, 1].
        on_end: Called once the line ends.
    """

    def __init__(self, engine: Engine, cpu: float, on_end: Callable[[Shadow], None]) -> None:
        self._engine, self._cpu, self._on_end = engine, cpu, on_end
        self._book = ShadowBook(engine.manifest, engine.release, engine.digest)
        self._buffer = bytearray()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None

    async def start(self, line: socket.socket) -> None:
        """Begin, on the other end of the socket pair."""
        line.setblocking(False)
        await self._loop.create_connection(lambda: self, sock=line)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hold the line, and ask for a sample."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(_READY)

    def connection_lost(self, exc: Exception | None) -> None:
        """What served has ended, or this is to serve."""
        self._transport = None
        self._on_end(self)

    def data_received(self, data: bytes) -> None:
        """Take a part of a sample; compare once it is whole."""
        self._buffer += data
        if len(self._buffer) < _LENGTH.size:
            return
        (length,) = _LENGTH.unpack_from(self._buffer)
        if len(self._buffer) < _LENGTH.size + length:
            return
        sample = _DECODER.decode(memoryview(self._buffer)[_LENGTH.size : _LENGTH.size + length])
        self._buffer = bytearray()  # a view of the old one may live on in tensors
        begun_s, cpu_s = time.perf_counter(), time.process_time()
        self._compare(sample)
        spent_s, took_s = time.process_time() - cpu_s, time.perf_counter() - begun_s
        self._loop.call_later(pause_s(spent_s, took_s, self._cpu), self._ask)

    def take(self) -> ModelWindow | None:
        """Return what was compared since the last time, and begin anew; None: nothing was."""
        return self._book.take()

    def close(self) -> None:
        """Compare no more."""
        if self._transport is not None:
            self._transport.close()

    def _ask(self) -> None:
        if self._transport is not None:
            self._transport.write(_READY)

    def _compare(self, sample: _Sample) -> None:
        self._book.skipped += sample.skipped
        begun_s = time.perf_counter()
        try:
            answer = self._engine.run(_unpacked(sample.feeds))
        except EdgeopsError as error:
            self._book.failed(error.code)
            return
        self._book.compared(_unpacked(sample.answer), answer, (time.perf_counter() - begun_s) * 1e3)


def pause_s(spent_s: float, took_s: float, cpu: float) -> float:
    """Return how long to wait before the next sample.

    Args:
        spent_s: Time of a processor that the last one took.
        took_s: How long it took.
        cpu: How much of one processor may be taken, in (0, 1].
    """
    return max(0.0, spent_s / cpu - took_s)


class Likeness(NamedTuple):
    """How like two answers are: whether they agree, and how far they are apart, in [0, 2]."""

    agree: bool
    distance: float


class ShadowBook:
    """Sums comparisons up.

    Args:
        manifest: The candidate's.
        release: Its version.
        digest: Its digest.
    """

    def __init__(self, manifest: BundleManifest, release: str, digest: str) -> None:
        self._manifest, self._release, self._digest = manifest, release, digest
        self._clear()

    def _clear(self) -> None:
        self.skipped = 0
        self._agreed = 0
        self._distances: list[float] = []
        self._latencies_ms: list[float] = []
        self._errors: Counter[str] = Counter()

    def failed(self, code: str) -> None:
        """Count an input that the candidate could not answer."""
        self._errors[code] += 1

    def compared(self, served: Tensors, answer: Tensors, latency_ms: float) -> None:
        """Count an answer of the candidate beside the one that was served."""
        likeness = compare(self._manifest, served, answer)
        self._agreed += likeness.agree
        self._distances.append(likeness.distance)
        self._latencies_ms.append(latency_ms)

    def take(self) -> ModelWindow | None:
        """Return the sums, and begin anew; None: there is nothing."""
        if not (self._distances or self._errors or self.skipped):
            return None
        figures = ShadowFigures(
            compared=len(self._distances) + self._errors.total(),
            agreed=self._agreed,
            skipped=self.skipped,
            distance=QuantileSketch.of(self._distances),
            latency_ms=QuantileSketch.of(self._latencies_ms),
            errors=dict(self._errors),
        )
        self._clear()
        return ModelWindow(
            model=self._manifest.model,
            release=self._release,
            digest=self._digest,
            latency_ms=QuantileSketch(),
            requests=0,
            shadow=figures,
        )


def compare(manifest: BundleManifest, served: Tensors, answer: Tensors) -> Likeness:
    """Say how like two answers are.

    They agree if every row has the same class; where no output has classes, if they are within `AGREES_WITHIN`.
    The distance is that of the output that is farthest: the norm of the difference over the larger of both norms.

    Args:
        manifest: The candidate's.
        served: What was served.
        answer: What the candidate says.
    """
    distance = 0.0
    for info in manifest.outputs:
        name = info.tensor.name
        if name not in served or served[name].shape != answer[name].shape:
            return Likeness(False, 2.0)
        distance = max(distance, _distance(served[name], answer[name]))
    classed = classed_output(manifest.outputs)
    if classed is None:
        return Likeness(distance <= AGREES_WITHIN, distance)
    one, other = served[classed.tensor.name], answer[classed.tensor.name]
    same = bool(np.array_equal(one.argmax(axis=-1), other.argmax(axis=-1)))
    return Likeness(same, distance)


def _distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    first, second = one.astype(np.float64).reshape(-1), other.astype(np.float64).reshape(-1)
    size = max(float(np.linalg.norm(first)), float(np.linalg.norm(second)))
    apart = float(np.linalg.norm(first - second))
    if not (math.isfinite(size) and math.isfinite(apart)):
        return 0.0 if np.array_equal(first, second, equal_nan=True) else 2.0
    return min(2.0, apart / size) if size else 0.0


def _packed(tensors: Tensors) -> dict[str, _Tensor]:
    return {name: _Tensor(array.dtype.name, array.shape, array.tobytes()) for name, array in tensors.items()}


def _unpacked(tensors: Mapping[str, _Tensor]) -> dict[str, NDArray[Any]]:
    return {name: np.frombuffer(one.data, np.dtype(one.dtype)).reshape(one.shape) for name, one in tensors.items()}
