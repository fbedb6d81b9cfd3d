"""Whether two bundles fit into a device's memory at once: pure, and an estimate, since nothing is loaded yet."""

from __future__ import annotations

# An interpreter with a runtime before it opens a model; what a model takes, in sizes of its file; what stays free.
WORKER_MIB, PER_ARTIFACT, SPARE_MIB = 96.0, 3.0, 64.0


def fits_beside(artifact_mib: float, available_mib: float | None) -> bool:
    """Say whether a bundle can be loaded beside the one that serves.

    Args:
        artifact_mib: Size of its files.
        available_mib: Memory that could be had now; None: not known, then it is tried.
    """
    return available_mib is None or WORKER_MIB + PER_ARTIFACT * artifact_mib + SPARE_MIB <= available_mib
