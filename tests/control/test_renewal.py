"""A certificate is renewed by the device that has its key, in time or within the grace after, and by nobody else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_fleet import open_registry
from served_fleet import Serving, needs_mosquitto, run, wait_for

from edgeops.agent.renewing import is_due
from edgeops.contracts.enrolment import EnrolmentToken, EnrolRequest, RenewalMessage
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import decode
from edgeops.control import renewal
from edgeops.control.database import Database
from edgeops.control.enrolment import FirstTrust, TokenScope, enrol, issue_token
from edgeops.control.models import AuditEntry, Device
from edgeops.control.revocation import revoke, revoked_serials
from edgeops.transport.http import HttpClient, context_for
from edgeops.trust import authority, certificates
from edgeops.trust import renewal as messages
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.device import DeviceIdentity

DAY_S, FLEET, NAME = 86400.0, "f1", "pi-1"


@pytest.fixture
def clock() -> list[float]:
    return [1_800_000_000.0]


@pytest.fixture
def ca(tmp_path: Path, clock: list[float]) -> FleetAuthority:
    return FleetAuthority.create(tmp_path / "ca", FLEET, now=lambda: clock[0])


@pytest.fixture
def database(registry_url: Path | str) -> Iterator[Database]:
    opened = open_registry(registry_url)
    yield opened
    opened.close()


@pytest.fixture
def device(tmp_path: Path, database: Database, ca: FleetAuthority, clock: list[float]) -> DeviceIdentity:
    """A device that has joined."""
    identity = DeviceIdentity.create(tmp_path / NAME)
    trust = FirstTrust("https://there", FLEET, ca.ca_sha256, "0" * 64)
    text = issue_token(database, trust, TokenScope(), actor="admin", now_s=clock[0]).text
    secret = EnrolmentToken.from_text(text).secret
    request = EnrolRequest(secret=secret, csr_pem=identity.csr_pem(NAME).decode(), profile="raspberry-pi-4", name=NAME)
    identity.install(enrol(database, ca, request, now_s=clock[0]).certificate_pem, ca.ca_pem)
    return identity


def message(device: DeviceIdentity, following: DeviceIdentity, fleet: str = FLEET, name: str = NAME) -> RenewalMessage:
    data = messages.sign(fleet, name, following.csr_pem(name), device.signer)
    return decode(data, RenewalMessage, what="message")


def renewal_by(following: DeviceIdentity) -> RenewalMessage:
    """Return what a device says by its next key alone, since the one before is known no more."""
    return message(following, following)


def renewed(database: Database, ca: FleetAuthority, wish: RenewalMessage, clock: list[float]) -> bytes:
    return renewal.renew(database, ca, FLEET, wish, now_s=clock[0])


def refused(code: str, database: Database, ca: FleetAuthority, wish: RenewalMessage, clock: list[float]) -> None:
    with pytest.raises(EdgeopsError) as caught:
        renewed(database, ca, wish, clock)
    assert caught.value.code == code


def test_next_key_gets_a_certificate_and_a_lost_answer_is_given_again(database, ca, device, clock) -> None:
    clock[0] += 250 * DAY_S
    following = device.next_key()
    issued = renewed(database, ca, message(device, following), clock)
    assert certificates.public_key(issued) == following.signer.public_key
    assert certificates.common_name(issued) == NAME
    assert certificates.validity(issued).not_after_s == pytest.approx(clock[0] + 365 * DAY_S)
    assert renewed(database, ca, message(device, device.next_key()), clock) == issued, "the key waits for its answer"
    following.install(issued, ca.ca_pem)
    assert DeviceIdentity.load(device.directory).signer.public_key == following.signer.public_key
    with database.read() as session:
        (entry,) = session.query(AuditEntry).filter_by(actor=f"device/{NAME}")
    assert entry.action == "device.renew"


def test_next_key_waits_until_it_is_damaged(device) -> None:
    first = device.next_key().signer.public_key
    assert device.next_key().signer.public_key == first
    (device.directory / "device.next.key").write_bytes(b"torn")
    assert device.next_key().signer.public_key != first


def test_certificate_that_ran_out_is_renewed_within_the_grace_only(database, ca, device, clock) -> None:
    clock[0] += 365 * DAY_S + messages.GRACE_S + 1
    refused("E-ENROLL", database, ca, message(device, device.next_key()), clock)
    clock[0] -= 2
    assert renewed(database, ca, message(device, device.next_key()), clock)


def test_nobody_else_renews_it(database, ca, device, clock, tmp_path: Path) -> None:
    thief = DeviceIdentity.create(tmp_path / "thief")
    refused("E-TRUST-SIGNATURE", database, ca, message(thief, thief), clock)
    refused("E-TRUST-SIGNATURE", database, ca, message(thief, device.next_key()), clock)
    refused("E-TRUST-DEVICE", database, ca, message(device, device.next_key(), fleet="other"), clock)
    other = message(device, device.next_key(), name="pi-2")
    refused("E-ENROLL", database, ca, other, clock)
    swapped = RenewalMessage(connection=NAME, envelope=other.envelope)
    refused("E-TRUST-DEVICE", database, ca, swapped, clock)
    revoke(database, NAME, actor="admin", now_s=clock[0])
    refused("E-ENROLL", database, ca, message(device, device.next_key()), clock)


def test_without_the_signature_a_thief_would_get_a_certificate(
    database, ca, device, clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the envelope's signature is what stands between a thief and the device's name."""
    thief = DeviceIdentity.create(tmp_path / "thief")
    monkeypatch.setattr(renewal.renewal, "verify", lambda *_: thief.csr_pem(NAME))
    issued = renewed(database, ca, message(thief, thief), clock)
    assert certificates.public_key(issued) == thief.signer.public_key


