"""Joining a fleet: a token lets exactly one device in, and only the one it is for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from enrolment_door import NOW, Door
from registry_fleet import FLEET, open_registry
from sqlalchemy import select

from edgeops.contracts.errors import EdgeopsError
from edgeops.control.api.limits import ATTEMPTS_WINDOW_S, MAX_ADDRESSES, MAX_REFUSED, Attempts
from edgeops.control.enrolment import TokenScope
from edgeops.control.models import Device, EnrolmentTokenRow, Unit
from edgeops.trust import certificates
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.device import DeviceIdentity


@pytest.fixture
def door(tmp_path: Path, registry_url: Path | str) -> Iterator[Door]:
    database = open_registry(registry_url)
    yield Door(database, FleetAuthority.create(tmp_path / "ca", FLEET), tmp_path)
    database.close()


def test_a_device_joins_with_its_own_key_and_the_tokens_labels(door: Door) -> None:
    joined = door.knock(door.token(TokenScope(labels={"site": "a"})), name="cam-1")
    identity = DeviceIdentity.create(door.directory / "k")
    assert certificates.common_name(joined.certificate_pem) == "cam-1"
    assert certificates.public_key(joined.certificate_pem) == identity.signer.public_key
    certificates.check_issued_by(joined.certificate_pem, door.authority.ca_pem)
    with door.database.read() as session:
        device = session.get_one(Device, "cam-1")
        assert (device.profile, device.labels, device.online) == ("intel-nuc", {"site": "a"}, False)
        assert session.get(Unit, ("cam-1", "self")) is not None


def test_only_the_hash_of_a_secret_is_kept(door: Door) -> None:
    secret = door.token()
    with door.database.read() as session:
        row = session.scalars(select(EnrolmentTokenRow)).one()
        kept = [str(getattr(row, column.key)) for column in EnrolmentTokenRow.__table__.columns]
    assert len(row.secret_sha256) == 64
    assert not any(secret in value for value in kept)


def test_a_token_lets_one_of_many_in_at_once(door: Door) -> None:
    """Sixteen devices come with the same token at the same moment."""
    secret = door.token()
    results: list[str] = []
    start = threading.Barrier(16)

    def come(number: int) -> None:
        start.wait()
        try:
            results.append(door.knock(secret, key=f"k{number}", name=f"dev-{number}").connection)
        except EdgeopsError as error:
            results.append(error.code)

    threads = [threading.Thread(target=come, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results)[:15] == ["E-TOKEN"] * 15
    assert door.devices() == [sorted(results)[15]]


def test_unknown_used_and_expired_tokens_are_told_apart_by_nobody(door: Door) -> None:
    used = door.token()
    door.knock(used)
    expired = door.token(valid_s=10)
    said = set()
    for secret, now_s in (("unknown", NOW), (used, NOW), (expired, NOW + 10)):
        with pytest.raises(EdgeopsError, match="E-TOKEN") as error:
            door.knock(secret, key="another", now_s=now_s)
        said.add(str(error.value))
    assert len(said) == 1
    assert len(door.devices()) == 1
    door.knock(expired, now_s=NOW + 9)  # negative control: before its end it lets in
    assert len(door.devices()) == 2


@pytest.mark.parametrize(
    ("scope", "wish"),
    [
        (TokenScope(profile="raspberry-pi-4"), {"profile": "intel-nuc"}),
        (TokenScope(name="cam-1"), {"name": "cam-2"}),
        (TokenScope(), {"name": "taken"}),
        (TokenScope(), {"name": "edgeops-control"}),
        (TokenScope(), {"csr_pem": "not a csr"}),
        (TokenScope(), {"csr_pem": "x" * 40_000}),
    ],
)
def test_a_refused_device_leaves_the_token_usable(door: Door, scope: TokenScope, wish: dict[str, str]) -> None:
    door.knock(door.token(), name="taken")
    secret = door.token(scope)
    with pytest.raises(EdgeopsError, match="E-ENROLL"):
        door.knock(secret, **wish)
    assert door.devices() == ["taken"]
    good = {"profile": scope.profile or "intel-nuc", "name": scope.name or "good"}
    door.knock(secret, **good)
    assert door.devices() == sorted(["taken", good["name"]])


@pytest.mark.parametrize("name", ["Cam", "a/b", "+", "#", "", "..", "a" * 64])
def test_names_that_would_break_topics_are_refused(door: Door, name: str) -> None:
    with pytest.raises(EdgeopsError, match="E-NAME"):
        door.knock(door.token(), name=name)
    assert door.devices() == []


def test_a_device_without_a_wish_gets_a_name_of_its_own(door: Door) -> None:
    first, second = (door.knock(door.token(), key=key) for key in ("k1", "k2"))
    assert first.connection != second.connection
    assert all(name.startswith("intel-nuc-") for name in door.devices())


def test_tokens_need_possible_scopes(door: Door) -> None:
    for scope in (TokenScope(profile="A B"), TokenScope(labels={"Bad Key": "x"})):
        with pytest.raises(EdgeopsError, match="E-NAME"):
            door.token(scope)
    for valid_s in (0.0, -1.0, 1e9):
        with pytest.raises(EdgeopsError, match="E-CONFIG"):
            door.token(valid_s=valid_s)


def test_an_answer_that_was_lost_is_given_again_to_the_same_key_alone(door: Door) -> None:
    secret = door.token()
    first = door.knock(secret, name="cam-1")
    assert door.knock(secret, name="cam-1") == first
    assert door.knock(secret, name="another-wish", now_s=NOW + 60) == first
    assert door.devices() == ["cam-1"]
    # The controls: another key, another profile, after its time, and after the device was revoked.
    for wish in ({"key": "thief"}, {"profile": "raspberry-pi-4"}, {"now_s": NOW + 3600.0}):
        with pytest.raises(EdgeopsError) as refused:
            door.knock(secret, **wish)  # type: ignore[arg-type]
        assert refused.value.code == "E-TOKEN"
    with door.database.write() as session:
        session.get_one(Device, "cam-1").revoked_at_s = NOW
    with pytest.raises(EdgeopsError, match="E-TOKEN"):
        door.knock(secret, name="cam-1")


def test_guesses_from_one_address_are_slowed_down_and_others_are_not() -> None:
    clock = [0.0]
    attempts = Attempts(lambda: clock[0])
    for _ in range(MAX_REFUSED):
        attempts.check("10.0.0.1")
        attempts.refused("10.0.0.1")
    with pytest.raises(EdgeopsError) as refused:
        attempts.check("10.0.0.1")
    assert refused.value.code == "E-API-RATE"
    attempts.check("10.0.0.2")
    clock[0] += ATTEMPTS_WINDOW_S
    attempts.check("10.0.0.1")
    for number in range(MAX_ADDRESSES + 10):
        attempts.refused(f"address-{number}")
    assert len(attempts._refused) <= MAX_ADDRESSES
