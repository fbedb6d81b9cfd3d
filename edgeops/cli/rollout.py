"""Bring a release to the devices, in groups, under gates."""

from __future__ import annotations

import datetime
import sys
import time
import zoneinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeops.cli.device import parse_labels
from edgeops.cli.junit import junit_file, junit_option
from edgeops.cli.options import said, served_option
from edgeops.cli.output import json_option, print_json, print_table, show_again
from edgeops.contracts.deployment import DeploymentState
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rigs import Verdict
from edgeops.contracts.rollouts import ENDED_STATES, RolloutState

if TYPE_CHECKING:
    from edgeops.client.api import Api
    from edgeops.client.rollout_resources import MemberInfo, RolloutInfo, RolloutPlan, RolloutWish
    from edgeops.report.junit import Case

WATCH_EVERY_S = 0.5
TROUBLED_SHOWN = 20


@click.group()
def command() -> None:
    """Rollouts: create, start, watch, pause, resume, abort, revert."""


@command.command("create")
@served_option
@json_option
@click.argument("model")
@click.argument("version")
@click.option(
    "--groups", default="", callback=said, metavar="LIST", help="Shares, counts or rest: 10%,50%,100% [100%]."
)
@click.option("--rate", type=click.IntRange(min=1), metavar="N", help="Instead of groups: N devices a minute.")
@click.option("--rate-factor", default=1.0, show_default=True, help="Each minute's devices over the minute before.")
@click.option("--bake-s", default=0.0, show_default=True, help="How long a group serves before it can pass.")
@click.option("--not-before", type=click.DateTime(["%Y-%m-%dT%H:%M"]), help="First start, in --time-zone.")
@click.option(
    "--window", default="", callback=said, metavar="22:00-05:00", help="Groups start only then, in --time-zone."
)
@click.option(
    "--days", default="", callback=said, metavar="LIST", help="Days on which the window opens, such as mon,tue."
)
@click.option("--time-zone", default="UTC", show_default=True, metavar="NAME", help="IANA name: Europe/Berlin.")
@click.option("--retries", default=0, show_default=True, help="How often a device that failed gets it again.")
@click.option("--on-failure", type=click.Choice(["stop", "pause", "revert"]), default="stop", show_default=True)
@click.option("--device", "devices", multiple=True, metavar="NAME", help="Only this device; repeatable.")
@click.option("--profile", "profiles", multiple=True, metavar="NAME", help="Only this profile; repeatable.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only devices with it; repeatable.")
@click.option("--where", default="", callback=said, metavar="QUERY", help="Only devices that this query finds.")
@click.option("--group", metavar="NAME", help="Only devices of this device group.")
@click.option(
    "--control", default="", callback=said, metavar="SHARE", help="The first group's control arm: 5% or 20 devices."
)
@click.option("--success-min", default=1.0, show_default=True, help="Smallest share of confirmed devices.")
@click.option("--failure-max", default=0.0, show_default=True, help="Largest share of failed devices.")
@click.option("--rejected-max", type=float, help="Largest share of devices that refuse it.")
@click.option("--timed-out-max", type=float, help="Largest share of devices that are not through in time.")
@click.option("--held-max", type=float, help="Largest share of devices that are still held when time is over.")
@click.option("--min-count", default=1, show_default=True, help="Reports before a share means anything.")
@click.option("--timeout-s", default=3600.0, show_default=True, help="How long a group has.")
@click.option("--error-rate-max", type=float, help="Largest share of requests that fail, of each profile.")
@click.option("--error-rate-increase-max", type=float, help="How far it may be above the old release's.")
@click.option("--latency-p95-ms-max", type=float, help="Largest 95th percentile of latency, of each profile.")
@click.option("--latency-p95-ratio-max", type=float, help="Largest ratio of it to the old release's.")
@click.option("--drift-max", type=float, help="Largest distance of values from what the bundle was compiled with, 0-1.")
@click.option("--false-alarm", default=0.01, show_default=True, help="How likely these five may stop it wrongly.")
@click.option("--temperature-c-max", type=float, help="Hottest that a device may be while it serves the release.")
@click.option("--shadow", type=float, metavar="SHARE", help="Run beside what serves first, on this share of requests.")
@click.option("--shadow-cpu", default=0.25, show_default=True, help="How much of one processor a shadow may take.")
@click.option("--agreement-min", type=float, help="Smallest share of requests on which the shadow agrees.")
@click.option(
    "--rig", "rigs", multiple=True, callback=said, metavar="LIST", help="No device gets it before these rigs passed it."
)
@click.option("--rig-timeout-s", default=3600.0, show_default=True, help="How long a rig has for its verdict.")
@click.option("--rig-gone-s", default=300.0, show_default=True, help="How long a rig that is asked may be away.")
@click.option("--override-holds", is_flag=True, help="Devices wait for no window, application or temperature.")
@click.option("--approval", is_flag=True, help="It starts only after somebody else has approved it.")
@click.option("--start", is_flag=True, help="Start it at once.")
@click.option("--plan", is_flag=True, help="Only show what it would do.")
def create(home: Path, plan: bool, as_json: bool, **options: Any) -> None:
    """Create a rollout of a published release."""
    from edgeops.client.api import Api

    wish = _wish(**options)
    api = Api.from_home(home)
    if plan:
        _show_plan(api.plan_rollout(wish), as_json)
    else:
        _show(api.create_rollout(wish), as_json)


