"""A PostgreSQL server of the machine's own, on a socket in a temporary folder, for as long as the tests run."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
from sqlalchemy import URL, Connection, create_engine
from sqlalchemy.pool import NullPool


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, the newest version first."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    return versions[0].parent if versions else None


class Server(NamedTuple):
    """A running server: its URL, how to kill all of it at once, and how to start it again."""

    url: str
    kill: Callable[[], None]
    start: Callable[[], None]


@contextlib.contextmanager
def running() -> Iterator[str]:
    """Run a server; yield the SQLAlchemy URL of its database `template1`'s neighbour `postgres`."""
    with killable() as server:
        yield server.url


@contextlib.contextmanager
def killable() -> Iterator[Server]:
    """Run a server that may be killed."""
    bin_dir = programs()
    assert bin_dir is not None
    # PostgreSQL refuses to run as root; then it runs as the user that its package made.
    account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    with tempfile.TemporaryDirectory(prefix="edgeops-pg-") as folder:
        data = Path(folder) / "data"
        if account:
            os.chown(folder, account.pw_uid, account.pw_gid)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": folder, **as_user}
        options = ["--auth=trust", "--username=edgeops", "--encoding=UTF8", "--no-sync", "-D", str(data)]
        subprocess.run([bin_dir / "initdb", *options], check=True, **quiet)  # type: ignore[call-overload]
        settings = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c max_connections=50"
        start = [bin_dir / "pg_ctl", "-D", str(data), "-w", "-o", settings, "-l", str(Path(folder) / "log"), "start"]

        def begin() -> None:
            subprocess.run(start, check=True, **quiet)  # type: ignore[call-overload]

        def kill() -> None:
            postmaster = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
            family = [postmaster, *postmaster.children(recursive=True)]
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=60)

        begin()
        try:
            yield Server(f"postgresql+psycopg://edgeops@/postgres?host={folder}", kill, begin)
        finally:
            stop = [bin_dir / "pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop"]
            subprocess.run(stop, check=True, **quiet)  # type: ignore[call-overload]


@contextlib.contextmanager
def administration(server: URL) -> Iterator[Connection]:
    """A connection that may make and drop databases."""
    engine = create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        yield connection
