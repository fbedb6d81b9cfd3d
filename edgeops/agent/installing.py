"""What a person at the device may ask for: a release from a stick, or the bundle before. Both go the whole way.

They are verified, self-tested and tried as what comes over the network.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
from tuf.ngclient.fetcher import FetcherInterface

from edgeops.agent import inbox
from edgeops.agent.conditions import DeviceProbe
from edgeops.agent.deployment import Deployment
from edgeops.agent.enrolment import CLOCK_FILE, Enrolment, read_enrolment
from edgeops.agent.fetching import Fetcher, downloader_for
from edgeops.agent.house import House
from edgeops.agent.loop import Loop
from edgeops.agent.plan import Wish
from edgeops.agent.settings import Settings
from edgeops.agent.slots import Slots
from edgeops.agent.store import ComponentRecord, LocalChoice, StateDirectory, UnitRecord, is_locked
from edgeops.agent.trust_desk import TrustDesk
from edgeops.contracts.deployment import TERMINAL_STATES, Component, ComponentKind, DeploymentState, Failure, kind_of
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.contracts.release import target_path
from edgeops.contracts.telemetry import ModelWindow
from edgeops.contracts.wire import decode
from edgeops.profiles import registry
from edgeops.releases.offline import OfflineRepository
from edgeops.transport.http import HttpClient, mutual_context
from edgeops.transport.mqtt import TlsFiles
from edgeops.trust.device import DeviceIdentity
from edgeops.trust.time import Clock
from edgeops.trust.tuf_client import TufClient

_RESTING = TERMINAL_STATES | {DeploymentState.HELD}
_LOOK_EVERY_S = 0.2
_AGENT_WITHIN_S = 600.0
_END_WITHIN_S = 10.0


class Installed(NamedTuple):
    """What became of a release.

    Args:
        component: The model.
        release: Its version.
        state: Where its deployment ended.
        failure: Why it was refused or went back; None: it serves, or will at the agent's next start.
        by_agent: Whether the running agent did it.
    """

    component: str
    release: str
    state: DeploymentState
    failure: Failure | None
    by_agent: bool


def bring(file: Path, desk: TrustDesk, fetcher: Fetcher, numbers: Mapping[str, int]) -> Component:
    """Verify an exported release and copy this device's bundle from it; return what is then to be pursued.

    Raises:
        EdgeopsError: E-RELEASE-INVALID; not an export, or damaged. Otherwise as `TrustDesk.admit`; no slot was touched.
    """
    with OfflineRepository(file) as stick:
        component, target = desk.admit(stick, lambda model: numbers.get(model, 0))
        fetcher.bring(stick, target)
    return component


def asked_for(file: Path, state: StateDirectory, profile: str) -> Component | None:
    """Return the bundle before, where a file of the inbox asks for that; None: it asks for something else.

    Raises:
        EdgeopsError: E-NAME. E-CONFIG; there is no bundle before.
    """
    wish = inbox.read_wish(file)
    return None if wish is None else fallback_of(state, wish.component, profile)


def fallback_of(state: StateDirectory, name: str, profile: str) -> Component:
    """Return what a component falls back to, as something that can be wanted.

    Raises:
        EdgeopsError: E-NAME. E-CONFIG; no such component, or nothing to go back to.
    """
    check_name(name, "component")
    slot = Slots(state.component_dir(name)).fallback_slot if name in state.components() else None
    if slot is None:
        raise EdgeopsError("E-CONFIG", f"{name} has no bundle to go back to", "See `edgeops agent status`.")
    return Component(
        name=name,
        kind=kind_of(name),
        release=slot.release,
        target=target_path(name, slot.release, profile),
        digest=slot.digest,
        allow_downgrade=True,
    )


def roll_back(root: Path, name: str, settings: Settings) -> Installed:
    """Go back to the bundle before, by the agent if it runs, else without it. Needs no network.

    It stands until the fleet wants something of a later generation.

    Args:
        root: The agent's state directory.
        name: The model.
        settings: For the trial, if no agent runs.

    Raises:
        EdgeopsError: E-CONFIG; not the state directory of an enrolled device, another user's, or there is nothing to go
            back to. E-STATE-CORRUPT. E-STATE-LOCKED; the running agent does not answer.
    """
    enrolment = _enrolled_here(root)
    if is_locked(root):
        return _by_agent(root, inbox.ask_back(root, name))
    state = StateDirectory(root)
    try:
        return _Alone(state, enrolment, settings).pursue(fallback_of(state, name, enrolment.profile))
    finally:
        state.close()


def _enrolled_here(root: Path) -> Enrolment:
    enrolment = read_enrolment(root / "identity")
    if enrolment is None:
        raise EdgeopsError("E-CONFIG", f"{root} is not enrolled", "A stick brings releases; trust comes with a token.")
    if root.stat().st_uid != os.geteuid():
        raise EdgeopsError("E-CONFIG", f"{root} belongs to user {root.stat().st_uid}", "Run this as that user.")
    return enrolment


def install(root: Path, file: Path, settings: Settings) -> Installed:
    """Install a release from a file, by the agent if it runs, else without it. Needs no network.

    Args:
        root: The agent's state directory.
        file: What `edgeops release export` wrote.
        settings: For the trial, if no agent runs.

    Raises:
        EdgeopsError: E-CONFIG; not the state directory of an enrolled device, or another user's. E-STATE-CORRUPT.
            Otherwise as `bring`; what serves was not touched. E-AGENT-STATE; the running agent does not answer.
    """
    enrolment = _enrolled_here(root)
    with OfflineRepository(file):
        pass  # what is no export is refused before it is copied
    if is_locked(root):
        return _by_agent(root, inbox.submit(root, file))
    state = StateDirectory(root)
    try:
        return _Alone(state, enrolment, settings).install(file)
    finally:
        state.close()


def _by_agent(root: Path, copy: Path) -> Installed:
    deadline_s = time.monotonic() + _AGENT_WITHIN_S
    try:
        while (said := inbox.take_answer(copy)) is None:
            if not is_locked(root) or time.monotonic() > deadline_s:
                raise EdgeopsError(
                    "E-STATE-LOCKED", f"the agent that uses {root} does not answer", "Stop it and install again."
                )
            time.sleep(_LOOK_EVERY_S)
    finally:
        inbox.withdraw(root, copy)
    if said.code:
        raise EdgeopsError(said.code, said.what, said.next_step)
    path = root / "components" / said.component / "state.json"
    while True:
        record = decode(path.read_bytes(), ComponentRecord, what=str(path))
        if record.state in _RESTING or not is_locked(root) or time.monotonic() > deadline_s:
            return Installed(said.component, said.release, record.state, record.failure, by_agent=True)
        time.sleep(_LOOK_EVERY_S)


class _NoNetwork(FetcherInterface):
    """Reaches no server: what was verified before is all that there is."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise EdgeopsError("E-NET-UNREACHABLE", f"{url}: this device installs without network")


