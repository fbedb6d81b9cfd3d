"""A bundle that passes its self-test and then misbehaves in its trial: the device returns by itself to the old one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from adder_bundles import MODEL, small_bundle
from fake_fleet import Agent, FakeFleet, wait_for

from edgeops.client.inference import InferenceClient
from edgeops.contracts.deployment import DeploymentState
from edgeops.contracts.errors import EdgeopsError

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FakeFleet]:
    fleet = FakeFleet(tmp_path / "fleet")
    yield fleet
    fleet.stop()


@pytest.fixture
def agent(fleet: FakeFleet, tmp_path: Path) -> Iterator[Agent]:
    """A device that serves 1.1.0, whose trials last until they are disturbed, also on a busy machine."""
    agent = Agent(fleet, tmp_path / "device").start()
    fleet.desire(fleet.publish(small_bundle(tmp_path / "good", add=1.0), "1.1.0", 1))
    fleet.wait_state(DeploymentState.CONFIRMED)
    agent.stop()
    agent.options = ("--confirm-after-s", "60")
    yield agent.start()
    agent.stop()


def workers(agent: Agent) -> list[int]:
    assert agent.process is not None
    listed = subprocess.run(["pgrep", "-P", str(agent.process.pid)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def test_a_worker_that_crashes_again_and_again_in_its_trial_rolls_back(fleet: FakeFleet, agent: Agent, tmp_path: Path):
    fleet.desire(fleet.publish(small_bundle(tmp_path / "new", add=2.0), "1.2.0", 2))
    fleet.wait_state(DeploymentState.TRIAL)
    wait_for(lambda: agent.added() == 2, "the new bundle does not serve")
    while (report := fleet.component()) is not None and report.state is DeploymentState.TRIAL:
        for pid in workers(agent):
            with contextlib.suppress(ProcessLookupError):  # it may be gone by itself
                os.kill(pid, signal.SIGKILL)
        fleet_state = fleet.component()
        assert fleet_state is not None
        wait_for(lambda: workers(agent) or fleet.component().state is not DeploymentState.TRIAL, "no worker")  # type: ignore[union-attr]
    report = fleet.wait_state(DeploymentState.FAILED)
    assert report.failure is not None
    assert report.failure.code == "E-TRIAL"
    assert "SIGKILL" in report.failure.what
    assert report.active is not None
    assert report.active.release == "1.1.0"
    assert agent.added() == 1


@pytest.mark.full
def test_a_worker_that_hangs_again_and_again_in_its_trial_rolls_back(fleet: FakeFleet, agent: Agent, tmp_path: Path):
    """It keeps its socket and says nothing: each that owes a sign of life is ended, and the third ends the trial."""
    agent.stop()
    # How long signs of life are waited for is cut short for the test alone.
    prelude = "from edgeops.agent import serving; serving.PROBE_WITHIN_S = 1.5; serving.LOAD_WITHIN_S = 5.0"
    code = f"import sys; {prelude}; import edgeops.cli.agent as cli; cli.command(sys.argv[1:])"
    command = [sys.executable, "-c", code, "run", "--state", str(agent.state), "--confirm-after-s", "30"]
    agent.process = subprocess.Popen(command)
    wait_for(lambda: agent.facts() and agent.facts()["endpoints"], "nothing serves")  # type: ignore[index]
    fleet.desire(fleet.publish(small_bundle(tmp_path / "new", add=2.0), "1.2.0", 2))
    fleet.wait_state(DeploymentState.TRIAL)
    wait_for(lambda: agent.added() == 2, "the new bundle does not serve")
    while (report := fleet.component()) is not None and report.state is DeploymentState.TRIAL:
        for pid in workers(agent):
            with contextlib.suppress(ProcessLookupError):  # it may be gone by itself
                os.kill(pid, signal.SIGSTOP)
        time.sleep(0.05)
    report = fleet.wait_state(DeploymentState.FAILED)
    assert report.failure is not None
    assert report.failure.code == "E-TRIAL"
    assert agent.added() == 1


def test_a_bundle_that_answers_nan_in_its_trial_rolls_back(fleet: FakeFleet, agent: Agent, tmp_path: Path):
    """Its golden vectors are fine; live input makes it divide by zero, again and again."""
    fleet.desire(fleet.publish(small_bundle(tmp_path / "new", add=2.0, divide=True), "1.2.0", 2))
    fleet.wait_state(DeploymentState.TRIAL)
    wait_for(lambda: agent.added() == 2, "the new bundle does not serve")
    facts = agent.facts()
    assert facts is not None
    zero = np.zeros((1, 4), np.float32)
    with InferenceClient(facts["endpoints"][MODEL]) as client:
        for _ in range(20):
            with contextlib.suppress(EdgeopsError):
                client.infer(MODEL, {"x": zero})
    report = fleet.wait_state(DeploymentState.FAILED)
    assert report.failure is not None
    assert report.failure.code == "E-TRIAL"
    assert agent.added() == 1


def test_a_newer_generation_supersedes_a_trial(fleet: FakeFleet, agent: Agent, tmp_path: Path):
    fleet.desire(fleet.publish(small_bundle(tmp_path / "new", add=2.0), "1.2.0", 2))
    fleet.wait_state(DeploymentState.TRIAL)
    fleet.desire(fleet.publish(small_bundle(tmp_path / "newer", add=3.0), "1.3.0", 3))
    fleet.wait_state(DeploymentState.TRIAL)
    # Its own trial goes on after a start, and need not last.
    agent.stop()
    agent.options = ("--confirm-after-s", "0.5")
    agent.start()
    report = fleet.wait_state(DeploymentState.CONFIRMED)
    assert report.active is not None
    assert (report.active.release, agent.added()) == ("1.3.0", 3)
    assert report.fallback is not None
    assert report.fallback.release == "1.1.0"


@pytest.mark.full
def test_a_trial_that_the_power_cuts_short_goes_on_and_is_given_up_after_its_budget(
    fleet: FakeFleet, agent: Agent, tmp_path: Path
):
    """One cut costs nothing; a bundle whose every trial ends with the agent is left for the old one."""
    fleet.desire(fleet.publish(small_bundle(tmp_path / "new", add=2.0), "1.2.0", 2))
    for _ in range(3):
        fleet.wait_state(DeploymentState.TRIAL)
        agent.kill()
        boot = fleet.reports[-1].boot_id
        agent.start()
        wait_for(lambda boot=boot: fleet.reports[-1].boot_id != boot, "the device did not come back")
    report = fleet.wait_state(DeploymentState.FAILED)
    assert report.failure is not None
    assert report.failure.code == "E-TRIAL"
    assert agent.added() == 1
