"""Sets of components: they switch together or not at all and return together, whatever fails and whenever it is cut."""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from adder_bundles import small_bundle
from deployment_rig import TRIAL_LOOK_EVERY_S, SetRig

from edgeops.agent import sets
from edgeops.agent.sets import Member, at_start, changing, decide
from edgeops.agent.states import Event
from edgeops.agent.store import ComponentRecord
from edgeops.contracts.deployment import Component, ComponentKind, DeploymentState, Failure, Slot
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import pack
from edgeops.testkit.power import Cut, cuts, recording

State = DeploymentState
NAMES = ("detector", "reader")
EVERY = 40  # in the bounded tier every so many cuts are tried


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Bundles(NamedTuple):
    """Three releases of two models: files by digest, and what asks for them, by model and number."""

    files: dict[str, tuple[Path, Slot]]
    components: dict[tuple[str, int], Component]

    def set_of(self, number: int) -> list[Component]:
        return [self.components[name, number] for name in NAMES]

    def digests(self, number: int) -> dict[str, str | None]:
        return {name: self.components[name, number].digest for name in NAMES}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder = tmp_path_factory.mktemp("bundles")
    files, components = {}, {}
    for name, number in itertools.product(NAMES, range(1, 4)):
        bundle = small_bundle(folder / f"{name}-{number}", add=float(number), model=name)
        file = folder / f"{name}-{number}.edgeops"
        pack(bundle, file)
        slot = Slot(release=f"1.{number}.0", digest=bundle.digest, number=number)
        files[bundle.digest] = (file, slot)
        components[name, number] = Component(
            name=name, kind=ComponentKind.MODEL, release=slot.release, target="t", digest=bundle.digest,
            set_name="reading",
        )  # fmt: skip
    return Bundles(files, components)


@pytest.fixture
def device(tmp_path: Path, bundles: Bundles) -> Path:
    """A device that serves the first release of both models."""
    rig = SetRig(tmp_path / "device", NAMES, bundles.files)
    rig.start()
    rig.pursue(1, *bundles.set_of(1))
    assert set(rig.settle_all().values()) == {State.CONFIRMED}
    rig.close()
    return tmp_path / "device"


def bad_one(bundles: Bundles) -> frozenset[str]:
    return frozenset({bundles.components["reader", 2].digest})


def apart(components: list[Component]) -> list[Component]:
    return [msgspec.structs.replace(component, set_name="") for component in components]


def test_a_set_switches_together(device: Path, bundles: Bundles, monkeypatch: pytest.MonkeyPatch):
    """No member is switched before the self-tests of all have passed."""
    rig = SetRig(device, NAMES, bundles.files)
    seen = watch_switches(rig, monkeypatch)
    rig.start()
    rig.pursue(2, *bundles.set_of(2))
    assert set(rig.settle_all().values()) == {State.CONFIRMED}
    assert rig.serves() == bundles.digests(2)
    assert [sorted(state for state in states.values()) for states in seen] == [
        ["self-test", "trial"],  # the first switches: the other has passed its test too, and follows at once
        ["trial", "trial"],
    ]
    rig.close()


def watch_switches(rig: SetRig, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, State]]:
    """Note the states of all members whenever one is switched."""
    seen: list[dict[str, State]] = []
    for name, deployment in rig.deployments.items():
        slots = deployment._slots

        def switch(slot: str, *, switch=slots.switch, name: str = name) -> None:  # type: ignore[no-untyped-def]
            seen.append({other: part.record.state for other, part in rig.deployments.items()})
            switch(slot)

        monkeypatch.setattr(slots, "switch", switch)
    return seen


def test_a_member_that_fails_its_self_test_keeps_the_others_from_switching(
    device: Path, bundles: Bundles, monkeypatch: pytest.MonkeyPatch
):
    rig = SetRig(device, NAMES, bundles.files, bad_one(bundles))
    switched = watch_switches(rig, monkeypatch)
    rig.start()
    rig.pursue(2, *bundles.set_of(2))
    assert set(rig.settle_all().values()) == {State.FAILED}
    assert switched == []
    assert rig.serves() == bundles.digests(1)
    failures = {name: part.record.failure for name, part in rig.deployments.items()}
    assert failures["reader"] is not None
    assert failures["reader"].code == "E-SELFTEST-GOLDEN"
    assert failures["detector"] is not None
    assert (failures["detector"].code, failures["detector"].what) == (
        "E-SET", "of the same set reader: E-SELFTEST-GOLDEN failed"
    )  # fmt: skip
    rig.close()


