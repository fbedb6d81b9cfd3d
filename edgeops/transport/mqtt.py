"""The MQTT 5 link of agent and control plane: paho, with reconnection by full jitter and checked sizes."""

from __future__ import annotations

import functools
import logging
import math
import random
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgeops.contracts.enrolment import BrokerAddress
from edgeops.contracts.errors import EdgeopsError

log = logging.getLogger(__name__)

MAX_PACKET_BYTES = 1 << 20
SESSION_WITHOUT_END_S = 0xFFFF_FFFF
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
# MQTT 5, 3.4.2.1: the broker took the message, and nobody has asked for its topic.
_NO_SUBSCRIBERS = 0x10
_LOOPBACK = ("127.", "localhost", "::1")


class TlsFiles(NamedTuple):
    """Paths of the PEM files of mutual TLS."""

    ca: Path
    certificate: Path
    key: Path


class Message(NamedTuple):
    """A received message. `ack` must be called once it is safe, where the link was made with `manual_ack`.

    Once its connection is lost, `ack` does nothing: the broker gives the message again.
    """

    topic: str
    payload: bytes
    retain: bool
    ack: Callable[[], None]


class Heard(NamedTuple):
    """When the broker last said anything, and on which of this link's connections, counted from 1; 0: on none yet."""

    connection: int = 0
    at_s: float = -math.inf


class LastWill(NamedTuple):
    """What the broker says when this link dies: retained, QoS 1."""

    topic: str
    payload: bytes


def backoff_s(attempt: int, *, first_s: float = BACKOFF_FIRST_S, max_s: float = BACKOFF_MAX_S) -> float:
    """Return a random wait before retry number `attempt` (from 0): full jitter under a doubling, bounded ceiling.

    Source: Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
    """
    return random.uniform(0, min(max_s, first_s * 2 ** min(attempt, 30)))  # noqa: S311  spreads load, hides nothing


