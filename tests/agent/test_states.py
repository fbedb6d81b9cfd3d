"""The transition table: what it allows, that nothing else can happen, and that these checks can fail."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from edgeops.agent.states import ELSEWHERE, TABLE, Effect, Event, Step, diagram, next_step
from edgeops.contracts.deployment import DeploymentState as State
from edgeops.contracts.errors import EdgeopsError

Table = Mapping[tuple[State, Event], Step]
STATES = {state for state, _ in TABLE} | {step.state for step in TABLE.values()}


def walk(table: Table) -> type[RuleBasedStateMachine]:
    """A machine that throws random events at a table and keeps the books of a device: what serves, what is proved."""

    class Walk(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.state = State.IDLE
            self.confirmed = self.trial = self.tested = self.fetched = False

        @initialize(found=st.sampled_from([State.IDLE, *ELSEWHERE]))
        def start(self, found: State) -> None:
            """The agent starts on what this or another version left behind."""
            self.state = found
            self.happen(Event.RESTARTED)

        @rule(passed=st.sampled_from([Event.TEST_PASSED, Event.SHADOWED]))
        def go_on(self, passed: Event) -> None:
            """The way forward, so that walks get far."""
            for event in (passed, Event.FETCHED, Event.PROCEED, Event.RELEASED, Event.WANTED):
                if (self.state, event) in table and self.state is not State.TRIAL:
                    self.happen(event)
                    return

        @rule(event=st.sampled_from([Event.WANTED, Event.UNHEALTHY, Event.ABANDONED, Event.HOLD, Event.RESTARTED]))
        def disturb(self, event: Event) -> None:
            """What comes at the worst moment."""
            if (self.state, event) in table:
                self.happen(event)

        @rule(event=st.sampled_from(sorted(Event, key=lambda event: event.name)))
        def happen_any(self, event: Event) -> None:
            self.happen(event)

        def happen(self, event: Event) -> None:
            before = (self.state, self.confirmed, self.trial)
            if (self.state, event) not in table:
                with pytest.raises(EdgeopsError) as caught:
                    next_step(self.state, event, table)
                assert caught.value.code == "E-AGENT-STATE"
                assert (self.state, self.confirmed, self.trial) == before
                return
            step = next_step(self.state, event, table)
            if event is Event.FETCHED:
                self.fetched = True
            if event in (Event.TEST_PASSED, Event.SHADOWED):
                self.tested = True
            if event is Event.RESTARTED and self.state is not State.TRIAL:
                self.tested = False
            self.state = step.state
            for effect in step.effects:
                self.carry_out(effect)

        def carry_out(self, effect: Effect) -> None:
            if effect is Effect.FETCH:
                # "No slot is free during a trial": the bundle to return to would be overwritten.
                assert not self.trial
                self.fetched = self.tested = False
            elif effect is Effect.TEST:
                assert self.fetched
            elif effect is Effect.SHADOW:
                assert self.tested
                assert not self.trial
            elif effect is Effect.SWITCH:
                assert self.tested
                self.trial = True
            elif effect is Effect.CONFIRM:
                assert self.trial
                self.trial, self.confirmed = False, True
            elif effect in (Effect.REVERT, Effect.GIVE_WAY):
                self.trial = False
            elif effect is Effect.REMOVE:
                self.trial = self.confirmed = False

        @invariant()
        def only_a_trial_or_its_end_has_an_unproved_bundle_serving(self) -> None:
            assert not self.trial or self.state is State.TRIAL

    return Walk


def run_walk(table: Table) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        walk(table),
        settings=settings(
            max_examples=200,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
        ),
    )


def test_random_walks_never_serve_what_was_not_proved():
    run_walk(TABLE)


def mutant(key: tuple[State, Event], step: Step) -> Table:
    return {**TABLE, key: step}


@pytest.mark.parametrize(
    "table",
    [
        mutant((State.TRIAL, Event.WANTED), Step(State.DOWNLOADING, (Effect.CANCEL, Effect.FETCH))),
        mutant((State.STAGED, Event.PROCEED), Step(State.TRIAL, (Effect.SWITCH, Effect.WATCH))),
        mutant((State.TRIAL, Event.UNHEALTHY), Step(State.FAILED, (Effect.DISCARD,))),
        mutant((State.HELD, Event.RELEASED), Step(State.SELF_TEST, (Effect.TEST,))),
        mutant((State.SHADOW, Event.RESTARTED), Step(State.TRIAL, (Effect.SWITCH, Effect.WATCH))),
        mutant((State.STAGED, Event.PROCEED), Step(State.SHADOW, (Effect.SHADOW,))),
        mutant((State.TRIAL, Event.ABANDONED), Step(State.FAILED, (Effect.DISCARD,))),
    ],
    ids=[
        "superseded trial keeps its slot",
        "no self-test",
        "no way back",
        "resumed without a bundle",
        "a shadow is trusted after a restart",
        "a shadow that was not tested",
        "a set's failure leaves a member switched",
    ],
)
def test_a_table_with_a_mistake_is_caught(table: Table):
    """Negative control: each of these tables breaks a promise, and the walk finds it."""
    with pytest.raises(AssertionError):
        run_walk(table)


@pytest.mark.parametrize("state", sorted(STATES))
def test_a_newer_generation_supersedes_in_every_state(state: State):
    assert next_step(state, Event.WANTED).state is State.DOWNLOADING
    assert next_step(state, Event.UNWANTED).state is State.IDLE
    assert next_step(state, Event.SATISFIED).state is State.CONFIRMED


@pytest.mark.parametrize("state", sorted(STATES))
def test_every_state_survives_a_restart(state: State):
    step = next_step(state, Event.RESTARTED)
    if state is State.TRIAL:
        assert step == Step(State.TRIAL, (Effect.SWITCH, Effect.WATCH))
    if state is State.ROLLING_BACK:
        assert Effect.REVERT in step.effects


def test_every_state_can_be_reached_and_left():
    reached = {State.IDLE, *ELSEWHERE}
    while more := {step.state for (state, _), step in TABLE.items() if state in reached} - reached:
        reached |= more
    assert reached == STATES
    for state in STATES:
        assert any(step.state is not state for (source, _), step in TABLE.items() if source is state), state


def test_a_failure_after_the_switch_goes_back_before_it_is_called_failed():
    assert next_step(State.TRIAL, Event.UNHEALTHY).state is State.ROLLING_BACK
    assert Effect.REVERT in next_step(State.TRIAL, Event.UNHEALTHY).effects
    assert [
        source for (source, _), step in TABLE.items() if step.state is State.FAILED and source is not State.FAILED
    ] == [State.ROLLING_BACK]


def test_diagram_has_every_step_of_the_way():
    drawn = diagram()
    for (state, event), step in TABLE.items():
        if event in (Event.FETCHED, Event.PROCEED, Event.TEST_PASSED, Event.HEALTHY, Event.REVERTED):
            assert f"{state.name} --> {step.state.name}: {event.value}" in drawn


def test_every_wire_state_can_be_where_an_agent_starts():
    """A record of any state, also one that only other versions enter, is left by all that a desired state may say."""
    for state in set(State) - {State.UNKNOWN}:
        assert next_step(state, Event.RESTARTED).state not in ELSEWHERE or state is State.TIMED_OUT
        for event in (Event.WANTED, Event.SATISFIED, Event.UNWANTED):
            assert next_step(state, event).state not in ELSEWHERE
