"""The broker's rules are what keeps devices apart: a hostile client that each rule stops gets through without it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from test_brokers import CONTROL, FLEET, WITHIN_S, Bench, needs_mosquitto, raw, run_bench, send, topic_of, wait_for

from edgeops.contracts.topics import PREFIX, control_filters
from edgeops.control.broker import mosquitto
from edgeops.transport.mqtt import Message, TlsFiles

pytestmark = needs_mosquitto


def without_line(option: str, text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith(option)) + "\n"


def loosened(rule: str, text: str) -> str:
    """The broker's files without one rule."""
    changes = {
        "writes": lambda: text.replace("pattern write", f"pattern write {PREFIX}/#\npattern write"),
        "reads": lambda: text.replace("pattern read", f"pattern read {PREFIX}/#\npattern read"),
        "certificates": lambda: (
            text.replace("require_certificate true", "require_certificate false")
            .replace("use_identity_as_username true\n", "")
            .replace("use_username_as_clientid true\n", "")
            .replace("allow_anonymous false", "allow_anonymous true")
        ),
        "client ids": lambda: text.replace("use_username_as_clientid true\n", ""),
        "packets": lambda: without_line("max_packet_size", text),
        "quality of service": lambda: without_line("max_qos", text),
        "silence": lambda: without_line("max_keepalive", text),
    }
    return changes[rule]()


@contextlib.contextmanager
def bench_without(rule: str | None, directory: Path) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("access_rules", "configuration"):
            real: Callable[..., str] = getattr(mosquitto, name)
            if rule is not None:
                patch.setattr(mosquitto, name, lambda *a, real=real: loosened(rule, real(*a)))
        benches = run_bench("mosquitto", directory)
        yield next(benches)
        next(benches, None)


@contextlib.contextmanager
def hostile(bench: Bench, files: TlsFiles | None, client_id: str = "any") -> Iterator[tuple[paho.Client, list[bytes]]]:
    client, got = raw(bench, files, client_id)
    try:
        yield client, got
    finally:
        client.disconnect()
        client.loop_stop()


# How long is waited for what a guarded broker does not let happen, and for what a loosened one does.
GUARDED_S, LOOSENED_S = 2.0, 60.0


def happens(condition: Callable[[], object], within_s: float) -> bool:
    """Whether something comes true in a while."""
    deadline_s = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return bool(condition())


def device(bench: Bench) -> TlsFiles:
    return bench.authority.files(bench.directory / "hostile", "dev-a")


def writes_as_another(bench: Bench, within_s: float) -> bool:
    """Whether dev-a can report as dev-b, or want something of itself."""
    got: list[Message] = []
    control = bench.link(CONTROL, got, subscriptions=[*control_filters(FLEET), f"{PREFIX}/{FLEET}/d/+/+/desired"])
    with hostile(bench, device(bench)) as (client, _):
        wait_for(client.is_connected, "not connected")
        for topic in (topic_of("dev-b", "reported"), topic_of("dev-a", "desired")):
            client.publish(topic, b"forged", qos=1).wait_for_publish(WITHIN_S)
        client.publish(topic_of("dev-a", "log"), b"end", qos=1).wait_for_publish(WITHIN_S)
        wait_for(lambda: any(message.payload == b"end" for message in got), "its own message did not arrive")
    control.stop()
    return sum(message.payload == b"forged" for message in got) == 2


def reads_of_another(bench: Bench, within_s: float) -> bool:
    """Whether dev-a hears what dev-b should run."""
    control = bench.link(CONTROL, [])
    with hostile(bench, device(bench)) as (client, got):
        wait_for(client.is_connected, "not connected")
        answered: list[object] = []
        client.on_subscribe = lambda *said: answered.append(said)
        for wish in (f"{PREFIX}/{FLEET}/#", topic_of("dev-a", "desired")):
            client.subscribe([(wish, paho.SubscribeOptions(qos=1))])
        wait_for(lambda: len(answered) == 2, "the broker did not answer")
        send(control, topic_of("dev-b", "desired"), b"of b")
        send(control, topic_of("dev-a", "desired"), b"of a")
        wait_for(lambda: b"of a" in got, "it does not get its own")
    control.stop()
    return b"of b" in got


