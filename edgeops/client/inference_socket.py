"""Inference over a model's Unix socket: raw tensors in frames, large ones in shared memory."""

from __future__ import annotations

import mmap
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.client.inference_state import State, states_of
from edgeops.contracts.errors import ERROR_CODES, EdgeopsError
from edgeops.contracts.frames import FRAMES_VERSION, HEADER, Frame, FrameRefusal, Greeting, Place, places
from edgeops.contracts.wire import decode
from edgeops.transport import unix

TIMEOUT_S = 30.0
# From so many bytes of inputs and outputs on, copying them through the socket costs more than mapping memory.
SHARE_FROM_BYTES = 32 << 10
MAX_GREETING_BYTES = 1 << 20
MAX_TENSOR_BYTES = 1 << 30
_SWAP_WAIT_S = 0.02
# A request is made anew if its worker died; one that worker after worker dies of is not.
MAX_DEATHS = 2
# Where another processor can work meanwhile.
LOOK_FOR_S = 100e-6 if len(os.sched_getaffinity(0)) > 1 else 0.0
# Who lets others go first and comes back only after this has company on its processor: a sleeper is woken sooner there
# than one who looks. So the next answers are slept for.
CROWDED_S, SLEEPS = 50e-6, 256
_TIMEVAL = struct.Struct("@ll")

Tensors = dict[str, NDArray[Any]]


class SocketClient:
    """Asks one server over one connection that is kept. Use one client per thread.

    While a device changes the bundle, the server sends its clients away: the request is then made anew, of the next.

    Args:
        path: The socket; `edgeops agent status` tells it.
        timeout_s: How long to wait for an answer.

    Raises:
        EdgeopsError: E-NET-UNREACHABLE; nobody listens there. E-NET-RESPONSE; what listens there is no such server.
    """

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self._path, self._timeout_s = path, timeout_s
        self._mark = 0
        self._connection = _Connection(path, timeout_s)

    def infer(self, model: str, feeds: Mapping[str, NDArray[Any]], *, outputs: Sequence[str] = ()) -> Tensors:
        """Run the model.

        Args:
            model: Its name.
            feeds: Input name → tensor of the declared dtype and shape.
            outputs: Outputs that are wanted; none: all.

        Returns:
            Output name → tensor.

        Raises:
            EdgeopsError: The server's code; E-RUNTIME-INPUT; tensors of another name, dtype or shape. E-INFER-MODEL;
                another model is served here. E-NET-UNREACHABLE; no answer. E-NET-RESPONSE; an answer that is none.
        """
        until_s = time.monotonic() + self._timeout_s
        deaths = 0
        while True:
            if not self._connection.usable:
                self._connect_again(until_s)
            connection = self._connection
            if connection.greeting.model != model:
                raise EdgeopsError("E-INFER-MODEL", f"{self._path}: here is {connection.greeting.model}, not {model}")
            self._mark += 1
            try:
                return connection.infer(feeds, self._mark, outputs)
            except _SentAwayError as error:
                deaths += not error.politely
                if deaths > MAX_DEATHS:
                    what = f"{self._path}: the server ended the connection {deaths} times before it answered"
                    raise EdgeopsError("E-NET-UNREACHABLE", what, "Do these inputs end the model's worker?") from error
                if time.monotonic() >= until_s:
                    raise _unreachable(
                        self._path, TimeoutError("the server sent this client away all the time")
                    ) from error
                self._connect_again(until_s)

    def ready(self) -> bool:
        """Say whether the server can answer."""
        try:
            self._connect_again(time.monotonic())
        except EdgeopsError:
            return False
        return True

    def metadata(self, model: str) -> dict[str, Any]:
        """Return the model's name, release, digest, inputs and outputs.

        Raises:
            EdgeopsError: E-INFER-MODEL; another model is served here.
        """
        greeting = self._connection.greeting
        if greeting.model != model:
            raise EdgeopsError("E-INFER-MODEL", f"{self._path}: here is {greeting.model}, not {model}")
        return {
            "name": greeting.model,
            "versions": [greeting.release],
            "digest": greeting.digest,
            "inputs": list(greeting.inputs),
            "outputs": list(greeting.outputs),
        }

    def states(self, model: str) -> tuple[State, ...]:
        """Return the model's state tensors, for `Stream`.

        Raises:
            EdgeopsError: E-INFER-MODEL; another model is served here.
        """
        self.metadata(model)
        greeting = self._connection.greeting
        return states_of(greeting.states, greeting.inputs)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> SocketClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect_again(self, until_s: float) -> None:
        self._connection.close()
        while True:
            try:
                self._connection = _Connection(self._path, self._timeout_s)
                return
            except EdgeopsError as error:
                if error.code != "E-NET-UNREACHABLE" or time.monotonic() >= until_s:
                    raise
                time.sleep(_SWAP_WAIT_S)


