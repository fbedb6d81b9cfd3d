"""Back a fleet up: its home with all keys, and its registry."""

from __future__ import annotations

from pathlib import Path

import click

from edgeops.cli.options import home_option


@click.command()
@home_option
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--database", metavar="URL", envvar="EDGEOPS_DATABASE", help="The registry, if it is not in the home.")
def command(home: Path, file: Path, database: str | None) -> None:
    """Write the fleet's home and its registry to FILE; the control plane may go on serving.

    Private keys are in it: keep it as you keep them.
    """
    from edgeops.control.backup import backup

    size = backup(home, file, database_url=database)
    click.echo(f"{file}: {size / 2**20:.1f} MiB, with private keys")
