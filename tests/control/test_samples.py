"""Samples as the control plane sees them: operators ask, devices are told, answers are whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from registry_fleet import FLEET, add_devices, open_registry
from sqlalchemy import select

from edgeops.contracts.deployment import Reported
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.samples import SAMPLES_FEATURE, AnswerState, SamplesAnswer, SamplesCommand, SamplesWish
from edgeops.contracts.topics import parse_topic, unit_topic
from edgeops.contracts.wire import encode
from edgeops.control import commands
from edgeops.control.database import Database
from edgeops.control.ingest.apply import Batch
from edgeops.control.ingest.statements import Known, read_statements
from edgeops.control.ingest.worker import TAKEN, ingest_filters
from edgeops.control.models import AuditEntry, CommandPart, CommandRow, Device, Unit
from edgeops.control.retention import prune

NOW = 1_800_000_000.0
WISH = SamplesWish(model="lines", count=4, max_bytes=1000, within_s=60.0)
DEVICE = "dev-000"


@pytest.fixture
def registry(registry_url: Path | str) -> Iterator[Database]:
    database = open_registry(registry_url)
    add_devices(database, 2)
    for name in (DEVICE, "dev-001"):
        report(database, name)
    yield database
    database.close()


def report(database: Database, name: str, features: tuple[str, ...] = (SAMPLES_FEATURE,)) -> None:
    said = Reported(
        fleet=FLEET, connection=name, unit="self", boot_id="b", seq=1, at_s=NOW, agent_version="0.1.0", profile="p",
        observed_generation=0, components=(), features=features,
    )  # fmt: skip
    with database.write() as session:
        session.get_one(Unit, (name, "self")).reported = encode(said)


class Link:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []

    def publish(self, topic: str, payload: bytes) -> object:
        self.sent.append((topic, payload))
        return object()


def plain(command: SamplesCommand) -> bytes:
    return encode(command)


def ask(database: Database, **changes: Any) -> str:
    return commands.ask_for_samples(
        database, changes.pop("device", DEVICE), msgspec.structs.replace(WISH, **changes), actor="op", now_s=NOW
    )


def tell(database: Database, id: str, **said: Any) -> None:
    connection = said.pop("connection", DEVICE)
    answer = SamplesAnswer(
        **{"fleet": FLEET, "connection": connection, "unit": "self", "id": id, "state": AnswerState.DONE, "at_s": NOW}
        | said
    )
    with database.write() as session:
        batch = Batch(session, {connection}, NOW)
        batch.apply(batch.devices[connection], answer)
        batch.finish()


def state(database: Database, id: str, now_s: float = NOW) -> str:
    with database.read() as session:
        return commands.state_of(commands.find(session, DEVICE, id), now_s)


def parts_of(data: bytes, size: int) -> list[dict[str, Any]]:
    whole = {"total": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return [{"offset": at, "data": data[at : at + size], **whole} for at in range(0, len(data), size)]


def test_a_wish_is_told_to_a_device_that_is_there_and_again_until_it_is_answered(registry: Database) -> None:
    id, link = ask(registry), Link()
    for at_s in (NOW, NOW + 1, NOW + commands.AGAIN_AFTER_S + 1):
        commands.publish_due(registry, FLEET, plain, link, at_s)  # type: ignore[arg-type]
    assert [topic for topic, _ in link.sent] == [unit_topic(FLEET, DEVICE, "self", "cmd", id)] * 2
    assert msgspec.json.decode(link.sent[0][1], type=SamplesCommand).wish == WISH
    tell(registry, id, state=AnswerState.ACCEPTED)
    commands.publish_due(registry, FLEET, plain, link, NOW + 500)  # type: ignore[arg-type]
    assert len(link.sent) == 2
    with registry.write() as session:
        session.get_one(Device, "dev-001").online = False
    ask(registry, device="dev-001")
    commands.publish_due(registry, FLEET, plain, link, NOW + 500)  # type: ignore[arg-type]
    assert len(link.sent) == 2


def test_an_answer_in_any_order_and_twice_is_whole_once(registry: Database) -> None:
    id, data = ask(registry), bytes(range(256)) * 3
    parts = parts_of(data, 100)
    for part in [*parts[3:], parts[5], *parts[:3]]:
        assert state(registry, id) in ("asked", "accepted")
        tell(registry, id, **part)
    assert state(registry, id) == "done"
    tell(registry, id, **parts[0])
    assert commands.fetch(registry, DEVICE, id, actor="op", now_s=NOW) == data
    with registry.read() as session:
        noted = session.execute(select(AuditEntry.action, AuditEntry.actor)).all()
    assert [tuple(row) for row in noted] == [("samples.ask", "op"), ("samples.fetch", "op")]


def test_what_was_not_asked_for_is_not_kept(registry: Database) -> None:
    id = ask(registry)
    too_much = bytes(WISH.max_bytes + commands.SLACK_BYTES + 1)
    for said, code in (
        ({"id": "unknown"}, "E-COMMAND-UNKNOWN"),
        ({"id": id, "connection": "dev-001"}, "E-COMMAND-UNKNOWN"),
        ({"id": id, **parts_of(too_much, len(too_much))[0]}, "E-WIRE-SIZE"),
        ({"id": id, "total": 3, "offset": 2, "data": b"ab"}, "E-WIRE-SIZE"),
        ({"id": id, "total": 3, "offset": -1, "data": b"a"}, "E-WIRE-SIZE"),
        ({"id": id, "total": 1, "sha256": "0" * 64, "data": b"a"}, "E-WIRE-MALFORMED"),
    ):
        with pytest.raises(EdgeopsError) as caught:
            tell(registry, **said)
        assert caught.value.code == code
    with registry.read() as session:
        assert session.scalars(select(CommandPart)).all() == []
    with pytest.raises(EdgeopsError) as caught:
        commands.fetch(registry, DEVICE, id, actor="op", now_s=NOW)
    assert caught.value.code == "E-COMMAND-UNKNOWN"


def test_an_answer_without_requests_is_an_answer(registry: Database) -> None:
    id = ask(registry)
    tell(registry, id, total=0, sha256=hashlib.sha256(b"").hexdigest(), what="0 requests; its time is over")
    assert state(registry, id) == "done"
    assert commands.fetch(registry, DEVICE, id, actor="op", now_s=NOW) == b""


def test_refusals_and_expiry_are_told(registry: Database) -> None:
    refused, late = ask(registry), ask(registry)
    tell(registry, refused, state=AnswerState.REFUSED, code="E-SAMPLES-FORBIDDEN", what="the owner\0 forbids it")
    with registry.read() as session:
        row = commands.find(session, DEVICE, refused)
        assert (row.state, row.code, row.detail) == ("refused", "E-SAMPLES-FORBIDDEN", "the owner forbids it")
    assert state(registry, late, NOW + commands.VALID_S) == "expired"
    prune(registry, NOW + commands.KEEP_S + 1)
    with registry.read() as session:
        assert session.scalars(select(CommandRow)).all() == []


def test_who_cannot_be_asked_is_not(registry: Database) -> None:
    for _ in range(commands.MAX_OPEN):
        ask(registry)
    report(registry, "dev-001", features=())
    for changes, code in (
        ({}, "E-COMMAND"),
        ({"device": "dev-001"}, "E-AGENT-FEATURE"),
        ({"device": "nobody"}, "E-DEVICE-UNKNOWN"),
        ({"count": 0}, "E-COMMAND"),
    ):
        with pytest.raises(EdgeopsError) as caught:
            ask(registry, **changes)
        assert caught.value.code == code


def test_answers_are_taken_in_by_one_worker_and_never_without_a_signature() -> None:
    assert f"eo/v1/{FLEET}/d/+/+/res/+" in ingest_filters(FLEET, TAKEN)
    topic = unit_topic(FLEET, DEVICE, "self", "res", "1")
    with pytest.raises(EdgeopsError) as caught:
        read_statements(parse_topic(topic), b"{}", FLEET, Known("", revoked=True))
    assert caught.value.code == "E-DEVICE-UNKNOWN"
