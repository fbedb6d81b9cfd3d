"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def home_option(function: F) -> F:
    """Add `--home`: the fleet's home, from EDGEOPS_HOME or ./edgeops-home where it is not given."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="EDGEOPS_HOME",
        default="edgeops-home",
        show_default=True,
        show_envvar=True,
        help="The fleet's home.",
    )(function)
