"""A candidate beside what serves: it answers nobody, costs what it may, is compared, and serves without a download."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from adder_bundles import small_bundle
from fake_fleet import MODEL, Agent, FakeFleet, wait_for
from hypothesis import given
from hypothesis import strategies as st

from edgeops.agent.worker.shadow import ShadowBook, compare, pause_s
from edgeops.client.inference import InferenceClient
from edgeops.contracts.bundle import OutputInfo
from edgeops.contracts.deployment import Component, DeploymentState, Shadowing
from edgeops.contracts.telemetry import ModelWindow, ShadowFigures
from edgeops.releases.bundles import Bundle

X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FakeFleet]:
    fleet = FakeFleet(tmp_path / "fleet")
    yield fleet
    fleet.stop()


@pytest.fixture
def agent(fleet: FakeFleet, tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(fleet, tmp_path / "device", "--telemetry-window-s", "1").start()
    yield agent
    agent.stop()


@pytest.fixture
def first(fleet: FakeFleet, agent: Agent, tmp_path: Path) -> Component:
    """What serves: it adds 1."""
    component = fleet.publish(small_bundle(tmp_path / "first", add=1.0), "1.0.0", 1)
    fleet.desire(component)
    fleet.wait_state(DeploymentState.CONFIRMED)
    return component


def shadowing(component: Component, share: float = 1.0, cpu: float = 1.0) -> Component:
    return msgspec.structs.replace(component, shadow=Shadowing(share=share, cpu=cpu))


def ask(agent: Agent, times: int) -> None:
    facts = agent.facts()
    assert facts is not None
    with InferenceClient(facts["endpoints"][MODEL]) as client:
        for _ in range(times):
            np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 1)
            time.sleep(0.005)


def told(fleet: FakeFleet, release: str) -> ShadowFigures:
    """What the device said of a shadow so far."""
    windows = {(one.boot_id, one.seq): one for one in fleet.telemetry}
    found = ShadowFigures(compared=0, agreed=0)
    for window in windows.values():
        for model in window.models:
            if model.release == release and model.shadow is not None:
                assert model.requests == 0
                found = found.merge(model.shadow)
    return found


def test_a_shadow_answers_nobody_is_compared_and_serves_without_a_download(
    fleet: FakeFleet, agent: Agent, first: Component, tmp_path: Path
) -> None:
    same = fleet.publish(small_bundle(tmp_path / "same", add=1.01), "1.1.0", 2)
    fleet.desire(shadowing(same))
    report = fleet.wait_state(DeploymentState.SHADOW)
    assert report.active is not None
    assert report.active.release == "1.0.0"
    ask(agent, 40)
    wait_for(lambda: told(fleet, "1.1.0").compared + told(fleet, "1.1.0").skipped >= 40, "it saw too little")
    figures = told(fleet, "1.1.0")
    assert figures.agreed == figures.compared > 0
    assert 0 < figures.distance.maximum < 0.01
    assert figures.latency_ms.count == figures.compared
    assert figures.compared + figures.skipped == 40
    fleet.stop_artifacts()
    fleet.desire(same)
    fleet.wait_state(DeploymentState.CONFIRMED)
    assert agent.added() == pytest.approx(1.01)


def test_a_shadow_that_answers_otherwise_says_so_and_goes(
    fleet: FakeFleet, agent: Agent, first: Component, tmp_path: Path
) -> None:
    other = fleet.publish(small_bundle(tmp_path / "other", add=9.0), "1.1.0", 2)
    fleet.desire(shadowing(other, share=0.5))
    fleet.wait_state(DeploymentState.SHADOW)
    ask(agent, 60)
    wait_for(lambda: told(fleet, "1.1.0").compared >= 5, "it saw too little")
    time.sleep(2.5)
    figures = told(fleet, "1.1.0")
    assert figures.agreed == 0
    assert figures.distance.maximum > 0.1
    assert figures.compared + figures.skipped < 60, "only half of the requests are drawn"
    fleet.desire(msgspec.structs.replace(first, allow_downgrade=True))
    fleet.wait_state(DeploymentState.CONFIRMED)
    ask(agent, 1)


def test_a_shadow_outlives_the_worker_that_serves_and_the_agent(
    fleet: FakeFleet, agent: Agent, first: Component, tmp_path: Path
) -> None:
    same = fleet.publish(small_bundle(tmp_path / "same", add=1.01), "1.1.0", 2)
    fleet.desire(shadowing(same))
    fleet.wait_state(DeploymentState.SHADOW)
    workers = worker_pids(agent)
    os.kill(workers[0], signal.SIGKILL)  # the older one serves
    wait_for(lambda: len(set(worker_pids(agent)) - set(workers)) == 1 and serves(agent), "nothing serves again")
    before = 0

    def compared_more() -> bool:
        # The two are connected a moment after the new one serves.
        ask(agent, 5)
        return told(fleet, "1.1.0").compared > before

    wait_for(compared_more, "the shadow does not see what the new worker serves")
    agent.stop()
    before = told(fleet, "1.1.0").compared
    agent.start()
    wait_for(lambda: serves(agent), "nothing serves after the start")
    wait_for(compared_more, "it is no shadow after the start")
    fleet.wait_state(DeploymentState.SHADOW)


def test_a_shadow_that_dies_ends_alone(fleet: FakeFleet, agent: Agent, first: Component, tmp_path: Path) -> None:
    same = fleet.publish(small_bundle(tmp_path / "same", add=1.01), "1.1.0", 2)
    fleet.desire(shadowing(same))
    fleet.wait_state(DeploymentState.SHADOW)
    os.kill(worker_pids(agent)[-1], signal.SIGKILL)
    ask(agent, 20)
    report = fleet.wait_state(DeploymentState.FAILED)
    assert report.failure is not None
    assert report.failure.code == "E-AGENT-WORKER"
    ask(agent, 5)


def test_a_shadow_takes_no_more_of_a_processor_than_it_may(fleet: FakeFleet, agent: Agent, tmp_path: Path) -> None:
    """4 KiB × 20,000 written per inference: it costs milliseconds. Its control is the pace's own, below: how much it
    would take without a budget depends on who else works on the machine."""
    fleet.desire(fleet.publish(small_bundle(tmp_path / "a", hungry=True, largest=9.0), "1.0.0", 1))
    fleet.wait_state(DeploymentState.CONFIRMED)
    same = fleet.publish(small_bundle(tmp_path / "b", hungry=True, largest=10.0), "1.1.0", 2)
    fleet.desire(shadowing(same, cpu=0.05))
    fleet.wait_state(DeploymentState.SHADOW)
    shadow = psutil.Process(worker_pids(agent)[-1])
    facts = agent.facts()
    assert facts is not None
    begun_s, cpu_s = time.monotonic(), sum(shadow.cpu_times()[:2])

    def spent() -> float:
        return (sum(shadow.cpu_times()[:2]) - cpu_s) / (time.monotonic() - begun_s)

    with InferenceClient(facts["endpoints"][MODEL]) as client:
        # What one sample costs here weighs the less the longer it is looked at.
        while time.monotonic() < begun_s + 4 or (spent() >= 2 * 0.05 and time.monotonic() < begun_s + 60):
            client.infer(MODEL, {"x": np.full((1, 4), 20_000, np.float32)})
    assert spent() < 2 * 0.05
    wait_for(lambda: told(fleet, "1.1.0").compared > 0, "it saw nothing")


@given(spent=st.floats(0, 10), wait=st.floats(0, 10), cpu=st.floats(0.01, 1))
def test_the_pace_of_a_shadow_keeps_its_budget(spent: float, wait: float, cpu: float) -> None:
    """Whatever a sample costs, and however long it waited for a processor meanwhile."""
    took = spent + wait
    pause = pause_s(spent, took, cpu)
    assert spent <= cpu * (took + pause) * (1 + 1e-9)
    # Control: without the budget there is no pause, and what is spent is all of the time that is not waited.
    assert pause_s(spent, took, 1.0) == 0.0


def worker_pids(agent: Agent) -> list[int]:
    """The oldest first; numbers begin again from the lowest now and then."""
    assert agent.process is not None
    found = []
    for child in psutil.Process(agent.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            words = child.cmdline()
            if "edgeops.agent.worker" in words and "capabilities" not in words:
                found.append((child.create_time(), child.pid))
    return [pid for _, pid in sorted(found)]


def serves(agent: Agent) -> bool:
    facts = agent.facts()
    if not facts or not facts["endpoints"]:
        return False
    with InferenceClient(facts["endpoints"][MODEL], timeout_s=2.0) as client:
        return client.ready()


# The comparison alone


def classed(bundle: Bundle) -> Any:
    """The bundle's manifest as if its output were probabilities of four classes."""
    (info,) = bundle.manifest.outputs
    outputs = (OutputInfo(tensor=info.tensor, kind="probabilities", labels=("a", "b", "c", "d")),)
    return msgspec.structs.replace(bundle.manifest, outputs=outputs)


