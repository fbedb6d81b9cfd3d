"""A worker process that carries rollouts out until they end, and kills itself at a chosen statement."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from registry_fleet import obey_all
from sqlalchemy import event

from edgeops.contracts.errors import EdgeopsError
from edgeops.control import database as database_module
from edgeops.control.database import Database
from edgeops.control.rollout.execute import advance, running

NOW = 1_000_000.0


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


def work(directory: Path, kill_at: int | None, *, mutant: str = "") -> int:
    """Carry out what is running; devices confirm at once. Return how many points there were to die at."""
    if mutant == "no transaction":
        database_module._begin_sqlite = lambda connection: None  # type: ignore[assignment]
    database = Database(directory / "control.sqlite")
    killer = Killer(database, kill_at)
    while left := running(database):
        for rollout_id in left:
            try:
                while (step := advance(database, rollout_id, NOW)) is not None and step.published is not None:
                    if step.decision.action.value == "wait":
                        break
                obey_all(database, NOW)
            except EdgeopsError as error:
                # Two workers at once: the other one had the database for longer than we wait.
                if error.code != "E-STATE-LOCKED":
                    raise
    database.close()
    return killer.seen


def main(directory: str, kill_at: int | None, mutant: str) -> None:
    """The process's entry."""
    work(Path(directory), kill_at, mutant=mutant)
