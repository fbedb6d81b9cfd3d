"""How much memory a worker may have: a bundle that eats more fails in its own process, and the device goes on.

The kernel limits the data segment (RLIMIT_DATA): all private memory that can be written to. An allocation above it
fails, which a runtime reports as a failed inference; address space that is only reserved does not count. Where the
worker has a control group of its own (`agent.cgroups`), that counts what it shares and starts, too.
"""

from __future__ import annotations

import ctypes
import gc
import resource

from edgeops.agent import cgroups
from edgeops.contracts.errors import EdgeopsError
from edgeops.runtimes.measure import data_segment_mib

# For the server's buffers, stacks of threads and what an allocator keeps.
SLACK_MIB = 128.0
# What a model takes in use may be so much more than what it took in its first inferences.
HEADROOM = 2.0
# From this share of its limit on a worker is started anew.
NEARLY_FULL = 0.95


def before_loading_mib(start_mib: float, budget_mib: float | None, ram_mib: float) -> float:
    """Return the limit while a bundle is loaded and tested: nothing of it was measured here yet.

    Args:
        start_mib: Data segment before the bundle is loaded.
        budget_mib: The bundle's budget of peak memory; None: it has none.
        ram_mib: Memory of this class of device.
    """
    allowance_mib = ram_mib if budget_mib is None else min(ram_mib, HEADROOM * budget_mib)
    return start_mib + allowance_mib + SLACK_MIB


def while_serving_mib(start_mib: float, warm_mib: float, budget_mib: float | None, ram_mib: float) -> float:
    """Return the limit of a bundle that serves.

    Args:
        start_mib: Data segment before the bundle was loaded.
        warm_mib: After its first inferences.
        budget_mib: The bundle's budget of peak memory, which it may use also if it began with less.
        ram_mib: Memory of this class of device.
    """
    grown_mib = max(0.0, warm_mib - start_mib)
    return start_mib + min(ram_mib, max(HEADROOM * grown_mib, budget_mib or 0.0)) + SLACK_MIB


def limit_memory(limit_mib: float) -> None:
    """Have allocations fail beyond a limit of this process, and its group end a little above. What it has, it keeps."""
    # The hard limit stays: what is right while a bundle loads may be too little, or too much, when it serves.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(limit_mib * (1 << 20))
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    cgroups.limit_own(limit_mib + SLACK_MIB)


def check_room() -> None:
    """Find out whether this process may take more memory.

    Raises:
        EdgeopsError: E-AGENT-WORKER; it comes to its limit.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    taken_mib, limit_mib = data_segment_mib(), limit / (1 << 20)
    if limit != resource.RLIM_INFINITY and taken_mib >= NEARLY_FULL * limit_mib:
        raise EdgeopsError("E-AGENT-WORKER", f"it has {taken_mib:.0f} of its {limit_mib:.0f} MiB of memory")


def give_back() -> None:
    """Return to the system what loading and testing took and serving does not need; an allocator would keep it."""
    gc.collect()
    # glibc's own; others have no such function.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
