"""From bundles and their evidence to what the report says. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence

from msgspec.structs import replace

from edgeops import __version__
from edgeops.contracts.bundle import BundleManifest, Histogram
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import CandidateEvidence, Evidence, Latency, Metric, Source
from edgeops.contracts.handover import ResultStep, Step
from edgeops.contracts.release import Release
from edgeops.contracts.tensors import TensorSpec
from edgeops.releases.pieces import Piece
from edgeops.report import classes
from edgeops.report.model import (
    Apart,
    CandidateRow,
    Estimate,
    Fact,
    Figure,
    GateRow,
    ProfileReport,
    Quality,
    Report,
    Spread,
)

PASSED, FAILED, UNKNOWN = "passed", "failed", "unknown"
NO_EVIDENCE = "There is no evidence beside this bundle: nothing is known of how it was made."


def gather(pieces: Sequence[Piece], *, release: Release | None = None, made_at_s: float) -> Report:
    """Bring together what is known of the bundles of one model.

    Args:
        pieces: Its bundles, with their evidence.
        release: The release that they are of; None: not released.
        made_at_s: When the report is made.

    Raises:
        EdgeopsError: E-RELEASE-INVALID; bundles of several models. E-WIRE-MALFORMED; evidence contradicts itself.
    """
    models = sorted({piece.manifest.model for piece in pieces})
    if len(models) != 1:
        raise EdgeopsError("E-RELEASE-INVALID", f"bundles of {', '.join(models)}", "A report is of one model.")
    told = next((piece.evidence for piece in pieces if piece.evidence and piece.evidence.handed_over), None)
    return Report(
        model=models[0],
        version="" if release is None else release.version,
        made_at_s=made_at_s,
        edgeops=__version__,
        handed_over=_handed_over(pieces[0].manifest, told),
        profiles=tuple(profile_report(piece) for piece in sorted(pieces, key=lambda one: one.manifest.profile)),
        lineage=_lineage(release, told),
    )


def profile_report(piece: Piece) -> ProfileReport:
    """Return all about one bundle.

    Raises:
        EdgeopsError: E-WIRE-MALFORMED; its evidence contradicts itself.
    """
    manifest, evidence = piece.manifest, piece.evidence
    plain = ProfileReport(
        profile=manifest.profile,
        digest=piece.digest,
        verdict=UNKNOWN,
        reason=NO_EVIDENCE,
        runtime=manifest.runtime,
        precision=manifest.precision.value,
        scheme=manifest.scheme,
        arch=manifest.arch,
        data="",
        facts=_facts(manifest),
        drift=_drift(manifest),
        drift_samples=0 if manifest.drift is None else manifest.drift.samples,
        lineage=(Fact(what="bundle", value=piece.digest), *_files(manifest)),
    )
    if evidence is None:
        return plain
    return _with_evidence(plain, manifest, evidence)


def _with_evidence(plain: ProfileReport, manifest: BundleManifest, evidence: Evidence) -> ProfileReport:
    one = next((item for item in evidence.candidates if item.scheme == manifest.scheme), None)
    seen = evidence.examination
    data = f"{evidence.evaluation_samples} labelled samples" if evidence.evaluation_samples else "calibration data"
    lineage = (*plain.lineage, *_host(evidence))
    rows = tuple(_candidate(item, evidence) for item in evidence.candidates)
    if one is None:
        return replace(plain, reason="The evidence does not list this bundle's candidate.", candidates=rows)
    return replace(
        plain,
        verdict=PASSED if one.chosen and one.passed else FAILED,
        reason=one.reason,
        data=data,
        figures=_figures(manifest, evidence, one),
        quality=None if one.metric is None else _quality(one.metric),
        classes=None if seen is None else classes.rows(seen, _labels(manifest, seen.output)),
        apart=_apart(one, evidence),
        gates=tuple(
            GateRow(
                gate=gate.gate,
                measured=gate.measured,
                limit=gate.limit,
                passed=gate.passed,
                binding=gate.binding,
                detail=gate.detail,
            )
            for gate in one.gates
        ),
        candidates=rows,
        worst=() if seen is None else classes.worst(seen, _labels(manifest, seen.output)),
        lineage=lineage,
    )


def how(one: CandidateEvidence, evidence: Evidence, runs: int | None = None) -> str:
    """Say how a figure of a candidate was obtained."""
    if one.source is Source.ESTIMATED:
        return Source.ESTIMATED.value
    times = "" if runs is None else f", {runs} runs"
    if one.source is Source.MEASURED_DEVICE:
        return f"{Source.MEASURED_DEVICE.value} {one.measured_on}{times}"
    host = evidence.host
    other = f"; the device is {evidence.arch}" if evidence.arch and evidence.arch != host.arch else ""
    return f"measured on the compile host, {host.arch}, {host.cpu}, {host.cores} cores{times}{other}"


def _figures(manifest: BundleManifest, evidence: Evidence, one: CandidateEvidence) -> tuple[Figure, ...]:
    budgets = manifest.budgets
    found = []
    for what, latency, limit in (
        ("latency, median", one.latency, None),
        ("latency, 95th percentile", one.latency, budgets.latency_p95_ms),
        ("float on the same runtime, median", one.float_latency, None),
    ):
        if latency is not None:
            value = latency.p95_ms if what.endswith("percentile") else latency.p50_ms
            found.append(Figure(what=what, value=value, unit="ms", how=how(one, evidence, latency.runs), limit=limit))
        elif limit is not None:
            found.append(Figure(what=what, value=None, unit="ms", how="not measured", limit=limit))
    size, counted = one.size_bytes / 2**20, "counted: the artifact's files"
    found.append(Figure(what="size", value=size, unit="MiB", how=counted, limit=budgets.size_mib))
    memory = "memory, arena" if manifest.runtime == "mcu" else "memory, peak"
    if one.peak_memory_mib is not None or budgets.peak_memory_mib is not None:
        process = "" if manifest.runtime == "mcu" else "; the whole process that only runs it"
        said = "not measured" if one.peak_memory_mib is None else how(one, evidence) + process
        found.append(
            Figure(what=memory, value=one.peak_memory_mib, unit="MiB", how=said, limit=budgets.peak_memory_mib)
        )
    return tuple(found)


def _quality(metric: Metric) -> Quality:
    def estimate(value: float, interval: tuple[float, float] | None) -> Estimate:
        low, high = interval or (None, None)
        return Estimate(value=value, low=low, high=high)

    return Quality(
        metric=metric.name,
        source=estimate(metric.source, metric.source_interval),
        artifact=estimate(metric.artifact, metric.artifact_interval),
        drop=estimate(metric.drop, (metric.drop_low, metric.drop_high)),
        confidence=metric.confidence,
        samples=metric.samples,
    )


def _apart(one: CandidateEvidence, evidence: Evidence) -> tuple[Apart, ...]:
    """Conversion is told by the float artifact of the same runtime, also of a quantized one."""
    plain = next((item for item in evidence.candidates if item.runtime == one.runtime and item.conversion), None)
    conversion = one.conversion or (() if plain is None else plain.conversion)
    steps = (("conversion", conversion), ("quantization", one.quantization), ("both", one.end_to_end))
    return tuple(
        Apart(
            output=error.output,
            step=step,
            cosine=error.cosine,
            sqnr_db=error.sqnr_db,
            max_abs=error.max_abs,
            agreement=error.agreement,
            samples=error.samples,
        )
        for step, errors in steps
        for error in errors
    )


def _candidate(one: CandidateEvidence, evidence: Evidence) -> CandidateRow:
    ratio = None
    if one.latency is not None and one.float_latency is not None and one.float_latency.p50_ms > 0:
        ratio = one.latency.p50_ms / one.float_latency.p50_ms
    return CandidateRow(
        scheme=one.scheme,
        runtime=one.runtime,
        precision=one.precision,
        size_bytes=one.size_bytes,
        latency_ms=None if one.latency is None else one.latency.p50_ms,
        ratio=ratio,
        error=max((1 - item.cosine for item in one.end_to_end), default=None),
        metric=None if one.metric is None else one.metric.artifact,
        pareto=one.pareto,
        passed=one.passed,
        chosen=one.chosen,
        reason=one.reason,
        how=how(one, evidence, _runs(one.latency)),
    )


def _runs(latency: Latency | None) -> int | None:
    return None if latency is None else latency.runs


def _facts(manifest: BundleManifest) -> tuple[Fact, ...]:
    tolerances = "; ".join(
        f"{name}: at most {item.artifact_max_abs:g} apart ({item.reason})"
        for name, item in sorted(manifest.golden.tolerances.items())
    )
    return (
        Fact(what="runtime", value=f"{manifest.runtime}, {manifest.runtime_min} or newer"),
        Fact(what="precision", value=f"{manifest.precision.value}, made by {manifest.scheme}"),
        Fact(what="architecture", value=manifest.arch),
        Fact(what="golden vectors", value=f"{manifest.golden.count}; {tolerances}"),
        Fact(what="outputs that are not finite", value=manifest.nan_policy),
    )


def _handed_over(manifest: BundleManifest, evidence: Evidence | None) -> tuple[Fact, ...]:
    told = None if evidence is None else evidence.handed_over
    facts = [Fact(what="model", value=manifest.model)]
    if told is not None:
        opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(told.opsets.items()))
        kinds = ", ".join(f"{name} ×{count}" for name, count in sorted(told.operators.items()))
        facts += [
            *([Fact(what="description", value=told.description)] if told.description else []),
            Fact(what="file", value=told.file),
            Fact(what="weights", value=f"{told.weights_bytes / 2**20:.3g} MiB"),
            Fact(what="operator sets", value=opsets),
            Fact(what="operators", value=kinds),
        ]
    for spec in manifest.inputs:
        baked, agent = manifest.preprocessing.get(spec.name, ()), manifest.agent_steps.get(spec.name, ())
        steps = _steps("done by the agent", agent) + _steps("baked in", baked) or "; no preprocessing"
        facts.append(Fact(what=f"input {spec.name}", value=form(spec) + steps))
    for info in manifest.outputs:
        labels = f"; {len(info.labels)} labels: {', '.join(info.labels[:12])}" if info.labels else ""
        labels += " and more" if len(info.labels) > 12 else ""
        name = info.tensor.name
        results, left = manifest.postprocessing.get(name, ()), manifest.agent_results.get(name, ())
        steps = _steps("baked in", results) + _steps("done by the agent", left)
        facts.append(Fact(what=f"output {name}", value=f"{form(info.tensor)}, {info.kind}{labels}{steps}"))
    if evidence is not None:
        facts.append(Fact(what="calibration", value=f"{evidence.calibration_samples} samples"))
        said = f"{evidence.evaluation_samples} samples" if evidence.evaluation_samples else "none"
        facts.append(Fact(what="evaluation", value=said))
    return tuple(facts)


def _lineage(release: Release | None, evidence: Evidence | None) -> tuple[Fact, ...]:
    facts = []
    if release is not None:
        facts.append(Fact(what="release", value=f"{release.model} {release.version}, number {release.number}"))
        facts.append(Fact(what="published", value=moment(release.created_at_s)))
        if release.notes:
            facts.append(Fact(what="notes", value=release.notes))
    if evidence is not None and evidence.handed_over is not None:
        facts.append(Fact(what="hand-over", value=evidence.handed_over.digest))
        facts += [
            Fact(what=f"file {name}", value=f"sha256:{sha256}")
            for name, sha256 in sorted(evidence.handed_over.files.items())
        ]
    return tuple(facts)


def _files(manifest: BundleManifest) -> tuple[Fact, ...]:
    own = [manifest.artifact, *sorted(name for name in manifest.files if name != manifest.artifact)]
    return tuple(Fact(what=name, value=f"sha256:{manifest.files[name].sha256}") for name in own)


def _host(evidence: Evidence) -> tuple[Fact, ...]:
    host = evidence.host
    return (
        Fact(what="compiled", value=moment(evidence.created_at_s)),
        Fact(what="compile host", value=f"{host.arch}, {host.cpu}, {host.cores} cores, Python {host.python}"),
        *(Fact(what=name, value=version) for name, version in sorted(host.tools.items())),
    )


def _drift(manifest: BundleManifest) -> tuple[Spread, ...]:
    drift = manifest.drift
    if drift is None:
        return ()
    found: list[tuple[str, str, Histogram]] = [
        *((name, "input", histogram) for name, histogram in sorted(drift.inputs.items())),
        *((name, "output", histogram) for name, histogram in sorted(drift.outputs.items())),
    ]
    if drift.confidence is not None:
        found.append(("confidence", "confidence", drift.confidence))
    return tuple(
        Spread(tensor=name, role=role, edges=histogram.edges, counts=histogram.counts)
        for name, role, histogram in found
        if len(histogram.counts) == len(histogram.edges) + 1
    )


def _labels(manifest: BundleManifest, output: str) -> tuple[str, ...]:
    return next((info.labels for info in manifest.outputs if info.tensor.name == output), ())


def _steps(where: str, steps: Sequence[Step | ResultStep]) -> str:
    return f"; {where}: {', '.join(map(_step, steps))}" if steps else ""


def _step(step: Step | ResultStep) -> str:
    name = str(type(step).__struct_config__.tag)
    values = [
        f"{field} {_setting(value)}"
        for field in type(step).__struct_fields__
        if (value := getattr(step, field)) not in ((), None)
    ]
    return f"{name} ({', '.join(values)})" if values else name


def _setting(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(_setting(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def form(spec: TensorSpec) -> str:
    """Return a tensor's type and shape in words."""
    return f"{spec.dtype} {' × '.join(str(size) for size in spec.shape) or 'scalar'}"


def moment(at_s: float) -> str:
    """Return a time in UTC; empty where it is no time."""
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at_s))
    except (OverflowError, ValueError, OSError):
        return ""
