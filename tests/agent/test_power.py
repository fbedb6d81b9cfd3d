"""The power is cut at every file operation of whole deployments, of enrolment's record and of the telemetry queue."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from adder_bundles import small_bundle
from deployment_rig import DeploymentRig

from edgeops import durable
from edgeops.agent import deployment
from edgeops.agent.backlog import TelemetryQueue
from edgeops.contracts.deployment import Component, ComponentKind, DeploymentState, Shadowing, Slot
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.telemetry import Telemetry
from edgeops.releases.bundles import pack
from edgeops.testkit.power import Cut, cuts, recording

NAME = "adder"
EVERY = 24  # in the bounded tier every so many cuts are tried, from a fixed start
KINDS = ["update", "failed update", "shadow"]
SECOND_CUTS = [10, pytest.param(100, marks=pytest.mark.full)]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Bundles(NamedTuple):
    """What there is to install: files by digest, and the components that ask for them."""

    files: dict[str, tuple[Path, Slot]]
    components: list[Component]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder = tmp_path_factory.mktemp("bundles")
    files, components = {}, []
    for number in range(1, 4):
        bundle = small_bundle(folder / str(number), add=float(number))
        pack(bundle, folder / f"{number}.edgeops")
        slot = Slot(release=f"1.{number}.0", digest=bundle.digest, number=number)
        files[bundle.digest] = (folder / f"{number}.edgeops", slot)
        components.append(
            Component(name=NAME, kind=ComponentKind.MODEL, release=slot.release, target="t", digest=bundle.digest)
        )
    return Bundles(files, components)


@pytest.fixture
def device(tmp_path: Path, bundles: Bundles) -> Path:
    """A device that serves release 1.1.0."""
    rig = DeploymentRig(tmp_path / "device", NAME, bundles.files)
    rig.start()
    rig.pursue(bundles.components[0], 1)
    assert rig.settle() is DeploymentState.CONFIRMED
    rig.close()
    return tmp_path / "device"


def bad_of(kind: str, bundles: Bundles) -> frozenset[str]:
    return frozenset({bundles.components[1].digest}) if kind == "failed update" else frozenset()


def go(rig: DeploymentRig, bundles: Bundles, kind: str) -> DeploymentState:
    """Update to 1.2.0, at once or after it was a shadow; return how it ended."""
    rig.start()
    if kind == "shadow":
        rig.pursue(msgspec.structs.replace(bundles.components[1], shadow=Shadowing(share=0.5, cpu=0.5)), 2)
        assert rig.settle() is DeploymentState.SHADOW
    rig.pursue(bundles.components[1], 3)
    return rig.settle()


def recorded(device: Path, bundles: Bundles, kind: str = "update") -> list[Cut]:
    """Every disk that a cut during an update to 1.2.0 may leave."""
    with recording(device) as journal:
        rig = DeploymentRig(device, NAME, bundles.files, bad_of(kind, bundles))
        ended = go(rig, bundles, kind)
        rig.close()
    assert ended is (DeploymentState.FAILED if kind == "failed update" else DeploymentState.CONFIRMED)
    return list(cuts(journal))


def check_recovery(disk: Path, bundles: Bundles, kind: str = "update") -> None:
    """The agent starts: an old or new bundle serves whole at once, and what was desired is reached."""
    rig = DeploymentRig(disk, NAME, bundles.files, bad_of(kind, bundles))
    try:
        rig.start()
        served = rig.serving.current
        assert served is not None, "nothing serves after the start"
        assert served.digest in {component.digest for component in bundles.components[:2]}
        rig.pursue(bundles.components[1], 3)
        ended = rig.settle()
        assert rig.serving.current is not None
        if kind == "failed update":
            assert ended is DeploymentState.FAILED
            assert rig.serving.current.digest == bundles.components[0].digest
        else:
            assert ended is DeploymentState.CONFIRMED
            assert rig.serving.current.digest == bundles.components[1].digest
        rig.pursue(bundles.components[2], 4)
        assert rig.settle() is DeploymentState.CONFIRMED
        assert rig.serving.current.digest == bundles.components[2].digest
    finally:
        rig.close()


def survive(all_cuts: list[Cut], bundles: Bundles, kind: str, scratch: Path, every: int) -> int:
    survived = 0
    for index in range(0, len(all_cuts), every):
        disk = scratch / str(index)
        all_cuts[index].tree.write_to(disk)
        check_recovery(disk, bundles, kind)
        shutil.rmtree(disk)
        survived += 1
    return survived


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_during_a_deployment_costs_neither_service_nor_the_update(
    kind: str, device: Path, bundles: Bundles, tmp_path: Path, proof: Callable[[str], None]
):
    survived = survive(recorded(device, bundles, kind), bundles, kind, tmp_path / "cuts", EVERY)
    proof(f"{survived} cuts survived")
    assert survived >= 20


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_during_a_deployment(
    kind: str, device: Path, bundles: Bundles, tmp_path: Path, proof: Callable[[str], None]
):
    survived = survive(recorded(device, bundles, kind), bundles, kind, tmp_path / "cuts", 1)
    proof(f"{survived} cuts survived")
    assert survived >= 400


@pytest.mark.parametrize("times", SECOND_CUTS)
def test_a_second_cut_during_recovery_is_survived_too(
    times: int, device: Path, bundles: Bundles, tmp_path: Path, proof: Callable[[str], None]
):
    chance = random.Random(5)
    first_cuts = recorded(device, bundles)
    for index in range(times):
        disk = tmp_path / f"first-{index}"
        chance.choice(first_cuts).tree.write_to(disk)
        with recording(disk) as journal:
            rig = DeploymentRig(disk, NAME, bundles.files)
            go(rig, bundles, "update")
            rig.close()
        second = tmp_path / f"second-{index}"
        chance.choice(list(cuts(journal))).tree.write_to(second)
        check_recovery(second, bundles)
    proof(f"{times} second cuts survived")


@pytest.mark.parametrize("mutant", ["no fsync of the bundle", "no fsync of the directory", "no repair at the start"])
def test_a_forgetful_agent_is_caught_by_name(
    mutant: str,
    device: Path,
    bundles: Bundles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    proof: Callable[[str], None],
):
    """Negative control: each mutant fails the recovery check after some cut."""
    if mutant == "no fsync of the bundle":
        monkeypatch.setattr(durable, "fsync_tree", lambda root: None)
    elif mutant == "no fsync of the directory":
        monkeypatch.setattr(durable, "fsync_dir", lambda directory: None)
    else:
        monkeypatch.setattr(deployment, "repair_at_start", lambda record, active: None)
    for index, cut in enumerate(reversed(recorded(device, bundles))):
        disk = tmp_path / "mutant" / str(index)
        cut.tree.write_to(disk)
        try:
            check_recovery(disk, bundles)
        except (AssertionError, EdgeopsError) as error:
            proof(f"mutant {mutant!r} caught: {str(error).splitlines()[0]}")
            return
        shutil.rmtree(disk)
    pytest.fail(f"the mutant {mutant!r} was not caught")


def window(seq: int) -> Telemetry:
    return Telemetry(fleet="f", connection="c", unit="self", boot_id="b", seq=seq, start_s=0, end_s=1, models=())


def test_a_telemetry_window_that_was_kept_is_not_lost_by_a_cut(tmp_path: Path, proof: Callable[[str], None]):
    folder = tmp_path / "state"
    folder.mkdir()
    TelemetryQueue(folder / "queue", 3).put(window(1))
    with recording(folder) as journal:
        queue = TelemetryQueue(folder / "queue", 3)
        queue.put(window(2))
        done = len(journal.operations)
    for index, cut in enumerate(cuts(journal)):
        cut.tree.write_to(tmp_path / "cuts" / str(index))
        reopened = TelemetryQueue(tmp_path / "cuts" / str(index) / "queue", 3)
        kept = [found.seq for number in reopened.waiting(9) if (found := reopened.read(number)) is not None]
        assert kept[:1] == [1]
        if cut.after == done:
            assert kept == [1, 2]
    proof(f"{index + 1} cuts of the telemetry queue survived")


def test_a_full_queue_drops_the_oldest_and_says_how_many(tmp_path: Path):
    queue = TelemetryQueue(tmp_path / "queue", 3)
    for seq in range(1, 8):
        queue.put(window(seq))
    reopened = TelemetryQueue(tmp_path / "queue", 3)
    kept = [reopened.read(number) for number in reopened.waiting(9)]
    assert [found.seq for found in kept if found is not None] == [5, 6, 7]
    assert sum(found.dropped_windows for found in kept if found is not None) == 4
