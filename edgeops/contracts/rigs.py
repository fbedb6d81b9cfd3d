"""What a rig of boards found: one result per check, board and run, which the rig signs."""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

from edgeops.contracts.wire import Wire

# DSSE payload type.
RIG_RESULT_TYPE = "application/vnd.edgeops.rig-result+json"


class Verdict(enum.Enum):
    """How a check ended. `BROKEN`: the rig could not find out, so nothing is said of the release."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    BROKEN = "broken"


Figure = float | int | str | bool | None
Figures = dict[str, Figure]


class CheckResult(Wire, frozen=True, kw_only=True):
    """One check on one board.

    Args:
        check: Its name.
        verdict: How it ended.
        said: In a line: what holds, or what does not, or why it was skipped.
        code: The error's code, where there was one.
        figures: What was measured, by name with unit.
        duration_s: How long it took.
    """

    check: str
    verdict: Verdict
    said: str
    code: str = ""
    figures: dict[str, Figure] = {}
    duration_s: float = 0.0


class BoardResult(Wire, frozen=True, kw_only=True):
    """One board.

    Args:
        board: Its name in the rig.
        kind: Its kind.
        profile: Its device profile.
        model: The model that ran.
        release: The version that was tested; empty: a bundle that belongs to none.
        digest: Of the bundle that ran.
        cut: How its power was cut.
        timing: Whether its latency was judged.
        checks: In the order in which they ran.
        console: The end of its console, where something did not pass.
    """

    board: str
    kind: str
    profile: str
    model: str = ""
    release: str = ""
    digest: str = ""
    cut: str = ""
    timing: bool = False
    checks: tuple[CheckResult, ...] = ()
    console: str = ""

    @property
    def verdict(self) -> Verdict:
        """The worst of its checks."""
        return worst(check.verdict for check in self.checks)


class RigResult(Wire, frozen=True, kw_only=True):
    """One run.

    Args:
        rig: The rig's name.
        run: Random name of this run.
        at_s: When it began, Unix time.
        duration_s: How long it took.
        edgeops: The version that ran it.
        host: The machine that ran it.
        boards: As in the rig file.
        fleet: Whose command it answers; empty: nobody's, a person ran it.
        command: That command's id.
    """

    rig: str
    run: str
    at_s: float
    duration_s: float
    edgeops: str
    host: str
    boards: tuple[BoardResult, ...]
    fleet: str = ""
    command: str = ""
    schema_version: int = msgspec.field(default=1, name="schema")

    @property
    def verdict(self) -> Verdict:
        """The worst of its boards; a run in which nothing was checked passes nothing."""
        return worst(board.verdict for board in self.boards)


_WORST_FIRST = (Verdict.BROKEN, Verdict.FAILED, Verdict.PASSED, Verdict.SKIPPED)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict of many: broken before failed before passed; nothing, or all skipped: skipped."""
    given = set(verdicts)
    return next((verdict for verdict in _WORST_FIRST if verdict in given), Verdict.SKIPPED)
