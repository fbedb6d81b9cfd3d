"""A bundle that eats memory fails in its own worker: it is refused or rolled back, and what served goes on."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from adder_bundles import MODEL, small_bundle
from fake_fleet import Agent, FakeFleet, wait_for
from hypothesis import given
from hypothesis import strategies as st
from serving_rig import ServingRig, load_of

from edgeops.agent.worker import limits
from edgeops.client.inference import InferenceClient
from edgeops.contracts.deployment import ComponentReport, DeploymentState
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.profile import Budgets
from edgeops.releases.bundles import Bundle

pytestmark = pytest.mark.timeout(600)
WEAKENED = Path(__file__).parent / "weakened"
# Makes the hungry bundle take 768 MiB.
FEAST = np.full((1, 4), 768 * 256, np.float32)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FakeFleet]:
    fleet = FakeFleet(tmp_path / "fleet")
    yield fleet
    fleet.stop()


def started(fleet: FakeFleet, folder: Path, monkeypatch: pytest.MonkeyPatch, *, limited: bool) -> Agent:
    """A device that serves 1.1.0, with trials long enough to be disturbed, also on a busy machine."""
    if not limited:
        monkeypatch.setenv("PYTHONPATH", str(WEAKENED))
        monkeypatch.setenv("EDGEOPS_TEST_WITHOUT", "memory_limit")
    agent = Agent(fleet, folder / "device").start()
    fleet.desire(fleet.publish(small_bundle(folder / "good", add=1.0), "1.1.0", 1))
    fleet.wait_state(DeploymentState.CONFIRMED)
    agent.stop()
    agent.options = ("--confirm-after-s", "60" if limited else "10")
    return agent.start()


def feast_in_trial(fleet: FakeFleet, agent: Agent, folder: Path) -> list[str]:
    """Roll out a bundle that eats memory, and feed it in its trial; return how it answered."""
    hungry = small_bundle(folder / "hungry", add=2.0, hungry=True, budgets=Budgets(peak_memory_mib=256))
    fleet.desire(fleet.publish(hungry, "1.2.0", 2))
    fleet.wait_state(DeploymentState.TRIAL)
    wait_for(lambda: agent.added() == 2, "the new bundle does not serve")
    facts = agent.facts()
    assert facts is not None
    answers = []
    with InferenceClient(facts["endpoints"][MODEL]) as client:
        for _ in range(8):
            try:
                answers.append(f"{client.infer(MODEL, {'x': FEAST})['y'][0, 0] - FEAST[0, 0]:.0f}")
            except EdgeopsError as error:
                answers.append(error.code)
    return answers


def ended(fleet: FakeFleet) -> ComponentReport:
    report: ComponentReport = wait_for(
        lambda: next(
            (
                part
                for part in [fleet.component()]
                if part is not None and part.state in (DeploymentState.FAILED, DeploymentState.CONFIRMED)
            ),
            None,
        ),
        "the trial does not end",
    )
    return report


def test_a_bundle_that_eats_memory_in_its_trial_rolls_back(
    fleet: FakeFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    agent = started(fleet, tmp_path, monkeypatch, limited=True)
    assert agent.process is not None
    supervisor = agent.process.pid
    try:
        answers = feast_in_trial(fleet, agent, tmp_path)
        report = ended(fleet)
        assert report.state is DeploymentState.FAILED
        assert report.failure is not None
        assert report.failure.code == "E-TRIAL"
        assert report.active is not None
        assert report.active.release == "1.1.0"
        assert answers[:5] == ["E-RUNTIME-RUN"] * 5
        assert agent.process.poll() is None
        assert agent.process.pid == supervisor
        assert agent.added() == 1
    finally:
        agent.stop()


def test_without_the_limit_it_would_be_kept(fleet: FakeFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control."""
    agent = started(fleet, tmp_path, monkeypatch, limited=False)
    try:
        answers = feast_in_trial(fleet, agent, tmp_path)
        report = ended(fleet)
        assert answers == ["2"] * 8
        assert (report.state, agent.added()) == (DeploymentState.CONFIRMED, 2)
    finally:
        agent.stop()


@pytest.mark.parametrize(("limited", "code"), [(True, "E-RUNTIME-RUN"), (False, "E-SELFTEST-BUDGET")])
def test_a_bundle_that_eats_memory_in_its_self_test_is_stopped_before_it_has_it(
    rig: ServingRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limited: bool, code: str
):
    """Without the limit it is refused too, but only after it had taken the memory of other programs."""
    if not limited:
        monkeypatch.setenv("PYTHONPATH", str(WEAKENED))
        monkeypatch.setenv("EDGEOPS_TEST_WITHOUT", "memory_limit")
    budgets = Budgets(peak_memory_mib=256)
    hungry = small_bundle(tmp_path / "hungry", hungry=True, largest=float(FEAST[0, 0]), budgets=budgets)
    rig.do(lambda serving: serving.try_out(load_of(hungry, "1.0.0")))
    error: EdgeopsError = rig.expect("test_failed")
    assert error.code == code, error


def test_a_worker_that_comes_to_its_limit_is_started_anew(rig: ServingRig, bundle: Bundle):
    """What a runtime keeps for good ends with its worker: inferences do not starve for ever."""
    rig.serve(bundle)
    first = rig.pid
    lines = Path(f"/proc/{first}/status").read_text().splitlines()
    taken = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))
    limit, hard = resource.prlimit(first, resource.RLIMIT_DATA)
    assert taken < limits.NEARLY_FULL * limit
    # As if it had grown to its limit.
    resource.prlimit(first, resource.RLIMIT_DATA, (int(taken * 1.02), hard))
    assert "of memory" in rig.expect("crashed")
    rig.expect("serves")
    assert rig.pid != first
    assert resource.prlimit(rig.pid, resource.RLIMIT_DATA)[0] == pytest.approx(limit, rel=0.1)


MIB = st.integers(0, 1 << 20)


@given(start=MIB, grown=MIB, budget=st.none() | MIB, ram=MIB)
def test_a_limit_leaves_room_for_what_was_measured_and_allowed_but_for_no_more_than_the_device_has(
    start: int, grown: int, budget: int | None, ram: int
):
    most = start + ram + limits.SLACK_MIB
    serving = limits.while_serving_mib(start, start + grown, budget, ram)
    assert min(most, start + max(grown, budget or 0) + limits.SLACK_MIB) <= serving <= most
    loading = limits.before_loading_mib(start, budget, ram)
    assert min(most, start + (ram if budget is None else budget) + limits.SLACK_MIB) <= loading <= most