def test_components_that_are_no_set_do_not_hold_each_other(device: Path, bundles: Bundles):
    """Negative control: without the set name the other one goes on."""
    rig = SetRig(device, NAMES, bundles.files, bad_one(bundles))
    rig.start()
    rig.pursue(2, *apart(bundles.set_of(2)))
    assert rig.settle_all() == {"detector": State.CONFIRMED, "reader": State.FAILED}
    assert rig.serves() == {"detector": bundles.digests(2)["detector"], "reader": bundles.digests(1)["reader"]}
    rig.close()


def test_a_member_that_fails_in_its_trial_takes_the_others_back(device: Path, bundles: Bundles):
    rig = SetRig(device, NAMES, bundles.files)
    rig.start()
    rig.serving_of("reader").is_serving = False  # it switches, and then is never healthy
    rig.pursue(2, *bundles.set_of(2))
    run_until(rig, {"detector": State.TRIAL, "reader": State.TRIAL})
    assert rig.serves() == bundles.digests(2)
    run_some(rig)
    assert rig.deployments["detector"].ready is Event.HEALTHY  # and waits
    failure = Failure(code="E-TRIAL", what="as told", release="1.2.0", at_s=0)
    rig.deployments["reader"].handle(Event.UNHEALTHY, failure=failure)
    assert set(rig.settle_all().values()) == {State.FAILED}
    assert rig.serves() == bundles.digests(1)
    rig.close()


def run_some(rig: SetRig, turns: int = 50) -> None:
    for _ in range(turns):
        rig.loop.post(rig.loop.stop)
        rig.loop.run()
        time.sleep(TRIAL_LOOK_EVERY_S)


def run_until(rig: SetRig, states: dict[str, State]) -> None:
    for _ in range(500):
        if {name: part.record.state for name, part in rig.deployments.items()} == states:
            return
        run_some(rig, 1)
    raise AssertionError({name: part.record for name, part in rig.deployments.items()})


def test_a_newer_wish_for_one_member_has_all_begin_anew(device: Path, bundles: Bundles):
    """The others were to switch with the bundle that is not wanted any more."""
    rig = SetRig(device, NAMES, bundles.files)
    rig.start()
    rig.serving_of("reader").is_serving = False
    rig.pursue(2, *bundles.set_of(2))
    run_until(rig, {"detector": State.TRIAL, "reader": State.TRIAL})
    rig.pursue(3, bundles.components["detector", 2], bundles.components["reader", 3])
    assert rig.deployments["detector"].record.state is State.DOWNLOADING
    assert rig.serves() == bundles.digests(1)
    rig.serving_of("reader").is_serving = True
    assert set(rig.settle_all().values()) == {State.CONFIRMED}
    assert rig.serves() == {"detector": bundles.digests(2)["detector"], "reader": bundles.digests(3)["reader"]}
    rig.close()


def test_a_member_that_changes_alone_goes_alone(device: Path, bundles: Bundles):
    rig = SetRig(device, NAMES, bundles.files)
    rig.start()
    rig.pursue(2, bundles.components["detector", 1], bundles.components["reader", 2])
    assert rig.deployments["reader"].record.together == ()
    assert set(rig.settle_all().values()) == {State.CONFIRMED}
    assert rig.serves()["reader"] == bundles.digests(2)["reader"]
    rig.close()


def test_a_set_that_is_dissolved_does_not_keep_its_members_waiting(device: Path, bundles: Bundles):
    rig = SetRig(device, NAMES, bundles.files)
    rig.start()
    rig.serving_of("reader").is_serving = False
    rig.pursue(2, *bundles.set_of(2))
    run_until(rig, {"detector": State.TRIAL, "reader": State.TRIAL})
    run_some(rig)
    rig.pursue(3, *apart(bundles.set_of(2)))
    run_until(rig, {"detector": State.CONFIRMED, "reader": State.TRIAL})
    rig.close()


