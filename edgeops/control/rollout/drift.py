"""How far what values look like in the field is from what the bundle was compiled with. Pure; may be asked at any time.

The distance of two distributions over the same bins is their total variation: the largest difference of the shares that
any set of bins has. With K bins there are 2^K sets; each one's share has a confidence sequence (`statistics`) at the
2^K-th part of alpha, so with probability at least 1 - alpha all of them hold at once and for good, and the distance is
known within the widest of them. The reference is taken as it was recorded.

A request counts once, however many elements of its tensors were counted: they are not independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgeops.control.rollout.statistics import Interval, share_radius


class Drift(NamedTuple):
    """The tensor that is farthest from its reference: its name, the distance in [0, 1], and its bounds."""

    name: str
    distance: float
    interval: Interval


def farthest(
    reference: Mapping[str, Sequence[int]], seen: Mapping[str, Sequence[int]], requests: int, alpha: float
) -> Drift | None:
    """Return the largest drift; None: nothing can be compared.

    Args:
        reference: Name → counts per bin, as the bundle was compiled with.
        seen: Name → counts per bin in the field.
        requests: How many requests they come from.
        alpha: Probability that any true distance ever leaves its interval, in (0, 1).
    """
    names = [name for name in sorted(reference) if sum(reference[name])]
    found: list[Drift] = []
    for name in names:
        expected, counts = reference[name], seen.get(name, ())
        observations = min(requests, sum(counts))
        if len(counts) != len(expected) or not observations:
            return None
        distance = total_variation(expected, counts)
        radius = share_radius(observations, math.log(alpha / len(names)) - len(expected) * math.log(2))
        found.append(Drift(name, distance, Interval(max(0.0, distance - radius), min(1.0, distance + radius))))
    if not found:
        return None
    worst = max(found, key=lambda one: one.distance)
    bounds = Interval(max(one.interval.lower for one in found), max(one.interval.upper for one in found))
    return worst._replace(interval=bounds)


def total_variation(first: Sequence[int], second: Sequence[int]) -> float:
    """Return the total variation distance of two histograms over the same bins, each with a count above zero."""
    whole, other = sum(first), sum(second)
    return sum(abs(one / whole - two / other) for one, two in zip(first, second, strict=True)) / 2
