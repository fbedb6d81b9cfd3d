"""See the fleet at a glance, freeze it in an emergency, and read who did what."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeops.cli.options import FloatRange, said, served_option
from edgeops.cli.output import json_option, print_json, print_table, show_again, watch_option

if TYPE_CHECKING:
    from edgeops.client.resources import FleetInfo, ShiftInfo


@click.group()
def command() -> None:
    """The fleet as a whole."""


@command.command("status")
@served_option
@json_option
@watch_option
def status(home: Path, watch: bool, as_json: bool) -> None:
    """Show how many devices there are and are online, and whether the fleet is frozen."""
    from edgeops.client.api import Api

    api = Api.from_home(home)
    show_again(lambda: _show(api.fleet(), as_json), watch=watch)


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


@command.command("telemetry")
@served_option
@json_option
@click.argument("model")
@click.option("--release", metavar="VERSION", help="Only this release.")
@click.option("--profile", metavar="NAME", help="Only this profile.")
@click.option("--device", "devices", multiple=True, metavar="NAME", help="Only this device; repeatable.")
@click.option("--group", default="", callback=said, metavar="NAME", help="Only devices of this group.")
@click.option("--where", default="", callback=said, metavar="QUERY", help="Only devices that this query finds.")
@click.option("--hours", default=24.0, show_default=True, type=FloatRange(0.25, 20_000), help="So far back.")
@click.option("--by", type=click.Choice(["all", "quarter", "hour", "day"]), default="all", show_default=True)
def telemetry(
    home: Path,
    model: str,
    devices: tuple[str, ...],
    hours: float,
    by: str,
    as_json: bool,
    **narrowed: str | None,
) -> None:
    """Show what devices said of MODEL: requests, errors, latency, heat and drift by release and profile, merged."""
    from edgeops.client.api import Api

    found = Api.from_home(home).telemetry(model, devices=devices, by=by, since_s=time.time() - 3600 * hours, **narrowed)
    if as_json:
        print_json(found)
        return
    print_table(
        ("from", "release", "profile", "requests", "failed", "p50 ms", "p95 ms", "p99 ms", "°C at most", "drifts"),
        [
            (
                "" if one.start_s is None else _moment(one.start_s),
                one.release,
                one.profile,
                one.requests,
                sum(one.errors.values()),
                *(f"{one.latency_ms[name]:.4g}" if name in one.latency_ms else "" for name in ("p50", "p95", "p99")),
                "" if one.temperature_max_c is None else f"{one.temperature_max_c:.1f}",
                _drifting(one.drift),
            )
            for one in found
        ],
    )


def _drifting(found: tuple[ShiftInfo, ...]) -> str:
    """Return the tensors that are beyond their limits, the farthest first; empty where nothing can be said."""
    if all(one.psi_limit is None for one in found):
        return ""
    beyond = sorted((one for one in found if one.alarms), key=lambda one: -one.psi)
    return ", ".join(f"{one.name} (PSI {one.psi:.2g} > {one.psi_limit:.2g})" for one in beyond) or "none"


def _moment(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.timezone.utc).isoformat(timespec="minutes")


@command.command("rigs")
@served_option
@json_option
def rigs(home: Path, as_json: bool) -> None:
    """List the rigs that can stand before rollouts, with their boards."""
    from edgeops.client.api import Api

    found = Api.from_home(home).rigs()
    if as_json:
        print_json(found)
        return
    print_table(
        ("rig", "online", "key trusted", "board", "kind", "profile", "does", "refused last"),
        [
            (
                one.rig,
                "revoked" if one.revoked_at_s is not None else "yes" if one.online else "NO",
                "yes" if one.trusted else "NO",
                board.name if board is not None else "",
                board.kind if board is not None else "",
                board.profile if board is not None else "",
                one.doing,
                one.rejected_last,
            )
            for one in found
            for board in (one.boards or (None,))
        ],
    )


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
    behind = f", {fleet.units - fleet.devices} units behind them" if fleet.units > fleet.devices else ""
    click.echo(f"fleet {fleet.fleet}: {fleet.devices} devices, {fleet.online} online{behind}")
    for profile, count in fleet.profiles.items():
        click.echo(f"  {profile}: {count}")
    if fleet.frozen is not None:
        click.echo(f"frozen by {fleet.frozen.actor}: {fleet.frozen.reason or 'no reason given'}")
