"""Slots: whatever is cut off, an old or a new bundle is whole and active; what must not be touched is not."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from adder_bundles import small_bundle

from edgeops import durable
from edgeops.agent.slots import SlotRecord, Slots
from edgeops.contracts.deployment import Slot
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import encode
from edgeops.releases.bundles import open_bundle, pack, unpack
from edgeops.testkit.power import cuts, recording


class Packed:
    """A bundle as a file, and what it is called in a slot."""

    def __init__(self, folder: Path, number: int) -> None:
        bundle = small_bundle(folder / f"bundle-{number}", add=float(number))
        self.file = folder / f"{number}.edgeops"
        pack(bundle, self.file)
        self.slot = Slot(release=f"1.{number}.0", digest=bundle.digest, number=number)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> list[Packed]:
    folder = tmp_path_factory.mktemp("packed")
    return [Packed(folder, number) for number in range(3)]


def install(slots: Slots, bundle: Packed) -> None:
    slots.install(slots.unpack(bundle.file, bundle.slot), bundle.slot)


def update(slots: Slots, bundle: Packed) -> None:
    install(slots, bundle)
    slots.switch(slots.candidate)
    slots.confirm()


def whole(slots: Slots) -> Slot | None:
    """What is active, after a look at every byte of it."""
    if slots.active is None:
        return None
    slot = slots.records[slots.active].slot
    open_bundle(slots.bundle_path(slots.active), expect_digest=slot.digest)
    return slot


@pytest.fixture
def component(tmp_path: Path, packed: list[Packed]) -> Path:
    """A component that serves bundle 0."""
    update(Slots(tmp_path / "component"), packed[0])
    return tmp_path / "component"


def test_update_keeps_the_old_bundle_to_return_to(component: Path, packed: list[Packed]):
    slots = Slots(component)
    install(slots, packed[1])
    assert slots.active_slot == packed[0].slot
    slots.switch(slots.candidate)
    assert slots.in_trial
    assert (slots.active_slot, slots.fallback_slot) == (packed[1].slot, packed[0].slot)
    assert slots.confirmed_slot == packed[0].slot
    slots.confirm()
    reopened = Slots(component)
    assert not reopened.in_trial
    assert (whole(reopened), reopened.fallback_slot) == (packed[1].slot, packed[0].slot)


def test_during_a_trial_no_slot_is_free(component: Path, packed: list[Packed]):
    slots = Slots(component)
    install(slots, packed[1])
    slots.switch(slots.candidate)
    for touch in (slots.discard, slots.doubt, lambda: install(slots, packed[2])):
        with pytest.raises(EdgeopsError) as caught:
            touch()
        assert caught.value.code == "E-AGENT-STATE"
    slots.collect()
    assert whole(Slots(component)) == packed[1].slot
    slots.revert()
    assert whole(Slots(component)) == packed[0].slot


def test_a_first_bundle_that_gives_way_in_its_trial_serves_until_another_has_proved_itself(
    tmp_path: Path, packed: list[Packed]
):
    """With nothing to return to, it stands in; a failed successor returns to it, a good one takes its place."""
    slots = Slots(tmp_path / "component")
    install(slots, packed[0])
    slots.switch(slots.candidate)
    slots.give_way()
    assert (whole(slots), slots.in_trial, slots.confirmed_slot) == (packed[0].slot, False, None)
    install(slots, packed[1])
    slots.switch(slots.candidate)
    assert (slots.in_trial, slots.fallback_slot, slots.confirmed_slot) == (True, packed[0].slot, None)
    slots.revert()
    assert whole(Slots(tmp_path / "component")) == packed[0].slot
    (tmp_path / "component" / "slots" / "active").write_bytes(b"")
    assert whole(Slots(tmp_path / "component")) == packed[0].slot
    update(slots, packed[2])
    assert whole(Slots(tmp_path / "component")) == packed[2].slot


def test_a_bundle_that_proved_itself_once_can_come_back_without_a_download(component: Path, packed: list[Packed]):
    slots = Slots(component)
    update(slots, packed[1])
    assert slots.holds_whole(packed[0].slot)
    slots.doubt()
    slots.switch(slots.candidate)
    assert slots.in_trial
    slots.revert()
    assert whole(Slots(component)) == packed[1].slot


def test_a_damaged_candidate_does_not_count_as_present(component: Path, packed: list[Packed]):
    slots = Slots(component)
    install(slots, packed[1])
    assert slots.holds_whole(packed[1].slot)
    model = slots.bundle_path(slots.candidate) / "model.onnx"
    data = bytearray(model.read_bytes())
    data[40] ^= 1
    model.write_bytes(data)
    assert not slots.holds_whole(packed[1].slot)


def test_a_file_that_is_another_bundle_leaves_no_trace(component: Path, packed: list[Packed]):
    slots = Slots(component)
    before = sorted(component.rglob("*"))
    with pytest.raises(EdgeopsError) as caught:
        slots.unpack(packed[1].file, packed[2].slot)
    assert caught.value.code == "E-BUNDLE-DAMAGED"
    assert sorted(component.rglob("*")) == before


def test_abandoning_a_damaged_active_bundle_returns_to_the_other(component: Path, packed: list[Packed]):
    slots = Slots(component)
    update(slots, packed[1])
    slots.abandon()
    assert whole(Slots(component)) == packed[0].slot
    Slots(component).abandon()
    assert Slots(component).active is None


@pytest.mark.parametrize("content", [b"", b"\0" * 12, b'{"slot":"c"}', b'{"slot":"b"}'])
def test_a_lost_flag_falls_back_to_what_proved_itself(component: Path, packed: list[Packed], content: bytes):
    """A staged bundle that was never tested is not served, though its number is higher; slot b is empty of proof."""
    install(Slots(component), packed[1])
    if content == b'{"slot":"b"}':
        (component / "slots" / "b" / "slot.json").write_bytes(b"{")
    (component / "slots" / "active").write_bytes(content)
    assert whole(Slots(component)) == packed[0].slot


def cut_everywhere(
    component: Path, act: Callable[[Slots], None], scratch: Path, every: int = 1
) -> Iterator[tuple[bool, Slots]]:
    """Disks that a power cut during `act` may leave, every so many, opened: (after the last operation, slots)."""
    slots = Slots(component)
    with recording(component) as journal:
        act(slots)
    for index, cut in enumerate(itertools.islice(cuts(journal), 0, None, every)):
        folder = scratch / str(index)
        cut.tree.write_to(folder)
        yield cut.after == len(journal.operations), Slots(folder)


CYCLE: dict[str, Callable[[Slots, Packed], None]] = {
    "install, switch, confirm": update,
    "install, switch, revert, discard": lambda slots, bundle: (
        install(slots, bundle), slots.switch(slots.candidate), slots.revert(), slots.discard()
    )[0],
    "install, discard, collect": lambda slots, bundle: (install(slots, bundle), slots.discard(), slots.collect())[0],
}  # fmt: skip


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", CYCLE)
def test_power_cut_at_any_point_leaves_a_whole_bundle_serving(
    name: str, every: int, component: Path, packed: list[Packed], tmp_path: Path, proof: Callable[[str], None]
):
    """All un-fsynced lost, all kept, each one lost, last write torn: active is whole, and an update goes through."""
    survived = 0
    for _, slots in cut_everywhere(component, lambda slots: CYCLE[name](slots, packed[1]), tmp_path / "cuts", every):
        assert whole(slots) in (packed[0].slot, packed[1].slot)
        slots.collect()
        slots.revert()
        assert whole(slots) in (packed[0].slot, packed[1].slot)
        if survived % 10 == 0:
            update(slots, packed[2])
            assert whole(slots) == packed[2].slot
        survived += 1
    proof(f"{survived} cuts of {name!r} survived")
    assert survived > 50 / every


def test_what_was_acknowledged_is_not_lost(component: Path, packed: list[Packed], tmp_path: Path):
    finished = [
        whole(slots)
        for last, slots in cut_everywhere(component, lambda slots: update(slots, packed[1]), tmp_path / "cuts")
        if last
    ]
    assert finished
    assert set(map(str, finished)) == {str(packed[1].slot)}


def flag_before_data(slots: Slots, bundle: Packed) -> None:
    """What `unpack`, `install` and `switch` must not do: record and flag first, then the data."""
    name = slots.candidate
    folder = slots.bundle_path(name).parent
    folder.mkdir()
    slots.records[name] = SlotRecord(slot=bundle.slot, confirmed=False)
    durable.write_file(folder / "slot.json", encode(slots.records[name]))
    slots.switch(name)
    unpack(bundle.file, folder / "bundle")
    durable.fsync_tree(folder)


@pytest.mark.parametrize("mutant", ["flag before data", "no fsync of the bundle", "no fsync of the directory"])
def test_a_forgetful_agent_is_caught(
    mutant: str,
    component: Path,
    packed: list[Packed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    proof: Callable[[str], None],
):
    """Negative control: each mistake leaves, after some cut, no whole bundle, or forgets what was acknowledged."""
    act = update
    if mutant == "flag before data":
        act = flag_before_data
    elif mutant == "no fsync of the bundle":
        monkeypatch.setattr(durable, "fsync_tree", lambda root: None)
    else:
        monkeypatch.setattr(durable, "fsync_dir", lambda directory: None)
    broken = 0
    for last, slots in cut_everywhere(component, lambda slots: act(slots, packed[1]), tmp_path / "cuts"):
        try:
            active = whole(slots)
        except EdgeopsError:
            broken += 1
            continue
        broken += active is None or (last and act is update and active != packed[1].slot)
    assert broken
    proof(f"mutant {mutant!r} caught {broken} times")


def test_space_counts_download_slot_and_reserve(component: Path):
    space = Slots(component).space(length=1000, present=400, reserve=50)
    stat = os.statvfs(component)
    assert space.needed == 2 * 1000 - 400 + 50
    assert space.free <= stat.f_blocks * stat.f_frsize