class _SentAwayError(Exception):
    """The server ended the connection before it answered; `politely`: it said so."""

    def __init__(self, *, politely: bool = False) -> None:
        super().__init__()
        self.politely = politely


class _Connection:
    """One connection and what the server said of its model. Buffers and views are made once."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path = path
        # Not once an answer did not come, or was none: what comes then may be the answer to an earlier request.
        self.usable = True
        self._shared: mmap.mmap | None = None
        self._sleeps = 0
        self._request, self._answer = bytearray(HEADER.size), memoryview(bytearray(HEADER.size))
        self._inputs: Tensors = {}
        self._outputs: Tensors = {}
        try:
            self._socket = unix.connect(path, timeout_s)
        except OSError as error:
            raise _unreachable(path, error) from error
        try:
            # Time limits of the kernel: a timeout of Python's would cost a system call more for each request.
            self._socket.setblocking(True)
            limit = _TIMEVAL.pack(int(timeout_s), int(timeout_s % 1 * 1e6))
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self._socket.setsockopt(socket.SOL_SOCKET, option, limit)
            self.greeting = self._greeted()
            self._prepare()
        except _SentAwayError as error:
            self.close()
            raise _unreachable(path, ConnectionResetError("the server closed the connection")) from error
        except EdgeopsError:
            self.close()
            raise

    def infer(self, feeds: Mapping[str, NDArray[Any]], mark: int, outputs: Sequence[str]) -> Tensors:
        """Ask once."""
        if outputs and not self._outputs.keys() >= set(outputs):
            raise EdgeopsError("E-INFER-REQUEST", f"outputs are {sorted(self._outputs)}, asked for {list(outputs)}")
        self._fill(feeds)
        if self._shared is None:
            HEADER.pack_into(self._request, 0, Frame.INFER, 0, self._input_bytes, mark)
        else:
            HEADER.pack_into(self._request, 0, Frame.INFER_SHARED, 0, 0, mark)
        self.usable = False
        self._send(self._request)
        self._receive(mark)
        return {name: self._outputs[name].copy() for name in outputs or self._outputs}

    def close(self) -> None:
        """Close the connection."""
        self.usable = False
        self._socket.close()

    def _greeted(self) -> Greeting:
        kind, _, length, _ = self._receive_header()
        if kind == Frame.REFUSAL:
            raise self._refused(length)
        if kind != Frame.GREETING or length > MAX_GREETING_BYTES:
            raise self._odd(f"greeted with a frame of kind {kind}, {length} bytes")
        try:
            greeting = decode(self._body(length), Greeting, what=f"greeting of {self._path}")
        except EdgeopsError as error:
            raise self._odd(error.what) from error
        if greeting.frames != FRAMES_VERSION:
            raise self._odd(f"it speaks version {greeting.frames} of this protocol, this client {FRAMES_VERSION}")
        return greeting

    def _prepare(self) -> None:
        inputs, self._input_bytes = places(self.greeting.inputs)
        outputs, self._output_bytes = places(self.greeting.outputs)
        total = self._input_bytes + self._output_bytes
        if total > MAX_TENSOR_BYTES:
            raise self._odd(f"its tensors take {total} bytes")
        if total >= SHARE_FROM_BYTES:
            self._share(total)
        if self._shared is not None:
            self._inputs = _views(self._shared, inputs, 0)
            self._outputs = _views(self._shared, outputs, self._input_bytes)
            return
        self._request = bytearray(HEADER.size + self._input_bytes)
        answer = bytearray(HEADER.size + self._output_bytes)
        self._answer = memoryview(answer)
        self._inputs = _views(self._request, inputs, HEADER.size)
        self._outputs = _views(answer, outputs, HEADER.size)

    def _share(self, size: int) -> None:
        """Offer memory; without it, or where the server does not want it, tensors go through the socket."""
        try:
            descriptor = unix.shared_memory(size)
        except OSError:
            return
        try:
            socket.send_fds(self._socket, [HEADER.pack(Frame.SHARE, 0, 0, 0)], [descriptor])
            kind, _, length, _ = self._receive_header()
            if kind == Frame.SHARE:
                self._shared = mmap.mmap(descriptor, size)
            else:
                self._body(min(length, MAX_GREETING_BYTES))
        except OSError as error:
            raise _unreachable(self._path, error) from error
        finally:
            os.close(descriptor)

    def _fill(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        if len(feeds) != len(self._inputs):
            raise EdgeopsError("E-RUNTIME-INPUT", f"expected inputs {sorted(self._inputs)}, got {sorted(feeds)}")
        for name, given in feeds.items():
            view = self._inputs.get(name)
            if view is None:
                raise EdgeopsError("E-RUNTIME-INPUT", f"expected inputs {sorted(self._inputs)}, got {sorted(feeds)}")
            if given.dtype != view.dtype or given.shape != view.shape:
                raise EdgeopsError(
                    "E-RUNTIME-INPUT",
                    f"input {name!r}: expected {view.dtype}{list(view.shape)}, got {given.dtype}{list(given.shape)}",
                )
            np.copyto(view, given)

    def _send(self, data: bytearray) -> None:
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._last_words() from error
        except OSError as error:
            raise _unreachable(self._path, error) from error

    def _last_words(self) -> Exception:
        """Return why the server ended the connection while it was sent to: a refusal that it left, or nothing."""
        try:
            kind, _, length, _ = self._receive_header()
            if kind == Frame.REFUSAL:
                return self._refused(length)
        except _SentAwayError as error:
            return error
        return _SentAwayError()

    def _receive(self, mark: int) -> None:
        """Take the answer to a request into the buffer."""
        expected = Frame.ANSWER if self._shared is None else Frame.ANSWER_SHARED
        filled = self._read_soon(self._answer)
        while filled < len(self._answer):
            if filled >= HEADER.size and HEADER.unpack_from(self._answer)[0] != expected:
                break
            filled += self._read_into(self._answer[filled:])
        kind, _, length, given = HEADER.unpack_from(self._answer)
        if kind == expected and length == len(self._answer) - HEADER.size and given == mark:
            self.usable = True
            return
        if kind == Frame.BYE:
            raise _SentAwayError(politely=True)
        if kind == Frame.REFUSAL:
            refused = self._refused(length, bytes(self._answer[HEADER.size : filled]))
            self.usable = given == mark and self._socket.fileno() >= 0
            raise refused
        raise self._odd(f"a frame of kind {kind} with {length} bytes")

    def _read_soon(self, into: memoryview) -> int:
        """Look for an answer for a moment before sleeping for it: waking up takes longer than a quick model."""
        if self._sleeps:
            self._sleeps -= 1
            return self._read_into(into)
        now_s = time.perf_counter()
        until_s = now_s + LOOK_FOR_S
        while now_s < until_s:
            try:
                count = self._socket.recv_into(into, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                before_s = time.perf_counter()
                os.sched_yield()
                now_s = time.perf_counter()
                if now_s - before_s > CROWDED_S:
                    self._sleeps = SLEEPS
                continue
            except OSError:
                break  # found and told below
            if not count:
                raise _SentAwayError
            return count
        return self._read_into(into)

    def _receive_header(self) -> tuple[int, int, int, int]:
        data = self._body(HEADER.size)
        kind, flags, length, mark = HEADER.unpack(data)
        if kind == Frame.BYE:
            raise _SentAwayError(politely=True)
        return kind, flags, length, mark

    def _body(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            data += self._read(length - len(data))
        return data

    def _read(self, length: int) -> bytes:
        try:
            data = self._socket.recv(length)
        except ConnectionResetError as error:
            raise _SentAwayError from error
        except OSError as error:
            raise _unreachable(self._path, error) from error
        if not data:
            raise _SentAwayError
        return data

    def _read_into(self, into: memoryview) -> int:
        try:
            count = self._socket.recv_into(into)
        except ConnectionResetError as error:
            raise _SentAwayError from error
        except OSError as error:
            raise _unreachable(self._path, error) from error
        if not count:
            raise _SentAwayError
        return count

    def _refused(self, length: int, begun: bytes = b"") -> EdgeopsError:
        if not len(begun) <= length <= MAX_GREETING_BYTES:
            return self._odd(f"a refusal of {length} bytes")
        try:
            said = decode(begun + self._body(length - len(begun)), FrameRefusal, what=f"refusal of {self._path}")
        except EdgeopsError as error:
            return self._odd(error.what)
        if said.code not in ERROR_CODES:
            return self._odd(f"{said.code}: {said.error}")
        return EdgeopsError(said.code, f"{self._path}: {said.error}")

    def _odd(self, what: str) -> EdgeopsError:
        self.close()
        return EdgeopsError("E-NET-RESPONSE", f"{self._path}: {what}", "Is this socket a model's?")


def _views(store: bytearray | mmap.mmap, where: tuple[Place, ...], base: int) -> Tensors:
    return {
        place.spec.name: np.frombuffer(
            store, np.dtype(place.spec.dtype), place.spec.elements, base + place.offset
        ).reshape(place.spec.shape)
        for place in where
    }


def _unreachable(path: Path, error: OSError) -> EdgeopsError:
    what = "no answer in time" if isinstance(error, BlockingIOError) else str(error)
    return EdgeopsError("E-NET-UNREACHABLE", f"{path}: {what}", "Is the agent up?")
