"""Threads and processors: what the profile says holds for every runtime's own threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from affine_models import WRITERS

from edgeops.runtimes.protocol import LoadOptions
from edgeops.runtimes.registry import backend

# mcu runs in a process of its own, on the one thread that a microcontroller has.
RUNTIMES = sorted(set(WRITERS) - {"mcu"})
_PROGRAM = """
import json, os, sys
from pathlib import Path
import numpy as np
from edgeops.agent.worker.engine import keep_to
from edgeops.runtimes.protocol import LoadOptions
from edgeops.runtimes.registry import backend

name, artifact, threads, processors = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
keep_to(tuple(processors))
before = set(os.listdir("/proc/self/task"))
session = backend(name).load(artifact, LoadOptions(threads=threads))
for _ in range(3):
    session.run({spec.name: np.ones(spec.shape, spec.dtype) for spec in session.inputs})
allowed = {}
for task in os.listdir("/proc/self/task"):
    status = Path(f"/proc/self/task/{task}/status").read_text()
    allowed[task] = status.split("Cpus_allowed_list:")[1].split()[0]
print(json.dumps({"allowed": sorted(set(allowed.values())), "more": len(set(allowed) - before)}))
"""


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def loaded(runtime: str, folder: Path, *, threads: int, processors: tuple[int, ...] = ()) -> dict[str, Any]:
    """Load a model in a process of its own; return on what its threads may run, and how many the runtime has added."""
    name, write = WRITERS[runtime]
    words = [runtime, str(write(folder / name)), str(threads), json.dumps(processors)]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *words], capture_output=True, text=True, check=True, timeout=120
    )
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_a_runtimes_threads_keep_to_the_profiles_processors(runtime: str, tmp_path: Path) -> None:
    chosen = max(os.sched_getaffinity(0))
    assert loaded(runtime, tmp_path, threads=2, processors=(chosen,))["allowed"] == [str(chosen)]


def test_without_processors_in_the_profile_no_thread_is_kept_to_any(runtime: str, tmp_path: Path) -> None:
    """Also not by a runtime that would pin its threads by itself: two models would share one processor."""
    everything = Path("/proc/self/status").read_text().split("Cpus_allowed_list:")[1].split()[0]
    assert loaded(runtime, tmp_path, threads=2)["allowed"] == [everything]


def test_a_runtime_starts_as_many_threads_as_the_profile_says(runtime: str, tmp_path: Path) -> None:
    """The thread that asks is one of them. OpenVINO shares a pool with its compiler, and tells what it uses of it."""
    if runtime == "openvino":
        artifact = WRITERS[runtime][1](tmp_path / WRITERS[runtime][0])
        for threads in (1, 2):
            session: Any = backend(runtime).load(artifact, LoadOptions(threads=threads))
            assert session._request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == threads
        return
    one, two, four = (loaded(runtime, tmp_path, threads=threads)["more"] for threads in (1, 2, 4))
    assert (two - one, four - one) == (1, 3)
