"""A device without an agent: it joins over HTTPS, holds a real MQTT link with its own key, and obeys or refuses."""

from __future__ import annotations

import hashlib
import ssl
import threading
import urllib.request
from pathlib import Path

import msgspec
import urllib3
from securesystemslib.signer import Key

from edgeops.contracts.deployment import (
    Component,
    ComponentKind,
    ComponentReport,
    DeploymentState,
    Desired,
    Failure,
    Presence,
    Reported,
    Slot,
)
from edgeops.contracts.enrolment import EnrolmentToken, EnrolRequest, EnrolResponse
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.telemetry import Telemetry
from edgeops.contracts.topics import device_filters, parse_topic, presence_topic, unit_topic
from edgeops.contracts.wire import decode, encode
from edgeops.transport.mqtt import LastWill, Message, MqttLink, TlsFiles
from edgeops.trust import certificates
from edgeops.trust import desired as desired_state
from edgeops.trust import reported as statements
from edgeops.trust.device import DeviceIdentity


def join(directory: Path, token_text: str, *, profile: str, name: str) -> EnrolResponse:
    """Enrol as a device does: the CA is checked against the token before anything is trusted."""
    token = EnrolmentToken.from_text(token_text)
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    with urllib.request.urlopen(token.server + "/bootstrap/ca.pem", context=unverified, timeout=60) as answered:
        ca_pem = answered.read()
    certificates.check_ca(ca_pem, token.ca_sha256)
    identity = DeviceIdentity.create(directory)
    ca_file = directory / "bootstrap-ca.pem"
    ca_file.write_bytes(ca_pem)
    pool = urllib3.PoolManager(ca_certs=str(ca_file))
    root = pool.request("GET", token.server + "/bootstrap/root.json")
    assert hashlib.sha256(root.data).hexdigest() == token.root_sha256
    wish = EnrolRequest(secret=token.secret, csr_pem=identity.csr_pem(name).decode(), profile=profile, name=name)
    answer = pool.request(
        "POST", token.server + "/bootstrap/enrol", body=encode(wish), headers={"Content-Type": "application/json"}
    )
    assert answer.status == 200, answer.data
    joined = decode(answer.data, EnrolResponse, what="answer")
    identity.install(joined.certificate_pem.encode(), joined.ca_pem.encode())
    return joined


