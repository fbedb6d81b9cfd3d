"""Contexts: control planes on other machines that commands can speak to."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

import click

from edgeops.cli import contexts
from edgeops.cli.output import json_option, print_json, print_table

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group()
def command() -> None:
    """Control planes on other machines: `--context NAME` or EDGEOPS_CONTEXT chooses one."""


@command.command("add")
@click.argument("name")
@click.option("--url", required=True, help="Address of the REST API: https://host:port.")
@click.option("--ca", "ca_file", required=True, type=_FILE, help="The fleet's ca.pem.")
@click.option("--token-file", required=True, type=click.File(), help="A file with an API token; -: standard input.")
def add(name: str, url: str, ca_file: Path, token_file: TextIO) -> None:
    """Keep address, CA and token of a control plane under a name, after asking it whether they fit."""
    from edgeops.client.api import Api

    token = token_file.read().strip()
    fleet = Api(url, token, ca_file).fleet()
    folder = contexts.add(name, url, ca_file.read_bytes(), token)
    click.echo(f"{name}: fleet {fleet.fleet} at {url}, kept in {folder}")


@command.command("list")
@json_option
def list_contexts(as_json: bool) -> None:
    """List the contexts."""
    found = contexts.names()
    if as_json:
        print_json(found)
        return
    print_table(("context",), [(name,) for name in found])


@command.command("remove")
@click.argument("name")
def remove(name: str) -> None:
    """Forget a context, its token too."""
    contexts.remove(name)
