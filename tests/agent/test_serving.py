"""Workers: swapped under load without a dropped request, started again when killed, and gone with their supervisor."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adder_bundles import MODEL, small_bundle
from fake_fleet import wait_for
from serving_rig import WITHIN_S, ServingRig, load_of

from edgeops.client.inference import InferenceClient
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.profile import Budgets
from edgeops.releases.bundles import Bundle

X = np.array([[1, 2, 3, 4]], np.float32)


class Load:
    """Clients that ask without a pause; every answer is checked."""

    def __init__(self, url: str, clients: int = 3) -> None:
        # Of each client, in order.
        self.answers: list[list[float]] = [[] for _ in range(clients)]
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._url = url
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.wait(lambda answers: bool(answers))
        return self

    def wait(self, condition: Callable[[list[float]], bool]) -> None:
        """Wait until something holds for what each client has got, or one has failed."""
        deadline_s = time.monotonic() + WITHIN_S
        while not self.failures and not all(condition(answers) for answers in self.answers):
            assert time.monotonic() < deadline_s, self.answers
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        client = InferenceClient(self._url)
        while not self._stop.is_set():
            try:
                added = client.infer(MODEL, {"x": X})["y"] - X
                self.answers[number].append(float(added[0, 0]))
                if number % 2:
                    client.close()
            except EdgeopsError as error:
                self.failures.append(str(error))


def test_hot_swap_under_load_drops_no_request(rig: ServingRig, bundle: Bundle, other_bundle: Bundle):
    rig.serve(bundle)
    with Load(rig.url) as load:
        for number in range(3):
            figures = rig.swap(other_bundle if number % 2 == 0 else bundle, f"1.{number + 1}.0")
            assert figures.vectors == 3
            added = 2.0 if number % 2 == 0 else 1.0
            # The worker before answers what it has begun; once it has ended, only the new one does.
            wait_for(lambda: rig.serving.is_alone, "the old worker stays")
            load.wait(lambda answers, added=added: answers[-1] == added)  # type: ignore[misc]
    assert load.failures == []
    assert {1.0, 2.0} == {answer for answers in load.answers for answer in answers}
    assert {answers[-1] for answers in load.answers} == {2.0}


@pytest.mark.parametrize("patience_s", [600.0, 0.1])
def test_a_bundle_is_said_to_serve_once_the_one_before_takes_no_more_clients(
    rig: ServingRig, bundle: Bundle, other_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, patience_s: float
):
    """Control: one that gives no answer is waited for no longer than it may take."""
    monkeypatch.setattr("edgeops.agent.handover.CLOSE_WITHIN_S", patience_s)
    rig.serve(bundle)
    before = rig.pid
    rig.do(lambda serving: serving.try_out(load_of(other_bundle, "1.1.0")))
    rig.expect("tested")
    os.kill(before, signal.SIGSTOP)
    try:
        rig.do(lambda serving: serving.promote())
        wait_for(lambda: rig.serving.is_serving, "the new bundle does not serve")
        if patience_s < 1:
            rig.expect("serves")
        else:
            rig.do(lambda _: None)
            assert "serves" not in [said for said, _ in rig.said.queue]
    finally:
        os.kill(before, signal.SIGCONT)
    if patience_s > 1:
        rig.expect("serves")
        for _ in range(20):
            with InferenceClient(rig.url) as client:
                assert (client.infer(MODEL, {"x": X})["y"] - X == 2).all()
    wait_for(lambda: rig.serving.is_alone, "the old worker stays")


ASK = b"GET /v2/health/live HTTP/1.1\r\n\r\n"


def ask(connection: socket.socket) -> bytes:
    connection.sendall(ASK)
    return connection.recv(65536)


def test_a_kept_connection_is_answered_once_more_and_then_closed(rig: ServingRig, bundle: Bundle, other_bundle: Bundle):
    rig.serve(bundle)
    with socket.create_connection(("127.0.0.1", rig.serving.port), timeout=WITHIN_S) as kept:
        assert b"Connection: close" not in ask(kept)
        rig.swap(other_bundle, "1.1.0")
        deadline = time.monotonic() + WITHIN_S
        while b"Connection: close" not in (answer := ask(kept)):  # the old worker has yet to hear of it
            assert answer.startswith(b"HTTP/1.1 200")
            assert time.monotonic() < deadline
        assert answer.startswith(b"HTTP/1.1 200")
        assert kept.recv(10) == b""


def test_drop_check_can_fail(rig: ServingRig, bundle: Bundle):
    """Negative control: a worker that is killed instead of drained does drop what its clients asked."""
    rig.serve(bundle)
    with socket.create_connection(("127.0.0.1", rig.serving.port), timeout=WITHIN_S) as kept:
        assert ask(kept)
        os.kill(rig.pid, signal.SIGSTOP)
        kept.sendall(ASK)
        os.kill(rig.pid, signal.SIGKILL)
        try:
            answer = kept.recv(10)
        except ConnectionResetError:
            answer = b""
        assert answer == b""


def test_a_killed_worker_is_started_again(rig: ServingRig, bundle: Bundle):
    rig.serve(bundle)
    first = rig.pid
    os.kill(first, signal.SIGKILL)
    assert "SIGKILL" in rig.expect("crashed")
    rig.expect("serves")
    assert rig.pid != first
    with InferenceClient(rig.url) as client:
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 1)


def test_requests_during_a_crash_wait_for_the_next_worker(rig: ServingRig, bundle: Bundle):
    """The socket outlives the worker: a client that connects meanwhile is answered, not refused."""
    rig.serve(bundle)
    os.kill(rig.pid, signal.SIGKILL)
    with InferenceClient(rig.url) as client:
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 1)


def test_a_hanging_worker_is_found_and_replaced(rig: ServingRig, bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edgeops.agent.serving.PROBE_WITHIN_S", 0.2)
    rig.serve(bundle)
    rig.do(lambda serving: serving.probe(infer=True))
    rig.expect("alive")
    first = rig.pid
    os.kill(first, signal.SIGSTOP)
    deadline = time.monotonic() + WITHIN_S
    while rig.said.empty() and time.monotonic() < deadline:
        rig.do(lambda serving: serving.probe(infer=False))
        time.sleep(0.05)
    assert "SIGKILL" in rig.expect("crashed")
    rig.expect("serves")
    assert rig.pid != first


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"lie": 0.5}, "E-SELFTEST-GOLDEN"),
        ({"budgets": Budgets(latency_p95_ms=1e-6)}, "E-SELFTEST-BUDGET"),
        ({"budgets": Budgets(peak_memory_mib=1.0)}, "E-SELFTEST-BUDGET"),
        ({"runtime": "nosuch"}, "E-PLUGIN"),
    ],
)
def test_a_candidate_that_fails_leaves_the_incumbent_serving(
    change: dict[str, object], code: str, rig: ServingRig, bundle: Bundle, tmp_path: Path
):
    rig.serve(bundle)
    pid = rig.pid
    bad = small_bundle(tmp_path / "bad", add=7.0, **change)  # type: ignore[arg-type]
    with Load(rig.url, clients=1) as load:
        rig.do(lambda serving: serving.try_out(load_of(bad, "9.9.9")))
        assert rig.expect("test_failed").code == code
    assert load.failures == []
    assert {answer for answers in load.answers for answer in answers} == {1.0}
    assert rig.pid == pid


def test_a_candidate_that_dies_in_its_self_test_is_only_a_failed_candidate(
    rig: ServingRig, bundle: Bundle, tmp_path: Path
):
    rig.serve(bundle)
    rig.do(lambda serving: serving.try_out(load_of(bundle, "2.0.0")))
    candidate = rig.serving._candidate
    assert candidate is not None
    os.kill(candidate.process.pid, signal.SIGKILL)
    assert rig.expect("test_failed").code == "E-AGENT-WORKER"
    with InferenceClient(rig.url) as client:
        assert client.ready()


class NoProcesses:
    """A device that is short of memory or processes: for a while none can be started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
        self.tries, self.short = 0, True
        name, error = {
            "process": ("subprocess.Popen", OSError(errno.EAGAIN, "no more processes")),
            "socket": ("socket.socketpair", OSError(errno.EMFILE, "too many files")),
            "thread": ("threading.Thread.start", RuntimeError("can't start new thread")),
        }[how]
        owner, _, part = name.rpartition(".")
        holder: Any = {"subprocess": subprocess, "socket": socket, "threading.Thread": threading.Thread}[owner]
        real = getattr(holder, part)

        def scarce(*given: Any, **named: Any) -> Any:
            if self.short and (how != "thread" or given[0].name.startswith("worker")):
                self.tries += 1
                raise error
            return real(*given, **named)

        monkeypatch.setattr(holder, part, scarce)


