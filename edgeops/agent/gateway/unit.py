"""A microcontroller as a unit of this device's connection: desired state, progress, telemetry, as for any device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from securesystemslib.signer import Signer

from edgeops.agent.backlog import TelemetryQueue
from edgeops.agent.deployment import Deployment
from edgeops.agent.enrolment import Enrolment
from edgeops.agent.fetching import Fetcher
from edgeops.agent.gateway.line import LineState, McuLine
from edgeops.agent.gateway.rules import RUNTIME, McuRules
from edgeops.agent.gateway.serving import McuServing
from edgeops.agent.holds import Conditions
from edgeops.agent.house import House
from edgeops.agent.loop import Loop
from edgeops.agent.pursuit import Pursuit, remove
from edgeops.agent.serving_words import ServingEvents
from edgeops.agent.settings import MAX_QUEUED_WINDOWS, Settings
from edgeops.agent.store import StateDirectory
from edgeops.agent.telemetry import Windows
from edgeops.agent.trust_desk import TrustDesk
from edgeops.agent.uplink import Uplink, compose_report
from edgeops.contracts.deployment import Component, ComponentKind, Failure, Reported
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.profile import Profile
from edgeops.contracts.telemetry import ModelWindow
from edgeops.profiles import registry
from edgeops.transport.download import Downloader
from edgeops.transport.mqtt import MqttLink
from edgeops.trust.time import Clock

log = logging.getLogger(__name__)

UNITS_DIR = "units"
TIDY_EVERY_S = 60.0


class McuUnit:
    """One microcontroller behind this device. It hears of its deployments (`DeploymentObserver`).

    Args:
        rules: What `agent.toml` says of it.
        loop: The supervisor's loop.
        parent: The device's state directory; the unit's own lies in it.
        enrolment: Who this device is.
        settings: The agent's settings.
        desk: The device's desk.
        downloader: Asks the servers.
        signer: The device's key: it speaks for its units.
        clock: The time rule.
        conditions: What the device is like now: what holds its updates holds those of its units.

    Raises:
        EdgeopsError: E-CONFIG; the profile is no microcontroller's. E-DISK-WRITE or E-DISK-FULL. E-STATE-LOCKED.
    """

    def __init__(
        self,
        rules: McuRules,
        loop: Loop,
        parent: StateDirectory,
        enrolment: Enrolment,
        settings: Settings,
        *,
        desk: TrustDesk,
        downloader: Downloader,
        signer: Signer,
        clock: Clock,
        conditions: Callable[[], Conditions],
    ) -> None:
        self.name = rules.name
        self._rules, self._loop, self._settings, self._clock = rules, loop, settings, clock
        self._enrolment = enrolment
        self._profile: Profile = registry.load(rules.profile)
        self._state = StateDirectory(parent.root / UNITS_DIR / rules.name)
        self._desk = desk.for_unit(rules.name, rules.profile)
        self._line_state = LineState("", "not asked yet")
        self._unreached: Failure | None = None
        self._line = McuLine(rules, loop.post, self._line_says)
        self._house = House(
            loop=loop,
            state=self._state,
            settings=settings,
            serving=self._profile.serving,
            ram_mib=self._profile.memory.ram_mib,
            connection=f"{enrolment.connection}/{rules.name}",
            fetcher=Fetcher(self._desk, downloader, self._state.downloads),
            now=clock.now,
            observer=self,
            conditions=conditions,
            make_serving=self._serving,
        )
        self._windows = Windows()
        self._window_began_s = clock.now()
        queue = TelemetryQueue(self._state.queue, MAX_QUEUED_WINDOWS)
        self._uplink = Uplink(loop, enrolment, signer, queue, clock.now, unit=rules.name)
        self._pursuit = Pursuit(
            loop,
            self._state,
            self._desk,
            clock,
            open_deployment=lambda name, floor: Deployment(name, self._house, floor_number=floor, ports=[]),
            check=self._check,
            on_accepted=lambda _: None,
            on_change=self._uplink.report,
        )

    def start(self, link: MqttLink) -> None:
        """Look after what the device should run, and speak for it on the device's link."""
        self._uplink.attach(link, self._compose)
        self._pursuit.start()
        self._line.submit("who is there", lambda found: found.system_info(), lambda _: None, within_s=None)
        self._loop.after(self._settings.telemetry_window_s, self._window_over)
        self._loop.after(TIDY_EVERY_S, self._tidy)

    def take(self, envelope: bytes) -> None:
        """Take a desired state of this unit."""
        self._pursuit.take(envelope)

    def connected(self) -> None:
        """The device's link is up."""
        self._uplink.connected()

    def report(self) -> None:
        """Say how the unit stands."""
        self._uplink.report()

    def sign_with(self, signer: Signer) -> None:
        """Speak with the device's new key."""
        self._uplink.sign_with(signer)

    def close(self) -> None:
        """Give the line back; the device goes on by itself."""
        self._close_window()
        for deployment in self._pursuit.deployments.values():
            deployment.close()
        self._line.close()
        self._state.close()

    # `deployment.DeploymentObserver`

    def changed(self, deployment: Deployment) -> None:
        """A component's report differs from before."""
        self._pursuit.sets.look()
        self._uplink.report()

    def stepped(self, deployment: Deployment, percent: float | None, doing: str = "") -> None:
        """A component came a step further, or says what takes it so long."""
        self._uplink.progress(deployment, percent, doing)

    def counted(self, window: ModelWindow) -> None:
        """The device told what it did."""
        self._windows.add(window)

    def busy(self, for_s: float) -> None:
        """No application speaks for a microcontroller."""

    def drawn(self, id: str, sample: bytes) -> None:
        """No requests are drawn on a microcontroller."""

    def confirmed(self, name: str, number: int) -> None:
        """A release has proved itself."""
        self._pursuit.confirmed(name, number)

    def settled(self) -> None:
        """A deployment ended: what was measured in it is told now."""
        self._close_window()

    # Steps

    def _serving(self, events: ServingEvents, name: str) -> McuServing:
        return McuServing(self._loop, events, self._line, name, self._rules.install_within_s)

    def _check(self, component: Component, wanted: Sequence[Component]) -> None:
        if component.kind is not ComponentKind.MODEL:
            raise EdgeopsError("E-DESIRED-UNSUPPORTED", f"a microcontroller cannot hold a {component.kind}")
        if component.shadow is not None:
            raise EdgeopsError("E-DESIRED-UNSUPPORTED", "a microcontroller runs no shadow beside its model")
        models = [one.name for one in wanted if one.kind is ComponentKind.MODEL]
        deployments = self._pursuit.deployments
        held = [name for name in models if name in deployments and deployments[name].record.want is not None]
        only = [*held, *models][0]
        if component.name != only:
            raise EdgeopsError("E-DESIRED-UNSUPPORTED", f"a microcontroller holds one model, this one's is {only!r}")

    def _line_says(self, state: LineState) -> None:
        self._line_state = state
        self._unreached = None
        if state.problem:
            log.warning("%s is not reached: %s", self.name, state.problem)
            code, _, what = state.problem.partition(": ")
            self._unreached = Failure(code=code, what=what[:500], release="", at_s=self._clock.now())
        else:
            log.info("%s is %s", self.name, state.system)
        self._uplink.report()

    def _compose(self, seq: int) -> Reported:
        return compose_report(
            self._enrolment,
            unit=self.name,
            profile=self._rules.profile,
            boot_id=self._uplink.boot_id,
            seq=seq,
            at_s=self._clock.now(),
            observed_generation=self._pursuit.unit.generation,
            components=self._pursuit.reports(),
            capabilities={RUNTIME: self._line_state.system} if self._line_state.system else {},
            stale_s=self._desk.stale_s(self._pursuit.accepted),
            # A desired state that is accepted says nothing of the line.
            refused=self._unreached or self._pursuit.refused,
            features=(),
        )

    def _window_over(self) -> None:
        self._close_window()
        self._loop.after(self._settings.telemetry_window_s, self._window_over)

    def _close_window(self) -> None:
        models, end_s = self._windows.take(), self._clock.now()
        if models:
            self._uplink.keep_telemetry(models, None, self._window_began_s, end_s)
        self._window_began_s = end_s

    def _tidy(self) -> None:
        self._pursuit.tidy()
        if not any(deployment.fetching for deployment in self._pursuit.deployments.values()):
            remove(self._house.fetcher.forget)
        self._loop.after(TIDY_EVERY_S, self._tidy)
