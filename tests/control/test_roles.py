"""A control plane split over one PostgreSQL: real processes, two of each worker, and the death of some."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from registry_fleet import add_devices, open_registry, release
from served_fleet import MODEL, PROFILES, Serving, make_release, needs_mosquitto, wait_for
from sqlalchemy import func, select, text

from edgeops.cli import root
from edgeops.client.rollout_resources import GatesInfo, RolloutWish
from edgeops.contracts.enrolment import BrokerAddress
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rollouts import RolloutState
from edgeops.contracts.topics import control_filters
from edgeops.control.database import Database
from edgeops.control.models import Generation
from edgeops.control.publishing import DesiredPublisher
from edgeops.control.rollout import manage
from edgeops.control.rollout.execute import advance
from edgeops.control.rollout.policy import Policy
from edgeops.control.rollout.selection import Selection
from edgeops.control.telemetry_models import TelemetryTotal, TelemetryWindow
from edgeops.testkit.simulator import SimulatedDevice, Simulator, enroll_many
from edgeops.transport.mqtt import MqttLink, TlsFiles
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.founding import make_fleet

pytestmark = pytest.mark.timeout(600)
needs_mosquitto = needs_mosquitto
on_postgresql = pytest.mark.parametrize("registry_url", ["postgresql"], indirect=True)
DEVICES, REQUESTS = 30, 10


class Worker:
    """`edgeops serve --role` as a process of its own."""

    def __init__(self, home: Path, role: str, url: str) -> None:
        command = [sys.executable, "-m", "edgeops", "serve", "--home", str(home), "--role", role, "--database", url]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{role} ended with {self.process.wait()}"
        self.ready: dict[str, Any] = json.loads(line)

    def end(self, *, kill: bool = False) -> None:
        if self.process.poll() is None:
            self.process.kill() if kill else self.process.terminate()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Split:
    """A served fleet of simulated devices, and its workers."""

    def __init__(self, folder: Path, url: str) -> None:
        self.home, self.url = folder / "home", url
        publisher = make_fleet(self.home, "f1")
        for version in ("1.0.0", "1.1.0"):
            make_release(self.home, version)
        self.database = Database(url)
        self.identities = enroll_many(
            self.database, FleetAuthority.load(self.home / "ca"), folder / "devices", DEVICES, PROFILES
        )
        self.serving = Serving(self.home, "mosquitto", "--role", "api", "--database", url)
        broker = msgspec.convert(self.serving.start()["broker"], BrokerAddress)
        self.workers: list[Worker] = []
        key = publisher.desired_signer().public_key
        self.devices = [SimulatedDevice(one, "f1", broker, {key.keyid: key}, frozenset()) for one in self.identities]
        self.simulator = Simulator(self.devices, telemetry_every_s=0.5, requests=REQUESTS)

    def work(self, role: str) -> Worker:
        worker = Worker(self.home, role, self.url)
        self.workers.append(worker)
        return worker

    def stop(self) -> None:
        for worker in self.workers:
            worker.end(kill=True)
        self.serving.stop()
        self.database.close()


@pytest.fixture
def split(tmp_path: Path, registry_url: str) -> Iterator[Split]:
    split = Split(tmp_path, registry_url)
    yield split
    split.stop()


@needs_mosquitto
@on_postgresql
def test_workers_that_die_lose_nothing_and_do_nothing_twice(split: Split) -> None:
    first, second = split.work("ingest"), split.work("ingest")
    leading, standby = split.work("rollout"), split.work("rollout")
    identities = [worker.ready["identity"] for worker in (first, second, leading, standby)]
    assert len(set(identities)) == 4
    assert first.ready["identity"].endswith("ingest-1")
    split.simulator.start()
    assert split.simulator.wait_online()
    wait_for(lambda: split.serving.api.fleet().online == DEVICES, "presence is not taken in")
    gates = GatesInfo(timeout_s=600)
    for version, groups in (("1.0.0", ("100%",)), ("1.1.0", ("10%", "50%", "100%"))):
        wish = RolloutWish(model=MODEL, version=version, groups=groups, gates=gates, start=True)
        rollout = split.serving.api.create_rollout(wish).id
        if version == "1.1.0":
            wait_for(lambda: any(d.running[MODEL].release == "1.1.0" for d in split.devices), "it does not begin")
            leading.end(kill=True)
            first.end(kill=True)
            time.sleep(1.0)
            assert split.work("ingest").ready["identity"] == first.ready["identity"], "its session waits for it"
        wait_for(
            lambda: split.serving.api.rollout(rollout).state == RolloutState.SUCCEEDED,  # noqa: B023
            f"{version} does not arrive: {split.serving.api.rollout(rollout)}",
        )
    assert {device.running[MODEL].release for device in split.devices} == {"1.1.0"}
    wait_for(lambda: split.simulator.windows >= 6 * DEVICES, "too few windows were told")
    assert split.simulator.hush(60), "the broker does not acknowledge what was told"
    split.simulator.stop()

    def count(what: Any) -> Any:
        with split.database.read() as session:
            return session.scalar(select(what))

    wait_for(
        lambda: count(func.count(TelemetryWindow.seq)) == split.simulator.windows,
        f"of {split.simulator.windows} acknowledged windows {count(func.count(TelemetryWindow.seq))} are kept",
    )
    assert count(func.sum(TelemetryTotal.requests)) == REQUESTS * split.simulator.windows
    assert count(func.count(Generation.generation)) == 2 * DEVICES
    assert all(device.refused == 0 for device in split.devices)


def listen(split: Split, name: str, heard: list[str]) -> MqttLink:
    """Connect with a certificate of the fleet's CA, and ask for all that devices say."""
    authority, folder = FleetAuthority.load(split.home / "ca"), split.home / f"tls-{name}"
    folder.mkdir()
    for file, data in zip(("client.pem", "client.key"), authority.issue_client(name), strict=True):
        (folder / file).write_bytes(data)
    (folder / "ca.pem").write_bytes(authority.ca_pem)
    link = MqttLink(
        msgspec.convert(split.serving.ready["broker"], BrokerAddress),
        name,
        on_message=lambda message: heard.append(message.topic),
        subscriptions=control_filters("f1"),
        tls=TlsFiles(folder / "ca.pem", folder / "client.pem", folder / "client.key"),
    )
    link.start()
    assert link.wait_connected(60)
    return link


