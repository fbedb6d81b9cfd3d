"""How far outputs are from their reference: the figures that gates and golden vectors rest on."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.evidence import OutputError

SQNR_CAP_DB = 200.0
# JSON has no infinity: the difference from a value that is not finite.
NOT_FINITE = sys.float_info.max
_NOTHING = 1e-6
_CLASS_KINDS = ("probabilities", "logits", "classes")


def cosine(reference: NDArray[Any], got: NDArray[Any]) -> float:
    """Return the mean cosine similarity over samples, arrays [n, ...].

    A sample whose reference is nothing but float32's rounding of the largest value has no direction: it counts as alike
    if what was got stays below one int8 step of that value, and as unlike (0) otherwise.
    """
    a = reference.reshape(len(reference), -1).astype(np.float64)
    b = got.reshape(len(got), -1).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    largest = np.abs(a).max(initial=0)
    nothing = np.abs(a).max(axis=1, initial=0) <= largest * _NOTHING
    alike = nothing & (np.abs(b).max(axis=1, initial=0) <= largest / 255)
    similar = np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=(norms > 0) & ~nothing)
    return float(np.where(alike, 1.0, similar).mean())


def sqnr_db(reference: NDArray[Any], got: NDArray[Any]) -> float:
    """Return signal to quantization-noise ratio in dB over all elements, within ±`SQNR_CAP_DB`."""
    signal = float(np.square(reference.astype(np.float64)).sum())
    noise = float(np.square(reference.astype(np.float64) - got.astype(np.float64)).sum())
    if noise == 0:
        return SQNR_CAP_DB
    if signal == 0:
        return -SQNR_CAP_DB
    return max(-SQNR_CAP_DB, min(SQNR_CAP_DB, 10 * math.log10(signal / noise)))


def classes(values: NDArray[Any], kind: str) -> NDArray[np.int64]:
    """Return the class along the last axis, arrays [n, ..., classes]; one value per class decision.

    Values of kind `classes` are class numbers themselves. A single column is one class against its absence: above 0.5
    for `probabilities`, above 0 for `logits`.
    """
    if kind == "classes":
        return values.astype(np.int64)
    if values.ndim < 2 or values.shape[-1] == 1:
        return (values > (0.5 if kind == "probabilities" else 0.0)).astype(np.int64)
    found: NDArray[np.int64] = values.argmax(axis=-1)
    return found


def output_error(name: str, kind: str, reference: NDArray[Any], got: NDArray[Any]) -> OutputError:
    """Compare one output with its reference.

    Args:
        name: The output.
        kind: Its kind, as in the hand-over; only `probabilities`, `logits` and `classes` have an agreement of classes.
        reference: What it should be, [n, ...].
        got: What it is, same shape.

    Returns:
        Mean cosine, SQNR in dB, largest absolute difference, share of equal class decisions, and n. Values that are
        not finite give a cosine and agreement of 0, `-SQNR_CAP_DB` and a difference of `NOT_FINITE`.
    """
    if reference.shape != got.shape or not np.isfinite(got.astype(np.float64)).all():
        agreement = 0.0 if kind in _CLASS_KINDS else None
        return OutputError(
            output=name,
            cosine=0.0,
            sqnr_db=-SQNR_CAP_DB,
            max_abs=NOT_FINITE,
            agreement=agreement,
            samples=len(reference),
        )
    agreement = float((classes(reference, kind) == classes(got, kind)).mean()) if kind in _CLASS_KINDS else None
    if kind == "classes":
        # Numbers of classes have no size: only their agreement says something.
        return OutputError(
            output=name, cosine=1.0, sqnr_db=SQNR_CAP_DB, max_abs=0.0, agreement=agreement, samples=len(reference)
        )
    difference = np.abs(reference.astype(np.float64) - got.astype(np.float64)).max(initial=0.0)
    return OutputError(
        output=name,
        cosine=cosine(reference, got),
        sqnr_db=sqnr_db(reference, got),
        max_abs=float(difference),
        agreement=agreement,
        samples=len(reference),
    )
