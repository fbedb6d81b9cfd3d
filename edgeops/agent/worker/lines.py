"""The Unix socket of a model: frames with raw tensors (`contracts.frames`), and shared memory for large ones."""

from __future__ import annotations

import array
import asyncio
import contextlib
import mmap
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.agent.worker.held import Held
from edgeops.agent.worker.service import Service, no_room
from edgeops.agent.worker.turns import Turns
from edgeops.contracts.bundle import BundleManifest
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.frames import ALIGNMENT, FRAMES_VERSION, HEADER, NON_FINITE, Frame, FrameRefusal, Greeting, Place
from edgeops.contracts.frames import places as laid_out
from edgeops.contracts.wire import encode
from edgeops.transport.unix import check_shared_memory

MAX_LINES = 128
# Of the buffers of all lines. Who shares memory has none here.
MAX_HELD_BYTES = 32 << 20
FRAME_WITHIN_S = 30.0
IDLE_WITHIN_S = 3600.0
# Requests of one client that are answered before others are looked at; and how long each next one is looked for, where
# another processor can work meanwhile.
IN_A_ROW = 16
LOOK_FOR_S = 50e-6 if len(os.sched_getaffinity(0)) > 1 else 0.0
# Who lets others go first and comes back only after this has company on its processor: a sleeper is woken sooner there.
CROWDED_S, SLEEPS = 50e-6, 256
_ANCILLARY_BYTES = socket.CMSG_SPACE(8 * array.array("i").itemsize)
_BYE = HEADER.pack(Frame.BYE, 0, 0, 0)

Tensors = dict[str, NDArray[Any]]