def _wish(
    groups: str,
    rate: int | None,
    rate_factor: float,
    not_before: datetime.datetime | None,
    window: str,
    days: str,
    time_zone: str,
    devices: tuple[str, ...],
    profiles: tuple[str, ...],
    labels: tuple[str, ...],
    shadow: float | None,
    shadow_cpu: float,
    rigs: tuple[str, ...],
    **rest: Any,
) -> RolloutWish:
    """Return the wish that the options make.

    Raises:
        EdgeopsError: E-CONFIG; a label or the time zone cannot be read.
    """
    from edgeops.client.rollout_resources import GatesInfo, Rate, RolloutWish, Schedule, Shadow

    gates = {name: rest.pop(name) for name in GatesInfo.__struct_fields__}
    return RolloutWish(
        groups=_listed(groups),
        rate=None if rate is None else Rate(per_minute=rate, factor=rate_factor),
        schedule=Schedule(
            not_before_s=None if not_before is None else not_before.replace(tzinfo=_zone(time_zone)).timestamp(),
            window=window,
            days=_listed(days),
            time_zone=time_zone,
        ),
        gates=GatesInfo(**gates),
        shadow=None if shadow is None else Shadow(share=shadow, cpu=shadow_cpu),
        rigs=tuple(name for words in rigs for name in _listed(words)),
        devices=devices,
        profiles=profiles,
        labels=parse_labels(labels),
        **rest,
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if text else ()


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise EdgeopsError("E-CONFIG", f"there is no time zone {name!r}", "Give an IANA name: Europe/Berlin.") from None


@command.command("status")
@served_option
@json_option
@click.argument("rollout_id", type=int, required=False)
@click.option(
    "--watch", is_flag=True,
    help="Wait until it ends or pauses, exit with status 3 unless it succeeds; without an id show the list again.",
)  # fmt: skip
@junit_option
def status(home: Path, rollout_id: int | None, watch: bool, junit: Path | None, as_json: bool) -> None:
    """Show one rollout, or list the newest ones."""
    from edgeops.client.api import Api

    api = Api.from_home(home)
    if rollout_id is None:
        if junit is not None:
            raise EdgeopsError("E-CONFIG", "--junit needs the id of a rollout")
        show_again(lambda: _list(api, as_json), watch=watch)
        return
    with junit_file(junit, "rollout") as cases:
        rollout = _watch(api, rollout_id) if watch else api.rollout(rollout_id)
        _record(rollout, cases, junit)
        _show(rollout, as_json)
        if watch and rollout.state != RolloutState.SUCCEEDED:
            raise EdgeopsError("E-ROLLOUT-STOPPED", f"rollout {rollout_id} is {rollout.state}: {rollout.reason}")


@command.command("explain")
@served_option
@json_option
@click.argument("rollout_id", type=int)
def explain(home: Path, rollout_id: int, as_json: bool) -> None:
    """Say why a rollout stands where it stands: rigs, gates with figures, and devices that did not get through."""
    from edgeops.client.api import Api

    api = Api.from_home(home)
    rollout = api.rollout(rollout_id)
    troubled = [member for member in api.members(rollout_id) if member.code or member.state == DeploymentState.HELD]
    if as_json:
        print_json({"rollout": rollout, "devices": troubled, "rigs": api.rollout_rigs(rollout_id)})
        return
    _show(rollout, as_json)
    _explain_rigs(api, rollout)
    print_table(
        ("group", "profile", "gate", "value", "at least", "at most", "limit", "over", "verdict"),
        [
            (
                f.group, f.profile or "all", f.gate, _figure(f.value), _figure(f.lower), _figure(f.upper),
                _figure(f.limit), f.reported, {True: "holds", False: "tripped", None: "not yet to be said"}[f.holds],
            )
            for f in rollout.figures
        ],
    )  # fmt: skip
    for profile, reason in rollout.stopped_profiles.items():
        click.echo(f"profile {profile} was stopped: {reason}")
    if troubled:
        print_table(
            ("device", "group", "state", "code", "detail"),
            [(_name(m), m.group, m.state, m.code or "", m.detail) for m in troubled[:TROUBLED_SHOWN]],
        )
        if len(troubled) > TROUBLED_SHOWN:
            click.echo(f"and {len(troubled) - TROUBLED_SHOWN} more; --json lists all")


def _explain_rigs(api: Api, rollout: RolloutInfo) -> None:
    """Show what each rig was asked and answered, with the checks that did not pass."""
    if not rollout.rigs:
        return
    for run in api.rollout_rigs(rollout.id):
        said = "given up, asked anew" if run.given_up_at_s is not None else run.verdict or "no answer yet"
        why = f": {run.said}" if run.said else ""
        click.echo(f"rig {run.rig}, asked for the {run.attempt}. time, for {', '.join(run.profiles)}: {said}{why}")
        rows = [
            (board.board, board.profile, check.check, check.verdict.value, check.said)
            for board in (run.result.boards if run.result is not None else ())
            for check in board.checks
            if check.verdict is not Verdict.PASSED
        ]
        if rows:
            print_table(("board", "profile", "check", "result", "what"), rows)


@command.command("watch")
@served_option
@click.argument("rollout_id", type=int)
@junit_option
def watch(home: Path, rollout_id: int, junit: Path | None) -> None:
    """Show a rollout's progress until it ends or pauses; exit with status 3 unless it succeeds."""
    from edgeops.cli.rollout_progress import shown_live
    from edgeops.client.api import Api

    api = Api.from_home(home)
    with junit_file(junit, "rollout") as cases:
        rollout = shown_live(lambda: api.rollout(rollout_id), every_s=WATCH_EVERY_S)
        _record(rollout, cases, junit)
        if rollout.state != RolloutState.SUCCEEDED:
            raise EdgeopsError("E-ROLLOUT-STOPPED", f"rollout {rollout_id} is {rollout.state}: {rollout.reason}")


def _record(rollout: RolloutInfo, cases: list[Case], junit: Path | None) -> None:
    if junit is not None:
        from edgeops.report.cases import of_rollout

        cases += of_rollout(rollout)


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


@command.command("override-holds")
@served_option
@json_option
@click.argument("rollout_id", type=int)
def override_holds(home: Path, rollout_id: int, as_json: bool) -> None:
    """Have the devices that are held wait no longer for maintenance window, application, temperature and the like."""
    from edgeops.client.api import Api

    _show(Api.from_home(home).override_holds(rollout_id), as_json)


@command.command("revert")
@served_option
@json_option
@click.argument("rollout_id", type=int)
def revert(home: Path, rollout_id: int, as_json: bool) -> None:
    """End a rollout and give its devices back what they had before."""
    from edgeops.client.api import Api

    _show(Api.from_home(home).revert_rollout(rollout_id), as_json)


def _show_plan(plan: RolloutPlan, as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    click.echo(f"{plan.model} {plan.version}: {plan.devices} devices, {plan.online} online now, {_size(plan.bytes)}")
    print_table(
        ("group", "devices", "profiles", "fetch at most"),
        [
            (
                group.label,
                sum(group.devices.values()),
                ", ".join(f"{profile} {count}" for profile, count in group.devices.items()),
                _size(group.bytes),
            )
            for group in plan.groups
        ],
    )
    for rig, runs in plan.rigs.items():
        click.echo(f"group 0: rig {rig} runs it first, for {', '.join(runs)}")
    _warn_uncovered(plan.uncovered_profiles)
    if plan.control:
        click.echo(
            f"control arm of the first group: {plan.control} devices, which keep what they have until it is through"
        )
    wait_s = plan.first_start_s - time.time()
    click.echo(
        f"starts {'at once' if wait_s < 1 else f'in {wait_s / 60:.0f} min'}; serves {plan.least_s:.0f} s at least"
    )
    if plan.typical_s is None:
        click.echo("no device has got this model by a rollout yet: how long they need is not known")
    else:
        click.echo(f"devices needed {plan.typical_s:.1f} s so far (median, measured)")


def _warn_uncovered(profiles: tuple[str, ...]) -> None:
    if profiles:
        click.echo(f"not covered: no rig has a board of {', '.join(profiles)}")


def _name(member: MemberInfo) -> str:
    return member.connection if member.unit == "self" else f"{member.connection}/{member.unit}"


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


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
    if rollout.rigs:
        print_table(
            ("group", "rig", "profiles", "online", "stands", "what"),
            [
                ("0", one.rig, ", ".join(one.profiles), "yes" if one.online else "NO", one.state, one.said)
                for one in rollout.rigs
            ],
        )
        _warn_uncovered(rollout.uncovered_profiles)
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
