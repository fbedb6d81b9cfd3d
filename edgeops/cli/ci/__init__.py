"""Write a pipeline for CI: compile, gate, report, boards, publish, canary."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeops import __version__
from edgeops.contracts.errors import EdgeopsError

if TYPE_CHECKING:
    from edgeops.cli.ci.pipeline import Plan

# Nothing in these can end a word of a shell, a text of YAML or an expression of a CI.
_WORD = re.compile(r"[A-Za-z0-9._/@+-]+")
_GROUP = r"(\d{1,3}(\.\d{1,4})?%|[1-9]\d{0,6}|rest)"
_GROUPS = re.compile(rf"{_GROUP}(,{_GROUP})*")
_PREFIX = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})")
_REQUIREMENT = re.compile(r"[A-Za-z0-9._/@+:= {}\[\],~#-]+")


@click.group()
def command() -> None:
    """Write a pipeline for CI."""


@command.command("init")
@click.argument("kind", type=click.Choice(["github", "gitlab"]))
@click.option("--handover", required=True, metavar="FOLDER", help="The hand-over, from the repository's root.")
@click.option("--profile", "profiles", multiple=True, required=True, metavar="NAME", help="As for compile; repeatable.")
@click.option("--rig", metavar="NAME|FILE", help="Run every build on this rig's boards before it is published.")
@click.option("--locked", "lock", metavar="FILE", help="A compile.lock in the repository that has to be met.")
@click.option("--branch", default="main", show_default=True, help="Merges to it are published and rolled out.")
@click.option("--version-prefix", default="1.0", show_default=True, help="MAJOR.MINOR; the run's number is the rest.")
@click.option("--groups", default="5%,25%,100%", show_default=True, help="Groups of the rollout, the canary first.")
@click.option("--from", "source", metavar="URL", help="Where pip gets edgeops [this version, from the package index].")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The file [where the CI looks for it].")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def init(
    kind: str,
    handover: str,
    profiles: tuple[str, ...],
    rig: str | None,
    lock: str | None,
    branch: str,
    version_prefix: str,
    groups: str,
    source: str | None,
    out: Path | None,
    force: bool,
) -> None:
    """Write the pipeline of this repository for GitHub Actions or GitLab CI/CD.

    Every change is compiled under its gates, with report and JUnit files attached; with --rig it runs on real boards.
    A merge to --branch is published and rolled out, the canary first. Run it in the repository's root.
    """
    from edgeops import durable
    from edgeops.cli.ci import github, gitlab

    plan = _plan(handover, profiles, rig, lock, branch, version_prefix, groups, source)
    module_file = github.FILE if kind == "github" else gitlab.FILE
    path = out or Path(module_file)
    if path.exists() and not force:
        raise EdgeopsError(
            "E-CONFIG",
            f"{path} exists",
            "Give another --out, and include it from that file; --force writes over it.",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise durable.disk_error(error, path) from error
    text = github.workflow(plan) if kind == "github" else gitlab.configuration(plan)
    durable.write_file(path, text.encode())
    click.echo(f"{path}: {plan.model} for {', '.join(plan.profiles.values())}. Its first lines say what it needs.")


def _plan(
    handover: str,
    profiles: tuple[str, ...],
    rig: str | None,
    lock: str | None,
    branch: str,
    version_prefix: str,
    groups: str,
    source: str | None,
) -> Plan:
    """Return what is asked for, checked.

    Raises:
        EdgeopsError: E-CONFIG; a value cannot stand in a pipeline, or the rig or lock is not there. The hand-over's and
            the profiles' own errors.
    """
    from edgeops.cli.ci.pipeline import Plan
    from edgeops.intake.handover import HANDOVER_NAME, read_declaration
    from edgeops.profiles import registry

    for option, value in (("--handover", handover), ("--rig", rig), ("--locked", lock), ("--branch", branch)):
        _check(option, value, _WORD, "letters, digits and . _ / @ + -")
    for option, value in (("--handover", handover), ("--locked", lock)):
        if value is not None and (Path(value).is_absolute() or ".." in Path(value).parts):
            raise EdgeopsError(
                "E-CONFIG",
                f"{option} {value} is not within the repository",
                "Run it in its root, and name a path there.",
            )
    for profile in profiles:
        _check("--profile", profile, _WORD, "letters, digits and . _ / @ + -")
    _check("--groups", groups, _GROUPS, "shares or counts with commas")
    _check("--version-prefix", version_prefix, _PREFIX, "MAJOR.MINOR")
    _check("--from", source, _REQUIREMENT, "no quotes, $ or backslashes")
    if lock is not None and not Path(lock).is_file():
        raise EdgeopsError("E-CONFIG", f"--locked {lock}: there is no such file", "Commit the compile.lock of a build.")
    if rig is not None:
        _check_rig(rig)
    requirement = f"edgeops[{{extras}}] @ {source}" if source is not None else f"edgeops[{{extras}}]=={__version__}"
    return Plan(
        handover=handover,
        model=read_declaration(Path(handover) / HANDOVER_NAME).model.name,
        profiles={
            name: (registry.check(Path(name)) if name.endswith(".toml") else registry.load(name)).name
            for name in profiles
        },
        rig=rig,
        branch=branch,
        version_prefix=version_prefix,
        groups=groups,
        lock=lock,
        requirement=requirement,
    )


def _check(option: str, value: str | None, form: re.Pattern[str], allowed: str) -> None:
    if value is not None and not form.fullmatch(value):
        raise EdgeopsError("E-CONFIG", f"{option} {value[:100]!r} cannot stand in a pipeline", f"Allowed: {allowed}.")


def _check_rig(rig: str) -> None:
    """Look whether a rig can be named here; whether its boards answer is seen where they are."""
    from edgeops import plugins

    if "hil" not in plugins.found("edgeops.commands"):
        raise EdgeopsError("E-CONFIG", "--rig: this edgeops has no command `hil`", "Leave --rig out.")
    if ("/" in rig or rig.endswith(".toml")) and not Path(rig).is_file():
        raise EdgeopsError("E-CONFIG", f"--rig {rig}: there is no such file", "See `edgeops hil list`.")
