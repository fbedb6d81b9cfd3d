"""The broker is killed while it alone has telemetry that it acknowledged: nothing of it is lost, nor counted twice."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from adder_bundles import MODEL, small_bundle
from fake_fleet import DEVICE, FLEET, WITHIN_S, Agent, FakeFleet, wait_for
from served_fleet import needs_mosquitto

from edgeops.agent.backlog import count_waiting
from edgeops.client.inference import InferenceClient
from edgeops.contracts.deployment import DeploymentState
from edgeops.contracts.telemetry import Telemetry
from edgeops.contracts.topics import unit_topic
from edgeops.control.broker.mosquitto import worker_identity
from edgeops.transport.mqtt import Message, MqttLink, TlsFiles
from edgeops.trust import reported as statements
from edgeops.trust.device import DeviceIdentity

pytestmark = [
    pytest.mark.timeout(600),
    needs_mosquitto,
]
WEAKENED = Path(__file__).parent / "weakened"
ROUNDS = 1


def asked_and_told(folder: Path, patience_s: float, *, forgets: bool = False) -> tuple[int, int]:
    """Return how many requests the model answered, and how many of them the fleet heard of within a while."""
    fleet = FakeFleet(folder / "fleet")
    agent = Agent(fleet, folder / "device", "--telemetry-window-s", "1").start()
    try:
        fleet.desire(fleet.publish(small_bundle(folder / "bundle", add=1.0), "1.0.0", 1))
        fleet.wait_state(DeploymentState.CONFIRMED)
        facts = agent.facts()
        assert facts is not None
        assert fleet.broker is not None
        asked = 0
        # Nobody takes it from the broker, which saves its queues every half minute.
        fleet._link.stop()
        # That there is somebody who will take it is on its disk, as it is for a control plane of old.
        os.kill(fleet.broker.child.pid or 0, signal.SIGUSR1)
        with beside(fleet) as heard, InferenceClient(facts["endpoints"][MODEL]) as client:
            for _ in range(ROUNDS):
                client.infer(MODEL, {"x": np.zeros((1, 4), np.float32)})
                asked += 1
            wait_for(lambda: told_in(heard) == asked, "the broker does not get it")
            # Who forgets what was acknowledged has done so once nothing is left to tell.
            if forgets:
                wait_for(lambda: not count_waiting(agent.state / "queue"), "the agent keeps it")
        died = fleet.broker.child.pid
        assert died is not None
        os.kill(died, signal.SIGKILL)
        wait_for(lambda: fleet.broker and fleet.broker.child.pid not in (None, died), "no new broker")
        fleet._link = fleet.control_link()
        told = told_so_far(fleet)
        deadline_s = time.monotonic() + patience_s
        while told < asked and time.monotonic() < deadline_s:
            time.sleep(0.2)
            told = told_so_far(fleet)
        return asked, told
    finally:
        agent.stop()
        fleet.stop()


@contextlib.contextmanager
def beside(fleet: FakeFleet) -> Iterator[list[Telemetry]]:
    """What comes to the broker meanwhile, as another process of the control plane hears it; nothing is kept for it."""
    assert fleet.broker is not None
    folder = fleet.home.parent / "beside"
    folder.mkdir()
    identity = worker_identity("edgeops-control", "ingest", 1)
    parts = (fleet.authority.ca_pem, *fleet.authority.issue_client(identity))
    files = TlsFiles(*(folder / name for name in ("ca.pem", "client.pem", "client.key")))
    for file, data in zip(files, parts, strict=True):
        file.write_bytes(data)
    heard: list[Telemetry] = []
    key = DeviceIdentity.public_key_from_certificate(fleet.certificates[DEVICE])

    def hear(message: Message) -> None:
        heard.extend(statements.verify_telemetry(message.payload, key=key, fleet=FLEET, connection=DEVICE, unit="self"))

    topic = unit_topic(FLEET, DEVICE, "self", "telemetry")
    link = MqttLink(
        fleet.broker.address, identity, on_message=hear, subscriptions=[topic], tls=files, session_expiry_s=0
    )
    link.start()
    assert link.wait_connected(WITHIN_S)
    yield heard
    link.stop()


def told_so_far(fleet: FakeFleet) -> int:
    return told_in(fleet.telemetry)


def told_in(telemetry: list[Telemetry]) -> int:
    """Each window once, as the registry counts them."""
    windows = {(window.boot_id, window.seq): window for window in telemetry}
    return sum(model.requests for window in windows.values() for model in window.models)


def test_what_the_broker_had_acknowledged_is_told_again_after_its_death(tmp_path: Path) -> None:
    asked, told = asked_and_told(tmp_path, 60)
    assert (asked, told) == (ROUNDS, ROUNDS)


def test_without_keeping_it_telemetry_would_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    monkeypatch.setenv("PYTHONPATH", str(WEAKENED))
    monkeypatch.setenv("EDGEOPS_TEST_WITHOUT", "acknowledged_windows")
    asked, told = asked_and_told(tmp_path, 6, forgets=True)
    assert told < asked