class _Alone:
    """An agent of one component, without a network; it ends when that component's deployment does."""

    def __init__(self, state: StateDirectory, enrolment: Enrolment, settings: Settings) -> None:
        self._state, self._settings, self._loop = state, settings, Loop()
        self._profile, self._connection = registry.load(enrolment.profile), enrolment.connection
        self._unit = state.read_unit()
        self._clock = Clock(state.trust / CLOCK_FILE)
        files = DeviceIdentity.load(state.identity).tls_files()
        http = HttpClient(mutual_context(TlsFiles(files.ca, files.certificate, files.key)))
        tuf = TufClient(state.trust, enrolment.artifacts_url, _NoNetwork(), self._clock)
        self._desk = TrustDesk(
            tuf, self._clock, fleet=enrolment.fleet, connection=enrolment.connection, profile=enrolment.profile
        )
        downloader = downloader_for(settings.downloads, http, enrolment.artifacts_url)
        self._fetcher = Fetcher(self._desk, downloader, state.downloads)

    def install(self, file: Path) -> Installed:
        """Bring a release all the way."""
        return self.pursue(bring(file, self._desk, self._fetcher, self._unit.numbers))

    def pursue(self, component: Component) -> Installed:
        """Have a component go all the way, or fail on it."""
        if component.kind is not ComponentKind.MODEL:
            raise EdgeopsError("E-CONFIG", "the agent changes its own version only while it runs", "Start it first.")
        house = House(
            loop=self._loop,
            state=self._state,
            settings=self._settings,
            serving=self._profile.serving,
            ram_mib=self._profile.memory.ram_mib,
            connection=self._connection,
            fetcher=self._fetcher,
            now=self._clock.now,
            observer=self,
            conditions=DeviceProbe(self._settings.holds, self._clock.now, self._state.root),
        )
        floor = self._unit.numbers.get(component.name, 0)
        deployment = Deployment(component.name, house, floor_number=floor, ports=[0])
        deployment.start()
        choice = LocalChoice(component=component, generation=self._unit.generation)
        self._keep(msgspec.structs.replace(self._unit, local={**self._unit.local, component.name: choice}))
        deployment.pursue(Wish(component, self._unit.generation, override_holds=True))
        self._run_until(lambda: deployment.record.state in _RESTING)
        deployment.close()
        self._run_until(lambda: deployment.serving.ended, within_s=_END_WITHIN_S)
        deployment.serving.kill_all()
        record = deployment.record
        return Installed(component.name, component.release, record.state, record.failure, by_agent=False)

    def _run_until(self, done: Callable[[], bool], *, within_s: float = math.inf) -> None:
        deadline_s = time.monotonic() + within_s

        def look() -> None:
            if done() or time.monotonic() > deadline_s:
                self._loop.stop()
            else:
                self._loop.after(_LOOK_EVERY_S, look)

        self._loop.post(look)
        self._loop.run()

    def _keep(self, record: UnitRecord) -> None:
        self._unit = record
        self._state.write_unit(record)

    # What the deployment says: `deployment.DeploymentObserver`

    def changed(self, deployment: Deployment) -> None:
        """A component's report differs from before."""

    def stepped(self, deployment: Deployment, percent: float | None, doing: str = "") -> None:
        """A component came a step further."""

    def busy(self, for_s: float) -> None:
        """The application is busy; the person at the device has decided when."""

    def drawn(self, id: str, sample: bytes) -> None:
        """No command is heard."""

    def counted(self, window: ModelWindow) -> None:
        """A model served: nobody did ask it anything yet."""

    def confirmed(self, name: str, number: int) -> None:
        """A release has proved itself: older ones need a signed downgrade from now on."""
        self._keep(msgspec.structs.replace(self._unit, numbers={**self._unit.numbers, name: number}))

    def settled(self) -> None:
        """A deployment ended."""
