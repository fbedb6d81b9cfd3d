"""The key that signs desired state is replaced under a control plane that runs: it goes on with the new one."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from served_fleet import MODEL, Fleet, Serving, wait_for

from edgeops.client.api import Api
from edgeops.client.rollout_resources import RolloutWish
from edgeops.contracts.deployment import Desired
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rollouts import ENDED_STATES
from edgeops.control.fleet_trust import FleetTrust
from edgeops.trust import desired as desired_state
from edgeops.trust.founding import make_fleet
from edgeops.trust.publisher import Publisher

WANTED = Desired(
    fleet="demo", connection="pi-1", unit="self", generation=1, issued_at_s=1.0, expires_at_s=9.0, components=()
)  # fmt: skip


def ended(api: Api, rollout: int) -> bool:
    return api.rollout(rollout).state in ENDED_STATES


def verified(home: Path, envelope: bytes) -> Desired:
    """As a device that has fetched the newest metadata."""
    publisher = Publisher(home)
    key = publisher.desired_signer().public_key
    return desired_state.verify(
        envelope, keys={key.keyid: key}, fleet="demo", connection="pi-1", unit="self", floor_generation=1, now_s=2.0
    )  # fmt: skip


def test_a_rotated_key_signs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_fleet(tmp_path / "home", "demo")
    trust = FleetTrust(tmp_path / "home")
    before = trust.desired_keyid()
    assert verified(tmp_path / "home", trust.sign(WANTED)) == WANTED
    gone, new = Publisher(tmp_path / "home").rotate("desired-state")
    assert (gone, trust.desired_keyid()) == (before, new)
    assert verified(tmp_path / "home", trust.sign(WANTED)) == WANTED
    # Control: without the look at the repository the old key goes on, and no device believes it.
    monkeypatch.setattr(Publisher, "edition_mark", lambda self: 0)
    blind = FleetTrust(tmp_path / "home")
    Publisher(tmp_path / "home").rotate("desired-state")
    with pytest.raises(EdgeopsError, match="E-TRUST-SIGNATURE"):
        verified(tmp_path / "home", blind.sign(WANTED))


def test_a_repository_that_cannot_be_read_leaves_the_key_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_fleet(tmp_path / "home", "demo")
    trust = FleetTrust(tmp_path / "home")
    before = trust.desired_keyid()
    (tmp_path / "home" / "repository" / "metadata" / "timestamp.json").write_bytes(b"{}")
    assert trust.desired_keyid() == before
    assert "signs on" in caplog.text


def test_a_rotated_key_re_signs_the_whole_fleet_without_a_restart(served: Serving, fleet: Fleet) -> None:
    """Devices that believe the new key only are told all again, also those whose desired state did not change."""
    api = served.api
    first = api.create_rollout(RolloutWish(model=MODEL, version="1.0.0", start=True))
    wait_for(lambda: ended(api, first.id), "the rollout does not end")
    # What is signed anew may come before it is known here by which key.
    with contextlib.ExitStack() as deaf:
        for device in fleet.devices.values():
            deaf.enter_context(device.hearing)
        Publisher(served.home).rotate("desired-state")
        key = Publisher(served.home).desired_signer().public_key
        for device in fleet.devices.values():
            device.asleep = True
            device.generations.clear()
            device._keys = {key.keyid: key}
    # A change for one of them wakes the publisher before its next look.
    api.create_rollout(RolloutWish(model=MODEL, version="1.1.0", groups=("34%", "100%"), start=True))
    wait_for(lambda: all(device.generations for device in fleet.devices.values()), "not all were told again")
    wait_for(lambda: any(2 in device.generations for device in fleet.devices.values()), "nobody got the release")
    assert sum(device.generations == [1] for device in fleet.devices.values()) >= 1
    assert served.process.poll() is None
