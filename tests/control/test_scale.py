"""A fleet of simulated devices with real TLS connections: all come, all are heard, all get a release, none is lost."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from served_fleet import MODEL, PROFILES, Serving, make_release, needs_mosquitto, wait_for
from sqlalchemy import func, select

from edgeops.client.rollout_resources import GatesInfo, RolloutWish
from edgeops.contracts.enrolment import BrokerAddress
from edgeops.control.database import Database
from edgeops.control.models import Generation
from edgeops.control.telemetry_models import TelemetryWindow
from edgeops.testkit.simulator import SimulatedDevice, Simulator, enroll_many
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.founding import make_fleet


@needs_mosquitto
@pytest.mark.parametrize(
    "count",
    [
        40,
        pytest.param(2_000, marks=[pytest.mark.full, pytest.mark.timeout(1200)]),
        pytest.param(10_000, marks=[pytest.mark.scale, pytest.mark.timeout(3600)]),
    ],
)
def test_none_of_a_fleet_is_lost(tmp_path: Path, count: int) -> None:
    home = tmp_path / "home"
    publisher = make_fleet(home, "f1")
    for version in ("1.0.0", "1.1.0"):
        make_release(home, version)
    database = Database(home / "control.sqlite")
    database.migrate()
    identities = enroll_many(database, FleetAuthority.load(home / "ca"), tmp_path / "devices", count, PROFILES)
    key = publisher.desired_signer().public_key
    serving = Serving(home, "mosquitto")
    broker = msgspec.convert(serving.start()["broker"], BrokerAddress)
    devices = [SimulatedDevice(one, "f1", broker, {key.keyid: key}, frozenset()) for one in identities]
    simulator = Simulator(devices, telemetry_every_s=max(1.0, count / 200))
    try:
        begun = time.monotonic()
        simulator.start()
        assert simulator.wait_online(max(30.0, count / 20))
        print(f"{count} devices: connected in {time.monotonic() - begun:.1f} s", flush=True)
        gates = GatesInfo(timeout_s=1200)
        for version, groups in (("1.0.0", ("100%",)), ("1.1.0", ("10%", "50%", "100%"))):
            made = serving.api.create_rollout(
                RolloutWish(model=MODEL, version=version, groups=groups, gates=gates, start=True)
            )

            def through(rollout_id: int = made.id) -> int:
                counts = [c for g in serving.api.rollout(rollout_id).groups for c in g.profiles.values()]
                return sum(c.confirmed for c in counts)

            begun = time.monotonic()
            deadline_s = begun + max(60.0, count / 10)
            while through() < count:
                assert time.monotonic() < deadline_s, f"{through()} of {count} are through"
                time.sleep(0.2)
            print(
                f"{version} is on all {count} in {time.monotonic() - begun:.1f} s, in {len(groups)} groups", flush=True
            )
        assert {device.running[MODEL].release for device in devices} == {"1.1.0"}
        wait_for(lambda: simulator.windows >= count, "too few windows were told")
        assert simulator.hush(max(60.0, count / 20)), "the broker does not acknowledge what was told"
        simulator.stop()
        with database.read() as session:
            assert session.scalar(select(func.count()).select_from(Generation)) == 2 * count

        def kept() -> int:
            with database.read() as session:
                return session.scalar(select(func.count()).select_from(TelemetryWindow)) or 0

        deadline_s = time.monotonic() + max(90.0, count / 10)
        while kept() < simulator.windows:
            assert time.monotonic() < deadline_s, f"of {simulator.windows} acknowledged windows {kept()} are kept"
            time.sleep(0.2)
        assert kept() == simulator.windows
        print(f"{simulator.windows} windows were told, and all are kept", flush=True)
        assert all(device.refused == 0 for device in devices)
        assert sum(device.rejected_messages for device in serving.api.devices()) == 0
    finally:
        serving.stop()
        database.close()
