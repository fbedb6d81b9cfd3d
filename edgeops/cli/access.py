"""Who may do what with the control plane: API tokens with roles."""

from __future__ import annotations

import datetime
from pathlib import Path

import click

from edgeops.cli.options import FloatRange, served_option
from edgeops.cli.output import json_option, print_json, print_table
from edgeops.contracts.access import Role

_ROLES = [str(role) for role in Role if role is not Role.UNKNOWN]


@click.group()
def command() -> None:
    """API tokens: create, list, revoke."""


@command.command("create")
@served_option
@json_option
@click.argument("name")
@click.option("--role", type=click.Choice(_ROLES), required=True)
@click.option("--valid-days", default=90.0, show_default=True, type=FloatRange(0, 366, min_open=True))
def create(home: Path, name: str, role: str, valid_days: float, as_json: bool) -> None:
    """Make a token for somebody; it is shown once."""
    from edgeops.client.api import Api

    made = Api.from_home(home).create_api_token(name, role, valid_s=valid_days * 86400)
    if as_json:
        print_json(made)
        return
    click.echo(made.token)


@command.command("list")
@served_option
@json_option
def list_tokens(home: Path, as_json: bool) -> None:
    """List the tokens; their secrets are not kept."""
    from edgeops.client.api import Api

    tokens = Api.from_home(home).api_tokens()
    if as_json:
        print_json(tokens)
        return
    print_table(
        ("name", "role", "made by", "expires", "revoked", "used"),
        [(t.name, t.role, t.created_by, _day(t.expires_at_s), _day(t.revoked_at_s), _day(t.used_at_s)) for t in tokens],
    )


@command.command("revoke")
@served_option
@click.argument("name")
def revoke(home: Path, name: str) -> None:
    """End a token at once."""
    from edgeops.client.api import Api

    Api.from_home(home).revoke_api_token(name)


def _day(at_s: float | None) -> str:
    return "" if at_s is None else datetime.datetime.fromtimestamp(at_s, datetime.timezone.utc).date().isoformat()
