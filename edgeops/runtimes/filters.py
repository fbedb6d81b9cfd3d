"""The constants behind steps: weights of interpolation, window functions, transforms and mel bands."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.handover import LogMel

Weights = NDArray[np.float32]


@functools.lru_cache(maxsize=64)
def resize_weights(old: int, new: int, interpolation: str, *, antialias: bool) -> Weights:
    """Return what each new place takes of each old one, float32 [new, old]; rows sum to 1.

    Half-pixel centres; what a filter would take from beyond the border is left out.

    Source: Pillow's documentation of its filters (bilinear, bicubic with a = -0.5), which widens them by the scale.
    """
    centres = (np.arange(new) + 0.5) * (old / new)
    if interpolation == "nearest":
        # ONNX's default: halves go down.
        index = np.clip(np.ceil(centres - 1), 0, old - 1).astype(np.int64)
        weights = np.zeros((new, old))
        weights[np.arange(new), index] = 1
        return weights.astype(np.float32)
    wide = max(1.0, old / new) if antialias else 1.0
    support = (1.0 if interpolation == "linear" else 2.0) * wide
    places = np.arange(old)
    first = np.floor(np.maximum(centres - support + 0.5, 0))[:, None]
    last = np.floor(np.minimum(centres + support + 0.5, old))[:, None]
    distance = np.abs((places + 0.5 - centres[:, None]) / wide)
    values = np.maximum(1 - distance, 0) if interpolation == "linear" else _cubic(distance)
    values = np.where((places >= first) & (places < last), values, 0)
    return np.asarray(values / values.sum(axis=1, keepdims=True), np.float32)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    a = -0.5
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def window(function: str, length: int) -> Weights:
    """Return a periodic window, float32 [length]."""
    share = 0.5 if function == "hann" else 0.54
    turns = 2 * np.pi * np.arange(length) / length
    return np.asarray(share - (1 - share) * np.cos(turns), np.float32)


def log_mel_limits(step: LogMel, length: int) -> tuple[int, float]:
    """Return the points of the transform and the upper edge in Hz, with their defaults filled in."""
    return step.fft or length, step.rate_hz / 2 if step.high_hz is None else step.high_hz


@functools.lru_cache(maxsize=16)
def log_mel(step: LogMel, length: int) -> tuple[Weights, Weights, Weights]:
    """Return cosines and sines of the transform, [length, fft / 2 + 1], and the bands' filters, [fft / 2 + 1, mels].

    Zeros that fill a piece up to the transform's points add nothing, so that the sums run over the piece alone.
    """
    fft, high_hz = log_mel_limits(step, length)
    bins = np.arange(fft // 2 + 1)
    # The remainder first: a float64 holds the angle exactly however large the product.
    angles = 2 * np.pi * (np.outer(np.arange(length), bins) % fft) / fft
    edges = _hertz(np.linspace(_mel(step.low_hz), _mel(high_hz), step.mels + 2))
    hertz = bins * step.rate_hz / fft
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (hertz[:, None] - lower) / (centre - lower)
    falling = (upper - hertz[:, None]) / (upper - centre)
    bands = np.maximum(0, np.minimum(rising, falling))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), bands.astype(np.float32)


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def _hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(700 * (10 ** (mel / 2595) - 1))
