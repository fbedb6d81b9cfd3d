"""Which candidate wins, which are on the Pareto front, and why each other lost. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from edgeops.compiler.gates import LATENCY_NOISE, describe, distance, settings_to_pass
from edgeops.compiler.search import Tried
from edgeops.contracts.evidence import CandidateEvidence, Setting
from edgeops.contracts.profile import Precision


class Choice(NamedTuple):
    """The result: the winner (or the best of those that fail), whether it passed, and a record of every candidate."""

    best: Tried | None
    passed: bool
    records: tuple[CandidateEvidence, ...]


def select(tried: Sequence[Tried], *, own_arch: bool, named: str | None = None) -> Choice:
    """Choose.

    Where latency was measured on the profile's architecture the fastest wins; what lies within the noise band of the
    fastest counts as equal. Equals, and everything on another architecture, go by the profile's order: precision in
    its order of escalation, then runtime in order of preference, then scheme.

    Args:
        tried: What the search tried.
        own_arch: Latency counts.
        named: The scheme that a lock names: no other may win.
    """
    floats = _floats(tried)
    eligible = [one for one in tried if named in (None, one.candidate.scheme)]
    good = [one for one in eligible if one.passed]
    best: Tried | None
    if good:
        best = _fastest(good, floats) if own_arch else min(good, key=lambda one: one.rank)
    else:
        best = min((one for one in eligible if one.results), key=_shortfall, default=None)
    front = _pareto(tried, floats)
    records = []
    for one in tried:
        reason = _reason(one, best, floats, own_arch)
        if one is best and named is not None and good:
            reason = "named by the lock; passes all gates"
        records.append(
            msgspec.structs.replace(
                one.evidence(),
                chosen=bool(good) and one is best,
                pareto=one in front,
                reason=reason,
                would_pass_with=settings_to_pass(one.results, one.candidate.precision),
            )
        )
    return Choice(best, bool(good), tuple(records))


def missed(one: Tried) -> str:
    """Return the binding gates that a candidate misses, the farthest first, in words with distances."""
    failed = sorted(
        (result for result in one.results if result.binding and not result.passed), key=distance, reverse=True
    )
    words = []
    for result in failed:
        far = distance(result)
        words.append(describe(result) + ("" if math.isinf(far) else f"; misses by {far:.1%}"))
    return ". ".join(words)


def loosened(settings: Sequence[Setting]) -> str:
    """Return settings with which a candidate would pass in words; "" if there are none."""
    return ", ".join(
        f"{one.setting} {'<=' if one.needed < one.now else '>='} {one.needed:.4g} (now {one.now:.4g})"
        for one in settings
    )


def _floats(tried: Sequence[Tried]) -> dict[str, Tried]:
    return {one.candidate.runtime: one for one in tried if one.candidate.precision is Precision.FLOAT32}


def _fastest(good: Sequence[Tried], floats: Mapping[str, Tried]) -> Tried:
    times = {id(one): one.relative_latency(floats) for one in good}
    limit = min(times.values()) * (1 + LATENCY_NOISE)
    return min((one for one in good if times[id(one)] <= limit), key=lambda one: one.rank)


def _shortfall(one: Tried) -> tuple[int, float]:
    failed = [result for result in one.results if result.binding and not result.passed]
    return len(failed), sum(min(distance(result), 1e6) for result in failed)


def _reason(one: Tried, best: Tried | None, floats: Mapping[str, Tried], own_arch: bool) -> str:
    if one.judged is None or not one.results:
        return one.reason
    if not one.passed:
        return ("best of those that fail: " if one is best else "") + missed(one)
    if best is None or not best.passed:
        return "passes; the lock names another"
    if one is best:
        return "fastest that passes all gates" if own_arch else "first in the profile's order that passes all gates"
    slower = one.relative_latency(floats) / best.relative_latency(floats)
    if own_arch and slower > 1 + LATENCY_NOISE:
        return f"passes; {slower:.2f}× the latency of {best.candidate.scheme}"
    why = "as fast, but later in the profile's order than" if own_arch else "later in the profile's order than"
    return f"passes; {why} {best.candidate.scheme}"


def _pareto(tried: Sequence[Tried], floats: Mapping[str, Tried]) -> list[Tried]:
    """Return those that no other beats in latency, size and error at once."""
    points = {id(one): _point(one, floats) for one in tried if one.judged is not None}
    front = []
    for one in tried:
        own = points.get(id(one))
        if own is None:
            continue
        beaten = any(
            other != own and all(theirs <= mine for theirs, mine in zip(other, own, strict=True))
            for key, other in points.items()
            if key != id(one)
        )
        if not beaten:
            front.append(one)
    return front


def _point(one: Tried, floats: Mapping[str, Tried]) -> tuple[float, float, float]:
    record = one.evidence()
    error = max((1 - item.cosine for item in record.end_to_end), default=math.inf)
    return one.relative_latency(floats), float(record.size_bytes), error
