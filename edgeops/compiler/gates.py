"""The gates: what was measured of a candidate against what was asked for. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgeops.compiler.metrics import paired_difference, samples_to_prove
from edgeops.compiler.sensitivity import error_shortfall
from edgeops.contracts.evidence import GateResult, Latency, Metric, OutputError, Setting
from edgeops.contracts.handover import Gates
from edgeops.contracts.profile import Budgets, Precision

# Two medians of interleaved runs of the same artifact differ by less than this on a busy machine.
LATENCY_NOISE = 0.05
# A float artifact does the source's own arithmetic in another order: what is worse than this is a wrong conversion.
FLOAT_COSINE_MIN = 0.9999
FLOAT_SQNR_MIN_DB = 60.0
_GATE_SETTINGS = {
    "cosine": "gates.cosine_min",
    "sqnr-db": "gates.sqnr_min_db",
    "agreement": "gates.agreement_min",
    "metric-drop": "gates.metric_drop_max",
    "latency-ratio": "gates.latency_ratio_max",
    "latency-p95-ms": "budgets.latency_p95_ms",
    "size-mib": "budgets.size_mib",
    "peak-memory-mib": "budgets.peak_memory_mib",
}
# For float artifacts these limits are the compiler's own wherever the hand-over asks for less.
_FLOAT_FLOORS = {"cosine": FLOAT_COSINE_MIN, "sqnr-db": FLOAT_SQNR_MIN_DB}


class Measured(NamedTuple):
    """What is known of a candidate.

    Args:
        precision: Its number format.
        outputs: Errors against the float source, per output.
        metric: The task's metric, if there is labelled data.
        latency: Of one inference.
        float_latency: Of the float artifact on the same runtime, measured in turns with it.
        size_bytes: Of all files of the artifact.
        peak_memory_mib: Of a process that only runs it.
    """

    precision: Precision
    outputs: tuple[OutputError, ...]
    metric: Metric | None
    latency: Latency | None
    float_latency: Latency | None
    size_bytes: int
    peak_memory_mib: float | None


def tightest(first: Budgets, second: Budgets) -> Budgets:
    """Return the smaller limit of both, each."""

    def smaller(one: float | None, other: float | None) -> float | None:
        return min((value for value in (one, other) if value is not None), default=None)

    return Budgets(
        latency_p95_ms=smaller(first.latency_p95_ms, second.latency_p95_ms),
        size_mib=smaller(first.size_mib, second.size_mib),
        peak_memory_mib=smaller(first.peak_memory_mib, second.peak_memory_mib),
    )


def judge(measured: Measured, gates: Gates, budgets: Budgets, *, own_arch: bool) -> tuple[GateResult, ...]:
    """Return every gate's result.

    Args:
        measured: The candidate.
        gates: From the hand-over.
        budgets: The tightest of profile and hand-over.
        own_arch: Latency was measured on the profile's own architecture; otherwise it only informs.
    """
    lossless = measured.precision is Precision.FLOAT32
    results = [*_quality(measured.outputs, gates, lossless=lossless)]
    if measured.metric is not None:
        results.append(_metric(measured.metric, gates, lossless=lossless))
    if measured.latency is not None and measured.float_latency is not None:
        limit = gates.latency_ratio_max
        ratio = measured.latency.p50_ms / measured.float_latency.p50_ms
        # Float against itself is 1 by construction.
        detail = "p50 of interleaved runs, noise band 5%" + (
            "" if own_arch else "; another architecture than the profile's"
        )
        results.append(
            _at_most(
                "latency-ratio",
                ratio,
                limit,
                slack=limit * LATENCY_NOISE,
                binding=own_arch and not lossless,
                detail=detail,
            )
        )
    if budgets.latency_p95_ms is not None:
        got = None if measured.latency is None else measured.latency.p95_ms
        results.append(_at_most("latency-p95-ms", got, budgets.latency_p95_ms, binding=own_arch))
    if budgets.size_mib is not None:
        results.append(_at_most("size-mib", measured.size_bytes / 2**20, budgets.size_mib))
    if budgets.peak_memory_mib is not None:
        results.append(_at_most("peak-memory-mib", measured.peak_memory_mib, budgets.peak_memory_mib))
    return tuple(results)


def passed(results: Sequence[GateResult]) -> bool:
    """Say whether all binding gates passed."""
    return all(result.passed for result in results if result.binding)


def provable(metric: Metric, gates: Gates) -> bool:
    """Say whether as many samples could prove a small drop of accuracy if no answer changed."""
    if metric.name != "accuracy":
        return True
    right = np.arange(metric.samples) < round(metric.source * metric.samples)
    return paired_difference(right, right, gates.confidence)[1] <= gates.metric_drop_max


def shortfall(outputs: Sequence[OutputError], gates: Gates) -> float:
    """Return how far answers are from the quality that is asked for: up to 1 passes; infinite if nothing is known."""
    return max(
        (error_shortfall(error, gates.cosine_min, gates.sqnr_min_db, gates.agreement_min) for error in outputs),
        default=math.inf,
    )


def settings_to_pass(results: Sequence[GateResult], precision: Precision) -> tuple[Setting, ...]:
    """Return the nearest settings with which a candidate would pass, all of them together.

    Args:
        results: Its gates.
        precision: Its number format: the floors of float artifacts are no settings.

    Returns:
        One per setting, those of several outputs joined; empty if it passes, or if no setting would do.
    """
    found: dict[str, Setting] = {}
    for result in results:
        if result.passed or not result.binding:
            continue
        kind = result.gate.partition(":")[0]
        got, at_least = result.measured, kind in ("cosine", "sqnr-db", "agreement")
        if got is None or not math.isfinite(got):
            return ()
        if precision is Precision.FLOAT32 and got < _FLOAT_FLOORS.get(kind, -math.inf):
            return ()
        if kind == "latency-ratio":
            got /= 1 + LATENCY_NOISE
        name, needed = _GATE_SETTINGS[kind], _rounded(got, up=not at_least)
        if precision is Precision.FLOAT32 and at_least:
            needed = max(needed, _FLOAT_FLOORS.get(kind, needed))
        before = found.get(name)
        if before is not None:
            needed = min(needed, before.needed) if at_least else max(needed, before.needed)
        found[name] = Setting(setting=name, now=result.limit, needed=needed)
    return tuple(found.values())


def _rounded(value: float, *, up: bool) -> float:
    """Return a value of four digits that is not below (`up`) or not above the given one."""
    if value == 0:
        return 0.0
    digits = 3 - math.floor(math.log10(abs(value)))
    near = round(value, digits)
    if near < value if up else near > value:
        near = round(near + (10.0**-digits if up else -(10.0**-digits)), digits)
    return near


def distance(result: GateResult) -> float:
    """Return how far a gate was missed, relative to its limit; 0 if it passed, infinite if nothing was measured."""
    if result.passed:
        return 0.0
    if result.measured is None or not math.isfinite(result.measured):
        return math.inf
    return abs(result.measured - result.limit) / max(abs(result.limit), 1e-9)


def describe(result: GateResult) -> str:
    """Return a gate's result as words: `agreement 0.912, needs 0.97`."""
    got = "not measured" if result.measured is None else f"{result.measured:.4g}"
    return f"{result.gate} {got}, needs {result.limit:.4g}" + (f" ({result.detail})" if result.detail else "")


