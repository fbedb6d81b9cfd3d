"""What the device says to the fleet: signed and in order. What is said while there is no link is made up for later."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from paho.mqtt.client import MQTTMessageInfo
from securesystemslib.signer import Signer

from edgeops import __version__
from edgeops.agent import machine
from edgeops.agent.backlog import TelemetryQueue, thinned
from edgeops.agent.deployment import Deployment
from edgeops.agent.enrolment import Enrolment
from edgeops.agent.loop import Loop, Timer
from edgeops.agent.telemetry import divided
from edgeops.contracts.deployment import (
    MEASURE_FEATURE,
    SHADOW_FEATURE,
    ComponentReport,
    Failure,
    Presence,
    Progress,
    Reported,
)
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.measurement import MeasureAnswer
from edgeops.contracts.samples import SAMPLES_FEATURE, AnswerState, SamplesAnswer
from edgeops.contracts.telemetry import (
    MAX_BATCH_BYTES,
    MAX_MODELS,
    MAX_WINDOWS_PER_BATCH,
    DeviceWindow,
    ModelWindow,
    Telemetry,
    TelemetryBatch,
)
from edgeops.contracts.topics import SELF_UNIT, presence_topic, unit_topic
from edgeops.contracts.wire import encode
from edgeops.transport.mqtt import Heard, LastWill, MqttLink
from edgeops.trust import reported as statements

log = logging.getLogger(__name__)

REPORT_DELAY_S = 0.1
MAX_IN_FLIGHT = 4
# Of a time without link; so a slow link is free for what is measured now within seconds.
MAX_BYTES_IN_FLIGHT = 256 << 10
# Models of one window together; the rest of it is small.
MAX_WINDOW_BYTES = MAX_BATCH_BYTES - (16 << 10)
ACK_LOOK_EVERY_S = 0.5
# What the broker has acknowledged it may still lose if it dies before it saved its queues (mosquitto: every 30 s). It
# has kept it once it was heard so much later on the same connection: time alone says nothing of a broker that is away.
KEEP_ACKNOWLEDGED_S = 60.0
# Nobody at the broker had asked for it, since the control plane is not there yet: what is kept waits so long, twice as
# long each time, and then a part of it is told again to see. What is measured now is told once, and may find out too.
UNHEARD_AGAIN_S, UNHEARD_AGAIN_MOST_S = 15.0, 900.0
# What this agent knows that older ones do not.
FEATURES = (SHADOW_FEATURE, SAMPLES_FEATURE, MEASURE_FEATURE)


class Uplink:
    """Publishes reported state, progress, telemetry and presence.

    Args:
        loop: The supervisor's loop.
        enrolment: Who this device is.
        signer: The device's key.
        queue: Telemetry that was not sent yet.
        now: The time rule, seconds.
        unit: The unit that it speaks for.
    """

    def __init__(
        self,
        loop: Loop,
        enrolment: Enrolment,
        signer: Signer,
        queue: TelemetryQueue,
        now: Callable[[], float],
        *,
        unit: str = SELF_UNIT,
    ) -> None:
        self._unit = unit
        self.boot_id = secrets.token_hex(8)
        self._loop, self._enrolment, self._signer, self._queue, self._now = loop, enrolment, signer, queue, now
        self._link: MqttLink | None = None
        self.connects = 0
        self._seq = 0
        self._report: Timer | None = None
        self._compose: Callable[[int], Reported] | None = None
        # Window → the message that carries it, and its part of its bytes.
        self._in_flight: dict[int, tuple[MQTTMessageInfo, int]] = {}
        self._live: list[int] = []
        # Window → when it was acknowledged. It is kept, to be told again on a new connection, until the broker has kept
        # it; whoever has it knows it by its number.
        self._acknowledged: dict[int, float] = {}
        # While nobody is there to hear it, until when the rest waits, and how long next time; 0: somebody is there.
        self._unheard_until_s = self._unheard_wait_s = 0.0
        self._ack_look: Timer | None = None
        # The link's connection that `connected` was told of: what is heard on a newer one says nothing yet.
        self._connection = 0
        self._first_report: MQTTMessageInfo | None = None

    @property
    def heard(self) -> bool:
        """Whether the broker has a report of this boot."""
        try:
            return self._first_report is not None and self._first_report.is_published()
        except (RuntimeError, ValueError):  # paho's way to say that it did not take the message
            self._first_report = None
            return False

    @property
    def will(self) -> LastWill:
        """What the broker is to say when this device is gone."""
        return LastWill(self._presence_topic, self._presence(online=False))

    def attach(self, link: MqttLink, compose: Callable[[int], Reported]) -> None:
        """Take the link to speak on, and what makes a report of a sequence number."""
        self._link, self._compose = link, compose

    def sign_with(self, signer: Signer) -> None:
        """Use another key from now on, and say with it how the device stands: what it signed before is retained."""
        self._signer = signer
        self.report()

    def connected(self) -> None:
        """The link is up: say that the device is there, how it stands, and what was kept."""
        self.connects += 1
        if self._unit == SELF_UNIT:  # presence is the connection's
            self._publish(self._presence_topic, self._presence(online=True), retain=True)
        # What was in flight on the connection before is repeated by the MQTT client itself. What was acknowledged there
        # may have died with the broker, also what nobody has looked at yet.
        self._forget_acknowledged()
        self._acknowledged.clear()
        if self._link is not None:
            self._connection = self._link.heard.connection
        self._unheard_until_s = self._unheard_wait_s = 0.0
        self._live.clear()
        self.report()
        self.send_telemetry()

    def leave(self) -> None:
        """Say that the device goes; the broker does not say it by itself after a proper goodbye."""
        info = self._publish(self._presence_topic, self._presence(online=False), retain=True)
        if info is not None:
            try:
                info.wait_for_publish(2.0)
            except (RuntimeError, ValueError):  # paho's way to say that the link broke
                log.info("the broker was gone before the goodbye")

    def report(self) -> None:
        """Publish the reported state soon; what changes at once is told at once."""
        if self._report is None:
            self._report = self._loop.after(REPORT_DELAY_S, self._report_now)

    def progress(self, deployment: Deployment, percent: float | None, doing: str = "") -> None:
        """Publish a component's step. While the link is down it is left out: the reported state says it all later."""
        record = deployment.record
        failure = record.failure
        progress = Progress(
            fleet=self._enrolment.fleet,
            connection=self._enrolment.connection,
            unit=self._unit,
            boot_id=self.boot_id,
            seq=self.next_seq(),
            at_s=self._now(),
            component=record.name,
            generation=record.generation,
            step=record.step,
            state=record.state,
            release=record.want.release if record.want is not None else "",
            percent=percent,
            code=failure.code if failure is not None else None,
            detail=failure.what if failure is not None else record.held_reason or doing,
        )
        try:
            self._sign_and_publish("progress", progress)
        except EdgeopsError as error:
            log.error("a step cannot be told: %s", error)

    def measured(self, answer: MeasureAnswer) -> None:
        """Publish the answer to a command to measure. Without a link it is left out: the command comes again."""
        try:
            self._sign_and_publish("res", answer, id=answer.id)
        except EdgeopsError as error:
            log.error("an answer cannot be given: %s", error)

    def keep_telemetry(
        self, models: tuple[ModelWindow, ...], device: DeviceWindow | None, start_s: float, end_s: float
    ) -> None:
        """Keep a window on the disk, and send it when that is possible; what is too much for one becomes several."""
        for part in divided(models, MAX_MODELS, MAX_WINDOW_BYTES):
            self._keep(part, device, start_s, end_s)
            device = None
        self.send_telemetry()

    def _keep(self, models: tuple[ModelWindow, ...], device: DeviceWindow | None, start_s: float, end_s: float) -> None:
        window = Telemetry(
            fleet=self._enrolment.fleet,
            connection=self._enrolment.connection,
            unit=self._unit,
            boot_id=self.boot_id,
            seq=self.next_seq(),
            start_s=start_s,
            end_s=end_s,
            models=models,
            device=device,
        )
        if len(encode(window)) > MAX_BATCH_BYTES:
            log.warning("a window of %d bytes gives up its histograms", len(encode(window)))
            window = thinned(window)
        if self._queue.is_full:
            self._forget_acknowledged(at_once=True)
        try:
            number = self._queue.put(window)
        except EdgeopsError as error:
            log.error("a telemetry window is lost: %s", error)
        else:
            if self._link is not None and self._link.connected:
                self._live.append(number)

    def send_telemetry(self) -> None:
        """Send what is kept, a few messages at a time; a window is forgotten a while after the broker has it.

        What is measured now goes first and for itself, however much is left of a time without link; that follows from
        the oldest on, and shares signatures.
        """
        self._forget_acknowledged()
        while self._live:
            number = self._live[0]
            window = self._readable(number) if number in self._queue else None
            if window is not None and not self._send([(number, window)]):
                break
            self._live.pop(0)
        most = 0 if time.monotonic() < self._unheard_until_s else 1 if self._unheard_wait_s else MAX_IN_FLIGHT
        waiting = self._queue.waiting(MAX_IN_FLIGHT * MAX_WINDOWS_PER_BATCH + len(self._acknowledged))
        kept = ((number, self._readable(number)) for number in waiting if self._is_new(number))
        groups = grouped((number, window) for number, window in kept if window is not None)
        for _, group in zip(range(most), groups, strict=False):
            if self._bytes_in_flight >= MAX_BYTES_IN_FLIGHT or not self._send(group):
                break
        if self._ack_look is not None:
            self._ack_look.cancel()
            self._ack_look = None
        if self._in_flight or self._unheard_wait_s or self._acknowledged:
            unheard_s = max(ACK_LOOK_EVERY_S, self._unheard_until_s - time.monotonic())
            rest_s = unheard_s if self._unheard_wait_s else KEEP_ACKNOWLEDGED_S
            wait_s = ACK_LOOK_EVERY_S if self._in_flight else rest_s
            self._ack_look = self._loop.after(wait_s, self._look_again)

    def _is_new(self, number: int) -> bool:
        return number not in self._in_flight and number not in self._acknowledged and number not in self._live

    def _readable(self, number: int) -> Telemetry | None:
        window = self._queue.read(number)
        if window is None:
            self._queue.remove(number)
        return window

    def _send(self, group: list[tuple[int, Telemetry]]) -> bool:
        """Send windows under one signature; False: there is no link."""
        windows = [window for _, window in group]
        try:
            info = self._sign_and_publish("telemetry", windows[0] if len(windows) == 1 else self._batch(windows))
        except EdgeopsError as error:
            # It cannot be told by any message, today or tomorrow; and must not stand in the way of all others.
            log.error("%d telemetry windows are lost: %s", len(windows), error)
            for number, _ in group:
                self._queue.remove(number)
            return True
        if info is None:
            return False
        self._in_flight |= {number: (info, len(encode(window))) for number, window in group}
        return True

    @property
    def _bytes_in_flight(self) -> int:
        return sum(length for _, length in self._in_flight.values())

    def _batch(self, windows: list[Telemetry]) -> TelemetryBatch:
        return TelemetryBatch(
            fleet=self._enrolment.fleet, connection=self._enrolment.connection, unit=self._unit, windows=tuple(windows)
        )

    def answer(self, id: str, state: AnswerState, **said: Any) -> MQTTMessageInfo | None:
        """Publish an answer to a command, or a part of it; None: there is no link, and nothing was taken."""
        result = SamplesAnswer(
            fleet=self._enrolment.fleet,
            connection=self._enrolment.connection,
            unit=SELF_UNIT,
            id=id,
            state=state,
            at_s=self._now(),
            **said,
        )
        return self._sign_and_publish("res", result, id=id)

    def has_kept(self, acknowledged_s: float) -> bool:
        """Say whether the broker has surely kept what it had acknowledged at a time of the monotonic clock.

        Only for what was acknowledged since `connected` was last called.
        """
        heard = self._link.heard if self._link is not None else Heard()
        return heard.connection == self._connection and heard.at_s >= acknowledged_s + KEEP_ACKNOWLEDGED_S

    def next_seq(self) -> int:
        """Return the next sequence number of this boot."""
        self._seq += 1
        return self._seq

    def _look_again(self) -> None:
        self._ack_look = None
        self.send_telemetry()

    def _forget_acknowledged(self, *, at_once: bool = False) -> None:
        heard = unheard = False
        for number, (info, _) in list(self._in_flight.items()):
            try:
                done = info.is_published()
            except (RuntimeError, ValueError):  # paho's way to say that it did not take the message
                del self._in_flight[number]
                continue
            if done:
                del self._in_flight[number]
                if self._link is None or self._link.was_heard(info):
                    heard = True
                    self._acknowledged[number] = time.monotonic()
                else:
                    unheard = True
        if heard:
            self._unheard_until_s = self._unheard_wait_s = 0.0
        elif unheard:
            self._unheard_wait_s = min(max(UNHEARD_AGAIN_S, 2 * self._unheard_wait_s), UNHEARD_AGAIN_MOST_S)
            self._unheard_until_s = time.monotonic() + self._unheard_wait_s
        for number, acknowledged_s in list(self._acknowledged.items()):
            if at_once or self.has_kept(acknowledged_s):
                del self._acknowledged[number]
                if number in self._queue:
                    self._queue.remove(number)

    def _report_now(self) -> None:
        self._report = None
        if self._compose is None:
            return
        try:
            info = self._sign_and_publish("reported", self._compose(self.next_seq()), retain=True)
        except EdgeopsError as error:
            log.error("how the device stands cannot be told: %s", error)
            return
        self._first_report = self._first_report or info

    def _sign_and_publish(
        self, leaf: str, statement: statements.Said, *, retain: bool = False, id: str | None = None
    ) -> MQTTMessageInfo | None:
        if self._link is None or not self._link.connected:
            return None
        topic = unit_topic(self._enrolment.fleet, self._enrolment.connection, self._unit, leaf, id)
        return self._publish(topic, statements.sign(statement, self._signer), retain=retain)

    def _publish(self, topic: str, payload: bytes, *, retain: bool) -> MQTTMessageInfo | None:
        return None if self._link is None else self._link.publish(topic, payload, retain=retain)

    @property
    def _presence_topic(self) -> str:
        return presence_topic(self._enrolment.fleet, self._enrolment.connection)

    def _presence(self, *, online: bool) -> bytes:
        return encode(Presence(online=online, boot_id=self.boot_id))


