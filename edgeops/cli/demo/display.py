"""What the demo shows: a live line per step on a terminal, plain lines elsewhere, and tables."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

_PLAIN_WIDTH = 140


class Display:
    """Steps with a spinner and elapsed time, tables, and plain text."""

    def __init__(self, console: Console | None = None) -> None:
        # A file or pipe has no width of its own: wide enough for the tables.
        self.console = console or Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)

    @contextlib.contextmanager
    def step(self, number: int, title: str) -> Iterator[Callable[[str], None]]:
        """Show a step while it runs; the yielded function says what it does now."""
        columns = (
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(f"{number}. {title}", total=None, now="")
            yield lambda now: progress.update(task, now=now)
            elapsed_s = progress.tasks[0].elapsed or 0.0
        self.console.print(f"[green]✓[/] [bold]{number}. {title}[/] [dim]({elapsed_s:.1f} s)[/]")

    def say(self, text: str) -> None:
        """Print a line below the step."""
        self.console.print(f"   {text}", highlight=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table."""
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        self.console.print(table)
