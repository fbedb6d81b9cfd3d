"""A rollout is carried out exactly: death at any statement leaves no device forgotten and no generation used twice."""

from __future__ import annotations

import multiprocessing
import shutil
from collections import Counter
from pathlib import Path

import pytest
from crash_worker import NOW, main, work
from registry_fleet import add_devices, open_registry, release
from sqlalchemy import select

from edgeops.contracts.rollouts import RolloutState
from edgeops.control.database import Database
from edgeops.control.models import AuditEntry, Generation, Rollout, RolloutMember, Unit
from edgeops.control.rollout import execute, manage
from edgeops.control.rollout.decide import decide
from edgeops.control.rollout.policy import Gates, Policy
from edgeops.control.rollout.selection import Selection

DEVICES = 3
GROUPS = ("34%", "100%")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["edgeops.control.rollout.execute", "edgeops.control.ingest.apply"])


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a rollout that was just started."""
    directory = tmp_path_factory.mktemp("begun")
    database = open_registry(directory)
    add_devices(database, DEVICES)
    policy = Policy(groups=GROUPS, gates=Gates(timeout_s=100))
    manage.create(database, release("1.0.0"), policy, Selection(), actor="test", now_s=NOW, start=True)
    database.close()
    return directory


def copy_of(begun: Path, target: Path) -> Path:
    shutil.copytree(begun, target)
    return target


def die_at(directory: Path, point: int, mutant: str = "") -> None:
    """Let a worker process work on it until it dies at a point."""
    process = CONTEXT.Process(target=main, args=(str(directory), point, mutant))
    process.start()
    process.join(60)
    assert process.exitcode == -9, f"point {point}: the worker did not die"


def faults(directory: Path) -> list[str]:
    """What is wrong with a registry whose rollout should be through."""
    database = Database(directory / "control.sqlite")
    found = []
    with database.read() as session:
        state = session.scalars(select(Rollout.state)).one()
        if state != RolloutState.SUCCEEDED:
            found.append(f"the rollout is {state}")
        given = Counter(
            (row.connection, row.generation) for row in session.scalars(select(Generation)) if row.cause == "rollout 1"
        )
        per_device = Counter(name for name, _ in given)
        members = session.scalars(select(RolloutMember)).all()
        for member in members:
            if per_device[member.connection] != 1:
                found.append(f"{member.connection} was given the release {per_device[member.connection]} times")
            if member.state != "confirmed":
                found.append(f"{member.connection} is {member.state}")
        for unit in session.scalars(select(Unit)):
            if unit.desired_generation != 1 or unit.publish_wanted < 1:
                found.append(f"{unit.connection} has generation {unit.desired_generation}, never to be published")
        starts = Counter(
            row.detail["group"] for row in session.scalars(select(AuditEntry)) if row.action == "rollout.start-group"
        )
        found += [f"group {group} was started {times} times" for group, times in starts.items() if times != 1]
        if len(starts) != len(GROUPS):
            found.append(f"{len(starts)} groups were started")
    database.close()
    return found


def points_of(begun: Path, tmp_path: Path) -> int:
    whole = copy_of(begun, tmp_path / "whole")
    points = work(whole, None)
    assert faults(whole) == []
    return points


def survive(begun: Path, tmp_path: Path, points: range) -> None:
    for point in points:
        directory = copy_of(begun, tmp_path / f"p{point}")
        die_at(directory, point)
        work(directory, None)
        assert faults(directory) == [], f"death at point {point}"
        shutil.rmtree(directory)


def test_death_at_a_sample_of_points_loses_and_repeats_nothing(begun: Path, tmp_path: Path) -> None:
    points = points_of(begun, tmp_path)
    survive(begun, tmp_path, range(1, points + 1, max(1, points // 8)))


@pytest.mark.full
def test_death_at_every_point_loses_and_repeats_nothing(begun: Path, tmp_path: Path) -> None:
    points = points_of(begun, tmp_path)
    survive(begun, tmp_path, range(1, points + 1))


def test_without_transactions_death_leaves_a_fault(begun: Path, tmp_path: Path) -> None:
    """The negative control: the same deaths, with every statement committed by itself, must be noticed."""
    noticed = []
    for point in range(4, 60):
        directory = copy_of(begun, tmp_path / f"m{point}")
        die_at(directory, point, "no transaction")
        database = Database(directory / "control.sqlite")
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


def test_two_workers_at_once_start_each_group_once(begun: Path, tmp_path: Path) -> None:
    directory = copy_of(begun, tmp_path / "two")
    workers = [CONTEXT.Process(target=main, args=(str(directory), None, "")) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert faults(directory) == []


def one_of_two_dies(begun: Path, tmp_path: Path, points: range) -> None:
    """Two workers carry the rollout out at once, and one of them dies at a point; the other ends it."""
    died = 0
    for point in points:
        directory = copy_of(begun, tmp_path / f"both{point}")
        mortal = CONTEXT.Process(target=main, args=(str(directory), point, ""))
        other = CONTEXT.Process(target=main, args=(str(directory), None, ""))
        for worker in (mortal, other):
            worker.start()
        for worker in (mortal, other):
            worker.join(60)
        # Who is late finds everything done, and has nothing to die at.
        assert (mortal.exitcode in (-9, 0), other.exitcode) == (True, 0), f"death at point {point}"
        died += mortal.exitcode == -9
        assert faults(directory) == [], f"death of one of two at point {point}"
        shutil.rmtree(directory)
    assert died, "nobody died"


def test_one_of_two_workers_that_dies_loses_and_repeats_nothing(begun: Path, tmp_path: Path) -> None:
    one_of_two_dies(begun, tmp_path, range(3, points_of(begun, tmp_path) // 2, 12))


@pytest.mark.full
def test_one_of_two_workers_that_dies_anywhere_loses_and_repeats_nothing(begun: Path, tmp_path: Path) -> None:
    one_of_two_dies(begun, tmp_path, range(1, points_of(begun, tmp_path) + 1))


def test_deciding_outside_the_transaction_starts_a_group_twice(begun: Path, tmp_path: Path) -> None:
    """The negative control of the lock: two workers that decide first and lock later both start the group."""
    directory = copy_of(begun, tmp_path / "stale")
    database = Database(directory / "control.sqlite")
    stale = []
    for _ in range(2):
        with database.read() as session:
            stale.append(decide(execute.read_view(session, session.get_one(Rollout, 1)), NOW))
    for decision in stale:
        with database.write() as session:
            execute._carry_out(session, session.get_one(Rollout, 1), decision, NOW)
    database.close()
    work(directory, None)
    assert any("was started 2 times" in fault for fault in faults(directory))