class Lines:
    """Serves one model on a listening Unix socket.

    Args:
        service: What answers.
        turns: Where inferences run.
        manifest: The bundle's.
        release: Its version.
        digest: Its digest.
    """

    def __init__(self, service: Service, turns: Turns, manifest: BundleManifest, release: str, digest: str) -> None:
        self.service, self.turns = service, turns
        self._varying = [spec.name for spec in manifest.inputs if spec.varies]
        self.inputs, self.input_bytes = laid_out(manifest.inputs)
        self.bools = tuple(spec.name for spec in manifest.inputs if spec.dtype == "bool")
        self.outputs, self.output_bytes = laid_out(info.tensor for info in manifest.outputs)
        greeting = Greeting(
            frames=FRAMES_VERSION,
            model=manifest.model,
            release=release,
            digest=digest,
            inputs=manifest.inputs,
            outputs=tuple(info.tensor for info in manifest.outputs),
            states=manifest.states,
        )
        body = encode(greeting)
        self.greeting = HEADER.pack(Frame.GREETING, 0, len(body), 0) + body
        self.open: set[Line] = set()
        self.held = Held(MAX_HELD_BYTES)
        self._listener: socket.socket | None = None
        self._loop = asyncio.get_running_loop()

    def start(self, listener: socket.socket) -> None:
        """Begin to accept connections on a socket that listens already."""
        self._listener = listener
        self._loop.add_reader(listener.fileno(), self._accept)

    def close_door(self) -> None:
        """Accept no more."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener = None

    def say_bye(self) -> None:
        """Send those away that wait for nothing; others once they have their answer."""
        for line in list(self.open):
            line.leave()

    def abort(self) -> None:
        """Close all at once."""
        for line in list(self.open):
            line.close()

    def check_time(self, now_s: float) -> None:
        """Close lines whose client is too slow, or silent for too long."""
        for line in list(self.open):
            line.check_time(now_s)

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # another worker was faster, or the client is gone again
        client.setblocking(False)
        if self._varying:
            what = f"sizes of {self._varying[0]!r} vary, frames have places for one: ask over HTTP"
            with client, contextlib.suppress(OSError):
                client.send(_refusal(0, EdgeopsError("E-INFER-MODEL", what)))
            return
        if len(self.open) >= MAX_LINES:
            with client, contextlib.suppress(OSError):
                client.send(_refusal(0, EdgeopsError("E-INFER-BUSY", f"{MAX_LINES} connections are open")))
            return
        line = Line(self, client)
        if not line.closed:  # by a client that was gone before it was greeted
            self.open.add(line)


class Line:
    """One client. A request is read whole, answered, and only then the next one is looked at.

    The buffer holds one request, from the first one with tensors on; they are views of it, made once.
    """

    def __init__(self, server: Lines, client: socket.socket) -> None:
        self._server, self._client, self._service = server, client, server.service
        self._loop = asyncio.get_running_loop()
        self._buffer = memoryview(bytearray(HEADER.size))
        self._filled = self._held = 0
        self._feeds: Tensors | None = None
        self._descriptors: list[int] = []
        self._shared_feeds: Tensors | None = None
        self._shared_answer: Tensors = {}
        self._unsent = memoryview(b"")
        self._task: asyncio.Task[None] | None = None
        self._leaving = self.closed = False
        self._sleeps = 0
        self._since_s = time.monotonic()
        self._loop.add_reader(client.fileno(), self._readable)
        self._send(server.greeting)

    def leave(self) -> None:
        """Close once nothing is under way."""
        self._leaving = True
        if self._task is None and not self._unsent and not self._filled and not self.closed:
            self._send(_BYE)
            self.close()

    def close(self) -> None:
        """Close at once."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._client.fileno())
        self._loop.remove_writer(self._client.fileno())
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._client.close()
        self._server.held.give(self._held)
        self._held = 0
        self._server.open.discard(self)

    def check_time(self, now_s: float) -> None:
        """Close the line if its client is too slow, or silent for too long."""
        waited_s = now_s - self._since_s
        if self._task is not None:
            return
        if (self._filled or self._unsent) and waited_s > FRAME_WITHIN_S:
            self.close()
        elif waited_s > IDLE_WITHIN_S:
            self.leave()

    # Reading

    def _readable(self) -> None:
        look_for_s = 0.0
        for _ in range(IN_A_ROW):
            if not self._receive(look_for_s):
                return
            self._look()
            if self.closed or self._task is not None or self._unsent:
                return
            if self._filled:
                # Half a frame: its end may be there already; and of a client that is gone, libuv tells but once.
                look_for_s = 0.0
                continue
            if len(self._server.open) > 1:
                return
            # Waking up takes longer than a quick inference, and a client that asked once may ask again.
            if self._sleeps:
                self._sleeps -= 1
                return
            look_for_s = LOOK_FOR_S

    def _receive(self, look_for_s: float) -> bool:
        """Take in what is there, or comes within a moment; False: nothing, or the client is gone."""
        until_s = time.perf_counter() + look_for_s
        while True:
            try:
                count, ancillary, _, _ = self._client.recvmsg_into([self._buffer[self._filled :]], _ANCILLARY_BYTES)
                break
            except (BlockingIOError, InterruptedError):
                before_s = time.perf_counter()
                if before_s >= until_s:
                    return False
                os.sched_yield()
                if time.perf_counter() - before_s > CROWDED_S:
                    self._sleeps = SLEEPS
            except OSError:
                count, ancillary = 0, []
                break
        for _, _, data in ancillary:
            held = array.array("i")
            held.frombytes(data[: len(data) - len(data) % held.itemsize])
            self._descriptors.extend(held)
        if count == 0 or len(self._descriptors) > 1:
            self.close()
            return False
        if self._filled == 0:
            self._since_s = time.monotonic()
        self._filled += count
        return True

    def _look(self) -> None:
        """Answer what is there as a whole."""
        while not self.closed and self._task is None and not self._unsent and self._filled >= HEADER.size:
            kind, _, length, mark = HEADER.unpack_from(self._buffer)
            size = HEADER.size + length
            if kind == Frame.INFER and length == self._server.input_bytes:
                feeds = self._feeds or self._make_room(mark)
                if feeds is None or self._filled < size:
                    return
                self._infer(feeds, mark, size, self._answer)
            elif kind == Frame.INFER_SHARED and length == 0 and self._shared_feeds is not None:
                self._infer(self._shared_feeds, mark, size, self._answer_shared)
            elif kind == Frame.SHARE and length == 0:
                self._done(size, self._share(mark))
            else:
                what = f"frame of kind {kind} with {length} bytes; a request has {self._server.input_bytes}"
                self._refuse(mark, EdgeopsError("E-INFER-REQUEST", what))

    def _make_room(self, mark: int) -> Tensors | None:
        """Make the buffer as large as a request, and return the tensors' places; None: there is no room for it."""
        length = self._server.input_bytes
        if not self._server.held.take(length):
            self._refuse(mark, EdgeopsError("E-INFER-BUSY", f"{len(self._server.open)} connections take all the room"))
            return None
        self._held = length
        store = bytearray(HEADER.size + length)
        store[: self._filled] = self._buffer[: self._filled]
        self._buffer = memoryview(store)
        self._feeds = _views(store, self._server.inputs, HEADER.size)
        return self._feeds

    def _share(self, mark: int) -> bytes:
        """Map the memory that came along; the answer says that it is so."""
        if not self._descriptors:
            return self._refused(mark, EdgeopsError("E-INFER-REQUEST", "no descriptor came along"))
        descriptor = self._descriptors.pop()
        size = self._server.input_bytes + self._server.output_bytes
        try:
            check_shared_memory(descriptor, size)
            memory = mmap.mmap(descriptor, size)
        except (EdgeopsError, OSError, ValueError) as error:
            said = error if isinstance(error, EdgeopsError) else EdgeopsError("E-INFER-REQUEST", f"memory: {error}")
            return self._refused(mark, said)
        finally:
            os.close(descriptor)
        self._shared_feeds = _views(memory, self._server.inputs, 0)
        self._shared_answer = _views(memory, self._server.outputs, self._server.input_bytes)
        return HEADER.pack(Frame.SHARE, 0, 0, mark)

    # Answers

    def _infer(self, feeds: Tensors, mark: int, size: int, answer: Callable[[Tensors, int], bytes]) -> None:
        if self._server.turns.at_once:
            self._done(size, answer(feeds, mark))
        else:
            self._loop.remove_reader(self._client.fileno())
            self._task = self._loop.create_task(self._infer_later(feeds, mark, size, answer))

    async def _infer_later(self, feeds: Tensors, mark: int, size: int, answer: Callable[[Tensors, int], bytes]) -> None:
        try:
            said = await self._server.turns.take(lambda: answer(feeds, mark))
        except EdgeopsError as error:
            said = self._refused(mark, error)
        self._task = None
        if self.closed:
            return
        self._loop.add_reader(self._client.fileno(), self._readable)
        self._done(size, said)
        self._look()

    def _answer(self, feeds: Tensors, mark: int) -> bytes:
        start_s = time.perf_counter()
        try:
            feeds = self._checked(feeds)
            answer, flagged = self._service.infer(feeds)
            parts = [HEADER.pack(Frame.ANSWER, flagged * NON_FINITE, self._server.output_bytes, mark)]
            for place in self._server.outputs:
                data = answer[place.spec.name].tobytes()
                parts += (data, bytes(-len(data) % ALIGNMENT))
            said = b"".join(parts)
        except EdgeopsError as error:
            return self._refused(mark, error)
        except MemoryError:
            return self._refused(mark, no_room())
        self._service.served(start_s, feeds, answer)
        return said

    def _answer_shared(self, feeds: Tensors, mark: int) -> bytes:
        start_s = time.perf_counter()
        try:
            feeds = self._checked(feeds)
            answer, flagged = self._service.infer(feeds)
        except EdgeopsError as error:
            return self._refused(mark, error)
        for name, view in self._shared_answer.items():
            np.copyto(view, answer[name])
        self._service.served(start_s, feeds, answer)
        return HEADER.pack(Frame.ANSWER_SHARED, flagged * NON_FINITE, 0, mark)

    def _checked(self, feeds: Tensors) -> Tensors:
        """Take what must not change any more out of the client's reach, and check it."""
        if not self._server.bools:
            return feeds
        feeds = {**feeds, **{name: feeds[name].copy() for name in self._server.bools}}
        for name in self._server.bools:
            if feeds[name].view(np.uint8).max(initial=0) > 1:
                raise EdgeopsError("E-RUNTIME-INPUT", f"input {name!r}: a BOOL is 0 or 1")
        return feeds

    def _done(self, size: int, said: bytes) -> None:
        """Forget the request at the buffer's beginning, and send its answer."""
        left = self._filled - size
        if left:
            self._buffer[:left] = self._buffer[size : self._filled]
        self._filled = left
        self._since_s = time.monotonic()
        self._send(said)
        if self._leaving:
            self.leave()

    def _refuse(self, mark: int, error: EdgeopsError) -> None:
        """Refuse what cannot be read; where the next frame begins is not known."""
        self._send(self._refused(mark, error))
        self.close()

    def _refused(self, mark: int, error: EdgeopsError) -> bytes:
        self._service.failed(error.code)
        return _refusal(mark, error)

    def _send(self, data: bytes) -> None:
        try:
            sent = self._client.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            self._loop.remove_reader(self._client.fileno())
            self._loop.add_writer(self._client.fileno(), self._flush)

    def _flush(self) -> None:
        try:
            self._unsent = self._unsent[self._client.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not self._unsent:
            self._loop.remove_writer(self._client.fileno())
            self._loop.add_reader(self._client.fileno(), self._readable)
            self._since_s = time.monotonic()
            self._look()
            if self._leaving:
                self.leave()


def _views(store: bytearray | mmap.mmap, where: tuple[Place, ...], base: int) -> Tensors:
    return {
        place.spec.name: np.frombuffer(
            store, np.dtype(place.spec.dtype), place.spec.elements, base + place.offset
        ).reshape(place.spec.shape)
        for place in where
    }


def _refusal(mark: int, error: EdgeopsError) -> bytes:
    body = encode(FrameRefusal(code=error.code, error=error.what))
    return HEADER.pack(Frame.REFUSAL, 0, len(body), mark) + body
