"""What the agent costs a device that has nothing to do: `python benchmarks/agent.py [--idle-s 660] [--out FILE]`.

A real agent at its default settings, over TLS to mosquitto, through a relay that counts every byte at its sockets:
start to connected, memory and processor time of the supervisor, and the traffic of an idle day. A day is reckoned from
what was measured: keep-alives, of which a run of 660 s has two; one lost connection and one desired state that is
signed again each day, which is more than happens. Beside it SWUpdate of Debian with its hawkBit client, against a
server that has nothing for it.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "agent"))

from adder_bundles import MODEL, PROFILE, small_bundle
from fake_fleet import DEVICE, FakeFleet

from edgeops.agent.supervisor import KEEPALIVE_S
from edgeops.client.inference import InferenceClient
from edgeops.contracts.deployment import DeploymentState
from edgeops.contracts.enrolment import EnrolResponse
from edgeops.trust.authority import FleetAuthority

DAY_S = 86400
STARTS = 5
WITHIN_S = 60.0
# A segment of data and its acknowledgement: IPv4 and TCP headers with timestamps.
HEADERS_PER_BLOCK = 2 * 52
# `swupdate --help`: the pause between two polls if the server names none.
SWUPDATE_POLL_S = 45
SWUPDATE_POLLS = 6
TARGETS = {"idle_kib_per_day": 256.0, "supervisor_rss_mib": 64.0, "connected_s": 1.5}


class Count(NamedTuple):
    """Bytes at the socket, TLS included, both ways, and in how many blocks they came."""

    payload: int = 0
    blocks: int = 0

    @property
    def on_wire(self) -> int:
        """Bytes with the headers of TCP/IPv4, of data and acknowledgements: an estimate."""
        return self.payload + HEADERS_PER_BLOCK * self.blocks

    def since(self, before: Count) -> Count:
        """Return what came after an earlier count."""
        return Count(self.payload - before.payload, self.blocks - before.blocks)

    def times(self, factor: float) -> Count:
        """Return as if it had happened so often."""
        return Count(round(self.payload * factor), round(self.blocks * factor))

    def __add__(self, other: object) -> Count:
        if not isinstance(other, Count):
            return NotImplemented
        return Count(self.payload + other.payload, self.blocks + other.blocks)


class Relay:
    """Carries connections to a port of this machine and counts what goes through."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self.count = Count()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._port))
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                with self._lock:
                    self.count += Count(len(data), 1)
                target.sendall(data)
        except OSError:
            pass  # one side is gone
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


class RelayedFleet(FakeFleet):
    """Sends its devices through relays."""

    def __init__(self, folder: Path) -> None:
        self.relays: dict[str, Relay] = {}
        super().__init__(folder)
        assert self.broker is not None
        self.relays = {"broker": Relay(self.broker.address.port), "artifacts": Relay(self._artifacts_port)}

    def response(self, name: str, profile: str = PROFILE) -> EnrolResponse:
        """Return the answer to an enrolment, with the relays in the servers' place."""
        answer = super().response(name, profile)
        broker = msgspec.structs.replace(answer.broker, port=self.relays["broker"].port)
        artifacts_url = f"https://127.0.0.1:{self.relays['artifacts'].port}"
        return msgspec.structs.replace(answer, broker=broker, artifacts_url=artifacts_url)

    @property
    def count(self) -> Count:
        """What went through so far."""
        return self.relays["broker"].count + self.relays["artifacts"].count