class MqttLink:
    """One client identity on one broker. Callbacks run on the link's own thread and must be quick.

    Args:
        broker: Where to connect; without TLS only to loopback addresses.
        client_id: MQTT identity.
        on_message: Called for each message.
        on_connect: Called after each successful connection, when subscriptions were asked for.
        on_disconnect: Called with a reason when the connection is lost or could not be made.
        subscriptions: Topic filters, subscribed with QoS 1 at each connection.
        tls: PEM files for mutual TLS; required if `broker.tls`.
        will: Last will.
        session_expiry_s: How long the broker keeps the session and its queue while the link is down;
            SESSION_WITHOUT_END_S: for ever.
        keepalive_s: MQTT keep-alive.
        receive_maximum: How many unacknowledged messages the broker may send.
        manual_ack: Messages are acknowledged by `Message.ack`, not on return of `on_message`.
        backoff_max_s: Longest wait before a further try to connect.
        notes_pings: `heard` counts its answers to keep-alives, too. Costs a little for each packet.

    Raises:
        EdgeopsError: E-BROKER-ADDRESS; no TLS and not a loopback address. E-CONFIG; TLS without its files.
    """

    def __init__(
        self,
        broker: BrokerAddress,
        client_id: str,
        *,
        on_message: Callable[[Message], None],
        on_connect: Callable[[], None] = lambda: None,
        on_disconnect: Callable[[str], None] = lambda reason: None,
        subscriptions: Sequence[str] = (),
        tls: TlsFiles | None = None,
        will: LastWill | None = None,
        session_expiry_s: int = 7 * 24 * 3600,
        keepalive_s: int = 300,
        receive_maximum: int = 100,
        manual_ack: bool = False,
        backoff_max_s: float = BACKOFF_MAX_S,
        notes_pings: bool = False,
    ) -> None:
        self._broker = broker
        self._heard = Heard()
        self._subscriptions = list(subscriptions)
        self._on_message, self._on_connect, self._on_disconnect = on_message, on_connect, on_disconnect
        self._attempt, self._backoff_max_s = 0, backoff_max_s
        self._context: ssl.SSLContext | None = None
        self._connected, self._subscribed = threading.Event(), threading.Event()
        self._subscribing: int | None = None
        self._session_kept = False
        self._unheard: set[int] = set()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5, manual_ack=manual_ack
        )
        self._manual_ack = manual_ack
        # Which connection it is. Held while a message is acknowledged: until then it is not made anew.
        self._connection, self._acknowledging = 0, threading.Lock()
        if broker.tls:
            if tls is None:
                raise EdgeopsError("E-CONFIG", "a broker with TLS needs certificate, key and CA files")
            self._context = ssl.create_default_context(cafile=str(tls.ca))
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
            self._context.load_cert_chain(str(tls.certificate), str(tls.key))
            self._client.tls_set_context(self._context)
        elif not broker.host.startswith(_LOOPBACK):
            raise EdgeopsError(
                "E-BROKER-ADDRESS", f"{broker.host} has no TLS and is no loopback address", "Use a broker with TLS."
            )
        if will is not None:
            self._client.will_set(will.topic, will.payload, qos=1, retain=True)
        self._client.max_inflight_messages_set(min(receive_maximum, 100))
        self._client.on_connect = self._connected_to_broker
        self._client.on_connect_fail = lambda *_: self._lost("cannot connect")
        self._client.on_disconnect = lambda _c, _u, _f, reason, _p: self._lost(str(reason))
        self._client.on_publish = self._acknowledged
        self._client.on_subscribe = self._granted
        self._client.on_message = self._received
        if notes_pings:
            self._client.on_log = self._logged
        self._properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        self._properties.SessionExpiryInterval = session_expiry_s
        self._properties.ReceiveMaximum = receive_maximum
        self._properties.MaximumPacketSize = MAX_PACKET_BYTES
        self._keepalive_s = keepalive_s

    @property
    def connected(self) -> bool:
        """Whether the link is up now."""
        return self._connected.is_set()

    @property
    def heard(self) -> Heard:
        """When the broker was last known to be there, by the monotonic clock."""
        return self._heard

    @property
    def session_kept(self) -> bool:
        """Whether the broker still had this identity's session, with its queue, at the last connection."""
        return self._session_kept

    def start(self) -> None:
        """Begin to connect, and keep trying until `stop`. Returns at once; a broker that is away is no error."""
        self._client.connect_async(
            self._broker.host,
            self._broker.port,
            keepalive=self._keepalive_s,
            clean_start=False,
            properties=self._properties,
        )
        self._client.loop_start()

    def show(self, tls: TlsFiles) -> None:
        """Show another certificate from the next connection on; the one that is up goes on."""
        if self._context is not None:
            self._context.load_cert_chain(str(tls.certificate), str(tls.key))

    def stop(self) -> None:
        """Disconnect and end the link's thread. The last will is not sent."""
        self._client.disconnect()
        self._client.loop_stop()
        self._connected.clear()
        self._subscribed.clear()

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait for the connection, and for the broker's answer to the subscriptions: what is published from then on is
        heard. Return whether it is up."""
        deadline_s = time.monotonic() + timeout_s
        return self._connected.wait(timeout_s) and self._subscribed.wait(max(0.0, deadline_s - time.monotonic()))

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> paho.MQTTMessageInfo | None:
        """Send a message; it is repeated after a reconnection until the broker has it (QoS 1).

        Returns:
            A handle with `is_published()` and `wait_for_publish(timeout)`; None if the link is down, then nothing
            was taken.

        Raises:
            EdgeopsError: E-WIRE-SIZE; larger than the broker takes: it would cut the connection again and again.
        """
        if len(payload) > MAX_PACKET_BYTES - 4096:
            raise EdgeopsError("E-WIRE-SIZE", f"{topic}: {len(payload)} bytes do not fit in an MQTT packet")
        if not self.connected:
            return None
        return self._client.publish(topic, payload, qos=qos, retain=retain)

    def was_heard(self, info: paho.MQTTMessageInfo) -> bool:
        """Whether somebody had asked for the topic of a message that the broker has acknowledged.

        Until it says otherwise, it had: a broker need not say (MQTT 5, 3.4.2.1; mosquitto does).
        """
        return info.mid not in self._unheard

    def _acknowledged(self, _client: object, _userdata: object, mid: int, reason: Any, _properties: object) -> None:
        self._note_heard()
        # Called before `is_published` is true. Packet identifiers are used again, one after the other, up to 65,535.
        if reason.value == _NO_SUBSCRIBERS:
            self._unheard.add(mid)
        else:
            self._unheard.discard(mid)

    def _connected_to_broker(
        self, client: paho.Client, _userdata: object, flags: Any, reason: Any, _properties: object
    ) -> None:
        if reason.is_failure:
            self._lost(str(reason))
            return
        self._attempt = 0
        self._heard = Heard(self._heard.connection + 1, time.monotonic())
        self._session_kept = bool(flags.session_present)
        if self._subscriptions:
            _, self._subscribing = client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in self._subscriptions])
        else:
            self._subscribed.set()
        self._connected.set()
        self._on_connect()

    def _note_heard(self) -> None:
        self._heard = self._heard._replace(at_s=time.monotonic())

    def _logged(self, _client: object, _userdata: object, _level: int, said: str) -> None:
        # Paho tells nobody else that a keep-alive was answered.
        if said == "Received PINGRESP":
            self._note_heard()

    def _granted(self, _client: object, _userdata: object, mid: int, reasons: Any, _properties: object) -> None:
        if mid != self._subscribing:
            return
        for topic, reason in zip(self._subscriptions, reasons, strict=False):
            if reason.is_failure:
                log.error("the broker refuses the subscription of %s: %s", topic, reason)
        self._subscribed.set()

    def _lost(self, reason: str) -> None:
        with self._acknowledging:
            self._connection += 1
        self._connected.clear()
        self._subscribed.clear()
        wait_s = max(0.05, backoff_s(self._attempt, max_s=self._backoff_max_s))
        self._attempt += 1
        # paho waits this long before it tries again.
        self._client.reconnect_delay_set(wait_s, wait_s)  # type: ignore[arg-type]  # floats work; the hint says int
        log.info("broker %s:%d: %s; next try in %.1f s", self._broker.host, self._broker.port, reason, wait_s)
        self._on_disconnect(reason)

    def _ack(self, mid: int, qos: int, connection: int) -> None:
        """Acknowledge a message on its own connection only.

        paho would keep the word for the next one, where it goes out before the connection is made, or means another
        message. What is not acknowledged comes again.
        """
        with self._acknowledging:
            if self._manual_ack and connection == self._connection:
                self._client.ack(mid, qos)

    def _received(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        self._note_heard()
        ack = functools.partial(self._ack, message.mid, message.qos, self._connection)
        try:
            topic = message.topic
        except UnicodeDecodeError:
            log.warning("dropped a message whose topic is not UTF-8")
            ack()
            return
        self._on_message(Message(topic, bytes(message.payload), message.retain, ack))
