"""A broker that is up for a moment only: links try again seldom, as long after as they say, and not all together."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import paho.mqtt.client as paho
import pytest

from edgeops.contracts.enrolment import BrokerAddress
from edgeops.transport import mqtt
from edgeops.transport.mqtt import MqttLink

LINKS, TRIES, WITHIN_S = 20, 3, 60.0
# MQTT 5, 3.2: connection accepted, no session, no properties.
CONNACK = bytes((0x20, 3, 0, 0, 0))
PINGREQ, PINGRESP = bytes((0xC0, 0)), bytes((0xD0, 0))
ANSWERS = {"gone before it answers": b"", "gone once it has answered": CONNACK}


class Seen(NamedTuple):
    """Client id → when it tried, and how long it said that it would wait after each try."""

    tries: dict[str, list[float]]
    waits: dict[str, list[float]]


class Waits(logging.Handler):
    """Keeps what links say of their next try, by link."""

    def __init__(self) -> None:
        super().__init__()
        self.by_link: dict[str, list[float]] = defaultdict(list)

    def emit(self, record: logging.LogRecord) -> None:
        if "next try in" in str(record.msg):
            assert isinstance(record.args, tuple)
            assert record.threadName is not None
            self.by_link[record.threadName.removeprefix("paho-mqtt-client-")].append(record.args[3])  # type: ignore[arg-type]


@contextlib.contextmanager
def momentary_broker(answer: bytes, tries: dict[str, list[float]]) -> Iterator[int]:
    """Take each connection's first packet, perhaps answer, and go; yield the port."""
    with socket.create_server(("127.0.0.1", 0), backlog=LINKS) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        at_s, said = time.monotonic(), connection.recv(1 << 12)
                        tries[said[said.rindex(b"link-") :][:7].decode()].append(at_s)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def seen(answer: bytes) -> Seen:
    """Let many links meet such a broker at once, until each has tried some times."""
    tries: dict[str, list[float]] = defaultdict(list)
    heard = Waits()
    mqtt.log.addHandler(heard)
    level = mqtt.log.level
    mqtt.log.setLevel(logging.INFO)
    try:
        with momentary_broker(answer, tries) as port:
            address = BrokerAddress(host="127.0.0.1", port=port, tls=False)
            links = [MqttLink(address, f"link-{n:02d}", on_message=lambda _: None) for n in range(LINKS)]
            for link in links:
                link.start()
            deadline_s = time.monotonic() + WITHIN_S
            while len(tries) < LINKS or min(map(len, tries.values())) < TRIES:
                assert time.monotonic() < deadline_s, {name: len(times) for name, times in tries.items()}
                time.sleep(0.02)
            with ThreadPoolExecutor(LINKS) as pool:
                list(pool.map(MqttLink.stop, links))
    finally:
        mqtt.log.removeHandler(heard)
        mqtt.log.setLevel(level)
    return Seen(tries, heard.by_link)


def too_soon(found: Seen) -> list[str]:
    """Links that tried before their wait was over, or that wait next to nothing."""
    return [
        name
        for name, times in found.tries.items()
        for before, after, wait in zip(times, times[1:], found.waits[name], strict=False)
        if after - before < wait - 0.01 or wait < 0.05
    ]


def together(found: Seen) -> bool:
    """Whether two thirds of all links would come back within a tenth of a second: as decided, however busy the machine
    is. By chance that would be less than once in a million times; half of them, once in ten thousand."""
    most = LINKS * 2 // 3
    for number in range(TRIES - 1):
        waits = sorted(found.waits[name][number] for name in found.tries)
        if any(waits[place + most] - waits[place] < 0.1 for place in range(LINKS - most)):
            return True
    return False


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_links_wait_before_each_try_and_each_differently(answer: bytes) -> None:
    found = seen(answer)
    assert too_soon(found) == []
    assert not together(found)


def test_without_waiting_or_without_chance_they_would_spin_or_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    with monkeypatch.context() as patched:
        patched.setattr(mqtt, "backoff_s", lambda attempt, **_: 0.3)
        assert together(seen(CONNACK))
    delay = paho.Client.reconnect_delay_set
    monkeypatch.setattr(paho.Client, "reconnect_delay_set", lambda self, *_: delay(self, 0.001, 0.001))  # type: ignore[arg-type]
    assert too_soon(seen(CONNACK))


@pytest.mark.parametrize("notes_pings", [True, False])
def test_an_answer_to_a_keep_alive_says_that_the_broker_is_there(notes_pings: bool) -> None:
    """Negative control: a link that does not look at them does not hear of a broker that has nothing else to say."""
    pings = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            nonlocal pings
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 12)
                connection.sendall(CONNACK)
                while said := connection.recv(2):
                    pings += said == PINGREQ
                    connection.sendall(PINGRESP)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        address = BrokerAddress(host="127.0.0.1", port=listener.getsockname()[1], tls=False)
        link = MqttLink(address, "link", on_message=lambda _: None, keepalive_s=1, notes_pings=notes_pings)
        before = link.heard
        link.start()
        try:
            assert link.wait_connected(WITHIN_S)
            first = link.heard
            deadline_s = time.monotonic() + WITHIN_S
            while time.monotonic() < deadline_s and pings < 3 and link.heard == first:
                time.sleep(0.05)
            last = link.heard
        finally:
            link.stop()
        thread.join(WITHIN_S)
    assert (before.connection, first.connection, last.connection) == (0, 1, 1)
    assert (last.at_s > first.at_s) is notes_pings
