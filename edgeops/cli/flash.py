"""Make boards devices of a fleet: over SSH, by their card, or many from a table."""

from __future__ import annotations

import asyncio
import functools
import os
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgeops.cli.options import FloatRange, served_option
from edgeops.cli.output import json_option, print_json, print_table
from edgeops.contracts.errors import EdgeopsError

if TYPE_CHECKING:
    from edgeops.flash.batch import Outcome
    from edgeops.flash.link import Login
    from edgeops.flash.over_ssh import Fleet, Wish

F = TypeVar("F", bound=Callable[..., Any])
_PASSWORD = "EDGEOPS_SSH_PASSWORD"  # noqa: S105  a variable's name
_COLUMNS = ("board", "device", "profile", "agent", "online", "release", "result")


@click.group()
def command() -> None:
    """Make boards devices of a fleet: over SSH, by their card, or many from a table."""


def _login_options(function: F) -> F:
    """Add the options of a login. A password comes from a variable: other users see a command line."""
    for option in (
        click.option("--port", type=click.IntRange(1, 65535), default=22, show_default=True, help="Of its sshd."),
        click.option("--user", default="root", show_default=True, help="Who logs in; root, or may run sudo -n."),
        click.option("--key", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Private key."),
        click.option(
            "--known-hosts", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="File with host keys."
        ),
        click.option("--host-key", metavar="SHA256:…", help="Fingerprint of the board's host key, instead of a file."),
    ):
        function = option(function)
    return function


def _place_options(function: F) -> F:
    """Add where edgeops goes on a board."""
    prefix = click.option("--prefix", default="/opt/edgeops", show_default=True, help="Its folder on the board.")
    state = click.option("--state", default="/var/lib/edgeops", show_default=True, help="State on the board.")
    return prefix(state(function))


def _wish_options(function: F) -> F:
    for option in (
        click.option("--profile", help="Device profile [what the board says that it is]."),
        click.option(
            "--token-file",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="Enrolment token [asked of the control plane in --home or --context].",
        ),
        click.option(
            "--release",
            "stick",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="A release to install at once, as `edgeops release export` writes it.",
        ),
        click.option("--online-within", "online_within_s", type=FloatRange(1), default=180.0, show_default=True),
        click.option("--start/--no-start", default=True, help="Start it and wait until it is online."),
    ):
        function = option(function)
    return function


@command.command()
@click.argument("host")
@_login_options
@_place_options
@_wish_options
@click.option("--name", help="Its name in the fleet [one that the fleet gives].")
@click.option("--dry-run", is_flag=True, help="Look at the board and say what would be done.")
@served_option
@json_option
def ssh(
    host: str, home: Path, name: str | None, dry_run: bool, as_json: bool, port: int, user: str, key: Path | None,
    known_hosts: Path | None, host_key: str | None, **wished: Any,
) -> None:  # fmt: skip
    """Make the board at HOST a device of the fleet, in one go.

    It is looked at, gets the exact packages for its system from this machine, is enrolled, and runs the agent under
    systemd. Again, it brings the board up to date; cut off at any place, it goes on.
    """
    from edgeops.flash.link import Link
    from edgeops.flash.over_ssh import flash, plan

    login = _login(host, port, user, key, known_hosts, host_key)
    wish = _wish(name=name, **wished)
    cache = _cache()
    if dry_run:

        async def look() -> Any:
            async with Link(login) as link:
                return await plan(link, wish, cache, _say)

        planned = asyncio.run(look())
        if as_json:
            print_json(
                {
                    "board": planned.board._asdict(),
                    "profile": planned.choice.profile,
                    "version": planned.payload.version,
                    "packages": planned.payload.packages,
                    "notes": planned.choice.notes,
                    "steps": planned.steps,
                }
            )
        else:
            for line in (*planned.choice.notes, *planned.steps):
                click.echo(line)
        return
    done = asyncio.run(flash(login, wish, _fleet(home, wish), cache, _say))
    if as_json:
        print_json(done._asdict())
        return
    for note in done.notes:
        click.echo(note)
    click.echo(f"{done.device or host} ({done.profile}) runs agent {done.version}" + (
        {True: "; it is online", False: "", None: ""}[done.online]) + (f"; {done.release}" if done.release else "")
    )  # fmt: skip


@command.command()
@click.argument("host")
@_login_options
@_place_options
@click.option("--purge", is_flag=True, help="Remove everything, its identity and its models too.")
def undo(
    host: str, port: int, user: str, key: Path | None, known_hosts: Path | None, host_key: str | None, prefix: str,
    state: str, purge: bool,
) -> None:  # fmt: skip
    """Go back to the version before on the board at HOST, or remove edgeops where there is none."""
    from edgeops.flash import steps
    from edgeops.flash.link import Link

    async def go_back() -> str:
        async with Link(_login(host, port, user, key, known_hosts, host_key)) as link:
            where = steps.Where(prefix, state)
            await steps.probe(link, where)
            return await steps.undo(link, where, purge=purge)

    click.echo(asyncio.run(go_back()))


@command.command()
@click.argument("plan", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_login_options
@_place_options
@_wish_options
@click.option("--at-once", type=click.IntRange(1, 64), default=8, show_default=True, help="Boards at a time.")
@served_option
@json_option
def batch(
    plan: Path, home: Path, at_once: int, as_json: bool, port: int, user: str, key: Path | None,
    known_hosts: Path | None, host_key: str | None, **wished: Any,
) -> None:  # fmt: skip
    """Make many boards devices of the fleet: PLAN is a table (CSV) with a column host.

    Other columns are port, user, key, host_key, profile and name; what is empty is as the options say. Exit status 4
    if one of them failed.
    """
    from edgeops.flash.batch import Row, flash_all, read_plan
    from edgeops.flash.over_ssh import Flashed, flash
    from edgeops.flash.payload import Packer

    rows = read_plan(plan, port)
    fleet = _fleet(home, _wish(name=None, **wished))
    cache, packer = _cache(), Packer()

    async def one(row: Row) -> Flashed:
        login = _login(
            row.host, row.port or port, row.user or user, Path(row.key).expanduser() if row.key else key, known_hosts,
            row.host_key or host_key,
        )  # fmt: skip
        wish = _wish(name=row.name or None, **{**wished, "profile": row.profile or wished["profile"]})
        return await flash(login, wish, fleet, cache, functools.partial(_say_of, row.host), packer)

    outcomes = asyncio.run(flash_all(rows, one, at_once, _say))
    if as_json:
        print_json([
            {"host": one.host, "code": one.code, "said": one.said, "done": one.done and one.done._asdict()}
            for one in outcomes
        ])  # fmt: skip
    else:
        print_table(_COLUMNS, [_outcome(one) for one in outcomes])
    if failed := [one.host for one in outcomes if one.done is None]:
        raise EdgeopsError("E-FLASH-BOARD", f"{len(failed)} of {len(outcomes)} failed: {', '.join(failed)}")


@command.command()
@click.option(
    "--base", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True, help="The system's image."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="An image file, or a card's block device.")
@click.option("--profile", required=True, help="Device profile.")
@click.option(
    "--format", "form", type=click.Choice(["cloud-init", "firstrun"]), default="cloud-init", show_default=True,
    help="firstrun: Raspberry Pi OS before trixie.",
)  # fmt: skip
@click.option("--hostname", default="edgeops", show_default=True, help="Its name in the network.")
@click.option("--name", help="Its name in the fleet [one that the fleet gives].")
@click.option("--login", "user", help="A user who may log in with --ssh-key.")
@click.option(
    "--ssh-key", "ssh_keys", type=click.Path(path_type=Path, exists=True, dir_okay=False), multiple=True,
    help="Public key; repeatable.",
)  # fmt: skip
@click.option("--wifi", help="Name of a wireless network; its password comes from EDGEOPS_WIFI_PASSWORD.")
@click.option("--country", default="GB", show_default=True, help="For the rules of radio.")
@click.option(
    "--token-file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Enrolment token [asked of the control plane in --home or --context].",
)  # fmt: skip
@click.option(
    "--release", "stick", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A release for a first boot without network, as `edgeops release export` writes it.",
)  # fmt: skip
@click.option(
    "--enrolled", is_flag=True,
    help="Enrol it here and now, for a first boot without network; the card then is this one device, with its key.",
)  # fmt: skip
@click.option(
    "--token-days", type=FloatRange(0.01, 90), default=7.0, show_default=True,
    help="For how long a token that is asked of the control plane lets the board in.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Write to a block device without asking.")
@served_option
def image(
    base: Path, out: Path, profile: str, form: Any, hostname: str, name: str | None, user: str | None,
    ssh_keys: tuple[Path, ...], wifi: str | None, country: str, token_file: Path | None, stick: Path | None,
    enrolled: bool, token_days: float, yes: bool, home: Path,
) -> None:  # fmt: skip
    """Write a card or an image that makes a board a device of the fleet at its first boot.

    BASE is copied; its boot partition gets what the first boot needs: network, login, the agent with its packages, a
    one-time token and perhaps a release. A block device is written to only after it was shown, and read back.
    """
    from edgeops.flash import imaging
    from edgeops.flash.firstboot import Network
    from edgeops.flash.fit import server_note

    wish = _wish(
        name=name, profile=profile, token_file=token_file, stick=stick, online_within_s=1.0, start=False,
        prefix="/opt/edgeops", state="/var/lib/edgeops",
    )  # fmt: skip
    token = wish.token
    if token is None:
        token = _api(home).token(profile, name, token_days * 86400)
    if note := server_note(token, ""):
        _say(note)
    network = Network(wifi, os.environ.get("EDGEOPS_WIFI_PASSWORD"), country) if wifi else None
    if network is not None and network.password is None:
        _say(f"EDGEOPS_WIFI_PASSWORD is not set: {wifi} is taken for a network without a password")

    def may_write(what: str) -> bool:
        return yes or click.confirm(f"Everything on {what} will be lost. Write to it?", err=True)

    with tempfile.TemporaryDirectory(prefix="edgeops-identity-") as folder:

        def vouch() -> Path:
            if enrolled:
                return _identity(home, token, profile, name, Path(folder))
            secret = Path(folder) / "token"
            secret.touch(mode=0o600)
            secret.write_text(token, encoding="utf-8")
            return secret

        asked = imaging.Card(
            base=base, out=out, form=form, profile=profile, hostname=hostname, name=name, user=user,
            ssh_keys=tuple(_text_of(path).strip() for path in ssh_keys), network=network, has_identity=enrolled,
            stick=stick,
        )  # fmt: skip
        click.echo(imaging.make(asked, _cache(), vouch, may_write, _say))


def _identity(home: Path, token: str, profile: str, name: str | None, folder: Path) -> Path:
    """Enrol a device that has never run, and return its identity as one packed file."""
    from edgeops.agent.enrolment import enrol_on_paper, request_on_paper
    from edgeops.agent.store import StateDirectory
    from edgeops.client.api import Api
    from edgeops.contracts.enrolment import EnrolmentToken, EnrolRequest
    from edgeops.contracts.wire import decode

    vouching = EnrolmentToken.from_text(token)
    state = StateDirectory(folder / "state")
    try:
        request = request_on_paper(state, vouching, profile=profile, name=name)
        answer = Api.from_home(home).enroll(decode(request, EnrolRequest, what="the request"))
        device = enrol_on_paper(state, vouching, answer)
    finally:
        state.close()
    _say(f"it is enrolled as {device.connection}")
    packed = folder / "identity.tar.gz"
    packed.touch(mode=0o600)
    with tarfile.open(packed, "w:gz") as archive:
        for part in ("identity", "trust"):
            archive.add(folder / "state" / part, part)
    return packed


def _outcome(one: Outcome) -> tuple[object, ...]:
    if one.done is None:
        return (one.host, "", "", "", "", "", f"{one.code}: {one.said}")
    done = one.done
    online = {True: "yes", False: "no", None: ""}[done.online]
    return (one.host, done.device, done.profile, done.version, online, done.release, "done")


def _say(line: str) -> None:
    click.echo(f"… {line}", err=True)


def _say_of(host: str, line: str) -> None:
    click.echo(f"… {host}: {line}", err=True)


def _login(host: str, port: int, user: str, key: Path | None, known_hosts: Path | None, host_key: str | None) -> Login:
    from edgeops.flash.link import Login

    return Login(host, port, user, key, os.environ.get(_PASSWORD), known_hosts, host_key)


def _wish(
    *, name: str | None, profile: str | None, token_file: Path | None, stick: Path | None, online_within_s: float,
    start: bool, prefix: str, state: str,
) -> Wish:  # fmt: skip
    from edgeops.contracts.enrolment import EnrolmentToken
    from edgeops.flash.over_ssh import Wish
    from edgeops.flash.steps import Where

    token = None
    if token_file is not None:
        token = _text_of(token_file).strip()
        EnrolmentToken.from_text(token)
    return Wish(profile, name, token, stick, Where(prefix, state), online_within_s, start)


def _fleet(home: Path, wish: Wish) -> Fleet | None:
    """Return the control plane, if this machine knows one; a wish with a token does without."""
    try:
        return _api(home)
    except EdgeopsError:
        if wish.token is None:
            raise
        return None


def _api(home: Path) -> _Api:
    from edgeops.client.api import Api

    return _Api(Api.from_home(home))


def _text_of(path: Path) -> str:
    """Return a small file of text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeopsError("E-CONFIG", f"{path}: {error}", "Give a text file that can be read.") from error


class _Api:
    """The control plane, as flashing needs it."""

    def __init__(self, api: Any) -> None:
        self._api = api

    def token(self, profile: str, name: str | None, valid_s: float = 3600.0) -> str:
        return str(self._api.create_token(profile=profile, name=name, valid_s=valid_s).token)

    def online(self, name: str) -> bool:
        try:
            return bool(self._api.device(name).online)
        except EdgeopsError as error:
            if error.code != "E-DEVICE-UNKNOWN":
                raise
            return False


def _cache() -> Path:
    from edgeops.intake.cache import cache_dir

    return cache_dir() / "flash"
