"""See the fleet at a glance, freeze it in an emergency, and read who did what."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeops.cli.options import served_option
from edgeops.cli.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from edgeops.client.resources import FleetInfo


@click.group()
def command() -> None:
    """The fleet as a whole."""


@command.command("status")
@served_option
@json_option
def status(home: Path, as_json: bool) -> None:
    """Show how many devices there are and are online, and whether the fleet is frozen."""
    from edgeops.client.api import Api

    _show(Api.from_home(home).fleet(), as_json)


@command.command("freeze")
@served_option
@json_option
@click.option("--reason", default="", help="Why; it is shown to whoever tries to start a rollout.")
def freeze(home: Path, reason: str, as_json: bool) -> None:
    """Let no rollout start or go on. Devices keep what they have; what is under way on a device ends there."""
    from edgeops.client.api import Api

    _show(Api.from_home(home).freeze(reason), as_json)


@command.command("thaw")
@served_option
@json_option
def thaw(home: Path, as_json: bool) -> None:
    """Let rollouts go on; groups that were under way get their whole time anew."""
    from edgeops.client.api import Api

    _show(Api.from_home(home).thaw(), as_json)


@command.command("audit")
@served_option
@json_option
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 500))
def audit(home: Path, limit: int, as_json: bool) -> None:
    """Show who did what, newest first."""
    from edgeops.client.api import Api

    entries = Api.from_home(home).audit(limit)
    if as_json:
        print_json(entries)
        return
    print_table(
        ("when", "who", "did", "what", "detail"),
        [
            (
                datetime.datetime.fromtimestamp(entry.at_s, datetime.timezone.utc).isoformat(timespec="seconds"),
                entry.actor,
                entry.action,
                entry.subject,
                ", ".join(f"{key}={value}" for key, value in entry.detail.items()),
            )
            for entry in entries
        ],
    )


def _show(fleet: FleetInfo, as_json: bool) -> None:
    if as_json:
        print_json(fleet)
        return
    click.echo(f"fleet {fleet.fleet}: {fleet.devices} devices, {fleet.online} online")
    for profile, count in fleet.profiles.items():
        click.echo(f"  {profile}: {count}")
    if fleet.frozen is not None:
        click.echo(f"frozen by {fleet.frozen.actor}: {fleet.frozen.reason or 'no reason given'}")
