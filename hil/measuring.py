"""Bundles measured on a rig's board, for `compile --measured-on`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec
import numpy as np

from edgeops.agent.gateway.model import LinkSession
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Latency, Source
from edgeops.contracts.measurement import BundleFigures, Measured, Measurements
from edgeops.contracts.wire import decode
from edgeops.profiles import registry
from edgeops.releases.bundles import Bundle, open_bundle, unpack
from edgeops.runtimes import golden
from edgeops.runtimes.bundle_session import BundleSession
from firmware_bridge import blobs
from hil.boards.kinds import KINDS, closed_in_any_case, open_board
from hil.boards.protocol import LinuxBoard, McuBoard, broken
from hil.checks.mcu import bring
from hil.reservation import Reservation, resource_of
from hil.rig import BoardSpec, Rig, kind_of

_WITHIN_S = 1800.0


def measure(
    rig: Rig, paths: Sequence[Path], board: str | None, *, runs: int, threads: int, wait_s: float = 0.0
) -> Measurements:
    """Measure bundles on one board.

    Args:
        rig: The rig.
        paths: Bundles of one profile, folders or `.edgeops` files.
        board: Its name; None: the rig's first of the bundles' profile.
        runs: Timed inferences.
        threads: Inference threads; a microcontroller has one.
        wait_s: How long to wait for a board that another run has.

    Returns:
        What was measured on the board. Of an emulated one the figures count as estimated: the compiler does not choose
        by them.

    Raises:
        EdgeopsError: E-HIL-RIG; the rig is not for this, or has no such board. E-HIL-BOARD or E-HIL-BUSY.
            E-BUNDLE-PROFILE; bundles of several profiles, or of another than the board's.
    """
    if "measure" not in rig.purposes:
        raise EdgeopsError("E-HIL-RIG", f"rig {rig.name} is for {', '.join(rig.purposes)}, not for measure")
    with tempfile.TemporaryDirectory(prefix="edgeops-hil-") as name:
        scratch = Path(name)
        bundles = [
            unpack(path, scratch / str(index)) if path.is_file() else open_bundle(path)
            for index, path in enumerate(paths)
        ]
        spec = _choose(rig, board, {bundle.manifest.profile for bundle in bundles})
        with (
            Reservation(resource_of(rig, spec), wait_s),
            open_board(spec, scratch, wait_s) as opened,
            closed_in_any_case(opened),
        ):
            opened.power_on()
            if KINDS[kind_of(spec)].is_mcu:
                found = _on_mcu(cast("McuBoard", opened), bundles, runs)
            else:
                found = _on_linux(cast("LinuxBoard", opened), bundles, runs, threads)
    source = Source.MEASURED_DEVICE if spec.timing else Source.ESTIMATED
    return msgspec.structs.replace(found, source=source, device=f"rig:{rig.name}/{spec.name}")


def _choose(rig: Rig, board: str | None, profiles: set[str]) -> BoardSpec:
    if len(profiles) != 1:
        raise EdgeopsError("E-BUNDLE-PROFILE", f"bundles of {', '.join(sorted(profiles))}", "Measure one profile's.")
    (profile,) = profiles
    named = [spec for spec in rig.boards if board in (None, spec.name)]
    fitting = [spec for spec in named if spec.profile == profile]
    if not named:
        raise EdgeopsError("E-HIL-RIG", f"rig {rig.name} has no board {board}", "edgeops hil list")
    if not fitting:
        raise EdgeopsError("E-BUNDLE-PROFILE", f"rig {rig.name} has no board {board or ''} of profile {profile}")
    return fitting[0]


def _on_linux(board: LinuxBoard, bundles: Sequence[Bundle], runs: int, threads: int) -> Measurements:
    places = [board.put(bundle.directory, f"bundle-{index}") for index, bundle in enumerate(bundles)]
    words = board.edgeops("measure", *places, "--runs", str(runs), "--threads", str(threads), "--json")
    done = board.run(*words, within_s=_WITHIN_S)
    try:
        return decode(done.out, Measurements, what=f"measurements of {board.name}")
    except EdgeopsError as error:
        raise broken(board.name, f"no measurements: {done.err.strip()[-300:]}", board.console()) from error


def _on_mcu(board: McuBoard, bundles: Sequence[Bundle], runs: int) -> Measurements:
    figures = []
    for bundle in bundles:
        measured, failure = None, ""
        try:
            measured = _blob(board, bundle, runs)
        except EdgeopsError as error:
            if error.code == "E-HIL-BOARD":
                raise
            failure = f"{error.code}: {error.what}"
        manifest = bundle.manifest
        figures.append(
            BundleFigures(
                digest=bundle.digest,
                artifact_sha256=manifest.files[manifest.artifact].sha256,
                model=manifest.model,
                profile=manifest.profile,
                scheme=manifest.scheme,
                runtime=manifest.runtime,
                measured=measured,
                failure=failure,
            )
        )
    profile = registry.load(board.profile)
    return Measurements(
        source=Source.MEASURED_DEVICE,
        device=board.name,
        arch=profile.cpu.arch,
        processor=profile.cpu.model,
        threads=1,
        at_s=time.time(),
        bundles=tuple(figures),
    )


def _blob(board: McuBoard, bundle: Bundle, runs: int) -> Measured:
    """Install a blob, and measure it by the board's own clock."""
    manifest = bundle.manifest
    blob = (bundle.directory / manifest.artifact).read_bytes()
    header = blobs.read(blob)
    vectors = golden.load(bundle.directory, manifest)
    with board.link() as link:
        counter = link.model_info().floor + 1
        start_s = time.monotonic()
        bring(link, board.sign(blob, version=f"{counter}.0.0", counter=counter), header)
        load_ms = 1000 * (time.monotonic() - start_s)
        raw = LinkSession(link, header)
        session = BundleSession(raw, manifest)
        replayed = golden.replay(session, manifest, vectors)
        raw.durations_ms.clear()
        for _ in range(runs):
            session.run({name: array[0] for name, array in vectors.inputs.items()})
        provider = raw.provider
    p50, p95 = np.percentile(raw.durations_ms, (50, 95))
    return Measured(
        load_ms=load_ms,
        latency=Latency(p50_ms=float(p50), p95_ms=float(p95), runs=runs),
        peak_memory_mib=header.ram_size / (1 << 20),
        provider=provider,
        golden_vectors=replayed.vectors,
        source_min_cosine=replayed.min_cosine,
        own_max_abs=replayed.max_abs_diff,
    )
