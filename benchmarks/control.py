"""What the control plane carries: `python benchmarks/control.py [--devices 2000] [--out FILE]`.

Serves a real fleet with mosquitto and lets simulated devices hold real TLS connections to it: they connect, tell of
windows for a minute, and take part in a grouped rollout; nobody may be lost. The control plane's processor time is
measured for several sizes of fleet and fitted by a line. Then, without a broker: records a second into SQLite and
PostgreSQL, with signatures verified and everything committed, and the API's list of 10,000 devices.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil
from sqlalchemy import func, select

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "control"))

import postgres_server

from edgeops.client.api import Api
from edgeops.client.rollout_resources import GatesInfo, RolloutWish
from edgeops.contracts.deployment import ComponentKind, ComponentReport, DeploymentState, Reported, Slot
from edgeops.contracts.enrolment import BrokerAddress
from edgeops.contracts.rollouts import RolloutState
from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.telemetry import MAX_WINDOWS_PER_BATCH, ModelWindow, Telemetry, TelemetryBatch
from edgeops.contracts.topics import SELF_UNIT, unit_topic
from edgeops.control.database import Database
from edgeops.control.ingest.apply import Batch
from edgeops.control.ingest.worker import BATCH_MESSAGES, Ingest
from edgeops.control.telemetry_models import TelemetryWindow
from edgeops.testkit.sealed_releases import publish_sealed_release
from edgeops.testkit.simulator import Identity, SimulatedDevice, Simulator, enroll_many
from edgeops.transport.mqtt import Message
from edgeops.trust import reported
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.device import DeviceIdentity
from edgeops.trust.founding import make_fleet

PROFILES = ("raspberry-pi-4", "intel-nuc", "jetson-orin-nano")
MODEL = "lines"
TELEMETRY_S = 60.0
# Shorter than the default of 15 minutes, so that a minute of measurement is a minute of load.
TELEMETRY_EVERY_S = 15.0
INGEST_RECORDS = 20_000
LISTED_DEVICES = 10_000
LISTINGS = 200
TARGETS = {"sqlite": 8_000.0, "postgresql": 5_000.0}
LIST_P99_MS = 100.0


class Served(NamedTuple):
    """One size of fleet: what it took."""

    devices: int
    connect_s: float
    telemetry_cpu_s: float
    windows: int
    windows_kept: int
    rollout_s: float
    rollout_cpu_s: float
    confirmed: int


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("build/bench-control.json"))
    chosen = parser.parse_args()
    sizes = sorted({100, max(100, chosen.devices // 10), max(100, chosen.devices // 4), chosen.devices})
    print(f"{platform.machine()}, {psutil.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f}", flush=True)
    figures: dict[str, Any] = {"fleets": []}
    for devices in sizes:
        with tempfile.TemporaryDirectory(prefix="bench-control-") as folder:
            one = served_fleet(Path(folder), devices)
        figures["fleets"].append(one._asdict())
        print(fleet_text(one), flush=True)
    figures["cpu_fit"] = fit(figures["fleets"])
    figures["ingest"] = ingest_rates()
    figures["api"] = list_times()
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"written to {chosen.out}")
    lost = [
        one for one in figures["fleets"] if one["confirmed"] != one["devices"] or one["windows_kept"] != one["windows"]
    ]
    if lost:
        raise SystemExit(f"something was lost: {lost}")


def fleet_text(one: Served) -> str:
    """Return a fleet's figures for people."""
    return (
        f"{one.devices} devices: connected in {one.connect_s:.1f} s; "
        f"{one.windows_kept} of {one.windows} windows kept, {one.telemetry_cpu_s:.1f} s of CPU in {TELEMETRY_S:.0f} s; "
        f"rollout in 3 groups: {one.confirmed} confirmed in {one.rollout_s:.1f} s with {one.rollout_cpu_s:.1f} s of CPU"
    )


def fit(fleets: list[dict[str, Any]]) -> dict[str, float]:
    """Fit the control plane's processor time by a line over the number of devices, and print how well it fits."""
    devices = [float(one["devices"]) for one in fleets]
    found: dict[str, float] = {}
    for name in ("telemetry_cpu_s", "rollout_cpu_s"):
        cpu = [float(one[name]) for one in fleets]
        line = statistics.linear_regression(devices, cpu)
        r2 = statistics.correlation(devices, cpu) ** 2
        found |= {f"{name}_per_device": line.slope, f"{name}_fixed": line.intercept, f"{name}_r2": r2}
        print(f"{name}: {line.intercept:.2f} s + {line.slope * 1000:.3f} ms a device (R² {r2:.4f})", flush=True)
    return found


