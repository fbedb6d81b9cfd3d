"""Tells devices what they should run and do: signs and publishes desired state, again when it expires or was lost, and
commands."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from paho.mqtt.client import MQTTMessageInfo
from sqlalchemy import or_, select, update

from edgeops.contracts.deployment import Desired
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.samples import SamplesCommand
from edgeops.contracts.topics import unit_topic
from edgeops.control import commands, measuring
from edgeops.control.assignment import components_of
from edgeops.control.database import Database
from edgeops.control.fleet_trust import FleetTrust
from edgeops.control.models import Device, Unit
from edgeops.control.rigs import runs
from edgeops.transport.mqtt import MqttLink

log = logging.getLogger(__name__)

VALID_S = 30 * 86400.0
RENEW_BEFORE_S = 15 * 86400.0
BATCH = 500
PUBACK_WITHIN_S = 30.0
LOOK_EVERY_S = 30.0
RETRY_AFTER_S = 2.0


class _Pending(NamedTuple):
    connection: str
    unit: str
    wanted: int
    desired: Desired


class DesiredPublisher:
    """Publishes every desired state that is not yet with the broker, on a thread of its own.

    The registry is the truth: what is to be published is found there, so nothing is lost by a crash at any point.

    Args:
        database: The registry.
        fleet: The fleet.
        sign: Turns a desired state into its signed envelope.
        sign_samples: Turns a wish for samples into its signed envelope.
        keyid: The key that `sign` signs with now; when it is another one, all is published again.
        link: The control plane's MQTT link.
        look_every_s: How often to look without being woken.
        send_commands: Sends what else waits for devices and rigs, over this link.
    """

    def __init__(
        self,
        database: Database,
        fleet: str,
        sign: Callable[[Desired], bytes],
        sign_samples: Callable[[SamplesCommand], bytes],
        keyid: Callable[[], str],
        link: Callable[[], MqttLink],
        *,
        look_every_s: float = LOOK_EVERY_S,
        send_commands: Callable[[MqttLink], None] = lambda link: None,
    ) -> None:
        self._look_every_s, self._send_commands = look_every_s, send_commands
        self._database, self._fleet, self._sign, self._keyid, self._link = database, fleet, sign, keyid, link
        self._sign_samples = sign_samples
        # What was signed before this process began is published again when its link is made.
        self._signed_with = keyid()
        self._wake = threading.Event()
        self._all_again = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="desired-publisher", daemon=True)

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def wake(self) -> None:
        """Say that there may be something to publish."""
        self._wake.set()

    def wake_all(self) -> None:
        """Say that the link was made anew: the broker may have lost what it kept, so all is published again."""
        self._all_again.set()
        self._wake.set()

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread; what was not published is found again at the next start."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                if not self._database.holds("publisher"):
                    self._wake.wait(self._look_every_s)
                    continue
                if self._signed_with != (keyid := self._keyid()):
                    log.warning("desired state is signed by another key from now on: %s", keyid[:16])
                    self._all_again.set()
                    self._signed_with = keyid
                if self._all_again.is_set():
                    want_all_again(self._database)
                    self._all_again.clear()
                more = publish_batch(self._database, self._fleet, self._sign, self._link(), time.time())
                commands.publish_due(self._database, self._fleet, self._sign_samples, self._link(), time.time())
                self._send_commands(self._link())
            except EdgeopsError as error:
                log.error("desired state could not be published: %s", error)
                more = None
            if not more:
                self._wake.wait(RETRY_AFTER_S if more is None else self._look_every_s)


def send_commands(database: Database, trust: FleetTrust, link: MqttLink) -> None:
    """Send what devices are asked to measure, and what rigs are asked to run.

    Raises:
        EdgeopsError: The database cannot be used; what was sent will be sent again.
    """
    now_s = time.time()
    measuring.send_waiting(database, trust.fleet, trust.sign_measure, link, now_s)
    runs.send_waiting(database, trust.fleet, trust.sign_rig, link, now_s)


def want_all_again(database: Database) -> None:
    """Mark every desired state for publication: the broker may have lost what it kept."""
    with database.write() as session:
        session.execute(update(Unit).where(Unit.desired_generation > 0).values(publish_wanted=Unit.publish_wanted + 1))


def publish_batch(
    database: Database, fleet: str, sign: Callable[[Desired], bytes], link: MqttLink, now_s: float
) -> bool | None:
    """Publish up to `BATCH` desired states, and note those that the broker has acknowledged.

    Returns:
        Whether there may be more; None: the broker is away, try again later.

    Raises:
        EdgeopsError: The database cannot be used; what was published will be published again.
    """
    pending = _pending(database, fleet, now_s)
    if not pending:
        return False
    sent = []
    for item in pending:
        topic = unit_topic(fleet, item.connection, item.unit, "desired")
        info = link.publish(topic, sign(item.desired), retain=True)
        if info is None:
            break
        sent.append((item, info))
    give_up_s = time.monotonic() + PUBACK_WITHIN_S
    done = []
    for item, info in sent:
        while not _acknowledged(info) and link.connected and time.monotonic() < give_up_s:
            time.sleep(0.005)
        if _acknowledged(info):
            done.append(item)
    with database.write() as session:
        for item in done:
            session.execute(
                update(Unit)
                .where(Unit.connection == item.connection, Unit.unit == item.unit)
                .values(
                    publish_done=item.wanted,
                    published_at_s=item.desired.issued_at_s,
                    published_until_s=item.desired.expires_at_s,
                )
            )
    return True if len(done) == len(pending) else None


def _acknowledged(info: MQTTMessageInfo) -> bool:
    try:
        return info.is_published()
    except (RuntimeError, ValueError):  # paho's way to say that the link broke while the message was handed over
        return False


def _pending(database: Database, fleet: str, now_s: float) -> list[_Pending]:
    with database.read() as session:
        rows = session.execute(
            select(Unit, Device.renew_wanted_at_s)
            .join(Device, Device.connection == Unit.connection)
            .where(
                Unit.desired_generation > 0,
                Device.revoked_at_s.is_(None),
                or_(Unit.publish_wanted != Unit.publish_done, Unit.published_until_s < now_s + RENEW_BEFORE_S),
            )
            .order_by(Unit.connection, Unit.unit)
            .limit(BATCH)
        )
        return [
            _Pending(
                row.connection,
                row.unit,
                row.publish_wanted,
                Desired(
                    fleet=fleet,
                    connection=row.connection,
                    unit=row.unit,
                    generation=row.desired_generation,
                    issued_at_s=now_s,
                    expires_at_s=now_s + VALID_S,
                    components=components_of(row),
                    override_holds=row.override_holds,
                    renew_issued_before_s=renew_wanted_at_s,
                ),
            )
            for row, renew_wanted_at_s in rows
        ]
