"""Bad days of a control plane: floods, clocks that are years off, a database that dies or may only be read."""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import postgres_server
import pytest
from ingest_house import NOW, House, report, telemetry
from registry_fleet import FLEET
from sqlalchemy import Connection, event, select

from edgeops.contracts.errors import EdgeopsError
from edgeops.control.ingest import worker
from edgeops.control.ingest.worker import Ingest
from edgeops.control.models import Device, TelemetryRollup, TelemetryWindow, Unit
from edgeops.control.pace import Buckets
from edgeops.transport.mqtt import Message

DAY_S = 86_400.0


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, tmp_path)
    yield house
    house.database.close()


def flood(house: House, number: int) -> None:
    """A device sends so much, and after each hundred another one says one thing."""
    message = house.sealed(telemetry(1))
    for part in range(number // 100):
        house.say(*[message] * 100, house.sealed(report("dev-b", seq=part + 1)))


def test_a_flood_is_cut_off_named_and_stops_nobody_else(house: House) -> None:
    flood(house, worker.DEVICE_BURST + 500)
    rejected, last = house.rejected("dev-a")
    # While it goes on a few tokens come back.
    assert 300 <= rejected <= 500
    assert last.startswith("E-DEVICE-FLOOD")
    assert house.newest("dev-b") == ("b1", (worker.DEVICE_BURST + 500) // 100)
    assert house.rejected("dev-b") == (0, "")


def test_what_a_flood_says_costs_no_verification(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    flood(house, worker.DEVICE_BURST)
    checked: list[str] = []
    verify = worker.read_statements

    def counted(topic: object, *rest: object) -> object:
        checked.append(str(topic))
        return verify(topic, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "read_statements", counted)
    house.say(*[house.sealed(telemetry(1))] * 100)
    assert len(checked) < 50
    house.ingest._pace = Buckets(1e9, 10**9)  # the control: without a limit all are verified
    house.say(*[house.sealed(telemetry(1))] * 100)
    assert len(checked) >= 100


def test_a_batch_that_waits_for_the_database_is_no_flood(house: House) -> None:
    messages = [Message(*house.sealed(telemetry(1)), False, lambda: None)] * 500
    with failing(house, "database or disk is full"):
        for _ in range(10):
            with pytest.raises(EdgeopsError, match="E-DISK"):
                house.ingest.take(messages, now_s=NOW)
    house.ingest.take(messages, now_s=NOW)
    assert house.rejected("dev-a") == (0, "")


class failing:
    """While it lasts, each write of the registry fails as a driver says it."""

    def __init__(self, house: House, how: str) -> None:
        self._engine, self._how = house.database._engine, how

    def _refuse(self, connection: Connection, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(("INSERT", "UPDATE")):
            raise sqlite3.OperationalError(self._how)

    def __enter__(self) -> None:
        event.listen(self._engine, "before_cursor_execute", self._refuse)

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "before_cursor_execute", self._refuse)


@pytest.mark.parametrize("years", [-56, 40])
def test_a_clock_that_is_years_off_moves_nothing(house: House, years: int) -> None:
    """Order is by boot and sequence, and what is told counts when it arrives: the device's clock is only shown."""
    off_s = NOW + years * 365 * DAY_S
    house.say(house.sealed(report(seq=1)))
    house.say(house.sealed(report(seq=2, at_s=off_s)), now_s=NOW + 1)
    house.say(house.sealed(report(seq=1, at_s=off_s + 10)), now_s=NOW + 2)
    house.say(house.sealed(telemetry(3, start_s=off_s, end_s=off_s + 1)), now_s=NOW + 3)
    house.say(house.sealed(report("dev-b")), now_s=NOW + 3)
    assert house.newest("dev-a") == ("b1", 2)
    with house.database.read() as session:
        device, unit = session.get_one(Device, "dev-a"), session.get_one(Unit, ("dev-a", "self"))
        (span,) = session.scalars(select(TelemetryRollup))
        assert (device.last_seen_s, unit.reported_at_s) == (NOW + 3, NOW + 1)
        assert span.start_s <= NOW + 3 < span.start_s + span.span_s
    assert house.rejected("dev-a") == (0, "")


def test_nothing_is_acknowledged_while_the_registry_may_only_be_read(house: House) -> None:
    """What waits is taken in once it may be written again; meanwhile it is read."""
    readonly = threading.Event()
    readonly.set()

    def only_read(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA query_only={'ON' if readonly.is_set() else 'OFF'}")

    event.listen(house.database._engine, "begin", only_read, insert=True)
    acknowledged: list[str] = []
    house.ingest.start()
    for seq in range(1, 4):
        house.ingest.receive(Message(*house.sealed(telemetry(seq)), False, lambda: acknowledged.append("ack")))
    time.sleep(0.6)
    assert acknowledged == []
    assert house.count(TelemetryWindow) == 0
    with pytest.raises(EdgeopsError, match=r"E-DISK-WRITE.*readonly"), house.database.write() as session:
        session.get_one(Device, "dev-a").online = True
    readonly.clear()
    wait_until(lambda: len(acknowledged) == 3)
    assert house.count(TelemetryWindow) == 3
    house.ingest.stop()


def wait_until(condition: object) -> None:
    assert callable(condition)
    deadline_s = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


class Hasty(Ingest):
    """The mutant: it acknowledges what it has heard, before that is committed."""

    def _commit(self, messages: object) -> bool:
        for message in messages:  # type: ignore[attr-defined]
            message.ack()
        return super()._commit([message._replace(ack=lambda: None) for message in messages])  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [Ingest, Hasty])
def test_a_database_that_is_killed_loses_nothing_that_was_acknowledged(tmp_path: Path, kind: type[Ingest]) -> None:
    """PostgreSQL with all its processes is killed while windows come in. The mutant loses what it promised."""
    if postgres_server.programs() is None:
        pytest.skip("the program initdb of PostgreSQL is not installed")
    pytest.importorskip("psycopg", reason="the package psycopg is not installed")
    with postgres_server.killable() as server:
        house = House(tmp_path, server.url)
        ingest = kind(house.database, FLEET, lambda: None)
        ingest.start()
        acknowledged: queue.SimpleQueue[int] = queue.SimpleQueue()
        for seq in range(1, 301):
            message = Message(*house.sealed(telemetry(seq)), False, lambda seq=seq: acknowledged.put(seq))
            ingest.receive(message)
            if seq == 150:
                wait_until(lambda: acknowledged.qsize() > 0)
                server.kill()
        time.sleep(0.5)
        if kind is Hasty:
            ingest._stopping.set()  # the worker dies with what it holds
        ingest.stop() if kind is Hasty else None
        promised = {acknowledged.get() for _ in range(acknowledged.qsize())}
        server.start()
        if kind is Hasty:
            assert promised - kept(house), "the mutant was not noticed"
        else:
            assert promised <= kept(house)
            wait_until(lambda: acknowledged.qsize() + len(promised) == 300)
            assert kept(house) == set(range(1, 301))
            ingest.stop()
        house.database.close()


def kept(house: House) -> set[int]:
    found: set[int] = set()

    def read() -> bool:
        try:
            with house.database.read() as session:
                found.update(session.scalars(select(TelemetryWindow.seq)))
        except EdgeopsError:
            return False
        return True

    wait_until(read)
    return found