def test_key_that_was_replaced_gets_its_answer_again_and_no_other(database, ca, device, clock, tmp_path: Path) -> None:
    """A replayed request, or a stolen old key, brings at most what the device has already."""
    old = message(device, device.next_key())
    issued = renewed(database, ca, old, clock)
    assert renewed(database, ca, old, clock) == issued
    thief = DeviceIdentity.create(tmp_path / "thief")
    refused("E-TRUST-SIGNATURE", database, ca, message(device, thief), clock)
    clock[0] += renewal.PREVIOUS_KEY_S
    refused("E-TRUST-SIGNATURE", database, ca, old, clock)


def test_answer_that_was_lost_until_it_ran_out_is_given_anew(database, ca, device, clock) -> None:
    following = device.next_key()
    lost = renewed(database, ca, message(device, following), clock)
    clock[0] += 300 * DAY_S
    refused("E-TRUST-SIGNATURE", database, ca, message(device, following), clock)
    wish = renewal_by(following)
    issued = renewed(database, ca, wish, clock)
    assert certificates.public_key(issued) == certificates.public_key(lost)
    assert certificates.validity(issued).not_after_s == pytest.approx(clock[0] + 365 * DAY_S)
    assert renewed(database, ca, wish, clock) == issued, "it holds, so there is nothing to replace"
    revoke(database, NAME, actor="admin", now_s=clock[0])
    serials = {certificates.read(pem, what="c").serial_number for pem in (lost, issued)}
    assert serials <= set(revoked_serials(database))


def test_revocation_covers_the_certificates_before(database, ca, device, clock) -> None:
    first = device.certificate_pem
    following = device.next_key()
    second = renewed(database, ca, message(device, following), clock)
    revoke(database, NAME, actor="admin", now_s=clock[0])
    serials = {certificates.read(pem, what="c").serial_number for pem in (first, second)}
    assert set(revoked_serials(database)) == serials


def test_older_certificates_are_forgotten_once_they_ran_out(database, ca, device, clock) -> None:
    current = device
    for _ in range(3):
        following = current.next_key()
        following.install(renewed(database, ca, message(current, following), clock), ca.ca_pem)
        current = DeviceIdentity.load(device.directory)
        clock[0] += 200 * DAY_S
    with database.read() as session:
        (older,) = session.get(Device, NAME).older_certificates
    assert older["until_s"] > clock[0] - 200 * DAY_S


def test_due_two_thirds_through_spread_over_the_fleet_or_when_wanted() -> None:
    life = certificates.Validity(0.0, 300 * DAY_S)
    moments = [messages.due_s(life, f"pi-{number}") / DAY_S for number in range(200)]
    assert 200 <= min(moments) < 202
    assert 210 < max(moments) <= 212.5
    assert not is_due(life, NAME, 100 * DAY_S, None)
    assert is_due(life, NAME, 213 * DAY_S, None)
    assert is_due(life, NAME, 100 * DAY_S, 50 * DAY_S)
    assert not is_due(life, NAME, 100 * DAY_S, authority.SKEW_S), "it was issued after the wish"


# The device's end: a real agent and a real broker.

_SERVE = """
import sys
from edgeops.trust import authority
authority.DEVICE_VALID_S = float(sys.argv.pop(1))
from edgeops.cli import main
main()
"""


class ShortLived(Serving):
    """A control plane whose device certificates end so many seconds after they are issued."""

    valid_s = 0.0

    def command(self) -> list[str]:
        return [sys.executable, "-c", _SERVE, str(self.valid_s)]


def start_agent(served: Serving, folder: Path, token: str | None) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "edgeops", "agent", "run", "--state", str(folder), "--http-port", "0"]
    if token is not None:
        words += ["--profile", "raspberry-pi-4", "--name", NAME, "--token", token]
    return subprocess.Popen(words, env=dict(os.environ))


def stop(agent: subprocess.Popen[bytes]) -> None:
    agent.send_signal(signal.SIGTERM)
    agent.wait(60)


def online(served: Serving) -> bool:
    return any(device.online for device in served.api.devices())


