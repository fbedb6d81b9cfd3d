"""Whether a new bundle has proved itself: by health, never by time alone. The judgement is pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgeops.agent.settings import TrialRules

# What the bundle is to blame for; a client's malformed request is not.
BUNDLE_FAULTS = frozenset({"E-RUNTIME-RUN", "E-INFER-VALUES", "E-INTERNAL"})


class TrialFacts(NamedTuple):
    """What was seen since the trial began.

    Args:
        elapsed_s: How long it runs.
        serving: Whether its worker accepts connections now.
        probes: Signs of life.
        crashes: How often its worker died.
        requests: Requests that were answered.
        errors: Requests that failed by the bundle's fault.
        last_crash: How the worker died last.
    """

    elapsed_s: float
    serving: bool
    probes: int
    crashes: int
    requests: int
    errors: int
    last_crash: str = ""


class Verdict(NamedTuple):
    """`healthy` None: it goes on; False: with the reason."""

    healthy: bool | None
    reason: str = ""


def judge(facts: TrialFacts, rules: TrialRules) -> Verdict:
    """Say whether a trial is over, and how it ended."""
    if facts.crashes >= rules.max_crashes:
        return Verdict(False, f"the worker died {facts.crashes} times in its trial; last: {facts.last_crash}")
    total = facts.requests + facts.errors
    if facts.errors >= rules.min_errors and facts.errors > rules.max_error_share * total:
        return Verdict(False, f"{facts.errors} of {total} requests failed in its trial")
    proved = facts.serving and facts.probes >= rules.probes and facts.elapsed_s >= rules.confirm_after_s
    if proved:
        return Verdict(True)
    if facts.elapsed_s >= rules.confirm_within_s:
        return Verdict(False, f"not healthy within {rules.confirm_within_s:.0f} s: {facts.probes} signs of life")
    return Verdict(None)


def faults(errors: Mapping[str, int]) -> int:
    """Return how many errors are the bundle's fault."""
    return sum(count for code, count in errors.items() if code in BUNDLE_FAULTS)
