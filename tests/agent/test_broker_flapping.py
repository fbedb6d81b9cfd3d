"""The broker dies again and again while agents tell telemetry and a rollout is under way: nothing is lost or counted
twice, and the rollout ends as it would have."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from adder_bundles import MODEL
from fake_fleet import WITHIN_S, wait_for
from served_fleet import Serving, needs_mosquitto
from sqlalchemy import func, select
from test_sigkill import DEVICES, Device, active, release, serving

from edgeops.client.inference import InferenceClient
from edgeops.client.rollout_resources import RolloutWish
from edgeops.contracts.rollouts import RolloutState
from edgeops.contracts.telemetry import Telemetry
from edgeops.contracts.wire import decode
from edgeops.control.database import Database
from edgeops.control.telemetry_models import TelemetryRollup, TelemetryWindow
from edgeops.transport.mqtt import BACKOFF_MAX_S

__all__ = ["serving"]
DEATHS = 15
pytestmark = [
    needs_mosquitto,
]


class Application:
    """Asks a device's model all the time, and counts what was answered."""

    def __init__(self, device: Device) -> None:
        self._device, self._ended = device, threading.Event()
        self.answered = self.refused = 0
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        facts: dict[str, Any] = json.loads((self._device.state / "agent.json").read_text())
        with InferenceClient(facts["endpoints"][MODEL]) as client:
            while not self._ended.wait(0.05):
                client.infer(MODEL, {"x": np.zeros((1, 4), np.float32)})
                self.answered += 1

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


def broker_of(serving: Serving) -> int | None:
    """The process id of the broker that runs now."""
    for process in psutil.Process(serving.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "mosquitto" and process.status() != psutil.STATUS_ZOMBIE:
                return process.pid
    return None


def flap(serving: Serving, deaths: int) -> None:
    """Kill the broker, or end it as an administrator does, soon after each start."""
    chance = random.Random(deaths)
    died: set[int] = set()
    for number in range(deaths):
        pid = wait_for(lambda: next((p for p in [broker_of(serving)] if p and p not in died), None), "no new broker")
        # Sometimes before anybody is connected again, sometimes in the middle of what they have to say.
        time.sleep(chance.uniform(0.1, 1.2))
        os.kill(pid, (signal.SIGKILL, signal.SIGTERM)[number % 2])
        died.add(pid)
    assert len(died) == deaths


def told(database: Database) -> tuple[int, int]:
    """Requests in the windows that were taken in, and in the sums over them."""
    with database.read() as session:
        windows = [decode(data, Telemetry, what="window") for data in session.scalars(select(TelemetryWindow.payload))]
        summed = session.scalar(select(func.sum(TelemetryRollup.requests)))
    return sum(model.requests for window in windows for model in window.models), summed or 0


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_flapping_broker_loses_and_doubles_nothing_and_the_rollout_ends(
    serving: Serving, tmp_path: Path, proof: Callable[[str], None]
) -> None:
    devices = [Device(serving, tmp_path, name, "--telemetry-window-s", "1") for name in DEVICES]
    for device in devices:
        device.start()
    applications: list[Application] = []
    database = Database(serving.home / "control.sqlite")
    try:
        wait_for(lambda: len(list(serving.api.devices())) == len(DEVICES), "the devices do not join")
        first = RolloutWish(model=MODEL, version=release(serving, tmp_path, 1), start=True)
        rollout = serving.api.create_rollout(first).id
        wait_for(lambda: serving.api.rollout(rollout).state == RolloutState.SUCCEEDED, "1.1.0 did not arrive")
        applications += [Application(device) for device in devices]
        wait_for(lambda: told(database)[0], "no window is told")
        before = cpu_s(serving, devices)
        begun_s = time.monotonic()
        wish = RolloutWish(model=MODEL, version=release(serving, tmp_path, 2), groups=("50%", "100%"), start=True)
        rollout = serving.api.create_rollout(wish).id
        flap(serving, DEATHS)
        # Whoever met a dead broker often waits up to a minute before the next try: the control plane, then a device.
        wait_for(
            lambda: serving.api.rollout(rollout).state == RolloutState.SUCCEEDED,
            "the rollout does not end",
            4 * BACKOFF_MAX_S,
        )
        lasted_s, spent_s = time.monotonic() - begun_s, cpu_s(serving, devices) - before
        # One thread that spins would take a whole processor.
        assert spent_s < lasted_s
        for application in applications:
            application.stop()
        asked = sum(application.answered for application in applications)
        assert active(serving) == dict.fromkeys(DEVICES, "1.2.0")
        assert {device.added() for device in devices} == {2}
        asked += len(devices)
        deadline_s = time.monotonic() + WITHIN_S
        while told(database) != (asked, asked):
            assert time.monotonic() < deadline_s, f"{asked} were asked; told, and summed: {told(database)}"
            time.sleep(0.1)
        assert sum(device.rejected_messages for device in serving.api.devices()) == 0
        proof(f"{DEATHS} deaths of the broker in {lasted_s:.0f} s: {asked} requests told once, CPU {spent_s:.1f} s")
    finally:
        for application in applications:
            application.stop()
        for device in devices:
            device.stop()
        database.close()


def cpu_s(serving: Serving, devices: list[Device]) -> float:
    """What control plane and supervisors have spent; not the broker, whose handshakes go with its deaths."""
    processes = [psutil.Process(serving.process.pid), *(device.process for device in devices)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)
