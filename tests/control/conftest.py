"""Fixtures of the control plane's tests: a published fleet, and a control plane that serves a copy of it."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import postgres_server
import pytest
from postgres_server import administration
from registry_fleet import open_registry
from served_fleet import BROKERS, Fleet, Serving, make_release
from sqlalchemy import URL, make_url

from edgeops.trust.founding import make_fleet


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet's home with three releases; copied for each test that serves it."""
    home = tmp_path_factory.mktemp("published") / "home"
    make_fleet(home, "f1")
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        make_release(home, version)
    return home


@pytest.fixture
def home(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "home"))


@pytest.fixture
def served(home: Path, request: pytest.FixtureRequest) -> Iterator[Serving]:
    serving = Serving(home, getattr(request, "param", BROKERS[-1]))
    serving.start()
    yield serving
    serving.stop()


@pytest.fixture
def fleet(served: Serving, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(served, tmp_path / "devices", refuses=("1.2.0",))
    yield fleet
    fleet.stop()


@pytest.fixture(scope="session")
def standing(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A control plane that many tests share: none of them may change how it serves."""
    serving = Serving(Path(shutil.copytree(published, tmp_path_factory.mktemp("standing") / "home")), BROKERS[-1])
    serving.start()
    yield serving
    serving.stop()


@pytest.fixture(scope="session")
def standing_fleet(standing: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The devices of the shared control plane; they refuse 1.2.0."""
    fleet = Fleet(standing, tmp_path_factory.mktemp("devices"), refuses=("1.2.0",))
    yield fleet
    fleet.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server that these tests started."""
    if postgres_server.programs() is None:
        pytest.skip("no initdb of PostgreSQL: apt-get install --yes postgresql")
    pytest.importorskip("psycopg", reason="the package psycopg is not installed")
    with postgres_server.running() as url:
        yield url


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite registry with its tables, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "control.sqlite"
    open_registry(path).close()
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres: str) -> URL:
    """An empty PostgreSQL registry with its tables, to be copied."""
    server = make_url(postgres)
    with administration(server) as connection:
        connection.exec_driver_sql("CREATE DATABASE migrated")
    open_registry(server.set(database="migrated").render_as_string()).close()
    return server


@pytest.fixture(params=["sqlite", "postgresql"])
def registry_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """Where an empty registry may be: a file, or a database of its own on a PostgreSQL server."""
    if request.param == "sqlite":
        yield Path(shutil.copy(request.getfixturevalue("migrated"), tmp_path / "control.sqlite"))
        return
    server = request.getfixturevalue("migrated_postgres")
    name = f"r{secrets.token_hex(8)}"
    with administration(server) as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}" TEMPLATE migrated')
    yield server.set(database=name).render_as_string()
    with administration(server) as connection:
        connection.exec_driver_sql(f'DROP DATABASE "{name}" WITH (FORCE)')