def comes_in_without_a_certificate(bench: Bench, within_s: float) -> bool:
    """Whether anybody may connect."""
    with hostile(bench, None) as (client, _):
        return happens(client.is_connected, within_s)


def takes_over_a_session(bench: Bench, within_s: float) -> bool:
    """Whether dev-a can throw dev-b out by using its client id."""
    gone: list[object] = []
    with hostile(bench, bench.authority.files(bench.directory / "victim", "dev-b"), "dev-b") as (victim, _):
        wait_for(victim.is_connected, "not connected")
        victim.on_disconnect = lambda *args: gone.append(args)
        with hostile(bench, device(bench), "dev-b") as (client, _):
            wait_for(client.is_connected, "not connected")
            return happens(lambda: gone, within_s)


def floods(bench: Bench, within_s: float) -> bool:
    """Whether a message of four times the allowed length goes through to who takes messages of any length."""
    control = bench.authority.files(bench.directory / "control", CONTROL)
    with hostile(bench, control, CONTROL) as (taker, got), hostile(bench, device(bench)) as (client, _):
        wait_for(lambda: taker.is_connected() and client.is_connected(), "not connected")
        answered: list[object] = []
        taker.on_subscribe = lambda *said: answered.append(said)
        taker.subscribe([(topic_of("dev-a", "log"), paho.SubscribeOptions(qos=1))])
        wait_for(lambda: answered, "the broker did not answer")
        client.publish(topic_of("dev-a", "log"), bytes(4 * mosquitto.MAX_PACKET_BYTES), qos=1)
        return happens(lambda: got, within_s)


def keeps_messages_for_four_steps(bench: Bench, within_s: float) -> bool:
    """Whether dev-a can have the broker hold messages of quality 2, which it then never finishes."""
    got: list[Message] = []
    control = bench.link(CONTROL, got, subscriptions=control_filters(FLEET))
    with hostile(bench, device(bench)) as (client, _):
        wait_for(client.is_connected, "not connected")
        client.publish(topic_of("dev-a", "log"), b"held", qos=2)
        arrived = happens(lambda: any(message.payload == b"held" for message in got), within_s)
    control.stop()
    return arrived


def is_silent_for_hours(bench: Bench, within_s: float) -> bool:
    """Whether the broker lets a client say that it may be silent for eighteen hours."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="any", protocol=paho.MQTTv5)
    files = device(bench)
    client.tls_set(str(files.ca), str(files.certificate), str(files.key))
    told: list[object] = []
    client.on_connect = lambda _c, _u, _f, _r, properties: told.append(getattr(properties, "ServerKeepAlive", None))
    client.connect(bench.broker.address.host, bench.broker.address.port, keepalive=65535)
    client.loop_start()
    wait_for(lambda: told, "not connected")
    client.disconnect()
    client.loop_stop()
    return told != [mosquitto.MAX_KEEPALIVE_S]


RULES: dict[str, Callable[[Bench, float], bool]] = {
    "writes": writes_as_another,
    "reads": reads_of_another,
    "certificates": comes_in_without_a_certificate,
    "client ids": takes_over_a_session,
    "packets": floods,
    "quality of service": keeps_messages_for_four_steps,
    "silence": is_silent_for_hours,
}


@pytest.mark.parametrize("rule", sorted(RULES))
def test_without_its_rule_the_broker_lets_the_hostile_client_through(rule: str, tmp_path: Path) -> None:
    with bench_without(None, tmp_path / "guarded") as bench:
        assert not RULES[rule](bench, GUARDED_S)
    with bench_without(rule, tmp_path / "loosened") as bench:
        assert RULES[rule](bench, LOOSENED_S)
