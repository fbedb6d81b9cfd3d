"""Run and inspect the agent: what makes this machine a device of a fleet."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeops.cli.options import FloatRange
from edgeops.cli.output import json_option, print_json, print_table
from edgeops.contracts.errors import EdgeopsError

if TYPE_CHECKING:
    from edgeops.agent.installing import Installed

_STATE = click.option(
    "--state",
    "root",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    envvar="EDGEOPS_AGENT_STATE",
    show_envvar=True,
    help="The agent's state directory.",
)


@click.group()
def command() -> None:
    """Run and inspect the agent: what makes this machine a device of a fleet."""


@command.command()
@_STATE
@click.option("--token", help="Enrolment token. Other users of this machine may see it: prefer --token-file.")
@click.option("--token-file", type=click.Path(path_type=Path, dir_okay=False), help="Enrolment token; read to enrol.")
@click.option("--profile", help="Device profile; needed to enrol.")
@click.option("--name", help="Name that this device would like to have.")
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="First port of the local inference endpoints; 0: any.",
)
@click.option(
    "--telemetry-window-s",
    type=FloatRange(1, 86400),
    default=900.0,
    show_default=True,
    help="How long a telemetry window is.",
)
@click.option(
    "--confirm-after-s",
    type=FloatRange(0.5, 86400),
    default=5.0,
    show_default=True,
    help="How long a new bundle must be healthy before it is kept.",
)
@click.option("--verbose", is_flag=True, help="Log what happens, not only what goes wrong.")
def run(
    root: Path,
    token: str | None,
    token_file: Path | None,
    profile: str | None,
    name: str | None,
    http_port: int,
    telemetry_window_s: float,
    confirm_after_s: float,
    verbose: bool,
) -> None:
    """Enrol this device if it is new, then serve, update and report until SIGTERM."""
    from edgeops.agent import versions
    from edgeops.agent.config import read_config
    from edgeops.agent.enrolment import damage, enrol, enrolled
    from edgeops.agent.logbook import open_logbook
    from edgeops.agent.settings import Settings, TrialRules
    from edgeops.agent.store import StateDirectory
    from edgeops.agent.supervisor import Supervisor
    from edgeops.contracts.enrolment import EnrolmentToken

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = read_config(root)
    running = versions.become_current(root, config.self_update.trial_s)
    state = StateDirectory(root)
    open_logbook(root)
    try:
        trial = TrialRules(confirm_after_s=confirm_after_s, confirm_within_s=max(120.0, 4 * confirm_after_s))
        sockets = config.serving.socket_dir or os.environ.get("RUNTIME_DIRECTORY")
        settings = Settings(
            http_port,
            telemetry_window_s,
            trial=trial,
            holds=config.holds,
            downloads=config.downloads,
            self_update=config.self_update,
            socket_dir=Path(sockets) if sockets else None,
            serving=config.serving,
            samples=config.samples,
            mcu=config.mcu,
        )
        if (trouble := damage(state.identity)) is not None:
            from edgeops.agent.caretaker import Caretaker

            Caretaker(state, settings, trouble).run()
            return
        enrolment = enrolled(state)
        if enrolment is None:
            text = token_file.read_text() if token_file is not None and token_file.is_file() else token
            if text is None or profile is None:
                raise EdgeopsError(
                    "E-CONFIG", f"{root} is not enrolled", "Give --token-file and --profile; `edgeops device token`."
                )
            try:
                enrolment = enrol(state, EnrolmentToken.from_text(text), profile=profile, name=name)
            except EdgeopsError as error:
                # For who looks at the device later, and for who flashes it: see `flash.steps.trouble`.
                logging.getLogger("edgeops.agent.enrolment").error("not enrolled: %s: %s", error.code, error.what)
                raise
        elif profile is not None and profile != enrolment.profile:
            raise EdgeopsError("E-CONFIG", f"{root} is enrolled with profile {enrolment.profile}, not {profile}")
        relaunching = Supervisor(state, enrolment, settings, running).run()
    finally:
        state.close()
    if relaunching:
        versions.relaunch()


@command.command()
@_STATE
@click.option("--token-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True)
@click.option("--profile", help="Device profile; with --request.")
@click.option("--name", help="Name that this device would like to have; with --request.")
@click.option("--request", type=click.Path(path_type=Path, dir_okay=False), help="Write this device's request here.")
@click.option("--answer", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Enrol with this answer.")
def enroll(
    root: Path, token_file: Path, profile: str | None, name: str | None, request: Path | None, answer: Path | None
) -> None:
    """Enrol this device where it has no network.

    First --request: carry the file to `edgeops device enroll`, and its answer back for --answer. The key never
    leaves the device; what comes back counts only as far as the token vouches for it.
    """
    from edgeops import durable
    from edgeops.agent.enrolment import enrol_on_paper, enrolled, request_on_paper
    from edgeops.agent.store import StateDirectory
    from edgeops.contracts.enrolment import EnrolmentToken, OfflineAnswer
    from edgeops.contracts.wire import decode

    if (request is None) == (answer is None):
        raise EdgeopsError("E-CONFIG", "--request and --answer are two steps", "Give one of them.")
    if request is not None and profile is None:
        raise EdgeopsError("E-CONFIG", "--request needs --profile", "See `edgeops profile list`.")
    token = EnrolmentToken.from_text(token_file.read_text())
    state = StateDirectory(root)
    try:
        if (have := enrolled(state)) is not None:
            raise EdgeopsError("E-CONFIG", f"{root} is enrolled as {have.connection}", "Nothing is to be done.")
        if request is not None and profile is not None:
            durable.write_file(
                request.resolve(), request_on_paper(state, token, profile=profile, name=name), mode=0o600
            )
            click.echo(f"carry {request} to `edgeops device enroll`; it holds the token's secret")
        elif answer is not None:
            found = enrol_on_paper(state, token, decode(answer.read_bytes(), OfflineAnswer, what=str(answer)))
            click.echo(f"enrolled as {found.connection} in {found.fleet}")
    finally:
        state.close()


@command.command()
@_STATE
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@json_option
def install(root: Path, file: Path, as_json: bool) -> None:
    """Install an exported release from FILE, without network.

    FILE is what `edgeops release export` wrote. It is verified, self-tested and tried as one that came over the
    network, by the agent if it runs. What was installed here stands until the fleet wants something of a later
    generation.
    """
    from edgeops.agent.installing import install as bring_in
    from edgeops.agent.settings import Settings

    _tell(bring_in(root, file, Settings()), as_json=as_json)


@command.command("install-service")
@_STATE
@click.option("--user", default="edgeops", show_default=True, help="Runs the agent; made if there is no such user.")
@click.option("--token-file", type=click.Path(path_type=Path), help="Enrolment token on the device; read to enrol.")
@click.option("--profile", help="Device profile; to enrol.")
@click.option("--name", help="Name that the device would like to have; to enrol.")
@click.option("--http-port", type=click.IntRange(0, 65535), default=0, help="First port of the local endpoints.")
@click.option("--device", "devices", multiple=True, metavar="PATH", help="Device node that a runtime needs.")
@click.option("--group", "groups", multiple=True, help="Further group of the user, such as render.")
@click.option("--python", help="Interpreter on the device [the one that runs this].")
@click.option(
    "--root",
    "system",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("/"),
    help="Mounted image of a device to install into.",
)
@click.option("--print", "only_print", is_flag=True, help="Show the unit, and do nothing.")
@click.option("--remove", "remove_it", is_flag=True, help="Stop and remove the service.")
def install_service(
    root: Path,
    user: str,
    token_file: Path | None,
    profile: str | None,
    name: str | None,
    http_port: int,
    devices: tuple[str, ...],
    groups: tuple[str, ...],
    python: str | None,
    system: Path,
    only_print: bool,
    remove_it: bool,
) -> None:
    """Have systemd run the agent: as a user of its own, watched, and shut off from the rest of the system."""
    import sys

    from edgeops.agent import service

    given = (("--token-file", token_file), ("--profile", profile), ("--name", name), ("--http-port", http_port))
    arguments = tuple(text for option, value in given if value for text in (option, str(value)))
    options = service.ServiceOptions(root, user, arguments, devices, groups, python or sys.executable)
    if only_print:
        click.echo(service.unit_text(options), nl=False)
        return
    for line in service.remove(root=system) if remove_it else service.install(options, root=system):
        click.echo(line)


@command.command()
@_STATE
@click.argument("model")
@json_option
def rollback(root: Path, model: str, as_json: bool) -> None:
    """Go back to the bundle that MODEL had before, without network.

    It is tested and tried like any other, by the agent if it runs. It stands until the fleet wants something of a
    later generation.
    """
    from edgeops.agent.installing import roll_back
    from edgeops.agent.settings import Settings

    _tell(roll_back(root, model, Settings()), as_json=as_json)


@command.command()
@_STATE
@click.option("--for", "duration", metavar="TIME", help="For so long: 45m, 8h, 3d [until it is lifted].")
@click.option("--reason", default="by hand", show_default=True, help="For those who wonder.")
@click.option("--off", is_flag=True, help="Let changes happen again.")
def freeze(root: Path, duration: str | None, reason: str, off: bool) -> None:
    """Let no update begin on this device; what serves goes on, and the fleet is told why.

    An operator can override it with a signed desired state.
    """
    from edgeops.agent.enrolment import CLOCK_FILE
    from edgeops.agent.freezing import Freeze, thaw
    from edgeops.agent.freezing import freeze as freeze_device
    from edgeops.trust.time import Clock

    if not (root / "lock").exists():
        raise EdgeopsError("E-CONFIG", f"{root} is no agent's state directory", "Name the one that the agent uses.")
    if off:
        click.echo("changes are allowed again" if thaw(root) else "it was not frozen")
        return
    until_s = None
    if duration is not None:
        until_s = Clock(root / "trust" / CLOCK_FILE).now() + parse_duration_s(duration)
    freeze_device(root, Freeze(reason=reason, until_s=until_s))
    click.echo("no change begins" + (f" for {duration}" if duration else " until `edgeops agent freeze --off`"))


@command.command()
@_STATE
@json_option
@click.option("-n", "count", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Newest lines.")
@click.option("--follow", is_flag=True, help="Go on with what is written from now on.")
def logs(root: Path, count: int, follow: bool, as_json: bool) -> None:
    """Show the agent's log, oldest line first; with --json as it is kept: one object a line."""
    from edgeops.agent import logbook

    for said in logbook.read_logbook(root, count):
        click.echo(_line(said, as_json=as_json))
    if follow:
        for said in logbook.follow(root):
            click.echo(_line(said, as_json=as_json))


