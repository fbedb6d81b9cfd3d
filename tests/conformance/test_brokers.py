"""What edgeops needs of a broker, on real ones; and what only mosquitto does: keep every device to its own topics."""

from __future__ import annotations

import contextlib
import os
import pwd
import queue
import signal
import socket
import ssl
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import paho.mqtt.client as paho
import pytest
from certificates import DAY, TestAuthority
from paho.mqtt.enums import CallbackAPIVersion

from edgeops.contracts.deployment import Presence
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.topics import control_filters, device_filters, presence_topic, unit_topic
from edgeops.contracts.wire import encode
from edgeops.control.broker import iotcore, mosquitto
from edgeops.control.broker.start import BrokerTls, RunningBroker, choose, start_broker
from edgeops.transport.mqtt import LastWill, Message, MqttLink, TlsFiles

FLEET = "f1"
CONTROL = "edgeops-control"
WITHIN_S = 60.0

needs_mosquitto = pytest.mark.skipif(
    mosquitto.find_program() is None, reason="the program mosquitto is not installed: make system"
)


class Bench(NamedTuple):
    """A running broker and the authority that it trusts."""

    broker: RunningBroker
    authority: TestAuthority
    directory: Path

    def link(self, name: str, received: list[Message] | queue.SimpleQueue[Message], **options: object) -> MqttLink:
        put = received.append if isinstance(received, list) else received.put
        tls = self.authority.files(self.directory / "clients", name) if self.broker.address.tls else None
        link = MqttLink(self.broker.address, name, on_message=put, tls=tls, **options)  # type: ignore[arg-type]
        link.start()
        assert link.wait_connected(WITHIN_S)
        return link


def run_bench(kind: str, directory: Path) -> Iterator[Bench]:
    if kind == "mosquitto" and mosquitto.find_program() is None:
        pytest.skip("the program mosquitto is not installed: make system")
    authority = TestAuthority()
    server = authority.issue("server", server=True)
    broker = start_broker(
        kind,  # type: ignore[arg-type]
        directory / "broker",
        fleet=FLEET,
        control_identity=CONTROL,
        bind_host="127.0.0.1",
        advertised_host="127.0.0.1",
        port=0,
        tls=BrokerTls(authority.pem, server.pem, server.key_pem, authority.revoked()),
    )
    yield Bench(broker, authority, directory)
    broker.child.stop()


