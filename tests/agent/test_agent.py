"""The whole agent as a process, with real broker, repository and workers: it updates, refuses, and goes on serving."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from adder_bundles import MODEL, small_bundle
from fake_fleet import DEVICE, Agent, FakeFleet, wait_for

from edgeops.agent.backlog import count_waiting
from edgeops.client.inference import InferenceClient
from edgeops.contracts.deployment import Component, ComponentKind, DeploymentState
from edgeops.trust import keys

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FakeFleet]:
    fleet = FakeFleet(tmp_path / "fleet")
    yield fleet
    fleet.stop()


@pytest.fixture
def agent(fleet: FakeFleet, tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(fleet, tmp_path / "device").start()
    yield agent
    agent.stop()


@pytest.fixture
def release(fleet: FakeFleet, tmp_path: Path) -> Any:
    """Publish a bundle that adds a number; its release number is that number too."""

    def publish(add: int, **changes: Any) -> Component:
        number = changes.pop("number", add)
        bundle = small_bundle(tmp_path / f"bundle-{add}-{number}", add=float(add), **changes)
        return fleet.publish(bundle, f"1.{number}.0", number)

    return publish


def test_an_agent_updates_refuses_and_restarts_without_losing_what_it_served(
    fleet: FakeFleet, agent: Agent, release: Any
):
    first, second, lying = release(1), release(2), release(3, lie=0.5)
    fleet.desire(first)
    report = fleet.wait_state(DeploymentState.CONFIRMED)
    assert report.active is not None
    assert (report.active.release, report.active.number, report.fallback) == ("1.1.0", 1, None)
    assert report.self_test is not None
    assert report.self_test.vectors == 3
    assert agent.added() == 1

    fleet.desire(second)
    report = fleet.wait_state(DeploymentState.CONFIRMED)
    assert report.fallback is not None
    assert (agent.added(), report.fallback.release) == (2, "1.1.0")

    fleet.desire(lying)
    report = fleet.wait_state(DeploymentState.FAILED)
    assert report.failure is not None
    assert (report.failure.code, report.failure.release) == ("E-SELFTEST-GOLDEN", "1.3.0")
    assert report.active is not None
    assert (agent.added(), report.active.release) == (2, "1.2.0")

    steps = [step for step in fleet.progress if step.generation == 2 and step.percent is None]
    assert [str(step.state) for step in steps] == ["downloading", "staged", "self-test", "trial", "confirmed"]
    assert [step.step for step in steps] == sorted({step.step for step in steps})

    # Killed, and started with neither broker nor server: it serves at once.
    endpoint = agent.facts()
    agent.kill()
    fleet.stop_broker()
    fleet.stop_artifacts()
    agent.start()
    wait_for(lambda: agent.facts(), "no facts")
    assert agent.added() == 2
    assert endpoint is not None
    assert agent.facts()["endpoints"] == endpoint["endpoints"]  # type: ignore[index]
    # What failed is not tried again in the same generation.
    time.sleep(0.5)
    assert agent.added() == 2
    # Both come back: so does the device, without being told.
    boot = fleet.reports[-1].boot_id
    fleet.start_artifacts()
    fleet.start_broker()
    wait_for(lambda: fleet.reports[-1].boot_id != boot, "the device did not come back")
    assert fleet.reports[-1].observed_generation == 3


def test_a_signed_downgrade_returns_without_a_download(fleet: FakeFleet, agent: Agent, release: Any):
    first, second = release(1), release(2)
    fleet.desire(first)
    fleet.wait_state(DeploymentState.CONFIRMED)
    fleet.desire(second)
    fleet.wait_state(DeploymentState.CONFIRMED)
    fleet.desire(first)
    report = fleet.wait_state(DeploymentState.REJECTED)
    assert report.failure is not None
    assert report.failure.code == "E-TRUST-DOWNGRADE"
    assert agent.added() == 2
    downloads = [path for path in fleet.requests if "targets/" in path]
    fleet.desire(msgspec.structs.replace(first, allow_downgrade=True))
    fleet.wait_state(DeploymentState.CONFIRMED)
    assert agent.added() == 1
    assert [path for path in fleet.requests if "targets/" in path] == downloads


def bundle_path(fleet: FakeFleet, component: Component) -> str:
    target = fleet.publisher.targets()[component.target]
    folder, _, name = component.target.rpartition("/")
    return f"/targets/{folder}/{target.sha256}.{name}"


def test_whatever_is_wrong_with_an_update_is_said_and_the_device_goes_on(
    fleet: FakeFleet, agent: Agent, release: Any, tmp_path: Path
):
    """Damaged, for another profile, not what was signed, not released, not a model, forged, expired, replayed."""
    good = release(1)
    fleet.desire(good)
    fleet.wait_state(DeploymentState.CONFIRMED)

    def rejected(component: Component, name: str = MODEL) -> str:
        fleet.desire(component)
        report = fleet.wait_state(DeploymentState.REJECTED, name=name)
        assert report.failure is not None
        assert agent.added() == 1
        return report.failure.code

    damaged = release(2)
    path = bundle_path(fleet, damaged)
    content = bytearray((fleet.home / "repository" / path.lstrip("/")).read_bytes())
    content[len(content) // 2] ^= 1
    fleet.changed_paths[path] = bytes(content)
    assert rejected(damaged) == "E-TRUST-TARGET"

    elsewhere = small_bundle(tmp_path / "elsewhere", add=4.0, profile="intel-nuc")
    assert rejected(fleet.publish(elsewhere, "1.4.0", 4, profile="intel-nuc")) == "E-BUNDLE-PROFILE"

    third = release(5)
    other_digest = Component(
        name=MODEL, kind=ComponentKind.MODEL, release="1.5.0", target=third.target, digest="sha256:" + "0" * 64
    )
    assert rejected(other_digest) == "E-TRUST-TARGET"
    unknown = Component(
        name=MODEL, kind=ComponentKind.MODEL, release="9.9.9", target="adder/9.9.9/x.edgeops", digest="sha256:9"
    )
    assert rejected(unknown) == "E-TRUST-TARGET"

    firmware = Component(name="mcu", kind=ComponentKind.FIRMWARE, release="1.0.0", target="t", digest="sha256:1")
    fleet.desire(good, firmware)
    report = fleet.wait_state(DeploymentState.REJECTED, name="mcu")
    assert report.failure is not None
    assert report.failure.code == "E-DESIRED-UNSUPPORTED"
    assert fleet.wait_state(DeploymentState.CONFIRMED).active is not None

    generation = fleet.generation
    bad = {
        "E-TRUST-SIGNATURE": fleet.envelope(third, generation=generation + 1, signer=keys.generate()),
        "E-TRUST-EXPIRED": fleet.envelope(third, generation=generation + 1, issued_at_s=1.0, expires_at_s=2.0),
        "E-TRUST-REPLAY": fleet.envelope(third, generation=generation - 1),
        "E-TRUST-DEVICE": fleet.envelope(third, generation=generation + 1, connection="another"),
        "E-WIRE-MALFORMED": b"{}",
    }
    for code, envelope in bad.items():
        fleet.send(envelope)
        refused = fleet.wait_refused(code)
        assert refused.observed_generation == generation
        assert agent.added() == 1

    fleet.changed_paths.clear()
    fleet.desire(third)
    fleet.wait_state(DeploymentState.CONFIRMED)
    assert agent.added() == 5
    assert fleet.reports[-1].refused is None


def test_a_full_disk_rejects_and_keeps_serving(fleet: FakeFleet, tmp_path: Path, release: Any):
    """The reserve is larger than any disk: the preflight says no before the first byte."""
    code = (
        "import sys; from edgeops.agent import settings, supervisor; import edgeops.cli.agent as cli;"
        "settings.Settings.__new__.__defaults__ = tuple(settings.Settings()._replace(reserve_mib=1 << 40));"
        "cli.command(sys.argv[1:])"
    )
    agent = Agent(fleet, tmp_path / "device")
    first, second = release(1), release(2)
    agent.start()
    fleet.desire(first)
    fleet.wait_state(DeploymentState.CONFIRMED)
    agent.stop()
    command = [sys.executable, "-c", code, "run", "--state", str(agent.state)]
    with subprocess.Popen(command) as process:
        agent.process = process
        try:
            fleet.desire(second)
            report = fleet.wait_state(DeploymentState.REJECTED)
            assert report.failure is not None
            assert report.failure.code == "E-DISK-FULL"
            assert agent.added() == 1
            assert not [path for path in fleet.requests if "1.2.0" in path and "targets/" in path]
        finally:
            agent.stop()


def test_an_unreachable_server_holds_the_deployment_until_it_is_back(fleet: FakeFleet, agent: Agent, release: Any):
    first = release(1)
    fleet.stop_artifacts()
    fleet.desire(first)

    def waits() -> bool:
        """Refused where the agent has no metadata yet, held where it has asked for that at its start."""
        refused = [report.refused.code for report in fleet.reports[-1:] if report.refused]
        component = fleet.component()
        codes = [*refused, (component and component.held_reason) or ""]
        return any(code.startswith("E-NET-UNREACHABLE") for code in codes)

    wait_for(waits, "nothing waits for the server")
    fleet.start_artifacts()
    fleet.wait_state(DeploymentState.CONFIRMED)
    second = release(2)
    fleet.stop_artifacts()
    fleet.desire(second)
    report = fleet.wait_state(DeploymentState.HELD)
    assert report.held_reason is not None
    assert report.held_reason.startswith("E-NET-UNREACHABLE")
    assert agent.added() == 1
    fleet.start_artifacts()
    fleet.wait_state(DeploymentState.CONFIRMED)
    assert agent.added() == 2


def test_a_damaged_active_bundle_falls_back_and_is_fetched_again(fleet: FakeFleet, agent: Agent, release: Any):
    first, second = release(1), release(2)
    for component in (first, second):
        fleet.desire(component)
        fleet.wait_state(DeploymentState.CONFIRMED)
    agent.stop()
    slots = agent.state / "components" / MODEL / "slots"
    active = json.loads((slots / "active").read_text())["slot"]
    (slots / active / "bundle" / "model.onnx").write_bytes(b"rotten")
    fleet.stop_artifacts()
    agent.start()
    wait_for(lambda: agent.facts()["endpoints"] and agent.added() == 1, "the older bundle does not serve")  # type: ignore[index]
    fleet.start_artifacts()
    wait_for(lambda: agent.added() == 2, "the lost bundle was not fetched again")


def test_telemetry_and_presence_arrive_and_survive_a_broker_that_is_away(
    fleet: FakeFleet, tmp_path: Path, release: Any
):
    agent = Agent(fleet, tmp_path / "device", "--telemetry-window-s", "1").start()
    try:
        fleet.desire(release(1))
        fleet.wait_state(DeploymentState.CONFIRMED)
        fleet.stop_broker()
        x = np.array([[1, 2, 3, 4]], np.float32)
        facts = agent.facts()
        assert facts is not None
        with InferenceClient(facts["endpoints"][MODEL]) as client:
            for _ in range(25):
                client.infer(MODEL, {"x": x})
        wait_for(lambda: count_waiting(agent.state / "queue"), "nothing was kept")
        fleet.start_broker()
        wait_for(lambda: sum(w.requests for t in fleet.telemetry for w in t.models) == 25, "windows are missing")
        windows = [window for message in fleet.telemetry for window in message.models]
        assert sum(window.latency_ms.count for window in windows) == 25
        assert {window.release for window in windows} == {"1.1.0"}
        assert len({(message.boot_id, message.seq) for message in fleet.telemetry}) == len(fleet.telemetry)
    finally:
        agent.stop()


def test_what_was_answered_just_before_a_stop_is_told_after_the_next_start(
    fleet: FakeFleet, agent: Agent, release: Any
):
    """Workers say every two seconds what they counted, and once more when they end."""
    fleet.desire(release(1))
    fleet.wait_state(DeploymentState.CONFIRMED)
    told = len(fleet.telemetry)
    for _ in range(3):
        for _ in range(5):
            agent.added()
        agent.stop()
        agent.start()
        wait_for(lambda: agent.facts() and agent.facts()["endpoints"], "nothing serves")  # type: ignore[index]

    def count() -> int:
        windows = {(message.boot_id, message.seq): message for message in fleet.telemetry[told:]}
        return sum(model.requests for message in windows.values() for model in message.models)

    wait_for(lambda: count() == 15, "requests are missing")


def test_a_component_that_is_no_longer_desired_goes_and_others_stay(
    fleet: FakeFleet, agent: Agent, release: Any, tmp_path: Path
):
    first = release(1)
    other = fleet.publish(small_bundle(tmp_path / "other", add=7.0, model="other"), "1.0.0", 1)
    fleet.desire(first, other)
    fleet.wait_state(DeploymentState.CONFIRMED)
    fleet.wait_state(DeploymentState.CONFIRMED, name="other")
    assert (agent.added(), agent.added("other")) == (1, 7)
    fleet.desire(first)
    wait_for(lambda: list(agent.facts()["endpoints"]) == [MODEL], "it still serves")  # type: ignore[index]
    assert agent.added() == 1


def test_stop_is_clean_and_status_reads_the_disk_alone(fleet: FakeFleet, agent: Agent, release: Any):
    fleet.desire(release(1))
    fleet.wait_state(DeploymentState.CONFIRMED)
    command = [sys.executable, "-m", "edgeops", "agent", "status", "--json", "--state", str(agent.state)]
    status = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    assert status["running"] is True
    second = subprocess.run(
        [sys.executable, "-m", "edgeops", "agent", "run", "--state", str(agent.state)], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert second.returncode == 2
    assert "E-STATE-LOCKED" in second.stderr
    assert agent.process is not None
    agent.process.send_signal(signal.SIGTERM)
    assert agent.stop() == 0
    status = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    assert (status["running"], status["connection"]) == (False, DEVICE)
    (component,) = status["components"]
    assert (component["state"], component["active"], component["endpoint"]) == ("confirmed", "1.1.0", None)
    assert not (agent.state / "agent.json").exists()


def test_an_agent_without_workers_stops_without_waiting_for_its_limit(agent: Agent):
    """Nothing was ever deployed, so there is nothing to wait for: SIGTERM ends it, though workers might have hours."""
    agent.stop()
    code = (
        "import sys; from edgeops.agent import supervisor; supervisor.STOP_WITHIN_S = 36000.0;"
        "import edgeops.cli.agent as cli; cli.command(sys.argv[1:])"
    )
    agent.process = subprocess.Popen([sys.executable, "-c", code, "run", "--state", str(agent.state)])
    wait_for(lambda: agent.facts(), "no facts")
    assert agent.stop() == 0
