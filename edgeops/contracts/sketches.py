"""Mergeable summaries of measurements: a quantile sketch with bounded relative error."""

from __future__ import annotations

import math
from collections.abc import Iterable

from edgeops.contracts.wire import Wire

RELATIVE_ACCURACY = 0.01
_GAMMA = (1 + RELATIVE_ACCURACY) / (1 - RELATIVE_ACCURACY)
# Width of a bin: bin number = ceil(ln(value) / LOG_GAMMA).
LOG_GAMMA = math.log(_GAMMA)
# Bins of all that a 32-bit float can be, and more; sums of so large values stay finite however many there are.
MAX_BIN = 6_000
MAX_VALUE = 1e100


def bin_of(value: float) -> int:
    """Return the bin of a positive value: every value of a bin is within 1% of its middle.

    Source: Masson, Rim, Lee: DDSketch, VLDB 2019, section 2.
    """
    return math.ceil(math.log(value) / LOG_GAMMA)


def _is_number(key: str) -> bool:
    """Whether a bin is named as `of` names it: two names of one bin would not be found again."""
    return key.isascii() and key.removeprefix("-").isdecimal() and str(int(key)) == key


class QuantileSketch(Wire, frozen=True, kw_only=True):
    """A distribution of non-negative values as counts per logarithmic bin. Merging is exact.

    Args:
        bins: Bin number (`bin_of`, as text: JSON keys are text) → count of positive values.
        zeros: Count of values that are 0.
        total: Sum of all values.
        maximum: Largest value.
    """

    bins: dict[str, int] = {}
    zeros: int = 0
    total: float = 0.0
    maximum: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> QuantileSketch:
        """Summarize values.

        Raises:
            ValueError: A value is negative or not finite.
        """
        bins: dict[str, int] = {}
        zeros, total, maximum = 0, 0.0, 0.0
        for value in values:
            if not 0 <= value < math.inf:
                raise ValueError(f"{value} is not a finite, non-negative value")
            if value == 0:
                zeros += 1
            else:
                index = str(bin_of(value))
                bins[index] = bins.get(index, 0) + 1
            total += value
            maximum = max(maximum, value)
        return cls(bins=bins, zeros=zeros, total=total, maximum=maximum)

    @property
    def count(self) -> int:
        """Number of values."""
        return self.zeros + sum(self.bins.values())

    def is_sound(self, most: int) -> bool:
        """Say whether it can be what it claims, so that it can be merged and read: bins by their numbers, counts from 0
        to `most`, and values that are no more than real ones.
        """
        return (
            all(0 <= count <= most for count in (self.zeros, *self.bins.values()))
            and all(len(key) < 8 and _is_number(key) and abs(int(key)) <= MAX_BIN for key in self.bins)
            and 0 <= self.total <= MAX_VALUE
            and 0 <= self.maximum <= MAX_VALUE
        )

    def merge(self, other: QuantileSketch) -> QuantileSketch:
        """Return the sketch of both sets of values."""
        bins = dict(self.bins)
        for index, count in other.bins.items():
            bins[index] = bins.get(index, 0) + count
        return QuantileSketch(
            bins=bins,
            zeros=self.zeros + other.zeros,
            total=self.total + other.total,
            maximum=max(self.maximum, other.maximum),
        )

    def quantile(self, q: float) -> float | None:
        """Return the value at quantile `q` in [0, 1] within 1%, or None if there are no values."""
        count = self.count
        if count == 0:
            return None
        rank = q * (count - 1)
        seen = self.zeros
        if rank < seen:
            return 0.0
        for index in sorted(map(int, self.bins)):
            seen += self.bins[str(index)]
            if rank < seen:
                return 2 * math.exp(index * LOG_GAMMA) / (_GAMMA + 1)
        return self.maximum
