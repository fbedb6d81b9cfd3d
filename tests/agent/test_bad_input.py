"""What years in the field bring: damaged state, wrong clocks, servers that flap or fall silent, floods of orders."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from adder_bundles import MODEL, small_bundle
from fake_fleet import DEVICE, FLEET, Agent, FakeFleet, wait_for

from edgeops.agent.slots import Slots
from edgeops.client.inference import InferenceClient
from edgeops.contracts.deployment import Component, DeploymentState
from edgeops.contracts.topics import unit_topic
from edgeops.trust import keys

pytestmark = pytest.mark.timeout(600)
DAMAGES = ["truncated", "zeroed", "from the future"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeFleet]:
    fleet = FakeFleet(tmp_path_factory.mktemp("fleet"))
    yield fleet
    fleet.stop()


@pytest.fixture(scope="module")
def releases(fleet: FakeFleet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, Component]:
    """Two releases; either may follow the other."""
    folder = tmp_path_factory.mktemp("bundles")
    first, second = (
        msgspec.structs.replace(
            fleet.publish(small_bundle(folder / str(add), add=float(add)), f"1.{add}.0", add), allow_downgrade=True
        )
        for add in (1, 2)
    )
    return first, second


@pytest.fixture
def agent(fleet: FakeFleet, releases: tuple[Component, Component], tmp_path: Path) -> Iterator[Agent]:
    """A device that serves 1.1.0 and may return to 1.2.0."""
    agent = Agent(fleet, tmp_path / "device").start()
    try:
        for component in reversed(releases):
            fleet.desire(component)
            fleet.wait_state(DeploymentState.CONFIRMED)
        yield agent
    finally:
        agent.stop()


def unseen(fleet: FakeFleet, folder: Path, add: int) -> Component:
    """Publish a release that the device has to download."""
    return fleet.publish(small_bundle(folder / f"bundle-{add}", add=float(add)), f"1.{add}.0", add)


def damaged(content: bytes, damage: str) -> bytes:
    if damage == "truncated":
        return content[: len(content) // 2]
    if damage == "zeroed":
        return bytes(len(content))
    future: dict[str, Any] = json.loads(content)
    return json.dumps({**future, "schema": 99, "state": "hibernating", "moods": [{"kind": "good"}]}).encode()


def state_files(root: Path) -> list[Path]:
    """Every file that an agent keeps besides who it is and what it serves."""
    component = root / "components" / MODEL
    slots = [component / "slots" / "active", component / "slots" / "b" / "slot.json"]
    return [root / "unit.json", root / "desired.json", root / "trust" / "clock.json", component / "state.json", *slots]


def one_by_one(agent: Agent) -> Iterator[list[Path]]:
    files = state_files(agent.state)
    assert all(file.is_file() for file in files)
    yield from ([file] for file in files)


def check_it_serves_and_obeys(fleet: FakeFleet, agent: Agent, component: Component) -> None:
    agent.start()
    wait_for(lambda: agent.facts() and agent.facts()["endpoints"], "nothing serves")  # type: ignore[index]
    assert agent.added() in (1, 2)
    fleet.desire(component)
    fleet.wait_state(DeploymentState.CONFIRMED)
    # A wish that ends a trial is met at once where what is wanted has proved itself; it serves once it is loaded.
    wait_for(lambda: agent.added() == float(component.release.split(".")[1]), "what is wanted does not serve")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_device_whose_state_files_are_all_damaged_serves_and_obeys(
    damage: str, fleet: FakeFleet, agent: Agent, releases: tuple[Component, Component]
):
    agent.stop()
    for file in state_files(agent.state):
        file.write_bytes(damaged(file.read_bytes(), damage))
    check_it_serves_and_obeys(fleet, agent, releases[1])


@pytest.mark.full
@pytest.mark.parametrize("damage", DAMAGES)
def test_each_state_file_damaged_alone(
    damage: str, fleet: FakeFleet, agent: Agent, releases: tuple[Component, Component]
):
    agent.stop()
    for number, files in enumerate(one_by_one(agent)):
        for file in files:
            file.write_bytes(damaged(file.read_bytes(), damage))
        check_it_serves_and_obeys(fleet, agent, releases[number % 2])
        agent.stop()


@pytest.mark.parametrize("damage", ["truncated", pytest.param("missing", marks=pytest.mark.full)])
def test_a_device_whose_trusted_metadata_is_damaged_serves_and_obeys(
    damage: str, fleet: FakeFleet, agent: Agent, releases: tuple[Component, Component]
):
    """The root, too: it comes again from the server, known by the hash that the token named."""
    agent.stop()
    files = sorted((agent.state / "trust").glob("*.json"))
    assert {"root.json", "timestamp.json", "snapshot.json", "targets.json"} <= {file.name for file in files}
    for file in files:
        file.unlink() if damage == "missing" else file.write_bytes(damaged(file.read_bytes(), damage))
    check_it_serves_and_obeys(fleet, agent, releases[1])


def tree(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


IDENTITY = ["enrolment.json", "device.key", "device.pem", "ca.pem"]


LOST = {("device.key", "other")}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param(name, damage, marks=() if (name, damage) in LOST else pytest.mark.full)
        for name in IDENTITY
        for damage in (*DAMAGES[:2], "other")
    ],
)
def test_a_device_that_lost_its_identity_serves_and_changes_nothing(
    name: str, damage: str, fleet: FakeFleet, agent: Agent, releases: tuple[Component, Component]
):
    """It can be told nothing, but what proved itself here goes on; once it is whole again all goes on."""
    agent.stop()
    file = agent.state / "identity" / name
    whole = file.read_bytes()
    file.write_bytes(keys.generate("ecdsa").private_bytes if damage == "other" else damaged(whole, damage))
    held = tree(agent.state / "components")
    fleet.desire(releases[1])
    agent.start()
    wait_for(lambda: agent.facts() and agent.facts()["endpoints"], "nothing serves")  # type: ignore[index]
    assert agent.added() == 1
    assert tree(agent.state / "components") == held
    assert "nothing is updated: E-" in agent.log.read_text()
    assert agent.stop() == 0
    file.write_bytes(whole)
    agent.start()
    fleet.wait_state(DeploymentState.CONFIRMED)
    assert agent.added() == 2


@pytest.mark.full
def test_a_device_that_lost_its_identity_serves_what_is_whole(fleet: FakeFleet, agent: Agent, tmp_path: Path):
    agent.stop()
    (agent.state / "identity" / "device.key").write_bytes(b"")
    slots = Slots(agent.state / "components" / MODEL)
    assert slots.active is not None
    (slots.bundle_path(slots.active) / "model.onnx").write_bytes(b"")
    agent.start()
    wait_for(lambda: agent.facts() and agent.facts()["endpoints"], "nothing serves")  # type: ignore[index]
    assert agent.added() == 2
    agent.stop()
    assert slots.fallback is not None
    (slots.bundle_path(slots.fallback) / "model.onnx").write_bytes(b"")
    agent.start()
    assert agent.process is not None
    assert agent.process.wait(60) == 2
    assert "E-TRUST-KEY" in agent.log.read_text()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder as of a disk that the kernel has made read-only, for all processes."""
    try:
        for command in (["mount", "--bind", folder, folder], ["mount", "-o", "remount,ro,bind", folder]):
            made = subprocess.run(command, capture_output=True, check=False)
            if made.returncode:
                pytest.skip(f"this user may not mount ({made.stderr.decode().strip()}): run the tests as root")
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], capture_output=True, check=False)


