"""The ingest worker: batches by count and by time, one transaction per batch, acknowledged only after its commit."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from securesystemslib.signer import Key
from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError

from edgeops.contracts.deployment import Presence
from edgeops.contracts.enrolment import ConnectionKind
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.topics import UnitTopic, control_filters, parse_topic
from edgeops.control.database import Database
from edgeops.control.ingest.apply import Batch
from edgeops.control.ingest.statements import Known, Statement, read_statements
from edgeops.control.models import Device, RigRow
from edgeops.control.pace import Buckets
from edgeops.control.renewal import PREVIOUS_KEY_S
from edgeops.transport.mqtt import Message, backoff_s

log = logging.getLogger(__name__)

BATCH_MESSAGES = 500
BATCH_WITHIN_S = 0.05
RETRY_MAX_S = 10.0
# What a device may say: windows of weeks come in batches of 16, so that is far more than one needs.
DEVICE_PER_S, DEVICE_BURST = 20.0, 2_000
TAKEN = ("reported", "progress", "telemetry", "res", "presence")


def ingest_filters(fleet: str, leaves: Sequence[str] = TAKEN) -> list[str]:
    """Return the topic filters of what ingest takes in, or of some of it."""
    return [topic for topic in control_filters(fleet) if topic.removesuffix("/+").rpartition("/")[2] in leaves]


def nobody_is_online(database: Database, now_s: float) -> None:
    """Note that no device or rig is connected: the broker has just been started. Those that return say so."""
    with database.write() as session:
        session.execute(update(RigRow).where(RigRow.gone_since_s.is_(None)).values(gone_since_s=now_s))
        session.execute(update(Device).where(Device.online).values(online=False))


class _Refusal(NamedTuple):
    connection: str
    error: EdgeopsError


class _Accepted(NamedTuple):
    topic: UnitTopic
    statements: tuple[Statement, ...]
    retained: bool


class Ingest:
    """Takes in what devices say. `receive` is the MQTT link's callback; the work is done on a thread of its own.

    A database that is full, locked or away stops nothing: the batch is tried again, and until it is committed the
    broker keeps its messages.

    Args:
        database: The registry.
        fleet: The fleet.
        on_change: Called after each commit that may concern a rollout or a desired state.
        live_presence_only: The broker keeps retained messages and this worker's session over its own death: a retained
            `online` may be of a device that died meanwhile, while what was said since comes as a live message. Only
            with a session that is new to the broker nothing came live, and what it retains is all there is.
        rig_keys: Returns the keys of the rigs that the fleet trusts, by name.
    """

    def __init__(
        self,
        database: Database,
        fleet: str,
        on_change: Callable[[], None],
        *,
        live_presence_only: bool = False,
        rig_keys: Callable[[], Mapping[str, Key]] = dict,
    ) -> None:
        self._rig_keys = rig_keys
        self._database, self._fleet, self._on_change = database, fleet, on_change
        self._live_presence_only = live_presence_only
        self._queue: queue.SimpleQueue[tuple[Message, int] | None] = queue.SimpleQueue()
        self._pace = Buckets(DEVICE_PER_S, DEVICE_BURST)
        self._session = 0
        self._believes_retained = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self.accepted = 0
        self.refused = 0

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End after the batch at hand; messages that were not committed stay with the broker."""
        self._stopping.set()
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def new_session(self, *, kept: bool) -> None:
        """Say that the link was made anew: acknowledgements of earlier messages would now mean other ones.

        Args:
            kept: The broker knows the session of before, and queued what was said since.
        """
        self._session += 1
        self._believes_retained = not kept

    def receive(self, message: Message) -> None:
        """Take a message from the link; returns at once."""
        if self._believes_retained:
            message = message._replace(retain=False)
        self._queue.put((message, self._session))

    def _run(self) -> None:
        while not self._stopping.is_set():
            batch = self._collect()
            if batch and self._commit([message for message, _ in batch]):
                for message, session in batch:
                    if session == self._session:
                        message.ack()

    def _collect(self) -> list[tuple[Message, int]]:
        """Wait for a first message, then take what comes within the time or up to the count."""
        batch: list[tuple[Message, int]] = []
        first = self._queue.get()
        deadline_s = time.monotonic() + BATCH_WITHIN_S
        item = first
        while item is not None:
            batch.append(item)
            left_s = deadline_s - time.monotonic()
            if len(batch) >= BATCH_MESSAGES or left_s <= 0:
                break
            try:
                item = self._queue.get(timeout=left_s)
            except queue.Empty:
                break
        return batch

    def _commit(self, messages: Sequence[Message]) -> bool:
        """Commit a batch, however long that takes; False if asked to stop before."""
        attempt = 0
        while True:
            try:
                self.take(messages, now_s=time.time())
            except DBAPIError as error:
                # Not disk, lock or server (those are EdgeopsErrors): one message is such that no table can hold it.
                if len(messages) > 1:
                    return all(self._commit([message]) for message in messages)
                self.refused += 1
                log.error("a message on %s cannot be kept: %s", messages[0].topic, error)
                return True
            except EdgeopsError as error:
                log.error("%d messages wait: %s", len(messages), error)
                if self._stopping.wait(max(0.1, backoff_s(attempt, first_s=0.2, max_s=RETRY_MAX_S))):
                    return False
                attempt += 1
            else:
                return True

    def take(self, messages: Sequence[Message], *, now_s: float) -> None:
        """Check and apply a batch in one transaction.

        Raises:
            EdgeopsError: The database cannot be used; nothing was changed.
            DBAPIError: A message cannot be kept by this database; nothing was changed.
        """
        topics: list[UnitTopic | None] = [_topic(message.topic) for message in messages]
        known = self._known({topic.connection for topic in topics if topic is not None})
        said: Counter[str] = Counter()
        checked = [
            self._check(topic, message, known, said)
            for topic, message in zip(topics, messages, strict=True)
            if topic is not None
        ]
        refused = len(messages) - len(checked)
        speakers = {item.connection if isinstance(item, _Refusal) else item.topic.connection for item in checked}
        with self._database.write() as session:
            batch = Batch(session, speakers, now_s)
            accepted = [item for item in checked if isinstance(item, _Accepted)]
            batch.look_for_repeated(statement for item in accepted for statement in item.statements)
            for item in checked:
                connection = item.connection if isinstance(item, _Refusal) else item.topic.connection
                device = batch.devices.get(connection)
                if device is None:
                    refused += 1
                    continue
                error = item.error if isinstance(item, _Refusal) else self._apply(batch, device, item)
                if error is not None:
                    refused += 1
                    device.rejected_messages += 1
                    device.rejected_last = f"{error.code}: {error.what}".replace("\0", "")[:512]
            batch.finish()
        # Only what was committed counts: a batch that waits for the database is looked at again.
        for connection, number in said.items():
            self._pace.charge(connection, number)
        self.refused += refused
        self.accepted += len(messages) - refused
        self._on_change()

    def _apply(self, batch: Batch, device: Device, item: _Accepted) -> EdgeopsError | None:
        """Apply what a message says; return what is wrong with it, while its other statements stand."""
        error = None
        for statement in item.statements:
            if not self._is_stale(statement, retained=item.retained):
                try:
                    batch.apply(device, statement)
                except EdgeopsError as stale:
                    error = stale
        return error

    def _is_stale(self, statement: Statement, *, retained: bool) -> bool:
        """Whether it is a broker's memory of a device that may be gone since: it says online, but not now."""
        return self._live_presence_only and retained and isinstance(statement, Presence) and statement.online

    def _known(self, connections: set[str]) -> dict[str, Known]:
        counts_since_s = time.time() - PREVIOUS_KEY_S
        with self._database.read() as session:
            rows = session.execute(
                select(
                    Device.connection,
                    Device.certificate_pem,
                    Device.revoked_at_s,
                    Device.previous_certificate_pem,
                    Device.renewed_at_s,
                    Device.kind,
                ).where(Device.connection.in_(connections))
            ).all()
        has_rigs = any(row.kind == ConnectionKind.RIG for row in rows)
        rig_keys = self._keys_of_rigs() if has_rigs else {}
        return {
            connection: Known(
                pem,
                revoked is not None,
                previous if renewed is not None and renewed > counts_since_s else "",
                ConnectionKind(kind),
                rig_keys.get(connection),
            )
            for connection, pem, revoked, previous, renewed, kind in rows
        }

    def _keys_of_rigs(self) -> Mapping[str, Key]:
        try:
            return self._rig_keys()
        except EdgeopsError as error:
            log.error("no rig is believed: %s", error)
            return {}

    def _check(
        self, topic: UnitTopic, message: Message, known: dict[str, Known], said: Counter[str]
    ) -> _Accepted | _Refusal:
        """Check a message; `said` counts what each device has said in this batch. A flood costs no verification."""
        said[topic.connection] += 1
        if said[topic.connection] > self._pace.left(topic.connection):
            what = f"more than {DEVICE_BURST} messages at once, and {DEVICE_PER_S:.0f} a second"
            return _Refusal(topic.connection, EdgeopsError("E-DEVICE-FLOOD", what, "Look at its agent."))
        try:
            statements = read_statements(topic, message.payload, self._fleet, known.get(topic.connection))
        except EdgeopsError as error:
            log.info("refused a message of %s: %s", topic.connection, error)
            return _Refusal(topic.connection, error)
        return _Accepted(topic, statements, message.retain)


def _topic(text: str) -> UnitTopic | None:
    try:
        return parse_topic(text)
    except EdgeopsError:
        return None