@pytest.mark.parametrize("how", ["process", "socket", "thread"])
def test_a_device_that_cannot_start_a_process_serves_on_and_tries_again(
    how: str, rig: ServingRig, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
):
    """Neither a candidate nor a worker that died ends the agent, and with it all that serves."""
    rig.serve(bundle)
    first = rig.pid
    scarcity = NoProcesses(monkeypatch, how)
    rig.do(lambda serving: serving.try_out(load_of(bundle, "2.0.0")))
    assert rig.expect("test_failed").code == "E-AGENT-WORKER"
    with InferenceClient(rig.url) as client:
        assert client.ready()
    os.kill(first, signal.SIGKILL)
    assert "SIGKILL" in rig.expect("crashed")
    assert "cannot be started" in rig.expect("crashed")
    assert "cannot be started" in rig.expect("crashed")
    assert scarcity.tries >= 3
    scarcity.short = False
    rig.expect("serves")
    with InferenceClient(rig.url) as client:
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 1)


def test_a_damaged_active_bundle_is_said_and_not_served(rig: ServingRig, tmp_path: Path):
    bundle = small_bundle(tmp_path / "b")
    data = bytearray((tmp_path / "b" / "model.onnx").read_bytes())
    data[50] ^= 1
    (tmp_path / "b" / "model.onnx").write_bytes(data)
    rig.do(lambda serving: serving.serve(load_of(bundle, "1.0.0")))
    assert rig.expect("damaged").code == "E-BUNDLE-DAMAGED"
    assert not rig.serving.is_serving


