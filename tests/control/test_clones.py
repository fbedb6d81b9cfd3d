"""Two machines with one identity are noticed; one that restarts, or is replayed, is not taken for two."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_fleet import SpeakingDevice, add_devices, open_registry
from served_fleet import Serving, needs_mosquitto, run, wait_for

from edgeops.contracts.deployment import Reported
from edgeops.contracts.errors import EdgeopsError
from edgeops.control.database import Database
from edgeops.control.groups.facts import facts_of
from edgeops.control.ingest.apply import CLONE_SIGNS, Batch
from edgeops.control.models import Device
from edgeops.control.units import enrolled

NOW = 1_000_000.0


@pytest.fixture
def database(registry_url: Path | str) -> Iterator[Database]:
    opened = open_registry(registry_url)
    add_devices(opened, 1)
    yield opened
    opened.close()


@pytest.fixture
def name(database: Database) -> str:
    with database.read() as session:
        return session.query(Device).one().connection


def health(database: Database, name: str) -> str:
    with database.read() as session:
        return facts_of(enrolled(session), NOW)[name].health


class Machine(SpeakingDevice):
    """Says what it says as ingest takes it: what is wrong with a message undoes nothing else."""

    refused = 0

    def say(self, statement: Reported, now_s: float) -> None:  # type: ignore[override]
        with self._database.write() as session:
            batch = Batch(session, [self.name], now_s)
            try:
                batch.apply(batch.devices[self.name], statement)
            except EdgeopsError as error:
                self.refused += error.code == "E-REPORT-STALE"
            batch.finish()

    def report_now(self) -> Reported:
        return self.report((), observed=0, now_s=NOW)


def test_two_machines_with_one_identity_are_noticed(database: Database, name: str) -> None:
    first, second = (Machine(database, name, boot_id=boot) for boot in ("boot-1", "boot-2"))
    first.report_now()
    second.report_now()
    for sign in range(CLONE_SIGNS):
        assert health(database, name) != "cloned", f"after {sign} signs"
        first.report_now()
        second.report_now()
    assert health(database, name) == "cloned"


def test_restarts_and_replays_are_no_clones(database: Database, name: str) -> None:
    said: list[Reported] = []
    for number in range(20):
        device = Machine(database, name, boot_id=f"boot-{number}")
        said += [device.report_now() for _ in range(3)]
    device = Machine(database, name, boot_id="boot-now")
    device.report_now()
    for statement in said * 2:
        device.say(statement, NOW)
    assert device.refused == 2 * len(said)
    assert health(database, name) != "cloned"


@needs_mosquitto
def test_a_copied_state_directory_is_noticed(home: Path, tmp_path: Path) -> None:
    served = Serving(home, "mosquitto")
    served.start()
    token = served.api.create_token(name="pi-1").token
    agents = [start(tmp_path / "device", "--profile", "raspberry-pi-4", "--token", token)]
    try:
        wait_for(lambda: any(device.online for device in served.api.devices()), "it did not come online")
        end(agents.pop())
        shutil.copytree(tmp_path / "device", tmp_path / "copy")
        agents += [start(tmp_path / "device"), start(tmp_path / "copy")]
        wait_for(lambda: served.api.device("pi-1").cloned_since_s, "nobody noticed the copy")
        assert "cloned" in run(served, "device", "list")
        assert "edgeops device revoke pi-1" in run(served, "device", "show", "pi-1")
        assert [device.connection for device in served.api.devices("health = cloned")] == ["pi-1"]
    finally:
        for agent in agents:
            end(agent)
        served.stop()


def start(state: Path, *more: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "edgeops", "agent", "run", "--state", str(state), "--http-port", "0", *more]
    return subprocess.Popen(words, env=dict(os.environ))


def end(agent: subprocess.Popen[bytes]) -> None:
    agent.send_signal(signal.SIGTERM)
    agent.wait(60)