class Device:
    """`edgeops agent run` at its default settings."""

    def __init__(self, fleet: RelayedFleet, folder: Path) -> None:
        self.state, self._log = folder / "device", folder / "agent.log"
        (folder / "token").write_text(fleet.token())
        self._words = [
            sys.executable, "-m", "edgeops", "agent", "run", "--state", str(self.state), "--token-file",
            str(folder / "token"), "--profile", PROFILE, "--name", DEVICE, "--verbose",
        ]  # fmt: skip

    def start(self) -> float:
        """Start it; return after how many seconds it was connected to the broker."""
        self._log.write_bytes(b"")
        with self._log.open("ab") as log:
            begun = time.monotonic()
            self.process = psutil.Popen(self._words, stdout=log, stderr=log)
        while b"connected to the broker" not in self._log.read_bytes():
            if time.monotonic() > begun + WITHIN_S or self.process.poll() is not None:
                raise SystemExit(f"the agent does not connect: {self._log.read_text()[-2000:]}")
            time.sleep(0.002)
        return time.monotonic() - begun

    def stop(self) -> None:
        """End it as a service manager does."""
        self.process.terminate()
        self.process.wait(WITHIN_S)

    def ask(self) -> None:
        """Let the model answer once, so that there is something to tell."""
        facts = json.loads((self.state / "agent.json").read_text())
        with InferenceClient(facts["endpoints"][MODEL]) as client:
            client.infer(MODEL, {"x": np.ones((1, 4), np.float32)})


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle-s", type=float, default=2.2 * KEEPALIVE_S)
    parser.add_argument("--out", type=Path, default=Path("build/bench-agent.json"))
    chosen = parser.parse_args()
    if chosen.idle_s < 1.1 * KEEPALIVE_S:
        raise SystemExit(f"an idle agent speaks every {KEEPALIVE_S} s only: --idle-s must be longer")
    print(f"{platform.machine()}, {psutil.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-agent-") as folder:
        figures: dict[str, Any] = {"edgeops": edgeops_figures(Path(folder), chosen.idle_s)}
        if shutil.which("swupdate") is not None:
            figures["swupdate"] = swupdate_figures(Path(folder))
            figures["ratios"] = ratios(figures["edgeops"], figures["swupdate"])
        else:
            print("SWUpdate is not installed (apt-get install swupdate): nothing to set beside")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"written to {chosen.out}")
    missed = {name: figures["edgeops"][name] for name, most in TARGETS.items() if figures["edgeops"][name] > most}
    if missed:
        raise SystemExit(f"above the target: {missed}; targets {TARGETS}")


def edgeops_figures(folder: Path, idle_s: float) -> dict[str, Any]:
    """Measure the agent."""
    fleet = RelayedFleet(folder / "fleet")
    device = Device(fleet, folder)
    try:
        device.start()
        component = fleet.publish(small_bundle(folder / "bundle"), "1.0.0", 1)
        fleet.desire(component)
        fleet.wait_state(DeploymentState.CONFIRMED)
        starts, reconnects = [], []
        for _ in range(STARTS):
            device.stop()
            before = settled(fleet)
            starts.append(device.start())
            reconnects.append(settled(fleet).since(before))
        before = settled(fleet)
        fleet.send(fleet.envelope(component))
        resigned = settled(fleet).since(before)
        cpu_before, before = cpu_s(device.process), fleet.count
        time.sleep(idle_s)
        idle, cpu_idle_s = fleet.count.since(before), cpu_s(device.process) - cpu_before
        pings = int(idle_s / KEEPALIVE_S)
        ping = idle.times(1 / pings)
        supervisor, workers = memory(device.process), [memory(child) for child in device.process.children()]
        device.ask()
        before = settled(fleet)
        device.stop()  # its last window is told when it ends
        window = settled(fleet).since(before)
    finally:
        if device.process.poll() is None:
            device.stop()
        fleet.stop()
    reconnect = Count(*(round(statistics.median(part)) for part in zip(*reconnects, strict=True)))
    day = ping.times(DAY_S / KEEPALIVE_S) + reconnect + resigned
    in_use = day + window.times(DAY_S / 900)
    figures = {
        "idle_s": idle_s, "keepalives": pings, "keepalive": told(ping), "connection": told(reconnect),
        "signed_again": told(resigned), "window": told(window), "idle_day": told(day), "day_in_use": told(in_use),
        "idle_kib_per_day": day.payload / 1024, "idle_cpu_s_per_day": cpu_idle_s / idle_s * DAY_S,
        "connected_s": statistics.median(starts), "connected_s_all": starts,
        "supervisor_rss_mib": supervisor["rss_mib"], "supervisor_pss_mib": supervisor["pss_mib"], "workers": workers,
    }  # fmt: skip
    print(
        f"edgeops: {pings} keep-alives in {idle_s:.0f} s, {ping.payload} B each; a new connection "
        f"{reconnect.payload} B; a desired state that is signed again {resigned.payload} B\n"
        f"  idle day {day.payload / 1024:.0f} KiB at the socket ({day.on_wire / 1024:.0f} KiB with TCP/IP headers), "
        f"target {TARGETS['idle_kib_per_day']:.0f}; a model in use at all hours {in_use.payload / 1024:.0f} KiB\n"
        f"  supervisor {supervisor['rss_mib']:.1f} MiB RSS ({supervisor['pss_mib']:.1f} PSS), "
        f"target {TARGETS['supervisor_rss_mib']:.0f}; {figures['idle_cpu_s_per_day']:.0f} s of CPU in an idle day\n"
        f"  start to connected {figures['connected_s']:.2f} s (median of {STARTS}), target {TARGETS['connected_s']}",
        flush=True,
    )
    return figures


