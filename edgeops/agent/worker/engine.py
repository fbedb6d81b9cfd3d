"""One bundle in this process: checked, loaded, warmed, proved on its golden vectors, and run."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops import plugins
from edgeops.agent.channel import Load
from edgeops.agent.worker import limits
from edgeops.contracts.bundle import BundleManifest
from edgeops.contracts.deployment import SelfTestFigures
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Latency
from edgeops.releases.opening import open_bundle
from edgeops.runtimes import golden, measure
from edgeops.runtimes.bundle_session import open_session
from edgeops.runtimes.engine_cache import engine_cache
from edgeops.runtimes.protocol import Tensors

WARMUP_RUNS = 3
TIMED_RUNS = 40
TIMED_ROUNDS = 3
_ROUND_WITHIN_S = 5.0


def keep_to(processors: tuple[int, ...]) -> None:
    """Let this process, and the threads that runtimes start in it, use some processors only; none: any.

    Raises:
        EdgeopsError: E-PROFILE-INVALID; this device does not have all of them.
    """
    if not processors:
        return
    here = sorted(os.sched_getaffinity(0))
    if not set(processors) <= set(here):
        raise EdgeopsError(
            "E-PROFILE-INVALID",
            f"serving.affinity {list(processors)} names processors that this device does not offer; it offers {here}",
            "Correct the profile, or enrol the device with another one.",
        )
    # Every thread, for a library's own began when it was imported; those to come take after the one that starts them.
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), processors)


class Engine:
    """A loaded bundle.

    Args:
        load: What to load, and how.
        on_build: Called if the runtime has to build an engine for this device first, which may take minutes.

    Raises:
        EdgeopsError: E-PROFILE-INVALID; E-BUNDLE-DAMAGED or E-BUNDLE-INVALID; E-RUNTIME-MISSING, E-RUNTIME-LOAD or
            E-RUNTIME-RUN; E-DISK-FULL or E-DISK-WRITE.
    """

    def __init__(self, load: Load, on_build: Callable[[], None]) -> None:
        keep_to(load.affinity)
        plugins.tell("edgeops.backends", load.backends)
        bundle = open_bundle(Path(load.directory), expect_digest=load.digest)
        self.manifest: BundleManifest = bundle.manifest
        self.release, self.digest = load.release, bundle.digest
        self._ram_mib, self._start_mib = load.ram_mib, measure.data_segment_mib()
        budget_mib = bundle.manifest.budgets.peak_memory_mib
        limits.limit_memory(limits.before_loading_mib(self._start_mib, budget_mib, load.ram_mib))
        cache = engine_cache(Path(load.cache_dir) if load.cache_dir else None, bundle.manifest, bundle.digest)
        if cache is not None and not cache.complete:
            on_build()
        start = time.perf_counter()
        self._session = open_session(
            bundle.directory,
            bundle.manifest,
            threads=load.threads,
            cache_dir=None if cache is None else cache.folder,
        )
        self.load_ms = (time.perf_counter() - start) * 1e3
        vectors = golden.load(bundle.directory, bundle.manifest)
        self._probe_feeds = {name: array[0].copy() for name, array in vectors.inputs.items()}
        self._float_outputs = tuple(
            info.tensor.name for info in bundle.manifest.outputs if info.tensor.dtype.startswith("float")
        )
        self._directory = bundle.directory
        for _ in range(WARMUP_RUNS):
            self.run(self._probe_feeds)
        if cache is not None:
            cache.keep()

    @property
    def provider(self) -> str:
        """What really runs it."""
        return self._session.provider

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Run one inference.

        Raises:
            EdgeopsError: E-RUNTIME-INPUT or E-RUNTIME-RUN.
        """
        try:
            return self._session.run(feeds)
        except MemoryError as error:
            raise EdgeopsError("E-RUNTIME-RUN", "the inference needs more memory than this worker may have") from error

    def finite(self, answer: Tensors) -> bool:
        """Say whether every value of an answer is finite."""
        return all(np.isfinite(answer[name]).all() for name in self._float_outputs)

    def probe(self) -> None:
        """Run a golden vector, as a sign of life.

        Raises:
            EdgeopsError: E-RUNTIME-RUN.
        """
        self.run(self._probe_feeds)

    def limit_memory(self) -> None:
        """Have this process fail, not the device, once the bundle needs far more memory than it did so far."""
        budget_mib = self.manifest.budgets.peak_memory_mib
        warm_mib = measure.data_segment_mib()
        limits.limit_memory(limits.while_serving_mib(self._start_mib, warm_mib, budget_mib, self._ram_mib))

    def self_test(self) -> SelfTestFigures:
        """Replay the golden vectors, then time inferences; hold all against tolerances and budgets.

        Latency is the best of a few rounds: a budget speaks of the bundle on this device, not of what else ran there
        in one moment.

        Raises:
            EdgeopsError: E-SELFTEST-GOLDEN or E-SELFTEST-BUDGET; or the runtime's own.
        """
        vectors = golden.load(self._directory, self.manifest)
        found = golden.replay(self._session, self.manifest, vectors)
        latency = self._latency()
        figures = SelfTestFigures(
            vectors=found.vectors,
            worst_output=found.worst_output,
            max_abs_diff=found.max_abs_diff,
            min_cosine=found.min_cosine,
            load_ms=self.load_ms,
            latency=latency,
            peak_memory_mib=measure.peak_memory_mib(),
            provider=self.provider,
        )
        budgets = self.manifest.budgets
        for what, measured, limit, unit in (
            ("latency p95", latency.p95_ms, budgets.latency_p95_ms, "ms"),
            ("peak memory", figures.peak_memory_mib, budgets.peak_memory_mib, "MiB"),
        ):
            if limit is not None and measured > limit:
                raise EdgeopsError(
                    "E-SELFTEST-BUDGET",
                    f"{what} on this device is {measured:.2f} {unit}, the budget is {limit:.2f} {unit}",
                    "Choose a smaller model or precision, or a larger budget.",
                )
        return figures

    def _latency(self) -> Latency:
        limit = self.manifest.budgets.latency_p95_ms
        once = measure.latency(self.probe, warmup=0, runs=1).p50_ms
        runs = max(5, min(TIMED_RUNS, int(_ROUND_WITHIN_S * 1e3 / max(once, 1e-3))))
        best = measure.latency(self.probe, warmup=WARMUP_RUNS, runs=runs)
        for _ in range(TIMED_ROUNDS - 1):
            if limit is None or best.p95_ms <= limit:
                break
            best = min(best, measure.latency(self.probe, warmup=0, runs=runs), key=lambda round: round.p95_ms)
        return best
