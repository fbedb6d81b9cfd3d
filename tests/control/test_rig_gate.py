"""Group 0 as a pure decision: every state that two rigs can be in, and a mutant that does not wait."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeops.control.rollout.decide import Action, Counts, Decision, GroupView, RolloutView, decide
from edgeops.control.rollout.policy import Gates, Policy, policy_text
from edgeops.control.rollout.rig_gate import RigView

NOW = 10_000.0
A = Action
TIMEOUT_S, GONE_S = 100.0, 30.0


def view(*rigs: RigView, started: float | None = None, **policy: object) -> RolloutView:
    made = Policy(
        groups=("50%", "100%"), gates=Gates(timeout_s=100), rigs=tuple(rig.name for rig in rigs),
        rig_timeout_s=TIMEOUT_S, rig_gone_s=GONE_S, **policy,  # type: ignore[arg-type]
    )  # fmt: skip
    groups = [GroupView("1", started, False, {"p": Counts(silent=2)}), GroupView("2", None, False, {})]
    return RolloutView(policy_text(made), groups, rigs=rigs)


def rig(name: str = "a", asked: float | None = NOW - 10, verdict: str | None = None, **more: object) -> RigView:
    return RigView(name, asked, verdict, "board m4: golden: said" if verdict else "", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("case", "given_view", "now_s", "action", "says"),
    [
        ("nobody was asked", view(rig(asked=None)), NOW, A.ASK_RIGS, "a is to run"),
        ("one of two was asked", view(rig(), rig("b", asked=None)), NOW, A.ASK_RIGS, "a, b"),
        ("it is waited for", view(rig(doing="m4: update")), NOW, A.WAIT, "rig a: m4: update"),
        ("it passed", view(rig(verdict="passed")), NOW, A.START_GROUP, ""),
        ("one of two passed", view(rig(verdict="passed"), rig("b")), NOW, A.WAIT, "rig b: asked"),
        ("both passed", view(rig(verdict="passed"), rig("b", verdict="passed")), NOW, A.START_GROUP, ""),
        ("it failed", view(rig(verdict="failed")), NOW, A.STOP, "rig a: board m4: golden: said"),
        ("one failed, one runs", view(rig(), rig("b", verdict="failed")), NOW, A.STOP, "rig b"),
        ("one failed, one is away", view(rig(cannot="x"), rig("b", verdict="failed")), NOW, A.STOP, "rig b"),
        ("it failed, and is to pause", view(rig(verdict="failed"), on_failure="pause"), NOW, A.PAUSE, "rig a"),
        ("it failed, and is to revert", view(rig(verdict="failed"), on_failure="revert"), NOW, A.REVERT, "rig a"),
        ("it could not find out", view(rig(verdict="broken")), NOW, A.PAUSE, "could not find out: board m4"),
        ("it ran nothing", view(rig(verdict="refused")), NOW, A.PAUSE, "board m4"),
        ("a word that nobody knows", view(rig(verdict="splendid")), NOW, A.PAUSE, "board m4"),
        ("it skipped all", view(rig(verdict="skipped")), NOW, A.PAUSE, "board m4"),
        ("just in time", view(rig()), NOW + 89, A.WAIT, "asked"),
        ("its time is over", view(rig()), NOW + 90, A.PAUSE, "no verdict in 100 s"),
        ("its time is over for the other", view(rig(verdict="passed"), rig("b")), NOW + 90, A.PAUSE, "rig b: no"),
        ("a passed verdict does not age", view(rig(verdict="passed")), NOW + 9000, A.START_GROUP, ""),
        ("it is away since before it was asked", view(rig(gone_since_s=5.0)), NOW, A.WAIT, "not connected"),
        ("it is away for long", view(rig(gone_since_s=5.0)), NOW + 20, A.PAUSE, "has not been connected for 30 s"),
        ("it went away just now", view(rig(gone_since_s=NOW)), NOW + 20, A.WAIT, "not connected"),
        ("it is revoked", view(rig(cannot="it is revoked")), NOW, A.PAUSE, "rig a: it is revoked"),
        ("it cannot be asked", view(rig(asked=None, cannot="it has no board")), NOW, A.PAUSE, "it has no board"),
        ("it passed, and is revoked since", view(rig(verdict="passed", cannot="revoked")), NOW, A.START_GROUP, ""),
        ("a verdict without a question", view(rig(asked=None, verdict="passed")), NOW, A.ASK_RIGS, ""),
        ("the first group is under way", view(rig(verdict="passed"), started=NOW - 5), NOW, A.WAIT, "0 of 2"),
        ("nobody knows of the rig", view(rig())._replace(rigs=()), NOW, A.STOP, "cannot be evaluated"),
        ("another rig is known of", view(rig())._replace(rigs=(rig("x", verdict="passed"),)), NOW, A.STOP, "cannot"),
    ],
)  # fmt: skip
def test_decision_table(case: str, given_view: RolloutView, now_s: float, action: Action, says: str) -> None:
    decision = decide(given_view, now_s)
    assert (decision.action, says in decision.reason) == (action, True), (case, decision)


def test_without_rigs_nothing_is_waited_for() -> None:
    assert decide(view(), NOW).action is A.START_GROUP


def test_rigs_run_it_before_the_schedule_lets_the_first_group_start() -> None:
    from edgeops.control.rollout.schedule import Schedule

    later = Schedule(not_before_s=NOW + 1000)
    assert decide(view(rig(asked=None), schedule=later), NOW).action is A.ASK_RIGS
    waits = decide(view(rig(verdict="passed"), schedule=later), NOW)
    assert (waits.action, waits.until_s) == (A.WAIT, NOW + 1000)


def states() -> Iterator[RigView]:
    """Every kind of state that a rig can be in."""
    for asked, verdict, cannot, gone in itertools.product(
        (None, NOW - 10, NOW - 1000), (None, "passed", "failed", "broken", "refused", "skipped", ""), ("", "revoked"),
        (None, 0.0, NOW - 1),
    ):  # fmt: skip
        yield RigView("a", asked, verdict, "why", cannot, gone)


def broken_promises(judge: Callable[[RolloutView, float], Decision]) -> Iterator[str]:
    """Where a way to decide lets devices get a release that not every rig has passed, or waits for nobody."""
    for one, other in itertools.product(states(), states()):
        decision = judge(view(one, other._replace(name="b")), NOW)
        passed = all(rig.asked_at_s is not None and rig.verdict == "passed" for rig in (one, other))
        if (decision.action is A.START_GROUP) != passed:
            yield f"{decision.action} at {one} and {other}"
        if decision.action is A.WAIT and not (decision.until_s is not None and decision.until_s > NOW):
            yield f"waits for ever at {one} and {other}"
        if decision.action in (A.STOP, A.PAUSE) and not decision.reason.startswith("group 0: rig "):
            yield f"{decision.action} without a reason at {one} and {other}"


def test_in_every_state_of_two_rigs_devices_get_it_only_if_both_have_passed_it() -> None:
    assert list(broken_promises(decide)) == []


@pytest.mark.parametrize("mutant", ["does not wait", "takes silence for a pass", "is content with one rig"])
def test_a_decision_that_does_not_wait_is_noticed(mutant: str) -> None:
    """The negative control."""

    def judge(seen: RolloutView, now_s: float) -> Decision:
        if mutant == "does not wait":
            return decide(RolloutView(policy_text(Policy(groups=("50%", "100%"))), seen.groups), now_s)
        rigs = [
            one._replace(verdict="passed", asked_at_s=NOW)
            if (mutant == "takes silence for a pass" and one.verdict is None)
            or (mutant == "is content with one rig" and any(rig.passed for rig in seen.rigs))
            else one
            for one in seen.rigs
        ]
        return decide(seen._replace(rigs=rigs), now_s)

    assert next(broken_promises(judge), "")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(list(states())), min_size=1, max_size=4), st.floats(NOW - 2000, NOW + 2000))
def test_a_group_starts_only_behind_passed_rigs_at_any_time(rigs: list[RigView], now_s: float) -> None:
    named = [one._replace(name=f"r{index}") for index, one in enumerate(rigs)]
    decision = decide(view(*named), now_s)
    assert (decision.action is A.START_GROUP) == all(one.passed for one in named)
    assert decision.action is not A.FINISH