def settled(fleet: RelayedFleet) -> Count:
    """Return the count once nothing has been said for a while."""
    count, since_s = fleet.count, time.monotonic()
    while time.monotonic() < since_s + 2.0:
        time.sleep(0.05)
        if fleet.count != count:
            count, since_s = fleet.count, time.monotonic()
    return count


def told(count: Count) -> dict[str, int]:
    """Return a count for the report."""
    return {"bytes": count.payload, "bytes_with_headers": count.on_wire}


def cpu_s(process: psutil.Process) -> float:
    """Return the processor time of one process."""
    times = process.cpu_times()
    return float(times.user + times.system)


def memory(process: psutil.Process) -> dict[str, float]:
    """Return the resident memory of one process, and its share of what several share."""
    info = process.memory_full_info()
    return {"rss_mib": info.rss / 2**20, "pss_mib": info.pss / 2**20}


def swupdate_figures(folder: Path) -> dict[str, Any]:
    """Measure SWUpdate, which asks a server for work again and again."""
    with polled_server(folder) as (relay, polls):
        words = [
            "swupdate", "-k", str(folder / "polled.pem"),
            "-u", f"-t default -u https://127.0.0.1:{relay.port} -i bench -x -p {SWUPDATE_POLL_S}",
        ]  # fmt: skip
        process = psutil.Popen(
            ["env", f"TMPDIR={folder}", *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            deadline_s = time.monotonic() + WITHIN_S
            while len(polls) < SWUPDATE_POLLS:
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise SystemExit("SWUpdate does not ask its server")
                time.sleep(0.1)
            parts = [memory(one) for one in (process, *process.children(recursive=True))]
        finally:
            process.terminate()
            process.wait(WITHIN_S)
    # The first poll is not like the others: SWUpdate tells of itself.
    poll = polls[-1].since(polls[0]).times(1 / (len(polls) - 1))
    rss, pss = (sum(part[name] for part in parts) for name in ("rss_mib", "pss_mib"))
    day = poll.times(DAY_S / SWUPDATE_POLL_S)
    same = poll.times(DAY_S / KEEPALIVE_S)
    print(
        f"SWUpdate: {len(parts)} processes, {rss:.1f} MiB RSS ({pss:.1f} PSS); a poll {poll.payload} B\n"
        f"  idle day {day.payload / 1024:.0f} KiB at its default of {SWUPDATE_POLL_S} s, "
        f"{same.payload / 1024:.0f} KiB if it polled as seldom as edgeops keeps its link alive",
        flush=True,
    )
    return {
        "processes": parts, "rss_mib": rss, "pss_mib": pss, "poll": told(poll), "idle_day": told(day),
        "idle_day_at_keepalive": told(same),
    }  # fmt: skip


def ratios(edgeops: dict[str, Any], swupdate: dict[str, Any]) -> dict[str, float]:
    """Return edgeops' figures in those of SWUpdate, and print them."""
    found = {
        "rss": edgeops["supervisor_rss_mib"] / swupdate["rss_mib"],
        "pss": edgeops["supervisor_pss_mib"] / swupdate["pss_mib"],
        "idle_day": edgeops["idle_day"]["bytes"] / swupdate["idle_day"]["bytes"],
        "idle_day_at_the_same_interval": edgeops["idle_day"]["bytes"] / swupdate["idle_day_at_keepalive"]["bytes"],
    }
    print("edgeops / SWUpdate: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)
    return found


@contextmanager
def polled_server(folder: Path) -> Iterator[tuple[Relay, list[Count]]]:
    """Serve the answer "nothing to do, ask again in 5 s"; yield the relay and its count at the end of each poll."""
    authority = FleetAuthority.create(folder / "polled-ca", "bench")
    certificate, key = authority.issue_server(["127.0.0.1"])
    (folder / "polled.pem").write_bytes(certificate)
    (folder / "polled.key").write_bytes(key)
    polls: list[Count] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            polls.append(relay.count)
            body = b'{"config":{"polling":{"sleep":"00:00:05"}},"_links":{}}'
            self.send_response(200)
            self.send_header("Content-Type", "application/hal+json;charset=UTF-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "polled.pem", folder / "polled.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    relay = Relay(server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield relay, polls
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
