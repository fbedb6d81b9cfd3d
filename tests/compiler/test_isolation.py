"""Passes run in workers under limits: what breaks one candidate breaks nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from edgeops.compiler.builder import build
from edgeops.compiler.engine import Failed, Step
from edgeops.compiler.executor import Machine
from edgeops.compiler.isolation import CancelledError, Limits
from edgeops.compiler.store import Stored
from edgeops.contracts.errors import EdgeopsError


def failure(machine: Machine, step: Step, source: Stored) -> str:
    built = build(machine, [step], source, {})
    assert isinstance(built, Failed)
    assert built.failure.code == "E-COMPILE-CANDIDATE"
    return built.failure.what


def test_crash_fails_the_step_with_its_signal(machine: Machine, source: Stored, plugin_passes: Path):
    assert "SIGSEGV" in failure(machine, Step(name="test-crash"), source)
    assert machine.store.usage().products == 0


def test_the_same_crash_outside_a_worker_ends_the_process(plugin_passes: Path, own_cache: Path, source: Stored):
    """The control: it is the worker that keeps a crash from the compile."""
    code = (
        "import sys; from pathlib import Path; from edgeops.compiler.engine import Step, run_step;"
        "from edgeops.compiler.store import Product, Store, Stored;"
        "run_step(Store(), Step(name='test-crash'), Stored(Path(sys.argv[1]), Product(facts=('file',))), {})"
    )
    assert subprocess.run([sys.executable, "-c", code, str(source.path)], check=False).returncode == -signal.SIGSEGV


@pytest.mark.parametrize(("step", "limits"), [("test-hang", Limits(60, 300)), ("test-hunger", Limits(60, 2048))])
def test_without_the_limit_that_ends_it_a_pass_goes_on(
    machine: Machine, source: Stored, plugin_passes: Path, step: str, limits: Limits
):
    """The control: nothing but its own limit, 2 s or 300 MiB, ends a hang or a hunger within 3 s."""
    threading.Timer(3.0, machine.cancel.set).start()
    with pytest.raises(CancelledError):
        build(machine._replace(limits=limits._replace(memory_mib=20_000)), [Step(name=step)], source, {})


def test_hang_is_ended_at_the_time_limit(machine: Machine, source: Stored, plugin_passes: Path):
    hasty = machine._replace(limits=Limits(2, 2048))
    assert "more than 2 s" in failure(hasty, Step(name="test-hang"), source)


def test_hunger_is_ended_at_the_memory_limit(machine: Machine, source: Stored, plugin_passes: Path):
    small = machine._replace(limits=Limits(60, 300))
    assert "more than 300 MiB" in failure(small, Step(name="test-hunger"), source)


def test_children_of_a_dead_worker_are_ended_too(machine: Machine, source: Stored, plugin_passes: Path, tmp_path: Path):
    pid_file = tmp_path / "pid"
    failure(machine, Step(name="test-fork", parameters={"pid_file": str(pid_file)}), source)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if psutil.Process(int(pid_file.read_text())).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its worker")


def test_pass_that_breaks_its_promise_is_a_defect(machine: Machine, source: Stored, plugin_passes: Path):
    with pytest.raises(EdgeopsError) as caught:
        build(machine, [Step(name="test-lie")], source, {})
    assert caught.value.code == "E-INTERNAL"
    assert "promised onnx" in caught.value.what


def test_optional_step_that_crashes_is_left_out(machine: Machine, source: Stored, plugin_passes: Path):
    assert build(machine, [Step(name="test-crash", optional=True)], source, {}) == source


def test_requirement_that_is_not_met_is_named(machine: Machine, source: Stored):
    assert "needs baked" in failure(machine, Step(name="onnx-to-tflite", inputs=()), source)


def test_cancel_ends_a_running_worker(machine: Machine, source: Stored, plugin_passes: Path):
    threading.Timer(1.0, machine.cancel.set).start()
    with pytest.raises(CancelledError):
        build(machine, [Step(name="test-hang")], source, {})


def test_unknown_pass_is_a_plugin_error(machine: Machine, source: Stored):
    with pytest.raises(EdgeopsError) as caught:
        build(machine, [Step(name="no-such-pass")], source, {})
    assert caught.value.code == "E-PLUGIN"
