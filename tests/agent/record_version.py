"""Records what today's agent says, and what it leaves on its disk, for the tests of later versions. Run it as a script.

    python tests/agent/record_version.py

Writes `tests/golden/versions/VERSION/`: `messages.json` (each message of a device's life as it went over the broker,
and its enrolment) and `state.json` (the state directory, without the device's private key). Run it once for each
release; what was recorded for an earlier one is not changed any more.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import msgspec
from adder_bundles import MODEL, small_bundle
from fake_fleet import DEVICE, Agent, FakeFleet, wait_for

from edgeops import __version__
from edgeops.agent.backlog import count_waiting
from edgeops.client.inference import InferenceClient
from edgeops.contracts.deployment import Component, DeploymentState
from edgeops.contracts.enrolment import EnrolRequest
from edgeops.contracts.wire import encode
from edgeops.transport.mqtt import Message

OTHER = "second"
VERSIONS = Path(__file__).parents[1] / "golden" / "versions"
# What is secret, or nothing to be read later.
_LEFT_OUT = frozenset({"identity/device.key", "lock", "agent.json"})


class RecordedFleet(FakeFleet):
    """Keeps what goes over its broker, in order."""

    def __init__(self, folder: Path) -> None:
        self.messages: list[dict[str, Any]] = []
        super().__init__(folder)
        self.answer_enrolment = self._enrol_and_keep

    def _enrol_and_keep(self, request: EnrolRequest) -> tuple[int, bytes]:
        status, answer = self.enrol(request)
        self.enrolment = {"request": json.loads(encode(request)), "response": json.loads(answer)}
        return status, answer

    def _message(self, message: Message) -> None:
        self.messages.append({"topic": message.topic, "payload": message.payload.decode()})
        super()._message(message)

    def send(self, envelope: bytes) -> None:
        self.messages.append({"desired": envelope.decode()})
        super().send(envelope)


def main() -> None:
    """Write the folder of this version."""
    target = VERSIONS / __version__
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        state, messages = record(Path(folder))
    for name, content in (("state.json", state), ("messages.json", messages)):
        (target / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def record(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Let a device live: installs, updates, a failure, a set, telemetry with and without a link."""
    fleet = RecordedFleet(folder / "fleet")
    agent = Agent(fleet, folder / "device", "--telemetry-window-s", "1").start()

    def release(model: str, number: int, lie: float = 0.0) -> Component:
        bundle = small_bundle(folder / f"{model}-{number}", add=float(number), lie=lie, model=model)
        component = fleet.publish(bundle, f"1.{number}.0", number)
        return msgspec.structs.replace(component, set_name="pair" if number == 1 else "")

    def ask() -> None:
        facts = agent.facts()
        assert facts is not None
        with InferenceClient(facts["endpoints"][MODEL]) as client:
            client.infer(MODEL, {"x": np.array([[1, 2, 3, 4]], np.float32)})

    try:
        fleet.desire(release(MODEL, 1), first := release(OTHER, 1))
        fleet.wait_state(DeploymentState.CONFIRMED)
        ask()
        wait_for(lambda: fleet.telemetry, "no telemetry")
        fleet.desire(second := release(MODEL, 2), release(OTHER, 2, lie=1.0))
        fleet.wait_state(DeploymentState.CONFIRMED)
        fleet.wait_state(DeploymentState.FAILED, name=OTHER)
        fleet.desire(second, first)
        fleet.wait_state(DeploymentState.CONFIRMED)
        fleet.wait_state(DeploymentState.CONFIRMED, name=OTHER)
        fleet.desire(second, release(OTHER, 3, lie=1.0))
        fleet.wait_state(DeploymentState.FAILED, name=OTHER)
        queue = agent.state / "queue"
        fleet.stop_broker()
        for waiting in (1, 2, 3):
            ask()
            wait_for(lambda waiting=waiting: count_waiting(queue) >= waiting, "no window is kept")
        known = len(fleet.telemetry)
        fleet.start_broker()
        wait_for(lambda: len(fleet.telemetry) >= known + 3, "the kept windows do not come")
        wait_for(lambda: not count_waiting(queue), "the kept windows stay")
        fleet.stop_broker()
        ask()
        wait_for(lambda: count_waiting(queue), "no window is kept")
        agent.stop()
    finally:
        agent.stop()
        fleet.stop()
    messages = {
        "recorded_at_s": time.time(), "connection": DEVICE, "enrolment": fleet.enrolment, "messages": fleet.messages,
    }  # fmt: skip
    return directory_as_text(agent.state), messages


def directory_as_text(root: Path) -> dict[str, Any]:
    """Return the files of a directory: JSON and text as they are, all else in base64."""
    files: dict[str, Any] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = str(path.relative_to(root))
        if name in _LEFT_OUT:
            continue
        data = path.read_bytes()
        try:
            files[name] = data.decode()
        except UnicodeDecodeError:
            files[name] = {"base64": base64.b64encode(data).decode()}
    return files


def write_directory(files: dict[str, Any], root: Path) -> None:
    """Write what `directory_as_text` gave."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else base64.b64decode(content["base64"]))


if __name__ == "__main__":
    main()
