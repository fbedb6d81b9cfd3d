"""A registry with two enrolled devices, the worker that takes in what they say, and what they may say."""

from __future__ import annotations

from pathlib import Path

from registry_fleet import FLEET, open_registry
from sqlalchemy import select

from edgeops.contracts.deployment import (
    DeploymentState,
    Progress,
    Reported,
)
from edgeops.contracts.enrolment import EnrolmentToken, EnrolRequest
from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.telemetry import ModelWindow, Telemetry, TelemetryBatch
from edgeops.contracts.topics import unit_topic
from edgeops.control import enrolment
from edgeops.control.enrolment import FirstTrust, TokenScope, issue_token
from edgeops.control.ingest.worker import Ingest
from edgeops.control.models import Device, ProgressEvent, Unit
from edgeops.control.telemetry_models import TelemetryWindow
from edgeops.transport.mqtt import Message
from edgeops.trust import reported as statements
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.device import DeviceIdentity

NOW = 1_800_000_000.0


class House:
    """A registry with two enrolled devices, and the worker that takes in what they say."""

    def __init__(self, directory: Path, registry: Path | str) -> None:
        self.database = open_registry(registry)
        self.authority = FleetAuthority.create(directory / "ca", FLEET)
        self.identities = {name: self.enrol(directory, name) for name in ("dev-a", "dev-b")}
        self.ingest = Ingest(self.database, FLEET, lambda: None)

    def enrol(self, directory: Path, name: str) -> DeviceIdentity:
        trust = FirstTrust("https://x", FLEET, self.authority.ca_sha256, "0" * 64)
        token = issue_token(self.database, trust, TokenScope(), actor="test", now_s=NOW)
        identity = DeviceIdentity.create(directory / name)
        request = EnrolRequest(
            secret=EnrolmentToken.from_text(token.text).secret,
            csr_pem=identity.csr_pem(name).decode(),
            profile="intel-nuc",
            name=name,
        )
        joined = enrolment.enrol(self.database, self.authority, request, now_s=NOW)
        identity.install(joined.certificate_pem, self.authority.ca_pem)
        return identity

    def say(self, *messages: tuple[str, bytes], now_s: float = NOW) -> None:
        self.ingest.take([Message(topic, payload, False, lambda: None) for topic, payload in messages], now_s=now_s)

    def sealed(
        self, statement: Reported | Progress | Telemetry | TelemetryBatch, by: str | None = None
    ) -> tuple[str, bytes]:
        leaf = {Reported: "reported", Progress: "progress"}.get(type(statement), "telemetry")
        signer = self.identities[by or statement.connection].signer
        topic = unit_topic(statement.fleet, statement.connection, statement.unit, leaf)
        return topic, statements.sign(statement, signer)

    def rejected(self, name: str = "dev-a") -> tuple[int, str]:
        with self.database.read() as session:
            device = session.get_one(Device, name)
            return device.rejected_messages, device.rejected_last

    def newest(self, name: str = "dev-a") -> tuple[str, int]:
        with self.database.read() as session:
            unit = session.get_one(Unit, (name, "self"))
            return unit.boot_id, unit.seq

    def count(self, table: type[ProgressEvent] | type[TelemetryWindow]) -> int:
        with self.database.read() as session:
            return len(session.scalars(select(table)).all())


def report(name: str = "dev-a", seq: int = 1, boot_id: str = "b1", **more: object) -> Reported:
    fields = {"agent_version": "0.1.0", "profile": "intel-nuc", "observed_generation": 0, "components": (), "at_s": NOW}
    return Reported(
        fleet=FLEET, connection=name, unit="self", boot_id=boot_id, seq=seq,
        **{**fields, **more},  # type: ignore[arg-type]
    )  # fmt: skip


def progress(seq: int = 1, **more: object) -> Progress:
    fields = {
        "component": "lines",
        "generation": 1,
        "step": seq,
        "state": DeploymentState.DOWNLOADING,
        "release": "1.0.0",
    }
    return Progress(
        fleet=FLEET, connection="dev-a", unit="self", boot_id="b1", seq=seq, at_s=NOW,
        **{**fields, **more},  # type: ignore[arg-type]
    )  # fmt: skip


def telemetry(seq: int = 1, values: tuple[float, ...] = (1.0, 2.0), **more: object) -> Telemetry:
    window = ModelWindow(
        model="lines", release="1.0.0", digest="sha256:0", latency_ms=QuantileSketch.of(values), requests=len(values),
        errors={"E-RUNTIME-INPUT": 1},
    )  # fmt: skip
    return Telemetry(
        fleet=FLEET, connection="dev-a", unit="self", boot_id="b1", seq=seq,
        **{"models": (window,), "start_s": NOW, "end_s": NOW + 1, **more},  # type: ignore[arg-type]
    )  # fmt: skip
