"""Measure bundles on this machine: load time, latency, memory, and whether they answer as they should."""

from __future__ import annotations

import platform
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeops.cli.output import json_option, print_json, print_table
from edgeops.contracts.errors import EdgeopsError

if TYPE_CHECKING:
    from edgeops.contracts.measurement import BundleFigures
    from edgeops.releases.bundles import Bundle


@click.command()
@json_option
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--runs", default=100, show_default=True, type=click.IntRange(1, 100_000), help="Timed inferences.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 1024), help="Inference threads.")
@click.option("--name", "device", default=platform.node, help="What to call this machine [its host name].")
def command(bundles: tuple[Path, ...], runs: int, threads: int, device: str, as_json: bool) -> None:
    """Measure BUNDLES, folders or .edgeops files, each in a process of its own.

    Run it on a device to know what its figures are there. Exit status 3 if one does not answer as it should.
    """
    from edgeops.contracts.evidence import Source
    from edgeops.contracts.measurement import Measurements

    with tempfile.TemporaryDirectory(prefix="edgeops-measure-") as folder:
        opened = [_open(path, Path(folder) / str(index)) for index, path in enumerate(bundles)]
        figures = tuple(_measure(bundle, runs, threads) for bundle in opened)
    found = Measurements(
        source=Source.MEASURED_HOST,
        device=device,
        arch=platform.machine(),
        processor=_processor(),
        threads=threads,
        at_s=time.time(),
        bundles=figures,
    )
    if as_json:
        print_json(found)
    else:
        click.echo(
            f"{found.source.value}: {device}, {found.arch}, {found.processor or 'unknown processor'}, "
            f"{threads} thread{'s' if threads > 1 else ''}, {runs} runs"
        )
        print_table(
            ("model", "profile", "scheme", "runtime", "load ms", "p50 ms", "p95 ms", "peak MiB", "cosine", "golden"),
            [_row(one) for one in figures],
        )
    failed = [one for one in figures if one.measured is None]
    if failed:
        raise EdgeopsError(
            "E-MEASURE", "; ".join(f"{one.scheme}: {one.failure}" for one in failed), "See the code of each."
        )


def _open(path: Path, target: Path) -> Bundle:
    from edgeops.releases.bundles import open_bundle, unpack

    return unpack(path, target) if path.is_file() else open_bundle(path)


def _measure(bundle: Bundle, runs: int, threads: int) -> BundleFigures:
    from edgeops.contracts.measurement import BundleFigures
    from edgeops.runtimes.measure import MeasureRequest, measure_apart
    from edgeops.runtimes.registry import capabilities

    manifest = bundle.manifest
    measured, failure = None, ""
    try:
        measured = measure_apart(
            MeasureRequest(bundle=str(bundle.directory.resolve()), threads=threads, warmup=min(10, runs), runs=runs)
        )
    except EdgeopsError as error:
        failure = f"{error.code}: {error.what}"
    return BundleFigures(
        digest=bundle.digest,
        artifact_sha256=manifest.files[manifest.artifact].sha256,
        model=manifest.model,
        profile=manifest.profile,
        scheme=manifest.scheme,
        runtime=manifest.runtime,
        runtime_version=capabilities().get(manifest.runtime, ""),
        measured=measured,
        failure=failure,
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


def _processor() -> str:
    """Return the processor's name as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else ""