def test_a_crash_loop_backs_off_instead_of_spinning(rig: ServingRig, tmp_path: Path):
    """A bundle whose runtime is not here cannot be served; it is tried again, ever more rarely, and never given up."""
    rig.do(lambda serving: serving.serve(load_of(small_bundle(tmp_path / "b", runtime="nosuch"), "1.0.0")))
    assert "E-PLUGIN" in rig.expect("crashed")
    assert "E-PLUGIN" in rig.expect("crashed")


def test_where_memory_runs_out_the_worker_goes_before_its_supervisor(rig: ServingRig, bundle: Bundle):
    rig.serve(bundle)
    scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (rig.pid, os.getpid())]
    assert scores[0] > scores[1]
    limits = Path(f"/proc/{rig.pid}/limits").read_text()
    assert re.search(r"Max core file size\s+0\s+0", limits)


SUPERVISOR = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from adder_bundles import small_bundle
from serving_rig import ServingRig
rig = ServingRig()
rig.serve(small_bundle(Path({folder!r})))
print(rig.pid, flush=True)
time.sleep(120)
"""


def test_a_worker_dies_with_its_supervisor(tmp_path: Path):
    code = SUPERVISOR.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "b"))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        worker = int(supervisor.stdout.readline())
        supervisor.kill()
        supervisor.wait(WITHIN_S)
    wait_for(lambda: not Path(f"/proc/{worker}").exists(), "the worker stays")
