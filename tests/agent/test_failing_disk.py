"""A disk that refuses writes, at every one of them: the device serves on, says so, and makes it good when it can."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from adder_bundles import small_bundle
from deployment_rig import DeploymentRig

from edgeops.agent.backlog import TelemetryQueue
from edgeops.agent.fetching import FetchRequest, Staged
from edgeops.agent.keeping import Keeping
from edgeops.agent.plan import Wish
from edgeops.agent.slots import Slots
from edgeops.agent.store import StateDirectory
from edgeops.contracts.deployment import Component, ComponentKind, DeploymentState, Slot
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.telemetry import Telemetry
from edgeops.releases.bundles import pack
from edgeops.testkit.faults import FailingDisk, failing

NAME = "adder"
Files = dict[str, tuple[Path, Slot]]
ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "failing": errno.EIO}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Three releases, by digest, oldest first."""
    folder, files = tmp_path_factory.mktemp("bundles"), {}
    for number in (1, 2, 3):
        bundle = small_bundle(folder / str(number), add=float(number))
        pack(bundle, folder / f"{number}.edgeops")
        slot = Slot(release=f"1.{number}.0", digest=bundle.digest, number=number)
        files[bundle.digest] = (folder / f"{number}.edgeops", slot)
    return files


def component(files: Files, number: int) -> Component:
    slot = list(files.values())[number - 1][1]
    return Component(name=NAME, kind=ComponentKind.MODEL, release=slot.release, target="t", digest=slot.digest)


