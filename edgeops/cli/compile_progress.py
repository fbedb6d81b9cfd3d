"""What a compile is doing, shown while it works: bars with an estimate on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeops.compiler import Progress

# A log is not filled by compiles that are over soon.
_LINE_EVERY_S = 10.0


@dataclasses.dataclass
class Pace:
    """How far a profile is, told by the candidates that began.

    Args:
        since_s: When its first candidate began; None: none did.
        begun: How many did.
        left: How many may follow after the one that runs, at most.
    """

    since_s: float | None = None
    begun: int = 0
    left: int = 0

    def take(self, progress: Progress, now_s: float) -> None:
        """Take note of a candidate that begins, or of the end."""
        if progress.text == "done":
            self.left = 0
        if progress.left is not None:
            self.since_s = now_s if self.since_s is None else self.since_s
            self.begun, self.left = self.begun + 1, progress.left

    def remaining_s(self, now_s: float) -> float | None:
        """Return how long it may still take at most, at the mean pace so far; None before a candidate has ended.

        A search ends early where a candidate is good enough, so it is mostly less.
        """
        if self.since_s is None or self.begun < 2:
            return None
        ended = self.begun - 1
        return (now_s - self.since_s) / ended * (self.left + 1)


def estimate(pace: Pace, now_s: float) -> str:
    """Return the estimate in words, \"\" where there is none."""
    seconds = pace.remaining_s(now_s)
    if seconds is None:
        return ""
    shown = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f"at most {pace.left} more, about {shown}"


@contextlib.contextmanager
def compile_progress(profiles: int) -> Iterator[Callable[[Progress], None]]:
    """Yield what has to be called with each step; `profiles` is how many are compiled."""
    with _bars(profiles) if sys.stderr.isatty() else contextlib.nullcontext(_lines()) as show:
        yield show


def _lines() -> Callable[[Progress], None]:
    """Return what prints a line on standard error from time to time."""
    paces: dict[str, Pace] = {}
    said_s = time.monotonic()

    def show(step: Progress) -> None:
        nonlocal said_s
        now_s = time.monotonic()
        pace = paces.setdefault(step.profile, Pace())
        pace.take(step, now_s)
        if now_s - said_s >= _LINE_EVERY_S:
            said_s = now_s
            words = estimate(pace, now_s)
            print(f"{step.profile or 'all profiles'}: {step.text}{words and f' ({words})'}", file=sys.stderr)

    return show


@contextlib.contextmanager
def _bars(profiles: int) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Display

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(20),
        TextColumn("{task.fields[doing]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[estimate]}"),
    )
    with Display(*columns, console=Console(stderr=True), transient=True) as display:
        first = display.add_task("all profiles", total=1, doing="", estimate="")
        tasks, paces = {"": first}, {"": Pace()}

        def show(step: Progress) -> None:
            if step.profile not in tasks:
                tasks[step.profile] = display.add_task(step.profile, total=None, doing="", estimate="")
                paces[step.profile] = Pace()
                if len(tasks) == profiles + 1:
                    display.update(first, completed=1, doing="")
            pace, now_s = paces[step.profile], time.monotonic()
            pace.take(step, now_s)
            display.update(tasks[step.profile], doing=step.text, estimate=estimate(pace, now_s))
            if pace.begun:
                display.update(tasks[step.profile], total=pace.begun + pace.left, completed=pace.begun - 1)
            if step.text == "done":
                display.update(tasks[step.profile], total=1, completed=1, estimate="")

        yield show
