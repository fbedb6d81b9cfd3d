"""Telemetry over a bad line: an uplink with its real log and MQTT link, a real broker, and faults between them.

What counts is what a registry would count: each window once, by boot and sequence number.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kept_ports
import pytest
from paho.mqtt.client import MQTTMessageInfo
from securesystemslib.signer import CryptoSigner
from served_fleet import needs_mosquitto

from edgeops.agent import uplink as uplinks
from edgeops.agent.backlog import TelemetryQueue
from edgeops.agent.enrolment import Enrolment
from edgeops.agent.loop import Loop
from edgeops.agent.uplink import Uplink
from edgeops.contracts.enrolment import BrokerAddress
from edgeops.contracts.telemetry import DeviceWindow, Telemetry
from edgeops.contracts.topics import unit_topic
from edgeops.control.broker.mosquitto import find_program
from edgeops.control.broker.start import BrokerTls, RunningBroker, start_broker
from edgeops.transport import mqtt
from edgeops.transport.mqtt import Message, MqttLink
from edgeops.trust import reported as statements

pytestmark = pytest.mark.timeout(600)
FLEET, DEVICE = "demo", "pi-1"
WEEK = 7 * 24 * 4
SIGNER = CryptoSigner.generate_ecdsa()
WITHIN_S = 60.0


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return value


class Line:
    """Carries connections to a broker, and may stop to without telling anybody."""

    def __init__(self, port: int) -> None:
        self._broker = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.dead = threading.Event()
        self.away = threading.Event()
        self.connections: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    gone = self.dead.is_set() or self.away.is_set()
                    server = None if gone else socket.create_connection(("127.0.0.1", self._broker))
                except OSError:
                    server = None
                if server is None:
                    client.close()
                    continue
                self.connections.append((client, server))
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not self.dead.is_set():
                    target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End the connections that are up."""
        for ends in self.connections:
            for end in ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self.connections.clear()

    def close(self) -> None:
        self._listener.close()
        self.cut()


