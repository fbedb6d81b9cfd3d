"""A worker process that carries rollouts out until they end, and kills itself at a chosen statement."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from registry_fleet import obey_all, rigs_pass
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rollouts import RolloutState
from edgeops.control import database as database_module
from edgeops.control.database import Database
from edgeops.control.models import AuditEntry, Generation, RigRun, Rollout, RolloutMember, Unit
from edgeops.control.rollout import execute
from edgeops.control.rollout.execute import advance, running

NOW = 1_000_000.0
GROUPS = ("34%", "100%")
# With the lock nobody comes, and waiting longer proves nothing; without it the other one does, if late.
MEET_WITHIN_S = {"": 1.0, "no lock": 30.0}


def opened(where: str) -> Database:
    """Open a registry by its folder, or by the URL of a PostgreSQL database."""
    return Database(where if "://" in where else file_of(where))


def file_of(folder: str) -> Path:
    """The registry in a folder."""
    return Path(folder) / "control.sqlite"


def faults(where: str) -> list[str]:
    """What is wrong with a registry whose rollout should be through."""
    database = opened(where)
    found = faults_of(database)
    database.close()
    return found


def faults_of(database: Database) -> list[str]:
    """The same, of one that is open."""
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
        asked = [(run.connection, run.attempt, run.verdict) for run in session.scalars(select(RigRun))]
        if asked != [("bench", 1, "passed")]:
            found.append(f"the rig was asked as {asked}")
        acts = [row.action for row in session.scalars(select(AuditEntry).order_by(AuditEntry.id))]
        if acts.count("rollout.ask-rigs") != 1 or acts.count("rollout.rig-verdict") != 1:
            found.append(f"the rig was asked or heard otherwise than once: {acts}")
        elif acts.index("rollout.rig-verdict") > acts.index("rollout.start-group"):
            found.append("a group was started before the rig had passed the release")
        found += [f"group {group} was started {times} times" for group, times in starts.items() if times != 1]
        if len(starts) != len(GROUPS):
            found.append(f"{len(starts)} groups were started")
    return found


class Killer:
    """Counts what reaches the database, and dies (SIGKILL) just before number `at`: statements and commits alike."""

    def __init__(self, database: Database, at: int | None) -> None:
        self._at, self.seen = at, 0
        engine = database._engine
        event.listen(engine, "before_cursor_execute", self._statement)
        commit = engine.dialect.do_commit

        def counted(connection: Any) -> None:
            self._next()
            commit(connection)
            self._next()

        engine.dialect.do_commit = counted  # type: ignore[method-assign]

    def _statement(self, *_: object) -> None:
        self._next()

    def _next(self) -> None:
        self.seen += 1
        if self.seen == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


def without_lock() -> None:
    """Read a rollout as before, and lock nothing."""
    get = Session.get

    def unlocked(self: Session, entity: Any, ident: Any, **options: Any) -> Any:
        if entity is Rollout:
            options["with_for_update"] = None
        return get(self, entity, ident, **options)

    Session.get = unlocked  # type: ignore[method-assign]


def meet_before_carrying_out(folder: Path, within_s: float) -> None:
    """Have the first decisions of two workers fall at one time, if nothing keeps one of them from deciding."""
    decide, met = execute.decide, []

    def together(*given: Any) -> Any:
        decision = decide(*given)
        if not met:
            met.append(True)
            (folder / f"{os.getpid()}.decided").touch()
            until_s = time.monotonic() + within_s
            while len(list(folder.glob("*.decided"))) < 2 and time.monotonic() < until_s:
                time.sleep(0.01)
        return decision

    execute.decide = together  # type: ignore[attr-defined]


def work(where: str, kill_at: int | None, *, mutant: str = "", meeting: str = "") -> int:
    """Carry out what is running; rigs pass and devices confirm at once. Return how many points there were to die at."""
    if mutant == "no transaction":
        database_module._begin_sqlite = lambda connection: None  # type: ignore[assignment]
    elif mutant == "no lock":
        without_lock()
    if meeting:
        meet_before_carrying_out(Path(meeting), MEET_WITHIN_S[mutant])
    database = opened(where)
    killer = Killer(database, kill_at)
    carry_out(database)
    database.close()
    return killer.seen


def carry_out(database: Database) -> None:
    """Carry out what is running, until nothing is."""
    while left := running(database):
        for rollout_id in left:
            try:
                while (step := advance(database, rollout_id, NOW)) is not None and step.published is not None:
                    if step.decision.action.value == "wait":
                        break
                rigs_pass(database, NOW)
                obey_all(database, NOW)
            except EdgeopsError as error:
                # Two workers at once: the other one had the database for longer than we wait.
                if error.code != "E-STATE-LOCKED":
                    raise


def main(where: str, kill_at: int | None, mutant: str, meeting: str = "") -> None:
    """The process's entry."""
    work(where, kill_at, mutant=mutant, meeting=meeting)
