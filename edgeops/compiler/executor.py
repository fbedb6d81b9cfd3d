"""Where the workers of a compile run: threads of this process by default, or any `concurrent.futures` executor."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from edgeops.compiler.engine import preloaded
from edgeops.compiler.forking import Nursery
from edgeops.compiler.isolation import CancelledError, Limits, available_mib, default_memory_mib, run_worker
from edgeops.compiler.store import Store
from edgeops.compiler.worker import Request, Response

# A converter that needs longer than this is taken for one that hangs.
STEP_TIMEOUT_S = 900.0
# What a worker is taken to need before one of its kind has run.
_UNKNOWN_MIB = 1024.0
# What workers may take together is so much for each: a compile leaves a large machine to others, and one large worker
# of a small one is alone.
SHARE_MIB = 1792.0
_POLL_S = 0.1

Job = Callable[[Request, Limits], Response]


class Turns:
    """Locks by name: what one thread of a compile makes, others that want it wait for, and take no worker's place."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken: set[str] = set()

    @contextlib.contextmanager
    def of(self, name: str, cancel: threading.Event) -> Iterator[None]:
        """Wait for this name's turn, and hold it.

        Raises:
            CancelledError: `cancel` was set while it waited.
        """
        with self._changed:
            while name in self._taken:
                if cancel.is_set():
                    raise CancelledError
                self._changed.wait(_POLL_S)
            self._taken.add(name)
        try:
            yield
        finally:
            with self._changed:
                self._taken.discard(name)
                self._changed.notify_all()


class Machine(NamedTuple):
    """Where work is done, what each worker may take, and the event that ends all of it.

    Args:
        store: The cache; an executor's processes must reach it under the same path.
        limits: Of one worker.
        executor: Runs jobs.
        job: What it is given: with an executor of another process it has to be picklable.
        cancel: Ends the compile when set.
        turns: Of the threads that share it.
        warm: Begins what workers need, and does not wait for it.
    """

    store: Store
    limits: Limits
    executor: concurrent.futures.Executor
    job: Job
    cancel: threading.Event
    turns: Turns
    warm: Callable[[], object]

    @contextlib.contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Hold what only one thread at a time may make.

        Raises:
            CancelledError: The compile was interrupted.
        """
        with self.turns.of(name, self.cancel):
            yield

    def run(self, request: Request) -> Response:
        """Have a worker run a step.

        Raises:
            CancelledError: The compile was interrupted.
        """
        future = self.executor.submit(self.job, request, self.limits)
        while not concurrent.futures.wait([future], _POLL_S).done:
            if self.cancel.is_set():
                future.cancel()
                raise CancelledError
        return future.result()


@contextlib.contextmanager
def machine(workers: int, executor: concurrent.futures.Executor | None = None) -> Iterator[Machine]:
    """Yield a machine; at the end all of its own workers are ended.

    Args:
        workers: How many workers this process may run at once, as far as memory allows.
        executor: Use this one: it decides then how many run at once, and where.
    """
    cancel, limits = threading.Event(), Limits(STEP_TIMEOUT_S, default_memory_mib(workers))
    if executor is not None:
        # A module's function and plain values: a process pool or a cluster's executor can carry them.
        yield Machine(Store(), limits, executor, run_worker, cancel, Turns(), lambda: None)
        return
    admission, nursery = Admission(workers), Nursery()

    def job(request: Request, limits: Limits) -> Response:
        with admission.admitted(request.step.name, cancel) as stay:
            return nursery.run(request, limits, preload=preloaded(request.step), cancel=cancel, on_memory=stay.uses)

    with (
        contextlib.closing(nursery),
        concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="worker") as pool,
    ):
        try:
            yield Machine(Store(), limits, pool, job, cancel, Turns(), nursery.start)
        finally:
            cancel.set()


@dataclasses.dataclass
class Stay:
    """A running worker: the memory it is expected to need, uses now, and used at most, in MiB."""

    expected_mib: float
    used_mib: float = 0.0
    peak_mib: float = 0.0

    def uses(self, mib: float) -> None:
        """Take note of its resident memory."""
        self.used_mib, self.peak_mib = mib, max(self.peak_mib, mib)


class Admission:
    """Lets workers start as long as the machine and their shares have memory for them: at least one always runs.

    What a worker needs is what the largest of its kind took before.
    """

    def __init__(self, workers: int, available: Callable[[], float] = available_mib) -> None:
        self._workers, self._available = workers, available
        self._changed = threading.Condition()
        self._stays: list[Stay] = []
        self._peaks: dict[str, float] = {}

    @contextlib.contextmanager
    def admitted(self, kind: str, cancel: threading.Event) -> Iterator[Stay]:
        """Wait until a worker of this kind may start; what is yielded has to be told what it uses.

        Raises:
            CancelledError: `cancel` was set while it waited.
        """
        with self._changed:
            stay = Stay(self._peaks.get(kind, _UNKNOWN_MIB))
            while not fits(stay.expected_mib, self._stays, self._available(), self._workers):
                if cancel.is_set():
                    raise CancelledError
                self._changed.wait(_POLL_S)
            self._stays.append(stay)
        try:
            yield stay
        finally:
            with self._changed:
                self._stays = [one for one in self._stays if one is not stay]
                self._peaks[kind] = max(stay.peak_mib, self._peaks.get(kind, 0.0))
                self._changed.notify_all()


def fits(expected_mib: float, stays: Sequence[Stay], available_mib: float, workers: int) -> bool:
    """Say whether one more worker may start; pure.

    Args:
        expected_mib: What it will need.
        stays: The workers that run; what they will still take is counted as taken.
        available_mib: What the machine can give now.
        workers: The most that may run at once.
    """
    if not stays:
        return True
    promised = sum(max(0.0, stay.expected_mib - stay.used_mib) for stay in stays)
    together = sum(max(stay.expected_mib, stay.used_mib) for stay in stays) + expected_mib
    return len(stays) < workers and together <= workers * SHARE_MIB and available_mib - promised >= expected_mib
