"""Enrolment: only what the token vouches for counts, a refusal leaves nothing behind, a cut can be made good."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from adder_bundles import PROFILE
from fake_fleet import DEVICE, FLEET, FakeFleet

from edgeops import durable
from edgeops.agent.enrolment import enrol, enrolled
from edgeops.agent.store import StateDirectory
from edgeops.contracts.enrolment import EnrolmentToken, EnrolRequest
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import encode
from edgeops.testkit.power import cuts, recording
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.device import DeviceIdentity
from edgeops.trust.founding import make_fleet


@pytest.fixture(scope="module")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeFleet]:
    fleet = FakeFleet(tmp_path_factory.mktemp("fleet"))
    yield fleet
    fleet.stop()


@pytest.fixture
def fleet(shared_fleet: FakeFleet) -> Iterator[FakeFleet]:
    yield shared_fleet
    shared_fleet.ca_pem, shared_fleet.root = shared_fleet.authority.ca_pem, shared_fleet.publisher.root_bytes()
    shared_fleet.answer_enrolment = shared_fleet.enrol


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    state = StateDirectory(tmp_path / "state")
    yield state
    state.close()


def join(state: StateDirectory, token: str) -> None:
    enrol(state, EnrolmentToken.from_text(token), profile=PROFILE, name=DEVICE)


def files(state: StateDirectory) -> list[str]:
    return sorted(path.name for path in state.root.rglob("*") if path.is_file() and path.name != "lock")


def test_a_device_enrols_with_a_key_that_never_leaves_it(fleet: FakeFleet, state: StateDirectory):
    join(state, fleet.token())
    enrolment = enrolled(state)
    assert enrolment is not None
    assert (enrolment.fleet, enrolment.connection, enrolment.profile) == (FLEET, DEVICE, PROFILE)
    key = state.identity / "device.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    identity = DeviceIdentity.load(state.identity)
    certificate = fleet.certificates[DEVICE]
    assert identity.signer.public_key == DeviceIdentity.public_key_from_certificate(certificate)
    assert "once" not in "".join(path.read_text() for path in state.root.rglob("*.json"))


def refused(state: StateDirectory, token: str) -> str:
    with pytest.raises(EdgeopsError) as caught:
        join(state, token)
    assert enrolled(state) is None
    return caught.value.code


def test_a_server_with_another_ca_is_refused_and_nothing_is_stored(
    fleet: FakeFleet, state: StateDirectory, tmp_path: Path
):
    """Also when it can show a CA certificate of its own: the token names another."""
    fleet.ca_pem = FleetAuthority.create(tmp_path / "other", FLEET).ca_pem
    assert refused(state, fleet.token()) == "E-TRUST-ROOT"
    assert files(state) == []


def test_a_stolen_ca_certificate_does_not_help_a_server_without_its_key(
    fleet: FakeFleet, state: StateDirectory, tmp_path: Path
):
    """The token names the other fleet's CA, the server shows that certificate, but its own TLS is of another CA."""
    other = FleetAuthority.create(tmp_path / "other", FLEET)
    fleet.ca_pem = other.ca_pem
    assert refused(state, fleet.token(ca_sha256=other.ca_sha256)) == "E-NET-UNREACHABLE"
    assert files(state) == []


def test_another_first_root_is_refused_and_nothing_is_stored(fleet: FakeFleet, state: StateDirectory, tmp_path: Path):
    fleet.root = make_fleet(tmp_path / "other-home", FLEET).root_bytes()
    assert refused(state, fleet.token()) == "E-TRUST-ROOT"
    assert files(state) == []


