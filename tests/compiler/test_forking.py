"""Workers are forked from processes that have imported what they need; each still stands and falls alone."""

from __future__ import annotations

import concurrent.futures
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgeops.compiler import forking, inherited, isolation
from edgeops.compiler.builder import build
from edgeops.compiler.engine import Failed, Step
from edgeops.compiler.executor import Machine
from edgeops.compiler.forking import Nursery, NurseryLostError
from edgeops.compiler.isolation import Limits
from edgeops.compiler.passes.nncf_alone import without_torch
from edgeops.compiler.store import Stored
from edgeops.compiler.worker import Place, Request

# Before the processes that fork begin: they find it.
pytestmark = pytest.mark.usefixtures("plugin_passes")


def tell(machine: Machine, source: Stored, **parameters: Any) -> dict[str, Any]:
    """Run a pass that tells who started its process."""
    built = build(machine, [Step(name="test-tell", parameters=parameters)], source, {})
    assert isinstance(built, Stored), built
    return built.notes


def of_this_process(pid: int) -> bool:
    return pid in (child.pid for child in psutil.Process().children(recursive=True))


def test_workers_are_forked_from_one_process_and_from_a_specialist_for_what_they_import(machine, source):
    first, second = (tell(machine, source, nonce=nonce) for nonce in range(2))
    assert first["parent"] == second["parent"] != os.getpid()
    assert of_this_process(first["parent"])
    special = [tell(machine, source, nonce=nonce, preload=["import_is_plain"]) for nonce in range(2)]
    assert special[0]["parent"] == special[1]["parent"] != first["parent"]
    assert special[0]["before"] == ["import_is_plain"], "it was imported before the fork"


def test_modules_that_lie_where_anyone_may_write_are_not_imported(machine, source, tmp_path, monkeypatch):
    for name in ("msgspec", "numpy", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('planted')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert of_this_process(tell(machine, source)["parent"])
    code = "import json"
    planted = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "planted" in planted.stderr, "the control: another interpreter does"


def test_crash_of_a_worker_leaves_those_of_the_same_parent_running(machine, source, tmp_path):
    until = tmp_path / "until"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        other = pool.submit(tell, machine, source, until=str(until))
        assert "SIGSEGV" in failure(machine, Step(name="test-crash"), source)
        assert not other.done()
        until.touch()
        assert other.result()["parent"] == tell(machine, source)["parent"], "and that one goes on"


def failure(machine: Machine, step: Step, source: Stored) -> str:
    built = build(machine, [step], source, {})
    assert isinstance(built, Failed)
    assert built.failure.code == "E-COMPILE-CANDIDATE"
    return built.failure.what


def test_import_that_crashes_fails_its_candidate_alone(machine, source):
    assert "SIGSEGV" in failure(machine, Step(name="test-tell", parameters={"preload": ["import_crashes"]}), source)
    assert of_this_process(tell(machine, source)["parent"])


def test_import_that_hangs_is_ended_at_the_time_limit(machine, source):
    hasty = machine._replace(limits=Limits(3, 2048))
    step = Step(name="test-tell", parameters={"preload": ["import_hangs"]})
    assert "more than 3 s" in failure(hasty, step, source)
    assert of_this_process(tell(machine, source)["parent"])


def test_process_with_a_thread_forks_no_worker(machine, source):
    """A fork would have the locks of a thread that it does not have: the worker is started by itself instead."""
    found = tell(machine, source, preload=["import_starts_a_thread"])
    assert (found["parent"], found["before"]) == (os.getpid(), [])


def test_what_cannot_be_forked_is_not_tried_for_ever(own_cache, plugin_passes, source, tmp_path, monkeypatch):
    asked, nursery, run = [], Nursery(), Nursery._run
    monkeypatch.setattr(Nursery, "_run", lambda self, *more: asked.append(1) or run(self, *more))
    for nonce, modules in enumerate([("import_starts_a_thread",)] * 4 + [()] * 2):
        step = Step(name="test-tell", parameters={"nonce": nonce})
        request = Request(store=str(tmp_path / "store"), step=step, source=Place.of(source), inputs={})
        assert nursery.run(request, Limits(60, 2048), preload=modules).place is not None
    nursery.close()
    assert len(asked) == 2 + 2, "twice with the thread, and each time without it"


def test_worker_whose_nursery_is_killed_is_started_anew(machine, source, tmp_path):
    pid_file, until = tmp_path / "pid", tmp_path / "until"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(tell, machine, source, pid_file=str(pid_file), until=str(until))
        worker = psutil.Process(_number(pid_file))
        pid_file.unlink()
        os.kill(worker.ppid(), signal.SIGKILL)
        again = _number(pid_file)
        assert _ended(worker), "two at once would write the same product"
        assert psutil.Process(again).ppid() == os.getpid()
        until.touch()
        assert running.result()["parent"] == os.getpid()
    assert of_this_process(tell(machine, source)["parent"]), "the next one has a new nursery"


def test_without_starting_it_anew_a_killed_nursery_costs_the_work(own_cache, plugin_passes, source, tmp_path):
    """The control: the worker ends with its nursery, and nothing else says what it would have made."""
    nursery, pid_file = Nursery(), tmp_path / "pid"
    request = tmp_path / "request.json"
    step = Step(name="test-tell", parameters={"pid_file": str(pid_file), "until": str(tmp_path / "never")})
    asked = Request(store=str(tmp_path / "store"), step=step, source=Place.of(source), inputs={})
    request.write_bytes(forking.encode(asked))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(nursery._run, request, Limits(60, 2048), (), None, lambda _: None)
        os.kill(psutil.Process(_number(pid_file)).ppid(), signal.SIGKILL)
        with pytest.raises(NurseryLostError):
            running.result()
    nursery.close()


def _number(file: Path) -> int:
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline, f"{file} did not come"
        time.sleep(0.02)
    return int(file.read_text())


def _ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_what_two_profiles_want_is_made_once_and_the_other_takes_no_workers_place(machine, source, tmp_path):
    asked, until = [], tmp_path / "until"

    def counted(request, limits):
        asked.append(request.step.name)
        return machine.job(request, limits)

    counting = machine._replace(job=counted)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(tell, counting, source, until=str(until)) for _ in range(2)]
        # There is a place for another beside the one that runs.
        tell(machine, source)
        until.touch()
        assert jobs[0].result() == jobs[1].result()
    assert asked == ["test-tell"]


