"""A freeze is noticed: a device asks for signed metadata in time, and tells the fleet when it gets none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from adder_bundles import small_bundle
from fake_fleet import DEVICE, Agent, FakeFleet, wait_for
from hypothesis import given
from hypothesis import strategies as st

from edgeops.agent.freshening import AT_LEAST_S, due_s
from edgeops.agent.status import read_status
from edgeops.agent.trust_desk import Freshness
from edgeops.contracts.deployment import DeploymentState
from edgeops.trust import roles

pytestmark = pytest.mark.timeout(600)
WEAKENED = Path(__file__).parent / "weakened"
DAY_S = 86400.0
LIFE_S = 20.0


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFleet]:
    """Its timestamps hold for seconds."""
    monkeypatch.setitem(roles.LIFETIME_S, roles.TIMESTAMP, LIFE_S)
    fleet = FakeFleet(tmp_path / "fleet")
    yield fleet
    fleet.stop()


@pytest.mark.parametrize("asks", [True, False])
def test_a_device_that_gets_nothing_fresh_tells_the_fleet_by_itself(
    asks: bool, fleet: FakeFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing is wanted of it all the time. Control: a device that asks only if something is wanted says nothing, and
    the fleet takes it for fresh."""
    if not asks:
        monkeypatch.setenv("PYTHONPATH", str(WEAKENED))
        monkeypatch.setenv("EDGEOPS_TEST_WITHOUT", "freshening")
    agent = Agent(fleet, tmp_path / "device").start()
    try:
        component = fleet.publish(small_bundle(tmp_path / "bundle", add=1.0), "1.0.0", 1)
        fleet.desire(component)
        fleet.wait_state(DeploymentState.CONFIRMED)
        if asks:
            asked = fleet.requests.count("/metadata/timestamp.json")

            def asked_again() -> bool:
                fleet.publisher.renew()
                return fleet.requests.count("/metadata/timestamp.json") > asked

            wait_for(asked_again, "nothing is asked for while nothing is wanted")
        fleet.stop_artifacts()
        if not asks:
            wait_for(lambda: read_status(agent.state)["stale_s"], "it is not stale")
            assert not any(report.stale_s for report in fleet.reports)
            return
        wait_for(lambda: fleet.reports[-1].stale_s, "the fleet does not hear of it")
        assert agent.added() == 1
        fleet.start_artifacts()
        fleet.publisher.renew()
        fleet.desire(component)
        wait_for(lambda: fleet.reports[-1].stale_s is None, "the fleet does not hear that it is over")
    finally:
        agent.stop()


@pytest.mark.parametrize("looks", [True, False])
def test_a_broker_that_holds_back_desired_state_is_noticed_when_the_last_one_expires(
    looks: bool, fleet: FakeFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All metadata is fresh meanwhile. Control: a device that does not look at that expiry is taken for fresh."""
    if not looks:
        monkeypatch.setenv("PYTHONPATH", str(WEAKENED))
        monkeypatch.setenv("EDGEOPS_TEST_WITHOUT", "desired_expiry")
    agent = Agent(fleet, tmp_path / "device").start()
    try:
        component = fleet.publish(small_bundle(tmp_path / "bundle", add=1.0), "1.0.0", 1)
        expires_s = time.time() + LIFE_S
        fleet.desire(component, expires_at_s=expires_s)
        fleet.wait_state(DeploymentState.CONFIRMED)
        told = len(fleet.reports)

        def stale() -> bool:
            fleet.publisher.renew()
            return any(report.stale_s for report in fleet.reports[told:])

        if not looks:
            asked = fleet.requests.count("/metadata/timestamp.json")
            wait_for(
                lambda: (
                    stale()
                    or (time.time() > expires_s + 5 and fleet.requests.count("/metadata/timestamp.json") > asked + 2)
                ),
                "it does not go on",
            )
            assert not stale()
            return
        wait_for(stale, "the fleet does not hear of it")
        assert agent.added() == 1
        fleet.desire(component)
        wait_for(lambda: fleet.reports[-1].stale_s is None, "the fleet does not hear that it is over")
    finally:
        agent.stop()


@given(last_s=st.floats(0, 4e9), left_s=st.floats(60, 400 * DAY_S), name=st.text("abcdef0123456789-", min_size=1))
def test_metadata_is_due_about_half_way_always_at_the_same_moment(last_s: float, left_s: float, name: str):
    freshness = Freshness(last_s + left_s, last_s)
    left_s = min(left_s, roles.LIFETIME_S[roles.TIMESTAMP])
    due = due_s(freshness, name)
    assert last_s + 0.39 * left_s <= due <= last_s + 0.61 * left_s
    assert due_s(freshness, name) == due


def test_what_is_not_valid_is_due_at_once():
    assert due_s(Freshness(None, None), DEVICE) == due_s(Freshness(None, 5.0), DEVICE) == 0.0
    # The clock was wrong when it was fetched.
    assert due_s(Freshness(5.0, 1e10), DEVICE) == 1e10 + AT_LEAST_S