def served_fleet(folder: Path, count: int) -> Served:
    """Serve a fleet of simulated devices and measure it."""
    home = folder / "home"
    publisher = make_fleet(home, "bench")
    for version in ("1.0.0", "1.1.0"):
        publish_sealed_release(home, folder / version, MODEL, version, PROFILES)
    authority = FleetAuthority.load(home / "ca")
    database = Database(home / "control.sqlite")
    database.migrate()
    identities = enroll_many(database, authority, folder / "devices", count, PROFILES)
    database.close()
    key = publisher.desired_signer().public_key
    with serving(home) as (api, broker, process):
        devices = [SimulatedDevice(one, "bench", broker, {key.keyid: key}, frozenset()) for one in identities]
        begun = time.monotonic()
        simulator = Simulator(devices, telemetry_every_s=TELEMETRY_EVERY_S)
        simulator.start()
        if not simulator.wait_online(120):
            raise SystemExit("not all devices came online")
        connect_s = time.monotonic() - begun
        # They tell of windows only for what they run.
        roll_out(api, process, "1.0.0", ("100%",), count)
        cpu_s = cpu_of(process)
        time.sleep(TELEMETRY_S)
        telemetry_cpu_s = cpu_of(process) - cpu_s
        done_s, rollout_cpu_s, confirmed = roll_out(api, process, "1.1.0", ("5%", "50%", "100%"), count)
        simulator.stop()
        kept = settled(home / "control.sqlite", simulator.windows)
        return Served(count, connect_s, telemetry_cpu_s, simulator.windows, kept, done_s, rollout_cpu_s, confirmed)


def settled(registry: Path, expected: int) -> int:
    """Return how many windows the registry holds, once it holds all of them or no more come."""
    database = Database(registry)
    kept, deadline_s = -1, time.monotonic() + 30
    while kept < expected and time.monotonic() < deadline_s:
        with database.read() as session:
            kept = session.scalar(select(func.count()).select_from(TelemetryWindow)) or 0
        time.sleep(0.2)
    database.close()
    return kept


