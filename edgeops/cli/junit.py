"""`--junit FILE`: a command's results for CI, written whether it succeeds or fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgeops.contracts.errors import EdgeopsError

if TYPE_CHECKING:
    from edgeops.report.junit import Case

F = TypeVar("F", bound=Callable[..., Any])


def junit_option(function: F) -> F:
    """Add `--junit`: write the results as JUnit XML, too."""
    return click.option(
        "--junit",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Write gates and results as JUnit XML, for CI.",
    )(function)


@contextmanager
def junit_file(path: Path | None, name: str) -> Iterator[list[Case]]:
    """Give a list for a command's cases, and write it at the end: an error is one of them unless a case tells it.

    Args:
        path: The file; None: nothing is written.
        name: The command.

    Raises:
        EdgeopsError: The command's own; else E-DISK-FULL or E-DISK-WRITE.
    """
    cases: list[Case] = []
    try:
        yield cases
    except EdgeopsError as error:
        if path is not None:
            from edgeops.report.cases import of_error
            from edgeops.report.junit import Outcome

            if not any(case.outcome in (Outcome.FAILED, Outcome.ERROR) for case in cases):
                cases.append(of_error(name, error))
            _write(path, cases, name)
        raise
    if path is not None:
        _write(path, cases, name)


def _write(path: Path, cases: list[Case], name: str) -> None:
    from edgeops import durable
    from edgeops.report.junit import document

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise durable.disk_error(error, path) from error
    durable.write_file(path, document(cases, f"edgeops {name}"))