@command.command()
@_STATE
@json_option
def doctor(root: Path, as_json: bool) -> None:
    """Look for what keeps this device from serving or from being updated; exit status 4 if there is something."""
    from edgeops.agent.examining import examine

    findings = examine(root)
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        rows = [(one.subject, "good" if one.good else "BAD", one.found, "" if one.good else one.next_step)
                for one in findings]  # fmt: skip
        print_table(("what", "is", "found", "next step"), rows)
    if bad := [one for one in findings if not one.good]:
        raise EdgeopsError("E-DEVICE", "; ".join(f"{one.subject}: {one.found}" for one in bad), bad[0].next_step)


def parse_duration_s(text: str) -> float:
    """Return the seconds of `45m`, `8h` or `3d`.

    Raises:
        EdgeopsError: E-CONFIG.
    """
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}.get(text[-1:])
    try:
        seconds = float(text[:-1]) * (unit or 0.0)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 366 * 86400:
        raise EdgeopsError("E-CONFIG", f"{text!r} is no time", "Write it as 45m, 8h or 3d; at most a year.")
    return seconds


def _line(said: dict[str, Any], *, as_json: bool) -> str:
    if as_json:
        return json.dumps(said, ensure_ascii=False)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(said.get("at_s", 0.0))))
    return f"{when} {said.get('level', ''):7} {said.get('part', '')}: {said['text']}"


