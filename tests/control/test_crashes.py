"""A rollout is carried out exactly: death at any statement leaves no device forgotten and no generation used twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash_lanes import CONTEXT, Begun, Copies, points_of, run
from crash_worker import GROUPS, NOW, faults, main, opened, work
from postgres_server import administration
from registry_fleet import add_devices, add_rig, open_registry, release, rigs_pass
from sqlalchemy import URL, select

from edgeops.control.database import Database
from edgeops.control.models import Generation, Rollout, Unit
from edgeops.control.rigs import runs
from edgeops.control.rollout import execute, manage
from edgeops.control.rollout.decide import decide
from edgeops.control.rollout.policy import Gates, Policy
from edgeops.control.rollout.selection import Selection

DEVICES = 3


def begin(database: Database) -> None:
    add_devices(database, DEVICES)
    add_rig(database, "bench")
    policy = Policy(groups=GROUPS, gates=Gates(timeout_s=100), rigs=("bench",))
    manage.create(
        database, release("1.0.0"), policy, Selection(), actor="test", now_s=NOW, start=True, trusted_rigs=["bench"]
    )
    database.close()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def begun(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begun]:
    if request.param == "sqlite":
        folder = tmp_path_factory.mktemp("begun")
        begin(open_registry(folder))
        yield Begun(str(folder))
        return
    server: URL = request.getfixturevalue("migrated_postgres")
    with administration(server) as connection:
        connection.exec_driver_sql("CREATE DATABASE begun TEMPLATE migrated")
    url = server.set(database="begun").render_as_string()
    begin(Database(url))
    yield Begun(url)
    with administration(server) as connection:
        connection.exec_driver_sql("DROP DATABASE begun WITH (FORCE)")


@pytest.fixture
def copies(begun: Begun) -> Iterator[Copies]:
    with begun.copies() as copies:
        yield copies


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """What copies of one test are called."""
    return hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]


def die_at(where: str, point: int, mutant: str = "") -> None:
    """Let a worker process work on it until it dies at a point."""
    process = CONTEXT.Process(target=main, args=(where, point, mutant))
    process.start()
    process.join(60)
    assert process.exitcode == -9, f"point {point}: the worker did not die"


def survive(begun: Begun, name: str, points: range) -> int:
    """A worker dies at each of these points, and another one goes on after it."""
    for outcome in run(begun, name, points, two=False):
        assert (outcome.ended, outcome.faults) == ([-9], []), f"death at point {outcome.point}"
    return len(points)


def test_death_at_a_sample_of_points_loses_and_repeats_nothing(begun: Begun, copies: Copies, name: str) -> None:
    points = points_of(copies, name)
    survive(begun, name, range(1, points + 1, max(1, points // (8 if begun.kind == "sqlite" else 3))))


@pytest.mark.full
def test_death_at_every_point_loses_and_repeats_nothing(
    begun: Begun, copies: Copies, name: str, proof: Callable[[str], None]
) -> None:
    deaths = survive(begun, name, range(1, points_of(copies, name) + 1))
    proof(f"{deaths} deaths of a worker survived")


@pytest.mark.parametrize("begun", ["sqlite"], indirect=True)
def test_without_transactions_death_leaves_a_fault(copies: Copies, name: str) -> None:
    """The negative control: the same deaths, with every statement committed by itself, must be noticed."""
    noticed = []
    for point in range(60, 80):
        where = copies.make(f"m{point}-{name}")
        die_at(where, point, "no transaction")
        database = opened(where)
        with database.read() as session:
            half = [
                unit.connection
                for unit in session.scalars(select(Unit).where(Unit.desired_generation == 0))
                if session.get(Generation, (unit.connection, "self", 1)) is not None
            ]
        database.close()
        if half:
            noticed.append(point)
            break
    assert noticed


def both(where: str, *, kill_at: int | None = None, mutant: str = "", meeting: str = "") -> list[int | None]:
    """Two workers carry the rollout out at once; return how they ended, first the one that may be killed."""
    workers = [CONTEXT.Process(target=main, args=(where, at, mutant, meeting)) for at in (kill_at, None)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    return [worker.exitcode for worker in workers]


@pytest.mark.parametrize(
    ("begun", "mutant"), [("sqlite", ""), ("postgresql", ""), ("postgresql", "no lock")], indirect=["begun"]
)
def test_two_workers_at_once_start_each_group_once(copies: Copies, name: str, tmp_path: Path, mutant: str) -> None:
    """They decide at the same time if they can. SQLite has one writer at a time; on PostgreSQL it is the lock alone."""
    where = copies.make(f"two-{name}")
    if mutant:
        pass_rig(where)  # see below for what comes before
    assert both(where, mutant=mutant, meeting=str(tmp_path)) == [0, 0]
    found = faults(where)
    assert any("was started 2 times" in fault for fault in found) if mutant else found == []
    copies.remove(where)


def pass_rig(where: str) -> None:
    database = opened(where)
    execute.advance(database, 1, NOW)
    rigs_pass(database, NOW)
    database.close()


@pytest.mark.parametrize("begun", ["postgresql"], indirect=True)
def test_two_workers_without_the_lock_ask_a_rig_once_all_the_same(copies: Copies, name: str, tmp_path: Path) -> None:
    """Whom to ask is found out again where it is written, behind the first change of the rollout's row."""
    where = copies.make(f"twice-{name}")
    assert both(where, mutant="no lock", meeting=str(tmp_path)) == [0, 0]
    assert [fault for fault in faults(where) if "rig" in fault] == []
    copies.remove(where)


