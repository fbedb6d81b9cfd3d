"""Sets of components: they switch together or not at all, are kept together, and return together.

What is decided for a set lies in its members' own records, one file each. A power cut may leave them in the middle of a
decision; the next start carries it through before anything serves: confirmed once one is confirmed, back once one has
failed, and on trial only if all are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from edgeops.agent.deployment import Deployment
from edgeops.agent.loop import Loop
from edgeops.agent.plan import ON_ITS_WAY, Wish
from edgeops.agent.states import Event
from edgeops.agent.store import ComponentRecord
from edgeops.contracts.deployment import Component, DeploymentState, Failure, Slot

_FAILED = frozenset({DeploymentState.ROLLING_BACK, DeploymentState.FAILED, DeploymentState.REJECTED})


class Member(NamedTuple):
    """A component of a set: its state, and the event that waits for the others."""

    state: DeploymentState
    ready: Event | None


def changing(wanted: Iterable[Component], confirmed: Mapping[str, Slot | None]) -> dict[str, tuple[str, ...]]:
    """Return for each component with which others it goes: those of its set that do not hold yet what is wanted.

    Args:
        wanted: All components of a desired state.
        confirmed: Component → the bundle that has proved itself.
    """
    sets: dict[str, list[str]] = {}
    for component in wanted:
        slot = confirmed.get(component.name)
        if component.set_name and (
            slot is None or (slot.release, slot.digest) != (component.release, component.digest)
        ):
            sets.setdefault(component.set_name, []).append(component.name)
    together = (tuple(sorted(names)) for names in sets.values() if len(names) > 1)
    return {name: names for names in together for name in names}


def decide(members: Mapping[str, Member]) -> dict[str, Event]:
    """Return what happens now to which member of a set; empty: they wait for one another."""
    states = {member.state for member in members.values()}
    if states & _FAILED:
        return dict.fromkeys((name for name, member in members.items() if member.state in ON_ITS_WAY), Event.ABANDONED)
    # One that is confirmed already waits for nobody: its set was confirmed, and another lost its bundle since.
    moving = {name: member for name, member in members.items() if member.state is not DeploymentState.CONFIRMED}
    awaited = {member.ready for member in moving.values()}
    event = awaited.pop() if len(awaited) == 1 else None
    return dict.fromkeys(moving, event) if event is not None else {}


def at_start(record: ComponentRecord, group: Sequence[ComponentRecord]) -> ComponentRecord:
    """Return a member's record as its set had decided when the agent ended.

    Args:
        record: As it lies on the disk.
        group: Those of the set that are on the same way, itself among them.
    """
    if record.state is not DeploymentState.TRIAL:
        return record
    states = {member.state for member in group}
    if states & _FAILED:
        release = record.want.release if record.want is not None else ""
        at_s = max((member.failure.at_s for member in group if member.failure is not None), default=0.0)
        failure = Failure(code="E-SET", what=first_failure(group), release=release, at_s=at_s)
        return msgspec.structs.replace(record, state=DeploymentState.ROLLING_BACK, failure=failure)
    if DeploymentState.CONFIRMED in states:
        return msgspec.structs.replace(record, state=DeploymentState.CONFIRMED)
    if len(group) < len(record.together) or states != {DeploymentState.TRIAL}:
        return msgspec.structs.replace(record, state=DeploymentState.DOWNLOADING)
    return record


def groups(records: Iterable[ComponentRecord]) -> list[list[ComponentRecord]]:
    """Return the records of each set that is on its way: those that name the same members in the same generation."""
    found: dict[tuple[int, tuple[str, ...]], list[ComponentRecord]] = {}
    for record in records:
        if record.together:
            found.setdefault((record.generation, record.together), []).append(record)
    return list(found.values())


def first_failure(records: Iterable[ComponentRecord]) -> str:
    """Return what failed in a set: a member that failed by itself, if that is known, and why."""
    failed = [record for record in records if record.state in _FAILED]
    by_itself = [record for record in failed if record.failure is not None and record.failure.code != "E-SET"]
    told = [f"{record.name}: {record.failure.code}" for record in by_itself if record.failure is not None]
    return f"of the same set {told[0] if told else failed[0].name} failed"


class Sets:
    """Carries out what is decided for sets, and hands desired states to the components.

    Args:
        loop: The supervisor's loop.
        deployments: Component → its deployment; others add and remove some.
    """

    def __init__(self, loop: Loop, deployments: Mapping[str, Deployment]) -> None:
        self._loop, self._deployments = loop, deployments

    def start(self) -> None:
        """Start all components, each as its set had decided."""
        for group in groups(deployment.record for deployment in self._deployments.values()):
            for record in group:
                self._deployments[record.name].amend(at_start(record, group))
        for deployment in list(self._deployments.values()):
            deployment.start()

    def pursue(
        self, wanted: Mapping[str, Component], generation: int, *, blocked: Collection[str], override_holds: bool
    ) -> None:
        """Hand a desired state to all components.

        Args:
            wanted: What is wanted of each.
            generation: Of the desired state.
            blocked: Sets with a component that this device cannot have.
            override_holds: As the desired state says.
        """
        deployments = self._deployments
        together = changing(wanted.values(), {name: part.confirmed for name, part in deployments.items()})
        # A member that begins anew takes along those that are on their way: they were to switch with another bundle.
        begin = {name for name, want in wanted.items() if deployments[name].begins(Wish(want, generation))}
        anew = {wanted[name].set_name for name in begin} - {""}
        for name in sorted(deployments):
            want = wanted.get(name)
            set_name = want.set_name if want is not None else ""
            wish = Wish(want, generation, override_holds, together.get(name, ()), anew=set_name in anew)
            deployments[name].pursue(wish)
            if set_name in blocked:
                deployments[name].abandon("its set has a component that this agent cannot hold")
        self.look()

    def look(self) -> None:
        """Have all sets go on that can, soon."""
        self._loop.post(self._look)

    def _look(self) -> None:
        for group in groups(deployment.record for deployment in self._deployments.values()):
            members = {record.name: self._deployments[record.name] for record in group}
            if set(members) != set(group[0].together):
                continue  # a desired state is being taken in
            told = {name: Member(member.record.state, member.ready) for name, member in members.items()}
            for name, event in decide(told).items():
                if event is Event.ABANDONED:
                    members[name].abandon(first_failure(group))
                else:
                    members[name].proceed()
