"""One sample as a small picture or line, for people who read the report. Pure."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.examination import MAX_PICTURE_SIDE, MAX_TRACE_POINTS

_LEAST_SIDE = 4
_MAX_TRACES = 4
_CHANNELS = (1, 3, 4)


def picture(sample: NDArray[Any]) -> bytes:
    """Return a sample as a PNG file of at most `MAX_PICTURE_SIDE` pixels a side; empty: it is not a picture.

    Args:
        sample: One input as the device sends it: [1, H, W, C] or [1, C, H, W] of 1, 3 or 4 channels. uint8 is taken as
            it is; other values are spread from their smallest to their largest.
    """
    found = _as_image(sample)
    if found is None:
        return b""
    values = found.astype(np.float64)
    if sample.dtype != np.uint8:
        low, high = float(values.min()), float(values.max())
        values = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    small = _shrink(values)
    return png(np.clip(np.rint(small), 0, 255).astype(np.uint8))


def trace(sample: NDArray[Any]) -> tuple[tuple[float, ...], ...]:
    """Return a sample as lines of at most `MAX_TRACE_POINTS` points; empty: it is no series of one to four channels.

    Args:
        sample: One input: [1, T], [1, T, C] or [1, C, T].
    """
    values = np.squeeze(sample, axis=0) if sample.ndim > 1 and sample.shape[0] == 1 else sample
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        return ()
    if values.shape[1] > _MAX_TRACES:
        values = values.T
    if values.shape[1] > _MAX_TRACES or len(values) < 2:
        return ()
    parts = np.array_split(values.astype(np.float64), min(len(values), MAX_TRACE_POINTS))
    means = np.stack([part.mean(axis=0) for part in parts], axis=1)
    return tuple(tuple(float(f"{value:.5g}") for value in line) for line in means)


def png(image: NDArray[np.uint8]) -> bytes:
    """Return a PNG file of an image [H, W, C] of 1 (grey), 3 (RGB) or 4 (RGBA) channels.

    Source: PNG specification, third edition (W3C, 2025): chunks, filter type 0.
    """
    height, width, channels = image.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = image.reshape(height, -1)
    kind = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _as_image(sample: NDArray[Any]) -> NDArray[Any] | None:
    if sample.ndim != 4 or sample.shape[0] != 1 or sample.dtype.kind not in "fiu":
        return None
    first, second, third = sample.shape[1:]
    if third in _CHANNELS and min(first, second) >= _LEAST_SIDE:
        image: NDArray[Any] = sample[0]
    elif first in _CHANNELS and min(second, third) >= _LEAST_SIDE:
        image = sample[0].transpose(1, 2, 0)
    else:
        return None
    return image


def _shrink(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average an image down until no side is longer than allowed."""
    # Both sides by the same factor: the picture keeps its form.
    factor = min(1.0, MAX_PICTURE_SIDE / max(image.shape[:2]))
    for axis, side in enumerate(image.shape[:2]):
        parts = np.array_split(image, max(1, round(side * factor)), axis=axis)
        image = np.stack([part.mean(axis=axis) for part in parts], axis=axis)
    return image