def one_of_two_dies(begun: Begun, name: str, points: range) -> int:
    """Two workers carry the rollout out at once, and one of them dies at a point; the other ends it."""
    outcomes = run(begun, name, points, two=True)
    for outcome in outcomes:
        mortal, other = outcome.ended
        # Who is late finds everything done, and has nothing to die at.
        assert (mortal in (-9, 0), other, outcome.faults) == (True, 0, []), f"death at point {outcome.point}"
    died = sum(outcome.ended[0] == -9 for outcome in outcomes)
    assert died, "nobody died"
    return died


def test_one_of_two_workers_that_dies_loses_and_repeats_nothing(begun: Begun, copies: Copies, name: str) -> None:
    points = points_of(copies, name)
    one_of_two_dies(begun, name, range(3, points // 2, 12 if begun.kind == "sqlite" else 24))


@pytest.mark.full
def test_one_of_two_workers_that_dies_anywhere_loses_and_repeats_nothing(
    begun: Begun, copies: Copies, name: str, proof: Callable[[str], None]
) -> None:
    points = points_of(copies, name)
    died = one_of_two_dies(begun, name, range(1, points + 1))
    proof(f"{died} deaths of one of two workers survived, of {points} points")


@pytest.mark.parametrize("begun", ["sqlite"], indirect=True)
def test_deciding_outside_the_transaction_starts_a_group_twice(copies: Copies, name: str) -> None:
    """The negative control of the lock: two workers that decide first and lock later both start the group."""
    where = copies.make(f"stale-{name}")
    pass_rig(where)
    database = opened(where)
    stale = []
    for _ in range(2):
        with database.read() as session:
            stale.append(decide(execute.read_view(session, session.get_one(Rollout, 1)), NOW))
    for decision in stale:
        with database.write() as session:
            execute._carry_out(session, session.get_one(Rollout, 1), decision, NOW)
    database.close()
    work(where, None)
    assert any("was started 2 times" in fault for fault in faults(where))


@pytest.mark.parametrize("begun", ["sqlite"], indirect=True)
def test_asking_outside_the_decision_asks_a_rig_twice(copies: Copies, name: str) -> None:
    """The negative control: who asks without looking asks once more, and that is noticed."""
    where = copies.make(f"asked-{name}")
    database = opened(where)
    for _ in range(2):
        with database.write() as session:
            runs.ask(session, session.get_one(Rollout, 1), ["bench"], 100.0, NOW)
    database.close()
    work(where, None)
    assert any("the rig was asked as" in fault for fault in faults(where))
