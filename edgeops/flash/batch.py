"""Many boards from one table, some at a time; one that fails costs the others nothing."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.flash.over_ssh import Flashed

COLUMNS = ("host", "port", "user", "key", "host_key", "profile", "name")
MAX_BOARDS = 1000
_MAX_BYTES = 1 << 20


class Row(NamedTuple):
    """One board of the table; empty: as the command's options say."""

    line: int
    host: str
    port: int | None
    user: str
    key: str
    host_key: str
    profile: str
    name: str


class Outcome(NamedTuple):
    """What became of one board: `done`, or the error's code and what happened."""

    host: str
    done: Flashed | None
    code: str = ""
    said: str = ""


def read_plan(path: Path, port: int = 22) -> list[Row]:
    """Read a table of boards.

    Args:
        path: CSV with a header; `host` is needed, the other columns of `COLUMNS` may be left out.
        port: Of rows that name none.

    Raises:
        EdgeopsError: E-CONFIG; it cannot be read, has an unknown column, or a wrong value, with its line.
    """
    try:
        text = path.read_bytes()[: _MAX_BYTES + 1].decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeopsError("E-CONFIG", f"{path}: {error}") from error
    reader = csv.DictReader(text.splitlines())
    columns = reader.fieldnames or []
    if "host" not in columns or set(columns) - set(COLUMNS):
        raise EdgeopsError("E-CONFIG", f"{path}:1: columns {list(columns)}", f"Columns are {', '.join(COLUMNS)}.")
    rows = [_row(path, reader.line_num, values) for values in reader]
    if not rows or len(rows) > MAX_BOARDS:
        raise EdgeopsError("E-CONFIG", f"{path}: {len(rows)} boards; 1 to {MAX_BOARDS} are taken at once")
    for what, values in (
        ("address", [f"{row.host.lower()}:{row.port or port}" for row in rows]),
        ("name", [row.name for row in rows if row.name]),
    ):
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise EdgeopsError("E-CONFIG", f"{path}: two boards have the {what} {twice}", "Each board once.")
    return rows


def _row(path: Path, line: int, values: dict[str, str | None]) -> Row:
    if None in values or any(value is None for value in values.values()):
        raise EdgeopsError("E-CONFIG", f"{path}:{line}: another number of values than columns")
    given = {name: (values.get(name) or "").strip() for name in COLUMNS}
    port = given["port"]
    if not given["host"] or (port and not (port.isdecimal() and 0 < int(port) < 65536)):
        raise EdgeopsError("E-CONFIG", f"{path}:{line}: host {given['host']!r}, port {port!r}")
    if given["key"] and not Path(given["key"]).expanduser().is_file():
        raise EdgeopsError("E-CONFIG", f"{path}:{line}: no key {given['key']}", "Name a private key's file.")
    if given["name"]:
        check_name(given["name"], f"device name in line {line}")
    return Row(
        line, given["host"], int(port) if port else None, given["user"], given["key"], given["host_key"],
        given["profile"], given["name"],
    )  # fmt: skip


async def flash_all(
    rows: Sequence[Row], flash_one: Callable[[Row], Awaitable[Flashed]], at_once: int, say: Callable[[str], object]
) -> list[Outcome]:
    """Flash boards, so many at a time; return what became of each, in their order."""
    room = asyncio.Semaphore(at_once)

    async def one(row: Row) -> Outcome:
        async with room:
            try:
                done = await flash_one(row)
            except EdgeopsError as error:
                say(f"{row.host}: {error.code}: {error.what}")
                return Outcome(row.host, None, error.code, error.what)
            say(f"{row.host}: done")
            return Outcome(row.host, done)

    return list(await asyncio.gather(*(one(row) for row in rows)))
