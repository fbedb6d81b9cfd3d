"""A revoked device is out at once: its live session, its kept-alive connections, and everything that it tries later."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from cryptography import x509
from fake_device import FakeDevice
from served_fleet import MODEL, Fleet, Serving, needs_mosquitto, run, wait_for

from edgeops.client.rollout_resources import RolloutWish
from edgeops.contracts.errors import EdgeopsError
from edgeops.control.broker.mosquitto import CRL_NAME
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.device import DeviceIdentity

pytestmark = needs_mosquitto
GONE, STAYS = "raspberry-pi-4-1", "intel-nuc-1"


@pytest.fixture
def artifacts(served: Serving, fleet: Fleet) -> Iterator[dict[str, urllib3.HTTPSConnectionPool]]:
    """Each device's one connection to the artifacts, kept alive."""
    host, port = served.ready["artifacts"].removeprefix("https://").split(":")
    pools = {
        name: urllib3.HTTPSConnectionPool(host, int(port), ssl_context=device.tls_context(), maxsize=1, retries=False)
        for name, device in fleet.devices.items()
    }
    yield pools
    for pool in pools.values():
        pool.close()


def fetched(pool: urllib3.HTTPSConnectionPool) -> int:
    return int(pool.request("GET", "/metadata/timestamp.json").status)


def test_a_revoked_device_is_out_at_once_and_the_others_stay(
    served: Serving, fleet: Fleet, artifacts: dict[str, urllib3.HTTPSConnectionPool]
) -> None:
    assert {fetched(pool) for pool in artifacts.values()} == {200}
    gone, stays = fleet.devices[GONE], fleet.devices[STAYS]
    connected_before = artifacts[GONE].num_connections
    assert "is revoked" in run(served, "device", "revoke", GONE, "--yes")
    wait_for(lambda: not gone.link.connected, "the live session went on")
    # The very connection that worked before, and the artifacts with it.
    assert fetched(artifacts[GONE]) == 403
    assert artifacts[GONE].num_connections == connected_before
    assert stays.link.connected
    assert fetched(artifacts[STAYS]) == 200
    # It tries to come back for a while; no rollout waits for it or reaches it.
    made = served.api.create_rollout(RolloutWish(model=MODEL, version="1.0.0", start=True))
    wait_for(lambda: served.api.rollout(made.id).state == "succeeded", "the rollout waited for a revoked device")
    assert not gone.link.connected
    assert gone.generations == []
    shown = next(device for device in served.api.devices() if device.connection == GONE)
    assert (shown.online, shown.revoked_at_s is not None) == (False, True)
    assert next(entry.action for entry in served.api.audit() if entry.subject == f"device/{GONE}") == "device.revoke"
    assert served.api.revoke_device(GONE).connection == GONE  # once more changes nothing
    with pytest.raises(EdgeopsError, match="E-DEVICE-UNKNOWN"):
        served.api.revoke_device("nobody")


def test_it_stays_out_after_the_control_plane_was_started_anew(served: Serving, fleet: Fleet) -> None:
    served.api.revoke_device(GONE)
    served.stop()
    served.start()
    wait_for(lambda: fleet.devices[STAYS].link.connected, "an honest device did not come back")
    time.sleep(1.0)
    assert not fleet.devices[GONE].link.connected


def test_a_list_alone_leaves_the_live_session_up(served: Serving, fleet: Fleet) -> None:
    """The negative control of the take-over: mosquitto reads the list, and the session that is up goes on."""
    gone: FakeDevice = fleet.devices[GONE]
    authority = FleetAuthority.load(served.home / "ca")
    certificate = x509.load_pem_x509_certificate(gone._identity.tls_files().certificate.read_bytes())
    path = served.home / "broker" / CRL_NAME
    path.write_bytes(authority.revocation_list({certificate.serial_number: time.time()}))
    os.kill(served.ready["broker_pid"], signal.SIGHUP)
    time.sleep(1.0)
    assert gone.link.connected
    served.api.revoke_device(GONE)
    wait_for(lambda: not gone.link.connected, "the live session went on")


def test_a_list_names_its_serials_and_does_not_run_out(tmp_path: Path) -> None:
    authority = FleetAuthority.create(tmp_path / "ca", "f1")
    identity = DeviceIdentity.create(tmp_path / "device")
    certificate = x509.load_pem_x509_certificate(authority.issue_device(identity.csr_pem("d"), "d"))
    ca = x509.load_pem_x509_certificate(authority.ca_pem)
    listed = x509.load_pem_x509_crl(authority.revocation_list({certificate.serial_number: 1_700_000_000.0}))
    assert listed.is_signature_valid(ca.public_key())  # type: ignore[arg-type]
    assert listed.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
    assert listed.get_revoked_certificate_by_serial_number(certificate.serial_number + 1) is None
    assert listed.next_update_utc == ca.not_valid_after_utc
