"""The whole agent is killed at random moments while updates flow: no brick, and the device reaches what is desired."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from adder_bundles import small_bundle
from fake_fleet import Agent, FakeFleet, wait_for

from edgeops.contracts.deployment import DeploymentState


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FakeFleet]:
    fleet = FakeFleet(tmp_path / "fleet")
    yield fleet
    fleet.stop()


def kill_at_random(fleet: FakeFleet, folder: Path, kills: int, seed: int) -> None:
    """Each life: another release is desired, the agent is killed on the way, and must serve when it is back."""
    chance = random.Random(seed)
    releases = [
        msgspec.structs.replace(
            fleet.publish(small_bundle(folder / f"bundle-{add}", add=float(add)), f"1.{add}.0", add),
            allow_downgrade=True,
        )
        for add in (1, 2)
    ]
    agent = Agent(fleet, folder / "device").start()
    try:
        fleet.desire(releases[0])
        fleet.wait_state(DeploymentState.CONFIRMED)
        for number in range(kills):
            fleet.desire(releases[(number + 1) % 2])
            time.sleep(chance.uniform(0.0, 0.9))
            agent.kill()
            agent.start()
            # A brick would serve nothing. What serves is one of the two, whole, and never something between.
            wait_for(lambda: agent.facts() and agent.facts()["endpoints"], f"nothing serves after kill {number + 1}")  # type: ignore[index]
            assert agent.added() in (1, 2)
        fleet.desire(releases[1])
        report = fleet.wait_state(DeploymentState.CONFIRMED)
        assert report.active is not None
        assert (report.active.release, agent.added()) == ("1.2.0", 2)
        print(f"{kills} kills survived")
    finally:
        agent.stop()


@pytest.mark.timeout(240)
def test_twenty_kills_leave_no_brick(fleet: FakeFleet, tmp_path: Path):
    kill_at_random(fleet, tmp_path, kills=20, seed=1)


@pytest.mark.full
@pytest.mark.timeout(2400)
def test_two_hundred_kills_leave_no_brick(fleet: FakeFleet, tmp_path: Path):
    kill_at_random(fleet, tmp_path, kills=200, seed=2)
