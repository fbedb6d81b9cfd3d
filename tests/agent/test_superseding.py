"""A newer generation supersedes whatever is under way, at every state, and something whole serves meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from adder_bundles import small_bundle
from deployment_rig import DeploymentRig
from fake_fleet import Agent, FakeFleet, wait_for

from edgeops.agent.fetching import FetchJob, Staged
from edgeops.agent.loop import Loop
from edgeops.agent.slots import Slots
from edgeops.contracts.deployment import Component, ComponentKind, DeploymentState, Slot
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import pack

NAME = "adder"
UNDER_WAY = ["downloading", "staged", "self-test", "trial", "rolling-back", "confirmed"]


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Slot]]:
    """Three releases, by digest, oldest first."""
    folder = tmp_path_factory.mktemp("bundles")
    files = {}
    for number in (1, 2, 3):
        bundle = small_bundle(folder / str(number), add=float(number))
        pack(bundle, folder / f"{number}.edgeops")
        files[bundle.digest] = (
            folder / f"{number}.edgeops",
            Slot(release=f"1.{number}.0", digest=bundle.digest, number=number),
        )
    return files


def component(slot: Slot) -> Component:
    return Component(name=NAME, kind=ComponentKind.MODEL, release=slot.release, target="t", digest=slot.digest)


def supersede_at(rig: DeploymentRig, state: str, act: Callable[[], None]) -> None:
    """Carry out `act` the moment the deployment comes into a state, from within the loop as the broker's message."""
    done: list[str] = []

    def stepped(deployment: object, percent: float | None, doing: str = "") -> None:
        if str(rig.deployment.record.state) == state and not done:
            done.append(state)
            rig.loop.after(-1.0, act)  # before anything that the state itself brings about

    rig.stepped = stepped  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("first_install", [False, True], ids=["update", "first install"])
@pytest.mark.parametrize("state", UNDER_WAY)
def test_a_newer_generation_wins_at_every_state(
    state: str, first_install: bool, releases: dict[str, tuple[Path, Slot]], tmp_path: Path
):
    old, middle, newest = (slot for _, slot in releases.values())
    bad = frozenset({middle.digest}) if state == "rolling-back" else frozenset()
    rig = DeploymentRig(tmp_path / "device", NAME, releases, bad)
    try:
        rig.start()
        generation = 1
        if not first_install:
            rig.pursue(component(old), generation)
            rig.settle()
            generation += 1
        served_at: list[object] = []

        def newer() -> None:
            rig.pursue(component(newest), generation + 1)
            served_at.append(rig.deployment.active and rig.serving.current)

        supersede_at(rig, state, newer)
        rig.pursue(component(middle), generation)
        while not served_at:
            rig.settle()
        assert rig.settle() is DeploymentState.CONFIRMED
        assert rig.serving.current is not None
        assert rig.serving.current.digest == newest.digest
        assert rig.confirmed_numbers[-1] == newest.number
        if not first_install or state in ("trial", "confirmed"):
            assert served_at[0] is not None, "nothing served meanwhile"
    finally:
        rig.close()


def test_without_giving_way_a_first_install_leaves_nothing_serving_meanwhile(
    releases: dict[str, tuple[Path, Slot]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Negative control: a superseded first trial that is only reverted stops serving until the next one is fetched."""
    monkeypatch.setattr(Slots, "give_way", Slots.revert)
    with pytest.raises(AssertionError, match="nothing served meanwhile"):
        test_a_newer_generation_wins_at_every_state("trial", True, releases, tmp_path)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FakeFleet]:
    fleet = FakeFleet(tmp_path / "fleet")
    yield fleet
    fleet.stop()


@pytest.mark.timeout(600)
def test_a_real_devices_first_model_answers_while_its_successor_is_fetched(fleet: FakeFleet, tmp_path: Path):
    first = fleet.publish(small_bundle(tmp_path / "first", add=1.0), "1.1.0", 1)
    second = fleet.publish(small_bundle(tmp_path / "second", add=2.0), "1.2.0", 2)
    agent = Agent(fleet, tmp_path / "device", "--confirm-after-s", "60").start()
    try:
        fleet.desire(first)
        fleet.wait_state(DeploymentState.TRIAL)
        fleet.stop_artifacts()
        fleet.desire(second)
        report = fleet.wait_state(DeploymentState.HELD)
        assert report.active is not None
        assert (report.active.release, agent.added()) == ("1.1.0", 1)
        agent.kill()
        agent.start()
        assert agent.added() == 1
        fleet.start_artifacts()
        fleet.wait_state(DeploymentState.TRIAL)
        wait_for(lambda: agent.added() == 2, "the successor does not serve")
    finally:
        agent.stop()


@pytest.mark.parametrize("superseded", ["while it was unpacked", "before anybody heard of it"])
def test_a_bundle_that_was_unpacked_for_nothing_leaves_nothing_on_the_disk(
    superseded: str, releases: dict[str, tuple[Path, Slot]], tmp_path: Path
):
    """Else each newer wish would cost the disk a bundle, until the agent's next start."""
    file, slot = next(iter(releases.values()))
    slots, loop = Slots(tmp_path / NAME), Loop()

    def work(cancelled: threading.Event, _progress: Callable[[float], None]) -> Staged:
        staged = Staged(slot, slots.unpack(file, slot))
        if superseded == "while it was unpacked":
            cancelled.set()
        return staged

    job = FetchJob(loop, work, before=None, on_progress=lambda share: None, on_done=pytest.fail)  # type: ignore[arg-type]
    while job.running:
        time.sleep(0.01)
    job.cancel()
    loop.post(loop.stop)
    loop.run()
    assert list((tmp_path / NAME / "slots").iterdir()) == []


def test_a_bundle_that_no_slot_takes_leaves_nothing_on_the_disk(
    releases: dict[str, tuple[Path, Slot]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (_, slot), *_ = releases.values()
    rig = DeploymentRig(tmp_path / "device", NAME, releases, frozenset())

    def full(slots: Slots, staging: Path, slot: Slot) -> None:
        assert staging.is_dir()
        raise EdgeopsError("E-DISK-FULL", "as told")

    monkeypatch.setattr(Slots, "install", full)
    try:
        rig.start()
        rig.pursue(component(slot), 1)
        assert rig.settle() is DeploymentState.REJECTED
        assert list((tmp_path / "device" / "components" / NAME / "slots").iterdir()) == []
    finally:
        rig.close()
