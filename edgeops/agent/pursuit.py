"""What a unit should hold: desired states are verified, kept, and pursued, one deployment per component."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from edgeops import durable
from edgeops.agent.deployment import Deployment
from edgeops.agent.keeping import DISK_ERRORS
from edgeops.agent.loop import Loop
from edgeops.agent.plan import with_local
from edgeops.agent.sets import Sets
from edgeops.agent.store import StateDirectory, UnitRecord
from edgeops.agent.trust_desk import Postponed, TrustDesk
from edgeops.contracts.deployment import (
    MAX_COMPONENTS,
    MAX_RELEASE_CHARACTERS,
    Component,
    ComponentReport,
    DeploymentState,
    Desired,
    Failure,
)
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.transport.mqtt import backoff_s
from edgeops.trust.time import Clock

log = logging.getLogger(__name__)

MAX_ENVELOPES = 64
RETRY_FIRST_S, RETRY_MAX_S = 2.0, 900.0


class Pursuit:
    """The deployments of one unit, on the supervisor's loop.

    Args:
        loop: The loop.
        state: The unit's state directory.
        desk: Verifies what is desired of it.
        clock: The time rule.
        open_deployment: Makes the deployment of a component, given the number that it may not go below.
        check: Raises E-DESIRED-UNSUPPORTED for a component that this unit cannot hold beside all that is wanted.
        on_accepted: Told of every desired state that is accepted, before it is pursued.
        on_change: Told when the unit's report differs.
    """

    def __init__(
        self,
        loop: Loop,
        state: StateDirectory,
        desk: TrustDesk,
        clock: Clock,
        *,
        open_deployment: Callable[[str, int], Deployment],
        check: Callable[[Component, Sequence[Component]], None],
        on_accepted: Callable[[Desired], None],
        on_change: Callable[[], None],
    ) -> None:
        self._loop, self._state, self._desk, self._clock = loop, state, desk, clock
        self._open_deployment, self._check = open_deployment, check
        self._on_accepted, self._on_change = on_accepted, on_change
        self.unit = state.read_unit()
        self.deployments: dict[str, Deployment] = {}
        self.sets = Sets(loop, self.deployments)
        self.refused: Failure | None = None
        # What was accepted last, if it could be read.
        self.accepted: Desired | None = None
        self._unsupported: dict[str, ComponentReport] = {}
        self._verifying = False
        self._envelopes: deque[bytes] = deque(maxlen=MAX_ENVELOPES)
        self._verify_tries = 0

    def start(self) -> None:
        """Serve what is active, then pursue what was accepted before the agent ended, if it still holds."""
        for name in self._state.components():
            self.open(name)
        self.sets.start()
        self.accepted = desired = self._state.read_desired()
        if desired is not None and self._clock.now() < desired.expires_at_s:
            self._pursue(desired)
        for path in self._state.damaged:
            self.refuse(EdgeopsError("E-STATE-CORRUPT", f"{path.name} was damaged"))

    def take(self, envelope: bytes) -> None:
        """Take a desired state from the broker."""
        if envelope not in self._envelopes:
            self._envelopes.append(envelope)
        self._verify_tries = 0
        self._verify()

    def open(self, name: str) -> Deployment:
        """Make a component's deployment.

        Raises:
            EdgeopsError: As `Deployment`.
        """
        deployment = self._open_deployment(name, self.unit.numbers.get(name, 0))
        self.deployments[name] = deployment
        if deployment.floor_number:
            numbers = {**self.unit.numbers, name: deployment.floor_number}
            self.unit = msgspec.structs.replace(self.unit, numbers=numbers)
        return deployment

    def refuse(self, error: EdgeopsError) -> None:
        """Report what was refused."""
        self.refused = Failure(code=error.code, what=error.what[:500], release="", at_s=self._clock.now())
        self._on_change()

    def keep_unit(self, record: UnitRecord) -> None:
        """Keep what must never go back; where the disk refuses, in memory."""
        self.unit = record
        try:
            self._state.write_unit(record)
        except EdgeopsError as error:
            log.error("the floors could not be kept: %s", error)

    def confirmed(self, name: str, number: int) -> None:
        """A release has proved itself: older ones need a signed downgrade from now on."""
        self.keep_unit(msgspec.structs.replace(self.unit, numbers={**self.unit.numbers, name: number}))

    def reports(self) -> tuple[ComponentReport, ...]:
        """Return how each component stands."""
        there = [deployment.report() for deployment in self.deployments.values() if not deployment.gone]
        return (*there, *self._unsupported.values())

    def tidy(self) -> None:
        """Remove what is left of components that are not wanted any more."""
        for name, deployment in list(self.deployments.items()):
            if deployment.gone:
                deployment.close()
                del self.deployments[name]
                remove(partial(durable.remove_tree, self._state.component_dir(name)))

    def _verify(self) -> None:
        """Verify the next envelope on a thread: newer metadata may have to be fetched for it."""
        if self._verifying or not self._envelopes:
            return
        self._verifying = True
        envelope, floor = self._envelopes.popleft(), self.unit.generation

        def work() -> None:
            outcome: Desired | EdgeopsError
            try:
                outcome = self._desk.desired(envelope, floor)
            except EdgeopsError as error:
                outcome = error
            self._loop.post(lambda: self._verified(envelope, outcome))

        threading.Thread(target=work, name="verify", daemon=True).start()

    def _verified(self, envelope: bytes, outcome: Desired | EdgeopsError) -> None:
        self._verifying = False
        if isinstance(outcome, EdgeopsError):
            log.warning("desired state refused: %s", outcome)
            self.refuse(outcome)
            again = isinstance(outcome, Postponed)
        else:
            try:
                self._accept(outcome)
                again = False
            except EdgeopsError as error:
                log.warning("desired state refused: %s", error)
                self.refuse(error)
                # The broker has told it, and does so no more; the disk may have room in a moment.
                again = error.code in DISK_ERRORS
        if again and not self._envelopes:
            wait_s = max(1.0, backoff_s(self._verify_tries, first_s=RETRY_FIRST_S, max_s=RETRY_MAX_S))
            self._verify_tries += 1
            self._envelopes.append(envelope)
            self._loop.after(wait_s, self._verify)
        else:
            self._verify()

    def _accept(self, desired: Desired) -> None:
        """Keep a verified desired state, then pursue it.

        Raises:
            EdgeopsError: E-NAME or E-DESIRED-UNSUPPORTED; nobody could be told how its components stand.
                E-TRUST-REPLAY; another one of this generation was accepted: two control planes, perhaps after a
                restore, speak for one fleet. E-DISK-FULL or E-DISK-WRITE. It is not accepted.
        """
        if len(desired.components) > MAX_COMPONENTS:
            what = f"{len(desired.components)} components; {MAX_COMPONENTS} are allowed"
            raise EdgeopsError("E-DESIRED-UNSUPPORTED", what)
        for component in desired.components:
            check_name(component.name, "component")
            if len(component.release) > MAX_RELEASE_CHARACTERS:
                raise EdgeopsError(
                    "E-DESIRED-UNSUPPORTED", f"{component.name}: a release of {len(component.release)} characters"
                )
        kept = self._state.read_desired()
        if kept is not None and kept.generation == desired.generation and kept.components != desired.components:
            raise EdgeopsError(
                "E-TRUST-REPLAY",
                f"generation {desired.generation} with other components than those that were accepted",
                "Let one control plane only use the fleet's keys.",
            )
        self._clock.observe(desired.issued_at_s)
        # The state before its generation: a cut between the two has the broker's retained message taken once more.
        self._state.write_desired(desired)
        if desired.generation > self.unit.generation:
            self.keep_unit(msgspec.structs.replace(self.unit, generation=desired.generation, local={}))
        self.refused, self.accepted = None, desired
        self._on_accepted(desired)
        self._pursue(desired)

    def _pursue(self, desired: Desired) -> None:
        wanted: dict[str, Component] = {}
        self._unsupported = {}
        components = with_local(desired.components, desired.generation, self.unit.local)
        for component in components:
            try:
                check_name(component.name, "component")
                self._check(component, components)
            except EdgeopsError as error:
                self._unsupported[component.name] = self._unsupported_report(component, desired.generation, error)
                continue
            wanted[component.name] = component
        for name in sorted(set(wanted) - set(self.deployments)):
            try:
                self.open(name).start()
            except EdgeopsError as error:
                self._unsupported[name] = self._unsupported_report(wanted.pop(name), desired.generation, error)
        blocked = {component.set_name for component in desired.components if component.name in self._unsupported}
        self.sets.pursue(wanted, desired.generation, blocked=blocked - {""}, override_holds=desired.override_holds)
        self._on_change()

    def _unsupported_report(self, component: Component, generation: int, error: EdgeopsError) -> ComponentReport:
        failure = Failure(code=error.code, what=error.what, release=component.release, at_s=self._clock.now())
        return ComponentReport(
            name=component.name,
            kind=component.kind,
            state=DeploymentState.REJECTED,
            generation=generation,
            failure=failure,
        )


def remove(leftovers: Callable[[], None]) -> None:
    """Remove what nobody needs; a disk that refuses does not stop the agent."""
    try:
        leftovers()
    except EdgeopsError as error:
        log.error("%s", error)