def _quality(outputs: Sequence[OutputError], gates: Gates, *, lossless: bool) -> list[GateResult]:
    cosine_min = max(gates.cosine_min, FLOAT_COSINE_MIN) if lossless else gates.cosine_min
    sqnr_min = max(gates.sqnr_min_db, FLOAT_SQNR_MIN_DB) if lossless else gates.sqnr_min_db
    results = []
    for error in outputs:
        results.append(_at_least(f"cosine:{error.output}", error.cosine, cosine_min))
        results.append(_at_least(f"sqnr-db:{error.output}", error.sqnr_db, sqnr_min))
        if error.agreement is not None:
            results.append(
                _at_least(f"agreement:{error.output}", error.agreement, gates.agreement_min, f"n={error.samples}")
            )
    return results


def _metric(metric: Metric, gates: Gates, *, lossless: bool) -> GateResult:
    share = f"{gates.confidence:.0%}"
    detail = f"{metric.name} drop {metric.drop:.4f}, {share} interval to {metric.drop_high:.4f}, n={metric.samples}"
    if not provable(metric, gates):
        needed = samples_to_prove(gates.metric_drop_max, gates.confidence)
        detail += (
            "; no number of samples could prove it" if needed is None else f"; so few cannot prove it, {needed} could"
        )
    # A float artifact is held to the source's values, far below what labelled samples could tell.
    return _at_most("metric-drop", metric.drop_high, gates.metric_drop_max, binding=not lossless, detail=detail)


def _at_least(gate: str, got: float, limit: float, detail: str = "") -> GateResult:
    # A comparison with NaN is false: what cannot be evaluated does not pass.
    return GateResult(gate=gate, measured=got, limit=limit, passed=got >= limit, binding=True, detail=detail)


def _at_most(
    gate: str, got: float | None, limit: float, *, slack: float = 0.0, binding: bool = True, detail: str = ""
) -> GateResult:
    fits = got is not None and got <= limit + slack
    return GateResult(gate=gate, measured=got, limit=limit, passed=fits, binding=binding, detail=detail)