def test_a_device_whose_disk_may_only_be_read_starts_and_serves(
    fleet: FakeFleet, agent: Agent, releases: tuple[Component, Component]
):
    """After a crash, so that its sockets are still there; and it takes up what it was told once the disk is whole."""
    agent.kill()
    with read_only(agent.state):
        told = len(fleet.reports)
        fleet.desire(releases[1])
        agent.start_unwatched()
        wait_for(
            lambda: [part.endpoint for one in fleet.reports[told:] for part in one.components if part.endpoint],
            "it serves nothing",
        )
        endpoint = next(part.endpoint for one in fleet.reports[told:] for part in one.components if part.endpoint)
        with InferenceClient(endpoint) as client:
            x = np.array([[1, 2, 3, 4]], np.float32)
            np.testing.assert_array_equal(client.infer(MODEL, {"x": x})["y"], x + 1)
        fleet.wait_refused("E-DISK-WRITE")
    fleet.wait_state(DeploymentState.CONFIRMED)
    assert agent.stop() == 0


def test_a_device_that_was_reset_comes_to_what_is_desired_again(fleet: FakeFleet, agent: Agent):
    """All that it did is gone, but not who it is and whom it trusts; nobody tells it anything anew."""
    served, told = agent.added(), len(fleet.reports)
    agent.stop()
    kept = {"identity", "trust", "agent.toml"}
    gone = [path for path in agent.state.iterdir() if path.name not in kept]
    assert {"components", "desired.json", "unit.json"} <= {path.name for path in gone}
    for path in gone:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    agent.start()
    wait_for(
        lambda: [
            part
            for report in fleet.reports[told:]
            for part in report.components
            if (part.state, part.generation) == (DeploymentState.CONFIRMED, fleet.generation)
        ],
        "it does not come to what is desired",
    )
    assert agent.added() == served


