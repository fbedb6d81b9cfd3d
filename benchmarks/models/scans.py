"""Pictures for OCR detection and recognition: pieces of pages, and text lines, from real scans."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.models.folder import SEED
from edgeops.cli.demo.packages import fetch
from edgeops.cli.demo.text_lines import LINN, TYPEWRITER, source_lines

_INK_BELOW, _INK_LEAST = 128, 0.02


def pages() -> list[NDArray[np.uint8]]:
    """Return whole scans, gray, dark on light."""
    import skimage.data
    from PIL import Image

    scans = [np.asarray(Image.open(fetch(member)).convert("L")) for member in (TYPEWRITER, LINN)]
    return [*scans, skimage.data.page()]


def tiles(side: int, count: int) -> NDArray[np.uint8]:
    """Cut square pieces with something written on them, at several scales, out of the scans.

    Args:
        side: Edge of a piece in pixels.
        count: How many.

    Returns:
        uint8 [count, side, side, 3], RGB; neighbours in order are of different scans.
    """
    rng = np.random.default_rng(SEED)
    found = []
    for page in _in_turns(pages(), count):
        edge = min(min(page.shape), int(side * rng.uniform(0.6, 2.4)))
        top, left = (int(rng.integers(0, size - edge + 1)) for size in page.shape)
        piece = page[top : top + edge, left : left + edge]
        while (piece < _INK_BELOW).mean() < _INK_LEAST:
            top, left = (int(rng.integers(0, size - edge + 1)) for size in page.shape)
            piece = page[top : top + edge, left : left + edge]
        found.append(np.repeat(_resized(piece, side, side)[:, :, None], 3, axis=2))
    return np.stack(found)


def lines(height: int, width: int, count: int) -> NDArray[np.uint8]:
    """Cut text lines to one height, and pad or cut them to one width.

    Returns:
        uint8 [count, height, width, 3], RGB.
    """
    rng = np.random.default_rng(SEED)
    found = []
    for line in _in_turns(source_lines(), count):
        wide = max(1, round(line.shape[1] * height / line.shape[0]))
        resized = _resized(line, height, wide)
        start = int(rng.integers(0, max(1, wide - width + 1)))
        piece = resized[:, start : start + width]
        padded = np.full((height, width), 255, np.uint8)
        padded[:, : piece.shape[1]] = piece
        found.append(np.repeat(padded[:, :, None], 3, axis=2))
    return np.stack(found)


def _in_turns(pictures: list[Any], count: int) -> Iterator[Any]:
    for number in range(count):
        yield pictures[number % len(pictures)]


def _resized(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
