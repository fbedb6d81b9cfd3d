"""Confidence sequences hold under continuous peeking, and find a regression of stated size in stated time."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from edgeops.contracts.sketches import QuantileSketch
from edgeops.control.rollout.drift import farthest
from edgeops.control.rollout.policy import Gates
from edgeops.control.rollout.regression import Arms, Requests, measure
from edgeops.control.rollout.statistics import Interval, quantile_interval, share_interval

ALPHA = 0.1
RUNS, LOOKS = 300, 300
Bounds = Callable[[int, int, float], Interval]


def wilson(successes: int, trials: int, alpha: float) -> Interval:
    """A fixed-horizon interval: right for one look, of a number of trials that was settled before."""
    z = {0.1: 1.6448536}[alpha]
    share, spread = successes / trials, z * z / trials
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return Interval((share + spread / 2 - half) / (1 + spread), (share + spread / 2 + half) / (1 + spread))


def runs_that_ever_exclude_the_truth(bounds: Bounds, share: float) -> int:
    """Look after every single trial, as a rollout does; count runs in which one look was enough to be wrong."""
    wrong = 0
    for seed in range(RUNS):
        draw = random.Random(seed)
        successes = 0
        for trials in range(1, LOOKS + 1):
            successes += draw.random() < share
            lower, upper = bounds(successes, trials, ALPHA)
            if not lower <= share <= upper:
                wrong += 1
                break
    return wrong


def most_expected(runs: int, alpha: float) -> int:
    """Count that a right method exceeds less than once in ten thousand times, by the normal approximation."""
    return math.floor(runs * alpha + 3.72 * math.sqrt(runs * alpha * (1 - alpha)))


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_the_false_alarm_rate_holds_though_every_request_is_looked_at(share: float) -> None:
    assert runs_that_ever_exclude_the_truth(share_interval, share) <= most_expected(RUNS, ALPHA)


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_a_fixed_horizon_test_peeked_at_the_same_way_breaks_the_rate(share: float) -> None:
    """The negative control: the same simulation catches a method that is only right for one look."""
    assert runs_that_ever_exclude_the_truth(wilson, share) > most_expected(RUNS, ALPHA)


def test_a_sequence_is_as_wide_as_its_mixture_says() -> None:
    """At both edges the mixture's likelihood ratio is 1 / alpha, computed here by numerical integration."""
    successes, trials = 7, 120
    for edge in share_interval(successes, trials, 0.05):
        steps = 200_000
        # Beta(1/2, 1/2) by the substitution p = sin^2(t): its density becomes flat.
        total = 0.0
        for step in range(steps):
            p = math.sin((step + 0.5) / steps * math.pi / 2) ** 2
            total += math.exp(
                successes * (math.log(p) - math.log(edge)) + (trials - successes) * (math.log1p(-p) - math.log1p(-edge))
            )
        assert total / steps == pytest.approx(20, rel=1e-3)


def test_nothing_seen_says_nothing() -> None:
    assert share_interval(0, 0, 0.05) == (0.0, 1.0)
    assert quantile_interval(QuantileSketch(), 0.95, 0.05) == (0.0, math.inf)


@pytest.mark.parametrize(("successes", "trials"), [(0, 500), (500, 500)])
def test_one_sided_evidence_is_bounded_on_the_other_side(successes: int, trials: int) -> None:
    lower, upper = share_interval(successes, trials, 0.05)
    assert 0 <= lower <= successes / trials <= upper <= 1
    assert upper - lower < 0.02


def latencies(draw: random.Random, count: int, scale_ms: float = 10.0) -> list[float]:
    return [scale_ms * math.exp(draw.gauss(0, 0.4)) for _ in range(count)]


TRUE_P95_MS = 10 * math.exp(0.4 * 1.6448536)


