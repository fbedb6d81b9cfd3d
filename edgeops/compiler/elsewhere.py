"""Figures of candidates that were measured on another machine take the place of this host's. Pure.

`compile --keep-candidates` writes every candidate as a bundle; `edgeops measure` runs them on a device; with
`compile --measured-on` its figures decide. A candidate is known by the digest of its artifact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgeops.compiler.gates import judge
from edgeops.compiler.search import DeviceFigures, Ground, Tried, measured
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import GateResult, Source
from edgeops.contracts.measurement import Measured, Measurements
from edgeops.contracts.profile import Precision, Profile


def check_figures(found: Measurements, profiles: Sequence[Profile]) -> None:
    """Refuse figures that no device of these profiles can have measured.

    Raises:
        EdgeopsError: E-CONFIG; none is of a bundle of these profiles, the device has another architecture than a
            profile that it measured, a figure is not one that can be measured, or they are no measurements.
    """
    meant = {one.profile for one in found.bundles}
    known = [profile for profile in profiles if profile.name in meant]
    if not known:
        raise EdgeopsError(
            "E-CONFIG",
            f"{found.device} has measured bundles of {', '.join(sorted(meant)) or 'no profile'}",
            "Give figures of a device of a profile that is compiled.",
        )
    if found.source is Source.ESTIMATED:
        raise EdgeopsError("E-CONFIG", f"the figures of {found.device} are {found.source.value}", "Measure them there.")
    for profile in known:
        if found.arch != profile.cpu.arch:
            raise EdgeopsError(
                "E-CONFIG",
                f"{found.device} is {found.arch}, profile {profile.name} is {profile.cpu.arch}",
                "Give figures of a device of this profile.",
            )
    for one in found.bundles:
        got = one.measured
        if got is not None and not (
            all(math.isfinite(value) and value > 0 for value in (got.latency.p50_ms, got.latency.p95_ms, got.load_ms))
            and math.isfinite(got.peak_memory_mib)
            and got.golden_vectors > 0
        ):
            raise EdgeopsError("E-CONFIG", f"{found.device}: {one.scheme} has impossible figures", "Measure it again.")


def remeasured(ground: Ground, tried: Sequence[Tried], found: Measurements) -> list[Tried]:
    """Return the candidates with the device's figures, and with gates that were judged by them.

    One that was not measured there cannot be chosen.

    Args:
        ground: The profile and its gates.
        tried: What the search tried.
        found: What was measured on a device of the profile.

    Raises:
        EdgeopsError: E-CONFIG; none of its figures is of a candidate of this compile.
    """
    profile = ground.profile
    by_artifact = {
        one.artifact_sha256: one.measured
        for one in found.bundles
        if one.measured is not None and one.profile == profile.name
    }
    figures = {one.candidate.scheme: by_artifact.get(_artifact_sha256(one)) for one in tried}
    if not any(figures.values()):
        raise EdgeopsError(
            "E-CONFIG",
            f"{found.device} has measured no candidate of profile {profile.name} as it is made now",
            "Compile with --keep-candidates and measure what lies in candidates/.",
        )
    floats = {
        one.candidate.runtime: figures[one.candidate.scheme]
        for one in tried
        if one.candidate.precision is Precision.FLOAT32
    }
    yardstick = next((got for got in floats.values() if got is not None), None)
    return [
        _with(ground, one, figures[one.candidate.scheme], floats.get(one.candidate.runtime), yardstick, found.device)
        for one in tried
    ]


def _with(
    ground: Ground, one: Tried, own: Measured | None, base: Measured | None, yardstick: Measured | None, device: str
) -> Tried:
    if one.judged is None:
        return one
    if own is None or base is None or yardstick is None:
        missing = GateResult(
            gate="measured", measured=None, limit=1, passed=False, binding=True, detail=f"no figures of {device}"
        )
        return one._replace(results=(*one.results, missing))
    there = DeviceFigures(device, own.latency, base.latency, yardstick.latency, own.peak_memory_mib)
    one = one._replace(there=there)
    # A baseline that the profile does not list stays without gates.
    results = judge(measured(one), ground.gates, ground.budgets, own_arch=True) if one.results else ()
    return one._replace(results=results)


def _artifact_sha256(one: Tried) -> str:
    if one.artifact is None or one.judged is None:
        return ""
    entry = one.artifact.product.files.get(one.manifest.artifact)
    return "" if entry is None else entry.sha256