@pytest.mark.parametrize(
    ("served", "answer", "agree", "distance"),
    [
        ([0.1, 0.2, 0.6, 0.1], [0.2, 0.2, 0.5, 0.1], True, 0.218),
        ([0.1, 0.4, 0.3, 0.2], [0.1, 0.3, 0.4, 0.2], False, 0.258),
        ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], True, 0.0),
        ([1.0, 0.0, 0.0, 0.0], [np.nan, 0.0, 0.0, 0.0], True, 2.0),
    ],
)
def test_classes_agree_where_the_largest_is_the_same(
    bundle: Bundle, served: list[float], answer: list[float], agree: bool, distance: float
) -> None:
    found = compare(classed(bundle), {"y": np.array([served])}, {"y": np.array([answer])})
    assert found.agree is agree
    assert found.distance == pytest.approx(distance, abs=1e-3)


def test_values_agree_where_they_are_near(bundle: Bundle) -> None:
    def near(answer: list[float]) -> bool:
        return compare(bundle.manifest, {"y": X}, {"y": np.array([answer], np.float32)}).agree

    assert near([1.0, 2.0, 3.0, 4.3])
    assert not near([1.0, 2.0, 3.0, 5.0])
    other_shape = {"y": np.zeros((2, 2), np.float32)}
    assert not compare(bundle.manifest, {"y": X}, other_shape).agree
    assert not compare(bundle.manifest, {}, {"y": X}).agree


def test_sums_of_a_shadow_merge_exactly(bundle: Bundle) -> None:
    def window(pairs: list[tuple[float, float]]) -> ModelWindow:
        book = ShadowBook(bundle.manifest, "1.1.0", bundle.digest)
        for served, answer in pairs:
            book.compared({"y": np.full((1, 4), served)}, {"y": np.full((1, 4), answer)}, 1.0 + answer)
        book.failed("E-RUNTIME-RUN")
        book.skipped += 2
        taken = book.take()
        assert taken is not None
        assert book.take() is None
        return taken

    pairs = [(1.0, 1.0), (1.0, 1.05), (1.0, 3.0), (2.0, 2.0)]
    one, other, whole = window(pairs[:2]).shadow, window(pairs[2:]).shadow, window(pairs).shadow
    assert one is not None
    assert other is not None
    assert whole is not None
    assert one.merge(other) == msgspec.structs.replace(whole, compared=6, skipped=4, errors={"E-RUNTIME-RUN": 2})
    assert (whole.compared, whole.agreed) == (5, 3)
