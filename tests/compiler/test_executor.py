"""Workers run where an executor says, no more of them than memory holds, and none outlives its compile."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from edgeops import compiler
from edgeops.compiler.executor import Admission, Stay, fits
from edgeops.compiler.isolation import CancelledError, available_mib
from edgeops.compiler.lock import read_lock
from edgeops.compiler.store import Store


@pytest.mark.parametrize(
    ("expected", "stays", "available", "workers", "may"),
    [
        (9000, [], 10, 1, True),
        (500, [Stay(500, 500, 500)], 600, 2, True),
        (500, [Stay(500, 500, 500)], 600, 1, False),
        (700, [Stay(500, 500, 500)], 600, 2, False),
        (500, [Stay(500, 100, 100)], 600, 2, False),
        (500, [Stay(500, 100, 100)], 901, 2, True),
        (500, [Stay(500, 3300, 3300)], 20_000, 2, False),
        (500, [Stay(3300, 100, 100)], 20_000, 2, False),
        (500, [Stay(500, 3300, 3300)], 20_000, 4, True),
    ],
    ids=[
        "one always runs",
        "memory for both",
        "no slot",
        "too little",
        "the other will take more",
        "counted with it",
        "beyond their shares",
        "beyond their shares soon",
        "more shares",
    ],
)
def test_worker_starts_where_memory_holds_it_beside_the_others(expected, stays, available, workers, may):
    assert fits(expected, stays, available, workers) is may


def admitted_at_once(available: float, together: int = 1) -> int:
    """Let four workers that would each use 1000 MiB ask for a place; each stays until `together` of them do.
    Return how many ran at the same time at most."""
    met = threading.Barrier(together)
    admission, never, most, running = Admission(4, lambda: available), threading.Event(), 0, 0
    changing = threading.Lock()

    def work() -> None:
        nonlocal most, running
        with admission.admitted("convert", never) as stay:
            with changing:
                running += 1
                most = max(most, running)
            stay.uses(1000)
            met.wait(60)
            time.sleep(0.1)
            with changing:
                running -= 1

    with admission.admitted("convert", never) as first:
        first.uses(1000)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(work) for _ in range(4)]:
            job.result()
    return most


def test_a_small_machine_runs_workers_one_after_another_and_a_large_one_at_once():
    assert admitted_at_once(900) == 1
    assert admitted_at_once(100_000, together=4) == 4, "the control: memory is what held them back"


def test_interrupted_compile_does_not_wait_for_memory():
    admission, cancel = Admission(2, lambda: 0.0), threading.Event()
    with admission.admitted("a", cancel):
        cancel.set()
        with pytest.raises(CancelledError), admission.admitted("b", cancel):
            pytest.fail("there was no memory for it")
    with admission.admitted("b", threading.Event()):
        pass


def test_memory_of_this_machine_is_known():
    assert 0 < available_mib() <= psutil.virtual_memory().total / 2**20


def test_compile_in_a_process_pool_gives_the_same_bundle(shapes_handover: Path, profile, tmp_path: Path, own_cache):
    """The seam that a cluster's executor uses: requests and answers cross between processes."""
    board = profile("onnxruntime", "int8", "fp32")
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = compiler.compile(shapes_handover, [board], tmp_path / "there", executor=pool)
        assert pool._processes, "nothing ran in it"
    assert Store().clear().products > 0
    here = compiler.compile(shapes_handover, [board], tmp_path / "here")
    assert there.lock is not None
    assert here.lock is not None
    assert read_lock(there.lock).profiles == read_lock(here.lock).profiles


_HANGS = """
import sys
from edgeops.compiler import executor
from edgeops.compiler.builder import build
from edgeops.compiler.engine import Step
from edgeops.compiler.store import Product, Stored
from pathlib import Path
with executor.machine(1) as machine:
    build(machine, [Step(name="test-hang")], Stored(Path(sys.argv[1]), Product(facts=("file",))), {})
"""


# Lets the worker itself hold the other end of its standard input, which then never ends.
_DEAF = """
import os, sys, types
from edgeops.compiler import forking
fifo = os.path.join(sys.argv[1], "fifo")
os.mkfifo(fifo)
both = lambda: os.open(fifo, os.O_RDWR)
forking.os = types.SimpleNamespace(**{**vars(os), "pipe": lambda: (both(), both())})
"""


def worker_of_a_dead_compile(code: str, folder: Path, blow: signal.Signals) -> tuple[psutil.Process, psutil.Process]:
    """Start a compile whose pass hangs, end it, and return its worker and what that was forked from."""
    dying = subprocess.Popen([sys.executable, "-c", code, str(folder)], env=dict(os.environ))
    nursery = _first(lambda: psutil.Process(dying.pid).children(), "a nursery")
    worker = _first(nursery.children, "a worker")
    _first(lambda: worker.num_threads() > 1, "its watch on standard input")
    dying.send_signal(blow)
    dying.wait(60)
    return worker, nursery


def _ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_no_worker_outlives_a_compile_that_died(plugin_passes: Path, own_cache: Path, tmp_path: Path, blow):
    for process in worker_of_a_dead_compile(_HANGS, tmp_path, blow):
        _first(lambda process=process: _ended(process), "the end of a worker and of what it was forked from")


def test_worker_that_does_not_watch_outlives_its_compile(plugin_passes: Path, own_cache: Path, tmp_path: Path):
    worker, nursery = worker_of_a_dead_compile(_DEAF + _HANGS, tmp_path, signal.SIGKILL)
    _first(lambda: _ended(nursery), "the end of what it was forked from")
    time.sleep(1)
    assert not _ended(worker)
    worker.kill()


def _first(found, what: str):
    deadline = time.monotonic() + 60
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.02)
    return value[0] if isinstance(value, list) else value