@pytest.fixture(scope="module")
def device(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device that serves release 1.1.0. Do not change it: copy it."""
    root = tmp_path_factory.mktemp("device") / "state"
    rig = DeploymentRig(root, NAME, files)
    rig.start()
    rig.pursue(component(files, 1), 1)
    assert rig.settle() is DeploymentState.CONFIRMED
    rig.close()
    return root


def life(root: Path, files: Files, disk: FailingDisk, bad: frozenset[str]) -> None:
    """One life on a disk that may fail: nothing escapes the loop, and something whole serves in the end."""
    with failing(disk):
        rig = DeploymentRig(root, NAME, files, bad)
        try:
            rig.start()
            assert rig.serving.current is not None, "nothing serves after the start"
            rig.deployment.pursue(Wish(component(files, 2), 2))
            rig.settle()
            assert rig.serving.current is not None, "nothing serves after the update"
            if bad:
                assert rig.serving.current.digest not in bad
        finally:
            rig.close()


def recover(root: Path, files: Files) -> None:
    """The disk is whole again: what was wanted is reached, from whatever the life before left."""
    rig = DeploymentRig(root, NAME, files)
    try:
        rig.start()
        assert rig.serving.current is not None, "nothing serves on the whole disk"
        rig.pursue(component(files, 3), 3)
        assert rig.settle() is DeploymentState.CONFIRMED
        assert rig.serving.current.digest == component(files, 3).digest
    finally:
        rig.close()


def every_failure(
    device: Path, files: Files, scratch: Path, error: int, count: float, bad: frozenset[str], every: int
) -> int:
    """Refuse changes from number 0, 1, ... of an update; return how many such lives were survived."""
    survived = first = 0
    while True:
        root = scratch / str(first)
        shutil.copytree(device, root)
        disk = FailingDisk(root, error, first, count)
        life(root, files, disk, bad)
        recover(root, files)
        shutil.rmtree(root)
        if not disk.refused:
            return survived
        survived += 1
        first += every


@pytest.mark.parametrize("bad", [False, True], ids=["update", "failed update"])
@pytest.mark.parametrize("kind", ERRORS)
def test_a_disk_that_refuses_from_some_write_on_costs_no_service(
    kind: str, bad: bool, device: Path, files: Files, tmp_path: Path, proof: Callable[[str], None]
):
    lies = frozenset({component(files, 2).digest}) if bad else frozenset()
    survived = every_failure(device, files, tmp_path, ERRORS[kind], float("inf"), lies, every=5)
    proof(f"{survived} places from which the disk refuses survived")
    assert survived >= 5


@pytest.mark.full
@pytest.mark.parametrize("bad", [False, True], ids=["update", "failed update"])
@pytest.mark.parametrize("count", [1, 2, float("inf")])
@pytest.mark.parametrize("kind", ERRORS)
def test_every_refused_write(
    kind: str, count: float, bad: bool, device: Path, files: Files, tmp_path: Path, proof: Callable[[str], None]
):
    lies = frozenset({component(files, 2).digest}) if bad else frozenset()
    survived = every_failure(device, files, tmp_path, ERRORS[kind], count, lies, every=1)
    proof(f"{survived} refused writes survived")
    assert survived >= 25


@pytest.mark.parametrize("bad", [False, True], ids=["update", "failed update"])
def test_one_refused_write_costs_no_service(bad: bool, device: Path, files: Files, tmp_path: Path):
    lies = frozenset({component(files, 2).digest}) if bad else frozenset()
    assert every_failure(device, files, tmp_path, errno.EIO, 1, lies, every=4) >= 6


def test_an_agent_that_lets_the_disks_errors_through_is_caught(
    device: Path, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Negative control: without the one place that takes them, some refused write ends the agent."""
    monkeypatch.setattr(Keeping, "durably", lambda self, change: change())
    with pytest.raises(EdgeopsError, match="E-DISK"):
        every_failure(device, files, tmp_path, errno.EIO, float("inf"), frozenset(), every=1)


@pytest.mark.parametrize(("confirmed", "ends"), [(2, DeploymentState.CONFIRMED), (1, DeploymentState.REJECTED)])
def test_the_older_bundle_makes_room_on_a_full_disk(
    confirmed: int, ends: DeploymentState, device: Path, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The disk has room for two bundles, not for three; the control: there is no older one, and nothing is lost."""
    root = tmp_path / "device"
    shutil.copytree(device, root)
    rig = DeploymentRig(root, NAME, files)
    rig.start()
    rig.pursue(component(files, confirmed), 2)
    assert rig.settle() is DeploymentState.CONFIRMED
    fetch = rig.fetcher.fetch

    def fetch_if_there_is_room(request: FetchRequest, slots: Slots, **how: Any) -> Staged:
        if confirmed == 1 or slots.candidate in slots.records:
            raise EdgeopsError("E-DISK-FULL", "no room for a third")
        return fetch(request, slots, **how)

    monkeypatch.setattr(rig.fetcher, "fetch", fetch_if_there_is_room)
    rig.pursue(component(files, 3), 3)
    assert rig.settle() is ends
    assert rig.serving.current is not None
    assert rig.serving.current.digest == component(files, 3 if ends is DeploymentState.CONFIRMED else 1).digest
    rig.close()


def test_what_the_disk_refused_is_due_and_comes_before_any_other_change(device: Path, files: Files, tmp_path: Path):
    """A return that could not be written holds in memory, and is on the disk before the other slot is touched."""
    root = tmp_path / "device"
    shutil.copytree(device, root)
    slots = Slots(root / "components" / NAME)
    file, slot = files[component(files, 2).digest]
    slots.install(slots.unpack(file, slot), slot)
    slots.switch(slots.candidate)
    with failing(FailingDisk(root, errno.EROFS)):
        for act in (slots.revert, slots.write_back, slots.discard):
            with pytest.raises(EdgeopsError):
                act()
            assert slots.active_slot == files[component(files, 1).digest][1]
    assert Slots(root / "components" / NAME).active_slot == slot, "the disk still leads to what is on trial"
    slots.discard()
    assert Slots(root / "components" / NAME).active_slot == files[component(files, 1).digest][1]


def test_a_device_whose_disk_became_read_only_serves_and_is_still_locked(device: Path, files: Files, tmp_path: Path):
    root = tmp_path / "device"
    shutil.copytree(device, root)
    with failing(FailingDisk(root, errno.EROFS)) as disk:
        rig = DeploymentRig(root, NAME, files)
        try:
            rig.start()
            assert rig.serving.current is not None
            with pytest.raises(EdgeopsError) as caught:
                StateDirectory(root)
            assert caught.value.code == "E-STATE-LOCKED"
        finally:
            rig.close()
    assert disk.refused == disk.changes


def test_telemetry_on_a_failing_disk_ends_nothing_and_counts_once(tmp_path: Path):
    queue = TelemetryQueue(tmp_path / "queue", 3)
    window = Telemetry(fleet="f", connection="c", unit="self", boot_id="b", seq=1, start_s=0, end_s=1, models=())
    queue.put(window)
    with failing(FailingDisk(tmp_path, errno.EIO)):
        queue.remove(queue.waiting(1)[0])
        with pytest.raises(EdgeopsError) as caught:
            queue.put(window)
    assert caught.value.code == "E-DISK-WRITE"
    assert queue.waiting(9) == []
    after = queue.read(queue.put(window))
    assert after is not None
    assert after.dropped_windows == 1
    queue.remove(queue.waiting(1)[0])
    assert len(TelemetryQueue(tmp_path / "queue", 3).waiting(9)) == 1  # sent again after a restart: same boot and seq
