"""The state directory: one agent at a time, and no damaged file stops the device or opens it to a replay."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgeops.agent import store
from edgeops.agent.slots import Slots
from edgeops.agent.store import ComponentRecord, StateDirectory, UnitRecord, is_locked
from edgeops.contracts.deployment import Component, ComponentKind, DeploymentState, Desired
from edgeops.contracts.errors import EdgeopsError
from edgeops.testkit.power import cuts, recording


@pytest.fixture
def state(tmp_path: Path):
    state = StateDirectory(tmp_path / "state")
    yield state
    state.close()


def desired(generation: int) -> Desired:
    component = Component(name="m", kind=ComponentKind.MODEL, release="1.0.0", target="t", digest="sha256:d")
    return Desired(
        fleet="f",
        connection="c",
        unit="self",
        generation=generation,
        issued_at_s=1,
        expires_at_s=2,
        components=(component,),
    )


def test_a_second_agent_is_refused_and_the_first_goes_on(state: StateDirectory):
    code = f"""
from pathlib import Path
from edgeops.agent.store import StateDirectory
from edgeops.contracts.errors import EdgeopsError
try:
    StateDirectory(Path({str(state.root)!r}))
except EdgeopsError as error:
    print(error.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "E-STATE-LOCKED"
    assert is_locked(state.root)
    state.write_unit(UnitRecord(generation=3))
    assert state.read_unit().generation == 3


def test_the_lock_ends_with_its_holder(tmp_path: Path):
    StateDirectory(tmp_path / "s").close()
    assert not is_locked(tmp_path / "s")
    StateDirectory(tmp_path / "s").close()


@pytest.mark.parametrize("patient", [True, False])
def test_who_only_looks_whether_an_agent_runs_keeps_none_from_starting(
    patient: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`agent status` and `agent install` look by taking the lock for a moment. Negative control: an agent that does not
    wait for that moment takes whoever looks for another agent."""
    if not patient:
        monkeypatch.setattr(store, "LOCK_WITHIN_S", 0.0)
    StateDirectory(tmp_path / "s").close()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            is_locked(tmp_path / "s")

    looking = threading.Thread(target=look)
    looking.start()
    refused = 0
    try:
        for _ in range(2000):
            try:
                StateDirectory(tmp_path / "s").close()
            except EdgeopsError as error:
                refused += error.code == "E-STATE-LOCKED"
    finally:
        over.set()
        looking.join()
    assert (refused == 0) is patient


DAMAGE = [b"", b"\0" * 200, b"{", b'{"generation":"x"}', b"\xff\xfe"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_floors_still_refuse_an_older_generation(state: StateDirectory, damage: bytes):
    """The generation floor is told again by the desired state that was accepted last."""
    state.write_desired(desired(7))
    state.write_unit(UnitRecord(generation=7, numbers={"m": 4}))
    (state.root / "unit.json").write_bytes(damage)
    assert state.read_unit().generation == 7
    assert state.damaged == [state.root / "unit.json"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_component_record_is_told_again_by_the_slots(state: StateDirectory, damage: bytes):
    slots = Slots(state.component_dir("m"))
    state.write_component(ComponentRecord(name="m", state=DeploymentState.DOWNLOADING, generation=7))
    (state.component_dir("m") / "state.json").write_bytes(damage)
    assert state.read_component("m", slots) == ComponentRecord(name="m", state=DeploymentState.IDLE)
    assert state.damaged


def test_a_record_from_a_newer_agent_is_read_as_far_as_it_is_known(state: StateDirectory):
    slots = Slots(state.component_dir("m"))
    (state.component_dir("m") / "state.json").write_bytes(b'{"name":"m","state":"levitating","new_field":1}')
    assert state.read_component("m", slots).state is DeploymentState.IDLE


def test_power_cut_while_a_record_is_written_leaves_the_old_or_the_new(state: StateDirectory, tmp_path: Path):
    old, new = UnitRecord(generation=1), UnitRecord(generation=2, numbers={"m": 1})
    state.write_unit(old)
    with recording(state.root) as journal:
        state.write_unit(new)
    for index, cut in enumerate(cuts(journal)):
        cut.tree.write_to(tmp_path / "cuts" / str(index))
        reopened = StateDirectory(tmp_path / "cuts" / str(index))
        assert reopened.read_unit() in (old, new)
        assert not reopened.damaged
        reopened.close()


@pytest.mark.parametrize("name", ["../evil", "", "UPPER", "a/b"])
def test_a_component_cannot_leave_the_state_directory(state: StateDirectory, name: str):
    with pytest.raises(EdgeopsError) as caught:
        state.component_dir(name)
    assert caught.value.code == "E-NAME"