def grouped(windows: Iterable[tuple[int, Telemetry]]) -> Iterator[list[tuple[int, Telemetry]]]:
    """Give windows in the groups that share a signature: within their bounds of number and bytes, in order."""
    group: list[tuple[int, Telemetry]] = []
    length = 0
    for number, window in windows:
        own = len(encode(window))
        if group and (len(group) == MAX_WINDOWS_PER_BATCH or length + own > MAX_BATCH_BYTES):
            yield group
            group, length = [], 0
        group.append((number, window))
        length += own
    if group:
        yield group


def compose_report(
    enrolment: Enrolment,
    *,
    boot_id: str,
    seq: int,
    at_s: float,
    observed_generation: int,
    components: tuple[ComponentReport, ...],
    capabilities: dict[str, str],
    stale_s: float | None,
    refused: Failure | None,
    unit: str = SELF_UNIT,
    profile: str = "",
    features: tuple[str, ...] = FEATURES,
) -> Reported:
    """Return what a unit says of itself; `profile`: its own, where it is not the device's."""
    return Reported(
        fleet=enrolment.fleet,
        connection=enrolment.connection,
        unit=unit,
        boot_id=boot_id,
        seq=seq,
        at_s=at_s,
        agent_version=__version__,
        profile=profile or enrolment.profile,
        observed_generation=observed_generation,
        components=components,
        capabilities=capabilities,
        features=features,
        attributes=machine.attributes(),
        stale_s=stale_s,
        refused=refused,
    )
