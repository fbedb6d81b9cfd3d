"""Backs a fleet's home and registry up into one file, and makes a home and a registry of it again.

After a restore no generation goes backwards: the floor comes from what devices report.
"""

from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sqlalchemy import func, insert, inspect, select, text
from sqlalchemy.orm import Session

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.control.database import Database
from edgeops.control.models import Device
from edgeops.control.schema import SCHEMA

REGISTRY = "registry.sqlite"
DATABASE_NAME = "control.sqlite"
MAX_BYTES = 256 << 30
_ROWS = 500
# What belongs to a running control plane, or is made anew by the next one.
_TRANSIENT = ("serve.json", "serve.lock", "broker", DATABASE_NAME, f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm")
# First: whatever is published while the rest is copied, the files that it names are there.
_FIRST = Path("repository/metadata/timestamp.json")


def backup(home: Path, target: Path, *, database_url: str | None = None) -> int:
    """Write a backup; the control plane may go on serving. Private keys are in it: only this user can read it.

    Args:
        home: The fleet's home.
        target: The file to write.
        database_url: The registry, where it is not in the home.

    Returns:
        The file's size in bytes.

    Raises:
        EdgeopsError: E-CONFIG; there is no fleet's home, or the file is there already. E-STATE-CORRUPT; the registry
            cannot be read. E-DISK-FULL or E-DISK-WRITE; no file is left.
    """
    if not (home / "repository").is_dir():
        raise EdgeopsError("E-CONFIG", f"{home} is not a fleet's home", "Give the folder that `edgeops serve` serves.")
    if target.exists():
        raise EdgeopsError("E-CONFIG", f"{target} is there already", "Choose another name.")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".backup-") as folder:
            registry, packed = Path(folder) / REGISTRY, Path(folder) / "packed"
            # The registry before the files: a rollout in it never misses its release.
            _copy_registry(home / DATABASE_NAME, registry, database_url)
            descriptor = os.open(packed, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as raw:
                with (
                    gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1) as stream,
                    tarfile.open(fileobj=stream, mode="w|") as archive,
                ):
                    archive.add(registry, REGISTRY)
                    for path in _files(home):
                        archive.add(home / path, str(Path("home") / path), recursive=False)
                raw.flush()
                os.fsync(raw.fileno())
            durable.rename(packed, target)
    except OSError as error:
        raise durable.disk_error(error, target) from error
    return target.stat().st_size


def restore(source: Path, home: Path, *, database_url: str | None = None) -> int:
    """Make a home of a backup, and a registry.

    Args:
        source: The backup.
        home: The new home; it must not be there, or be empty.
        database_url: Where the registry is to be; None: in the home.

    Returns:
        How many devices the registry holds.

    Raises:
        EdgeopsError: E-CONFIG; the home or the registry is not empty. E-STATE-CORRUPT; it is no backup, or is damaged.
            E-DISK-FULL or E-DISK-WRITE. The home is not there then.
    """
    if home.exists() and any(home.iterdir()):
        raise EdgeopsError("E-CONFIG", f"{home} is not empty", "Restore into a new folder.")
    home.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=home.parent, prefix=".restore-") as name:
            folder = Path(name)
            _unpack(source, folder)
            made, registry = folder / "home", folder / REGISTRY
            if not made.is_dir() or not registry.is_file():
                raise EdgeopsError("E-STATE-CORRUPT", f"{source} is not a backup of a fleet", "Give another file.")
            with closing(_Closing(registry)) as old:
                # A backup of an older version gets this version's form, as a registry in use does.
                old.database.migrate()
                with old.database.read() as session:
                    devices = session.scalar(select(func.count()).select_from(Device)) or 0
                if database_url is not None:
                    _fill(old.database, database_url)
            if database_url is None:
                shutil.move(registry, made / DATABASE_NAME)
            made.chmod(0o700)
            durable.fsync_tree(made)
            if home.exists():
                home.rmdir()
            durable.rename(made, home)
    except OSError as error:
        raise durable.disk_error(error, home) from error
    return devices


class _Closing:
    """A database that is closed at the end of a block, with nothing beside its file."""

    def __init__(self, path: Path) -> None:
        self.database = Database(path)
        self._path = path

    def close(self) -> None:
        self.database.close()
        with closing(sqlite3.connect(self._path)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")


def _files(home: Path) -> Iterator[Path]:
    if (home / _FIRST).is_file():
        yield _FIRST
    for directory, folders, names in os.walk(home):
        relative = Path(directory).relative_to(home)
        if relative == Path():
            folders[:] = [name for name in folders if name not in _TRANSIENT]
            names = [name for name in names if name not in _TRANSIENT]
        if relative != Path():
            yield relative
        yield from (
            relative / name for name in sorted(names) if relative / name != _FIRST and not name.endswith(".tmp")
        )


def _copy_registry(path: Path, target: Path, database_url: str | None) -> None:
    if database_url is None:
        try:
            with (
                closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as old,
                closing(sqlite3.connect(target)) as new,
            ):
                old.backup(new)
        except sqlite3.Error as error:
            raise EdgeopsError("E-STATE-CORRUPT", f"{path}: {error}", "Was the fleet ever served?") from error
        target.chmod(0o600)
        return
    with closing(_Closing(target)) as new:
        new.database.migrate()
        old_database = Database(database_url)
        try:
            _copy_rows(old_database, new.database)
        finally:
            old_database.close()


def _fill(old: Database, database_url: str) -> None:
    new = Database(database_url)
    try:
        new.migrate()
        _copy_rows(old, new)
    finally:
        new.close()


def _copy_rows(old: Database, new: Database) -> None:
    """Copy every row of one consistent view into an empty registry of the same form, in one transaction."""
    with old.read() as source, new.write() as target:
        if target.scalar(select(func.count()).select_from(Device)):
            raise EdgeopsError("E-CONFIG", "the registry is not empty", "Give an empty database.")
        for table in SCHEMA.sorted_tables:
            rows = source.execute(select(table)).mappings()
            while part := rows.fetchmany(_ROWS):
                target.execute(insert(table), [dict(row) for row in part])
        _number_on(target)


def _number_on(session: Session) -> None:
    """Let PostgreSQL number new rows after those that were copied with their numbers."""
    if session.get_bind().dialect.name != "postgresql":
        return
    for table in SCHEMA.sorted_tables:
        for column in inspect(table).primary_key:
            name = session.scalar(text("SELECT pg_get_serial_sequence(:t, :c)"), {"t": table.name, "c": column.name})
            newest = session.scalar(select(func.max(column)))
            if name is not None and newest is not None:
                session.execute(text("SELECT setval(:name, :newest)"), {"name": name, "newest": newest})


def _unpack(source: Path, folder: Path) -> None:
    """Unpack a backup; nothing in it may leave the folder, be a link or a device, or be larger than any backup."""
    try:
        with gzip.open(source, "rb") as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                taken = 0
                for member in archive:
                    taken += member.size
                    if taken > MAX_BYTES or not (member.isfile() or member.isdir()):
                        raise EdgeopsError("E-STATE-CORRUPT", f"{source}: {member.name[:200]!r} cannot be in a backup")
                    archive.extract(member, folder, filter="data")
            # The checksum of the whole stands behind the archive's end.
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise EdgeopsError("E-STATE-CORRUPT", f"{source}: {error}", "Give another backup.") from error
