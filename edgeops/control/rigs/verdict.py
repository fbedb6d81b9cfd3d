"""What a rig's result says of a release, and whether it is an answer to what the rig was asked. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rig_runs import MAX_BOARDS, RigBundle
from edgeops.contracts.rigs import BoardResult, RigResult, Verdict

# How far a rig's clock may be from the control plane's.
SKEW_S = 300.0
MAX_REASON = 2000


class Asked(NamedTuple):
    """What a rig was asked.

    Args:
        fleet: By which fleet.
        rig: The rig.
        id: By which command.
        at_s: When, by the control plane's clock.
        model: The model.
        version: The release.
        bundles: Its bundles.
    """

    fleet: str
    rig: str
    id: str
    at_s: float
    model: str
    version: str
    bundles: Sequence[RigBundle]


class Judged(NamedTuple):
    """What follows from a result: the verdict, and boards and checks behind it, for people."""

    verdict: Verdict
    reason: str


def check_belongs(result: RigResult, asked: Asked, now_s: float) -> None:
    """Refuse a result that is not of this run: of another rig, command, release or time.

    Raises:
        EdgeopsError: E-RIG-VERDICT.
    """
    said, wanted = (result.rig, result.fleet, result.command), (asked.rig, asked.fleet, asked.id)
    if said != wanted:
        raise _not_asked(f"it answers {'/'.join(said)[:200]}, asked was {'/'.join(wanted)}")
    if not (math.isfinite(result.at_s) and asked.at_s - SKEW_S <= result.at_s <= now_s + SKEW_S):
        raise _not_asked(f"it ran at {result.at_s:.0f} by its clock, asked at {asked.at_s:.0f}, now it is {now_s:.0f}")
    if len(result.boards) > MAX_BOARDS:
        raise _not_asked(f"{len(result.boards)} boards")
    digests = {bundle.profile: bundle.digest for bundle in asked.bundles}
    for board in result.boards:
        ran = (board.model, board.release, board.digest)
        if any(ran) and ran != (asked.model, asked.version, digests.get(board.profile)):
            raise _not_asked(f"board {board.board[:63]} ran {' '.join(ran)[:200]}, which is not of this release")


def judge(result: RigResult, asked: Asked) -> Judged:
    """Say what a result means for the rollout.

    A failed check is the release's fault, whatever else broke. A bundle that no board passed was not tried, so the rig
    could not find out: nothing passes for want of a board.
    """
    failed = [_check(board, Verdict.FAILED) for board in result.boards if _has(board, Verdict.FAILED)]
    if failed:
        return Judged(Verdict.FAILED, "; ".join(failed)[:MAX_REASON])
    broken = [_check(board, Verdict.BROKEN) for board in result.boards if _has(board, Verdict.BROKEN)]
    passed = {board.digest for board in result.boards if board.verdict is Verdict.PASSED}
    for bundle in asked.bundles:
        if bundle.digest not in passed and not broken:
            why = "; ".join(f"{b.board}: {_words(b)}" for b in result.boards if b.profile == bundle.profile)
            broken.append(f"no board ran the bundle for {bundle.profile}" + (f" ({why})" if why else ""))
    if broken:
        return Judged(Verdict.BROKEN, "; ".join(broken)[:MAX_REASON])
    boards = ", ".join(board.board for board in result.boards if board.verdict is Verdict.PASSED)
    return Judged(Verdict.PASSED, f"passed on {boards}"[:MAX_REASON])


def _has(board: BoardResult, verdict: Verdict) -> bool:
    return any(check.verdict is verdict for check in board.checks)


def _check(board: BoardResult, verdict: Verdict) -> str:
    """Return a board with its checks that ended so."""
    checks = [check for check in board.checks if check.verdict is verdict]
    said = ", ".join(f"{one.check}: {one.said}" + (f" ({one.code})" if one.code else "") for one in checks)
    return f"board {board.board} ({board.profile}): {said}"


def _words(board: BoardResult) -> str:
    return "; ".join(check.said for check in board.checks if check.verdict is Verdict.SKIPPED)


def _not_asked(what: str) -> EdgeopsError:
    return EdgeopsError(
        "E-RIG-VERDICT", f"a rig's verdict: {what}", "The rig is asked until it answers what was asked."
    )
