"""The worker's life: it obeys its supervisor over one channel, and ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from edgeops.agent import channel
from edgeops.agent.channel import Framing, ToWorker
from edgeops.agent.door import Door
from edgeops.agent.worker import limits
from edgeops.agent.worker.drawing import Drawing
from edgeops.agent.worker.engine import Engine
from edgeops.agent.worker.lines import Lines
from edgeops.agent.worker.meter import Meter
from edgeops.agent.worker.server import InferenceServer
from edgeops.agent.worker.service import Service
from edgeops.agent.worker.shadow import Mirror, Shadow
from edgeops.agent.worker.turns import Turns
from edgeops.contracts.errors import EdgeopsError
from edgeops.runtimes import measure

REPORT_EVERY_S = 2.0
OOM_SCORE_ADJ = 500
_MAX_DESCRIPTORS = 8
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_PR_SET_PDEATHSIG = 1


class Worker:
    """One worker process.

    Args:
        control: Channel to the supervisor.
        listeners: Sockets that listen, for HTTP and for frames; the supervisor owns them too.
    """

    def __init__(self, control: socket.socket, listeners: tuple[socket.socket, socket.socket]) -> None:
        self._control, self._listeners = control, listeners
        self._sending = threading.Lock()
        self._framing = Framing(ToWorker)
        self._engine: Engine | None = None
        self._meter: Meter | None = None
        self._service: Service | None = None
        self._server: InferenceServer | None = None
        self._shadow: Shadow | None = None
        self._descriptors: deque[int] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Obey until told to end, or until the supervisor is gone."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unexpected)
        loop.add_reader(self._control.fileno(), self._readable)
        await self._ended.wait()
        loop.remove_reader(self._control.fileno())

    def _readable(self) -> None:
        data, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, _MAX_DESCRIPTORS)
        self._descriptors.extend(descriptors)
        if not data:
            # The supervisor is gone: nobody may serve without it.
            os._exit(0)
        for message in self._framing.feed(data):
            try:
                self._obey(message)
            except EdgeopsError as error:
                self._say(channel.Refused(error.code, error.what))
                self._ended.set()

    def _obey(self, message: object) -> None:
        if isinstance(message, channel.Load):
            self._engine = Engine(message, lambda: self._say(channel.Building()))
            self._say(channel.Loaded(self._engine.load_ms, self._engine.provider))
            return
        engine = self._engine
        if engine is None:
            raise EdgeopsError("E-AGENT-WORKER", f"{type(message).__name__} before a bundle was loaded")
        if isinstance(message, channel.Test):
            self._say(channel.Tested(engine.self_test()))
        elif isinstance(message, channel.Serve):
            if self._shadow is not None:
                self._shadow.close()
            self._start(self._serve(engine, message.door))
        elif isinstance(message, channel.Shadow):
            self._start(self._follow(engine, message, self._line()))
        elif isinstance(message, channel.Mirror):
            self._start(self._mirror(message, self._line()))
        elif isinstance(message, channel.Probe):
            self._start(self._probe(engine, message))
        elif isinstance(message, channel.Draw):
            if self._service is not None:
                drawing = Drawing(message, engine.release, engine.digest, self._say)
                self._service.drawing = drawing if message.count else None
        else:
            self._start(self._drain())

    async def _serve(self, engine: Engine, door: Door) -> None:
        self._meter = Meter(engine.manifest, engine.release, engine.digest)
        typical_ms = measure.latency(engine.probe, warmup=1, runs=3).p50_ms
        self._service = Service(engine, self._meter, self._busy)
        turns = Turns(typical_ms)
        lines = Lines(self._service, turns, engine.manifest, engine.release, engine.digest)
        self._server = InferenceServer(self._service, lines, turns, door)
        engine.limit_memory()
        limits.give_back()
        await self._server.start(*self._listeners)
        self._say(channel.Serving())
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            await turns.call(self._report)
            limits.check_room()

    def _line(self) -> socket.socket:
        if not self._descriptors:
            raise EdgeopsError("E-AGENT-WORKER", "a descriptor is missing")
        return socket.socket(fileno=self._descriptors.popleft())

    async def _follow(self, engine: Engine, wish: channel.Shadow, line: socket.socket) -> None:
        """Run beside what serves, until the line ends: that worker has ended, or this one is to serve."""
        if self._shadow is not None:
            self._shadow.close()
        ended = asyncio.Event()
        shadow = self._shadow = Shadow(engine, wish.cpu, lambda _: ended.set())
        await shadow.start(line)
        while not ended.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(ended.wait(), REPORT_EVERY_S)
            window = shadow.take()
            if window is not None:
                self._say(channel.Counted(window))
        if self._shadow is shadow:
            self._shadow = None

    async def _mirror(self, wish: channel.Mirror, line: socket.socket) -> None:
        if self._service is None:
            line.close()
            return
        if self._service.mirror is not None:
            self._service.mirror.close()
        mirror = Mirror(wish.share)
        await mirror.start(line)
        self._service.mirror = mirror

    async def _probe(self, engine: Engine, probe: channel.Probe) -> None:
        # Through the queue of inferences in any case: a runtime that hangs must not look alive.
        work = engine.probe if probe.infer else _nothing
        if self._server is None:
            work()
        else:
            await self._server.turns.call(work)
        self._say(channel.Alive(probe.number))

    async def _drain(self) -> None:
        if self._server is not None:
            self._server.close_door()
        self._say(channel.Closed())
        if self._server is not None:
            await self._server.drain()
            await self._server.turns.call(self._report)
        self._ended.set()

    def _report(self) -> None:
        if self._meter is not None and not self._meter.empty:
            self._say(channel.Counted(self._meter.take()))

    def _busy(self, for_s: float) -> None:
        self._say(channel.Busy(for_s))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        code, what = (
            ("E-AGENT-WORKER", repr(error)) if not isinstance(error, EdgeopsError) else (error.code, error.what)
        )
        self._say(channel.Refused(code, what))
        self._ended.set()

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A defect: one that a single connection met ends that connection; any other ends the worker."""
        loop.default_exception_handler(context)
        if "protocol" not in context:
            self._say(channel.Refused("E-AGENT-WORKER", f"{context.get('message')}: {context.get('exception')!r}"))
            os._exit(1)

    def _say(self, message: msgspec.Struct) -> None:
        try:
            with self._sending:
                channel.send(self._control, message)
        except OSError:
            os._exit(0)


def _nothing() -> None:
    pass


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel end this process when its parent ends, even when native code hangs."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent_pid:
        os._exit(0)


def be_expendable() -> None:
    """Leave no core dump, and be what the kernel ends first where memory runs out: the supervisor starts another."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _OOM_SCORE.write_text(f"{OOM_SCORE_ADJ}\n")
    except OSError as error:
        # Some containers forbid it; the worker serves all the same.
        print(f"oom_score_adj: {error}", file=sys.stderr)


def main() -> int:
    """Run a worker on inherited descriptors: control channel, listening sockets, and the parent's process id."""
    control_fd, http_fd, lines_fd, parent_pid = (int(word) for word in sys.argv[1:5])
    die_with_parent(parent_pid)
    be_expendable()
    # Ctrl-C reaches the whole process group; it is the supervisor that ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control, *listeners = (socket.socket(fileno=number) for number in (control_fd, http_fd, lines_fd))
    worker_loop().run_until_complete(_main(control, (listeners[0], listeners[1])))
    return 0


async def _main(control: socket.socket, listeners: tuple[socket.socket, socket.socket]) -> None:
    await Worker(control, listeners).run()


def worker_loop() -> asyncio.AbstractEventLoop:
    """Return the fastest event loop that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
