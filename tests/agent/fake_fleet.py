"""A fleet for the agent's tests: real keys, real TUF repository, real broker; a server that tests can bend."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kept_ports
import numpy as np
from adder_bundles import MODEL, PROFILE

from edgeops.client.inference import InferenceClient
from edgeops.contracts.bundle import AgentManifest
from edgeops.contracts.deployment import (
    AGENT_COMPONENT,
    Component,
    ComponentKind,
    ComponentReport,
    DeploymentState,
    Desired,
    Progress,
    Reported,
)
from edgeops.contracts.enrolment import BrokerAddress, EnrolmentToken, EnrolRequest, EnrolResponse
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.measurement import Candidate, MeasureAnswer, MeasureCommand
from edgeops.contracts.release import TargetCustom, target_path
from edgeops.contracts.telemetry import Telemetry
from edgeops.contracts.topics import control_filters, parse_topic, unit_topic
from edgeops.contracts.wire import decode, encode
from edgeops.control.broker.start import BrokerTls, RunningBroker, start_broker
from edgeops.releases import candidates
from edgeops.releases.bundles import Bundle, pack, seal_agent
from edgeops.transport.mqtt import Message, MqttLink, TlsFiles
from edgeops.trust import desired as desired_statements
from edgeops.trust import measure_commands
from edgeops.trust import reported as statements
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.device import DeviceIdentity
from edgeops.trust.founding import make_fleet
from edgeops.trust.publisher import NewTarget

FLEET = "demo"
DEVICE = "device-1"
WITHIN_S = 60.0
AT_ONCE = "[downloads]\nstart_within_s = 0\n"


def wait_for(condition: Callable[[], Any], what: str, within_s: float = WITHIN_S) -> Any:
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return value


class FakeFleet:
    """Keys, repository, broker and both HTTPS listeners."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self._folder = folder
        self.publisher = make_fleet(self.home, FLEET)
        self.authority = FleetAuthority.load(self.home / "ca")
        self.server_pem, self.server_key = self.authority.issue_server(["127.0.0.1"])
        self.client_pem, self.client_key = self.authority.issue_client("edgeops-control")
        self.root, self.ca_pem = self.publisher.root_bytes(), self.authority.ca_pem
        self.certificates: dict[str, bytes] = {}
        self.answer_enrolment: Callable[[EnrolRequest], tuple[int, bytes]] = self.enrol
        self.changed_paths: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.generation = 0
        self.reports: list[Reported] = []
        self.progress: list[Progress] = []
        self.telemetry: list[Telemetry] = []
        self.answers: list[MeasureAnswer] = []
        self._bootstrap = HttpsServer(self, mutual=False)
        # Both come and go, and are found where they were.
        self._kept = [kept_ports.keep() for _ in range(2)]
        self._artifacts_port, self._broker_port = map(kept_ports.number, self._kept)
        self.artifacts: HttpsServer | None = HttpsServer(self, mutual=True, port=self._artifacts_port)
        self.broker: RunningBroker | None = None
        self.start_broker()

    # The broker and the control plane's link

    def start_broker(self) -> None:
        tls = BrokerTls(self.authority.ca_pem, self.server_pem, self.server_key, self.authority.revocation_list({}))
        self.broker = start_broker(
            "auto", self._folder / "broker", fleet=FLEET, control_identity="edgeops-control", bind_host="127.0.0.1",
            advertised_host="127.0.0.1", port=self._broker_port, tls=tls,
        )  # fmt: skip
        self._link = self.control_link()

    def control_link(self) -> MqttLink:
        """Connect as the control plane does."""
        assert self.broker is not None
        files = TlsFiles(*(self._folder / name for name in ("ca.pem", "control.pem", "control.key")))
        for file, data in zip(files, (self.authority.ca_pem, self.client_pem, self.client_key), strict=True):
            file.write_bytes(data)
        link = MqttLink(
            self.broker.address,
            "edgeops-control",
            on_message=self._message,
            subscriptions=control_filters(FLEET),
            tls=files if self.broker.address.tls else None,
        )
        link.start()
        assert link.wait_connected(WITHIN_S)
        return link

    def stop_broker(self) -> None:
        if self.broker is not None:
            self._link.stop()
            self.broker.child.stop()
            self.broker = None

    def start_artifacts(self) -> None:
        self.artifacts = HttpsServer(self, mutual=True, port=self._artifacts_port)

    def stop_artifacts(self) -> None:
        if self.artifacts is not None:
            self.artifacts.stop()
            self.artifacts = None

    def stop(self) -> None:
        self.stop_broker()
        self.stop_artifacts()
        self._bootstrap.stop()
        for kept in self._kept:
            kept.close()

    def _message(self, message: Message) -> None:
        topic = parse_topic(message.topic)
        kinds: dict[str, tuple[type[Any], list[Any]]] = {
            "reported": (Reported, self.reports),
            "progress": (Progress, self.progress),
            "res": (MeasureAnswer, self.answers),
        }
        if topic.leaf not in (*kinds, "telemetry"):
            return
        key = DeviceIdentity.public_key_from_certificate(self.certificates[topic.connection])
        speaker: dict[str, Any] = {"key": key, "fleet": FLEET, "connection": topic.connection, "unit": topic.unit}
        if topic.leaf == "telemetry":
            self.telemetry += statements.verify_telemetry(message.payload, **speaker)
        else:
            kind, heap = kinds[topic.leaf]
            heap.append(statements.verify(message.payload, kind, **speaker))

    # Enrolment

    def token(self, **changes: str) -> str:
        parts = {
            "server": self._bootstrap.url,
            "fleet": FLEET,
            "ca_sha256": self.authority.ca_sha256,
            "root_sha256": self.publisher.root_sha256(),
            "secret": "once",
        }
        return EnrolmentToken(**{**parts, **changes}).to_text()

    def enrol(self, request: EnrolRequest) -> tuple[int, bytes]:
        if request.secret != "once":
            return 400, json.dumps({"code": "E-TOKEN", "detail": "used"}).encode()
        name = request.name or DEVICE
        self.certificates[name] = self.authority.issue_device(request.csr_pem.encode(), name)
        return 200, encode(self.response(name, request.profile))

    def response(self, name: str, profile: str = PROFILE) -> EnrolResponse:
        assert self.broker is not None
        address = self.broker.address
        return EnrolResponse(
            fleet=FLEET,
            connection=name,
            certificate_pem=self.certificates[name].decode(),
            ca_pem=self.authority.ca_pem.decode(),
            broker=BrokerAddress(host=address.host, port=address.port, tls=address.tls),
            artifacts_url=f"https://127.0.0.1:{self._artifacts_port}",
            profile=profile,
        )

    # Releases and desired state

    def publish(self, bundle: Bundle, version: str, number: int, *, profile: str = PROFILE) -> Component:
        """Sign a bundle into the repository; return the component that asks for it."""
        model = bundle.manifest.model
        file = self._folder / f"{model}-{version}-{profile}.edgeops"
        pack(bundle, file)
        custom = TargetCustom(model=model, version=version, number=number, profile=profile, digest=bundle.digest)
        path = target_path(model, version, profile)
        self.publisher.publish([NewTarget(path, file, custom)])
        return Component(name=model, kind=ComponentKind.MODEL, release=version, target=path, digest=bundle.digest)

    def publish_agent(self, wheels: Path, version: str, number: int) -> Component:
        """Release a version of the agent; return the component that asks for it."""
        scratch = self._folder / f"agent-{version}"
        shutil.copytree(wheels, scratch / "wheels")
        bundle = seal_agent(scratch, AgentManifest(agent=version, profile=PROFILE, files={}))
        file = self._folder / f"agent-{version}.edgeops"
        pack(bundle, file)
        name = AGENT_COMPONENT
        custom = TargetCustom(model=name, version=version, number=number, profile=PROFILE, digest=bundle.digest)
        path = target_path(name, version, PROFILE)
        self.publisher.publish([NewTarget(path, file, custom)])
        return Component(name=name, kind=ComponentKind.AGENT, release=version, target=path, digest=bundle.digest)

    def desire(self, *components: Component, **changes: Any) -> bytes:
        """Publish a new desired state; return its envelope."""
        self.generation += 1
        envelope = self.envelope(*components, generation=self.generation, **changes)
        self.send(envelope)
        return envelope

    def envelope(self, *components: Component, signer: Any = None, **changes: Any) -> bytes:
        now_s = time.time()
        parts = {
            "fleet": FLEET, "connection": DEVICE, "unit": "self", "generation": self.generation,
            "issued_at_s": now_s, "expires_at_s": now_s + 3600, "components": components,
        }  # fmt: skip
        return desired_statements.issue(Desired(**{**parts, **changes}), signer or self.publisher.desired_signer())

    def send(self, envelope: bytes) -> None:
        assert self._link.wait_connected(WITHIN_S)
        info = self._link.publish(unit_topic(FLEET, DEVICE, "self", "desired"), envelope, retain=True)
        assert info is not None
        info.wait_for_publish(WITHIN_S)

    # Candidates

    def offer(self, *bundles: Bundle) -> list[Candidate]:
        """Publish bundles to be measured."""
        return candidates.offer(self.home, bundles)

    def ask(self, id: str, *bundles: Candidate, signer: Any = None, **changes: Any) -> None:
        """Have the device measure."""
        now_s = time.time()
        parts = {
            "fleet": FLEET, "connection": DEVICE, "unit": "self", "id": id, "issued_at_s": now_s,
            "expires_at_s": now_s + 600, "bundles": bundles, "threads": 1, "runs": 5,
        }  # fmt: skip
        envelope = measure_commands.issue(
            MeasureCommand(**{**parts, **changes}), signer or self.publisher.desired_signer()
        )
        assert self._link.wait_connected(WITHIN_S)
        info = self._link.publish(unit_topic(FLEET, DEVICE, "self", "cmd", id), envelope)
        assert info is not None
        info.wait_for_publish(WITHIN_S)

    def wait_answer(self, id: str, number: int = 1) -> MeasureAnswer:
        """Return the answer to a command, once it has come so often."""

        def found() -> list[MeasureAnswer]:
            return [answer for answer in self.answers if answer.id == id]

        wait_for(lambda: len(found()) >= number, f"no answer to {id}: {self.reports and self.reports[-1].refused}")
        return found()[-1]

    # What the device says

    def component(self, name: str = MODEL) -> ComponentReport | None:
        if not self.reports:
            return None
        return next((part for part in self.reports[-1].components if part.name == name), None)

    def wait_state(self, state: DeploymentState, *, name: str = MODEL) -> ComponentReport:
        """Wait until the newest report has a component of the newest generation in a state."""

        def reached() -> ComponentReport | None:
            report = self.component(name)
            fits = report is not None and report.state is state and report.generation == self.generation
            return report if fits else None

        report: ComponentReport = wait_for(
            reached,
            f"{name} is not {state}: {self.component(name)}, refused {self.reports and self.reports[-1].refused}",
        )
        return report

    def wait_refused(self, code: str) -> Reported:
        report: Reported = wait_for(
            lambda: next((r for r in self.reports[::-1] if r.refused is not None and r.refused.code == code), None),
            f"nothing was refused with {code}: {self.reports and self.reports[-1]}",
        )
        return report


