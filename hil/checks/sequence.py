"""The order of checks: what an earlier one must have shown is not looked at when it did not.

Nothing is asked of a board that was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from edgeops.contracts.rigs import CheckResult, Verdict
from hil.checks.plan import Found, attempt, skipped


class Step(NamedTuple):
    """A check.

    Args:
        name: Of the result.
        check: Makes it.
        is_needed: Whether all that follow need it.
    """

    name: str
    check: Callable[[], Found]
    is_needed: bool = False


def run_steps(steps: Sequence[Step], say: Callable[[str], object], only: Collection[str] = ()) -> Iterator[CheckResult]:
    """Make checks one after the other; yield each result as it is there.

    Args:
        steps: The checks.
        say: Hears the name of each before it begins.
        only: Only these, and what they need before them; empty: all.
    """
    last = max((index for index, step in enumerate(steps) if step.name in only), default=len(steps))
    missing = ""
    for index, step in enumerate(steps):
        if only and step.name not in only and not (step.is_needed and index < last):
            yield attempt(step.name, lambda: skipped("it was left out (--check)"))
            continue
        if missing:
            why = f"{missing} did not pass"
            yield attempt(step.name, lambda: skipped(why))  # noqa: B023  called at once
            continue
        say(step.name)
        result = attempt(step.name, step.check)
        if result.verdict is Verdict.BROKEN or (step.is_needed and result.verdict is Verdict.FAILED):
            missing = step.name
        yield result
