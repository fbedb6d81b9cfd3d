"""Gates as test cases: of a compile, of a release's bundles, of a rollout. Pure."""

from __future__ import annotations

from edgeops.client.rollout_resources import FigureInfo, RolloutInfo, RolloutRigInfo
from edgeops.contracts.errors import EdgeopsError, Fault
from edgeops.contracts.evidence import Evidence, GateResult
from edgeops.contracts.rollouts import ENDED_STATES, RolloutState
from edgeops.report.junit import Case, Outcome
from edgeops.report.markup import number


def of_evidence(suite: str, evidence: Evidence, scheme: str) -> tuple[Case, ...]:
    """Return a case for every gate of a bundle, and one that says whether it may ship.

    Args:
        suite: What the cases belong to.
        evidence: What was measured.
        scheme: The candidate that the bundle was made by.
    """
    one = next((item for item in evidence.candidates if item.scheme == scheme), None)
    if one is None:
        return (Case(suite, "bundle", Outcome.ERROR, f"the evidence does not list {scheme}"),)
    may_ship = one.chosen and one.passed
    near = "; ".join(f"{item.setting} = {number(item.needed)}" for item in one.would_pass_with)
    whole = Case(
        suite,
        "bundle",
        Outcome.PASSED if may_ship else Outcome.FAILED,
        f"{scheme}: {one.reason}",
        f"{evidence.bundle}\n{one.reason}" + (f"\nIt would pass with {near}." if near else ""),
        "gate",
    )
    return (*(_gate(suite, gate) for gate in one.gates), whole)


def of_rollout(rollout: RolloutInfo) -> tuple[Case, ...]:
    """Return a case for each rig, for every gate of every group as it was evaluated last, and for the rollout's end."""
    suite = f"rollout.{rollout.model}.{rollout.version}"
    if rollout.state == RolloutState.SUCCEEDED:
        outcome = Outcome.PASSED
    elif rollout.state in ENDED_STATES or rollout.state == RolloutState.PAUSED:
        outcome = Outcome.FAILED
    else:
        outcome = Outcome.SKIPPED
    whole = Case(suite, "rollout", outcome, f"{rollout.state}: {rollout.reason}", kind="gate")
    stopped = (
        Case(f"{suite}.{profile}", "profile", Outcome.FAILED, f"was stopped: {reason}", kind="gate")
        for profile, reason in sorted(rollout.stopped_profiles.items())
    )
    rigs = (_rig(suite, rig) for rig in rollout.rigs)
    return (*rigs, *(_figure(suite, figure) for figure in rollout.figures), *stopped, whole)


def _rig(suite: str, rig: RolloutRigInfo) -> Case:
    outcome = {"passed": Outcome.PASSED, "waiting": Outcome.SKIPPED, "unasked": Outcome.SKIPPED}
    message = f"rig {rig.rig} is {rig.state}: {rig.said}"
    return Case(f"{suite}.group-0", rig.rig, outcome.get(rig.state, Outcome.FAILED), message, kind="gate")


def of_error(suite: str, error: EdgeopsError) -> Case:
    """Return the case of a command that ended with an error: a gate's no is a failure, all else an error."""
    outcome = Outcome.FAILED if error.fault is Fault.GATE else Outcome.ERROR
    return Case(suite, error.code, outcome, error.what, str(error), error.code)


def _gate(suite: str, gate: GateResult) -> Case:
    got = "not measured" if gate.measured is None else number(gate.measured)
    detail = f" ({gate.detail})" if gate.detail else ""
    message = f"{gate.gate} is {got}, the limit is {number(gate.limit)}{detail}"
    if gate.passed:
        return Case(suite, gate.gate, Outcome.PASSED, message)
    if not gate.binding:
        return Case(suite, gate.gate, Outcome.SKIPPED, f"only informs: {message}")
    return Case(suite, gate.gate, Outcome.FAILED, message, f"{message}{_missed(gate)}", "gate")


def _missed(gate: GateResult) -> str:
    if gate.measured is None or not gate.limit:
        return ""
    return f"\nIt misses by {abs(gate.measured - gate.limit) / abs(gate.limit):.1%} of the limit."


def _figure(suite: str, figure: FigureInfo) -> Case:
    outcome = {True: Outcome.PASSED, False: Outcome.FAILED, None: Outcome.SKIPPED}[figure.holds]
    between = ""
    if figure.lower is not None or figure.upper is not None:
        between = f", surely between {number(figure.lower)} and {number(figure.upper)}"
    message = (
        f"{figure.gate} is {number(figure.value)}{between}, the limit is {number(figure.limit)}, over {figure.reported}"
    )
    if figure.holds is None:
        message = f"not yet to be said: {message}"
    return Case(f"{suite}.{figure.group}.{figure.profile or 'all'}", figure.gate, outcome, message, kind="gate")
