"""The serial line of one microcontroller: a thread that holds it, does one thing at a time, and finds it again."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from edgeops.agent.gateway.rules import McuRules, processor
from edgeops.contracts.errors import EdgeopsError
from firmware_bridge.blobs import Cpu
from firmware_bridge.link import SmpLink
from firmware_bridge.ports import SerialPort

log = logging.getLogger(__name__)

# What a cable that is pulled, noise, a reset, or another device on the port for a while looks like.
PASSING = frozenset({"E-MCU-PORT", "E-MCU-SILENT", "E-MCU-ANSWER"})
_RETRY_FIRST_S, _RETRY_MAX_S = 0.5, 15.0
_FIRMWARE = "edgeops-mcu "

Outcome = Callable[[Any], None]


class Job:
    """Something to be done with the device.

    Args:
        name: For the log.
        work: Is given the link; called again from its beginning when the line was lost meanwhile.
        on_done: Called on the loop with what `work` returned, or the error that ended it.
        within_s: How long it may take, all tries together; None: as long as it takes.
    """

    def __init__(self, name: str, work: Callable[[SmpLink], Any], on_done: Outcome, within_s: float | None) -> None:
        self.name, self.work, self.on_done, self.within_s = name, work, on_done, within_s
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Give it up: nothing is called any more."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was given up."""
        return self._cancelled.is_set()


class Cancelled(Exception):  # noqa: N818  says what happened, as `download.Cancelled` does
    """The job was given up while it worked."""


class LineState(NamedTuple):
    """What is known of the device: what it calls itself, and why it is not reached (empty: it is)."""

    system: str
    problem: str


class McuLine:
    """The line, held by a thread.

    Args:
        rules: Port, rate and profile.
        post: Runs an action on the supervisor's loop.
        on_state: Told on the loop when the device is reached, or no more.
    """

    def __init__(
        self, rules: McuRules, post: Callable[[Callable[[], None]], None], on_state: Callable[[LineState], None]
    ) -> None:
        self._rules, self._post, self._on_state = rules, post, on_state
        self._cpu = processor(rules.profile)
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._link: SmpLink | None = None
        self._state = LineState("", "not asked yet")
        self._thread = threading.Thread(target=self._run, name=f"mcu-{rules.name}", daemon=True)
        self._thread.start()

    def submit(self, name: str, work: Callable[[SmpLink], Any], on_done: Outcome, *, within_s: float | None) -> Job:
        """Have something done after all that was asked for before; see `Job`."""
        job = Job(name, work, on_done, within_s)
        self._jobs.put(job)
        return job

    def close(self) -> None:
        """Give the line back; what is under way is given up."""
        self._stopped.set()
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._stopped.is_set():
            if not job.cancelled:
                self._do(job)
        self._hang_up()

    def _do(self, job: Job) -> None:
        end_s = None if job.within_s is None else time.monotonic() + job.within_s
        wait_s = _RETRY_FIRST_S
        while not job.cancelled and not self._stopped.is_set():
            outcome: Any
            try:
                outcome = job.work(self._reach())
            except Cancelled:
                return
            except EdgeopsError as error:
                if error.code in PASSING:
                    self._hang_up()
                    self._say(LineState("", f"{error.code}: {error.what}"))
                    if end_s is None or time.monotonic() + wait_s < end_s:
                        self._stopped.wait(wait_s)
                        wait_s = min(2 * wait_s, _RETRY_MAX_S)
                        continue
                elif error.code == "E-DEPENDENCY":
                    self._say(LineState("", f"{error.code}: {error.what}"))
                outcome = error
            self._tell(job, outcome)
            return

    def _tell(self, job: Job, outcome: Any) -> None:
        if isinstance(outcome, EdgeopsError):
            log.warning("%s: %s: %s", self._rules.name, job.name, outcome)
        self._post(lambda: None if job.cancelled else job.on_done(outcome))

    def _reach(self) -> SmpLink:
        """Return a link to the right device.

        Raises:
            EdgeopsError: E-MCU-PORT, E-MCU-SILENT; E-MCU-ANSWER also if it is another device. E-DEPENDENCY.
        """
        if self._link is not None:
            return self._link
        link = SmpLink(SerialPort(self._rules.port, baud_rate=self._rules.baud_rate))
        try:
            system = link.system_info()
            if not system.startswith(_FIRMWARE):
                raise EdgeopsError("E-MCU-ANSWER", f"{self._rules.port}: {system[:80]!r} is not edgeops' firmware")
            cpu = link.model_info().cpu
            if cpu not in set(Cpu) or Cpu(cpu).name.lower().replace("_", "-") != self._cpu:
                raise EdgeopsError(
                    "E-MCU-ANSWER",
                    f"{self._rules.port}: {system} has processor {cpu}, profile {self._rules.profile} is {self._cpu}",
                )
        except EdgeopsError as error:
            link.close()
            if error.code == "E-MCU-REFUSED":  # another firmware that speaks SMP
                raise EdgeopsError("E-MCU-ANSWER", f"{self._rules.port}: {error.what}") from error
            raise
        self._link = link
        self._say(LineState(system, ""))
        return link

    def _hang_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _say(self, state: LineState) -> None:
        if state != self._state:
            self._state = state
            self._post(lambda: self._on_state(state))
