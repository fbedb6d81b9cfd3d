"""Whether a release does worse than it may, by what its requests came to. Pure; it may be asked at any time.

A gate is tripped when its whole confidence sequence is beyond the limit, and holds when the whole of it is within;
between the two it cannot be said yet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from edgeops.contracts.sketches import QuantileSketch
from edgeops.control.rollout.drift import farthest
from edgeops.control.rollout.policy import Gates
from edgeops.control.rollout.statistics import Interval, quantile_interval, share_interval

QUANTILE = 0.95
# Those that rest on a sample of requests, and share the probability of a false alarm.
SAMPLED_GATES = (
    "error_rate_max",
    "error_rate_increase_max",
    "latency_p95_ms_max",
    "latency_p95_ratio_max",
    "drift_max",
)
AGREEMENT = "agreement_min"
TELEMETRY_GATES = (*SAMPLED_GATES, "temperature_c_max", AGREEMENT)


class Requests(NamedTuple):
    """What requests to one release came to: how many were answered, how many failed, and their latency in ms.

    `histograms` say what values looked like, `temperature_max_c` how hot the hottest device was meanwhile. As a shadow
    it was `compared` on so many, and `agreed` on so many of those.
    """

    answered: int = 0
    failed: int = 0
    latency_ms: QuantileSketch = QuantileSketch()
    histograms: Mapping[str, Sequence[int]] = {}
    temperature_max_c: float | None = None
    compared: int = 0
    agreed: int = 0
    sampled: int | None = None

    @property
    def counted(self) -> int:
        """Requests whose values are in the histograms."""
        return self.answered if self.sampled is None else self.sampled

    @property
    def total(self) -> int:
        """All of them."""
        return self.answered + self.failed

    def plus(self, other: Requests) -> Requests:
        """Return both, without what values looked like: two releases do not have the same bins."""
        return Requests(
            self.answered + other.answered, self.failed + other.failed, self.latency_ms.merge(other.latency_ms)
        )


class Arms(NamedTuple):
    """The requests of one profile since the rollout began: to its release, and to any other at the same time.

    `reference` is what the release's bundle was compiled with: name → counts per bin.
    """

    new: Requests = Requests()
    old: Requests = Requests()
    reference: Mapping[str, Sequence[int]] = {}


class Measured(NamedTuple):
    """One gate on telemetry: its value and where it lies for sure, its limit, over how many requests, if it holds."""

    gate: str
    value: float | None
    limit: float
    interval: Interval
    requests: int
    holds: bool | None


def measure(gates: Gates, arms: Arms, profiles: int, *, samples: int = 1) -> Iterator[Measured]:
    """Evaluate the gates on telemetry that were asked for.

    The probability of a false alarm is shared out evenly: over profiles, gates, and the two sides of a comparison.

    Args:
        gates: The policy's.
        arms: One profile's requests.
        profiles: How many profiles the rollout has.
        samples: How many samples are judged over the rollout, each from its own beginning: with a control arm two.
    """
    asked = sum(getattr(gates, gate) is not None for gate in SAMPLED_GATES)
    alpha = gates.false_alarm / (max(1, asked) * max(1, profiles) * samples)
    new, old, reference = arms
    if gates.error_rate_max is not None:
        interval = share_interval(new.failed, new.total, alpha)
        yield _measured("error_rate_max", _share(new), gates.error_rate_max, interval, new.total)
    if gates.error_rate_increase_max is not None:
        ours, theirs = (share_interval(side.failed, side.total, alpha / 2) for side in (new, old))
        interval = Interval(ours.lower - theirs.upper, ours.upper - theirs.lower)
        was, now = _share(old), _share(new)
        value = None if was is None or now is None else now - was
        yield _measured("error_rate_increase_max", value, gates.error_rate_increase_max, interval, new.total)
    if gates.latency_p95_ms_max is not None:
        interval = quantile_interval(new.latency_ms, QUANTILE, alpha)
        value = new.latency_ms.quantile(QUANTILE)
        yield _measured("latency_p95_ms_max", value, gates.latency_p95_ms_max, interval, new.total)
    if gates.latency_p95_ratio_max is not None:
        ours, theirs = (quantile_interval(side.latency_ms, QUANTILE, alpha / 2) for side in (new, old))
        interval = Interval(_ratio(ours.lower, theirs.upper), _ratio(ours.upper, theirs.lower))
        was, now = old.latency_ms.quantile(QUANTILE), new.latency_ms.quantile(QUANTILE)
        value = now / was if now is not None and was else None
        yield _measured("latency_p95_ratio_max", value, gates.latency_p95_ratio_max, interval, new.total)
    if gates.drift_max is not None:
        drift = farthest(reference, new.histograms, new.counted, alpha)
        interval = Interval(0.0, math.inf) if drift is None else drift.interval
        yield _measured("drift_max", drift and drift.distance, gates.drift_max, interval, new.counted)
    if gates.temperature_c_max is not None:
        hottest = new.temperature_max_c
        interval = Interval(-math.inf, math.inf) if hottest is None else Interval(hottest, hottest)
        yield _measured("temperature_c_max", hottest, gates.temperature_c_max, interval, new.total)


def measure_shadow(gates: Gates, arms: Arms, profiles: int) -> Iterator[Measured]:
    """Evaluate the gate on agreement, if it was asked for; `false_alarm` is shared out over the profiles.

    Args:
        gates: The policy's.
        arms: One profile's requests.
        profiles: How many profiles the rollout has.
    """
    least, new = gates.agreement_min, arms.new
    if least is not None:
        interval = share_interval(new.agreed, new.compared, gates.false_alarm / max(1, profiles))
        value = new.agreed / new.compared if new.compared else None
        holds = False if interval.upper < least else True if interval.lower >= least else None
        yield Measured(AGREEMENT, value, least, interval, new.compared, holds)


def _measured(gate: str, value: float | None, limit: float, interval: Interval, requests: int) -> Measured:
    holds = False if interval.lower > limit else True if interval.upper <= limit else None
    return Measured(gate, value, limit, interval, requests, holds)


def _share(requests: Requests) -> float | None:
    return requests.failed / requests.total if requests.total else None


def _ratio(above: float, below: float) -> float:
    if below == 0:
        return float("inf")
    return 0.0 if below == float("inf") else above / below