def test_a_set_with_a_component_that_the_device_cannot_have_changes_nothing(device: Path, bundles: Bundles):
    rig = SetRig(device, NAMES, bundles.files)
    rig.start()
    rig.pursue(2, *bundles.set_of(2), blocked=["reading"])
    assert set(rig.settle_all().values()) == {State.REJECTED}
    assert rig.serves() == bundles.digests(1)
    rig.close()


def test_a_confirmed_member_that_loses_its_bundle_gets_it_back_alone(device: Path, bundles: Bundles):
    rig = SetRig(device, NAMES, bundles.files)
    rig.start()
    rig.pursue(2, *bundles.set_of(2))
    rig.settle_all()
    rig.deployments["reader"].damaged(EdgeopsError("E-BUNDLE-DAMAGED", "as told"))
    assert set(rig.settle_all().values()) == {State.CONFIRMED}
    assert rig.serves() == bundles.digests(2)
    rig.close()


# The decisions


def record(name: str, state: State, together: tuple[str, ...] = ("a", "b"), generation: int = 1) -> ComponentRecord:
    failed = state in (State.FAILED, State.REJECTED, State.ROLLING_BACK)
    failure = Failure(code="E-TRIAL", what="", release="1", at_s=5.0) if failed else None
    return ComponentRecord(name=name, state=state, together=together, generation=generation, failure=failure)


def test_a_set_goes_on_only_if_all_that_move_wait_for_the_same():
    for first, second in itertools.product(
        [Member(State.SELF_TEST, None), Member(State.SELF_TEST, Event.TEST_PASSED), Member(State.TRIAL, Event.HEALTHY),
         Member(State.TRIAL, None), Member(State.DOWNLOADING, None), Member(State.HELD, None)], repeat=2
    ):  # fmt: skip
        decided = decide({"a": first, "b": second})
        together = first == second and first.ready is not None
        assert decided == ({"a": first.ready, "b": first.ready} if together else {})


@pytest.mark.parametrize("state", [State.FAILED, State.REJECTED, State.ROLLING_BACK])
def test_a_failure_stops_whoever_is_on_its_way(state: State):
    for other in (State.HELD, State.DOWNLOADING, State.STAGED, State.SELF_TEST, State.TRIAL):
        members = {"a": Member(state, None), "b": Member(other, Event.HEALTHY)}
        assert decide(members) == {"b": Event.ABANDONED}
    assert decide({"a": Member(state, None), "b": Member(State.FAILED, None)}) == {}


@pytest.mark.parametrize(
    ("other", "state"),
    [
        (State.CONFIRMED, State.CONFIRMED),
        (State.ROLLING_BACK, State.ROLLING_BACK),
        (State.FAILED, State.ROLLING_BACK),
        (State.TRIAL, State.TRIAL),
        (State.SELF_TEST, State.DOWNLOADING),
        (State.DOWNLOADING, State.DOWNLOADING),
    ],
)
def test_a_trial_is_at_the_next_start_what_its_set_had_decided(other: State, state: State):
    mine = record("a", State.TRIAL)
    assert at_start(mine, [mine, record("b", other)]).state is state


def test_a_trial_whose_set_is_gone_begins_anew():
    mine = record("a", State.TRIAL)
    assert at_start(mine, [mine]).state is State.DOWNLOADING


def test_only_members_that_do_not_hold_what_is_wanted_go_together(bundles: Bundles):
    wanted = bundles.set_of(2)
    old = {name: Slot(release="1.1.0", digest=bundles.components[name, 1].digest, number=1) for name in NAMES}
    assert changing(wanted, old) == dict.fromkeys(NAMES, NAMES)
    new = Slot(release="1.2.0", digest=bundles.components["reader", 2].digest, number=2)
    assert changing(wanted, {**old, "reader": new}) == {}
    assert changing(apart(wanted), old) == {}
    confirmed: Mapping[str, Slot | None] = {}
    assert changing(wanted, confirmed) == dict.fromkeys(NAMES, NAMES)


