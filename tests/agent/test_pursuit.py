"""What is desired is taken in whole, or not at all and again later; whatever it says, the agent goes on."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from adder_bundles import MODEL, small_bundle
from fake_fleet import Agent, FakeFleet, wait_for
from securesystemslib.signer import CryptoSigner

from edgeops.agent import pursuit as pursuits
from edgeops.agent.loop import Loop
from edgeops.agent.pursuit import Pursuit
from edgeops.agent.slots import Slots
from edgeops.agent.store import StateDirectory
from edgeops.contracts.deployment import (
    MAX_COMPONENTS,
    MAX_RELEASE_CHARACTERS,
    Component,
    ComponentKind,
    DeploymentState,
    Desired,
    Reported,
)
from edgeops.contracts.errors import EdgeopsError
from edgeops.control.ingest.statements import MAX_STATEMENT_BYTES, check_statement
from edgeops.testkit.faults import FailingDisk, failing
from edgeops.trust import reported as statements
from edgeops.trust.time import Clock

pytestmark = pytest.mark.timeout(600)
WITHIN_S = 60.0


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    made = StateDirectory(tmp_path / "device")
    (made.root / "trust").mkdir()
    yield made
    made.close()


def pursuit(state: StateDirectory, loop: Loop, accepted: list[Desired]) -> Pursuit:
    """One whose envelopes are generations, all of them true."""

    def true(envelope: bytes, floor: int) -> Desired:
        generation = int(envelope)
        assert generation >= floor
        return Desired(
            fleet="f", connection="c", unit="self", generation=generation, issued_at_s=2e9, expires_at_s=3e9,
            components=(),
        )  # fmt: skip

    def none(name: str, floor_number: int) -> Any:
        raise EdgeopsError("E-CONFIG", "no component here")

    return Pursuit(
        loop, state, SimpleNamespace(desired=true), Clock(state.trust / "clock.json"),  # type: ignore[arg-type]
        open_deployment=none, check=lambda component: None, on_accepted=accepted.append, on_change=lambda: None,
    )  # fmt: skip


def run_until(loop: Loop, condition: Callable[[], Any], within_s: float = WITHIN_S) -> None:
    deadline_s = time.monotonic() + within_s

    def look() -> None:
        loop.stop() if condition() or time.monotonic() > deadline_s else loop.after(0.01, look)

    loop.post(look)
    loop.run()
    assert condition()


@pytest.mark.parametrize("patient", [True, False])
@pytest.mark.parametrize("refused", [1, 2])
def test_what_a_full_disk_did_not_take_is_taken_once_it_can_be(
    refused: int, patient: bool, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
):
    """The broker tells it once. Negative control: an agent that does not come back to it never holds it."""
    monkeypatch.setattr(pursuits, "RETRY_FIRST_S", 0.01)
    if not patient:
        monkeypatch.setattr(pursuits, "DISK_ERRORS", frozenset())
    loop, accepted = Loop(), list[Desired]()
    unit = pursuit(state, loop, accepted)
    with failing(FailingDisk(state.root, errno.ENOSPC, 0, refused)) as disk:
        unit.take(b"7")
        run_until(loop, lambda: unit.refused is not None)
        assert unit.refused is not None
        assert (unit.refused.code, disk.refused > 0, accepted) == ("E-DISK-FULL", True, [])
        if not patient:
            assert not unit._envelopes
            return
        run_until(loop, lambda: accepted)
    assert [desired.generation for desired in accepted] == [7]
    assert unit.refused is None
    found = state.read_desired()
    assert found is not None
    assert (found.generation, state.read_unit().generation) == (7, 7)


def test_a_newer_wish_does_not_wait_for_one_that_the_disk_refused(state: StateDirectory):
    loop, accepted = Loop(), list[Desired]()
    unit = pursuit(state, loop, accepted)
    with failing(FailingDisk(state.root, errno.ENOSPC, 0, 1)):
        unit.take(b"7")
        unit.take(b"8")
        run_until(loop, lambda: accepted)
    assert [desired.generation for desired in accepted] == [8]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeFleet]:
    fleet = FakeFleet(tmp_path_factory.mktemp("fleet"))
    yield fleet
    fleet.stop()


def refused_with(report: Reported, what: str) -> bool:
    return report.refused is not None and report.refused.what.startswith(what)


def test_a_desired_state_that_no_report_could_answer_is_refused_and_ends_nothing(fleet: FakeFleet, tmp_path: Path):
    """Thousands of components, or names that no control plane takes in a report: by mistake or not."""
    agent = Agent(fleet, tmp_path / "device").start()
    try:
        mine = fleet.publish(small_bundle(tmp_path / "bundle", add=1.0), "1.0.0", 1)
        fleet.desire(mine)
        fleet.wait_state(DeploymentState.CONFIRMED)
        pid, accepted = agent.facts()["pid"], fleet.generation  # type: ignore[index]

        def some(name: str, release: str = "1.0.0") -> Component:
            return Component(name=name, kind=ComponentKind.UNKNOWN, release=release, target="t", digest="sha256:0")

        fleet.desire(mine, *(some(f"m{number}" * 8) for number in range(3_000)))
        report = fleet.wait_refused("E-DESIRED-UNSUPPORTED")
        assert report.observed_generation == accepted
        fleet.desire(mine, some("no name"))
        report = fleet.wait_refused("E-NAME")
        assert report.observed_generation == accepted
        told = len(fleet.reports)
        fleet.desire(mine, some("long", "1" * (MAX_RELEASE_CHARACTERS + 1)))
        wait_for(lambda: any(refused_with(report, "long") for report in fleet.reports[told:]), "it is not refused")
        # As many as there may be, with all that they may say: each control plane takes such a report.
        names = [f"{number:03d}".ljust(63, "m") for number in range(MAX_COMPONENTS - 1)]
        fleet.desire(mine, *(some(name, "1" * MAX_RELEASE_CHARACTERS) for name in names))
        report = wait_for(
            lambda: next((one for one in fleet.reports if one.observed_generation == fleet.generation), None),
            "no report",
        )
        assert len(report.components) == MAX_COMPONENTS
        check_statement(report)
        assert len(statements.sign(report, CryptoSigner.generate_ecdsa())) < MAX_STATEMENT_BYTES / 2
        fleet.desire(mine)
        fleet.wait_state(DeploymentState.CONFIRMED)
        assert agent.facts()["pid"] == pid  # type: ignore[index]
        assert agent.added() == 1
    finally:
        agent.stop()


def test_a_device_whose_floors_were_lost_takes_nothing_older_than_what_has_proved_itself(
    fleet: FakeFleet, tmp_path: Path
):
    old, new = (
        fleet.publish(small_bundle(tmp_path / str(add), add=float(add)), f"3.{add}.0", 30 + add) for add in (1, 2)
    )
    agent = Agent(fleet, tmp_path / "device").start()
    try:
        fleet.desire(new)
        fleet.wait_state(DeploymentState.CONFIRMED)
        agent.stop()
        (agent.state / "unit.json").write_bytes(b"")
        agent.start()
        fleet.desire(old)
        report = fleet.wait_state(DeploymentState.REJECTED)
        assert report.failure is not None
        assert report.failure.code == "E-TRUST-DOWNGRADE"
        slot = Slots(agent.state / "components" / MODEL).active_slot
        assert slot is not None
        assert slot.release == new.release
    finally:
        agent.stop()
