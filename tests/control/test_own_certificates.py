"""The control plane's certificates are renewed while it serves, and nobody's connection ends for it."""

from __future__ import annotations

import ssl
import sys
import time
from pathlib import Path

import pytest
from served_fleet import Fleet, Serving, needs_mosquitto, wait_for

from edgeops.trust import certificates

pytestmark = needs_mosquitto

_SHORT = """
from edgeops.control import service
from edgeops.trust import authority
authority.SERVER_VALID_S = {valid_s}
service.UPKEEP_EVERY_S = 0.5
from edgeops.cli import main
main()
"""


class Short(Serving):
    """A control plane whose own certificates hold for so long, and that looks after them every half second."""

    valid_s = 3600.0

    def command(self) -> list[str]:
        return [sys.executable, "-c", _SHORT.format(valid_s=self.valid_s)]

    def shown(self) -> tuple[str, str, str]:
        """What the three listeners show: people's, the artifacts' and the broker's."""
        ports = [int(self.ready[name].rpartition(":")[2]) for name in ("api", "artifacts")]
        pems = [ssl.get_server_certificate(("127.0.0.1", port)) for port in (*ports, self.ready["broker"]["port"])]
        return pems[0], pems[1], pems[2]


@pytest.fixture
def fleet_of(home: Path, tmp_path: Path):
    served = []

    def make(valid_s: float) -> tuple[Short, Fleet]:
        serving = Short(home, "mosquitto")
        serving.valid_s = valid_s
        serving.start()
        served.append((serving, Fleet(serving, tmp_path / "devices")))
        return served[-1]

    yield make
    for serving, fleet in served:
        fleet.stop()
        serving.stop()


def test_every_listener_shows_the_new_one_and_no_session_ends(fleet_of) -> None:
    serving, fleet = fleet_of(3600.0)
    lost: list[object] = []
    for device in fleet.devices.values():
        device.link._on_disconnect = lost.append
    before = serving.shown()
    client = (serving.home / "ca" / "control.pem").read_bytes()
    wait_for(lambda: not set(serving.shown()) & set(before), "a listener kept its certificate")
    assert (serving.home / "ca" / "control.pem").read_bytes() != client
    ca_pem = (serving.home / "ca" / "ca.pem").read_bytes()
    for pem in serving.shown():
        certificates.check_issued_by(pem.encode(), ca_pem)
    assert serving.api.health().status == "ok"
    assert lost == [], "a renewal ended a session"
    # Both of the pair were there when the broker read them: who connects now is let in.
    device = next(iter(fleet.devices.values()))
    device.link.stop()
    device.link.start()
    assert device.link.wait_connected(60)


def test_certificates_that_hold_for_long_are_left_alone(fleet_of) -> None:
    """The control: it is the time that is left which has them renewed."""
    serving, _ = fleet_of(397 * 86400.0)
    before = serving.shown()
    time.sleep(2.0)  # four looks
    assert serving.shown() == before
