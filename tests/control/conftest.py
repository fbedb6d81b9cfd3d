"""Fixtures of the control plane's tests: a published fleet, and a control plane that serves a copy of it."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import postgres_server
import pytest
import sqlalchemy
from served_fleet import BROKERS, Fleet, Serving, make_release

from edgeops.trust.publisher import Publisher


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet's home with three releases; copied for each test that serves it."""
    home = tmp_path_factory.mktemp("published") / "home"
    Publisher.init(home, "f1")
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
        pytest.skip("the program initdb of PostgreSQL is not installed")
    pytest.importorskip("psycopg", reason="the package psycopg is not installed")
    with postgres_server.running() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def registry_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """Where an empty registry may be: a file, or a database of its own on a PostgreSQL server."""
    if request.param == "sqlite":
        yield tmp_path / "control.sqlite"
        return
    server = sqlalchemy.engine.make_url(request.getfixturevalue("postgres"))
    name = f"r{secrets.token_hex(8)}"
    admin = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.pool.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
    yield server.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.exec_driver_sql(f'DROP DATABASE "{name}" WITH (FORCE)')
