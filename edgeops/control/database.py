"""The registry's database: opened, migrated, and used in transactions that are whole or nothing."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.orm import Session

from edgeops.contracts.errors import EdgeopsError
from edgeops.control.idempotency import CLAIM

BUSY_WITHIN_S = 15.0
_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """One registry. Safe for use by many threads; each transaction has a connection of its own.

    Args:
        url: SQLAlchemy URL, or the path of an SQLite file.

    Raises:
        EdgeopsError: E-CONFIG; the URL cannot be read, or its driver is not installed.
    """

    def __init__(self, url: str | Path) -> None:
        target = URL.create("sqlite", database=str(url)) if isinstance(url, Path) else url
        try:
            self._engine: Engine = create_engine(target, pool_pre_ping=not isinstance(url, Path))
        except (ArgumentError, ImportError) as error:
            # Not what it says: there may be a password in it.
            raise EdgeopsError(
                "E-CONFIG",
                f"the database's URL names none that can be used: {type(error).__name__}",
                "Give postgresql+psycopg://USER@HOST/NAME (pip install 'edgeops[postgres]').",
            ) from None
        self._sqlite = self._engine.dialect.name == "sqlite"
        self._held: dict[str, Connection] = {}
        self._holding = threading.Lock()
        if self._sqlite:
            if isinstance(url, Path):
                url.touch(mode=0o600)
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)

    def migrate(self) -> None:
        """Bring the tables to this version's form; an older database keeps all that it holds.

        Raises:
            EdgeopsError: E-STATE-CORRUPT; not a database, or one of a newer edgeops. E-DISK-FULL or E-DISK-WRITE.
        """
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        try:
            with _database_errors(), self._engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:
            raise EdgeopsError(
                "E-STATE-CORRUPT", f"the control plane's database: {error}", "Use the edgeops version that wrote it."
            ) from error

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads: one consistent view, which blocks nobody."""
        options: dict[str, Any] = {"edgeops_read": True}
        if not self._sqlite:
            options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with _database_errors(), self._engine.connect().execution_options(**options) as connection:
            with Session(bind=connection, expire_on_commit=False) as session:
                yield session
            connection.rollback()

    @contextmanager
    def write(self, *, claims: bool = True) -> Iterator[Session]:
        """A transaction that is committed as a whole when the block ends, and not at all when it raises.

        On SQLite it excludes all other writers from its begin on; on PostgreSQL use `with_for_update`. Within a request
        that has an idempotency key, the first one takes the key.

        Args:
            claims: Whether it is a change that the request asks for, not only a note beside it.

        Raises:
            EdgeopsError: E-STATE-LOCKED; another writer kept it too long. E-DISK-FULL or E-DISK-WRITE; nothing was
                written. E-API-BUSY; the request's key is taken; nothing was written.
        """
        claim = CLAIM.get() if claims else None
        with _database_errors(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            if claim is not None:
                claim.take(session)
            yield session
        if claim is not None:
            claim.held = True

    def holds(self, work: str) -> bool:
        """Say whether this process may do some work of which there is one at a time; it keeps it until it ends.

        On PostgreSQL by an advisory lock, which ends with its connection: another process takes over from one that
        dies. An SQLite registry has one process.

        Raises:
            EdgeopsError: E-DISK-WRITE; the database is away.
        """
        if self._sqlite:
            return True
        with _database_errors(), self._holding:
            held = self._held.get(work)
            if held is not None:
                try:
                    held.exec_driver_sql("SELECT 1")
                    return True
                except DBAPIError:
                    del self._held[work]  # the connection is gone, and the lock with it
                    held.invalidate()
                    held.close()
                    raise
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            got = connection.exec_driver_sql("SELECT pg_try_advisory_lock(hashtext(%s))", (f"edgeops {work}",)).scalar()
            if got:
                self._held[work] = connection
            else:
                connection.close()
            return bool(got)

    def close(self) -> None:
        """Close all connections."""
        for connection in self._held.values():
            connection.invalidate()
            connection.close()
        self._held.clear()
        self._engine.dispose()


def one_at_a_time(session: Session, work: str) -> None:
    """Wait until no other transaction does this work, and keep others from it until this one ends.

    What it reads from then on is what those before it have written. An SQLite registry has one writer in any case.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"edgeops {work}"))))


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # The driver's own transaction handling begins too late for a consistent read; ours is explicit.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute(f"PRAGMA busy_timeout={int(BUSY_WITHIN_S * 1000)}")


def _begin_sqlite(connection: Any) -> None:
    read = connection.get_execution_options().get("edgeops_read", False)
    connection.exec_driver_sql("BEGIN" if read else "BEGIN IMMEDIATE")


@contextmanager
def _database_errors() -> Iterator[None]:
    """Turn what the driver says of disk and locks into errors with codes."""
    try:
        yield
    except OperationalError as error:
        said = str(error.orig)
        if "full" in said or "No space" in said:
            raise EdgeopsError(
                "E-DISK-FULL", f"the database: {said}", "Free some space; nothing was written."
            ) from error
        if "locked" in said or "busy" in said:
            raise EdgeopsError("E-STATE-LOCKED", f"the database: {said}", "Try again.") from error
        raise EdgeopsError("E-DISK-WRITE", f"the database: {said}", "Check the disk and the server.") from error
    except DBAPIError as error:
        if isinstance(error.orig, sqlite3.DatabaseError) and "not a database" in str(error.orig):
            raise EdgeopsError(
                "E-STATE-CORRUPT", f"the control plane's database: {error.orig}", "Restore a backup."
            ) from error
        raise
