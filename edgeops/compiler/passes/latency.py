"""How long an artifact takes: in turns with the float artifact of its runtime, and that in turns with the yardstick."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np

from edgeops.compiler.passes import Outcome, Work
from edgeops.compiler.passes.running import runtime_modules
from edgeops.compiler.passes.samples import read_samples
from edgeops.contracts.bundle import BundleManifest
from edgeops.contracts.evidence import Latency
from edgeops.contracts.wire import Wire
from edgeops.intake.cache import cache_dir
from edgeops.runtimes import measure
from edgeops.runtimes.bundle_session import BundleSession, open_session
from edgeops.runtimes.protocol import Tensors

_WARMUP_RUNS = 3
_LEAST_RUNS = 11
_MOST_RUNS = 300


class LatencyPlan(Wire, frozen=True, kw_only=True):
    """How latency is measured.

    Args:
        runtime: The artifact's backend.
        threads: Inference threads; more than there are processors would wait for each other.
        seconds: How long, about.
    """

    runtime: str
    threads: int
    seconds: float


class LatencyInTurns:
    """Time an artifact. Times of different minutes are never compared: the machine's load may have changed."""

    tools = ("numpy", "onnxruntime", "openvino", "ai-edge-litert", "tflite-micro")
    requires: frozenset[str] = frozenset({"baked"})
    ensures = frozenset({"timed"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return runtime_modules(parameters["runtime"])

    def run(self, work: Work) -> Outcome:
        """Parameters: a `LatencyPlan`.

        Inputs: `samples`; `judged`, of this artifact; `float` and `float-judged`, the float artifact of the same
        runtime; for that one `yardstick` and `yardstick-judged`, which all float artifacts of a profile are timed
        against.
        """
        plan = msgspec.convert(work.parameters, LatencyPlan)
        samples = read_samples(work.inputs["samples"], "judged")
        feed = {name: np.asarray(array[0]) for name, array in samples.items()}
        found: dict[str, Any] = {}
        with contextlib.ExitStack() as stack:
            # Two measurements at once would slow each other: those of other compiles wait too.
            lock = stack.enter_context((cache_dir() / ".measure.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)

            def opened(role: str, judged: str) -> BundleSession:
                folder = work.inputs.get(role, work.source)
                manifest = msgspec.convert(work.input_notes[judged]["manifest"], BundleManifest)
                return stack.enter_context(open_session(folder, manifest, threads=plan.threads))

            session = opened("", "judged")
            for role, key in (("float", "float_latency"), ("yardstick", "yardstick_latency")):
                if role in work.inputs:
                    own, theirs = _in_turns(session, opened(role, f"{role}-judged"), feed, plan.seconds)
                    found |= {"latency": msgspec.to_builtins(own), key: msgspec.to_builtins(theirs)}
            if not found:
                runs = _runs(plan.seconds, lambda: session.run(feed))
                alone = msgspec.to_builtins(measure.latency(lambda: session.run(feed), warmup=0, runs=runs))
                found = {"latency": alone, "yardstick_latency": alone}
        # A float artifact is its own baseline.
        return Outcome(frozenset({"timed"}), {"float_latency": found["latency"], **found})


def threads_here(wanted: int) -> int:
    """Return how many of the threads that a profile wants this machine has processors for."""
    return min(wanted, len(os.sched_getaffinity(0)))


def _in_turns(first: BundleSession, second: BundleSession, feed: Tensors, budget_s: float) -> tuple[Latency, Latency]:
    runs = _runs(budget_s, lambda: (first.run(feed), second.run(feed)))
    return measure.interleaved(lambda: first.run(feed), lambda: second.run(feed), warmup=0, runs=runs)


def _runs(budget_s: float, run: Callable[[], object]) -> int:
    """Warm up, and return how many runs fit the time."""
    for _ in range(_WARMUP_RUNS):
        run()
    start = time.perf_counter()
    run()
    each_s = max(time.perf_counter() - start, 1e-6)
    return max(_LEAST_RUNS, min(_MOST_RUNS, int(budget_s / each_s)))