@contextmanager
def serving(home: Path) -> Iterator[tuple[Api, BrokerAddress, psutil.Process]]:
    """Run `edgeops serve` with mosquitto; yield its API, its broker and its process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeops", "serve", "--home", str(home), "--broker", "mosquitto"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield Api.from_home(home), msgspec.convert(ready["broker"], BrokerAddress), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def cpu_of(process: psutil.Process) -> float:
    """Return the processor time of the control plane without its broker, in seconds."""
    times = process.cpu_times()
    return float(times.user + times.system)


def roll_out(
    api: Api, process: psutil.Process, version: str, groups: tuple[str, ...], devices: int
) -> tuple[float, float, int]:
    """Bring a release to all; return seconds, seconds of processor time, and how many confirmed it."""
    begun, cpu_s = time.monotonic(), cpu_of(process)
    gates = GatesInfo(success_min=0.99, failure_max=0.01, timeout_s=300)
    made = api.create_rollout(RolloutWish(model=MODEL, version=version, groups=groups, gates=gates, start=True))
    while (rollout := api.rollout(made.id)).state == RolloutState.RUNNING:
        time.sleep(0.2)
    # It ends when the gates hold; the last devices may still be on their way.
    deadline_s = time.monotonic() + 60
    while (confirmed := sum(c.confirmed for g in rollout.groups for c in g.profiles.values())) < devices:
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.2)
        rollout = api.rollout(made.id)
    return time.monotonic() - begun, cpu_of(process) - cpu_s, confirmed


def ingest_rates() -> dict[str, float]:
    """Return records a second by database and by how many records one signature covers; and a verification's time."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-ingest-") as name:
        folder = Path(name)
        authority = FleetAuthority.create(folder / "ca", "bench")
        for kind, url in registries(folder):
            database = Database(url)
            database.migrate()
            identities = enroll_many(database, authority, folder / kind, 100, PROFILES)
            for covered, records in ((1, INGEST_RECORDS // 4), (MAX_WINDOWS_PER_BATCH, INGEST_RECORDS)):
                messages = spoken(identities, records, covered)
                ingest = Ingest(database, "bench", lambda: None)
                begun, cpu_s = time.perf_counter(), time.process_time()
                for first in range(0, len(messages), BATCH_MESSAGES):
                    ingest.take(messages[first : first + BATCH_MESSAGES], now_s=time.time())
                rate = len(messages) * covered / (time.perf_counter() - begun)
                # On a machine that others share; PostgreSQL's own time is not in it.
                of_cpu = len(messages) * covered / (time.process_time() - cpu_s)
                if ingest.refused:
                    raise SystemExit(f"{ingest.refused} messages were refused")
                found |= {f"{kind}_{covered}": rate, f"{kind}_{covered}_per_cpu_s": of_cpu}
                target = f"; target {TARGETS[kind]:.0f}" if covered > 1 else ""
                print(
                    f"ingest into {kind}, {covered} records a signature: {rate:.0f} records/s, {of_cpu:.0f} a second "
                    f"of CPU{target}",
                    flush=True,
                )
            database.close()
    return found


def registries(folder: Path) -> Iterator[tuple[str, Path | str]]:
    """Yield the registries that can be had here."""
    yield "sqlite", folder / "control.sqlite"
    if postgres_server.programs() is None:
        print("postgresql: not measured, the program initdb is not installed")
        return
    with postgres_server.running() as url:
        yield "postgresql", url


def spoken(identities: list[Identity], records: int, covered: int) -> list[Message]:
    """Return signed telemetry of many devices in turns, so many records under each signature."""
    devices = [(one.name, DeviceIdentity.load(one.directory).signer) for one in identities]
    sketch = QuantileSketch.of(1.0 + number % 50 for number in range(100))
    model = ModelWindow(model=MODEL, release="1.0.0", digest="sha256:0", latency_ms=sketch, requests=100)
    messages = []
    for number in range(records // covered):
        name, signer = devices[number % len(devices)]
        windows = tuple(
            Telemetry(
                fleet="bench", connection=name, unit=SELF_UNIT, boot_id=f"boot-{covered}", seq=number * covered + part,
                start_s=0.0, end_s=900.0, models=(model,),
            )
            for part in range(covered)
        )  # fmt: skip
        said = windows[0] if covered == 1 else TelemetryBatch(
            fleet="bench", connection=name, unit=SELF_UNIT, windows=windows
        )  # fmt: skip
        topic = unit_topic("bench", name, SELF_UNIT, "telemetry")
        messages.append(Message(topic, reported.sign(said, signer), False, lambda: None))
    return messages


def list_times() -> dict[str, float]:
    """Return how long the API's list of devices takes over HTTPS, in milliseconds.

    There are 10,000 devices; each has reported a model that serves, and told of a window.
    """
    with tempfile.TemporaryDirectory(prefix="bench-api-") as name:
        folder = Path(name)
        home = folder / "home"
        make_fleet(home, "bench")
        database = Database(home / "control.sqlite")
        database.migrate()
        devices = enroll_many(database, FleetAuthority.load(home / "ca"), folder / "devices", LISTED_DEVICES, PROFILES)
        for first in range(0, len(devices), BATCH_MESSAGES):
            have_spoken(database, devices[first : first + BATCH_MESSAGES])
        database.close()
        with serving(home) as (api, _, _):
            times = []
            for number in range(LISTINGS):
                begun = time.perf_counter()
                api.device_page(after=f"sim-{number * 40:05d}", limit=100)
                times.append((time.perf_counter() - begun) * 1000)
        times.sort()
        p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
        print(f"100 of {LISTED_DEVICES} devices: p50 {p50:.1f} ms, p99 {p99:.1f} ms; target {LIST_P99_MS:.0f}")
        return {"list_p50_ms": p50, "list_p99_ms": p99}


def have_spoken(database: Database, devices: list[Identity]) -> None:
    """Have devices report a model that serves, and tell of a window."""
    slot = Slot(release="1.0.0", digest="sha256:0", number=1)
    part = ComponentReport(
        name=MODEL, kind=ComponentKind.MODEL, state=DeploymentState.CONFIRMED, generation=1, active=slot
    )
    sketch = QuantileSketch.of(1.0 + number % 50 for number in range(100))
    window = ModelWindow(model=MODEL, release="1.0.0", digest="sha256:0", latency_ms=sketch, requests=100)
    now_s = time.time()
    with database.write() as session:
        batch = Batch(session, [one.name for one in devices], now_s)
        for one in devices:
            report = Reported(
                fleet="bench", connection=one.name, unit=SELF_UNIT, boot_id="b", seq=1, at_s=now_s, agent_version="1",
                profile=one.profile, observed_generation=1, components=(part,), capabilities={"onnxruntime": "1.20"},
                attributes={"arch": "aarch64", "os": "Debian GNU/Linux 12", "memory-mib": "4096"},
            )  # fmt: skip
            telemetry = Telemetry(
                fleet="bench", connection=one.name, unit=SELF_UNIT, boot_id="b", seq=2, start_s=now_s - 60, end_s=now_s,
                models=(window,),
            )  # fmt: skip
            batch.look_for_repeated([report, telemetry])
            batch.apply(batch.devices[one.name], report)
            batch.apply(batch.devices[one.name], telemetry)
        batch.finish()


if __name__ == "__main__":
    main()
