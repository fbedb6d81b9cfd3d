"""Compile a hand-over into a proved bundle per device profile."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeops.cli.compile_progress import compile_progress
from edgeops.cli.junit import junit_file, junit_option
from edgeops.cli.options import served_option
from edgeops.cli.output import json_option, print_json, print_table
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.measurement import Measurements
from edgeops.contracts.wire import decode

if TYPE_CHECKING:
    from edgeops.compiler import CompileResult, Elsewhere, ProfileResult
    from edgeops.contracts.evidence import CandidateEvidence, FiguresOrigin

COLUMNS = (
    "profile", "runtime", "precision", "size KiB", "p50 ms here", "agrees with float", "accuracy", "float", "why",
)  # fmt: skip

TRIED_COLUMNS = ("profile", "candidate", "size KiB", "p50 ms here", "agrees with float", "pareto", "result", "why")

_ERROR_FIGURES = ("cosine", "sqnr_db", "max_abs")


@click.command()
@click.argument("handover", type=click.Path(path_type=Path))
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Device profile, or its .toml; repeatable.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="build", show_default=True)
@click.option("--locked", type=click.Path(path_type=Path), help="Make the schemes that this compile.lock names.")
@click.option("--check", is_flag=True, help="With --locked: fail if anything differs from the lock; for CI.")
@click.option(
    "--explain",
    is_flag=False,
    flag_value="all",
    default="",
    metavar="[SCHEME]",
    help="Name the layer at which each error opens: of all candidates, or of one.",
)
@click.option(
    "--keep-candidates", is_flag=True, help="Write every candidate to OUT/PROFILE/candidates, to be measured."
)
@click.option(
    "--measured-on",
    metavar="DEVICE|FILE",
    help="Choose by what a device of the fleet measured last, or by what `edgeops measure --json` wrote on one.",
)
@click.option("--no-pictures", is_flag=True, help="Keep no pictures of evaluation samples in the evidence.")
@junit_option
@served_option
@json_option
def command(
    handover: Path,
    profiles: tuple[str, ...],
    out: Path,
    locked: Path | None,
    check: bool,
    explain: str,
    keep_candidates: bool,
    measured_on: str | None,
    no_pictures: bool,
    junit: Path | None,
    home: Path,
    as_json: bool,
) -> None:
    """Compile the hand-over in folder HANDOVER for each profile, and prove the result against the original.

    For every profile the candidates (runtime, precision, method) are built, run and held against the gates. Exit
    status 3: for a profile no candidate passes; the best one is kept in OUT/PROFILE/rejected.
    """
    if check and locked is None:
        raise EdgeopsError("E-CONFIG", "--check needs --locked", "Name the compile.lock to check against.")
    if locked is not None and measured_on is not None:
        raise EdgeopsError("E-CONFIG", "--locked and --measured-on both say what to choose", "Give one of both.")
    with junit_file(junit, "compile") as cases:
        result = _compile(
            handover,
            profiles,
            out,
            locked=locked,
            check=check,
            explain=explain,
            elsewhere=_elsewhere(keep_candidates, measured_on, home, handover),
            pictures=not no_pictures,
        )
        if junit is not None:
            from edgeops.report.cases import of_evidence

            for one in result.profiles:
                cases += of_evidence(f"compile.{one.profile}", one.evidence, one.chosen.scheme)
        _show(result, explain, as_json)
        result.raise_for_gates()
        schemes = {one.scheme for profile in result.profiles for one in profile.evidence.candidates}
        if explain and explain != "all" and explain not in schemes:
            raise EdgeopsError(
                "E-CONFIG",
                f"--explain {explain}: no such candidate was tried",
                f"Name one of {', '.join(sorted(schemes))}.",
            )


def _elsewhere(keep_candidates: bool, measured_on: str | None, home: Path, handover: Path) -> Elsewhere:
    from edgeops.compiler import Elsewhere

    if measured_on is None:
        return Elsewhere(keep_candidates)
    return Elsewhere(keep_candidates, *_figures(measured_on, home, handover))


def _compile(handover: Path, profiles: tuple[str, ...], out: Path, **options: Any) -> CompileResult:
    from edgeops.compiler import compile as compile_handover

    with compile_progress(len(set(profiles))) as show:
        return compile_handover(handover, profiles, out, on_progress=show, **options)


def _show(result: CompileResult, explain: str, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "model": result.model,
                "handover": result.handover,
                "lock": None if result.lock is None else str(result.lock),
                "profiles": [_record(profile) for profile in result.profiles],
            }
        )
    else:
        print_table(COLUMNS, [_row(_record(profile)) for profile in result.profiles])
        click.echo()
        tried = [_tried_row(profile, one) for profile in result.profiles for one in profile.evidence.candidates]
        print_table(TRIED_COLUMNS, tried)
        if explain:
            click.echo()
            print_table(
                ("profile", "candidate", "output", "opens at", "cosine", "SQNR dB", "max error"),
                [row for profile in result.profiles for row in _opening_rows(profile, explain)],
            )


def _figures(measured_on: str, home: Path, handover: Path) -> tuple[Measurements, FiguresOrigin]:
    """Return a device's figures and where they come from: a file, else the fleet's control plane.

    Raises:
        EdgeopsError: E-WIRE-MALFORMED; the file holds no figures. E-DEVICE-UNKNOWN. E-MEASURE-REFUSED; the device has
            measured nothing. E-TRUST-SIGNATURE and the like; what it measured is not signed by its key.
    """
    from edgeops.contracts.evidence import FiguresOrigin

    path = Path(measured_on)
    if path.is_file():
        data = path.read_bytes()
        found = decode(data, Measurements, what=str(path))
        digest = hashlib.sha256(data).hexdigest()
        return found, FiguresOrigin(device=found.device, at_s=found.at_s, sha256=digest)
    if path.suffix or len(path.parts) > 1:
        raise EdgeopsError("E-CONFIG", f"there is no file {measured_on}", "Name one, or a device of the fleet.")
    from edgeops.cli.measure import figures_by_device
    from edgeops.client.api import Api
    from edgeops.intake.handover import HANDOVER_NAME, read_declaration

    api, model = Api.from_home(home), read_declaration(handover / HANDOVER_NAME).model.name
    for asked in api.measurements(measured_on):
        if asked.measurements is not None and any(one.model == model for one in asked.measurements.bundles):
            return figures_by_device(asked, home, api.health().fleet)
    raise EdgeopsError(
        "E-MEASURE-REFUSED",
        f"{measured_on} has measured no candidate of {model} yet",
        f"edgeops measure OUT/PROFILE/candidates/*/bundle --device {measured_on}",
    )


def _record(result: ProfileResult) -> dict[str, Any]:
    chosen = result.chosen
    agreements = [error.agreement for error in chosen.end_to_end if error.agreement is not None]
    return {
        "profile": result.profile,
        "passed": result.passed,
        "digest": result.packaged.digest,
        "bundle": str(result.packaged.directory),
        "file": str(result.packaged.file),
        "scheme": chosen.scheme,
        "runtime": chosen.runtime,
        "precision": chosen.precision,
        "size_bytes": chosen.size_bytes,
        "p50_ms": None if chosen.latency is None else chosen.latency.p50_ms,
        "agreement": min(agreements, default=None),
        "metric": chosen.metric,
        "reason": chosen.reason if result.passed else result.missed,
        "would_pass_with": chosen.would_pass_with,
        "candidates": result.evidence.candidates,
    }


def _row(record: dict[str, Any]) -> tuple[object, ...]:
    metric = record["metric"]
    return (
        record["profile"],
        record["runtime"],
        record["precision"],
        f"{record['size_bytes'] / 1024:.0f}",
        _figure(record["p50_ms"], 3),
        _figure(record["agreement"], 4),
        _figure(metric and metric.artifact, 4),
        _figure(metric and metric.source, 4),
        f"{record['scheme']}: {record['reason']}",
    )


def _tried_row(result: ProfileResult, one: CandidateEvidence) -> tuple[object, ...]:
    agreements = [error.agreement for error in one.end_to_end if error.agreement is not None]
    return (
        result.profile,
        one.scheme,
        f"{one.size_bytes / 1024:.0f}" if one.size_bytes else "",
        _figure(None if one.latency is None else one.latency.p50_ms, 3),
        _figure(min(agreements, default=None), 4),
        "yes" if one.pareto else "",
        "chosen" if one.chosen else "passes" if one.passed else "fails",
        one.reason,
    )


def _opening_rows(result: ProfileResult, explain: str) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for one in result.evidence.candidates:
        if explain not in ("all", one.scheme):
            continue
        head = (result.profile, one.scheme)
        if not one.opens:
            rows.append((*head, "", one.not_explained or "no output is worse than the gates allow", "", "", ""))
        for item in one.opens:
            figures = [error for error in (item.before, item.after) if error is not None]
            changes = (" → ".join(f"{getattr(error, name):.4g}" for error in figures) for name in _ERROR_FIGURES)
            rows.append(
                (*head, item.output, " + ".join((*reversed(item.unseen), f"{item.operator} {item.node}")), *changes)
            )
    return rows


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
