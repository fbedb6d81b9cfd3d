"""Measure bundles here or on a device: load time, latency, memory, and whether they answer as they should."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeops import plugins
from edgeops.cli.options import FloatRange, home_option, keys_option
from edgeops.cli.output import json_option, print_json, print_table
from edgeops.contracts.errors import EdgeopsError

if TYPE_CHECKING:
    from edgeops.client.resources import MeasurementInfo
    from edgeops.contracts.evidence import FiguresOrigin
    from edgeops.contracts.measurement import BundleFigures, Measurements
    from edgeops.releases.bundles import Bundle

_RIG = "rig:"
_LOOK_EVERY_S = 0.5
# An answer that was signed just in time may still be on its way.
_LATE_S = 5.0


@click.command()
@click.pass_context
@json_option
@home_option
@keys_option
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--runs", default=100, show_default=True, type=click.IntRange(1, 100_000), help="Timed inferences.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Inference threads [1; a device: as its profile says].")
@click.option("--name", help="What to call this machine [its host name].")
@click.option(
    "--device", metavar="NAME", help="Have this device of the fleet measure them, or a rig's board: rig:RIG[/BOARD]."
)
@click.option(
    "--within-s",
    default=3600.0,
    show_default=True,
    type=FloatRange(1, 86400),
    help="With --device: how long to wait for it.",
)
def command(
    context: click.Context,
    bundles: tuple[Path, ...],
    runs: int,
    threads: int | None,
    name: str | None,
    device: str | None,
    within_s: float,
    home: Path,
    key_folders: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Measure BUNDLES, folders or .edgeops files, each in a process of its own.

    On this machine, or with --device on a device of the fleet: they are published as candidates, signed by the model's
    key, and the device fetches, verifies, measures and forgets them; its answer is signed by its key. --home and
    --keys are for that. Exit status 3 if one does not answer as it should.
    """
    if device is not None and name is not None:
        raise EdgeopsError("E-CONFIG", "--name is for this machine, --device has its own", "Give one of both.")
    if device is not None and device.startswith(_RIG):
        # A rig may be named by its file, whose path has slashes of its own.
        path, is_file, rest = device[len(_RIG) :].partition(".toml")
        rig, _, board = (path + is_file, "", rest.lstrip("/")) if is_file else path.partition("/")
        hil = plugins.load("edgeops.commands", "hil")
        context.invoke(
            hil.commands["measure"], rig=rig, bundles=bundles, board=board or None, runs=runs, threads=threads or 1,
            as_json=as_json,
        )  # fmt: skip
        return
    with tempfile.TemporaryDirectory(prefix="edgeops-measure-") as folder:
        opened = [_open(path, Path(folder) / str(index)) for index, path in enumerate(bundles)]
        if device is None:
            found = _here(opened, runs, threads or 1, name or platform.node())
        else:
            found = _there(opened, device, home, key_folders, runs, threads or 0, within_s)
    show(found, runs, as_json=as_json)


def show(found: Measurements, runs: int, *, as_json: bool) -> None:
    """Print measurements.

    Raises:
        EdgeopsError: E-MEASURE; a bundle could not be measured, or does not answer as it should.
    """
    if as_json:
        print_json(found)
    else:
        click.echo(
            f"{found.source.value}: {found.device}, {found.arch}, {found.processor or 'unknown processor'}, "
            f"{found.threads} thread{'s' if found.threads > 1 else ''}, {runs} runs"
        )
        if found.power_mode or found.clocks:
            click.echo(f"power mode {found.power_mode or 'unknown'}, clocks {found.clocks or 'unknown'}")
        print_table(
            ("model", "profile", "scheme", "runtime", "load ms", "p50 ms", "p95 ms", "peak MiB", "cosine", "golden"),
            [_row(one) for one in found.bundles],
        )
    failed = [one for one in found.bundles if one.measured is None]
    if failed:
        raise EdgeopsError(
            "E-MEASURE", "; ".join(f"{one.scheme}: {one.failure}" for one in failed), "See the code of each."
        )


