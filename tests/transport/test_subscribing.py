"""A link counts as there once the broker has answered its subscriptions: what is said before may be heard by nobody."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

import pytest
from scripted_broker import CONNACK, WITHIN_S, ScriptedBroker

from edgeops.transport.mqtt import MqttLink

# MQTT 5, 3.9: the answer to a subscription, with what is granted or refused.
GRANTED, REFUSED = 0x01, 0x87


def suback(subscribe: bytes, reason: int) -> bytes:
    return bytes((0x90, 4)) + subscribe[2:4] + bytes((0, reason))


class SlowBroker(ScriptedBroker):
    """Takes a connection, and answers its subscription when it is told to."""

    def __init__(self) -> None:
        self.asked, self.reason = threading.Event(), GRANTED
        super().__init__()

    def serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(1 << 12)
            connection.sendall(CONNACK)
            subscribe = connection.recv(1 << 12)
            self.asked.set()
            self.may_answer.wait(WITHIN_S)
            connection.sendall(suback(subscribe, self.reason))
            while connection.recv(1 << 12):
                pass


@pytest.fixture
def broker() -> Iterator[SlowBroker]:
    made = SlowBroker()
    yield made
    made.close()


@pytest.fixture
def link(broker: SlowBroker) -> Iterator[MqttLink]:
    made = MqttLink(broker.address, "control", on_message=lambda _: None, subscriptions=["a/b"])
    made.start()
    yield made
    made.stop()


def test_who_waits_for_a_link_waits_for_the_answer_to_its_subscriptions(broker: SlowBroker, link: MqttLink) -> None:
    assert broker.asked.wait(WITHIN_S)
    assert link.connected
    assert not link.wait_connected(0.2)
    broker.may_answer.set()
    assert link.wait_connected(WITHIN_S)


def test_a_subscription_that_is_refused_is_said(
    broker: SlowBroker, link: MqttLink, caplog: pytest.LogCaptureFixture
) -> None:
    broker.reason = REFUSED
    assert broker.asked.wait(WITHIN_S)
    with caplog.at_level(logging.ERROR, "edgeops.transport.mqtt"):
        broker.may_answer.set()
        assert link.wait_connected(WITHIN_S)
    assert "refuses the subscription of a/b: Not authorized" in caplog.text
