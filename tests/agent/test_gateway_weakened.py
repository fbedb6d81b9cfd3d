"""Negative controls of `test_gateway.py`: a gateway that lacks one check does what that check is for preventing.

And what no gateway can do, however weak: have a board run what was not signed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mcu_site import Site
from securesystemslib.signer import CryptoSigner

from edgeops.contracts.deployment import DeploymentState
from edgeops.releases import blob_signing
from firmware_bridge.emulated import HostBoard
from firmware_bridge.link import SmpLink
from firmware_bridge.ports import SerialPort

WEAKENED = Path(__file__).parent / "weakened"
pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("arm_compiler", "emulator", "host_compiler"),
]


@pytest.fixture
def weak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Site]]:
    """Makes a site whose gateway lacks a check."""
    made: list[Site] = []

    def make(check: str) -> Site:
        monkeypatch.setenv("PYTHONPATH", str(WEAKENED))
        monkeypatch.setenv("EDGEOPS_TEST_WITHOUT", check)
        made.append(Site(tmp_path))
        made[0].desire(made[0].release(1))
        made[0].wait_state(DeploymentState.CONFIRMED)
        return made[0]

    yield make
    for site in made:
        site.close()


def test_a_gateway_that_takes_any_device_for_its_own_writes_to_a_wrong_one(
    weak: Callable[[str], Site], tmp_path: Path, proof: Callable[[str], None]
):
    site = weak("mcu_identity")
    with HostBoard(tmp_path / "other.bin", [site.key]) as other:
        site.cable.plug(other.url)
        site.desire(site.release(2))
        report = site.wait_state(DeploymentState.FAILED)
        site.agent.kill()
        site.cable.pull()
        with SmpLink(SerialPort(other.url)) as link:
            # The new model, or the one before, which is put back at the next look.
            assert link.images(), "the control did no harm"
            assert link.model_info().model is None
    # The board itself is the last to look.
    assert report.failure is not None
    assert report.failure.code == "E-MCU-REFUSED"
    assert "another processor" in report.failure.what
    proof("a gateway that takes any device for its own is caught")


def test_a_gateway_that_always_begins_anew_is_seen_in_its_progress(
    weak: Callable[[str], Site], proof: Callable[[str], None]
):
    site = weak("mcu_resume")
    site.desire(site.release(2, padding=30_000))
    site.wait_arrived(60)
    site.cable.pull()
    site.wait_problem("E-MCU-PORT")
    site.cable.plug()
    site.wait_state(DeploymentState.CONFIRMED)
    assert not site.went_on()
    proof("a gateway that begins each upload anew is caught")


def test_a_gateway_that_does_not_compare_answers_keeps_a_model_that_lies(
    weak: Callable[[str], Site], proof: Callable[[str], None]
):
    site = weak("mcu_golden")
    site.desire(site.release(3, lie=1.0))
    site.wait_state(DeploymentState.CONFIRMED)
    assert site.runs() == "1.3.0"
    proof("a gateway that does not compare answers is caught")


def test_a_gateway_that_confirms_before_its_board_has_kept_a_model_is_caught(
    weak: Callable[[str], Site], proof: Callable[[str], None]
):
    site = weak("mcu_keeping")
    with pytest.raises(AssertionError):
        site.runs()
    proof("a gateway that confirms before its board keeps a model is caught")


def stranger() -> CryptoSigner:
    return CryptoSigner.generate_ed25519()


def test_a_blob_of_a_strangers_key_is_the_boards_to_refuse(tmp_path: Path):
    """The gateway does not look who signed a blob: the board does."""
    site = Site(tmp_path)
    try:
        site.desire(site.release(1))
        site.wait_state(DeploymentState.CONFIRMED)
        site.desire(site.release(2, signer=stranger()))
        report = site.wait_state(DeploymentState.FAILED)
        assert report.failure is not None
        assert report.failure.code == "E-MCU-REFUSED"
        assert "a key that the firmware does not hold" in report.failure.what
        assert site.runs() == "1.1.0"
    finally:
        site.close()


def test_a_board_that_holds_the_strangers_key_runs_it(tmp_path: Path, proof: Callable[[str], None]):
    """The control of the test above: nothing else stood in the way."""
    signer = stranger()
    site = Site(tmp_path, keys=[blob_signing.raw_public(signer)])
    try:
        site.desire(site.release(2, signer=signer))
        site.wait_state(DeploymentState.CONFIRMED)
        assert site.runs() == "1.2.0"
    finally:
        site.close()
    proof("a board that holds a stranger's key is caught")
