"""What a desired state means for one component: which event, if any. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from edgeops.agent.states import MAX_ATTEMPTS, Effect, Event
from edgeops.agent.store import ComponentRecord, LocalChoice
from edgeops.contracts.deployment import Component, DeploymentState, Slot

ON_ITS_WAY = frozenset(
    {
        DeploymentState.HELD,
        DeploymentState.DOWNLOADING,
        DeploymentState.STAGED,
        DeploymentState.SELF_TEST,
        DeploymentState.SHADOW,
        DeploymentState.TRIAL,
    }
)


class Wish(NamedTuple):
    """What a desired state says of one component.

    Args:
        want: What it is to hold; None: the component is not wanted.
        generation: Of the desired state.
        override_holds: Do not wait for what the site holds it for.
        together: The components of its set that change with it, itself among them; empty: it goes its own way.
        anew: Begin again also what is on its way: another component of its set does.
    """

    want: Component | None
    generation: int
    override_holds: bool = False
    together: tuple[str, ...] = ()
    anew: bool = False


def event_for(record: ComponentRecord, wish: Wish, confirmed: Slot | None) -> Event | None:
    """Return what a desired state brings about for a component; None: nothing, it was taken in before.

    Args:
        record: Where the component stands.
        wish: What the desired state says of it.
        confirmed: The bundle that has proved itself on this device.
    """
    want = wish.want
    if want is None:
        return None if record.want is None and confirmed is None else Event.UNWANTED
    # A release of the same bytes under another version goes the whole way too: its slot then says what runs.
    same = record.want is not None and _is(record.want, want)
    known = same and record.generation == wish.generation
    if confirmed is not None and _is(confirmed, want):
        return None if known and record.state is DeploymentState.CONFIRMED else Event.SATISFIED
    promoted = same and want.shadow is None and record.want is not None and record.want.shadow is not None
    if promoted and record.state is DeploymentState.SHADOW and not wish.anew:
        return Event.PROMOTED
    if same and record.state in ON_ITS_WAY:
        return None if known else Event.WANTED if wish.anew else Event.RENEWED
    if not known:
        return Event.WANTED
    # The same again. It is tried again only where it was lost after it had been good, and within the budget.
    lost = record.state in (DeploymentState.CONFIRMED, DeploymentState.IDLE)
    return Event.WANTED if lost and record.attempts < MAX_ATTEMPTS else None


def changes_for(record: ComponentRecord, wish: Wish, event: Event) -> dict[str, Any]:
    """Return what a component's record keeps of a desired state that brings an event about."""
    renewed, again = event in (Event.RENEWED, Event.PROMOTED), record.generation == wish.generation
    return {
        "want": wish.want,
        "generation": wish.generation,
        "attempts": record.attempts if renewed or again else 0,
        "step": record.step if again else 0,
        "waited_s": record.waited_s if renewed or again else 0.0,
        "failure": record.failure if renewed else None,
        "override_holds": wish.override_holds,
        "together": wish.together,
    }


def with_local(wanted: Iterable[Component], generation: int, local: Mapping[str, LocalChoice]) -> list[Component]:
    """Return what is wanted of a desired state, where what was chosen at the device since then goes first.

    Args:
        wanted: Components of the desired state.
        generation: Its generation; what was chosen before a later one was accepted counts no more.
        local: What was chosen at the device.
    """
    standing = {name: choice.component for name, choice in local.items() if choice.generation >= generation}
    return [*(component for component in wanted if component.name not in standing), *standing.values()]


def repair_at_start(record: ComponentRecord, active: Slot | None) -> Effect | None:
    """Return how slots that say "trial" are brought in line with a record that says otherwise.

    The record is kept first, so a cut may leave it ahead of the slots: a trial that was over is then ended as it was
    decided.

    Args:
        record: Where the component stands.
        active: The unconfirmed bundle that is active; None: there is no trial.
    """
    if active is None or record.state is DeploymentState.TRIAL:
        return None
    if record.state in ON_ITS_WAY:
        return Effect.GIVE_WAY  # the trial was over because something newer was wanted
    proved = record.state is DeploymentState.CONFIRMED and record.want is not None and _is(active, record.want)
    return Effect.CONFIRM if proved else Effect.REVERT


def _is(one: Component | Slot, want: Component) -> bool:
    return (one.digest, one.release) == (want.digest, want.release)


def event_at_start(record: ComponentRecord) -> Event:
    """Return what a start of the agent means for a component that was cut off: on, or back if that came too often."""
    if record.attempts >= MAX_ATTEMPTS:
        if record.state is DeploymentState.TRIAL:
            return Event.UNHEALTHY
        if record.state is DeploymentState.SELF_TEST:
            return Event.TEST_FAILED
    return Event.RESTARTED