@pytest.fixture(scope="module", params=["mosquitto", "iotcore"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield from run_bench(request.param, tmp_path_factory.mktemp("broker"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield from run_bench("mosquitto", tmp_path_factory.mktemp("broker"))


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def send(link: MqttLink, topic: str, payload: bytes, *, retain: bool = False) -> None:
    info = link.publish(topic, payload, retain=retain)
    assert info is not None
    info.wait_for_publish(WITHIN_S)
    assert info.is_published()


def topic_of(device: str, leaf: str) -> str:
    return unit_topic(FLEET, device, "self", leaf, "c1" if leaf in ("cmd", "res") else None)


def of(device: str, got: list[Message]) -> list[bytes]:
    """The payloads that came from one device."""
    return [message.payload for message in got if f"/d/{device}/" in message.topic]


def test_retained_desired_state_reaches_a_device_that_connects_later(bench: Bench) -> None:
    control = bench.link(CONTROL, [])
    send(control, topic_of("late", "desired"), b"one", retain=True)
    send(control, topic_of("late", "desired"), b"two", retain=True)
    got: list[Message] = []
    device = bench.link("late", got, subscriptions=device_filters(FLEET, "late"))
    wait_for(lambda: got, "nothing was received")
    assert [(m.topic, m.payload, m.retain) for m in got] == [(topic_of("late", "desired"), b"two", True)]
    device.stop()
    control.stop()


def test_reports_reach_the_control_plane_once_and_in_order(bench: Bench) -> None:
    got: list[Message] = []
    control = bench.link(CONTROL, got, subscriptions=control_filters(FLEET))
    wait_for(lambda: control.connected, "not connected")
    device = bench.link("talker", [])
    for number in range(200):
        send(device, topic_of("talker", "telemetry"), b"%d" % number)
    wait_for(lambda: len(of("talker", got)) >= 200, "messages are missing")
    assert [int(payload) for payload in of("talker", got)] == list(range(200))
    device.stop()
    control.stop()


def test_a_session_keeps_what_comes_while_the_control_plane_is_away(bench: Bench) -> None:
    control = bench.link(CONTROL, [], subscriptions=control_filters(FLEET))
    control.stop()
    device = bench.link("keeper", [])
    for number in range(50):
        send(device, topic_of("keeper", "progress"), b"%d" % number)
    got: list[Message] = []
    control = bench.link(CONTROL, got, subscriptions=control_filters(FLEET))
    wait_for(lambda: len(of("keeper", got)) >= 50, "the queue was not kept")
    assert [int(payload) for payload in of("keeper", got)] == list(range(50))
    device.stop()
    control.stop()


def test_unacknowledged_messages_come_again(bench: Bench) -> None:
    """The registry acknowledges after its commit: what was not committed must come again, what was must not."""
    got: list[Message] = []
    options = {"subscriptions": control_filters(FLEET), "manual_ack": True, "receive_maximum": 10}
    control = bench.link(CONTROL, got, **options)
    device = bench.link("dup", [])
    send(device, topic_of("dup", "progress"), b"committed")
    send(device, topic_of("dup", "progress"), b"not committed")
    wait_for(lambda: len(of("dup", got)) == 2, "messages are missing")
    for message in got:
        if message.payload != b"not committed":
            message.ack()
    time.sleep(0.2)  # the acknowledgements are on their way when the link is cut
    control.stop()
    again: list[Message] = []
    control = bench.link(CONTROL, again, **options)
    wait_for(lambda: of("dup", again), "nothing came again")
    assert of("dup", again) == [b"not committed"]
    for message in again:
        message.ack()
    control.stop()
    device.stop()


def test_the_last_will_says_that_a_device_is_gone(bench: Bench) -> None:
    got: list[Message] = []
    control = bench.link(CONTROL, got, subscriptions=[presence_topic(FLEET, "mortal")])
    gone = encode(Presence(online=False, boot_id="b1"))
    device = bench.link("mortal", [], will=LastWill(presence_topic(FLEET, "mortal"), gone))
    send(device, presence_topic(FLEET, "mortal"), b"here", retain=True)
    wait_for(lambda: any(m.payload == b"here" for m in got), "presence did not arrive")
    # As a power cut does: the connection breaks without a DISCONNECT.
    device._client.socket().shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
    wait_for(lambda: any(m.payload == gone for m in got), "the last will did not come")
    device.stop()
    control.stop()


@pytest.fixture
def own_iotcore(tmp_path: Path) -> Iterator[Bench]:
    yield from run_bench("iotcore", tmp_path)


def test_a_broker_that_dies_is_started_again_and_links_return(own_iotcore: Bench) -> None:
    got: list[Message] = []
    lost: list[str] = []
    control = own_iotcore.link(CONTROL, got, subscriptions=control_filters(FLEET), on_disconnect=lost.append)
    pid = own_iotcore.broker.child.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: lost, "the link did not notice")
    wait_for(lambda: own_iotcore.broker.child.pid not in (None, pid), "it was not started again")
    wait_for(lambda: control.connected, "the link did not return")
    send(control, topic_of("any", "progress"), b"alive")
    wait_for(lambda: any(m.payload == b"alive" for m in got), "the subscription is gone")
    control.stop()


def test_a_stopped_broker_is_gone(own_iotcore: Bench) -> None:
    pid = own_iotcore.broker.child.pid
    own_iotcore.broker.child.stop()
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_iotcore_refuses_every_address_but_loopback(host: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeopsError, match="E-BROKER-ADDRESS"):
        iotcore.prepare(tmp_path, host, 1883)
    assert list(tmp_path.iterdir()) == []
    assert iotcore.prepare(tmp_path, "127.0.0.1", 1883)  # negative control


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(EdgeopsError, match="E-BROKER"):
        start_broker(
            choose("auto"),
            tmp_path / "broker",
            fleet=FLEET,
            control_identity=CONTROL,
            bind_host="127.0.0.1",
            advertised_host="127.0.0.1",
            port=taken.getsockname()[1],
            tls=BrokerTls(b"", b"", b"", b""),
        )


# What follows only mosquitto does.


def raw(
    bench: Bench, files: TlsFiles | None, client_id: str = "any", **connect: object
) -> tuple[paho.Client, list[bytes]]:
    """A hostile client: no checks of ours. Returns it connected or refused, and what it receives."""
    got: list[bytes] = []
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
    if files is not None:
        client.tls_set(str(files.ca), str(files.certificate), str(files.key))
    else:
        client.tls_set(str(bench.directory / "broker" / "ca.pem"))
    client.on_message = lambda _c, _u, message: got.append(bytes(message.payload))
    client.connect(bench.broker.address.host, bench.broker.address.port, **connect)  # type: ignore[arg-type]
    client.loop_start()
    return client, got


def of_old(purpose: int, version: ssl.TLSVersion) -> ssl.SSLContext:
    """TLS settings as they were before 1.2 was asked for: with ciphers and digests that are not secure any more."""
    context = ssl.SSLContext(purpose)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def handshake(address: tuple[str, int], files: TlsFiles, newest: ssl.TLSVersion) -> str | None:
    """Return the version of TLS that a server speaks with a client that has nothing newer; None: it refuses."""
    context = of_old(ssl.PROTOCOL_TLS_CLIENT, newest)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(files.certificate, files.key)
    try:
        with socket.create_connection(address, WITHIN_S) as plain, context.wrap_socket(plain) as connection:
            return connection.version()
    except OSError:
        return None


@contextlib.contextmanager
def old_server(files: TlsFiles) -> Iterator[tuple[str, int]]:
    """A server of the old days; any certificate will do for it."""
    context = of_old(ssl.PROTOCOL_TLS_SERVER, ssl.TLSVersion.TLSv1_1)
    context.load_cert_chain(files.certificate, files.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                context.wrap_socket(listener.accept()[0], server_side=True).close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()
        thread.join(WITHIN_S)


@needs_mosquitto
class TestOnlyItsOwn:
    def test_no_certificate_is_refused(self, guarded: Bench) -> None:
        self._refused(guarded, None)

    def test_a_foreign_certificate_is_refused(self, guarded: Bench, tmp_path: Path) -> None:
        foreign = TestAuthority("other").files(tmp_path, "dev-a")
        self._refused(guarded, TlsFiles(guarded.directory / "broker" / "ca.pem", foreign.certificate, foreign.key))

    def test_an_expired_certificate_is_refused(self, guarded: Bench, tmp_path: Path) -> None:
        expired = guarded.authority.issue("dev-a", valid_until=-DAY)
        self._refused(guarded, guarded.authority.files(tmp_path, "dev-a", expired))

    def test_plain_text_is_refused(self, guarded: Bench) -> None:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="plain", protocol=paho.MQTTv5)
        client.connect(guarded.broker.address.host, guarded.broker.address.port)
        client.loop_start()
        time.sleep(0.5)
        assert not client.is_connected()
        client.loop_stop()

    def test_tls_before_1_2_is_refused(self, guarded: Bench, tmp_path: Path) -> None:
        """Even to a client that has nothing better, and a good certificate."""
        files = guarded.authority.files(tmp_path, "dev-a")
        address = (guarded.broker.address.host, guarded.broker.address.port)
        assert handshake(address, files, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        assert handshake(address, files, ssl.TLSVersion.TLSv1_1) is None
        # Control: it is the broker that refuses; a server that allows it speaks so with this client.
        with old_server(files) as lenient:
            assert handshake(lenient, files, ssl.TLSVersion.TLSv1_1) == "TLSv1.1"

    def test_a_fleet_certificate_is_let_in(self, guarded: Bench, tmp_path: Path) -> None:
        """The negative control of all refusals above."""
        client, _ = raw(guarded, guarded.authority.files(tmp_path, "dev-a"))
        wait_for(client.is_connected, "a good certificate was refused")
        client.disconnect()
        client.loop_stop()

    @pytest.mark.parametrize("leaf", ["reported", "progress", "telemetry", "log", "res"])
    def test_a_device_writes_its_own_and_no_others(self, guarded: Bench, tmp_path: Path, leaf: str) -> None:
        got: list[Message] = []
        control = guarded.link(CONTROL, got, subscriptions=control_filters(FLEET))
        client, _ = raw(guarded, guarded.authority.files(tmp_path, "dev-a"))
        wait_for(client.is_connected, "not connected")
        client.publish(topic_of("dev-b", leaf), b"forged", qos=1).wait_for_publish(WITHIN_S)
        client.publish(topic_of("dev-a", leaf), b"own", qos=1).wait_for_publish(WITHIN_S)
        wait_for(lambda: any(m.payload == b"own" for m in got), "its own message did not arrive")
        assert not any(m.payload == b"forged" for m in got)
        client.disconnect()
        client.loop_stop()
        control.stop()

    def test_a_device_cannot_write_its_own_desired_state(self, guarded: Bench, tmp_path: Path) -> None:
        got: list[Message] = []
        watcher = guarded.link(CONTROL, got, subscriptions=[f"eo/v1/{FLEET}/d/#"])
        client, _ = raw(guarded, guarded.authority.files(tmp_path, "dev-a"))
        wait_for(client.is_connected, "not connected")
        for leaf in ("desired", "cmd/1"):
            topic = f"eo/v1/{FLEET}/d/dev-a/self/{leaf}"
            client.publish(topic, b"forged", qos=1, retain=True).wait_for_publish(WITHIN_S)
        client.publish(topic_of("dev-a", "log"), b"end", qos=1).wait_for_publish(WITHIN_S)
        wait_for(lambda: any(m.payload == b"end" for m in got), "its own message did not arrive")
        assert not any(m.payload == b"forged" for m in got)
        send(watcher, topic_of("dev-a", "desired"), b"by control", retain=True)
        wait_for(lambda: any(m.payload == b"by control" for m in got), "the control plane may write it")
        client.disconnect()
        client.loop_stop()
        watcher.stop()

    @pytest.mark.parametrize(
        "wish",
        [
            "#",
            "eo/v1/+/d/+/+/desired",
            f"eo/v1/{FLEET}/d/dev-b/self/desired",
            f"eo/v1/{FLEET}/d/dev-b/self/cmd/+",
            "eo/v1/+/d/+/+/cmd/+",
            "$SYS/#",
        ],
    )
    def test_a_device_reads_nothing_of_others(self, guarded: Bench, tmp_path: Path, wish: str) -> None:
        client, got = raw(guarded, guarded.authority.files(tmp_path, "dev-a"))
        wait_for(client.is_connected, "not connected")
        answered: list[object] = []
        client.on_subscribe = lambda *said: answered.append(said)
        client.subscribe(
            [(wish, paho.SubscribeOptions(qos=1)), (topic_of("dev-a", "desired"), paho.SubscribeOptions(qos=1))]
        )
        control = guarded.link(CONTROL, [])
        client.subscribe([(topic_of("dev-a", "cmd"), paho.SubscribeOptions(qos=1))])
        wait_for(lambda: len(answered) == 2, "the broker did not answer")
        for leaf in ("desired", "cmd"):
            send(control, topic_of("dev-b", leaf), b"secret of b")
            send(control, topic_of("dev-a", leaf), b"for a: " + leaf.encode())
        wait_for(lambda: {b"for a: desired", b"for a: cmd"} <= set(got), "it does not get its own")
        assert b"secret of b" not in got
        client.disconnect()
        client.loop_stop()
        control.stop()

    def test_a_client_id_cannot_take_over_another_session(self, guarded: Bench, tmp_path: Path) -> None:
        victim = guarded.link("dev-b", [])
        client, _ = raw(guarded, guarded.authority.files(tmp_path, "dev-a"), client_id="dev-b")
        wait_for(client.is_connected, "not connected")
        time.sleep(0.3)
        assert victim.connected
        client.disconnect()
        client.loop_stop()
        # Negative control: the same identity does take over its own session.
        lost: list[str] = []
        first = guarded.link("dev-c", [], on_disconnect=lost.append)
        second, _ = raw(guarded, guarded.authority.files(tmp_path, "dev-c"), client_id="whatever")
        wait_for(lambda: lost, "the older connection of the same identity stays")
        second.disconnect()
        second.loop_stop()
        first.stop()
        victim.stop()

    def test_an_oversized_message_is_not_spread(self, guarded: Bench, tmp_path: Path) -> None:
        got: list[Message] = []
        control = guarded.link(CONTROL, got, subscriptions=control_filters(FLEET))
        client, _ = raw(guarded, guarded.authority.files(tmp_path, "dev-a"))
        wait_for(client.is_connected, "not connected")
        client.publish(topic_of("dev-a", "log"), b"x" * (2 << 20), qos=0)
        device = guarded.link("dev-b", [])
        send(device, topic_of("dev-b", "log"), b"after")
        wait_for(lambda: any(m.payload == b"after" for m in got), "the broker does not serve others")
        assert all(len(m.payload) < 1 << 20 for m in got)
        client.loop_stop()
        device.stop()
        control.stop()

    @staticmethod
    def _refused(bench: Bench, files: TlsFiles | None) -> None:
        try:
            client, _ = raw(bench, files)
        except OSError:
            return
        time.sleep(0.7)  # TLS 1.3 tells a client of its certificate's refusal after the handshake
        assert not client.is_connected()
        client.loop_stop()


def test_the_private_files_of_the_broker_are_private(guarded: Bench) -> None:
    directory = guarded.directory / "broker"
    assert directory.stat().st_mode & 0o077 == 0
    for name in ("server.key", "acl", "mosquitto.conf"):
        assert (directory / name).stat().st_mode & 0o077 == 0


@needs_mosquitto
@pytest.mark.parametrize("mode", [0o755, 0o700], ids=["open home", "private home"])
def test_root_does_not_run_the_broker_as_root(mode: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a child another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(mode)
        for bench in run_bench("mosquitto", Path(folder)):
            pid = bench.broker.child.pid
            owner = Path(f"/proc/{pid}").stat().st_uid
            link = bench.link(CONTROL, [])
            link.stop()
    assert owner == pwd.getpwnam("mosquitto").pw_uid
