"""Whole agents are killed at random moments while a real control plane rolls releases out: no brick, and the fleet
reaches what is desired."""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from adder_bundles import MODEL, PROFILE, small_bundle
from fake_fleet import AT_ONCE, wait_for
from served_fleet import BROKERS, Serving

from edgeops.client.inference import InferenceClient
from edgeops.client.rollout_resources import RolloutWish
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rollouts import RolloutState
from edgeops.releases import assemble
from edgeops.releases.publish import publish
from edgeops.trust.founding import make_fleet

DEVICES = ("line-1", "line-2")


class Device:
    """`edgeops agent run`, and all processes that it started."""

    def __init__(self, serving: Serving, folder: Path, name: str, *options: str) -> None:
        self.name, self.state, self._log = name, folder / name, folder / f"{name}.log"
        self._options = options
        self._token = folder / f"{name}.token"
        self._token.write_text(serving.api.create_token(profile=PROFILE).token)
        self.state.mkdir(mode=0o700)
        (self.state / "agent.toml").write_text(AT_ONCE)

    def start(self) -> None:
        command = [
            sys.executable, "-m", "edgeops", "agent", "run", "--state", str(self.state), "--token-file",
            str(self._token), "--profile", PROFILE, "--name", self.name, "--confirm-after-s", "0.5",
            *self._options,
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self.process = psutil.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        """As a power cut takes it: the supervisor and its workers at once."""
        for process in (self.process, *self.process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(30)

    def stop(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.process.terminate()
            psutil.wait_procs([self.process], timeout=30)
            self.process.kill()

    def added(self) -> float | None:
        """What the model that serves adds to its input; None: nothing serves yet."""
        try:
            facts: dict[str, Any] = json.loads((self.state / "agent.json").read_text())
            if facts["pid"] != self.process.pid:
                return None
            with InferenceClient(facts["endpoints"][MODEL]) as client:
                return float(client.infer(MODEL, {"x": np.zeros((1, 4), np.float32)})["y"][0, 0])
        except (OSError, ValueError, KeyError, EdgeopsError):
            return None


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    make_fleet(tmp_path / "home", "demo")
    serving = Serving(tmp_path / "home", BROKERS[-1])
    serving.start()
    yield serving
    serving.stop()


def release(serving: Serving, folder: Path, add: int) -> str:
    version = f"1.{add}.0"
    assemble.create(serving.home, [small_bundle(folder / version, add=float(add)).directory], version=version)
    publish(serving.home, MODEL, version)
    return version


def active(serving: Serving) -> dict[str, str | None]:
    return {
        device.connection: next((part.active_release for part in device.units[0].components), None)
        for device in serving.api.devices()
    }


def kill_at_random(serving: Serving, folder: Path, rounds: int, kills: int, seed: int) -> None:
    """Each round: another release is rolled out, devices are killed on the way so many times, and must serve again."""
    chance = random.Random(seed)
    devices = [Device(serving, folder, name) for name in DEVICES]
    for device in devices:
        device.start()
    try:
        wait_for(lambda: len(list(serving.api.devices())) == len(DEVICES), "the devices do not join")
        wish = RolloutWish(model=MODEL, version=release(serving, folder, 1), start=True)
        first = serving.api.create_rollout(wish).id
        wait_for(lambda: serving.api.rollout(first).state == RolloutState.SUCCEEDED, "the first release did not arrive")
        for number in range(rounds):
            version = release(serving, folder, number + 2)
            rollout = serving.api.create_rollout(RolloutWish(model=MODEL, version=version, start=True)).id
            for kill in range(kills):
                time.sleep(chance.uniform(0.0, 1.2))
                device = chance.choice(devices)
                device.kill()
                device.start()
                # A brick would serve nothing. What serves is one of the releases, whole, and never something between.
                added = wait_for(device.added, f"nothing serves after kill {kill + 1} of round {number + 1}")
                assert added in range(1, number + 3)
        wait_for(lambda: serving.api.rollout(rollout).state == RolloutState.SUCCEEDED, "the fleet does not converge")
        assert active(serving) == dict.fromkeys(DEVICES, version)
        assert {device.added() for device in devices} == {rounds + 1}
    finally:
        for device in devices:
            device.stop()


@pytest.mark.timeout(300)
def test_twenty_kills_leave_no_brick(serving: Serving, tmp_path: Path, proof: Callable[[str], None]):
    kill_at_random(serving, tmp_path, rounds=5, kills=4, seed=1)
    proof("20 kills survived")


@pytest.mark.full
@pytest.mark.timeout(2400)
def test_two_hundred_kills_leave_no_brick(serving: Serving, tmp_path: Path, proof: Callable[[str], None]):
    kill_at_random(serving, tmp_path, rounds=50, kills=4, seed=2)
    proof("200 kills survived")
