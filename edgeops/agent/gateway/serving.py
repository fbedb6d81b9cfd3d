"""A model on a microcontroller, as a deployment serves it: what a worker is for a model on this device."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeops.agent.channel import Load
from edgeops.agent.gateway.line import Job, McuLine
from edgeops.agent.loop import Loop
from edgeops.agent.serving_words import ServingEvents
from edgeops.contracts.deployment import SelfTestFigures, Shadowing
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.telemetry import ModelWindow

if TYPE_CHECKING:
    from edgeops.agent.gateway.model import Sign
    from firmware_bridge.link import SmpLink

log = logging.getLogger(__name__)

PROBE_EVERY_S = 2.0
_DAMAGED = frozenset({"E-BUNDLE-DAMAGED", "E-BUNDLE-INVALID", "E-MCU-BLOB"})
_RETRY_S = 15.0
_GIVE_UP_WITHIN_S = 60.0
_ASK_WITHIN_S = 30.0
_PROGRESS_STEP = 0.1


class _Candidate(NamedTuple):
    """What is tried out, its job, and how the device names what the job has brought it, known once it has begun."""

    load: Load
    job: Job
    identities: list[bytes]


class McuServing:
    """One model of a microcontroller: in trial it runs on the device unconfirmed, and is confirmed there with the slot.

    Args:
        loop: The supervisor's loop.
        events: Who hears of it.
        line: The device's line.
        model: Name of the model.
        install_within_s: An update that has not arrived by then has failed.
    """

    port: int | None = None
    endpoint = ""
    socket_path = Path()
    is_alone = True
    ended = True

    def __init__(self, loop: Loop, events: ServingEvents, line: McuLine, model: str, install_within_s: float) -> None:
        self._loop, self._events, self._line, self._model = loop, events, line, model
        self._install_within_s = install_within_s
        self.is_serving = False
        self.has_tested_candidate = False
        self._candidate: _Candidate | None = None
        self._current: Load | None = None
        self._keep = False
        self._keeping: Job | None = None
        self._probing: Job | None = None
        self._probed_s = 0.0
        self._counted: dict[str, int] | None = None

    def serve(self, load: Load, *, alone: bool = False, on_trial: bool = False) -> None:
        """Have the device run a model, and keep one that proved itself before."""
        self._become(load, keep=not on_trial)

    def try_out(self, load: Load, *, alone: bool = False) -> None:
        """Install a candidate on trial and test it: the device runs it from then on; the model before is at hand."""
        self.drop_candidate()
        # What the device should run meanwhile may wait for it without end, and this one has a limit; it is its turn
        # again when this has failed.
        if self._keeping is not None and not self.is_serving:
            self._keeping.cancel()
            self._keeping = None
        identities: list[bytes] = []

        def work(link: SmpLink) -> SelfTestFigures:
            steps = _on_line()
            model = steps.read_installable(load)
            identities.append(model.identity)
            figures: SelfTestFigures = steps.install_and_test(
                link,
                model,
                on_progress=_by_tenths(lambda share: self._loop.post(partial(self._arriving, job, share))),
                cancelled=lambda: job.cancelled,
            )
            return figures

        job = self._line.submit(f"try out {load.release}", work, self._tried, within_s=self._install_within_s)
        self._candidate = _Candidate(load, job, identities)

    def shadow(self, wish: Shadowing) -> None:
        """Refuse: a microcontroller runs one model at a time."""
        problem = EdgeopsError("E-DESIRED-UNSUPPORTED", "a microcontroller runs no shadow beside its model")
        self.drop_candidate()
        self._loop.post(lambda: self._events.test_failed(problem))

    def promote(self) -> None:
        """Let the tested candidate be the model: on trial, until `keep`.

        Raises:
            EdgeopsError: E-AGENT-STATE; there is none.
        """
        if self._candidate is None or not self.has_tested_candidate:
            raise EdgeopsError("E-AGENT-STATE", "no tested candidate to promote")
        load, self._candidate = self._candidate.load, None
        self.has_tested_candidate = False
        self._become(load, keep=False)

    def keep(self) -> bool:
        """Have the device keep what it runs on trial; see `ComponentServing.keep`. It may be away for long."""
        load = self._current
        if load is not None and not self._keep and self.is_serving and self._keeping is None:
            self._keeping = self._line.submit(
                f"keep {load.release}", partial(_confirm, load), partial(self._kept, load), within_s=None
            )
        return self._keep and self.is_serving

    def drop_candidate(self) -> None:
        """Give up a candidate: the device goes back to the model before."""
        candidate, self._candidate = self._candidate, None
        self.has_tested_candidate = False
        if candidate is not None:
            candidate.job.cancel()
            # Its files may be gone by then: what came to the device is known already.
            work = partial(_end_trials, candidate.identities)
            self._line.submit(f"give up {candidate.load.release}", work, _noted, within_s=_GIVE_UP_WITHIN_S)
            if self._current is not None and self._keeping is None:
                self._again(self._current)

    def stop(self) -> None:
        """Look after it no more. The device keeps its confirmed model until another one comes: it cannot forget."""
        self.drop_candidate()
        for job in (self._keeping, self._probing):
            if job is not None:
                job.cancel()
        self._current = self._keeping = self._probing = None
        self.is_serving = False

    def close(self) -> None:
        """Leave the device as it is: what is on its way goes on at the next start."""
        for job in (self._keeping, self._probing, self._candidate.job if self._candidate else None):
            if job is not None:
                job.cancel()

    def kill_all(self) -> None:
        """There is nothing to end."""

    def probe(self, *, infer: bool) -> None:
        """Ask the device whether the model runs, and have it give a golden vector."""
        load = self._current
        now_s = time.monotonic()
        if load is None or not self.is_serving or self._probing is not None or now_s - self._probed_s < PROBE_EVERY_S:
            return
        self._probed_s = now_s

        def work(link: SmpLink) -> Sign:
            steps = _on_line()
            sign: Sign = steps.ask(link, steps.read_installable(load), infer=True)
            return sign

        self._probing = self._line.submit(
            f"ask for {load.release}", work, partial(self._asked, load), within_s=_ASK_WITHIN_S
        )

    def _become(self, load: Load, *, keep: bool) -> None:
        """Have the device run a model, on trial or for good, however long that takes."""
        for job in (self._keeping, self._probing):
            if job is not None:
                job.cancel()
        self._probing = None
        self._current, self._keep = load, keep
        self.is_serving = False
        self._keeping = self._line.submit(
            f"run {load.release}", partial(_run, load, keep), partial(self._runs, load), within_s=None
        )

    def _runs(self, load: Load, outcome: Any) -> None:
        if load is not self._current:
            return
        self._keeping = None
        if not isinstance(outcome, EdgeopsError):
            self.is_serving = True
            self._counted = None
            self._events.serves()
        else:
            self._fails(load, outcome)

    def _kept(self, load: Load, outcome: Any) -> None:
        if load is not self._current:
            return
        self._keeping = None
        if not isinstance(outcome, EdgeopsError):
            self._keep = True
        else:
            self.is_serving = False
            self._fails(load, outcome)

    def _fails(self, load: Load, error: EdgeopsError) -> None:
        if error.code in _DAMAGED:
            self._current = None
            self._events.damaged(error)
        else:
            self._events.crashed(f"{error.code}: {error.what}")
            self._loop.after(_RETRY_S, lambda: self._again(load))

    def _again(self, load: Load) -> None:
        if load is self._current and not self.is_serving:
            self._become(load, keep=self._keep)

    def _arriving(self, job: Job, share: float) -> None:
        if not job.cancelled:
            self._events.arriving(share)

    def _tried(self, outcome: Any) -> None:
        if isinstance(outcome, EdgeopsError):
            self.drop_candidate()
            self._events.test_failed(outcome)
        else:
            self.has_tested_candidate = True
            self._events.tested(outcome)

    def _asked(self, load: Load, outcome: Any) -> None:
        self._probing = None
        if load is not self._current:
            return
        if isinstance(outcome, EdgeopsError):
            self._count(load, 0.0, {}, {outcome.code: 1})
            log.warning("%s gives no sign of life: %s", self._model, outcome)
            return
        if outcome.runs:
            self._count(load, outcome.duration_ms, outcome.counts, {})
            self._events.alive()
            return
        self.is_serving = False
        self._events.crashed(outcome.why_not)
        self._again(load)

    def _count(self, load: Load, duration_ms: float, counts: dict[str, int], errors: dict[str, int]) -> None:
        """Tell what the device counted since it was asked before; its counts begin anew with each boot."""
        before, requests = self._counted, 0
        if counts:
            self._counted = counts
            done = counts.get("inferences", 0)
            requests = 1 if before is None or done < before.get("inferences", 0) else done - before["inferences"]
            failed = counts.get("failures", 0) - (before or counts).get("failures", 0)
            errors = {"E-RUNTIME-RUN": failed} if failed > 0 else {}
        self._events.counted(
            ModelWindow(
                model=self._model,
                release=load.release,
                digest=load.digest,
                latency_ms=QuantileSketch.of([duration_ms] if counts else []),
                requests=requests,
                errors=errors,
            )
        )


def _by_tenths(tell: Callable[[float], None]) -> Callable[[float], None]:
    """Return what takes every share and tells those that are a tenth further, and the last."""
    told = -1.0

    def progress(share: float) -> None:
        nonlocal told
        if share >= told + _PROGRESS_STEP or (share == 1.0 and told < 1.0):
            told = share
            tell(share)

    return progress


def _on_line() -> Any:
    """Return what is done on the line's thread; it needs numpy, which only a gateway loads."""
    from edgeops.agent.gateway import model

    return model


def _run(load: Load, keep: bool, link: SmpLink) -> None:
    steps = _on_line()
    model = steps.read_installable(load)
    if keep:
        steps.keep(link, model)
    else:
        steps.run_on_trial(link, model, on_progress=lambda _: None, cancelled=lambda: False)


def _confirm(load: Load, link: SmpLink) -> None:
    steps = _on_line()
    steps.confirm(link, steps.read_installable(load))


def _end_trials(identities: list[bytes], link: SmpLink) -> None:
    _on_line().end_trial(link, identities)


def _noted(outcome: Any) -> None:
    if isinstance(outcome, EdgeopsError):
        log.warning("%s", outcome)
