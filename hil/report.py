"""A run's result as an HTML page for people, and as JUnit XML for CI. Pure."""

from __future__ import annotations

from edgeops.contracts.rigs import BoardResult, CheckResult, RigResult, Verdict
from edgeops.report import junit, rigs
from edgeops.report.junit import Case, Outcome
from edgeops.report.page import document

_OUTCOMES = {
    Verdict.PASSED: Outcome.PASSED,
    Verdict.FAILED: Outcome.FAILED,
    Verdict.BROKEN: Outcome.ERROR,
    Verdict.SKIPPED: Outcome.SKIPPED,
}


def to_html(result: RigResult) -> str:
    """Return one self-contained page."""
    return document(
        title=f"Rig {result.rig}: {result.verdict.value}",
        kicker="Hardware-in-the-loop run",
        heading=f"Rig {result.rig}: {result.verdict.value}",
        abstract=_abstract(result),
        places=[(f"board-{index}", board.board) for index, board in enumerate(result.boards)],
        sections=[rigs.board(board, f"board-{index}") for index, board in enumerate(result.boards)],
        version=result.edgeops,
        made_at_s=result.at_s,
    )


def _abstract(result: RigResult) -> str:
    passed = sum(board.verdict is Verdict.PASSED for board in result.boards)
    took = f"in {result.duration_s:.0f} s on {result.host}"
    return f"{passed} of {len(result.boards)} boards passed, {took}. Run {result.run}."


def to_junit(result: RigResult) -> bytes:
    """Return JUnit XML: a suite per board, a case per check. What could not be found out is an error, not a failure."""
    return junit.document([_case(result, board, check) for board in result.boards for check in board.checks], "hil run")


def _case(result: RigResult, board: BoardResult, check: CheckResult) -> Case:
    figures = "\n".join(f"{name}: {value}" for name, value in check.figures.items())
    return Case(
        suite=f"hil.{result.rig}.{board.board}",
        name=check.check,
        outcome=_OUTCOMES[check.verdict],
        message=check.said,
        detail=figures,
        kind=check.code,
        seconds=check.duration_s,
    )
