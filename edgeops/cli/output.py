"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO, TypeVar

import click
import msgspec

F = TypeVar("F", bound=Callable[..., Any])
WATCH_EVERY_S = 2.0


def json_option(function: F) -> F:
    """Add `--json`: print one JSON document on stdout and nothing else."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(function)


def print_json(value: Any) -> None:
    """Print a struct, or plain values that hold structs, as indented JSON."""
    click.echo(json.dumps(msgspec.to_builtins(value), indent=2, sort_keys=True))


def watch_option(function: F) -> F:
    """Add `--watch`: show it again and again until Ctrl-C."""
    return click.option(
        "--watch", is_flag=True, help=f"Show it again every {WATCH_EVERY_S:g} s until Ctrl-C, where it has changed."
    )(function)


def show_again(show: Callable[[], None], *, watch: bool) -> None:
    """Show something, with `watch` again and again: on a terminal over what was there, elsewhere where it has changed.

    Args:
        show: Asks anew, and prints by this module.
        watch: Until Ctrl-C, which ends it well.
    """
    if not watch:
        show()
        return
    said = ""
    try:
        while True:
            with io.StringIO() as text, contextlib.redirect_stdout(_Watched(text, sys.stdout)):
                show()
                now = text.getvalue()
            if now != said:
                if sys.stdout.isatty():
                    click.clear()
                click.echo(now, nl=False)
                said = now
            time.sleep(WATCH_EVERY_S)
    except KeyboardInterrupt:
        return


class _Watched:
    """What is shown is kept until it is whole; it looks like the terminal that it is for."""

    def __init__(self, text: io.StringIO, for_whom: TextIO) -> None:
        self._text, self._for = text, for_whom
        self.encoding = for_whom.encoding

    def write(self, text: str) -> int:
        return self._text.write(text)

    def flush(self) -> None:
        """Nothing waits."""

    def isatty(self) -> bool:
        return self._for.isatty()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: in colour and lines on a terminal, tab-separated text elsewhere."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            click.echo("\t".join(str(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console().print(table)
