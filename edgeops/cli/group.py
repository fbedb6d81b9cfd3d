"""Device groups: by a query over what devices are, or by names."""

from __future__ import annotations

from pathlib import Path

import click

from edgeops.cli.options import said, served_option
from edgeops.cli.output import json_option, print_json, print_table, show_again, watch_option


@click.group()
def command() -> None:
    """Device groups: create, list, show, remove."""


@command.command("create")
@served_option
@json_option
@click.argument("name")
@click.option(
    "--where", default="", callback=said, metavar="QUERY", help="All devices that this query finds, now and later."
)
@click.option("--device", "devices", multiple=True, metavar="NAME", help="This device; repeatable.")
def create(home: Path, name: str, where: str, devices: tuple[str, ...], as_json: bool) -> None:
    """Make a group."""
    from edgeops.client.api import Api

    group = Api.from_home(home).create_group(name, query=where, devices=devices)
    if as_json:
        print_json(group)
        return
    click.echo(f"group {name}: {len(group.devices)} devices now")


@command.command("list")
@served_option
@json_option
@watch_option
def list_groups(home: Path, watch: bool, as_json: bool) -> None:
    """List the groups."""
    from edgeops.client.api import Api

    api = Api.from_home(home)

    def show() -> None:
        groups = api.groups()
        if as_json:
            print_json(groups)
            return
        print_table(
            ("group", "devices now", "query", "made by"),
            [(group.name, len(group.devices), group.query, group.created_by) for group in groups],
        )

    show_again(show, watch=watch)


@command.command("show")
@served_option
@json_option
@click.argument("name")
def show(home: Path, name: str, as_json: bool) -> None:
    """List the devices that are in a group now."""
    from edgeops.client.api import Api

    group = Api.from_home(home).group(name)
    if as_json:
        print_json(group)
        return
    print_table(("device",), [(device,) for device in group.devices])


@command.command("remove")
@served_option
@click.argument("name")
def remove(home: Path, name: str) -> None:
    """Remove a group; its devices stay as they are."""
    from edgeops.client.api import Api

    Api.from_home(home).remove_group(name)
