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


def keys_option(function: F) -> F:
    """Add `--keys`: folders with private keys that are kept apart from the fleet's home."""
    return click.option(
        "--keys",
        "key_folders",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        multiple=True,
        help="A folder with private keys beside the home's own; may be given again.",
    )(function)
