"""Make, publish and list releases: one model version, one bundle per profile, signed as a whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeops.cli.junit import junit_file, junit_option
from edgeops.cli.options import home_option, keys_option
from edgeops.cli.output import json_option, print_json, print_table
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.release import Release

if TYPE_CHECKING:
    from edgeops.releases.verify import Verified
    from edgeops.report.junit import Case


@click.group()
def command() -> None:
    """Make, publish and list releases: one model version, one bundle per profile, signed as a whole."""


@command.command()
@home_option
@click.option("--version", required=True, help="MAJOR.MINOR.PATCH")
@click.option("--model", help="The model that the bundles must be of [whatever they are].")
@click.option("--notes", default="", help="For people.")
@click.option(
    "--rig-result",
    "rig_results",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="What a trusted rig signed of these bundles, as `edgeops hil run --evidence` writes it; may be given again.",
)
@click.option("--gated", is_flag=True, help="Take only bundles with evidence that they passed their gates; for CI.")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@junit_option
@json_option
def create(
    home: Path,
    version: str,
    model: str | None,
    notes: str,
    gated: bool,
    rig_results: tuple[Path, ...],
    bundles: tuple[Path, ...],
    junit: Path | None,
    as_json: bool,
) -> None:
    """Make a draft from bundles: directories or packed files, one per profile.

    `evidence.json` beside a bundle joins the release if it speaks of exactly this bundle. Nothing is published yet.
    """
    from edgeops.releases import assemble

    with junit_file(junit, "release") as cases:
        if junit is not None:
            cases += _gates(bundles)
        draft = assemble.create(
            home, bundles, version=version, model=model, notes=notes, gated=gated, rig_results=rig_results
        )
        _show(draft, as_json)


def _gates(bundles: Sequence[Path]) -> list[Case]:
    """Return the gates of bundles as test cases, of those that have evidence."""
    from edgeops.releases import pieces
    from edgeops.report.cases import of_evidence

    found = [one for path in bundles for one in pieces.of_path(path) if one.evidence is not None]
    return [
        case
        for one in found
        if one.evidence is not None
        for case in of_evidence(f"release.{one.manifest.profile}", one.evidence, one.manifest.scheme)
    ]


@command.command("trust-rig")
@home_option
@click.argument("name")
@click.argument("key", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def trust_rig(home: Path, name: str, key: Path) -> None:
    """Believe what the rig NAME signs with KEY, its public key as `edgeops hil key` prints it, from now on."""
    from edgeops.releases import rig_results
    from edgeops.trust.publisher import Publisher

    rig_results.trust(Publisher(home).home, name, key)
    click.echo(f"rig {name} is trusted")


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
@click.option("--no-bom", is_flag=True, help="Publish no bill of materials; else the extra `sbom` has to be installed.")
@click.option("--run-url", default="", metavar="URL", help="The CI run that made it, for the statement of provenance.")
@click.option(
    "--blob-counter",
    type=click.IntRange(0, 2**32 - 1),
    help="Microcontrollers that confirmed this release refuse models with a smaller counter [the largest so far].",
)
@click.argument("model")
@click.argument("version")
@junit_option
@json_option
def publish(
    home: Path,
    key_folders: tuple[Path, ...],
    no_bom: bool,
    run_url: str,
    blob_counter: int | None,
    model: str,
    version: str,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Sign a draft and publish it into the repository, all or nothing.

    With it go the evidence, a bill of materials (CycloneDX) and a statement of where it all comes from (in-toto, SLSA
    provenance), each of them signed. The blob of a microcontroller's profile gets a signature of its own, which the
    device checks.
    """
    from edgeops.releases import publish as publishing

    with junit_file(junit, "release") as cases:
        done = publishing.publish(
            home,
            model,
            version,
            key_folders=key_folders,
            with_materials=not no_bom,
            run=run_url,
            blob_counter=blob_counter,
        )
        if junit is not None:
            cases += _checked(home, done)
        _show(done, as_json)


@command.command()
@home_option
@click.argument("model")
@click.argument("version")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the verified documents.")
@junit_option
@json_option
def verify(home: Path, model: str, version: str, out: Path | None, junit: Path | None, as_json: bool) -> None:
    """Verify a published release: its bundles, evidence, bill of materials and provenance, byte by byte.

    With --out the bill of materials (materials.cdx.json) and the statement (provenance.json) are written there.
    """
    from edgeops.releases import catalog, verify

    with junit_file(junit, "release") as cases:
        release = catalog.release(home, model, version)
        found = verify.verify(home, release)
        if junit is not None:
            cases += _as_cases(release, found)
        if out is not None:
            verify.write_documents(home, release, out)
    if as_json:
        print_json([one._asdict() for one in found])
    else:
        print_table(("what", "verified"), found)


def _checked(home: Path, release: Release) -> list[Case]:
    from edgeops.releases import verify

    return _as_cases(release, verify.verify(home, release))


def _as_cases(release: Release, found: Sequence[Verified]) -> list[Case]:
    from edgeops.report.junit import Case, Outcome

    suite = f"release.{release.model}.{release.version}"
    return [Case(suite, one.what, Outcome.PASSED if one.there else Outcome.SKIPPED, one.detail) for one in found]


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
