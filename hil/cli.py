"""Rigs of boards: list them, look whether they can be used, and run a release on them before a fleet gets it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeops.cli.options import FloatRange
from edgeops.cli.output import json_option, print_json, print_table
from edgeops.contracts.errors import EdgeopsError

if TYPE_CHECKING:
    from edgeops.contracts.rigs import CheckResult, RigResult

_RIGS = click.option(
    "--rigs",
    "folders",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    envvar="EDGEOPS_RIGS",
    show_envvar=True,
    help="A folder with rig files beside those that edgeops brings; may be given again.",
)
_CHECKS = click.option(
    "--check",
    "checks",
    multiple=True,
    metavar="NAME",
    callback=lambda _context, _option, names: _known_checks(names),
    help="Only this check, and what it needs before it; repeatable.",
)
_MARKS = {"passed": "✓", "failed": "✗", "broken": "!", "skipped": "-"}


@click.group()
def command() -> None:
    """Rigs of boards: list them, look whether they can be used, and run a release on them before a fleet gets it."""


@command.command("list")
@_RIGS
@json_option
def list_rigs(folders: tuple[Path, ...], as_json: bool) -> None:
    """List the rigs and their boards."""
    from hil.rig import BUILTIN_RIGS, kind_of, read_rig

    rigs = [read_rig(path) for folder in (*folders, BUILTIN_RIGS) for path in sorted(folder.glob("*.toml"))]
    if as_json:
        print_json(rigs)
        return
    rows = [
        (rig.name, ", ".join(rig.purposes), board.name, kind_of(board), board.profile)
        for rig in rigs
        for board in rig.boards
    ]
    print_table(("rig", "for", "board", "kind", "profile"), rows)


@command.command()
@click.argument("rig")
@_RIGS
@json_option
def doctor(rig: str, folders: tuple[Path, ...], as_json: bool) -> None:
    """Look whether each board of RIG can be used here, and say what is missing; exit status 4 if one cannot.

    RIG is a rig's name or file. Boards are neither switched nor spoken to.
    """
    from hil.doctor import examine
    from hil.rig import find_rig, read_rig

    findings = examine(read_rig(find_rig(rig, folders)))
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        rows = [(one.board, one.kind, "yes" if not one.missing else "NO", one.missing or one.said, one.next_step)
                for one in findings]  # fmt: skip
        print_table(("board", "kind", "usable", "found", "next step"), rows)
    if bad := [one for one in findings if one.missing]:
        raise EdgeopsError("E-HIL-BOARD", "; ".join(f"{one.board}: {one.missing}" for one in bad), bad[0].next_step)


@command.command()
@click.argument("rig")
@_RIGS
def key(rig: str, folders: tuple[Path, ...]) -> None:
    """Print the public key of RIG, for `edgeops release trust-rig`; the key is made at its first use."""
    from hil.evidence import RigKey
    from hil.rig import find_rig, read_rig

    click.echo(RigKey.of_rig(read_rig(find_rig(rig, folders)).name).public_pem, nl=False)


@command.command()
@click.argument("rig")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@_RIGS
@click.option("--board", help="Which [the first of the bundles' profile].")
@click.option("--runs", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Timed inferences.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Inference threads.")
@click.option("--wait", "wait_s", type=FloatRange(0), default=0.0, help="Seconds to wait for a board in use.")
@json_option
def measure(
    rig: str,
    bundles: tuple[Path, ...],
    folders: tuple[Path, ...],
    board: str | None,
    runs: int,
    threads: int,
    wait_s: float,
    as_json: bool,
) -> None:
    """Measure BUNDLES of one profile on a board of RIG; the same as `edgeops measure --device rig:RIG/BOARD`.

    With --json it prints what `edgeops compile --measured-on` reads. Figures of emulated boards count as estimated.
    """
    from edgeops.cli.measure import show
    from hil.interrupts import one_interrupt
    from hil.measuring import measure as measure_on
    from hil.rig import find_rig, read_rig

    described = read_rig(find_rig(rig, folders))
    with one_interrupt(lambda line: click.echo(line, err=True)):
        found = measure_on(described, bundles, board, runs=runs, threads=threads, wait_s=wait_s)
    show(found, runs, as_json=as_json)


@command.command()
@click.argument("rig")
@_RIGS
@click.option(
    "--bundle", "bundles", type=click.Path(path_type=Path, exists=True), multiple=True, help="A bundle; repeatable."
)
@click.option("--release", nargs=2, metavar="MODEL VERSION", help="A published release of the fleet in --home.")
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="EDGEOPS_HOME",
    default="edgeops-home",
    show_default=True,
    show_envvar=True,
    help="The fleet's home, for --release.",
)
@click.option(
    "--before",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    help="A bundle that devices run now, to update from [the tested one under another name].",
)
@click.option(
    "--handover", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Its labelled data are asked."
)
@click.option("--board", "boards", multiple=True, help="Only this board; repeatable.")
@click.option("--runs", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Timed inferences.")
@click.option("--samples", type=click.IntRange(1, 100_000), default=200, show_default=True, help="Labelled samples.")
@click.option("--cuts", type=click.IntRange(0, 1000), default=3, show_default=True, help="Power cuts.")
@click.option("--soak", "soak_s", type=FloatRange(0, 7 * 86400), default=0.0, help="Seconds of asking at the end.")
@_CHECKS
@click.option("--wait", "wait_s", type=FloatRange(0), default=0.0, help="Seconds to wait for a board in use.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML page here.")
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="Write JUnit XML here.")
@click.option("--evidence", type=click.Path(path_type=Path, dir_okay=False), help="Write the result, signed, here.")
@json_option
def run(
    rig: str,
    folders: tuple[Path, ...],
    bundles: tuple[Path, ...],
    release: tuple[str, str] | None,
    home: Path,
    before: tuple[Path, ...],
    handover: Path | None,
    boards: tuple[str, ...],
    runs: int,
    samples: int,
    cuts: int,
    soak_s: float,
    checks: tuple[str, ...],
    wait_s: float,
    report: Path | None,
    junit: Path | None,
    evidence: Path | None,
    as_json: bool,
) -> None:
    """Run bundles, or a published release, on the boards of RIG.

    Each board gets the bundle of its profile: it is measured, installed, updated to, rolled back, damaged on its way,
    cut off from power, and asked. Exit status 3: a check failed; 4: a board could not be used.
    """
    from hil.checks.plan import Effort
    from hil.interrupts import one_interrupt
    from hil.rig import find_rig, read_rig
    from hil.run import Request, run_rig
    from hil.subjects import of_bundles, of_release, read_labelled, with_context

    if bool(bundles) == (release is not None):
        raise EdgeopsError("E-CONFIG", "--bundle and --release are two ways to say what to run", "Give one of both.")
    described = read_rig(find_rig(rig, folders))
    _check_places(described.name, report, junit, evidence)
    with (
        one_interrupt(lambda line: click.echo(line, err=True)),
        tempfile.TemporaryDirectory(prefix="edgeops-hil-") as name,
    ):
        scratch = Path(name)
        tested = of_release(home, *release, scratch / "tested") if release else of_bundles(bundles, scratch / "tested")
        subjects = with_context(tested, of_bundles(before, scratch / "before"), read_labelled(handover))
        request = Request(
            subjects,
            Effort(runs, samples, cuts, soak_s, only=checks),
            boards,
            "soak" if soak_s >= 3600 else "release",
            wait_s,
        )
        found = run_rig(
            described,
            request,
            say=lambda line: click.echo(f"… {line}", err=True),
            on_check=lambda board, check: click.echo(_line(board, check), err=True),
        )
    if as_json:
        print_json(found)
    else:
        print_table(("board", "profile", "check", "result", "what"), _rows(found))
    _write(found, report, junit, evidence)
    _end(found)


@command.command("serve")
@click.argument("rig")
@_RIGS
@click.option(
    "--state",
    "root",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    envvar="EDGEOPS_RIG_STATE",
    show_envvar=True,
    help="The daemon's state directory.",
)
@click.option("--token", help="Enrolment token. Other users of this machine may see it: prefer --token-file.")
@click.option("--token-file", type=click.Path(path_type=Path, dir_okay=False), help="Enrolment token; read to enrol.")
@click.option(
    "--handover",
    "handovers",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    help="Labelled data of a model, to be asked; repeatable.",
)
@click.option("--runs", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Timed inferences.")
@click.option("--samples", type=click.IntRange(1, 100_000), default=200, show_default=True, help="Labelled samples.")
@click.option("--cuts", type=click.IntRange(0, 1000), default=3, show_default=True, help="Power cuts.")
@click.option("--soak", "soak_s", type=FloatRange(0, 7 * 86400), default=0.0, help="Seconds of asking at the end.")
@_CHECKS
@click.option("--verbose", is_flag=True, help="Log what happens, not only what goes wrong.")
def serve(
    rig: str,
    folders: tuple[Path, ...],
    root: Path,
    token: str | None,
    token_file: Path | None,
    handovers: tuple[Path, ...],
    runs: int,
    samples: int,
    cuts: int,
    soak_s: float,
    checks: tuple[str, ...],
    verbose: bool,
) -> None:
    """Stand before a fleet's rollouts: run what they ask for on the boards of RIG, until SIGTERM.

    The first time it joins the fleet with a token of `edgeops device token --rig`. Its verdicts count once the fleet
    trusts its key: `edgeops hil key`, `edgeops release trust-rig`.
    """
    import logging

    from edgeops.agent.enrolment import enrol, enrolled
    from edgeops.agent.store import StateDirectory
    from edgeops.contracts.enrolment import ConnectionKind, EnrolmentToken
    from hil.checks.plan import Effort
    from hil.rig import find_rig, read_rig
    from hil.standing.daemon import RigDaemon, Standing

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    file = find_rig(rig, folders).resolve()
    described = read_rig(file)
    if "release" not in described.purposes:
        raise EdgeopsError("E-HIL-RIG", f"rig {described.name} is for {', '.join(described.purposes)}, not for release")
    for folder in handovers:
        _check_labelled(folder)
    state = StateDirectory(root)
    try:
        enrolment = enrolled(state)
        if enrolment is None:
            text = token_file.read_text() if token_file is not None and token_file.is_file() else token
            if text is None:
                raise EdgeopsError(
                    "E-CONFIG", f"{root} is not enrolled", f"Give --token-file; `edgeops device token --rig {rig}`."
                )
            enrolment = enrol(
                state, EnrolmentToken.from_text(text), profile="", name=described.name, kind=ConnectionKind.RIG
            )
        elif enrolment.connection != described.name:
            raise EdgeopsError("E-CONFIG", f"{root} is that of rig {enrolment.connection}, not of {described.name}")
        effort = Effort(runs, samples, cuts, soak_s, only=checks)
        daemon = RigDaemon(state, enrolment, Standing(described, file, effort, handovers))
        click.echo(f"rig {described.name} stands in fleet {enrolment.fleet}")
        daemon.run()
    finally:
        state.close()


def _known_checks(names: tuple[str, ...]) -> tuple[str, ...]:
    from hil.checks.plan import CHECKS

    if unknown := sorted(set(names) - set(CHECKS)):
        raise click.BadParameter(f"{', '.join(unknown)}: there are {', '.join(CHECKS)}")
    return names


def _check_labelled(folder: Path) -> None:
    from hil.subjects import read_labelled

    read_labelled(folder)


def _check_places(rig: str, report: Path | None, junit: Path | None, evidence: Path | None) -> None:
    """Look whether what is found can be written and signed, before hours are spent on it."""
    import os

    from hil.evidence import RigKey

    for place in filter(None, (report, junit, evidence)):
        folder = place.absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise EdgeopsError("E-CONFIG", f"{place} cannot be written: no such folder, or not ours", "Name another.")
    if evidence is not None:
        RigKey.of_rig(rig)


def _write(found: RigResult, report: Path | None, junit: Path | None, evidence: Path | None) -> None:
    """Write what was found; a place that fails costs the others nothing."""
    from edgeops import durable
    from hil.evidence import RigKey, seal
    from hil.report import to_html, to_junit

    wanted: list[tuple[Path | None, Callable[[], bytes]]] = [
        (report, lambda: to_html(found).encode()),
        (junit, lambda: to_junit(found)),
        (evidence, lambda: seal(found, RigKey.of_rig(found.rig))),
    ]
    trouble: list[EdgeopsError] = []
    for place, data in wanted:
        if place is not None:
            try:
                place.write_bytes(data())
            except OSError as error:
                trouble.append(durable.disk_error(error, place))
            except EdgeopsError as error:
                trouble.append(error)
    if trouble:
        raise trouble[0]


def _end(found: RigResult) -> None:
    """End with the status of what was found."""
    for verdict, code in (("broken", "E-HIL-BOARD"), ("failed", "E-HIL-CHECK")):
        bad = [
            f"{board.board}: {check.check}: {check.said}"
            for board in found.boards
            for check in board.checks
            if check.verdict.value == verdict
        ]
        if bad:
            raise EdgeopsError(code, "; ".join(bad), "See the report, and the console of the board in it.")
    if found.verdict.value != "passed":
        raise EdgeopsError(
            "E-HIL-BOARD", f"no board of {found.rig} checked anything", f"edgeops hil doctor {found.rig}"
        )


def _line(board: str, check: CheckResult) -> str:
    return f"{_MARKS[check.verdict.value]} {board} {check.check} ({check.duration_s:.1f} s): {check.said}"


def _rows(found: RigResult) -> list[tuple[object, ...]]:
    return [
        (board.board, board.profile, check.check, check.verdict.value, check.said)
        for board in found.boards
        for check in board.checks
    ]
