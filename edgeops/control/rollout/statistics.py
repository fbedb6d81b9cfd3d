"""Bounds that may be looked at any time: what telemetry so far says of a share or of a latency quantile. Pure.

A rollout is judged again after every report. An interval of a fixed-size test, looked at that often, is wrong far more
often than it says. These are *confidence sequences*: with probability at least 1 - alpha the true value lies within all
intervals at once, whenever and however often one looks, and whatever one decides on seeing one.

They come from the beta-binomial mixture of likelihood ratios: for the true share p,

    M_n(p) = B(a + s, b + n - s) / (B(a, b) p^s (1 - p)^(n - s))        s successes of n, Beta(a, b) mixture

is a martingale that starts at 1, so by Ville's inequality P(some n: M_n(p) >= 1 / alpha) <= alpha. The sequence holds
every p with M_n(p) < 1 / alpha. Requests are taken as independent of each other given the share.

Sources: H. Robbins, "Statistical methods related to the law of the iterated logarithm", Annals of Mathematical
Statistics 41 (1970), for the mixture; S. Howard, A. Ramdas, J. McAuliffe, J. Sekhon, "Time-uniform, nonparametric,
nonasymptotic confidence sequences", Annals of Statistics 49 (2021), for sequences of this kind; S. Howard, A. Ramdas,
"Sequential estimation of quantiles with applications to A/B testing and best-arm identification", Bernoulli 28 (2022),
for quantiles from the share of values below them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from edgeops.contracts.sketches import RELATIVE_ACCURACY, QuantileSketch

# Jeffreys' prior: no share is favoured, and small ones are not given up.
_A = _B = 0.5
_STEPS = 60


class Interval(NamedTuple):
    """A lower and an upper bound, in the unit of what is bounded; `upper` may be infinite."""

    lower: float
    upper: float


def share_interval(successes: int, trials: int, alpha: float) -> Interval:
    """Return the confidence sequence of a share at this look.

    Args:
        successes: How often it happened, at most `trials`.
        trials: How often it could have; 0 gives (0, 1).
        alpha: Probability that the true share ever leaves the sequence, in (0, 1).
    """
    centre = successes / trials if trials else 0.5
    lower = 0.0 if successes == 0 else _edge(successes, trials, alpha, outside=0.0, inside=centre)
    upper = 1.0 if successes == trials else _edge(successes, trials, alpha, outside=1.0, inside=centre)
    return Interval(lower, upper)


def share_radius(trials: int, log_alpha: float) -> float:
    """Return how far the true share may be from the observed one at this look, whichever that is; at most 1.

    Wider than `share_interval`, and known without the share: the mixture is below the largest likelihood by log 2 +
    log(n) / 2 at most (R. Krichevsky, V. Trofimov, "The performance of universal encoding", IEEE Transactions on
    Information Theory 27 (1981)), and the divergence of two shares is at least twice their squared difference
    (Pinsker's inequality).

    Args:
        trials: How often it could have happened.
        log_alpha: Logarithm of the probability that the true share is ever farther away.
    """
    if trials <= 0:
        return 1.0
    return min(1.0, math.sqrt((math.log(2) + math.log(trials) / 2 - log_alpha) / (2 * trials)))


def quantile_interval(sketch: QuantileSketch, quantile: float, alpha: float) -> Interval:
    """Return the confidence sequence of a quantile at this look, in the sketch's unit.

    The values at or below the true quantile are a share that is known; so the quantile lies between the values at the
    smallest and the largest share that such a sequence allows. The sketch's own error of 1% is added to both ends.

    Args:
        sketch: All values so far.
        quantile: Which, in (0, 1).
        alpha: Probability that the true quantile ever leaves the sequence, in (0, 1).
    """
    count = sketch.count
    first, last = _counts_allowed(quantile, count, alpha)
    lower = 0.0 if first <= 0 else _value(sketch, first - 1) * (1 - RELATIVE_ACCURACY)
    upper = math.inf if last >= count else _value(sketch, last) * (1 + RELATIVE_ACCURACY)
    return Interval(lower, upper)


def _log_mixture(successes: int, trials: int) -> float:
    return _log_beta(_A + successes, _B + (trials - successes)) - _log_beta(_A, _B)


def _log_likelihood(successes: int, trials: int, share: float) -> float:
    failures = trials - successes
    if (successes and share <= 0.0) or (failures and share >= 1.0):
        return -math.inf  # also of a share that is no longer told from 0 or 1
    happened = successes * math.log(share) if successes else 0.0
    missed = failures * math.log1p(-share) if failures else 0.0
    return happened + missed


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _edge(successes: int, trials: int, alpha: float, *, outside: float, inside: float) -> float:
    """Return the outermost share that is still within, between one that is outside and the observed one."""
    limit = _log_mixture(successes, trials) + math.log(alpha)
    for _ in range(_STEPS):
        middle = (outside + inside) / 2
        if _log_likelihood(successes, trials, middle) > limit:
            inside = middle
        else:
            outside = middle
    return outside


def _counts_allowed(share: float, trials: int, alpha: float) -> tuple[int, int]:
    """Return the smallest and the largest count that a known share allows at this look."""

    def allowed(count: int) -> bool:
        return _log_mixture(count, trials) - _log_likelihood(count, trials, share) < -math.log(alpha)

    centre = min(trials, round(share * trials))
    low, high = -1, centre
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if allowed(middle) else (middle, high)
    first = high
    low, high = centre, trials + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return first, low


def _value(sketch: QuantileSketch, rank: int) -> float:
    """Return the value of a rank from 0, within the sketch's accuracy."""
    # Half a rank more: the quotient's rounding must not give the value before.
    found = sketch.quantile(min(1.0, (rank + 0.5) / (sketch.count - 1)) if sketch.count > 1 else 0.0)
    assert found is not None
    return found
