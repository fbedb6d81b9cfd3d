"""The peak memory of a forked process as if it had begun by itself: pages of files do not come along with a fork.

Code that ran in the process it was forked from may never run again here. A process of its own would hold it all the
same, so what was resident there and is not here counts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeops.runtimes import measure

_MAPS, _PAGES = Path("/proc/self/maps"), Path("/proc/self/pagemap")
_ENTRY_BYTES, _PRESENT = 8, np.uint64(63)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Address range of a mapped file → which of its pages are resident.
Resident = dict[tuple[int, int], NDArray[np.bool_]]


class _Before(NamedTuple):
    """What there was where this process was forked: pages of files, and the peak in MiB."""

    resident: Resident
    peak_mib: float


_before = _Before({}, 0.0)


def note() -> None:
    """Take note of what forks of this process will lack.

    Raises:
        OSError: The kernel does not tell.
    """
    global _before
    peak_mib = peak_memory_mib()
    _before = _Before(_with(_before.resident, _resident()), peak_mib)


def peak_memory_mib() -> float:
    """Return the peak resident memory of this process, and of those that it was forked from, in MiB.

    Raises:
        OSError: It was forked, and the kernel does not tell.
    """
    peak_mib = measure.peak_memory_mib()
    if _before.resident:
        peak_mib += lacking(_before.resident, _resident()) * _PAGE_BYTES / 2**20
    return max(peak_mib, _before.peak_mib)


def lacking(before: Resident, now: Resident) -> int:
    """Return how many pages were resident before and are not now; pure."""
    total = 0
    for span, pages in before.items():
        here = now.get(span)
        total += int(pages.sum() if here is None else (pages & ~here).sum())
    return total


def _with(first: Resident, second: Resident) -> Resident:
    return first | {span: pages | first.get(span, np.zeros_like(pages)) for span, pages in second.items()}


def _resident() -> Resident:
    found: Resident = {}
    with _PAGES.open("rb", buffering=0) as table:
        for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
            span, _, _, _, inode, *_ = line.split(maxsplit=5)
            if inode == "0":
                continue
            first, last = (int(end, 16) // _PAGE_BYTES for end in span.split("-"))
            table.seek(first * _ENTRY_BYTES)
            entries = np.frombuffer(table.read((last - first) * _ENTRY_BYTES), dtype=np.uint64)
            found[first, last] = (entries >> _PRESENT).astype(np.bool_)
    return found
