"""Bundles from mirrors that nobody trusts, and a fleet that does not fetch all at once."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adder_bundles import small_bundle
from deployment_rig import DeploymentRig
from fake_fleet import AT_ONCE, Agent, FakeFleet, HttpsServer
from hypothesis import given
from hypothesis import strategies as st

from edgeops.agent.downloads import DownloadRules, start_delay_s
from edgeops.agent.fetching import Fetcher, FetchRequest
from edgeops.agent.plan import Wish
from edgeops.agent.slots import Slots
from edgeops.contracts.deployment import Component, ComponentKind, DeploymentState, Slot
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import Bundle, pack
from edgeops.transport.download import Cancelled
from edgeops.trust.authority import FleetAuthority

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FakeFleet]:
    fleet = FakeFleet(tmp_path / "fleet")
    yield fleet
    fleet.stop()


class Mirror:
    """A second server of a fleet's files; what it `says` otherwise is a lie."""

    def __init__(self, fleet: FakeFleet, *, says: dict[str, bytes], authority: FleetAuthority | None = None) -> None:
        served = copy.copy(fleet)
        served.requests, served.changed_paths = [], says
        if authority is not None:
            served.authority = authority
            served.server_pem, served.server_key = authority.issue_server(["127.0.0.1"])
        self.server = HttpsServer(served, mutual=True, asks_certificate=authority is None)
        self.requests = served.requests
        self.url = f"{self.server.url}/targets"


def target_requests(requests: list[str]) -> int:
    return sum(path.startswith("/targets/") for path in requests)


def hashed_paths(fleet: FakeFleet) -> dict[str, int]:
    """The repository's bundles, as servers are asked for them, and how long they are."""
    root = fleet.home / "repository"
    return {f"/{file.relative_to(root)}": file.stat().st_size for file in (root / "targets").rglob("*.edgeops")}


def configured(agent: Agent, text: str) -> Agent:
    (agent.state / "agent.toml").write_text(f"{AT_ONCE}{text}")
    return agent


def test_a_mirror_that_lies_is_refused_by_its_hash_and_the_next_is_asked(fleet: FakeFleet, tmp_path: Path):
    component = fleet.publish(small_bundle(tmp_path / "new", add=2.0), "1.2.0", 1)
    liar = Mirror(fleet, says={path: bytes(length) for path, length in hashed_paths(fleet).items()})
    good = Mirror(fleet, says={})
    agent = configured(Agent(fleet, tmp_path / "device"), f'mirrors = ["{liar.url}", "{good.url}"]\n').start()
    try:
        fleet.desire(component)
        fleet.wait_state(DeploymentState.CONFIRMED)
        assert agent.added() == 2
        assert (target_requests(liar.requests), target_requests(good.requests)) == (1, 1)
        assert target_requests(fleet.requests) == 0
    finally:
        agent.stop()
        liar.server.stop()
        good.server.stop()


def test_a_mirror_with_a_certificate_of_others_gets_none_of_the_devices(fleet: FakeFleet, tmp_path: Path):
    """A content delivery network: it is known by its own CA, and need not know the device."""
    network = FleetAuthority.create(tmp_path / "network", "network")
    (tmp_path / "network.pem").write_bytes(network.ca_pem)
    component = fleet.publish(small_bundle(tmp_path / "new", add=2.0), "1.2.0", 1)
    mirror = Mirror(fleet, says={}, authority=network)
    rules = f'mirrors = ["{mirror.url}"]\nmirrors_ca = "{tmp_path / "network.pem"}"\n'
    agent = configured(Agent(fleet, tmp_path / "device"), rules).start()
    try:
        fleet.desire(component)
        fleet.wait_state(DeploymentState.CONFIRMED)
        assert (target_requests(mirror.requests), target_requests(fleet.requests)) == (1, 0)
    finally:
        agent.stop()
        mirror.server.stop()


