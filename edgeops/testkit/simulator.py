"""A fleet of simulated devices: each has its own key, certificate and MQTT connection, and signs what it says.

One thread holds thousands of them. What they cannot do is run a model: they report the release that they are told to
have as confirmed, or as failed where `refuses` names it, and invent the latencies that they tell of.
"""

from __future__ import annotations

import heapq
import itertools
import random
import select
import ssl
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions
from securesystemslib.signer import Key

from edgeops.contracts.deployment import (
    Component,
    ComponentReport,
    DeploymentState,
    Desired,
    Failure,
    Presence,
    Reported,
    Slot,
)
from edgeops.contracts.enrolment import BrokerAddress
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.telemetry import ModelWindow, Telemetry
from edgeops.contracts.topics import SELF_UNIT, device_filters, parse_topic, presence_topic, unit_topic
from edgeops.contracts.wire import encode
from edgeops.control.assignment import new_unit
from edgeops.control.database import Database
from edgeops.control.models import Device
from edgeops.trust import desired as desired_state
from edgeops.trust import reported as statements
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.device import DeviceIdentity

KEEPALIVE_S = 300
POLL_S = 0.1
LOOK_AFTER_EVERY_S = 5.0
CONNECT_WITHIN_S = 30.0


class Identity(NamedTuple):
    """A device that is enrolled: its name, profile, and the folder of its key and certificate."""

    name: str
    profile: str
    directory: Path


def enroll_many(
    database: Database, authority: FleetAuthority, directory: Path, count: int, profiles: Sequence[str]
) -> list[Identity]:
    """Enrol devices straight in the registry, without tokens: thousands would take HTTPS too long.

    Args:
        database: The registry; no control plane need serve it.
        authority: The fleet's CA.
        directory: Where their keys and certificates are written.
        count: How many.
        profiles: Taken in turns.
    """
    made = []
    now_s = time.time()
    rows: list[Device] = []
    for number, profile in zip(range(count), itertools.cycle(profiles), strict=False):
        name = f"sim-{number:05d}"
        identity = DeviceIdentity.create(directory / name)
        certificate = authority.issue_device(identity.csr_pem(name), name)
        identity.install(certificate, authority.ca_pem)
        rows.append(
            Device(
                connection=name,
                profile=profile,
                labels={"site": f"site-{number % 10}"},
                certificate_pem=certificate.decode(),
                enrolled_at_s=now_s,
                revoked_at_s=None,
                agent_version="simulated",
                online=False,
                presence_at_s=None,
                last_seen_s=None,
                rejected_messages=0,
                rejected_last="",
            )
        )
        made.append(Identity(name, profile, directory / name))
    with database.write() as session:
        session.add_all(rows)
        session.flush()
        session.add_all(new_unit(identity.name, SELF_UNIT, profile=identity.profile, now_s=now_s) for identity in made)
    return made