@needs_mosquitto
def test_operator_has_a_device_renew_while_it_is_connected(home: Path, tmp_path: Path) -> None:
    served = Serving(home, "mosquitto")
    served.start()
    agent = start_agent(served, tmp_path / "device", served.api.create_token().token)
    try:
        wait_for(lambda: online(served), "it did not come online")
        identity = tmp_path / "device" / "identity"
        before = (identity / "device.pem").read_bytes()
        assert "renew" in run(served, "device", "renew", NAME)
        wait_for(lambda: (identity / "device.pem").read_bytes() != before, "it kept its certificate")
        wait_for(lambda: served.api.device(NAME).certificate_renewed_at_s, "nobody noted it")
        # What the new key signs counts: a second wish reaches it, and its reports are taken.
        after = (identity / "device.pem").read_bytes()
        run(served, "device", "renew", NAME)
        wait_for(lambda: (identity / "device.pem").read_bytes() != after, "the second wish did not reach it")
        stop(agent)
        agent = start_agent(served, tmp_path / "device", None)
        wait_for(lambda: online(served), "it did not come back with its new certificate")
        assert served.api.device(NAME).rejected_messages == 0
    finally:
        stop(agent)
        served.stop()


@needs_mosquitto
@pytest.mark.parametrize("answer_lost", [False, True], ids=["", "answer lost long ago"])
def test_device_whose_certificate_ran_out_comes_back_by_itself(home: Path, tmp_path: Path, answer_lost: bool) -> None:
    served = ShortLived(home, "mosquitto")
    served.valid_s = 4.0
    served.start()
    agent = start_agent(served, tmp_path / "device", served.api.create_token().token)
    try:
        directory = tmp_path / "device" / "identity"
        wait_for((directory / "enrolment.json").exists, "it did not join")
        stop(agent)
        if answer_lost:
            lose_answer(directory)
        served.stop()
        if answer_lost:
            forget_previous_key(served)
        certificate = directory / "device.pem"
        ends_s = certificates.validity(certificate.read_bytes()).not_after_s
        time.sleep(max(0.0, ends_s - time.time()) + 0.5)
        served.valid_s = 365 * DAY_S
        served.start()
        agent = start_agent(served, tmp_path / "device", None)

        def lasts() -> bool:
            return certificates.validity(certificate.read_bytes()).not_after_s > time.time() + 300 * DAY_S

        wait_for(lasts, "it did not renew its certificate")
        # The registry may still have known it as online from before: who is known by a new start is back.
        wait_for(lambda: online(served), "it did not come back")
    finally:
        stop(agent)
        served.stop()


def lose_answer(directory: Path) -> None:
    """Ask for the next key's certificate as the agent does, and lose what is answered."""
    identity = DeviceIdentity.load(directory)
    said = json.loads((directory / "enrolment.json").read_bytes())
    wish = messages.sign(said["fleet"], NAME, identity.next_key().csr_pem(NAME), identity.signer)
    http = HttpClient(context_for((directory / "ca.pem").read_bytes()))
    status, answer = http.post_json(f"{said['server']}/bootstrap/renew", wish, max_bytes=1 << 16)
    assert status == 200, answer


def forget_previous_key(served: Serving) -> None:
    """Have the registry believe that the renewal was so long ago that the key before counts no more."""
    database = open_registry(served.home)
    with database.write() as session:
        device = session.get(Device, NAME)
        device.renewed_at_s -= renewal.PREVIOUS_KEY_S
    database.close()


def type_in(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeops", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@needs_mosquitto
def test_device_without_a_network_is_enrolled_by_two_files(home: Path, tmp_path: Path) -> None:
    served = Serving(home, "mosquitto")
    served.start()
    token, state = tmp_path / "token", tmp_path / "device"
    token.write_text(served.api.create_token().token)
    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    try:
        asked = type_in(
            "agent", "enroll", "--state", state, "--token-file", token, "--profile", "intel-nuc", "--name", NAME,
            "--request", request,
        )  # fmt: skip
        assert asked.returncode == 0, asked.stderr
        assert request.stat().st_mode & 0o777 == 0o600
        assert b"PRIVATE" not in request.read_bytes()
        let_in = type_in("device", "enroll", "--home", served.home, request, "--out", answer)
        assert let_in.returncode == 0, let_in.stderr
        given = answer.read_text()
        for what, other in (
            ("root", given.replace('"version\\":1', '"version\\":2')),
            ("CA", swap_ca(given, tmp_path)),
        ):
            assert other != given
            answer.write_text(other)
            refused = type_in("agent", "enroll", "--state", state, "--token-file", token, "--answer", answer)
            assert "E-TRUST-ROOT" in refused.stderr, (what, refused.stderr)
        answer.write_text(given)
        taken = type_in("agent", "enroll", "--state", state, "--token-file", token, "--answer", answer)
        assert f"enrolled as {NAME}" in taken.stdout, taken.stderr
        agent = start_agent(served, state, None)
        try:
            wait_for(lambda: online(served), "it did not come online")
        finally:
            stop(agent)
    finally:
        served.stop()


def swap_ca(answer: str, tmp_path: Path) -> str:
    """Return an answer with the CA of another fleet of the same name."""
    said = json.loads(answer)
    said["response"]["ca_pem"] = FleetAuthority.create(tmp_path / "other-ca", FLEET).ca_pem.decode()
    return json.dumps(said)
