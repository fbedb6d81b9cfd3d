"""The agent: wires trust, link, deployments and telemetry to one loop. Whatever fails, the device goes on serving."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeops.agent import cgroups, inbox
from edgeops.agent.backlog import TelemetryQueue
from edgeops.agent.conditions import DeviceProbe
from edgeops.agent.deployment import Deployment
from edgeops.agent.device_meter import LOOK_EVERY_S, DeviceMeter
from edgeops.agent.enrolment import CLOCK_FILE, Enrolment
from edgeops.agent.fetching import Fetcher, downloader_for
from edgeops.agent.freshening import Freshener
from edgeops.agent.house import House
from edgeops.agent.installing import asked_for, bring
from edgeops.agent.loop import Loop
from edgeops.agent.measuring import Measuring
from edgeops.agent.notify import ServiceManager
from edgeops.agent.plan import Wish
from edgeops.agent.pursuit import Pursuit, remove
from edgeops.agent.renewing import Renewer
from edgeops.agent.samples import SampleStore
from edgeops.agent.sampling import SampleDesk
from edgeops.agent.self_update import AgentLife
from edgeops.agent.sensors import Sensors
from edgeops.agent.serving import ModelServing
from edgeops.agent.settings import MAX_QUEUED_WINDOWS, Settings
from edgeops.agent.status import FACTS_FILE, write_facts
from edgeops.agent.store import LocalChoice, StateDirectory
from edgeops.agent.telemetry import Windows
from edgeops.agent.trust_desk import TrustDesk
from edgeops.agent.uplink import Uplink, compose_report
from edgeops.agent.versions import Running, is_child
from edgeops.contracts.deployment import (
    MEASURE_TYPE,
    Component,
    ComponentKind,
    Reported,
    kind_of,
)
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.samples import SAMPLES_TYPE
from edgeops.contracts.telemetry import ModelWindow
from edgeops.contracts.topics import SELF_UNIT, device_filters, parse_topic
from edgeops.profiles import registry
from edgeops.transport.http import HttpClient, mutual_context
from edgeops.transport.mqtt import Message, MqttLink, TlsFiles
from edgeops.transport.tuf_fetcher import TufFetcher
from edgeops.trust import envelopes
from edgeops.trust.device import DeviceIdentity
from edgeops.trust.time import Clock
from edgeops.trust.tuf_client import TufClient

if TYPE_CHECKING:
    from edgeops.agent.gateway.unit import McuUnit
    from edgeops.transport.download import Downloader

log = logging.getLogger(__name__)

INSTALLED = Running()
KEEPALIVE_S = 300
TIDY_EVERY_S = 60.0
INBOX_EVERY_S = 2.0
STOP_WITHIN_S = 10.0
CAPABILITIES_WITHIN_S = 120.0


class Supervisor:
    """One device's agent.

    Args:
        state: The state directory, locked.
        enrolment: Who this device is.
        settings: The agent's settings.
        running: Which version of the agent this is.

    Raises:
        EdgeopsError: E-TRUST-KEY; the identity is damaged. E-PROFILE-UNKNOWN. E-DISK-WRITE or E-DISK-FULL.
            E-BROKER-ADDRESS.
    """

    def __init__(
        self, state: StateDirectory, enrolment: Enrolment, settings: Settings, running: Running = INSTALLED
    ) -> None:
        self._state, self._enrolment, self._settings = state, enrolment, settings
        self._loop = Loop()
        self._manager = ServiceManager()
        identity = DeviceIdentity.load(state.identity)
        files = identity.tls_files()
        self._tls = tls = TlsFiles(files.ca, files.certificate, files.key)
        self._tls_context = mutual_context(tls)
        self._clock = Clock(state.trust / CLOCK_FILE)
        http = HttpClient(self._tls_context)
        tuf = TufClient(state.trust, f"{enrolment.artifacts_url.rstrip('/')}/metadata", TufFetcher(http), self._clock)
        self._desk = TrustDesk(
            tuf, self._clock, fleet=enrolment.fleet, connection=enrolment.connection, profile=enrolment.profile
        )
        profile = registry.load(enrolment.profile)
        self._probe = DeviceProbe(settings.holds, self._clock.now, state.root)
        downloader = downloader_for(settings.downloads, http, enrolment.artifacts_url)
        self._house = House(
            loop=self._loop,
            state=state,
            settings=settings,
            serving=profile.serving,
            ram_mib=profile.memory.ram_mib,
            connection=enrolment.connection,
            fetcher=Fetcher(self._desk, downloader, state.downloads),
            now=self._clock.now,
            observer=self,
            conditions=self._probe,
            life=AgentLife(running, state.root, lambda: self._uplink.heard, self._relaunch),
            groups=cgroups.find(with_parent=is_child()),
        )
        self._capabilities: dict[str, str] = {}
        self._windows = Windows()
        self._window_began_s = self._clock.now()
        queue = TelemetryQueue(state.queue, MAX_QUEUED_WINDOWS)
        self._uplink = Uplink(self._loop, enrolment, identity.signer, queue, self._clock.now)
        self._device = DeviceMeter(Sensors(), state.root, lambda: self._uplink.connects)
        self._pursuit = Pursuit(
            self._loop,
            state,
            self._desk,
            self._clock,
            open_deployment=self._open,
            check=_check,
            on_accepted=lambda desired: self._renewer.want(desired.renew_issued_before_s),
            on_change=self._uplink.report,
        )
        self._deployments = self._pursuit.deployments
        self._samples = SampleDesk(
            self._loop,
            self._desk,
            SampleStore(state.commands, settings.samples),
            self._uplink,
            self._serving_of,
            self._clock.now,
            self._pursuit.refuse,
        )
        self._link = MqttLink(
            enrolment.broker,
            enrolment.connection,
            on_message=lambda message: self._loop.post(lambda: self._message(message)),
            on_connect=lambda: self._loop.post(self._connected),
            subscriptions=device_filters(enrolment.fleet, enrolment.connection),
            tls=tls if enrolment.broker.tls else None,
            will=self._uplink.will,
            keepalive_s=KEEPALIVE_S,
            notes_pings=True,
        )
        self._uplink.attach(self._link, self._compose)
        self._measuring = Measuring(
            self._house,
            self._desk,
            enrolment.profile,
            versions=lambda: self._capabilities,
            updating=lambda: any(deployment.on_its_way for deployment in list(self._deployments.values())),
            say=self._uplink.measured,
            refuse=self._pursuit.refuse,
        )
        self._freshener = Freshener(
            self._loop, self._desk, enrolment.connection, self._clock.now,
            stale=lambda: self._desk.stale_s(self._pursuit.accepted) is not None, on_change=self._stale_or_fresh,
        )  # fmt: skip
        self._renewer = Renewer(self._loop, identity, enrolment, self._clock.now, self._renewed)
        self._relaunching = False
        self._facts: dict[str, object] = {}
        self._installing = False
        self._units = self._gateway(settings, downloader, identity) if settings.mcu else {}

    def _gateway(self, settings: Settings, downloader: Downloader, identity: DeviceIdentity) -> dict[str, McuUnit]:
        """Return the microcontrollers of this device as units; only a gateway loads what they need."""
        from edgeops.agent.gateway.unit import McuUnit

        return {
            rules.name: McuUnit(
                rules,
                self._loop,
                self._state,
                self._enrolment,
                settings,
                desk=self._desk,
                downloader=downloader,
                signer=identity.signer,
                clock=self._clock,
                conditions=self._probe,
            )
            for rules in settings.mcu
        }

    def run(self) -> bool:
        """Serve, pursue what is desired and report, until a signal says to stop.

        Returns:
            Whether another version of the agent is to go on: `versions.relaunch`.

        Raises:
            EdgeopsError: E-AGENT-STATE; a defect. What was active is whole, and the next start goes on from there.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._loop.post(self._loop.stop))
        # A defect on any thread ends the agent, as one on the loop does: half an agent would be stuck, not safe.
        threading.excepthook = lambda args: self._loop.post(lambda: _raise(args.exc_value))
        try:
            # First of all serve, whatever else is away or damaged.
            self._pursuit.start()
            for unit in self._units.values():
                unit.start(self._link)
            self._samples.start()
            threading.Thread(target=self._find_capabilities, name="capabilities", daemon=True).start()
            self._loop.after(self._settings.telemetry_window_s, self._window_over)
            self._loop.after(TIDY_EVERY_S, self._tidy)
            self._look_into_inbox()
            self._measuring.start()
            self._look_at_device()
            self._link.start()
            self._renewer.look()
            self._freshener.look()
            self._write_facts()
            self._manager.ready(f"{self._enrolment.connection} in {self._enrolment.fleet}")
            self._say_alive()
            self._loop.run()
        finally:
            if self._relaunching:
                self._manager.hand_on()
            else:
                self._manager.stopping()
            self._stop()
        return self._relaunching

    def _relaunch(self) -> None:
        log.info("another version of the agent goes on")
        self._relaunching = True
        self._loop.stop()

    def _say_alive(self) -> None:
        """Feed the service manager's watchdog: a loop that stands still has the agent started anew."""
        if self._manager.watchdog_s is not None:
            self._manager.alive()
            self._loop.after(self._manager.watchdog_s / 3, self._say_alive)

    # Desired state

    def _message(self, message: Message) -> None:
        try:
            topic = parse_topic(message.topic)
        except EdgeopsError as error:
            log.warning("%s", error)
            return
        if (topic.fleet, topic.connection) != (self._enrolment.fleet, self._enrolment.connection):
            return
        pursued = self._pursuit if topic.unit == SELF_UNIT else self._units.get(topic.unit)
        if topic.leaf == "desired" and message.payload and pursued is not None:
            pursued.take(message.payload)
        elif topic.leaf == "cmd" and topic.id is not None and topic.unit == SELF_UNIT:
            self._command(topic.id, message.payload)

    def _command(self, id: str, envelope: bytes) -> None:
        try:
            kind = envelopes.payload_type(envelope)
            if kind not in (SAMPLES_TYPE, MEASURE_TYPE):
                raise EdgeopsError("E-DESIRED-UNSUPPORTED", f"this agent knows no command {kind[:100]!r}")
        except EdgeopsError as error:
            log.warning("a command is refused: %s", error)
            self._pursuit.refuse(error)
            return
        if kind == MEASURE_TYPE:
            self._measuring.take(id, envelope)
        else:
            self._samples.take(id, envelope)

    # What a person at the device wants

    def _look_into_inbox(self) -> None:
        """Take up a release that a person has brought, verified and copied on a thread, or the wish to go back."""
        file = next(inbox.waiting(self._state.root), None)
        if file is None or self._installing:
            self._loop.after(INBOX_EVERY_S, self._look_into_inbox)
            return
        self._installing = True

        def work() -> None:
            outcome: Component | EdgeopsError
            try:
                outcome = asked_for(file, self._state, self._enrolment.profile) or bring(
                    file, self._desk, self._house.fetcher, self._pursuit.unit.numbers
                )
            except EdgeopsError as error:
                outcome = error
            self._loop.post(lambda: self._brought(file, outcome))

        threading.Thread(target=work, name="install", daemon=True).start()

    def _brought(self, file: Path, outcome: Component | EdgeopsError) -> None:
        self._installing = False
        try:
            if isinstance(outcome, EdgeopsError):
                raise outcome
            if outcome.name not in self._deployments:
                self._pursuit.open(outcome.name).start()
            unit = self._pursuit.unit
            choice = LocalChoice(component=outcome, generation=unit.generation)
            self._pursuit.keep_unit(msgspec.structs.replace(unit, local={**unit.local, outcome.name: choice}))
            # A person who stands at the device has decided when.
            self._deployments[outcome.name].pursue(Wish(outcome, unit.generation, override_holds=True))
            said = inbox.Answer(component=outcome.name, release=outcome.release)
        except EdgeopsError as error:
            log.warning("what was asked for at the device is refused: %s", error)
            said = inbox.Answer(code=error.code, what=error.what, next_step=error.next_step)
        try:
            inbox.answer(file, said)
        except EdgeopsError as error:
            log.error("%s", error)
        self._loop.after(INBOX_EVERY_S, self._look_into_inbox)

    # What deployments say: `deployment.DeploymentObserver`

    def changed(self, deployment: Deployment) -> None:
        """A component's report differs from before."""
        self._pursuit.sets.look()
        self._uplink.report()
        self._loop.post(self._write_facts)

    def stepped(self, deployment: Deployment, percent: float | None, doing: str = "") -> None:
        """A component came a step further, or says what takes it so long."""
        if deployment.on_its_way:
            self._measuring.disturb("an update begins")
        self._uplink.progress(deployment, percent, doing)

    def counted(self, window: ModelWindow) -> None:
        """A model served."""
        self._windows.add(window)

    def busy(self, for_s: float) -> None:
        """The application does not want to be disturbed for so long."""
        log.info("the application is busy for %.0f s", for_s)
        self._probe.keep_undisturbed(for_s)
        if for_s > 0:
            self._measuring.disturb("the application is busy")

    def drawn(self, id: str, sample: bytes) -> None:
        """A request was drawn for a command."""
        self._samples.sampled(id, sample)

    def confirmed(self, name: str, number: int) -> None:
        """A release has proved itself: older ones need a signed downgrade from now on."""
        self._pursuit.confirmed(name, number)

    def settled(self) -> None:
        """A deployment ended: what was measured in it is told now, not when the window is over."""
        self._close_window()

    # Steps

    def _open(self, name: str, floor_number: int) -> Deployment:
        first = self._settings.http_port
        ports = [first + index for index in range(64)] if first else [0]
        return Deployment(name, self._house, floor_number=floor_number, ports=ports)

    def _serving_of(self, name: str) -> ModelServing | None:
        deployment = self._deployments.get(name)
        return deployment.serving if deployment is not None and isinstance(deployment.serving, ModelServing) else None

    def _renewed(self, identity: DeviceIdentity) -> None:
        """Speak with the new key; new connections show the new certificate, those that are up go on."""
        self._tls_context.load_cert_chain(self._tls.certificate, self._tls.key)
        self._link.show(self._tls)
        self._uplink.sign_with(identity.signer)
        for unit in self._units.values():
            unit.sign_with(identity.signer)

    def _stale_or_fresh(self) -> None:
        self._uplink.report()
        for unit in self._units.values():
            unit.report()

    def _connected(self) -> None:
        log.info("connected to the broker as %s", self._enrolment.connection)
        self._uplink.connected()
        for unit in self._units.values():
            unit.connected()
        self._samples.connected()

    def _compose(self, seq: int) -> Reported:
        return compose_report(
            self._enrolment,
            boot_id=self._uplink.boot_id,
            seq=seq,
            at_s=self._clock.now(),
            observed_generation=self._pursuit.unit.generation,
            components=self._pursuit.reports(),
            capabilities=self._capabilities,
            stale_s=self._desk.stale_s(self._pursuit.accepted),
            refused=self._pursuit.refused,
        )

    def _window_over(self) -> None:
        self._close_window()
        self._loop.after(self._settings.telemetry_window_s, self._window_over)

    def _close_window(self) -> None:
        models, end_s = self._windows.take(), self._clock.now()
        if models or self._device.due:
            self._uplink.keep_telemetry(models, self._device.take(), self._window_began_s, end_s)
        self._window_began_s = end_s

    def _look_at_device(self) -> None:
        self._device.look()
        self._loop.after(LOOK_EVERY_S, self._look_at_device)

    def _tidy(self) -> None:
        self._pursuit.tidy()
        if not self._installing and not any(deployment.fetching for deployment in self._deployments.values()):
            remove(self._house.fetcher.forget)
        self._loop.after(TIDY_EVERY_S, self._tidy)

    def _find_capabilities(self) -> None:
        """Ask a process of its own which runtimes are here: looking imports them."""
        command = [sys.executable, "-m", "edgeops.agent.worker", "capabilities"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=CAPABILITIES_WITHIN_S, check=True)
            found = {str(name): str(version) for name, version in json.loads(done.stdout).items()}
        except (subprocess.SubprocessError, ValueError, OSError) as error:
            log.error("the runtimes could not be asked for: %s", error)
            return

        def tell() -> None:
            self._capabilities = found
            self._uplink.report()

        self._loop.post(tell)

    def _write_facts(self) -> None:
        """Tell programs on this device where models are served."""
        serving = {
            name: deployment.serving
            for name, deployment in self._deployments.items()
            if deployment.active is not None and deployment.serving.endpoint
        }
        facts = {
            "pid": os.getpid(),
            "connection": self._enrolment.connection,
            "endpoints": {name: model.endpoint for name, model in serving.items()},
            "sockets": {name: f"unix:{model.socket_path}" for name, model in serving.items()},
        }
        if facts != self._facts:
            self._facts = facts
            write_facts(self._state.root, facts)

    def _stop(self) -> None:
        self._measuring.disturb("the agent ends")
        self._close_window()
        for unit in self._units.values():
            unit.close()
        self._uplink.leave()
        self._link.stop()
        for deployment in self._deployments.values():
            deployment.close()
        deadline = self._loop.after(STOP_WITHIN_S, self._loop.stop)
        # Posted, not called: `run` forgets a `stop` that came before it.
        self._loop.post(self._stop_when_ended)
        self._loop.run()
        deadline.cancel()
        for deployment in self._deployments.values():
            deployment.serving.kill_all()
        # What the workers counted until they ended is told after the next start.
        self._close_window()
        with contextlib.suppress(OSError):
            (self._state.root / FACTS_FILE).unlink(missing_ok=True)

    def _stop_when_ended(self) -> None:
        if all(deployment.serving.ended for deployment in self._deployments.values()):
            self._loop.stop()
        else:
            self._loop.after(0.05, self._stop_when_ended)


def _check(component: Component, _: Sequence[Component]) -> None:
    if component.kind is ComponentKind.UNKNOWN or component.kind is not kind_of(component.name):
        raise EdgeopsError("E-DESIRED-UNSUPPORTED", f"this agent cannot hold a {component.kind}")


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error
