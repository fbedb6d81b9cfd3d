"""What a component may do next: one transition table, as data. Effects are words; `deployment.py` carries them out."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from edgeops.contracts.deployment import DeploymentState as State
from edgeops.contracts.errors import EdgeopsError

MAX_ATTEMPTS = 3


class Event(enum.Enum):
    """What can happen to a component."""

    WANTED = "another bundle is wanted"
    RENEWED = "the bundle on its way is wanted again"
    SATISFIED = "the confirmed bundle is wanted"
    UNWANTED = "the component is no longer wanted"
    HOLD = "a reason to wait"
    RELEASED = "no more reason to wait"
    FETCHED = "bundle verified in its slot"
    REFUSED = "bundle refused"
    PROCEED = "nothing holds it"
    TEST_PASSED = "self-test passed"
    TEST_FAILED = "self-test failed"
    SHADOWED = "self-test passed, and it is to run beside what serves"
    PROMOTED = "the shadow is to serve"
    HEALTHY = "trial healthy"
    UNHEALTHY = "trial not healthy"
    ABANDONED = "another component of its set failed"
    REVERTED = "old bundle serves"
    RESTARTED = "agent started"


class Effect(enum.Enum):
    """What a transition asks for. Each may be carried out again after a power cut without harm."""

    CANCEL = "give up the download and end the candidate's worker"
    FETCH = "verify, download and unpack into the free slot"
    ASK = "look for reasons to wait"
    WAIT = "wait until the reason is gone"
    TEST = "load in a fresh worker and self-test"
    SHADOW = "let the candidate run beside what serves"
    SWITCH = "make the candidate active and let it serve"
    WATCH = "watch the trial"
    CONFIRM = "keep the candidate"
    REVERT = "make the old bundle active and let it serve"
    GIVE_WAY = "as REVERT, but with no old bundle the one on trial goes on serving meanwhile"
    DISCARD = "remove what was fetched"
    REMOVE = "stop serving and remove both slots"


class Step(NamedTuple):
    """Where an event leads, and what is then to be done, in order."""

    state: State
    effects: tuple[Effect, ...] = ()


# This agent does not enter TIMED_OUT, but one of another version may have left it in the state directory.
ELSEWHERE = (State.TIMED_OUT,)
_RESTING = (State.IDLE, State.CONFIRMED, State.REJECTED, State.FAILED, State.TIMED_OUT)
_UNDER_WAY = (State.HELD, State.DOWNLOADING, State.STAGED, State.SELF_TEST, State.SHADOW)
_ALL = (*_RESTING, *_UNDER_WAY, State.TRIAL, State.ROLLING_BACK)

_START = Step(State.DOWNLOADING, (Effect.FETCH,))
_START_OVER = Step(State.DOWNLOADING, (Effect.CANCEL, Effect.FETCH))
_HELD = Step(State.HELD, (Effect.CANCEL, Effect.WAIT))
_GO_BACK = Step(State.ROLLING_BACK, (Effect.CANCEL, Effect.REVERT))
_REJECTED = Step(State.REJECTED, (Effect.DISCARD,))
_ABANDONED = Step(State.REJECTED, (Effect.CANCEL, Effect.DISCARD))

TABLE: Mapping[tuple[State, Event], Step] = MappingProxyType(
    {
        # A newer generation supersedes whatever is under way. A trial first gives the old bundle its place back.
        **{(state, Event.WANTED): _START for state in _RESTING},
        **{(state, Event.WANTED): _START_OVER for state in _UNDER_WAY},
        (State.TRIAL, Event.WANTED): Step(State.DOWNLOADING, (Effect.CANCEL, Effect.GIVE_WAY, Effect.FETCH)),
        (State.ROLLING_BACK, Event.WANTED): Step(State.DOWNLOADING, (Effect.CANCEL, Effect.REVERT, Effect.FETCH)),
        **{(state, Event.RENEWED): Step(state) for state in (*_UNDER_WAY, State.TRIAL)},
        **{(state, Event.SATISFIED): Step(State.CONFIRMED) for state in _RESTING},
        **{(state, Event.SATISFIED): Step(State.CONFIRMED, (Effect.CANCEL, Effect.DISCARD)) for state in _UNDER_WAY},
        (State.TRIAL, Event.SATISFIED): Step(State.CONFIRMED, (Effect.CANCEL, Effect.REVERT, Effect.DISCARD)),
        (State.ROLLING_BACK, Event.SATISFIED): Step(State.CONFIRMED, (Effect.CANCEL, Effect.REVERT, Effect.DISCARD)),
        **{(state, Event.UNWANTED): Step(State.IDLE, (Effect.CANCEL, Effect.REMOVE)) for state in _ALL},
        # The way of a bundle. Every step may be held; what was done so far is kept, so a release starts over cheaply.
        (State.DOWNLOADING, Event.FETCHED): Step(State.STAGED, (Effect.ASK,)),
        (State.DOWNLOADING, Event.REFUSED): _REJECTED,
        (State.DOWNLOADING, Event.HOLD): _HELD,
        (State.STAGED, Event.PROCEED): Step(State.SELF_TEST, (Effect.TEST,)),
        (State.STAGED, Event.REFUSED): _REJECTED,
        (State.STAGED, Event.HOLD): _HELD,
        (State.HELD, Event.RELEASED): _START,
        **{(state, Event.ABANDONED): _ABANDONED for state in (State.HELD, State.DOWNLOADING, State.STAGED)},
        **{(state, Event.ABANDONED): _GO_BACK for state in (State.SELF_TEST, State.SHADOW, State.TRIAL)},
        (State.SELF_TEST, Event.TEST_PASSED): Step(State.TRIAL, (Effect.SWITCH, Effect.WATCH)),
        (State.SELF_TEST, Event.TEST_FAILED): _GO_BACK,
        (State.SELF_TEST, Event.SHADOWED): Step(State.SHADOW, (Effect.SHADOW,)),
        (State.SHADOW, Event.TEST_FAILED): _GO_BACK,
        (State.SHADOW, Event.PROMOTED): Step(State.TRIAL, (Effect.SWITCH, Effect.WATCH)),
        (State.SELF_TEST, Event.HOLD): _HELD,
        (State.TRIAL, Event.HEALTHY): Step(State.CONFIRMED, (Effect.CONFIRM,)),
        (State.TRIAL, Event.UNHEALTHY): _GO_BACK,
        (State.ROLLING_BACK, Event.REVERTED): Step(State.FAILED, (Effect.DISCARD,)),
        # After a power cut or crash. What was under way starts over; a trial goes on; a return is finished.
        **{(state, Event.RESTARTED): Step(state) for state in _RESTING},
        **{(state, Event.RESTARTED): _START for state in _UNDER_WAY},
        (State.TRIAL, Event.RESTARTED): Step(State.TRIAL, (Effect.SWITCH, Effect.WATCH)),
        (State.ROLLING_BACK, Event.RESTARTED): Step(State.ROLLING_BACK, (Effect.REVERT,)),
    }
)


def next_step(state: State, event: Event, table: Mapping[tuple[State, Event], Step] = TABLE) -> Step:
    """Return where an event leads from a state.

    Raises:
        EdgeopsError: E-AGENT-STATE; the event is impossible there.
    """
    step = table.get((state, event))
    if step is None:
        raise EdgeopsError("E-AGENT-STATE", f"{event.name} cannot happen in state {state}")
    return step


def diagram(table: Mapping[tuple[State, Event], Step] = TABLE) -> str:
    """Return the table as a Mermaid state diagram, without the events that every state takes."""
    states = {state for state, _ in table}
    everywhere = {event for event in Event if all((state, event) in table for state in states)}
    lines = ["stateDiagram-v2", f"    [*] --> {State.IDLE.name}"]
    for (state, event), step in table.items():
        if event not in everywhere and step.state is not state:
            lines.append(f"    {state.name} --> {step.state.name}: {event.value}")
    # From every resting state; drawn once.
    lines.append(f"    {State.IDLE.name} --> {table[State.IDLE, Event.WANTED].state.name}: {Event.WANTED.value}")
    return "\n".join(lines) + "\n"