def test_mirrors_that_are_away_cost_no_update(fleet: FakeFleet, tmp_path: Path):
    component = fleet.publish(small_bundle(tmp_path / "new", add=2.0), "1.2.0", 1)
    agent = configured(Agent(fleet, tmp_path / "device"), 'mirrors = ["https://127.0.0.1:1/targets"]\n').start()
    try:
        fleet.desire(component)
        fleet.wait_state(DeploymentState.CONFIRMED)
        assert target_requests(fleet.requests) == 1
    finally:
        agent.stop()


@given(
    connection=st.text(min_size=1, max_size=20), generation=st.integers(0, 1 << 40), within_s=st.floats(0.001, 86400)
)
def test_a_start_is_delayed_by_less_than_the_bound_and_always_the_same(
    connection: str, generation: int, within_s: float
):
    delay_s = start_delay_s(connection, generation, within_s)
    assert 0 <= delay_s < within_s
    assert delay_s == start_delay_s(connection, generation, within_s)
    assert start_delay_s(connection, generation, 0.0) == 0.0


def test_a_fleet_starts_evenly_and_not_always_in_the_same_order():
    delays = [
        [start_delay_s(f"device-{number}", generation, 10.0) for number in range(10_000)] for generation in (1, 2)
    ]
    for generation in delays:
        tenths = Counter(int(delay_s) for delay_s in generation)
        assert len(tenths) == 10
        # 1000 each expected, standard deviation 30.
        assert all(850 < count < 1150 for count in tenths.values())
    first = {number for number, delay_s in enumerate(delays[0]) if delay_s < 1}
    again = {number for number, delay_s in enumerate(delays[1]) if delay_s < 1}
    assert len(first & again) < 200


class Waits(threading.Event):
    """Says what was waited for, and waits for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return self.is_set()


class NoDesk:
    """Reached only after the wait."""

    def look_up(self, want: Component, floor_number: int, **_: Any) -> Any:
        raise EdgeopsError("E-NET-UNREACHABLE", "as told")


def test_what_lies_in_the_slot_already_is_not_waited_for(bundle: Bundle, tmp_path: Path):
    """A return to the bundle before is quick; only what must be fetched is spread."""
    pack(bundle, tmp_path / "file")
    slots = Slots(tmp_path / "component")
    slots.install(slots.unpack(tmp_path / "file", Slot(release="1.0.0", digest=bundle.digest, number=1)),
                  Slot(release="1.0.0", digest=bundle.digest, number=1))  # fmt: skip
    fetcher = Fetcher(NoDesk(), None, tmp_path / "downloads")  # type: ignore[arg-type]
    waited = {}
    for release in ("1.0.0", "1.1.0"):
        want = Component(name="adder", kind=ComponentKind.MODEL, release=release, target="t", digest=bundle.digest)
        waits = Waits()
        with pytest.raises(EdgeopsError):
            fetcher.fetch(FetchRequest(want, 0, 0, 7.5), slots, on_progress=lambda share: None, cancelled=waits)
        waited[release] = list(waits.seconds)
        waits.set()
        if release == "1.1.0":
            with pytest.raises(Cancelled):
                fetcher.fetch(FetchRequest(want, 0, 0, 7.5), slots, on_progress=lambda share: None, cancelled=waits)
    assert waited == {"1.0.0": [], "1.1.0": [7.5]}


def test_a_deployment_spreads_its_start_unless_an_operator_overrides_the_holds(bundle: Bundle, tmp_path: Path):
    pack(bundle, tmp_path / "file")
    files = {bundle.digest: (tmp_path / "file", Slot(release="1.0.0", digest=bundle.digest, number=1))}
    rig = DeploymentRig(tmp_path / "device", "adder", files)
    fetcher: Any = rig.fetcher
    try:
        rig.start()
        for generation, override in ((1, False), (2, True)):
            want = Component(
                name="adder", kind=ComponentKind.MODEL, release=f"1.{generation}.0", target="t", digest=bundle.digest
            )
            rig.deployment.pursue(Wish(want, generation, override))
            assert rig.settle() is DeploymentState.CONFIRMED
        delays = [request.delay_s for request in fetcher.requests]
        assert delays == [start_delay_s("device-1", 1, DownloadRules().start_within_s), 0.0]
        assert delays[0] > 0
    finally:
        rig.close()