class SimulatedDevice:
    """One device: a paho client without a thread of its own, driven by the simulator.

    Args:
        identity: Who it is.
        fleet: Its fleet.
        broker: Where it connects.
        desired_keys: Keys that may sign its desired state.
        refuses: Versions that it reports as failed.
    """

    def __init__(
        self,
        identity: Identity,
        fleet: str,
        broker: BrokerAddress,
        desired_keys: dict[str, Key],
        refuses: frozenset[str],
    ) -> None:
        self.name, self._fleet, self._broker, self._keys, self._refuses = (
            identity.name, fleet, broker, desired_keys, refuses,
        )  # fmt: skip
        device = DeviceIdentity.load(identity.directory)
        self._signer = device.signer
        self.profile = identity.profile
        self.boot_id = f"{random.getrandbits(64):016x}"
        self._seq = 0
        self.generation = 0
        self.running: dict[str, Slot] = {}
        self.sent = self.acknowledged = self.refused = 0
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=identity.name, protocol=paho.MQTTv5)
        if broker.tls:
            files = device.tls_files()
            context = ssl.create_default_context(cafile=str(files.ca))
            context.load_cert_chain(str(files.certificate), str(files.key))
            self.client.tls_set_context(context)
        self.client.will_set(
            presence_topic(fleet, self.name), encode(Presence(online=False, boot_id=self.boot_id)), qos=1, retain=True
        )
        self.client.on_connect = self._on_connect
        self.client.on_message = self._on_message
        self.client.on_publish = self._on_publish
        self.online = False

    def connect(self) -> None:
        """Connect and introduce itself; the handshake is waited for, its answers are not.

        Raises:
            OSError: The broker cannot be reached, or refuses TLS.
        """
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 86400
        self.client.connect(
            self._broker.host, self._broker.port, keepalive=KEEPALIVE_S, clean_start=False, properties=properties
        )

    def tell_window(self, latencies_ms: Iterable[float]) -> None:
        """Publish one signed telemetry window for each model that it runs."""
        sketch = QuantileSketch.of(latencies_ms)
        now_s = time.time()
        models = tuple(
            ModelWindow(model=name, release=slot.release, digest=slot.digest, latency_ms=sketch, requests=sketch.count)
            for name, slot in self.running.items()
        )
        window = Telemetry(
            fleet=self._fleet, connection=self.name, unit=SELF_UNIT, boot_id=self.boot_id, seq=self._next(),
            start_s=now_s - 1, end_s=now_s, models=models,
        )  # fmt: skip
        self._publish("telemetry", statements.sign(window, self._signer))

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    def _publish(self, leaf: str, payload: bytes, *, retain: bool = False) -> None:
        topic = unit_topic(self._fleet, self.name, SELF_UNIT, leaf)
        self.client.publish(topic, payload, qos=1, retain=retain)
        self.sent += 1

    def _on_publish(self, *_: Any) -> None:
        self.acknowledged += 1

    def _on_connect(self, client: paho.Client, _userdata: object, _flags: object, reason: Any, _props: object) -> None:
        if reason.is_failure:
            return
        self.online = True
        client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in device_filters(self._fleet, self.name)])
        online = encode(Presence(online=True, boot_id=self.boot_id))
        client.publish(presence_topic(self._fleet, self.name), online, qos=1, retain=True)
        self.sent += 1
        self._report(())

    def _on_message(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        topic = parse_topic(message.topic)
        if topic.leaf != "desired":
            return
        try:
            wanted = desired_state.verify(
                bytes(message.payload), keys=self._keys, fleet=self._fleet, connection=self.name, unit=topic.unit,
                floor_generation=self.generation, now_s=0.0,
            )  # fmt: skip
        except EdgeopsError:
            self.refused += 1
            return
        self._obey(wanted)

    def _obey(self, wanted: Desired) -> None:
        self.generation = wanted.generation
        self._report(tuple(self._end_of(component) for component in wanted.components))

    def _end_of(self, component: Component) -> ComponentReport:
        failure = None
        if component.release in self._refuses:
            failure = Failure(code="E-SELFTEST-GOLDEN", what="simulated", release=component.release, at_s=0.0)
        else:
            self.running[component.name] = Slot(release=component.release, digest=component.digest, number=1)
        return ComponentReport(
            name=component.name,
            kind=component.kind,
            state=DeploymentState.CONFIRMED if failure is None else DeploymentState.FAILED,
            generation=self.generation,
            active=self.running.get(component.name),
            failure=failure,
        )

    def _report(self, components: tuple[ComponentReport, ...]) -> None:
        report = Reported(
            fleet=self._fleet, connection=self.name, unit=SELF_UNIT, boot_id=self.boot_id, seq=self._next(),
            at_s=time.time(), agent_version="simulated", profile=self.profile, observed_generation=self.generation,
            components=components,
        )  # fmt: skip
        self._publish("reported", statements.sign(report, self._signer), retain=True)


class Simulator:
    """Drives many devices on one thread.

    Args:
        devices: Which.
        telemetry_every_s: How often each tells of a window; None: never.
        requests: Requests in each window.
    """

    def __init__(
        self, devices: Sequence[SimulatedDevice], *, telemetry_every_s: float | None = None, requests: int = 100
    ) -> None:
        self.devices = list(devices)
        self._every_s, self._requests = telemetry_every_s, requests
        self._stopping, self._hushed = threading.Event(), threading.Event()
        self._poll = select.epoll()
        self._by_fd: dict[int, SimulatedDevice] = {}
        self._thread = threading.Thread(target=self._run, name="simulator", daemon=True)
        self.windows = 0

    def start(self) -> None:
        """Connect all, one after the other, then drive them until `stop`.

        Raises:
            OSError: The broker cannot be reached.
        """
        self._thread.start()
        for device in self.devices:
            device.connect()
            fd = device.client.socket().fileno()  # type: ignore[union-attr]  # it has just connected
            self._by_fd[fd] = device
            self._poll.register(fd, select.EPOLLIN)

    def wait_online(self, within_s: float = CONNECT_WITHIN_S) -> bool:
        """Wait until all are connected; return whether they are."""
        deadline_s = time.monotonic() + within_s
        while not all(device.online for device in self.devices):
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.05)
        return True

    def hush(self, within_s: float) -> bool:
        """Have no more windows told, and wait until the broker has acknowledged all that was said.

        Returns:
            Whether it has.
        """
        self._hushed.set()
        deadline_s = time.monotonic() + within_s
        while sum(device.sent - device.acknowledged for device in self.devices):
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.05)
        return True

    def stop(self) -> None:
        """Disconnect all."""
        self._stopping.set()
        self._thread.join()
        for device in self.devices:
            device.client.disconnect()
        self._poll.close()

    def _run(self) -> None:
        due: list[tuple[float, int]] = []
        if self._every_s is not None:
            now_s = time.monotonic()
            due = [(now_s + random.uniform(0, self._every_s), n) for n in range(len(self.devices))]  # noqa: S311
            heapq.heapify(due)
        look_s = time.monotonic() + LOOK_AFTER_EVERY_S
        while not self._stopping.is_set():
            for fd, _ in self._poll.poll(POLL_S, 1024):
                self._read(self._by_fd[fd])
            now_s = time.monotonic()
            while due and due[0][0] <= now_s and not self._hushed.is_set():
                at_s, number = heapq.heappop(due)
                assert self._every_s is not None
                heapq.heappush(due, (at_s + self._every_s, number))
                self._tell(self.devices[number])
            if now_s >= look_s:
                look_s = now_s + LOOK_AFTER_EVERY_S
                for device in list(self._by_fd.values()):
                    device.client.loop_misc()
                    if device.client.want_write():
                        device.client.loop_write()

    def _tell(self, device: SimulatedDevice) -> None:
        if device.online and device.running:
            device.tell_window(random.expovariate(0.1) for _ in range(self._requests))
            self.windows += 1
            if device.client.want_write():
                device.client.loop_write()

    def _read(self, device: SimulatedDevice) -> None:
        while True:
            fd = device.client.socket()
            if fd is None or device.client.loop_read() != paho.MQTT_ERR_SUCCESS:
                device.online = False
                self._forget(device)
                return
            if device.client.want_write():
                device.client.loop_write()
            if not isinstance(fd, ssl.SSLSocket) or not fd.pending():
                return

    def _forget(self, device: SimulatedDevice) -> None:
        for fd, known in list(self._by_fd.items()):
            if known is device:
                del self._by_fd[fd]
                # A closed socket has left the set by itself.
                try:
                    self._poll.unregister(fd)
                except (OSError, ValueError):
                    return