class Agent:
    """`edgeops agent run` as a process of its own."""

    def __init__(self, fleet: FakeFleet, state: Path, *options: str) -> None:
        self.state, self.options = state, options
        self.log = state.parent / f"{state.name}.log"
        state.mkdir(mode=0o700, exist_ok=True)
        if not (state / "agent.toml").exists():
            (state / "agent.toml").write_text(AT_ONCE)
        self._token = state.parent / f"{state.name}.token"
        self._token.write_text(fleet.token())
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Agent:
        self.start_unwatched()
        wait_for(lambda: self.facts() or self.process.poll() is not None, "no agent.json")
        return self

    def start_unwatched(self) -> None:
        """Start it, perhaps as the parent of another version."""
        command = [
            sys.executable, "-m", "edgeops", "agent", "run", "--state", str(self.state), "--token-file",
            str(self._token), "--profile", PROFILE, "--name", DEVICE, "--confirm-after-s", "0.5", "--verbose",
            *self.options,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def facts(self) -> dict[str, Any] | None:
        """What `agent.json` of this process says."""
        try:
            facts: dict[str, Any] = json.loads((self.state / "agent.json").read_text())
        except (OSError, ValueError):
            return None
        return facts if self.process is not None and facts["pid"] == self.process.pid else None

    def added(self, model: str = MODEL) -> float:
        """What the model that serves adds to its input; one that loads for longer than clients wait is waited for."""
        facts = self.facts()
        assert facts is not None, self.log.read_text()[-2000:]
        x = np.array([[1, 2, 3, 4]], np.float32)
        deadline_s = time.monotonic() + WITHIN_S
        with InferenceClient(facts["endpoints"][model]) as client:
            while True:
                try:
                    return float((client.infer(model, {"x": x})["y"] - x)[0, 0])
                except EdgeopsError as error:
                    if error.code != "E-INFER-AWAY" or time.monotonic() > deadline_s:
                        raise

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(WITHIN_S)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(WITHIN_S)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fleet: FakeFleet
    mutual: bool

    def do_GET(self) -> None:
        self.fleet.requests.append(self.path)
        data = self._content()
        if data is None:
            self._answer(404, b"")
            return
        value = self.headers.get("Range")
        start = int(value.removeprefix("bytes=").rstrip("-")) if value else 0
        if start:
            self._answer(206, data[start:], f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self._answer(200, data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(*self.fleet.answer_enrolment(decode(body, EnrolRequest, what="request")))

    def _content(self) -> bytes | None:
        if not self.mutual:
            return {"/bootstrap/ca.pem": self.fleet.ca_pem, "/bootstrap/root.json": self.fleet.root}.get(self.path)
        if self.path in self.fleet.changed_paths:
            return self.fleet.changed_paths[self.path]
        file = self.fleet.home / "repository" / self.path.lstrip("/")
        return file.read_bytes() if file.is_file() else None

    def _answer(self, status: int, data: bytes, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if content_range is not None:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class HttpsServer:
    """An HTTPS server.

    Args:
        fleet: Whose files and certificate.
        mutual: It serves the repository, to devices; else what a device without a certificate may have.
        port: Where; 0: anywhere.
        asks_certificate: Whether clients need one; as `mutual` if not said.
    """

    def __init__(self, fleet: FakeFleet, *, mutual: bool, port: int = 0, asks_certificate: bool | None = None) -> None:
        folder = fleet.home.parent
        (folder / "server.pem").write_bytes(fleet.server_pem)
        (folder / "server.key").write_bytes(fleet.server_key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        if mutual if asks_certificate is None else asks_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=fleet.authority.ca_pem.decode())
        handler = type("Handler", (_Handler,), {"fleet": fleet, "mutual": mutual})
        self._server = _HttpServer(("127.0.0.1", port), handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port: int = self._server.server_address[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
