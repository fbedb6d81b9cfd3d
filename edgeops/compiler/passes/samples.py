"""Sample data as a product: one .npy per tensor, so that workers map it instead of reading it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_INDEX_DIGITS = 3


def write_samples(folder: Path, group: str, samples: Mapping[str, NDArray[Any]]) -> None:
    """Write tensors [n, *shape] as `group/000.npy` and so on; `group/names.txt` has their names in order."""
    place = folder / group
    place.mkdir(parents=True, exist_ok=True)
    names = sorted(samples)
    for index, name in enumerate(names):
        np.save(place / f"{index:0{_INDEX_DIGITS}}.npy", samples[name], allow_pickle=False)
    (place / "names.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def read_samples(folder: Path, group: str) -> dict[str, NDArray[Any]]:
    """Return the tensors that `write_samples` wrote, mapped read-only."""
    place = folder / group
    names = (place / "names.txt").read_text(encoding="utf-8").splitlines()
    return {
        name: np.load(place / f"{index:0{_INDEX_DIGITS}}.npy", mmap_mode="r", allow_pickle=False)
        for index, name in enumerate(names)
    }


def has_samples(folder: Path, group: str) -> bool:
    """Say whether a group was written."""
    return (folder / group / "names.txt").exists()


def spread(count: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of `count` indices, evenly spread, in order."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))