def start_with(agent: Agent, prelude: str) -> None:
    """Start the agent after a line of Python that bends its world."""
    code = f"import sys; {prelude}; import edgeops.cli.agent as cli; cli.command(sys.argv[1:])"
    command = [sys.executable, "-c", code, "run", "--state", str(agent.state), "--confirm-after-s", "0.5"]
    with agent.log.open("ab") as log:
        agent.process = subprocess.Popen(command, stdout=log, stderr=log)
    wait_for(lambda: agent.facts() and agent.facts()["endpoints"], "nothing serves")  # type: ignore[index]


def clock_at(start_s: float) -> str:
    return f"import time; real = time.time; began = real(); time.time = lambda: real() - began + {start_s}"


def test_a_board_that_boots_in_1970_serves_and_obeys(
    fleet: FakeFleet, agent: Agent, releases: tuple[Component, Component]
):
    agent.stop()
    start_with(agent, clock_at(60.0))
    assert agent.added() == 1
    fleet.desire(releases[1])
    fleet.wait_state(DeploymentState.CONFIRMED)
    assert agent.added() == 2


def test_a_clock_in_2100_stops_changes_and_never_service_and_costs_nothing_once_it_is_right(
    fleet: FakeFleet, agent: Agent, releases: tuple[Component, Component]
):
    agent.stop()
    start_with(agent, clock_at(4102444800.0))
    fleet.desire(releases[1])
    fleet.wait_refused("E-TRUST-EXPIRED")
    assert agent.added() == 1
    agent.stop()
    agent.start()
    fleet.wait_state(DeploymentState.CONFIRMED)
    assert agent.added() == 2


def test_an_update_arrives_though_broker_and_server_flap(fleet: FakeFleet, agent: Agent, tmp_path: Path):
    component = unseen(fleet, tmp_path, 5)
    fleet.stop_artifacts()
    fleet.desire(component)
    for _ in range(2):
        fleet.stop_broker()
        assert agent.added() in (1, 5)
        time.sleep(0.3)
        fleet.start_artifacts()
        fleet.start_broker()
        time.sleep(0.3)
        fleet.stop_artifacts()
    fleet.start_artifacts()
    fleet.wait_state(DeploymentState.CONFIRMED)
    assert agent.added() == 5


