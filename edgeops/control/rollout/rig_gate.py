"""Group 0: what the rigs before a rollout's first group come to. Pure.

A rig that failed the release decides at once. One that cannot be asked, could not find out, is away or late says
nothing of the release: a person has to look.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rigs import Verdict
from edgeops.control.rollout.policy import Policy


class RigsWord(enum.Enum):
    """Where group 0 stands."""

    PASSED = "passed"
    FAILED = "failed"
    UNASKED = "unasked"
    WAITING = "waiting"
    TROUBLED = "troubled"


class RigView(NamedTuple):
    """A rig of group 0.

    Args:
        name: The rig.
        asked_at_s: When it was asked; None: it was not, or what it was asked is given up.
        verdict: What it answered; None: nothing yet.
        reason: Boards and checks behind the verdict.
        cannot: Why it can run nothing for this rollout; empty: it can.
        gone_since_s: Since when it is known not to be connected; None: it is.
        doing: What it says that it does for this rollout.
    """

    name: str
    asked_at_s: float | None = None
    verdict: str | None = None
    reason: str = ""
    cannot: str = ""
    gone_since_s: float | None = None
    doing: str = ""

    @property
    def passed(self) -> bool:
        """Whether it ran the release and passed it."""
        return self.asked_at_s is not None and self.verdict == Verdict.PASSED.value

    @property
    def failed(self) -> bool:
        """Whether it ran the release and a check failed."""
        return self.asked_at_s is not None and self.verdict == Verdict.FAILED.value


class Stand(NamedTuple):
    """Where group 0 stands, why, and until when it is waited for."""

    word: RigsWord
    reason: str = ""
    until_s: float | None = None


def stand_of(rigs: Sequence[RigView], policy: Policy, now_s: float) -> Stand:
    """Return where group 0 stands."""
    failed = [f"rig {rig.name}: {rig.reason}" for rig in rigs if rig.failed]
    if failed:
        return Stand(RigsWord.FAILED, "; ".join(failed))
    left = [rig for rig in rigs if not rig.passed]
    if not left:
        return Stand(RigsWord.PASSED)
    trouble = [f"rig {rig.name}: {why}" for rig in left if (why := trouble_of(rig, policy, now_s))]
    if trouble:
        return Stand(RigsWord.TROUBLED, "; ".join(trouble))
    if any(rig.asked_at_s is None for rig in left):
        return Stand(RigsWord.UNASKED, f"{', '.join(rig.name for rig in left)} is to run the release")
    waits = [f"rig {rig.name}: {rig.doing or _word(rig)}" for rig in left]
    return Stand(RigsWord.WAITING, "; ".join(waits), min(_until_s(rig, policy) for rig in left))


def trouble_of(rig: RigView, policy: Policy, now_s: float) -> str:
    """Return why nobody waits for a rig that has not passed; empty: it is waited for, or is to be asked."""
    if rig.cannot:
        return rig.cannot
    if rig.asked_at_s is None:
        return ""
    if rig.verdict is not None:
        return f"it could not find out: {rig.reason}" if rig.verdict == Verdict.BROKEN.value else rig.reason
    if now_s >= rig.asked_at_s + policy.rig_timeout_s:
        return f"no verdict in {policy.rig_timeout_s:.0f} s" + (f"; last: {rig.doing}" if rig.doing else "")
    if rig.gone_since_s is not None and now_s >= _gone_until_s(rig.gone_since_s, rig.asked_at_s, policy):
        return f"it is asked, and has not been connected for {policy.rig_gone_s:.0f} s"
    return ""


def check_rigs(rigs: Sequence[RigView], policy: Policy) -> None:
    """Refuse a view that knows of other rigs than the policy.

    Raises:
        EdgeopsError: E-ROLLOUT-INVALID.
    """
    if sorted(rig.name for rig in rigs) != sorted(policy.rigs):
        raise EdgeopsError("E-ROLLOUT-INVALID", f"rigs {', '.join(policy.rigs)} are not those that are known of")


def _until_s(rig: RigView, policy: Policy) -> float:
    """Return when time alone changes what is waited for."""
    assert rig.asked_at_s is not None
    over_s = rig.asked_at_s + policy.rig_timeout_s
    return over_s if rig.gone_since_s is None else min(over_s, _gone_until_s(rig.gone_since_s, rig.asked_at_s, policy))


def _gone_until_s(gone_since_s: float, asked_at_s: float, policy: Policy) -> float:
    return max(gone_since_s, asked_at_s) + policy.rig_gone_s


def _word(rig: RigView) -> str:
    return "asked" if rig.gone_since_s is None else "asked, and not connected"
