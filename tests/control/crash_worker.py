"""A worker process that carries rollouts out until they end, and kills itself at a chosen statement."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from registry_fleet import obey_all, rigs_pass
from sqlalchemy import event
from sqlalchemy.orm import Session

from edgeops.contracts.errors import EdgeopsError
from edgeops.control import database as database_module
from edgeops.control.database import Database
from edgeops.control.models import Rollout
from edgeops.control.rollout import execute
from edgeops.control.rollout.execute import advance, running

NOW = 1_000_000.0
# With the lock nobody comes, and waiting longer proves nothing; without it the other one does, if late.
MEET_WITHIN_S = {"": 1.0, "no lock": 30.0}


def opened(where: str) -> Database:
    """Open a registry by its folder, or by the URL of a PostgreSQL database."""
    return Database(where if "://" in where else Path(where) / "control.sqlite")


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
    database.close()
    return killer.seen


def main(where: str, kill_at: int | None, mutant: str, meeting: str = "") -> None:
    """The process's entry."""
    work(where, kill_at, mutant=mutant, meeting=meeting)