@needs_mosquitto
@on_postgresql
def test_the_broker_knows_its_workers_by_name(split: Split) -> None:
    """A certificate of the fleet's CA alone is not enough to hear devices."""
    worker: list[str] = []
    stranger: list[str] = []
    links = [listen(split, f"edgeops-control.ingest-{n}", heard) for n, heard in ((16, worker), (17, stranger))]
    split.simulator.start()
    assert split.simulator.wait_online()
    wait_for(lambda: len(worker) >= 2 * DEVICES, "the worker hears nothing")
    split.simulator.stop()
    for link in links:
        link.stop()
    assert stranger == []


def test_a_split_needs_postgresql(tmp_path: Path) -> None:
    for role in ("api", "ingest", "rollout"):
        done = CliRunner().invoke(root, ["serve", "--home", str(tmp_path), "--role", role])
        assert isinstance(done.exception, EdgeopsError)
        assert done.exception.code == "E-CONFIG"
        assert "PostgreSQL" in done.exception.what


class CountingLink:
    """Stands for the broker: takes and acknowledges all, and says how often."""

    connected = True

    def __init__(self) -> None:
        self.published = 0
        self._lock = threading.Lock()

    def publish(self, *_: Any, **__: Any) -> CountingLink:
        with self._lock:
            self.published += 1
        time.sleep(0.002)
        return self

    def is_published(self) -> bool:
        return True

    def wait_for_publish(self, *_: Any) -> None:
        return


def published_by_two(url: Path | str, count: int) -> int:
    """Let two processes' publishers stand on one registry; return how many messages they sent for 100 devices, once
    that are so many, and a few looks later."""
    registry = open_registry(url)
    add_devices(registry, 100)
    manage.create(
        registry, release("1.0.0"), Policy(groups=("100%",)), Selection(), actor="op", now_s=time.time(), start=True
    )
    advance(registry, 1, time.time())
    link = CountingLink()
    databases = [Database(url), Database(url)]
    publishers = [
        DesiredPublisher(
            database,
            "f1",
            lambda desired: b"x",
            lambda command: b"x",
            lambda: "key",
            lambda: link,
            look_every_s=0.05,  # type: ignore[arg-type,return-value]
        )
        for database in databases
    ]
    for publisher in publishers:
        publisher.start()
    wait_for(lambda: link.published >= count, "too few are sent")
    time.sleep(0.5)
    for publisher in publishers:
        publisher.stop()
    for database in (*databases, registry):
        database.close()
    return link.published


@on_postgresql
def test_two_publishers_send_each_desired_state_once(registry_url: str) -> None:
    assert published_by_two(registry_url, 100) == 100


@on_postgresql
def test_without_the_lock_they_send_it_twice(registry_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    monkeypatch.setattr(Database, "holds", lambda self, work: True)
    assert published_by_two(registry_url, 101) > 100


@on_postgresql
def test_work_passes_on_when_the_connection_of_who_had_it_ends(registry_url: str) -> None:
    first, second = Database(registry_url), Database(registry_url)
    assert first.holds("publisher")
    assert first.holds("publisher"), "asking again changes nothing"
    assert not second.holds("publisher")
    assert second.holds("something else")
    with second.write() as session:
        session.execute(
            text("SELECT pg_terminate_backend(pid, 20000) FROM pg_locks WHERE locktype = 'advisory' AND pid != :own"),
            {"own": session.scalar(text("SELECT pg_backend_pid()"))},
        )
    with pytest.raises(EdgeopsError):
        first.holds("publisher")
    assert second.holds("publisher")
    assert not first.holds("publisher")
    second.close()
    # The server hears of it a little later.
    wait_for(lambda: first.holds("publisher"), "a lock outlives its connection")
    first.close()
