"""The registry's database: its form, its transactions, and what happens when the disk or the file is not well."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from registry_fleet import add_devices, obey_all, open_registry, release
from sqlalchemy import event, inspect, select, text
from sqlalchemy.exc import DBAPIError

from edgeops.contracts.errors import EdgeopsError
from edgeops.control import audit
from edgeops.control.database import Database
from edgeops.control.models import AuditEntry, Device, Rollout, Unit
from edgeops.control.rollout import manage
from edgeops.control.rollout.execute import advance
from edgeops.control.rollout.policy import Gates, Policy
from edgeops.control.rollout.selection import Selection
from edgeops.control.schema import SCHEMA

RECORDED = Path(__file__).parent / "registries"
NOW = 1_000_000.0


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    with database._engine.connect() as connection:
        difference = compare_metadata(MigrationContext.configure(connection), SCHEMA)
    database.close()
    assert difference == []


@pytest.mark.parametrize(
    ("asked", "whole"), [("schema import SCHEMA as form", True), ("models import Base as form", False)]
)
def test_the_schema_is_whole_in_a_process_that_imports_nothing_else(tmp_path: Path, asked: str, whole: bool) -> None:
    """A table that it did not know would be missing from a registry that moves; the control: some modules alone."""
    database = open_registry(tmp_path)
    made = set(inspect(database._engine).get_table_names()) - {"alembic_version"}
    database.close()
    script = f"from edgeops.control.{asked}\nprint(*getattr(form, 'metadata', form).tables)"
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert (set(told.split()) == made) is whole


@pytest.mark.parametrize("change", ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"])
def test_the_audit_log_is_only_added_to(registry_url: Path | str, change: str) -> None:
    """The database itself refuses, whoever asks; the control: another table takes the same."""
    database = open_registry(registry_url)
    with database.write() as session:
        audit.record(session, at_s=NOW, actor="op", action="test", subject="it")
    with pytest.raises(DBAPIError, match="only added to"), database.write() as session:
        session.execute(text(change))
    with database.write() as session:
        assert session.scalars(select(AuditEntry.actor)).all() == ["op"]
        session.execute(text("DELETE FROM freezes"))
    database.close()


def test_migrating_again_changes_nothing(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    add_devices(database, 2)
    database.migrate()
    with database.read() as session:
        assert len(session.scalars(select(Device)).all()) == 2
    database.close()


@pytest.mark.parametrize("recorded", sorted(RECORDED.glob("*.sql")), ids=lambda path: path.stem)
def test_a_registry_of_every_earlier_version_opens_and_goes_on(recorded: Path, tmp_path: Path) -> None:
    """Each file is a registry as that version left it, in the middle of a rollout: one of three devices has 1.0.0."""
    with sqlite3.connect(tmp_path / "control.sqlite") as connection:
        connection.executescript(recorded.read_text())
    connection.close()
    database = open_registry(tmp_path)
    for _ in range(9):
        advance(database, 1, NOW)
        obey_all(database, NOW)
    with database.read() as session:
        assert session.get_one(Rollout, 1).state == "succeeded"
        assert [unit.desired_generation for unit in session.scalars(select(Unit))] == [1, 1, 1]
    database.close()


def test_there_is_a_recorded_registry_of_the_newest_form(tmp_path: Path) -> None:
    """After a new migration, record one more (`python tests/control/record_registry.py`); old ones are kept."""
    database = open_registry(tmp_path)
    with database._engine.connect() as connection:
        newest = MigrationContext.configure(connection).get_current_revision()
    database.close()
    assert f"{newest}" in {path.stem for path in RECORDED.glob("*.sql")}


def test_a_failed_block_writes_nothing(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    add_devices(database, 1)
    with pytest.raises(RuntimeError):
        _write_and_fail(database)
    with database.read() as session:
        assert session.get_one(Device, "dev-000").profile == "raspberry-pi-4"
    database.close()


def _write_and_fail(database: Database) -> None:
    with database.write() as session:
        session.get_one(Device, "dev-000").profile = "other"
        session.flush()
        raise RuntimeError


def test_a_read_sees_one_moment_while_others_write(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    add_devices(database, 1)
    with database.read() as before:
        assert before.get_one(Device, "dev-000").online
        writer = threading.Thread(target=_set_offline, args=(database,))
        writer.start()
        writer.join()
        before.expire_all()
        assert before.get_one(Device, "dev-000").online
    with database.read() as after:
        assert not after.get_one(Device, "dev-000").online
    database.close()


def _set_offline(database: Database) -> None:
    with database.write() as session:
        session.get_one(Device, "dev-000").online = False


def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path) -> None:
    database = open_registry(tmp_path)
    add_devices(database, 1)
    with database._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    limited = Database(tmp_path / "control.sqlite")
    event.listen(limited._engine, "connect", lambda raw, _: raw.execute(f"PRAGMA max_page_count={pages}"), insert=False)
    with pytest.raises(EdgeopsError, match="E-DISK-FULL"):
        _fill(limited)
    limited.close()
    with database.read() as session:
        rollouts = session.scalars(select(Rollout)).all()
        assert all(row.state in ("running", "superseded") for row in rollouts)
    database.close()


def _fill(database: Database) -> None:
    policy = Policy(groups=("100%",), gates=Gates())
    for number in range(200):
        a_release = release(f"1.0.{number}")
        manage.create(database, a_release, policy, Selection(), actor="test", now_s=NOW, start=True)


def test_a_lock_that_is_held_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeops.control.database.BUSY_WITHIN_S", 0.2)
    database = open_registry(tmp_path)
    blocker = sqlite3.connect(tmp_path / "control.sqlite", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(EdgeopsError, match="E-STATE-LOCKED"):
        add_devices(database, 1)
    blocker.execute("ROLLBACK")
    blocker.close()
    add_devices(database, 1)  # negative control
    database.close()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "control.sqlite").write_bytes(b"this is no database, but long enough to be looked at" * 50)
    with pytest.raises(EdgeopsError, match="E-STATE-CORRUPT"):
        open_registry(tmp_path)


def test_a_database_of_a_newer_edgeops_is_refused_and_left_alone(tmp_path: Path) -> None:
    database = open_registry(tmp_path)
    with database._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(EdgeopsError, match="E-STATE-CORRUPT"):
        database.migrate()
    with database._engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one() == "9999"
    database.close()


def test_the_file_is_its_owners_only(tmp_path: Path) -> None:
    database = open_registry(tmp_path)
    assert (tmp_path / "control.sqlite").stat().st_mode & 0o077 == 0
    database.close()
