"""How far what a model sees and answers is from what its bundle was compiled with: PSI and Jensen-Shannon, with limits.

Both are of histograms over the bundle's own bins. What they are worth depends on how many requests they come from:
with few, chance alone moves them far, the population stability index most. So limits are found at compile time, by
resampling the evaluation data, for several numbers of requests (`DriftCalibration`), and a distance without its number
of requests says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from edgeops.contracts.bundle import DriftCalibration, DriftLevel, DriftReference, Histogram
from edgeops.contracts.telemetry import ModelWindow

# Half a request in each bin, on both sides: a bin that only one side has counts, and is no infinity.
_PRIOR = 0.5


class Shift(NamedTuple):
    """One tensor beside its reference.

    Args:
        name: As `histograms_of` has it.
        psi: Population stability index, 0 or more.
        js: Jensen-Shannon divergence to base 2, in [0, 1].
        psi_limit: From here on it is no chance; None: there are too few requests to tell, or nothing was calibrated.
        js_limit: The same.
    """

    name: str
    psi: float
    js: float
    psi_limit: float | None = None
    js_limit: float | None = None

    @property
    def alarms(self) -> bool:
        """Whether one of them is beyond its limit."""
        return (self.psi_limit is not None and self.psi > self.psi_limit) or (
            self.js_limit is not None and self.js > self.js_limit
        )


def histograms_of(window: ModelWindow | DriftReference) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the histograms of a window, or of a bundle's reference, by the same names."""
    for kind, tensors in (("input", window.inputs), ("output", window.outputs)):
        for name, counts in tensors.items():
            yield f"{kind} {name}", counts.counts if isinstance(counts, Histogram) else counts
    confidence = window.confidence
    yield "confidence", confidence.counts if isinstance(confidence, Histogram) else confidence or ()
    yield "classes", window.class_mix


def psi(reference: Sequence[int], seen: Sequence[int], weight: int) -> float:
    """Return the population stability index of two histograms over the same bins, neither all 0.

    Args:
        reference: Counts of the reference.
        seen: Counts in the field.
        weight: Independent values that the side with fewer of them stands for: samples or requests. As if so many had
            been counted on both sides, half a one more is counted in each bin; so histograms that are alike have 0.

    Source: Siddiqi, Credit Risk Scorecards, 2006; with additive smoothing.
    """
    expected, found = _smoothed(reference, weight), _smoothed(seen, weight)
    return sum((q - p) * math.log(q / p) for p, q in zip(expected, found, strict=True))


def jensen_shannon(reference: Sequence[int], seen: Sequence[int]) -> float:
    """Return the Jensen-Shannon divergence, to base 2, of two histograms over the same bins, neither all 0.

    Source: Lin, Divergence measures based on the Shannon entropy, IEEE Transactions on Information Theory 37, 1991.
    """
    first, second = sum(reference), sum(seen)
    total = 0.0
    for one, other in zip(reference, seen, strict=True):
        p, q = one / first, other / second
        middle = (p + q) / 2
        total += (p * math.log2(p / middle) if p else 0.0) / 2 + (q * math.log2(q / middle) if q else 0.0) / 2
    return min(1.0, max(0.0, total))


def shifts(
    reference: Mapping[str, Sequence[int]],
    samples: int,
    seen: Mapping[str, Sequence[int]],
    requests: int,
    calibration: DriftCalibration | None,
) -> list[Shift]:
    """Return how every tensor that both sides have stands to its reference, by name.

    Args:
        reference: Name → counts per bin, as the bundle was compiled with.
        samples: How many samples they come from.
        seen: Name → counts per bin in the field.
        requests: How many requests were counted there.
        calibration: The bundle's limits.
    """
    level = level_for(calibration, requests)
    found = []
    for name in sorted(reference):
        expected, counts = reference[name], seen.get(name, ())
        if len(expected) == len(counts) and any(expected) and any(counts) and requests and samples:
            found.append(
                Shift(
                    name,
                    psi(expected, counts, min(samples, requests)),
                    jensen_shannon(expected, counts),
                    None if level is None else level.psi.get(name),
                    None if level is None else level.js.get(name),
                )
            )
    return found


def level_for(calibration: DriftCalibration | None, requests: int) -> DriftLevel | None:
    """Return the limits for so many requests; None: too few, or there are none.

    Between two levels they are taken as linear in 1 / requests, which is how the distances of chance shrink.
    """
    levels = () if calibration is None else sorted(calibration.levels, key=lambda level: level.requests)
    lower = [level for level in levels if level.requests <= requests]
    higher = [level for level in levels if level.requests > requests]
    if not lower or not higher or lower[-1].requests == requests:
        return lower[-1] if lower else None
    one, other = lower[-1], higher[0]
    share = (1 / one.requests - 1 / requests) / (1 / one.requests - 1 / other.requests)

    def between(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
        return {name: limit + share * (second.get(name, limit) - limit) for name, limit in first.items()}

    return DriftLevel(requests=requests, psi=between(one.psi, other.psi), js=between(one.js, other.js))


def _smoothed(counts: Sequence[int], weight: int) -> list[float]:
    """Return shares as if `weight` independent values had been counted, and half a one more in each bin."""
    total, whole = sum(counts), weight + _PRIOR * len(counts)
    return [(weight * count / total + _PRIOR) / whole for count in counts]