_MEASURED = """
import sys
from edgeops.compiler import inherited, nursery, worker
from edgeops.runtimes import measure
def tell(request):
    import onnxruntime
    with open(sys.argv[1], "w") as file:
        print(inherited.peak_memory_mib(), measure.peak_memory_mib(), file=file)
"""
_ALONE = _MEASURED + "worker.settle(); tell(None)"
_FORKED = (
    _MEASURED
    + """
import os, socket
worker.answer = tell
mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
inherited.note()
if os.fork() == 0:
    mine.close()
    nursery._attend(theirs, specialist=False)
theirs.close()
order = nursery.Order(request=sys.argv[1], preload=("onnxruntime",))
socket.send_fds(mine, [worker.encode(order)], [other.fileno(), 0, 2])
channel.recv(99), channel.recv(99)
mine.close()
os.wait()
"""
)


def test_memory_of_a_forked_worker_is_that_of_a_process_of_its_own(tmp_path):
    """And the control: the kernel's own peak of a fork leaves out the libraries that it has not touched."""
    figures = []
    for code in (_ALONE, _FORKED):
        said = tmp_path / "said"
        command = [sys.executable, "-c", code, str(said)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, env={**os.environ, **isolation.ENVIRONMENT})
        figures.append([float(word) for word in said.read_text().split()])
    (alone, kernels), (forked, kernels_forked) = figures
    assert alone == pytest.approx(kernels, abs=1)
    assert forked == pytest.approx(alone, abs=6)
    assert kernels_forked < alone - 6


def test_pages_that_are_not_there_any_more_are_counted():
    before = {(0, 4): np.array([True, True, False, True]), (8, 10): np.array([True, True])}
    assert inherited.lacking(before, {(0, 4): np.array([True, False, True, False])}) == 2 + 2
    assert inherited.lacking(before, before) == 0


@pytest.mark.parametrize("lists", [True, False], ids=["the kernel lists children", "it does not"])
def test_memory_of_a_worker_counts_what_it_started(lists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hold = "import sys; block = bytearray(b'1') * (64 << 20); print(flush=True); sys.stdin.read()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdout.readline()
    if not lists:
        for one in (parent.pid, *(child.pid for child in psutil.Process(parent.pid).children())):
            (tmp_path / str(one) / "task").mkdir(parents=True)
            (tmp_path / str(one) / "statm").symlink_to(f"/proc/{one}/statm")
        monkeypatch.setattr(isolation, "_PROCESSES", tmp_path)
    assert isolation.resident_mib(parent.pid) > 64
    parent.communicate()
    assert isolation.resident_mib(parent.pid) == 0


_IMPORTS = "import sys, threading; {before}import {module}; print(threading.active_count(), {name!r} in sys.modules)"


def imported(module: str, name: str, before: str = "") -> str:
    code = _IMPORTS.format(module=module, name=name, before=before and f"{before}; ")
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_openvino_tells_nobody_that_it_is_used():
    quiet = "from edgeops.runtimes.openvino_backend import without_telemetry as quiet; quiet()"
    assert imported("openvino", "openvino_telemetry.main", quiet) == "1 False"
    # Whether it starts its thread is for the user's consent and the variable CI to say.
    assert imported("openvino", "openvino_telemetry.main").endswith("True"), "the control: left alone it is there"


def test_quantizing_for_openvino_loads_no_torch():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: pip install 'edgeops[torch]'")
    assert imported("edgeops.compiler.passes.nncf_loaded", "torch").endswith("False")
    assert imported("nncf", "torch").endswith("True"), "the control: left alone it does"


def test_torch_can_be_imported_again_where_it_was_kept_away():
    with without_torch():
        if "torch" not in sys.modules or sys.modules["torch"] is None:
            with pytest.raises(ImportError):
                importlib.import_module("torch")
    assert sys.modules.get("torch", "absent") is not None