# The power is cut


def recorded(device: Path, bundles: Bundles, bad: frozenset[str]) -> list[Cut]:
    with recording(device) as journal:
        rig = SetRig(device, NAMES, bundles.files, bad)
        rig.start()
        rig.pursue(2, *bundles.set_of(2))
        states = rig.settle_all()
        rig.close()
    assert set(states.values()) == {State.FAILED if bad else State.CONFIRMED}
    return list(cuts(journal))


def check_recovery(disk: Path, bundles: Bundles, bad: frozenset[str]) -> None:
    """At the start all serve the old bundles or all the new ones, and what was desired is reached."""
    rig = SetRig(disk, NAMES, bundles.files, bad)
    try:
        rig.start()
        served = rig.serves()
        assert served in (bundles.digests(1), bundles.digests(2)), f"a mixture serves: {served}"
        rig.pursue_kept()
        rig.settle_all()
        rig.pursue(2, *bundles.set_of(2))
        states = rig.settle_all()
        # One that had to begin anew is refused before its test.
        assert set(states.values()) <= ({State.FAILED, State.REJECTED} if bad else {State.CONFIRMED}), states
        assert rig.serves() == bundles.digests(1 if bad else 2)
    finally:
        rig.close()


def survive(all_cuts: list[Cut], bundles: Bundles, bad: frozenset[str], scratch: Path, every: int) -> int:
    survived = 0
    for index in range(0, len(all_cuts), every):
        disk = scratch / str(index)
        all_cuts[index].tree.write_to(disk)
        check_recovery(disk, bundles, bad)
        shutil.rmtree(disk)
        survived += 1
    return survived


@pytest.mark.parametrize("fails", [False, True], ids=["update", "failed update"])
def test_a_cut_never_leaves_a_mixture(
    fails: bool, device: Path, bundles: Bundles, tmp_path: Path, proof: Callable[[str], None]
):
    bad = bad_one(bundles) if fails else frozenset()
    survived = survive(recorded(device, bundles, bad), bundles, bad, tmp_path / "cuts", EVERY)
    proof(f"{survived} cuts of a set survived")
    assert survived >= 20


@pytest.mark.full
@pytest.mark.parametrize("fails", [False, True], ids=["update", "failed update"])
def test_no_cut_ever_leaves_a_mixture(
    fails: bool, device: Path, bundles: Bundles, tmp_path: Path, proof: Callable[[str], None]
):
    bad = bad_one(bundles) if fails else frozenset()
    survived = survive(recorded(device, bundles, bad), bundles, bad, tmp_path / "cuts", 1)
    proof(f"{survived} cuts of a set survived")
    assert survived >= 800


@pytest.mark.parametrize("mutant", ["members start as they were", "members do not wait"])
def test_a_set_that_is_none_is_caught_by_name(
    mutant: str,
    device: Path,
    bundles: Bundles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    proof: Callable[[str], None],
):
    """Negative control: each mutant leaves a mixture after some cut."""
    nothing: frozenset[str] = frozenset()
    if mutant == "members start as they were":
        monkeypatch.setattr(sets, "at_start", lambda record, group: record)
    else:
        monkeypatch.setattr(sets, "changing", lambda wanted, confirmed: {})
    # Where members do not wait most cuts show it; a few of all are looked at before the rest.
    all_cuts = recorded(device, bundles, nothing)
    for index, cut in enumerate([*all_cuts[::25], *reversed(all_cuts)]):
        disk = tmp_path / "mutant" / str(index)
        cut.tree.write_to(disk)
        rig = SetRig(disk, NAMES, bundles.files)
        rig.start()
        served = rig.serves()
        rig.close()
        if served not in (bundles.digests(1), bundles.digests(2)):
            proof(f"mutant {mutant!r} caught: a mixture serves")
            return
        shutil.rmtree(disk)
    pytest.fail(f"the mutant {mutant!r} was not caught")
