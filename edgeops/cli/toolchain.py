"""List, install and examine the isolated tools that the compiler and rigs call."""

from __future__ import annotations

import click

from edgeops.cli.output import json_option, print_json, print_table
from edgeops.contracts.errors import EdgeopsError


@click.group()
def command() -> None:
    """List, install and examine the isolated tools that the compiler and rigs call."""


@command.command("list")
@json_option
def list_toolchains(as_json: bool) -> None:
    """List all toolchains: what each is for, and whether it is installed."""
    from edgeops.compiler.toolchain import TOOLCHAINS

    rows = [
        {
            "name": one.name,
            "version": one.version,
            "purpose": one.purpose,
            "installed": one.installed,
            "path": str(one.path),
        }
        for one in TOOLCHAINS.values()
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(("name", "version", "purpose", "installed", "path"), [tuple(row.values()) for row in rows])


@command.command()
@click.argument("names", nargs=-1)
def install(names: tuple[str, ...]) -> None:
    """Install the toolchains NAMES, or all that compiling needs, ahead of the first compile.

    labgrid, which boards of rigs need, is installed where it is named.
    """
    from edgeops.compiler.toolchain import TOOLCHAINS, ensure, get

    for name in names or sorted(name for name, one in TOOLCHAINS.items() if not one.on_request):
        click.echo(f"{name}: {ensure(get(name))}")


@command.command()
@json_option
def doctor(as_json: bool) -> None:
    """Start every toolchain once; exit status 4 if one does not work.

    labgrid, which is installed by its name only, may be missing.
    """
    from edgeops.compiler.toolchain import TOOLCHAINS, examine

    wanted = {name: one for name, one in sorted(TOOLCHAINS.items()) if one.installed or not one.on_request}
    problems = {name: examine(one) for name, one in wanted.items()}
    if as_json:
        print_json({name: {"works": problem is None, "problem": problem} for name, problem in problems.items()})
    else:
        print_table(("name", "state"), [(name, problem or "works") for name, problem in problems.items()])
    if broken := [name for name, problem in problems.items() if problem is not None]:
        raise EdgeopsError(
            "E-TOOLCHAIN", f"{', '.join(broken)}: {problems[broken[0]]}", "Run `edgeops toolchain install`."
        )
