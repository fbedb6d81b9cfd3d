"""Bad days of a control plane: floods, clocks that are years off, a database that dies or may only be read."""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import postgres_server
import psutil
import pytest
from ingest_house import NOW, House, report, telemetry
from registry_fleet import FLEET
from served_fleet import Fleet, Serving, needs_mosquitto
from sqlalchemy import Connection, event, select

from edgeops.contracts.errors import EdgeopsError
from edgeops.control.database import Database
from edgeops.control.ingest import worker
from edgeops.control.ingest.worker import Ingest
from edgeops.control.models import Device, Unit
from edgeops.control.pace import Buckets
from edgeops.control.telemetry_models import TelemetryRollup, TelemetryWindow
from edgeops.transport.mqtt import Message

DAY_S = 86_400.0
WEAKENED = Path(__file__).parents[1] / "agent" / "weakened"


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


def in_no_time(house: House) -> None:
    """Have all that is said be said at one moment: however long it takes here, no token comes back."""
    house.ingest._pace = Buckets(worker.DEVICE_PER_S, worker.DEVICE_BURST, lambda: 0.0)


def test_a_flood_is_cut_off_named_and_stops_nobody_else(house: House) -> None:
    in_no_time(house)
    flood(house, worker.DEVICE_BURST + 500)
    rejected, last = house.rejected("dev-a")
    assert rejected == 500
    assert last.startswith("E-DEVICE-FLOOD")
    assert house.newest("dev-b") == ("b1", (worker.DEVICE_BURST + 500) // 100)
    assert house.rejected("dev-b") == (0, "")


def test_what_a_flood_says_costs_no_verification(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    in_no_time(house)
    flood(house, worker.DEVICE_BURST)
    checked: list[str] = []
    verify = worker.read_statements

    def counted(topic: object, *rest: object) -> object:
        checked.append(str(topic))
        return verify(topic, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "read_statements", counted)
    house.say(*[house.sealed(telemetry(1))] * 100)
    assert checked == []
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


def tell_with_a_wrong_clock(house: House, off_s: float, *arrived_s: float) -> None:
    """A device whose clock is wrong reports and tells a window, and says something older than that again."""
    house.say(house.sealed(report(seq=1)))
    house.say(house.sealed(report(seq=2, at_s=off_s)), now_s=arrived_s[0])
    house.say(house.sealed(report(seq=1, at_s=off_s + 10)), now_s=arrived_s[1])
    house.say(house.sealed(telemetry(3, start_s=off_s, end_s=off_s + 1)), now_s=arrived_s[2])


def seen_at(house: House) -> tuple[float | None, float | None, int]:
    """When the device was last seen, when it reported, and where the sums of its telemetry begin."""
    with house.database.read() as session:
        device, unit = session.get_one(Device, "dev-a"), session.get_one(Unit, ("dev-a", "self"))
        (span,) = session.scalars(select(TelemetryRollup))
        return device.last_seen_s, unit.reported_at_s, span.start_s // span.span_s


@pytest.mark.parametrize("years", [-56, 40])
def test_a_clock_that_is_years_off_moves_nothing(house: House, years: int) -> None:
    """Order is by boot and sequence, and what is told counts when it arrives: the device's clock is only shown."""
    tell_with_a_wrong_clock(house, NOW + years * 365 * DAY_S, NOW + 1, NOW + 2, NOW + 3)
    house.say(house.sealed(report("dev-b")), now_s=NOW + 3)
    assert house.newest("dev-a") == ("b1", 2)
    assert seen_at(house) == (NOW + 3, NOW + 1, int(NOW + 3) // 900)
    assert house.rejected("dev-a") == (0, "")


@pytest.mark.parametrize("years", [-56, 40])
def test_if_its_own_clock_counted_it_would(house: House, years: int) -> None:
    """Negative control: taken in as if it were what the device says."""
    off_s = NOW + years * 365 * DAY_S
    tell_with_a_wrong_clock(house, off_s, off_s, off_s + 10, off_s + 1)
    assert seen_at(house) == (off_s + 1, off_s, int(off_s + 1) // 900)


def wait_until(condition: object) -> None:
    assert callable(condition)
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


class Hasty(Ingest):
    """The mutant: it acknowledges what it has heard, before that is committed."""

    def _commit(self, messages: object) -> bool:
        for message in messages:  # type: ignore[attr-defined]
            message.ack()
        return super()._commit([message._replace(ack=lambda: None) for message in messages])  # type: ignore[attr-defined]


class Unwritable(NamedTuple):
    """A registry's bad day: how it begins and ends, and what a writer is told meanwhile."""

    begin: Callable[[House, Path], Callable[[], object]]
    code: str


def full(house: House, folder: Path) -> Callable[[], object]:
    """SQLite may not grow beyond what it has, and has little room in that: as on a full disk."""
    engine, room = house.database._engine, threading.Event()

    def bounded(connection: Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={1 << 30 if room.is_set() else pages}")

    event.listen(engine, "begin", bounded, insert=True)
    return room.set


def locked(house: House, folder: Path) -> Callable[[], object]:
    """Another program has it, for longer than a writer waits."""
    blocker = sqlite3.connect(folder / "control.sqlite", isolation_level=None, check_same_thread=False)
    blocker.execute("BEGIN IMMEDIATE")
    return lambda: (blocker.execute("ROLLBACK"), blocker.close())


def readonly(house: House, folder: Path) -> Callable[[], object]:
    over = threading.Event()

    def only_read(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA query_only={'OFF' if over.is_set() else 'ON'}")

    event.listen(house.database._engine, "begin", only_read, insert=True)
    return over.set


DAYS = {
    "full": Unwritable(full, "E-DISK-FULL"),
    "locked": Unwritable(locked, "E-STATE-LOCKED"),
    "read-only": Unwritable(readonly, "E-DISK-WRITE"),
}


@pytest.mark.parametrize("kind", [Ingest, Hasty])
@pytest.mark.parametrize("day", DAYS)
def test_nothing_is_acknowledged_while_the_registry_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, day: str, kind: type[Ingest]
) -> None:
    """What waits is taken in once it can be written again; meanwhile it is read. The mutant lies."""
    monkeypatch.setattr("edgeops.control.database.BUSY_WITHIN_S", 0.1)
    house = House(tmp_path, tmp_path)
    ingest = kind(house.database, FLEET, lambda: None)
    acknowledged: queue.SimpleQueue[int] = queue.SimpleQueue()
    end = DAYS[day].begin(house, tmp_path)
    # Large enough for new pages, and for more than one batch.
    windows = [telemetry(seq, tuple(float(x) for x in range(1, 60))) for seq in range(1, 301)]
    errors: queue.SimpleQueue[str] = queue.SimpleQueue()
    refused = worker.log.error
    monkeypatch.setattr(worker.log, "error", lambda *given: (refused(*given), errors.put(str(given[-1])))[0])
    ingest.start()
    for window in windows:
        ack = lambda seq=window.seq: acknowledged.put(seq)  # noqa: E731
        ingest.receive(Message(*house.sealed(window), False, ack))
    wait_until(lambda: errors.qsize() > 1)
    assert errors.get().startswith(DAYS[day].code)
    # A full registry still took what there was room for.
    promised = {acknowledged.get() for _ in range(acknowledged.qsize())}
    if kind is Hasty:
        assert promised - kept(house), "the mutant was not noticed"
        ingest._stopping.set()
    else:
        assert promised <= kept(house)
        assert len(promised) < len(windows)
        end()
        wait_until(lambda: acknowledged.qsize() + len(promised) == len(windows))
        assert kept(house) == {window.seq for window in windows}
    ingest.stop()
    if kind is Hasty:
        end()
    house.database.close()


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
                # In the middle of its work; the mutant with nothing left to do, so that what it promises next is lost.
                wait_until(lambda: len(kept(house)) == 150 if kind is Hasty else acknowledged.qsize() > 0)
                server.kill()
        promised: set[int] = set()

        def beyond() -> bool:
            """Whether something is promised that came when there was no database any more."""
            promised.update(acknowledged.get() for _ in range(acknowledged.qsize()))
            return max(promised) > 150

        if kind is Hasty:
            wait_until(beyond)
            ingest._stopping.set()  # the worker dies with what it holds
            ingest.stop()
        else:
            time.sleep(0.5)
        beyond()
        server.start()
        if kind is Hasty:
            assert promised - kept(house), "the mutant was not noticed"
        else:
            assert promised <= kept(house)
            wait_until(lambda: acknowledged.qsize() + len(promised) == 300)
            assert kept(house) == set(range(1, 301))
            ingest.stop()
        house.database.close()


def settled(look: Callable[[], int]) -> None:
    """Wait until a number has not changed for a second."""
    before, now = -1, look()
    while before != now:
        time.sleep(1.0)
        before, now = now, look()


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


@needs_mosquitto
@pytest.mark.timeout(600)
@pytest.mark.parametrize("hasty", [False, True], ids=["", "mutant"])
def test_a_worker_that_is_killed_loses_nothing_that_was_acknowledged(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hasty: bool
) -> None:
    """Killed with windows that the broker has acknowledged and no commit has. The mutant told the broker otherwise."""
    note = tmp_path / "note"
    note.touch()
    if hasty:
        monkeypatch.setenv("PYTHONPATH", str(WEAKENED))
        monkeypatch.setenv("EDGEOPS_TEST_WITHOUT", "commit_before_acknowledging")
        monkeypatch.setenv("EDGEOPS_TEST_NOTE", str(note))
    serving = Serving(home, "mosquitto")
    serving.start()
    fleet = Fleet(serving, tmp_path / "devices")
    device = next(iter(fleet.devices.values()))
    database = Database(home / "control.sqlite")

    def tell(*numbers: int) -> None:
        for seq in numbers:
            topic, payload = device.window(seq)
            wait_until(lambda: device.link.connected)
            info = device.link.publish(topic, payload)
            assert info is not None
            info.wait_for_publish(60)
            assert info.is_published()

    def kept() -> set[int]:
        with database.read() as session:
            return set(session.scalars(select(TelemetryWindow.seq)))

    try:
        # What devices say when they come is taken in: the next batch is of windows.
        settled(lambda: note.stat().st_size)
        blocker = sqlite3.connect(home / "control.sqlite", isolation_level=None, timeout=60)
        blocker.execute("BEGIN IMMEDIATE")
        noted = note.stat().st_size
        tell(*range(1001, 1041))
        if hasty:
            # The first batch is promised, and time enough for the broker to hear of it.
            wait_until(lambda: note.stat().st_size > noted)
            time.sleep(1.0)
        serving.kill()
        wait_until(lambda: not psutil.pid_exists(serving.ready["broker_pid"]))
        blocker.execute("ROLLBACK")
        blocker.close()
        assert kept() == set()
        serving.start()
        tell(1041)
        if hasty:
            wait_until(lambda: 1041 in kept())
            assert kept() < set(range(1001, 1042)), "the mutant was not noticed"
        else:
            wait_until(lambda: kept() == set(range(1001, 1042)))
    finally:
        fleet.stop()
        serving.stop()
        database.close()