class House:
    """A broker, and who listens there as the control plane does."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._kept = folder, kept_ports.keep()
        self.heard: list[Telemetry] = []
        self.broker: RunningBroker
        self.start()

    def start(self) -> None:
        self.broker = start_broker(
            "iotcore", self._folder / "broker", fleet=FLEET, control_identity="edgeops-control",
            bind_host="127.0.0.1", advertised_host="127.0.0.1", port=kept_ports.number(self._kept),
            tls=BrokerTls(b"", b"", b"", b""),
        )  # fmt: skip
        topic = unit_topic(FLEET, DEVICE, "self", "telemetry")
        self._ear = MqttLink(self.broker.address, "edgeops-control", on_message=self._hear, subscriptions=[topic])
        self._ear.start()
        assert self._ear.wait_connected(WITHIN_S)

    def _hear(self, message: Message) -> None:
        self.heard += statements.verify_telemetry(
            message.payload, key=SIGNER.public_key, fleet=FLEET, connection=DEVICE, unit="self"
        )

    def stop(self) -> None:
        self._ear.stop()
        self.broker.child.stop()

    @property
    def known(self) -> dict[tuple[str, int], Telemetry]:
        return {(window.boot_id, window.seq): window for window in self.heard}


class Speaker:
    """An uplink on a loop of its own."""

    def __init__(self, folder: Path, host: str, port: int, *, keepalive_s: int = 60) -> None:
        address = BrokerAddress(host=host, port=port, tls=False)
        enrolment = Enrolment(
            fleet=FLEET, connection=DEVICE, profile="pi", server="https://x", artifacts_url="https://x", broker=address
        )
        self.queue = TelemetryQueue(folder / "queue", 3000)
        self.now_s = 1_800_000_000.0
        self.loop = Loop()
        self.uplink = Uplink(self.loop, enrolment, SIGNER, self.queue, lambda: self.now_s)
        self.link = MqttLink(
            address, DEVICE, on_message=lambda message: None,
            on_connect=lambda: self.loop.post(lambda: self.uplink.connected()), will=self.uplink.will,
            keepalive_s=keepalive_s,
        )  # fmt: skip
        self.uplink.attach(self.link, lambda seq: None)  # type: ignore[arg-type,return-value]
        self.uplink.report = lambda: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self.loop.run, daemon=True)

    def keep(self, count: int) -> None:
        """Keep windows; where the loop runs already, on its thread."""
        if self._thread.is_alive():
            self._on_loop(lambda: self._keep(count))
        else:
            self._keep(count)

    def _keep(self, count: int) -> None:
        for _ in range(count):
            self.uplink.keep_telemetry((), DeviceWindow(uptime_s=1.0), self.now_s - 900, self.now_s)
            self.now_s += 900

    def _on_loop(self, action: Callable[[], None]) -> None:
        done = threading.Event()
        self.loop.post(lambda: (action(), done.set())[0])
        assert done.wait(WITHIN_S), "the loop stands still"

    def say(self) -> int:
        """Tell a window now; return its number."""
        self.keep(1)
        return self.uplink._seq

    def say_once_connected(self) -> list[int]:
        """Tell a window as soon as what was kept is on its way; its number stands in what is returned then."""
        told: list[int] = []
        connected = self.uplink.connected

        def and_say() -> None:
            connected()
            if not told:
                self._keep(1)
                told.append(self.uplink._seq)

        self.uplink.connected = and_say  # type: ignore[method-assign]
        return told

    def start(self) -> Speaker:
        self._thread.start()
        self.link.start()
        return self

    def stop(self) -> None:
        self.link.stop()
        self.loop.post(self.loop.stop)
        self._thread.join(WITHIN_S)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.stop()
    made._kept.close()


@pytest.fixture
def line(house: House) -> Iterator[Line]:
    made = Line(house.broker.address.port)
    yield made
    made.close()


@pytest.fixture
def speaker(line: Line, tmp_path: Path) -> Iterator[Speaker]:
    made = Speaker(tmp_path, "127.0.0.1", line.port)
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "BACKOFF_FIRST_S", 0.2)
    monkeypatch.setattr(mqtt.backoff_s, "__kwdefaults__", {"first_s": 0.1, "max_s": 0.5})
    monkeypatch.setattr(uplinks, "ACK_LOOK_EVERY_S", 0.05)


def test_after_a_week_away_what_is_measured_now_does_not_wait_for_it(house: House, speaker: Speaker) -> None:
    speaker.keep(WEEK)
    told = speaker.say_once_connected()
    speaker.start()
    wait_for(lambda: len(house.known) == WEEK + 1, "windows are missing")
    before = [window.seq for window in house.heard].index(told[0])
    # At most what was under way already.
    most = uplinks.MAX_IN_FLIGHT * uplinks.MAX_WINDOWS_PER_BATCH
    assert before <= most < WEEK, f"{before} windows of the week came first"
    assert sum(window.dropped_windows for window in house.known.values()) == 0


def test_the_line_is_cut_again_and_again_and_each_window_counts_once(
    house: House, line: Line, speaker: Speaker
) -> None:
    speaker.keep(200)
    speaker.start()
    for _ in range(5):
        wait_for(lambda: speaker.link.connected, "no connection")
        speaker.say()
        time.sleep(0.1)
        line.cut()
    wait_for(lambda: len(house.known) == 205, f"{len(house.known)} of 205 windows came")


def test_a_line_that_is_dead_without_a_word_is_left_for_a_new_one(house: House, line: Line, tmp_path: Path) -> None:
    """A half-open connection: whatever is sent is gone, and nobody says so."""
    speaker = Speaker(tmp_path, "127.0.0.1", line.port, keepalive_s=2).start()
    try:
        wait_for(lambda: speaker.link.connected, "no connection")
        line.dead.set()
        lost = [speaker.say() for _ in range(3)]
        wait_for(lambda: not speaker.link.connected, "the dead line is not noticed")
        assert not house.heard
        line.dead.clear()
        wait_for(lambda: {window.seq for window in house.heard} >= set(lost), "the windows are lost")
        assert len(house.known) == 3
    finally:
        speaker.stop()


def test_a_broker_that_begins_anew_with_nothing_hears_it_all(house: House, line: Line, speaker: Speaker) -> None:
    """The listener is back before the device: this broker does not say when nobody listens."""
    speaker.keep(50)
    speaker.start()
    wait_for(lambda: len(house.known) == 50, "nothing comes")
    house.stop()
    wait_for(lambda: not speaker.link.connected, "the end is not noticed")
    speaker.keep(50)
    house.heard.clear()
    line.away.set()
    house.start()
    line.away.clear()
    # What the first broker had acknowledged less than a minute before is told again: it may have died with it.
    wait_for(lambda: len(house.known) == 100, f"{len(house.known)} of 100 windows came")


def mosquitto(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """A broker that says when nobody has asked for a message, and keeps nothing over its end."""
    program = find_program()
    assert program is not None
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    return subprocess.Popen([program, "-c", str(config)], stderr=subprocess.DEVNULL)


@needs_mosquitto
@pytest.mark.parametrize("asks", [True, False])
def test_a_control_plane_that_comes_after_the_device_hears_what_was_told_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks: bool
) -> None:
    """Negative control: an uplink to which an acknowledgement is enough has told it to nobody."""
    monkeypatch.setattr(uplinks, "UNHEARD_AGAIN_S", 0.2)
    answers: list[bool] = []
    was_heard = MqttLink.was_heard

    def looked(link: MqttLink, info: MQTTMessageInfo) -> bool:
        answers.append(was_heard(link, info))
        return answers[-1] if asks else True

    monkeypatch.setattr(MqttLink, "was_heard", looked)
    kept = kept_ports.keep()
    port = kept_ports.number(kept)
    broker = mosquitto(tmp_path, port)
    speaker = Speaker(tmp_path, "127.0.0.1", port)
    heard: list[Telemetry] = []

    def hear(message: Message) -> None:
        heard.extend(
            statements.verify_telemetry(
                message.payload, key=SIGNER.public_key, fleet=FLEET, connection=DEVICE, unit="self"
            )
        )

    topic = unit_topic(FLEET, DEVICE, "self", "telemetry")
    address = BrokerAddress(host="127.0.0.1", port=port, tls=False)
    ear = MqttLink(address, "edgeops-control", on_message=hear, subscriptions=[topic])
    try:
        speaker.keep(40)
        speaker.start()
        wait_for(lambda: len(answers) >= 40, "the broker does not answer")
        assert not any(answers)
        ear.start()
        assert ear.wait_connected(WITHIN_S)
        wait_for(lambda: speaker.say() and any(window.seq > 40 for window in heard), "nothing is heard")
        before = set(range(1, 41))
        if asks:
            wait_for(lambda: before <= {window.seq for window in heard}, "what was told before is lost")
        else:
            assert not before & {window.seq for window in heard}
    finally:
        speaker.stop()
        ear.stop()
        broker.terminate()
        broker.wait(WITHIN_S)
        kept.close()


@needs_mosquitto
@pytest.mark.parametrize("looks", [True, False])
def test_a_broker_that_died_with_what_it_acknowledged_is_told_it_again_however_long_it_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    """Negative control: an uplink that only waits for a while has forgotten it when the broker is back."""
    monkeypatch.setattr(uplinks, "KEEP_ACKNOWLEDGED_S", 0.3)
    asked: list[float] = []
    has_kept = Uplink.has_kept

    def looked(uplink: Uplink, acknowledged_s: float) -> bool:
        over = time.monotonic() >= acknowledged_s + 0.3
        if over:
            asked.append(acknowledged_s)
        return has_kept(uplink, acknowledged_s) if looks else over

    monkeypatch.setattr(Uplink, "has_kept", looked)
    kept = kept_ports.keep()
    port = kept_ports.number(kept)
    heard: list[int] = []

    def hear(message: Message) -> None:
        speaks = {"key": SIGNER.public_key, "fleet": FLEET, "connection": DEVICE, "unit": "self"}
        heard.extend(window.seq for window in statements.verify_telemetry(message.payload, **speaks))  # type: ignore[arg-type]

    topic = unit_topic(FLEET, DEVICE, "self", "telemetry")
    address = BrokerAddress(host="127.0.0.1", port=port, tls=False)
    broker = mosquitto(tmp_path, port)
    speaker = Speaker(tmp_path, "127.0.0.1", port)
    ear = MqttLink(address, "edgeops-control", on_message=hear, subscriptions=[topic])
    try:
        ear.start()
        assert ear.wait_connected(WITHIN_S)
        speaker.start()
        wait_for(lambda: speaker.link.connected, "no connection")
        first = speaker.say()
        wait_for(lambda: first in heard and speaker.uplink._acknowledged, "the broker does not take it")
        broker.kill()
        broker.wait(WITHIN_S)
        wait_for(lambda: not speaker.link.connected and asked, "nobody looks whether the broker has kept it")
        ear.stop()
        heard.clear()
        broker = mosquitto(tmp_path, port)
        ear = MqttLink(address, "edgeops-control", on_message=hear, subscriptions=[topic])
        ear.start()
        assert ear.wait_connected(WITHIN_S)
        wait_for(lambda: speaker.link.connected, "no connection")
        after = speaker.say()
        wait_for(lambda: after in heard, "nothing is heard")
        if looks:
            wait_for(lambda: first in heard, "what the broker died with is lost")
        else:
            assert first not in heard
    finally:
        speaker.stop()
        ear.stop()
        broker.kill()
        broker.wait(WITHIN_S)
        kept.close()


@pytest.mark.parametrize("step_s", [-40 * 365 * 86400.0, 40 * 365 * 86400.0])
def test_a_clock_that_steps_loses_nothing_and_keeps_the_order(house: House, speaker: Speaker, step_s: float) -> None:
    speaker.keep(20)
    speaker.now_s += step_s
    speaker.keep(20)
    speaker.start()
    wait_for(lambda: speaker.link.connected, "no connection")
    speaker.now_s -= step_s
    speaker.say()
    wait_for(lambda: len(house.known) == 41, f"{len(house.known)} of 41 windows came")
    kept = [window.seq for window in house.heard if window.seq <= 40]
    assert kept == sorted(kept)


def test_a_name_that_cannot_be_resolved_costs_only_time(
    house: House, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, asked = socket.getaddrinfo, []
    working = threading.Event()

    def flaky(host: Any, *rest: Any, **named: Any) -> Any:
        if host != "localhost":
            return resolve(host, *rest, **named)
        asked.append(host)
        if not working.is_set():
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve("127.0.0.1", *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", flaky)
    speaker = Speaker(tmp_path, "localhost", line.port)
    speaker.keep(5)
    speaker.start()
    try:
        wait_for(lambda: len(asked) >= 3, "it does not try again")
        live = speaker.say()
        assert not house.heard
        working.set()
        wait_for(lambda: len(house.known) == 6, "the windows do not come")
        assert live in {window.seq for window in house.heard}
    finally:
        speaker.stop()


def test_what_was_kept_outlives_the_agent_and_is_told_by_its_old_boot(house: House, line: Line, tmp_path: Path) -> None:
    first = Speaker(tmp_path, "127.0.0.1", line.port)
    first.keep(30)
    second = Speaker(tmp_path, "127.0.0.1", line.port).start()
    try:
        wait_for(lambda: second.link.connected, "no connection")
        second.say()
        wait_for(lambda: len(house.known) == 31, f"{len(house.known)} of 31 windows came")
        assert {boot for boot, _ in house.known} == {first.uplink.boot_id, second.uplink.boot_id}
    finally:
        second.stop()


def test_if_the_live_window_waited_its_turn_a_week_would_come_before_it(
    house: House, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control."""
    monkeypatch.setattr(uplinks.Uplink, "_is_new", lambda self, n: n not in self._in_flight | self._acknowledged)
    speaker.uplink._live = _Nothing()
    speaker.keep(WEEK)
    told = speaker.say_once_connected()
    speaker.start()
    wait_for(lambda: len(house.known) == WEEK + 1, "windows are missing")
    assert [window.seq for window in house.heard].index(told[0]) >= WEEK - uplinks.MAX_WINDOWS_PER_BATCH


class _Nothing(list[int]):
    def append(self, number: int) -> None:
        """Forget it."""
