"""What an agent of an earlier version left on its disk, and was told: today's agent goes on from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from adder_bundles import small_bundle
from deployment_rig import DeploymentRig, SetRig
from record_version import VERSIONS, write_directory
from tuf.ngclient.fetcher import FetcherInterface

from edgeops.agent.backlog import TelemetryQueue
from edgeops.agent.config import read_config
from edgeops.agent.enrolment import CLOCK_FILE, read_enrolment
from edgeops.agent.status import read_status
from edgeops.agent.store import ComponentRecord, StateDirectory
from edgeops.contracts.deployment import Component, ComponentKind, DeploymentState, Slot
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import decode
from edgeops.releases.bundles import pack
from edgeops.trust import desired as desired_statements
from edgeops.trust.time import Clock
from edgeops.trust.tuf_client import TufClient

RECORDED = sorted(path for path in VERSIONS.iterdir() if path.is_dir())
NAMES = ("adder", "second")


class NoNetwork(FetcherInterface):
    def _fetch(self, url: str) -> Any:
        raise EdgeopsError("E-NET-UNREACHABLE", url)


class Older:
    """What one version left, on a disk of its own."""

    def __init__(self, recorded: Path, root: Path) -> None:
        self.root = root
        self.files: dict[str, Any] = json.loads((recorded / "state.json").read_text())
        told = json.loads((recorded / "messages.json").read_text())
        self.recorded_at_s: float = told["recorded_at_s"]
        self.envelopes = [message["desired"].encode() for message in told["messages"] if "desired" in message]
        write_directory(self.files, root)
        (root / "lock").touch()

    def __getitem__(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.files[name])
        return content


@pytest.fixture(params=RECORDED, ids=lambda path: path.name)
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Older:
    return Older(request.param, tmp_path / "device")


def packed(folder: Path, name: str) -> tuple[dict[str, tuple[Path, Slot]], Component]:
    """Today's next release of a model."""
    bundle = small_bundle(folder / name, add=9.0, model=name)
    pack(bundle, folder / f"{name}.edgeops")
    slot = Slot(release="1.9.0", digest=bundle.digest, number=9)
    want = Component(name=name, kind=ComponentKind.MODEL, release="1.9.0", target="t", digest=bundle.digest)
    return {bundle.digest: (folder / f"{name}.edgeops", slot)}, want


def test_its_bundles_serve_at_once_and_the_next_release_is_reached(older: Older, tmp_path: Path):
    (new_adder, want_adder), (new_second, want_second) = (packed(tmp_path / "new", name) for name in NAMES)
    rig = SetRig(older.root, NAMES, {**new_adder, **new_second})
    try:
        rig.start()
        slots = {name: older[f"components/{name}/slots/active"]["slot"] for name in NAMES}
        digests = {name: older[f"components/{name}/slots/{slots[name]}/slot.json"]["slot"]["digest"] for name in NAMES}
        assert rig.serves() == digests
        assert rig.settle_all() == {"adder": DeploymentState.CONFIRMED, "second": DeploymentState.FAILED}
        assert rig.deployments["adder"].report().fallback is not None
        assert rig.state.read_unit().generation == older["unit.json"]["generation"]
        assert rig.state.read_unit().numbers == older["unit.json"]["numbers"]
        rig.pursue(9, want_adder, want_second)
        assert set(rig.settle_all().values()) == {DeploymentState.CONFIRMED}
        assert rig.serves() == {"adder": want_adder.digest, "second": want_second.digest}
        assert rig.state.damaged == []
    finally:
        rig.close()


def test_nothing_that_it_kept_is_lost(older: Older):
    assert {part["name"]: part["state"] for part in read_status(older.root)["components"]} == {
        "adder": "confirmed", "second": "failed",
    }  # fmt: skip
    enrolment = read_enrolment(older.root / "identity")
    assert enrolment is not None
    assert (enrolment.connection, enrolment.fleet) == ("device-1", "demo")
    read_config(older.root)
    queue = TelemetryQueue(older.root / "queue", 10)
    windows = [queue.read(number) for number in queue.waiting(9)]
    assert [window.models[0].requests for window in windows if window is not None] == [1]
    state = StateDirectory(older.root)
    desired = state.read_desired()
    state.close()
    assert desired is not None
    assert [component.name for component in desired.components] == ["adder", "second"]


def test_what_it_trusted_still_verifies_what_it_was_told(older: Older):
    clock = Clock(older.root / "trust" / CLOCK_FILE, system=lambda: older.recorded_at_s, build_s=0.0)
    tuf = TufClient(older.root / "trust", "https://127.0.0.1:1", NoNetwork(), clock)
    generations = []
    for envelope in older.envelopes:
        desired = desired_statements.verify(
            envelope, keys=tuf.desired_keys(), fleet="demo", connection="device-1", unit="self",
            floor_generation=0, now_s=clock.now(),
        )  # fmt: skip
        generations.append(desired.generation)
        for component in desired.components:
            assert component.kind is ComponentKind.MODEL
    assert generations == [1, 2, 3, 4]
    kept = older["desired.json"]["components"]
    assert [tuf.target(component["target"]).custom.digest for component in kept] == [part["digest"] for part in kept]


def test_a_field_that_older_records_do_not_have_would_be_noticed(older: Older):
    """Negative control: a record that asks for more than older versions wrote cannot read them."""

    class Demanding(ComponentRecord, frozen=True, kw_only=True):
        mood: str

    with pytest.raises(EdgeopsError) as caught:
        decode(older.files["components/adder/state.json"], Demanding, what="record")
    assert caught.value.code == "E-WIRE-MALFORMED"


@pytest.mark.parametrize("state", [*sorted(state for state in DeploymentState), "hibernating"])
def test_a_record_in_any_state_ends_no_start(state: str, older: Older, tmp_path: Path):
    """Also one that only another version's agent enters, or that does not exist yet."""
    files, want = packed(tmp_path / "new", "adder")
    name = "components/adder/state.json"
    digest = older[name]["want"]["digest"]
    told = older.files[name].replace('"state":"confirmed"', f'"state":"{state}"')
    (older.root / name).write_text(told)
    old = {digest: (tmp_path / "nowhere", Slot(release="1.2.0", digest=digest, number=2))}
    rig = DeploymentRig(older.root, "adder", {**files, **old})
    try:
        rig.start()
        assert rig.serving.current is not None
        rig.pursue(want, 9)
        assert rig.settle() is DeploymentState.CONFIRMED
        assert rig.serving.current.digest == want.digest
    finally:
        rig.close()
