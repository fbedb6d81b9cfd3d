"""A message is acknowledged on the connection that it came by, and on no other."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading

import pytest
from scripted_broker import CONNACK, WITHIN_S, ScriptedBroker

from edgeops.transport import mqtt
from edgeops.transport.mqtt import Message, MqttLink

# MQTT 5, 3.3 and 3.4: a message on the topic `a` of QoS 1, its identifier, no properties.
IDENTIFIER = bytes((0, 7))
PUBLISH = bytes((0x32, 7)) + b"\0\1a" + IDENTIFIER + b"\0!"
PUBACK = bytes((0x40, 2)) + IDENTIFIER
CONNECT = 0x10


class LosingBroker(ScriptedBroker):
    """Gives a message, is gone, and takes the next connection; it answers that one when it is told to."""

    def __init__(self, *, loses: bool) -> None:
        self.loses, self.said = loses, b""
        self.connecting = threading.Event()
        super().__init__()

    def serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(1 << 12)
            connection.sendall(CONNACK + PUBLISH)
            if not self.loses:
                self._listen(connection)
                return
        connection, _ = self.listener.accept()
        with connection, contextlib.suppress(OSError):
            self.said += connection.recv(1 << 12)
            self.connecting.set()
            self.may_answer.wait(WITHIN_S)
            connection.sendall(CONNACK)
            self._listen(connection)

    def _listen(self, connection: socket.socket) -> None:
        while said := connection.recv(1 << 12):
            self.said += said

    def heard(self) -> bytes:
        """What came by the last connection, once it has ended."""
        self.close()
        return self.said


def told(*, loses: bool) -> bytes:
    """What a broker hears of a client that takes its time before it acknowledges a message."""
    broker, came = LosingBroker(loses=loses), queue.Queue[Message]()
    link = MqttLink(broker.address, "control", on_message=came.put, manual_ack=True, backoff_max_s=0.1)
    link.start()
    try:
        message = came.get(timeout=WITHIN_S)
        if loses:
            assert broker.connecting.wait(WITHIN_S)
        message.ack()
        broker.may_answer.set()
        assert link.wait_connected(WITHIN_S)
    finally:
        link.stop()
    return broker.heard()


def test_a_message_of_a_lost_connection_is_not_acknowledged_on_the_next() -> None:
    """There the identifier may be of another message, which would be lost."""
    heard = told(loses=True)
    assert heard[0] == CONNECT
    assert PUBACK not in heard
    assert PUBACK in told(loses=False)


def test_without_the_look_at_the_connection_the_next_one_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    monkeypatch.setattr(mqtt.MqttLink, "_ack", lambda self, mid, qos, _connection: self._client.ack(mid, qos))
    assert PUBACK in told(loses=True)
