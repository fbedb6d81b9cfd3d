"""Bring a release to the devices, in groups, under gates."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeops.cli.device import parse_labels
from edgeops.cli.options import served_option
from edgeops.cli.output import json_option, print_json, print_table
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rollouts import ENDED_STATES, RolloutState

if TYPE_CHECKING:
    from edgeops.client.api import Api
    from edgeops.client.resources import RolloutInfo

WATCH_EVERY_S = 0.5


@click.group()
def command() -> None:
    """Rollouts: create, start, watch, pause, resume, abort, revert."""


@command.command("create")
@served_option
@json_option
@click.argument("model")
@click.argument("version")
@click.option("--groups", default="100%", show_default=True, help="Shares, counts or rest, such as 10%,50%,100%.")
@click.option("--device", "devices", multiple=True, metavar="NAME", help="Only this device; repeatable.")
@click.option("--profile", "profiles", multiple=True, metavar="NAME", help="Only this profile; repeatable.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only devices with it; repeatable.")
@click.option("--where", default="", metavar="QUERY", help="Only devices that this query finds.")
@click.option("--group", metavar="NAME", help="Only devices of this device group.")
@click.option("--success-min", default=1.0, show_default=True, help="Smallest share of confirmed devices.")
@click.option("--failure-max", default=0.0, show_default=True, help="Largest share of failed devices.")
@click.option("--min-count", default=1, show_default=True, help="Reports before a share means anything.")
@click.option("--timeout-s", default=3600.0, show_default=True, help="How long a group has.")
@click.option("--error-rate-max", type=float, help="Largest share of requests that fail, of each profile.")
@click.option("--error-rate-increase-max", type=float, help="How far it may be above the old release's.")
@click.option("--latency-p95-ms-max", type=float, help="Largest 95th percentile of latency, of each profile.")
@click.option("--latency-p95-ratio-max", type=float, help="Largest ratio of it to the old release's.")
@click.option("--false-alarm", default=0.01, show_default=True, help="How likely these four may stop it wrongly.")
@click.option("--approval", is_flag=True, help="It starts only after somebody else has approved it.")
@click.option("--start", is_flag=True, help="Start it at once.")
def create(
    home: Path,
    model: str,
    version: str,
    groups: str,
    devices: tuple[str, ...],
    profiles: tuple[str, ...],
    labels: tuple[str, ...],
    where: str,
    group: str | None,
    success_min: float,
    failure_max: float,
    min_count: int,
    timeout_s: float,
    error_rate_max: float | None,
    error_rate_increase_max: float | None,
    latency_p95_ms_max: float | None,
    latency_p95_ratio_max: float | None,
    false_alarm: float,
    approval: bool,
    start: bool,
    as_json: bool,
) -> None:
    """Create a rollout of a published release."""
    from edgeops.client.api import Api
    from edgeops.client.resources import GatesInfo

    rollout = Api.from_home(home).create_rollout(
        model,
        version,
        groups=[group.strip() for group in groups.split(",")],
        gates=GatesInfo(
            success_min=success_min,
            failure_max=failure_max,
            min_count=min_count,
            timeout_s=timeout_s,
            error_rate_max=error_rate_max,
            error_rate_increase_max=error_rate_increase_max,
            latency_p95_ms_max=latency_p95_ms_max,
            latency_p95_ratio_max=latency_p95_ratio_max,
            false_alarm=false_alarm,
        ),
        devices=devices,
        profiles=profiles,
        labels=parse_labels(labels),
        where=where,
        group=group,
        approval=approval,
        start=start,
    )
    _show(rollout, as_json)


@command.command("status")
@served_option
@json_option
@click.argument("rollout_id", type=int, required=False)
@click.option("--watch", is_flag=True, help="Wait until it ends or pauses; exit with status 3 unless it succeeds.")
def status(home: Path, rollout_id: int | None, watch: bool, as_json: bool) -> None:
    """Show one rollout, or list the newest ones."""
    from edgeops.client.api import Api

    api = Api.from_home(home)
    if rollout_id is None:
        if watch:
            raise EdgeopsError("E-CONFIG", "--watch needs the id of a rollout")
        _list(api, as_json)
        return
    rollout = _watch(api, rollout_id) if watch else api.rollout(rollout_id)
    _show(rollout, as_json)
    if watch and rollout.state != RolloutState.SUCCEEDED:
        raise EdgeopsError("E-ROLLOUT-STOPPED", f"rollout {rollout_id} is {rollout.state}: {rollout.reason}")


@command.command("approve")
@served_option
@json_option
@click.argument("rollout_id", type=int)
def approve(home: Path, rollout_id: int, as_json: bool) -> None:
    """Say as a second person that a draft may start."""
    from edgeops.client.api import Api

    _show(Api.from_home(home).approve_rollout(rollout_id), as_json)


@command.command("start")
@served_option
@json_option
@click.argument("rollout_id", type=int)
def start(home: Path, rollout_id: int, as_json: bool) -> None:
    """Start a draft."""
    from edgeops.client.api import Api

    _show(Api.from_home(home).start_rollout(rollout_id), as_json)


@command.command("pause")
@served_option
@json_option
@click.argument("rollout_id", type=int)
def pause(home: Path, rollout_id: int, as_json: bool) -> None:
    """Give the release to no further group until resumed."""
    from edgeops.client.api import Api

    _show(Api.from_home(home).pause_rollout(rollout_id), as_json)


@command.command("resume")
@served_option
@json_option
@click.argument("rollout_id", type=int)
def resume(home: Path, rollout_id: int, as_json: bool) -> None:
    """Let a paused rollout go on."""
    from edgeops.client.api import Api

    _show(Api.from_home(home).resume_rollout(rollout_id), as_json)


@command.command("abort")
@served_option
@json_option
@click.argument("rollout_id", type=int)
def abort(home: Path, rollout_id: int, as_json: bool) -> None:
    """End a rollout; who has the release keeps it."""
    from edgeops.client.api import Api

    _show(Api.from_home(home).abort_rollout(rollout_id), as_json)


@command.command("revert")
@served_option
@json_option
@click.argument("rollout_id", type=int)
def revert(home: Path, rollout_id: int, as_json: bool) -> None:
    """End a rollout and give its devices back what they had before."""
    from edgeops.client.api import Api

    _show(Api.from_home(home).revert_rollout(rollout_id), as_json)


def _list(api: Api, as_json: bool) -> None:
    rollouts = api.rollouts()
    if as_json:
        print_json(rollouts)
        return
    print_table(
        ("id", "model", "version", "state", "why"), [(r.id, r.model, r.version, r.state, r.reason) for r in rollouts]
    )


def _show(rollout: RolloutInfo, as_json: bool) -> None:
    if as_json:
        print_json(rollout)
        return
    click.echo(f"rollout {rollout.id}: {rollout.model} {rollout.version} is {rollout.state}")
    if rollout.reason:
        click.echo(f"  {rollout.reason}")
    rows = [
        (
            group.label,
            profile,
            counts.confirmed,
            counts.failed + counts.rejected + counts.timed_out,
            counts.running,
            counts.held,
            counts.silent if group.started_at_s is not None else "",
            "" if group.started_at_s is not None else counts.silent,
            ", ".join(f"{code} ×{number}" for code, number in sorted(counts.codes.items())),
        )
        for group in rollout.groups
        for profile, counts in group.profiles.items()
    ]
    print_table(
        ("group", "profile", "confirmed", "failed", "on the way", "held", "silent", "not started", "codes"), rows
    )


def _watch(api: Api, rollout_id: int) -> RolloutInfo:
    """Follow a rollout until it ends or pauses; its changes go to stderr."""
    said = ""
    while True:
        rollout = api.rollout(rollout_id)
        line = f"{rollout.state}: {rollout.reason}"
        if line != said:
            click.echo(line, file=sys.stderr)
            said = line
        if rollout.state in ENDED_STATES or rollout.state == RolloutState.PAUSED:
            return rollout
        time.sleep(WATCH_EVERY_S)
