"""Make a fleet's home and registry of a backup."""

from __future__ import annotations

from pathlib import Path

import click

from edgeops.cli.options import home_option


@click.command()
@home_option
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--database", metavar="URL", envvar="EDGEOPS_DATABASE", help="An empty PostgreSQL for the registry.")
def command(home: Path, file: Path, database: str | None) -> None:
    """Make the fleet's home, which must be empty, and its registry of FILE."""
    from edgeops.control.backup import restore

    devices = restore(file, home, database_url=database)
    click.echo(f"{home}: {devices} devices; serve it with `edgeops serve --home {home}`")
