"""A trial that is under way: what was seen since it began, looked at until it is judged."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgeops.agent.loop import Loop
from edgeops.agent.serving_words import ComponentServing
from edgeops.agent.settings import TrialRules
from edgeops.agent.trial import TrialFacts, Verdict, faults, judge
from edgeops.contracts.telemetry import ModelWindow

TRIAL_LOOK_EVERY_S = 0.25


class TrialWatch:
    """The trials of one component; what is told while there is none is not counted.

    Args:
        loop: The supervisor's loop.
        rules: When a trial is over.
        serving: What serves the bundle, and gives signs of life when it is asked to.
        on_verdict: Takes what is known so far; says whether the trial goes on.
    """

    def __init__(
        self, loop: Loop, rules: TrialRules, serving: ComponentServing, on_verdict: Callable[[Verdict], bool]
    ) -> None:
        self._loop, self._rules, self._serving, self._on_verdict = loop, rules, serving, on_verdict
        self._book: _Book | None = None

    def begin(self) -> None:
        """Begin a trial."""
        self._book = _Book()
        self._loop.after(TRIAL_LOOK_EVERY_S, self._look)

    def end(self) -> None:
        """Watch no more; no verdict follows."""
        self._book = None

    def crashed(self, how: str) -> None:
        """The worker died."""
        if self._book is not None:
            self._book.crashes += 1
            self._book.last_crash = how

    def alive(self) -> None:
        """The worker gave a sign of life."""
        if self._book is not None:
            self._book.probes += 1

    def counted(self, window: ModelWindow) -> None:
        """The bundle served."""
        if self._book is not None:
            self._book.requests += window.requests
            self._book.errors += faults(window.errors)

    def _look(self) -> None:
        if self._book is None:
            return
        # What the old bundle still answers says nothing about the new one: it is confirmed once that has ended.
        serving = self._serving.is_serving and self._serving.is_alone
        if self._on_verdict(judge(self._book.facts(serving=serving), self._rules)):
            self._serving.probe(infer=True)
            self._loop.after(TRIAL_LOOK_EVERY_S, self._look)


class _Book:
    """What was seen since a trial began."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self.probes = self.crashes = self.requests = self.errors = 0
        self.last_crash = ""

    def facts(self, *, serving: bool) -> TrialFacts:
        """Return what is known now."""
        return TrialFacts(
            elapsed_s=time.monotonic() - self.began_s,
            serving=serving,
            probes=self.probes,
            crashes=self.crashes,
            requests=self.requests,
            errors=self.errors,
            last_crash=self.last_crash,
        )