@contextlib.contextmanager
def stranger(port: int, answer: bytes) -> Iterator[None]:
    """Somebody else at the server's address: answers every connection with the same bytes; with none, never."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        taken: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    taken.append(connection)
                    if answer:
                        connection.recv(1 << 16)
                        connection.sendall(answer)
                        connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in taken:
                connection.close()


PORTAL = b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlogin"


@pytest.mark.parametrize(
    "answer",
    [pytest.param(PORTAL, id="captive portal"), pytest.param(b"", id="half-open connections", marks=pytest.mark.full)],
)
def test_a_stranger_at_the_servers_address_holds_the_update_until_the_server_is_back(
    answer: bytes, fleet: FakeFleet, agent: Agent, tmp_path: Path
):
    add = 3 if answer else 4
    component = unseen(fleet, tmp_path, add)
    assert fleet.artifacts is not None
    port = fleet.artifacts.port
    agent.stop()
    fleet.stop_artifacts()
    # Patience is cut short for the test alone: how long a silent server is waited for.
    start_with(agent, "from edgeops.transport import http; http.READ_TIMEOUT_S = http.CONNECT_TIMEOUT_S = 0.5")
    with stranger(port, answer):
        fleet.desire(component)
        report = fleet.wait_state(DeploymentState.HELD)
        assert report.held_reason is not None
        assert report.held_reason.startswith("E-NET-UNREACHABLE")
        assert report.held_until_s is not None
        assert agent.added() == 1
    fleet.start_artifacts()
    fleet.wait_state(DeploymentState.CONFIRMED)
    assert agent.added() == add


@pytest.mark.parametrize(
    ("page", "code"),
    [
        pytest.param(b" " * 20_000, "E-WIRE-SIZE", id="too large"),
        pytest.param(b"<html>sorry</html>", "E-TRUST-METADATA", id="no metadata", marks=pytest.mark.full),
    ],
)
def test_a_page_in_the_place_of_metadata_holds_the_update_only_while_it_is_there(
    page: bytes, code: str, fleet: FakeFleet, agent: Agent, tmp_path: Path
):
    """A proxy or a server in trouble: no newer generation is needed once it is over."""
    add = 6 if code == "E-WIRE-SIZE" else 7
    component = unseen(fleet, tmp_path, add)
    fleet.changed_paths["/metadata/timestamp.json"] = page
    try:
        fleet.desire(component)
        report = fleet.wait_state(DeploymentState.HELD)
        assert report.held_reason is not None
        assert report.held_reason.startswith(code)
        assert agent.added() == 1
    finally:
        fleet.changed_paths.clear()
    fleet.wait_state(DeploymentState.CONFIRMED)
    assert agent.added() == add


@pytest.mark.parametrize("orders", [500, pytest.param(10_000, marks=pytest.mark.full)])
def test_thousands_of_orders_at_once_end_in_the_newest(
    orders: int, fleet: FakeFleet, agent: Agent, releases: tuple[Component, Component]
):
    """Each is signed and newer than the one before; the device need not act on all, only on the last."""
    topic = unit_topic(FLEET, DEVICE, "self", "desired")
    for _ in range(orders):
        fleet.generation += 1
        envelope = fleet.envelope(releases[fleet.generation % 2], generation=fleet.generation)
        fleet._link.publish(topic, envelope, retain=True)
    fleet.desire(releases[1])
    fleet.wait_state(DeploymentState.CONFIRMED)
    assert fleet.reports[-1].observed_generation == fleet.generation
    assert agent.added() == 2


def test_two_agents_on_one_state_directory_never_serve_both(agent: Agent):
    """The second refuses and changes nothing."""
    before = {path: path.read_bytes() for path in state_files(agent.state)}
    command = [sys.executable, "-m", "edgeops", "agent", "run", "--state", str(agent.state)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (second.returncode, "E-STATE-LOCKED" in second.stderr) == (2, True)
    assert {path: path.read_bytes() for path in before} == before
    assert agent.added() == 1
