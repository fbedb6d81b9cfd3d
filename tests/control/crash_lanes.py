"""Workers that die at one point after the other: each is forked from a process that has everything loaded and warm.

A lane is such a process: it makes a copy of the registry for each point, lets workers die on it, and looks at what they
left. Its workers have the statements compiled that it compiled once, since all of them use one engine, which is told
where to connect. The lanes take the points in turns.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, NamedTuple

from crash_worker import Killer, carry_out, faults, faults_of, file_of, opened, work
from postgres_server import administration
from sqlalchemy import Connection, event, make_url

CONTEXT = multiprocessing.get_context("forkserver")
# There is one such server for all tests: what those of crashes want, and the API.
CONTEXT.set_forkserver_preload(
    [
        "edgeops.control.rollout.execute",
        "edgeops.control.ingest.apply",
        "edgeops.control.rigs.runs",
        "edgeops.control.api.app",
        "sqlalchemy.dialects.postgresql.psycopg",
    ]
)
# A worker that takes longer hangs: it is ended, and said to have been.
WORKS_WITHIN_S = 120
LANES = min(4, os.cpu_count() or 1)
# A lane's start costs as much as several points.
POINTS_OF_A_LANE = 16


class Begun(NamedTuple):
    """A registry with a rollout that was just started, behind a rig: a folder, or the URL of a PostgreSQL server's
    database `begun`."""

    where: str

    @property
    def kind(self) -> str:
        return "postgresql" if "://" in self.where else "sqlite"

    @contextmanager
    def copies(self) -> Iterator[Copies]:
        """Make copies, and remove them."""
        if self.kind == "sqlite":
            yield Copies(self, None)
            return
        with administration(make_url(self.where).set(database="postgres")) as connection:
            yield Copies(self, connection)


class Copies(NamedTuple):
    """How copies of a registry come and go."""

    begun: Begun
    server: Connection | None

    def make(self, name: str) -> str:
        """Return where a new copy is."""
        if self.server is None:
            return str(shutil.copytree(self.begun.where, Path(self.begun.where).parent / name))
        template = make_url(self.begun.where)
        self.server.exec_driver_sql(f'CREATE DATABASE "{name}" TEMPLATE "{template.database}"')
        return template.set(database=name).render_as_string()

    def remove(self, where: str) -> None:
        """Remove it."""
        if self.server is None:
            shutil.rmtree(where)
            return
        self.server.exec_driver_sql(f'DROP DATABASE "{make_url(where).database}" WITH (FORCE)')


class Outcome(NamedTuple):
    """What became of one point: how the workers ended, first the one that was to die; and what is wrong after all."""

    point: int
    ended: list[int]
    faults: list[str]


class Lane:
    """One process's means to try points out.

    Args:
        copies: Makes the registries.
        name: Of its copies.
    """

    def __init__(self, copies: Copies, name: str) -> None:
        self._copies, self._name = copies, name
        self._where = copies.make(f"warm-{name}")
        self._database = opened(self._where)
        event.listen(self._database._engine, "do_connect", self._connect)
        carry_out(self._database)
        self._forget()

    def try_out(self, point: int, *, two: bool) -> Outcome:
        """Let a worker die at a point, and another one end the rollout: after it, or at the same time."""
        self._where = self._copies.make(f"p{point}-{self._name}")
        mortal = self._fork(point)
        other = self._fork(None) if two else None
        how = [_ended(mortal)]
        if other is not None:
            how.append(_ended(other))
        else:
            carry_out(self._database)
        found = Outcome(point, how, faults_of(self._database))
        self._forget()
        return found

    def _forget(self) -> None:
        """Leave no connection behind: neither to what goes, nor to be shared with who is forked."""
        self._database.close()
        self._copies.remove(self._where)

    def _connect(self, _dialect: object, _record: object, given: list[Any], named: dict[str, Any]) -> None:
        if self._copies.begun.kind == "postgresql":
            named["dbname"] = make_url(self._where).database
        else:
            given[0] = str(file_of(self._where))

    def _fork(self, kill_at: int | None) -> int:
        """Begin a worker; return its process id."""
        child = os.fork()
        if child:
            return child
        signal.alarm(WORKS_WITHIN_S)
        status = 1
        try:
            Killer(self._database, kill_at)
            carry_out(self._database)
            status = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(status)


def _ended(child: int) -> int:
    """Wait for a worker; return its exit status, below zero the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def points_of(copies: Copies, name: str) -> int:
    """Return how many points there are to die at, of a worker that does not."""
    where = copies.make(f"whole-{name}")
    points = work(where, None)
    assert faults(where) == []
    copies.remove(where)
    return points


def _lane(begun: Begun, name: str, points: Sequence[int], two: bool, told: Pipe) -> None:
    with begun.copies() as copies:
        lane = Lane(copies, name)
        for point in points:
            told.send(lane.try_out(point, two=two))
    told.close()


def run(begun: Begun, name: str, points: Sequence[int], *, two: bool) -> list[Outcome]:
    """Try all of some points out."""
    lanes = []
    count = max(1, min(LANES, len(points) // POINTS_OF_A_LANE))
    for number in range(count):
        heard, told = CONTEXT.Pipe(duplex=False)
        mine = points[number::count]
        lane = CONTEXT.Process(target=_lane, args=(begun, f"{number}-{name}", mine, two, told), daemon=True)
        lane.start()
        told.close()
        lanes.append((lane, heard, len(mine)))
    outcomes = []
    for lane, heard, tried in lanes:
        outcomes += [heard.recv() for _ in range(tried)]
        lane.join(WORKS_WITHIN_S)
        assert lane.exitcode == 0
    return sorted(outcomes)