@pytest.mark.parametrize(
    "junk", [b"", b"not a certificate", b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"]
)
def test_junk_for_a_ca_is_refused(fleet: FakeFleet, state: StateDirectory, junk: bytes):
    fleet.ca_pem = junk
    assert refused(state, fleet.token()) == "E-TRUST-ROOT"


@pytest.mark.parametrize("text", ["", "eo1.", "eo1.!!!!", "eo1.e30", "nonsense"])
def test_a_token_that_is_none_is_refused(text: str):
    with pytest.raises(EdgeopsError) as caught:
        EnrolmentToken.from_text(text)
    assert caught.value.code == "E-TOKEN"


def test_a_used_token_is_refused_by_the_server(fleet: FakeFleet, state: StateDirectory):
    assert refused(state, fleet.token(secret="twice")) == "E-TOKEN"


def test_an_answer_for_another_key_or_fleet_is_refused(fleet: FakeFleet, state: StateDirectory, tmp_path: Path):
    stranger = DeviceIdentity.create(tmp_path / "stranger")

    def for_another_key(request: EnrolRequest) -> tuple[int, bytes]:
        fleet.certificates[DEVICE] = fleet.authority.issue_device(stranger.csr_pem(DEVICE), DEVICE)
        return 200, encode(fleet.response(DEVICE))

    fleet.answer_enrolment = for_another_key
    assert refused(state, fleet.token()) == "E-TRUST-KEY"

    def for_another_name(request: EnrolRequest) -> tuple[int, bytes]:
        fleet.certificates["else"] = fleet.authority.issue_device(request.csr_pem.encode(), "else")
        fleet.certificates[DEVICE] = fleet.certificates["else"]
        return 200, encode(fleet.response(DEVICE))

    fleet.answer_enrolment = for_another_name
    assert refused(state, fleet.token()) == "E-ENROLL"


@pytest.mark.parametrize(
    "answer", [(500, b"oops"), (200, b"{}"), (200, b"\xff"), (403, json.dumps({"code": 7}).encode())]
)
def test_an_answer_that_is_none_is_refused(fleet: FakeFleet, state: StateDirectory, answer: tuple[int, bytes]):
    fleet.answer_enrolment = lambda request: answer
    assert refused(state, fleet.token()) in ("E-ENROLL", "E-WIRE-MALFORMED")


def test_enrolment_goes_on_with_the_same_key_after_a_cut(fleet: FakeFleet, state: StateDirectory):
    fleet.answer_enrolment = lambda request: (500, b"cut")
    assert refused(state, fleet.token()) == "E-ENROLL"
    key = (state.identity / "device.key").read_bytes()
    fleet.answer_enrolment = fleet.enrol
    join(state, fleet.token())
    assert (state.identity / "device.key").read_bytes() == key
    assert enrolled(state) is not None


def test_a_damaged_record_is_said_and_not_guessed(fleet: FakeFleet, state: StateDirectory):
    join(state, fleet.token())
    (state.identity / "enrolment.json").write_bytes(b"\0" * 50)
    with pytest.raises(EdgeopsError) as caught:
        enrolled(state)
    assert caught.value.code == "E-STATE-CORRUPT"


def enrol_and_cut(fleet: FakeFleet, folder: Path) -> int:
    """Enrol; then look at every disk that a cut on the way may leave. Returns how many were survived.

    Nothing that was acknowledged is lost: the token counts once. A device that is not enrolled yet does it again, with
    the same key if there is one.
    """
    disk = folder / "state"
    disk.mkdir()
    with recording(disk) as journal:
        state = StateDirectory(disk)
        join(state, fleet.token())
        state.close()
    key = (disk / "identity" / "device.key").read_bytes()
    survived = again = 0
    for index, cut in enumerate(cuts(journal)):
        root = folder / "cuts" / str(index)
        cut.tree.write_to(root)
        after = StateDirectory(root)
        try:
            kept = (root / "identity" / "device.key").exists()
            if enrolled(after) is None:
                assert cut.after < len(journal.operations), "an enrolment that was acknowledged is lost"
                again += 1
                if again % 8 == 1:  # each is opened; at every eighth the server is asked too
                    join(after, fleet.token())
                    assert not kept or (root / "identity" / "device.key").read_bytes() == key
            if enrolled(after) is not None:
                DeviceIdentity.load(after.identity)
        finally:
            after.close()
        survived += 1
    return survived


def test_a_cut_at_any_point_of_enrolment_costs_neither_the_token_nor_the_key(
    fleet: FakeFleet, tmp_path: Path, proof: Callable[[str], None]
):
    survived = enrol_and_cut(fleet, tmp_path)
    proof(f"{survived} cuts of enrolment survived")
    assert survived > 100


@pytest.mark.parametrize("mutant", ["no fsync of the directory", "names of new directories are not durable"])
def test_a_forgetful_enrolment_is_caught_by_name(
    mutant: str, fleet: FakeFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proof: Callable[[str], None]
):
    """Negative control: the acknowledged enrolment is gone after some cut, and its token is used."""
    if mutant == "no fsync of the directory":
        monkeypatch.setattr(durable, "fsync_dir", lambda directory: None)
    else:
        monkeypatch.setattr(durable, "make_private_dir", lambda path: path.mkdir(0o700, parents=True, exist_ok=True))
    with pytest.raises(AssertionError, match="acknowledged is lost"):
        enrol_and_cut(fleet, tmp_path)
    proof(f"mutant {mutant!r} caught: an enrolment that was acknowledged is lost")