def _tell(done: Installed, *, as_json: bool) -> None:
    if done.failure is not None and str(done.state) in ("rejected", "failed"):
        raise EdgeopsError(
            done.failure.code,
            f"{done.component} {done.release} is {done.state}: {done.failure.what}",
            "See agent status.",
        )
    if as_json:
        print_json(done._asdict())
    else:
        when = "it serves" if done.by_agent else "it serves when the agent runs"
        click.echo(
            f"{done.component} {done.release} is {done.state}" + (f"; {when}" if done.state == "confirmed" else "")
        )


@command.command()
@_STATE
@json_option
def status(root: Path, as_json: bool) -> None:
    """Show how this device stands, from its state directory alone; works while the agent runs, and without it."""
    from edgeops.agent.status import read_status

    found = read_status(root)
    if as_json:
        print_json(found)
        return
    click.echo(
        f"device {found['connection'] or '(not enrolled)'}, agent {'runs' if found['running'] else 'is stopped'}"
    )
    if found["stale_s"] is not None:
        click.echo(
            f"stale: no fresh metadata for {found['stale_s'] / 3600:.0f} h; what serves goes on, nothing changes"
        )
    columns = ("component", "state", "serves", "falls back to", "endpoint", "last failure")
    print_table(columns, [_row(component) for component in found["components"]])


def _row(component: dict[str, Any]) -> tuple[object, ...]:
    failure = component["failure"]
    return (
        component["name"],
        component["state"],
        component["active"] or "-",
        component["fallback"] or "-",
        component["endpoint"] or "-",
        f"{failure['code']}: {failure['release']}" if failure else "-",
    )