class FakeDevice:
    """Reports the end of everything desired at once: confirmed, or failed for releases in `refuses`.

    It may be a gateway: `behind` are the units that it speaks for, with their profiles.
    """

    def __init__(
        self,
        directory: Path,
        joined: EnrolResponse,
        desired_key: Key,
        *,
        refuses: tuple[str, ...] = (),
        boot_id: str = "b1",
        behind: dict[str, str] | None = None,
    ) -> None:
        self.name, self.fleet = joined.connection, joined.fleet
        self._identity = DeviceIdentity.load(directory)
        self._keys = {desired_key.keyid: desired_key}
        self.refuses = refuses
        self.failure = Failure(code="E-SELFTEST-GOLDEN", what="outputs differ", release="", at_s=0.0)
        self.boot_id, self._seq = boot_id, 0
        self.generations: list[int] = []
        self.desired: Desired | None = None
        self.active: dict[str, Slot] = {}
        self.asleep = False
        self.behind = behind or {}
        self.desired_behind: dict[str, Desired] = {}
        self.active_behind: dict[str, dict[str, Slot]] = {unit: {} for unit in self.behind}
        self._changed = threading.Condition()
        # Who holds it has what comes meanwhile wait, and may change what this device believes.
        self.hearing = threading.Lock()
        files = self._identity.tls_files()
        self.link = MqttLink(
            joined.broker,
            self.name,
            on_message=self._on_message,
            on_connect=self._on_connect,
            subscriptions=device_filters(self.fleet, self.name),
            tls=TlsFiles(*files) if joined.broker.tls else None,
            backoff_max_s=1.0,
            will=LastWill(presence_topic(self.fleet, self.name), encode(Presence(online=False, boot_id=boot_id))),
        )

    def start(self) -> FakeDevice:
        self.link.start()
        return self

    def stop(self) -> None:
        self.link.stop()

    def tls_context(self) -> ssl.SSLContext:
        files = self._identity.tls_files()
        context = ssl.create_default_context(cafile=str(files.ca))
        context.load_cert_chain(files.certificate, files.key)
        return context

    def wait_generation(self, generation: int, within_s: float = 90.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: generation in self.generations, within_s), self.generations

    def report(self, observed: int, components: tuple[ComponentReport, ...] = (), unit: str = "self") -> None:
        self._seq += 1
        statement = Reported(
            fleet=self.fleet, connection=self.name, unit=unit, boot_id=self.boot_id, seq=self._seq, at_s=0.0,
            agent_version="0.0.1", profile=self.behind.get(unit, "any"), observed_generation=observed,
            components=components,
        )  # fmt: skip
        envelope = statements.sign(statement, self._identity.signer)
        self.link.publish(unit_topic(self.fleet, self.name, unit, "reported"), envelope, retain=True)

    def window(self, seq: int) -> tuple[str, bytes]:
        """A signed telemetry window of no requests, and its topic."""
        statement = Telemetry(
            fleet=self.fleet, connection=self.name, unit="self", boot_id=self.boot_id, seq=seq, start_s=0.0, end_s=1.0,
            models=(),
        )  # fmt: skip
        return unit_topic(self.fleet, self.name, "self", "telemetry"), statements.sign(statement, self._identity.signer)

    def _on_connect(self) -> None:
        self.link.publish(
            presence_topic(self.fleet, self.name), encode(Presence(online=True, boot_id=self.boot_id)), retain=True
        )
        if self.desired is not None and not self.asleep:
            self.obey()
        for unit in self.behind:
            self._obey_behind(unit)

    def _on_message(self, message: Message) -> None:
        with self.hearing:
            self._take(message)

    def _take(self, message: Message) -> None:
        topic = parse_topic(message.topic)
        floor = max(self.generations, default=0)
        if topic.unit in self.behind:
            known = self.desired_behind.get(topic.unit)
            floor = 0 if known is None else known.generation
        try:
            desired = desired_state.verify(
                message.payload, keys=self._keys, fleet=self.fleet, connection=self.name, unit=topic.unit,
                floor_generation=floor, now_s=0.0,
            )  # fmt: skip
        except EdgeopsError as error:
            if error.code != "E-TRUST-REPLAY":
                raise
            return
        if topic.unit in self.behind:
            self.desired_behind[topic.unit] = desired
            self._obey_behind(topic.unit)
            return
        with self._changed:
            self.generations.append(desired.generation)
            self.desired = desired
            self._changed.notify_all()
        if not self.asleep:
            self.obey()

    def obey(self) -> None:
        assert self.desired is not None
        reports = tuple(self._end_of(component, self.desired.generation) for component in self.desired.components)
        self.report(self.desired.generation, reports)

    def _obey_behind(self, unit: str) -> None:
        wanted = self.desired_behind.get(unit)
        if wanted is None:
            self.report(0, unit=unit)
            return
        active = self.active_behind[unit]
        ends = tuple(self._end_of(component, wanted.generation, active) for component in wanted.components)
        self.report(wanted.generation, ends, unit=unit)

    def _end_of(self, component: Component, generation: int, active: dict[str, Slot] | None = None) -> ComponentReport:
        active = self.active if active is None else active
        refused = component.release in self.refuses
        if not refused:
            active[component.name] = Slot(release=component.release, digest=component.digest, number=1)
        return ComponentReport(
            name=component.name,
            kind=ComponentKind.MODEL,
            state=DeploymentState.FAILED if refused else DeploymentState.CONFIRMED,
            generation=generation,
            active=active.get(component.name),
            failure=msgspec.structs.replace(self.failure, release=component.release) if refused else None,
        )
