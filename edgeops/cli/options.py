"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from edgeops.cli import contexts
from edgeops.contracts.errors import EdgeopsError

_CONTEXT = "edgeops.context"
F = TypeVar("F", bound=Callable[..., Any])


class FloatRange(click.FloatRange):
    """As click's, but what is no number (`nan`) is in no range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if number != number:
            self.fail(f"{value!r} is no number.", param, ctx)
        return number


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


def served_option(function: F) -> F:
    """Add `--home` and `--context` for commands that speak to a running control plane, here or on another machine.

    The function gets `home`: the fleet's home, or the context's folder, which has the same files for a client.
    """

    def chosen(context: click.Context, _: click.Parameter, name: str | None) -> None:
        if name is not None:
            context.meta[_CONTEXT] = contexts.context_folder(name)

    def home_or_context(context: click.Context, _: click.Parameter, home: Path) -> Path:
        folder: Path = context.meta.get(_CONTEXT, home)
        return folder

    home = click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="EDGEOPS_HOME",
        default="edgeops-home",
        show_default=True,
        show_envvar=True,
        callback=home_or_context,
        help="The home of a fleet that this machine serves.",
    )
    context = click.option(
        "--context",
        envvar="EDGEOPS_CONTEXT",
        show_envvar=True,
        is_eager=True,
        expose_value=False,
        callback=chosen,
        metavar="NAME",
        help="A control plane on another machine, instead of a home; see `edgeops context`.",
    )
    return home(context(function))


def keys_option(function: F) -> F:
    """Add `--keys`: folders with private keys that are kept apart from the fleet's home."""
    return click.option(
        "--keys",
        "key_folders",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        multiple=True,
        help="A folder with private keys beside the home's own; may be given again.",
    )(function)


def said(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuse an option that is given and empty, as of a variable that was not set: it would stand for all, or for none.

    Raises:
        EdgeopsError: E-CONFIG.
    """
    if context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE:
        given = value if isinstance(value, tuple) else (value,)
        if any(not str(one).strip() for one in given):
            raise EdgeopsError("E-CONFIG", f"{parameter.opts[0]} is empty", "Give a value, or leave the option out.")
    return value