def _open(path: Path, target: Path) -> Bundle:
    from edgeops.releases.bundles import open_bundle, unpack

    return unpack(path, target) if path.is_file() else open_bundle(path)


def _here(bundles: Sequence[Bundle], runs: int, threads: int, name: str) -> Measurements:
    from edgeops.contracts.evidence import Source
    from edgeops.contracts.measurement import Measurements
    from edgeops.runtimes.measure_bundle import clocks, figures_of, power_mode, processor
    from edgeops.runtimes.registry import capabilities

    versions = capabilities()
    return Measurements(
        source=Source.MEASURED_HOST,
        device=name,
        arch=platform.machine(),
        processor=processor(),
        power_mode=power_mode(),
        clocks=clocks(),
        threads=threads,
        at_s=time.time(),
        bundles=tuple(
            figures_of(bundle.directory, bundle.digest, bundle.manifest, threads=threads, runs=runs, versions=versions)
            for bundle in bundles
        ),
    )


def _there(
    bundles: Sequence[Bundle],
    device: str,
    home: Path,
    key_folders: tuple[Path, ...],
    runs: int,
    threads: int,
    within_s: float,
) -> Measurements:
    """Have a device measure, and return what it signed."""
    from edgeops.client.api import Api
    from edgeops.contracts.measurement import MAX_RUNS, MAX_THREADS
    from edgeops.releases import candidates

    if runs > MAX_RUNS or threads > MAX_THREADS:
        raise EdgeopsError("E-CONFIG", f"a device measures at most {MAX_RUNS} runs with {MAX_THREADS} threads")
    api = Api.from_home(home)
    detail = api.device(device)
    for bundle in bundles:
        if bundle.manifest.profile != detail.profile:
            raise EdgeopsError(
                "E-BUNDLE-PROFILE",
                f"{bundle.directory} is for {bundle.manifest.profile}, {device} is a {detail.profile}",
                "Compile for the device's profile.",
            )
    offered = candidates.offer(home, bundles, key_folders=key_folders)
    asked = api.measure(device, offered, threads=threads, runs=runs, valid_s=within_s)
    if not detail.online:
        click.echo(f"{device} is not connected; it is asked as soon as it is", err=True)
    deadline_s = time.monotonic() + within_s + _LATE_S
    while asked.state == "waiting" and time.monotonic() < deadline_s:
        time.sleep(_LOOK_EVERY_S)
        asked = api.measurement(device, asked.id)
    if asked.state in ("waiting", "expired"):
        raise EdgeopsError(
            "E-MEASURE-REFUSED", f"{device} has not answered within {within_s:.0f} s", "See `edgeops device show`."
        )
    return figures_by_device(asked, home, api.health().fleet)[0]


def figures_by_device(asked: MeasurementInfo, home: Path, fleet: str) -> tuple[Measurements, FiguresOrigin]:
    """Return what a device measured, believed for its own signature; `home`: of the fleet, or a context's folder.

    Raises:
        EdgeopsError: E-MEASURE-REFUSED; it measured nothing. Otherwise as `trust.answers.verified_figures`.
    """
    from edgeops.trust.answers import verified_figures

    if asked.envelope is None or asked.certificate_pem is None:
        raise EdgeopsError("E-MEASURE-REFUSED", f"{asked.device} has not answered", "Ask it again.")
    return verified_figures(
        asked.envelope.encode(),
        asked.certificate_pem.encode(),
        ca_pem=(home / "ca" / "ca.pem").read_bytes(),
        fleet=fleet,
        connection=asked.device,
    )


def _row(one: BundleFigures) -> tuple[object, ...]:
    head = (one.model, one.profile, one.scheme, f"{one.runtime} {one.runtime_version}".strip())
    if one.measured is None:
        return (*head, "", "", "", "", "", one.failure.split(":")[0])
    got = one.measured
    return (
        *head,
        f"{got.load_ms:.0f}",
        f"{got.latency.p50_ms:.3f}",
        f"{got.latency.p95_ms:.3f}",
        f"{got.peak_memory_mib:.0f}",
        f"{got.source_min_cosine:.5f}",
        f"{got.golden_vectors} hold",
    )
