"""What a run is about, and how one check becomes one result."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError, Fault
from edgeops.contracts.rigs import CheckResult, Figure, Figures, Verdict
from edgeops.intake.handover import LoadedHandover

Say = Callable[[str], object]
CHECKS = (
    "boot",
    "size",
    "golden",
    "latency",
    "memory",
    "install",
    "update",
    "accuracy",
    "rollback",
    "corrupted-download",
    "power-cut",
    "soak",
)


class Subject(NamedTuple):
    """What is tested on one board.

    Args:
        bundle: Its folder, whole and checked.
        release: Its version; empty: it belongs to none.
        before: The bundle that devices run now; None: none is known.
        handover: Labelled data to ask it; None: accuracy is skipped.
        accuracy: What the compile host measured on that data, by the bundle's evidence; None: unknown.
    """

    bundle: Path
    release: str = ""
    before: Path | None = None
    handover: LoadedHandover | None = None
    accuracy: float | None = None


class Effort(NamedTuple):
    """How much is done.

    Args:
        runs: Timed inferences.
        samples: Labelled samples at most.
        cuts: Power cuts.
        soak_s: Seconds of the soak; 0: none.
        accuracy_drop_max: How far accuracy on the board may lie below that of the compile host's evidence.
        only: Only these checks, and those that they need; empty: all.
    """

    runs: int = 50
    samples: int = 200
    cuts: int = 3
    soak_s: float = 0.0
    accuracy_drop_max: float = 0.02
    only: tuple[str, ...] = ()


class Found(NamedTuple):
    """What a check found. `failed`: what does not hold, empty if all does; `skipped`: why it was not looked at."""

    said: str
    figures: Figures = {}
    failed: str = ""
    code: str = ""
    skipped: bool = False


def passed(said: str, **figures: Figure) -> Found:
    """A check that holds."""
    return Found(said, figures)


def failed(said: str, code: str, **figures: Figure) -> Found:
    """A check that does not hold."""
    return Found(said, figures, failed=said, code=code)


def skipped(why: str) -> Found:
    """A check that was not made."""
    return Found(why, skipped=True)


def judged(holds: bool, said: str, code: str, **figures: Figure) -> Found:
    """A check that holds, or does not."""
    return passed(said, **figures) if holds else failed(said, code, **figures)


def attempt(name: str, check: Callable[[], Found]) -> CheckResult:
    """Make one check; an error of the board's or of the rig's is a result, too.

    A board that cannot be reached is broken; what edgeops or the bundle did wrong on it is a failure.
    """
    start_s = time.monotonic()
    try:
        found = check()
    except EdgeopsError as error:
        is_rig = (
            error.code in ("E-HIL-BOARD", "E-HIL-BUSY", "E-MCU-PORT", "E-DEPENDENCY") or error.fault is Fault.INTERNAL
        )
        verdict = Verdict.BROKEN if is_rig else Verdict.FAILED
        found = Found(error.what, code=error.code)
    else:
        verdict = Verdict.SKIPPED if found.skipped else Verdict.FAILED if found.failed else Verdict.PASSED
    took_s = round(time.monotonic() - start_s, 3)
    return CheckResult(
        check=name, verdict=verdict, said=found.said, code=found.code, figures=found.figures, duration_s=took_s
    )