def test_no_count_is_beyond_what_a_sequence_can_say() -> None:
    """One of a billion disagreed: the bound was no longer told from 1, and ended the thread that keeps rollouts."""
    for power in range(1, 19):
        for trials in (10**power, 2 * 10**power + 3):
            for successes in (0, 1, 2, trials // 2, trials - 2, trials - 1, trials):
                for alpha in (0.5, 1e-2, 1e-9, 1e-300):
                    found, share = share_interval(successes, trials, alpha), successes / trials
                    assert 0 <= found.lower <= share * (1 + 1e-12), (successes, trials, alpha)
                    assert share * (1 - 1e-12) <= found.upper <= 1, (successes, trials, alpha)


def test_the_latency_quantile_stays_within_its_sequence() -> None:
    wrong = 0
    for seed in range(60):
        draw, sketch = random.Random(seed), QuantileSketch()
        for _ in range(60):
            sketch = sketch.merge(QuantileSketch.of(latencies(draw, 20)))
            lower, upper = quantile_interval(sketch, 0.95, ALPHA)
            if not lower <= TRUE_P95_MS <= upper:
                wrong += 1
                break
    assert wrong <= most_expected(60, ALPHA)


def test_more_requests_narrow_the_latency_quantile() -> None:
    draw = random.Random(1)
    some, many = QuantileSketch.of(latencies(draw, 200)), QuantileSketch.of(latencies(draw, 20_000))
    wide, narrow = quantile_interval(some, 0.95, 0.01), quantile_interval(many, 0.95, 0.01)
    assert narrow.lower < TRUE_P95_MS < narrow.upper
    assert narrow.upper / narrow.lower < 1.12 < wide.upper / wide.lower


def served(draw: random.Random, count: int, *, error_rate: float = 0.01, scale_ms: float = 10.0) -> Requests:
    failed = sum(draw.random() < error_rate for _ in range(count))
    return Requests(count - failed, failed, QuantileSketch.of(latencies(draw, count - failed, scale_ms)))


def requests_until_tripped(gates: Gates, seed: int, most: int, **bad: float) -> int | None:
    """Feed both arms 250 requests at a time, looking after each; return when the gate trips."""
    draw, arms = random.Random(seed), Arms()
    while arms.new.total < most:
        arms = Arms(arms.new.plus(served(draw, 250, **bad)), arms.old.plus(served(draw, 250)))
        if any(one.holds is False for one in measure(gates, arms, profiles=1)):
            return arms.new.total
    return None


@pytest.mark.parametrize(
    ("gates", "bad", "within"),
    [
        (Gates(error_rate_max=0.02), {"error_rate": 0.05}, 2_000),
        (Gates(error_rate_increase_max=0.01), {"error_rate": 0.05}, 4_000),
        (Gates(latency_p95_ms_max=21.0), {"scale_ms": 13.0}, 2_000),
        (Gates(latency_p95_ratio_max=1.1), {"scale_ms": 15.0}, 3_000),
    ],
    ids=["5% fail, limit 2%", "4 points above", "p95 20% over budget", "p95 half as slow again"],
)  # fmt: skip
def test_a_regression_of_stated_size_is_caught_within_the_stated_requests(
    gates: Gates, bad: dict[str, float], within: int
) -> None:
    caught = [requests_until_tripped(gates, seed, within, **bad) for seed in range(20)]
    assert sum(one is not None for one in caught) >= 19
    # The same gates on a release that is no worse: looked at as often, not tripped.
    assert all(requests_until_tripped(gates, seed, within) is None for seed in range(20))


def test_a_good_release_is_told_good_in_the_end() -> None:
    gates = Gates(error_rate_max=0.03, error_rate_increase_max=0.02, latency_p95_ms_max=25, latency_p95_ratio_max=1.3)
    draw = random.Random(5)
    arms = Arms(served(draw, 12_000), served(draw, 12_000))
    assert [(one.gate, one.holds) for one in measure(gates, arms, profiles=3)] == [
        ("error_rate_max", True),
        ("error_rate_increase_max", True),
        ("latency_p95_ms_max", True),
        ("latency_p95_ratio_max", True),
    ]


def test_comparison_without_an_old_release_cannot_be_said() -> None:
    gates = Gates(error_rate_increase_max=0.01, latency_p95_ratio_max=1.1)
    arms = Arms(new=served(random.Random(2), 5_000))
    assert [one.holds for one in measure(gates, arms, profiles=1)] == [None, None]


EXPECTED = (40, 25, 15, 10, 5, 3, 1, 1)
# A tenth of all values has moved from the first bin to the last: the total variation is 0.1.
MOVED = (30, 25, 15, 10, 5, 3, 1, 11)
# What a test of chi-squared rejects at 0.1 with 7 degrees of freedom.
CHI_SQUARED = 12.017
DRIFT_LOOKS, EVERY = 60, 10


def drawn(draw: random.Random, shares: Sequence[int], count: int) -> list[int]:
    values = Counter(draw.choices(range(len(shares)), shares, k=count))
    return [values[index] for index in range(len(shares))]


def runs_whose_drift_is_ever_wrong(wrong: Callable[[list[int], int], bool], shares: Sequence[int]) -> int:
    found = 0
    for seed in range(RUNS):
        draw, counts = random.Random(seed), [0] * len(shares)
        for look in range(1, DRIFT_LOOKS + 1):
            counts = [one + more for one, more in zip(counts, drawn(draw, shares, EVERY), strict=True)]
            if wrong(counts, look * EVERY):
                found += 1
                break
    return found


def outside_the_sequence(counts: list[int], requests: int) -> bool:
    drift = farthest({"input x": EXPECTED}, {"input x": counts}, requests, ALPHA)
    assert drift is not None
    return not drift.interval.lower <= 0.1 <= drift.interval.upper


def rejected_by_chi_squared(counts: list[int], requests: int) -> bool:
    expected = [share / sum(EXPECTED) * requests for share in EXPECTED]
    return sum((one - other) ** 2 / other for one, other in zip(counts, expected, strict=True)) > CHI_SQUARED


def test_drift_stays_within_its_sequence_though_it_is_looked_at_again_and_again() -> None:
    assert runs_whose_drift_is_ever_wrong(outside_the_sequence, MOVED) <= most_expected(RUNS, ALPHA)


def test_a_test_of_chi_squared_peeked_at_the_same_way_breaks_the_rate() -> None:
    """The negative control."""
    assert runs_whose_drift_is_ever_wrong(rejected_by_chi_squared, EXPECTED) > most_expected(RUNS, ALPHA)


def drift_verdict(shares: Sequence[int], requests: int, seed: int, *, elements: int = 1) -> bool | None:
    counts = [elements * count for count in drawn(random.Random(seed), shares, requests)]
    new = Requests(requests, 0, histograms={"input x": counts, "classes": [requests, 0]})
    arms = Arms(new=new, reference={"input x": EXPECTED, "classes": [90, 10]})
    (measured,) = measure(Gates(drift_max=0.3), arms, profiles=1)
    assert measured.gate == "drift_max"
    return measured.holds


def test_drift_of_stated_size_is_caught_within_the_stated_requests() -> None:
    reverse = EXPECTED[::-1]  # a total variation of 0.7
    assert all(drift_verdict(reverse, 200, seed) is False for seed in range(20))
    assert all(
        drift_verdict(EXPECTED, requests, seed) is not False for seed in range(20) for requests in (10, 200, 5000)
    )
    assert all(drift_verdict(EXPECTED, 1000, seed) is True for seed in range(20))


def test_many_elements_of_a_request_say_no_more_than_the_request() -> None:
    assert drift_verdict(EXPECTED[::-1], 30, 1) is drift_verdict(EXPECTED[::-1], 30, 1, elements=1000) is None


@pytest.mark.parametrize(
    "seen",
    [{}, {"input x": (1, 2)}, {"input x": (0,) * 8}, {"other": EXPECTED}],
    ids=["nothing", "other bins", "no counts", "another tensor"],
)
def test_what_cannot_be_compared_neither_passes_nor_fails(seen: dict[str, Sequence[int]]) -> None:
    arms = Arms(new=Requests(1000, 0, histograms=seen), reference={"input x": EXPECTED})
    (measured,) = measure(Gates(drift_max=0.3), arms, profiles=1)
    assert (measured.value, measured.holds) == (None, None)


def test_the_hottest_device_counts() -> None:
    gates = Gates(temperature_c_max=80)
    for hottest, holds in ((None, None), (79.5, True), (80.5, False)):
        (measured,) = measure(gates, Arms(new=Requests(10, 0, temperature_max_c=hottest)), profiles=1)
        assert (measured.value, measured.holds) == (hottest, holds)
