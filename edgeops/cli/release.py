"""Make, publish and list releases: one model version, one bundle per profile, signed as a whole."""

from __future__ import annotations

import time
from pathlib import Path

import click

from edgeops.cli.options import home_option, keys_option
from edgeops.cli.output import json_option, print_json, print_table
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.release import Release


@click.group()
def command() -> None:
    """Make, publish and list releases: one model version, one bundle per profile, signed as a whole."""


@command.command()
@home_option
@click.option("--version", required=True, help="MAJOR.MINOR.PATCH")
@click.option("--model", help="The model that the bundles must be of [whatever they are].")
@click.option("--notes", default="", help="For people.")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@json_option
def create(home: Path, version: str, model: str | None, notes: str, bundles: tuple[Path, ...], as_json: bool) -> None:
    """Make a draft from bundles: directories or packed files, one per profile.

    `evidence.json` beside a bundle joins the release if it speaks of exactly this bundle. Nothing is published yet.
    """
    from edgeops.releases import assemble

    _show(assemble.create(home, bundles, version=version, model=model, notes=notes), as_json)


@command.command("create-agent")
@home_option
@click.option(
    "--wheels",
    "folders",
    multiple=True,
    required=True,
    metavar="PROFILE=FOLDER",
    help="Wheels for the devices of a profile: edgeops, and what they do not have installed.",
)
@click.option("--notes", default="", help="For people.")
@json_option
def create_agent(home: Path, folders: tuple[str, ...], notes: str, as_json: bool) -> None:
    """Make a draft of a new version of the agent, to be published and rolled out as model edgeops-agent."""
    from edgeops.releases import assemble

    wheels = {}
    for text in folders:
        profile, _, folder = text.partition("=")
        if not Path(folder).is_dir() or not folder or profile in wheels:
            raise EdgeopsError("E-CONFIG", f"--wheels {text}: not PROFILE=FOLDER, or twice", "Name a folder of wheels.")
        wheels[profile] = Path(folder)
    _show(assemble.create_agent(home, wheels, notes=notes), as_json)


@command.command()
@home_option
@keys_option
@click.argument("model")
@click.argument("version")
@json_option
def publish(home: Path, key_folders: tuple[Path, ...], model: str, version: str, as_json: bool) -> None:
    """Sign a draft and publish it into the repository, all or nothing."""
    from edgeops.releases import publish as publishing

    _show(publishing.publish(home, model, version, key_folders=key_folders), as_json)


@command.command("list")
@home_option
@json_option
def list_releases(home: Path, as_json: bool) -> None:
    """List what is published, as the signed repository says, and the drafts."""
    from edgeops.releases import catalog

    published, drafts = catalog.releases(home), catalog.drafts(home)
    if as_json:
        print_json({"published": published, "drafts": drafts})
        return
    print_table(
        ("model", "version", "number", "profiles", "since"),
        [
            (
                release.model,
                release.version,
                release.number or "draft",
                ", ".join(target.profile for target in release.targets),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(release.created_at_s)),
            )
            for release in (*published, *drafts)
        ],
    )


def _show(release: Release, as_json: bool) -> None:
    if as_json:
        print_json(release)
        return
    state = f"published as number {release.number}" if release.number else "a draft: publish it next"
    click.echo(f"{release.model} {release.version} is {state}")
    print_table(
        ("profile", "bytes", "bundle"), [(target.profile, target.length, target.digest) for target in release.targets]
    )


@command.command("export")
@home_option
@click.argument("model")
@click.argument("version")
@click.option("--to", required=True, type=click.Path(path_type=Path, dir_okay=False), help="File to write.")
@click.option("--profile", "profiles", multiple=True, help="Take only this profile's bundle; may be given again.")
@click.option(
    "--valid-for",
    "days",
    type=click.IntRange(1, 365),
    help="Days that devices may take it; the online keys sign for it [as the served timestamp: at most 7].",
)
@json_option
def export_release(
    home: Path, model: str, version: str, to: Path, profiles: tuple[str, ...], days: int | None, as_json: bool
) -> None:
    """Write a published release as one file for devices without network.

    `edgeops agent install` takes it on a device. It holds the signed metadata and the bundles; a device verifies them
    as it does over the network. It is never valid for longer than the roles that offline keys sign.
    """
    from edgeops.releases.export import export

    valid_for_s = None if days is None else days * 86400.0
    made = export(home, model, version, to, profiles=profiles, valid_for_s=valid_for_s)
    if as_json:
        print_json({"path": str(made.path), "length": made.length, "valid_until_s": made.valid_until_s})
    else:
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(made.valid_until_s))
        click.echo(f"{made.path}: {made.length} bytes; devices take it until {until}")
