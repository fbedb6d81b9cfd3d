"""One model's endpoint: a socket that outlives its workers, and the workers that serve on it, one after the other."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeops import plugins
from edgeops.agent import channel
from edgeops.agent.cgroups import Groups
from edgeops.agent.channel import Load
from edgeops.agent.door import door_for, listen_both, url
from edgeops.agent.handover import Handover
from edgeops.agent.loop import Loop, Timer
from edgeops.agent.porter import AWAY, Porter
from edgeops.agent.serving_words import ServingEvents
from edgeops.agent.settings import ServingRules
from edgeops.agent.workers import WorkerProcess
from edgeops.contracts.deployment import Shadowing
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.telemetry import ModelWindow
from edgeops.transport import unix
from edgeops.transport.mqtt import backoff_s

log = logging.getLogger(__name__)

LOAD_WITHIN_S = 300.0
BUILD_WITHIN_S = 3600.0
BUILD_TOLD_EVERY_S = 10.0
TEST_WITHIN_S = 300.0
PROBE_EVERY_S = 1.0
PROBE_WITHIN_S = 30.0
DRAIN_WITHIN_S = 60.0
CALM_AFTER_S = 60.0
# Until a worker sets its own limit, its group may have the device's memory and what the interpreter takes.
GROUP_SLACK_MIB = 256.0
REFUSED_TOLD_EVERY_S = 10.0
_BACKLOG = 512
_DAMAGED = frozenset({"E-BUNDLE-DAMAGED", "E-BUNDLE-INVALID"})
_RESTART_FIRST_S, _RESTART_MAX_S = 0.2, 30.0


class _Running(NamedTuple):
    process: WorkerProcess
    load: Load


class ModelServing:
    """Workers of one model.

    Args:
        loop: The supervisor's loop.
        events: Who hears of it.
        ports: Ports to try, in this order; 0: any.
        socket_path: Where to listen for frames.
        rules: What the site wants of it.
        groups: Where workers get control groups; None: nowhere.

    Raises:
        EdgeopsError: E-CONFIG; none of the ports is free, no socket can be made there, or the rules are not safe.
    """

    def __init__(
        self,
        loop: Loop,
        events: ServingEvents,
        ports: list[int],
        socket_path: Path,
        rules: ServingRules,
        groups: Groups | None = None,
    ) -> None:
        self._loop, self._events, self._groups = loop, events, groups
        self._door = door_for(rules)
        self._listener, self._lines_listener, self.socket_path = listen_both(rules, ports, socket_path, _BACKLOG)
        self.port: int = self._listener.getsockname()[1]
        self.is_serving = False
        self._current: _Running | None = None
        self._candidate: _Running | None = None
        self._tested = False
        self._shadowing: Shadowing | None = None
        self._drawing: channel.Draw | None = None
        self._last_words: dict[int, str] = {}
        self._leaving: dict[int, WorkerProcess] = {}
        self._successor_pending: list[WorkerProcess] = []
        self._handover = Handover(loop, self._tell_it_serves)
        self._crashes = 0
        self._restart: Timer | None = None
        self._deadlines: dict[int, Timer] = {}
        self._building: dict[int, float] = {}
        self._probes = 0
        self._probe_sent_s: float | None = None
        # Two bundles do not fit: what served, to be taken up again, and what follows once a worker has ended.
        self._aside: Load | None = None
        self._after_gone: dict[int, Callable[[], None]] = {}
        self._rules = rules
        self._porter = Porter(self._listener, self._lines_listener, tls=bool(rules.certificate))
        self._patience: Timer | None = None
        self._served: Load | None = None
        self._look_to_the_door()

    @property
    def endpoint(self) -> str:
        """The local address for clients."""
        return url(self._rules, self.port)

    def serve(self, load: Load, *, alone: bool = False, on_trial: bool = False) -> None:
        """Let a bundle serve that proved itself before; what serves now does so until this one is ready.

        With `alone` that ends first: the device has no room for two.
        """
        self._cancel_restart()
        self._crashes = 0
        self._forget_aside()
        if alone and self._current is not None:
            self._clear_room(lambda: self._start_current(load))
            return
        self._retire_on_success()
        self._start_current(load)

    def try_out(self, load: Load, *, alone: bool = False) -> None:
        """Load and self-test a candidate in a worker of its own; what serves now is untouched.

        With `alone` what serves now ends first, and is taken up again if the candidate does not take its place:
        meanwhile requests wait.
        """
        aside, self._aside = self._aside, None
        self.drop_candidate()
        self._tested = False
        if alone and self._current is not None:
            self._aside = self._current.load
            self._clear_room(lambda: self._try_now(load))
        elif alone and aside is not None:
            self._aside = aside
            self._when_left(lambda: self._try_now(load))
        else:
            if aside is not None:
                self._start_current(aside)
            self._try_now(load)

    def _try_now(self, load: Load) -> None:
        try:
            self._candidate = self._spawn(load)
        except EdgeopsError as error:
            # The device is short of processes or memory: that is no reason to end what serves.
            failure = error
            self._take_up_again()
            self._loop.post(lambda: self._events.test_failed(failure))

    def _when_left(self, then: Callable[[], None]) -> None:
        """Go on once nobody is left who takes up room."""
        self._after_gone.clear()
        if self._leaving:
            self._after_gone[max(self._leaving)] = then
        else:
            then()

    def _clear_room(self, then: Callable[[], None]) -> None:
        """Let what serves now finish what it answers and end; then go on."""
        if self._current is not None:
            process, self._current = self._current.process, None
            self._after_gone[process.number] = then
            self._drain(process)
            self._serves_not_yet()

    def _take_up_again(self) -> None:
        """Serve what made room for a candidate that is not to serve."""
        load, self._aside = self._aside, None
        if load is not None:
            self._start_current(load)

    def _forget_aside(self) -> None:
        self._aside = None
        self._after_gone.clear()

    @property
    def has_tested_candidate(self) -> bool:
        """Whether `promote` can be called."""
        return self._candidate is not None and self._tested

    def shadow(self, wish: Shadowing) -> None:
        """Let the tested candidate run beside what serves, until it is promoted or dropped."""
        self._shadowing = wish
        self._connect_shadow()

    def _connect_shadow(self) -> None:
        """Connect the candidate with the worker that serves now; where none does, that follows once one does."""
        if self._shadowing is None or self._candidate is None or self._current is None or not self.is_serving:
            return
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            log.error("the shadow sees nothing: %s", error)
            return
        with ours, theirs:
            self._candidate.process.send(channel.Shadow(self._shadowing.cpu), [ours.fileno()])
            self._current.process.send(channel.Mirror(self._shadowing.share), [theirs.fileno()])

    def draw(self, wish: channel.Draw | None) -> None:
        """Have requests drawn for a signed command, also by workers that serve later; None: no more."""
        before, self._drawing = self._drawing, wish
        if wish is None and before is not None:
            wish = channel.Draw(before.id, 0, 0, 1.0)
        if wish is not None and self._current is not None and self.is_serving:
            self._current.process.send(wish)

    def promote(self) -> None:
        """Let the tested candidate serve; what serves now goes on until that one accepts connections.

        Raises:
            EdgeopsError: E-AGENT-STATE; there is none.
        """
        if self._candidate is None or not self._tested:
            raise EdgeopsError("E-AGENT-STATE", "no tested candidate to promote")
        self._cancel_restart()
        self._forget_aside()
        self._retire_on_success()
        self._current, self._candidate, self._shadowing = self._candidate, None, None
        self._crashes = 0
        self._serves_not_yet()
        self._current.process.send(channel.Serve(self._door))

    def keep(self) -> bool:
        """Nothing is to be done: the slots know it."""
        return True

    def drop_candidate(self) -> None:
        """End the candidate's worker, if there is one."""
        candidate, self._candidate = self._candidate, None
        self._shadowing = None
        if candidate is not None:
            self._kill(candidate.process)
        if self._aside is not None:
            self._when_left(self._take_up_again)

    def stop(self) -> None:
        """Serve no more: what is under way is finished."""
        self._cancel_restart()
        self._forget_aside()
        self.drop_candidate()
        self._retire_on_success()
        for process in self._successor_pending:
            self._drain(process)
        self._successor_pending.clear()
        self.is_serving = False

    def close(self) -> None:
        """Stop, and give the port back."""
        self.stop()
        if self._patience is not None:
            self._patience.cancel()
        self._handover.cancel()
        self._porter.stop()
        self._listener.close()
        self._lines_listener.close()
        unix.forget(self.socket_path)

    @property
    def ended(self) -> bool:
        """Whether no worker is left."""
        return not self._leaving and self._current is None and self._candidate is None

    @property
    def is_alone(self) -> bool:
        """Whether nobody answers but the current worker: who was before it has ended."""
        return not self._leaving and not self._successor_pending

    def kill_all(self) -> None:
        """End all workers at once."""
        for process in self._leaving.values():
            process.kill()

    def probe(self, *, infer: bool) -> None:
        """Ask the current worker for a sign of life. One that owes an answer for too long is ended: it hangs."""
        if self._current is None or not self.is_serving:
            return
        now_s = time.monotonic()
        if self._probe_sent_s is not None:
            if now_s - self._probe_sent_s > PROBE_WITHIN_S:
                log.error("worker %d gives no sign of life", self._current.process.number)
                self._probe_sent_s = None
                self._current.process.kill()
            return
        self._probes += 1
        self._probe_sent_s = now_s
        self._current.process.send(channel.Probe(self._probes, infer))

    # From workers

    def _said(self, process: WorkerProcess, message: object) -> None:
        if isinstance(message, channel.Building):
            self._set_deadline(process, BUILD_WITHIN_S)
            self._building[process.number] = time.monotonic()
            self._tell_of_build(process)
        elif isinstance(message, channel.Loaded):
            self._building.pop(process.number, None)
        if isinstance(message, channel.Closed):
            self._handover.closed(process.number)
        elif isinstance(message, channel.Counted):
            self._events.counted(message.window)
        elif isinstance(message, channel.Busy):
            self._events.busy(message.for_s)
        elif isinstance(message, channel.Drawn):
            self._drawn(message)
        elif self._candidate is not None and process is self._candidate.process:
            self._candidate_said(self._candidate, message)
        elif self._current is not None and process is self._current.process:
            self._current_said(self._current, message)

    def _candidate_said(self, candidate: _Running, message: object) -> None:
        process = candidate.process
        if isinstance(message, channel.Loaded):
            self._set_deadline(process, TEST_WITHIN_S)
            process.send(channel.Test())
        elif isinstance(message, channel.Tested):
            self._clear_deadline(process)
            self._tested = True
            self._events.tested(message.figures)
        elif isinstance(message, channel.Refused):
            self.drop_candidate()
            self._events.test_failed(EdgeopsError(message.code, message.what))

    def _current_said(self, current: _Running, message: object) -> None:
        process = current.process
        if isinstance(message, channel.Loaded):
            self._clear_deadline(process)
            process.send(channel.Serve(self._door))
        elif isinstance(message, channel.Serving):
            for old in self._successor_pending:
                self._drain(old)
            before = [old.number for old in self._successor_pending]
            self._successor_pending.clear()
            self.is_serving = True
            self._look_to_the_door()
            self._served = current.load
            self._probe_sent_s = None
            self._loop.after(CALM_AFTER_S, lambda: self._calm(process))
            self._connect_shadow()
            if self._drawing is not None:
                process.send(self._drawing)
            self._handover.begin(before)
        elif isinstance(message, channel.Alive):
            self._probe_sent_s = None
            self._events.alive()
        elif isinstance(message, channel.Refused) and message.code in _DAMAGED:
            self._current = None
            self._kill(process)
            self._events.damaged(EdgeopsError(message.code, message.what))
        elif isinstance(message, channel.Refused):
            self._last_words[process.number] = f"{message.code}: {message.what}"

    def _tell_it_serves(self) -> None:
        """Whoever comes is answered by the current worker."""
        if self.is_serving:
            self._events.serves()

    def _drawn(self, message: channel.Drawn) -> None:
        wish = self._drawing
        if wish is not None and message.id == wish.id:
            # The next worker is asked for the rest.
            left = wish.max_bytes - len(message.sample)
            self._drawing = channel.Draw(wish.id, wish.count - 1, left, wish.share) if wish.count > 1 else None
            self._events.drawn(message.id, message.sample)

    def _gone(self, process: WorkerProcess, how: str) -> None:
        self._clear_deadline(process)
        self._building.pop(process.number, None)
        how = self._last_words.pop(process.number, how)
        self._leaving.pop(process.number, None)
        if process in self._successor_pending:
            self._successor_pending.remove(process)
        self._handover.closed(process.number)
        then = self._after_gone.pop(process.number, None)
        if then is not None:
            then()
        elif self._candidate is not None and process is self._candidate.process:
            self._candidate = self._shadowing = None
            self._take_up_again()
            self._events.test_failed(EdgeopsError("E-AGENT-WORKER", f"the candidate's worker {how}"))
        elif self._current is not None and process is self._current.process:
            load, self._current = self._current.load, None
            self.is_serving = False
            self._start_later(load, f"worker {process.number} {how}")
            self._events.crashed(how)
        self._look_to_the_door()

    # The door

    def _look_to_the_door(self) -> None:
        """Have clients refused once nobody has answered for a while, until somebody does."""
        if self._listener.fileno() < 0:
            return
        if self.is_serving or self._successor_pending:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
            self._porter.stop()
            self._tell_refused()
        elif self._patience is None:
            self._patience = self._loop.after(self._rules.wait_s, self._refuse)

    def _refuse(self) -> None:
        self._porter.start()
        self._tell_refused()
        self._patience = self._loop.after(REFUSED_TOLD_EVERY_S, self._refuse)

    def _tell_refused(self) -> None:
        refused = self._porter.take()
        if refused and self._served is not None:
            window = ModelWindow(
                model=self.socket_path.stem,
                release=self._served.release,
                digest=self._served.digest,
                latency_ms=QuantileSketch(),
                requests=0,
                errors={AWAY: refused},
            )
            self._events.counted(window)

    # Steps

    def _start_current(self, load: Load) -> None:
        self._serves_not_yet()
        try:
            self._current = self._spawn(load)
        except EdgeopsError as error:
            how = error.what
            self._start_later(load, how)
            self._loop.post(lambda: self._events.crashed(how))

    def _start_later(self, load: Load, why: str) -> None:
        wait_s = backoff_s(self._crashes, first_s=_RESTART_FIRST_S, max_s=_RESTART_MAX_S)
        self._crashes += 1
        log.error("%s; next start in %.1f s", why, wait_s)
        self._restart = self._loop.after(wait_s, lambda: self._start_current(load))

    def _serves_not_yet(self) -> None:
        """The current worker is a new one; the one before may still serve, but gets no more probes."""
        self.is_serving = False
        self._probe_sent_s = None
        self._look_to_the_door()

    def _spawn(self, load: Load) -> _Running:
        process = WorkerProcess(
            self._loop,
            (self._listener, self._lines_listener),
            self._said,
            self._gone,
            groups=self._groups,
            memory_mib=load.ram_mib + GROUP_SLACK_MIB,
        )
        self._set_deadline(process, LOAD_WITHIN_S)
        process.send(msgspec.structs.replace(load, backends=plugins.values("edgeops.backends")))
        return _Running(process, load)

    def _retire_on_success(self) -> None:
        """What serves now is to leave once its successor serves."""
        if self._current is not None:
            self._successor_pending.append(self._current.process)
            self._current = None

    def _drain(self, process: WorkerProcess) -> None:
        self._leaving[process.number] = process
        self._set_deadline(process, DRAIN_WITHIN_S)
        process.send(channel.Drain())

    def _kill(self, process: WorkerProcess) -> None:
        self._leaving[process.number] = process
        process.kill()

    def _calm(self, process: WorkerProcess) -> None:
        if self._current is not None and self._current.process is process:
            self._crashes = 0

    def _cancel_restart(self) -> None:
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None

    def _tell_of_build(self, process: WorkerProcess) -> None:
        begun_s = self._building.get(process.number)
        if begun_s is not None:
            self._events.building(time.monotonic() - begun_s)
            self._loop.after(BUILD_TOLD_EVERY_S, lambda: self._tell_of_build(process))

    def _set_deadline(self, process: WorkerProcess, within_s: float) -> None:
        self._clear_deadline(process)
        self._deadlines[process.number] = self._loop.after(within_s, process.kill)

    def _clear_deadline(self, process: WorkerProcess) -> None:
        timer = self._deadlines.pop(process.number, None)
        if timer is not None:
            timer.cancel()
