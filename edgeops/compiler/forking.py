"""Has workers forked by a nursery, under the limits that hold for every worker; where that fails one is started."""

from __future__ import annotations

import collections
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeops.compiler.isolation import (
    ENVIRONMENT,
    MEMORY_POLL_S,
    CancelledError,
    Ended,
    Limits,
    resident_mib,
    responded,
    run_worker,
    tail_of,
)
from edgeops.compiler.nursery import Order
from edgeops.compiler.worker import Request, Response
from edgeops.contracts.wire import encode

_CLOSE_S = 5.0
# What a killed process may take to be gone: until then it holds locks and files.
_DYING_S = 30.0
_MESSAGE_BYTES = 64
# What cannot be forked here, for want of a kernel's help or for its threads, is not tried for ever.
_ENOUGH_LOST = 2


class NurseryLostError(Exception):
    """The nursery ended, or does not fork: it says nothing of the worker's own work."""


class Nursery:
    """The process that forks workers: started when it is first wanted, and anew after it was lost."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._asked = False
        # Modules of a worker → how often there was none of it.
        self._lost: collections.Counter[tuple[str, ...]] = collections.Counter()

    def start(self) -> socket.socket:
        """Start it where it does not run, without waiting for it; return where it takes orders."""
        with self._starting:
            if self._process is not None and self._process.poll() is not None:
                self._end()
            if self._control is None:
                mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    self._process = subprocess.Popen(
                        # -P: it imports nothing from where it runs.
                        [sys.executable, "-P", "-m", "edgeops.compiler.nursery", str(theirs.fileno())],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        pass_fds=[theirs.fileno()],
                        start_new_session=True,
                        env={**os.environ, **ENVIRONMENT},
                        # Workers have folders of their own.
                        cwd="/",
                    )
                self._control = mine
            return self._control

    def close(self, *, patience_s: float = _CLOSE_S) -> None:
        """End it; after some patience by force. Its workers end with whoever asked for them."""
        with self._starting:
            self._end(patience_s if self._asked else 0)

    def run(
        self,
        request: Request,
        limits: Limits,
        *,
        preload: Sequence[str] = (),
        cancel: threading.Event | None = None,
        on_memory: Callable[[float], None] = lambda _: None,
    ) -> Response:
        """Run a step in a forked worker; see `isolation.run_worker`.

        Args:
            request: The step.
            limits: What the worker may take.
            preload: Modules that it finds imported.
            cancel: Ends it when set.
            on_memory: Told what it has resident.

        Raises:
            CancelledError: `cancel` was set.
        """
        kind = tuple(preload)
        if self._lost[kind] < _ENOUGH_LOST:
            try:
                with tempfile.TemporaryDirectory(prefix="edgeops-worker-") as folder:
                    path = Path(folder) / "request.json"
                    path.write_bytes(encode(request))
                    ended = self._run(path, limits, preload, cancel, on_memory)
                    return responded(ended, Path(folder))
            except NurseryLostError:
                self._lost[kind] += 1
        return run_worker(request, limits, cancel=cancel, on_memory=on_memory)

    def _run(
        self,
        request: Path,
        limits: Limits,
        preload: Sequence[str],
        cancel: threading.Event | None,
        on_memory: Callable[[float], None],
    ) -> Ended:
        log = request.parent / "log"
        began = time.monotonic()
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A pipe that ends with this process, however that ends.
        standard_input, lifeline = os.pipe()
        try:
            with theirs, log.open("wb") as sink:
                order = encode(Order(request=str(request), preload=tuple(preload)))
                handles = [theirs.fileno(), standard_input, sink.fileno()]
                self._asked = True
                try:
                    socket.send_fds(self.start(), [order], handles)
                except OSError as error:
                    raise NurseryLostError from error
                finally:
                    os.close(standard_input)
            said = _wait(channel, limits, began, cancel)
            if said is None:
                # It hangs before there is a worker: nothing but all of it can be ended.
                self.close(patience_s=0)
                return Ended(0, _too_long(limits), "")
            return _watched(int(said), channel, limits, began, cancel, on_memory, log)
        finally:
            os.close(lifeline)
            channel.close()

    def _end(self, patience_s: float = _CLOSE_S) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                # It and its specialists, which keep nothing; workers have groups of their own.
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._control = self._process = None


def _watched(
    pid: int,
    channel: socket.socket,
    limits: Limits,
    began: float,
    cancel: threading.Event | None,
    on_memory: Callable[[float], None],
    log: Path,
) -> Ended:
    """Wait for a worker's end, and end its group in any case; its id is its own until the channel is closed."""
    because: str | None = None
    status: bytes | None = None
    lost = False
    try:
        worker = os.pidfd_open(pid)
    except OSError as error:
        raise NurseryLostError from error
    try:
        while status is None and because is None:
            status = _wait(channel, limits, began, cancel, MEMORY_POLL_S)
            if status is None:
                used = resident_mib(pid)
                on_memory(used)
                if used > limits.memory_mib:
                    because = f"took more than {limits.memory_mib:.0f} MiB of memory"
                elif time.monotonic() - began > limits.timeout_s:
                    because = _too_long(limits)
        return Ended(int(status or 0), because, tail_of(log))
    except NurseryLostError:
        lost = True
        raise
    finally:
        # Children of a converter may outlive it. Until the channel is closed its id is its own, be it a zombie's; with
        # the nursery lost, only while it lives.
        if not lost or not _has_ended(worker, 0):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            _has_ended(worker, _DYING_S)
        os.close(worker)


def _has_ended(worker: int, within_s: float) -> bool:
    watched = select.poll()
    watched.register(worker, select.POLLIN)
    return bool(watched.poll(within_s * 1000))


def _wait(
    channel: socket.socket, limits: Limits, began: float, cancel: threading.Event | None, most_s: float | None = None
) -> bytes | None:
    """Return what is said next; None: nothing within the time that is left, or within `most_s`.

    Raises:
        CancelledError: `cancel` was set.
        NurseryLostError: Nothing will be said.
    """
    watched = select.poll()
    watched.register(channel, select.POLLIN)
    until = began + limits.timeout_s if most_s is None else time.monotonic() + most_s
    while True:
        left_s = min(until - time.monotonic(), MEMORY_POLL_S)
        if watched.poll(max(0.0, left_s) * 1000):
            return _receive(channel)
        if cancel is not None and cancel.is_set():
            raise CancelledError
        if time.monotonic() >= until:
            return None


def _receive(channel: socket.socket) -> bytes:
    try:
        said = channel.recv(_MESSAGE_BYTES)
    except OSError as error:
        raise NurseryLostError from error
    if not said:
        raise NurseryLostError
    return said


def _too_long(limits: Limits) -> str:
    return f"took more than {limits.timeout_s:.0f} s"
