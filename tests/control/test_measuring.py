"""Devices are asked to measure until they answer, once; only the answer of the one that was asked counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from registry_fleet import FLEET
from sqlalchemy import select
from test_ingest import NOW, House, report

from edgeops.contracts.deployment import MEASURE_FEATURE, Presence
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Source
from edgeops.contracts.measurement import Candidate, MeasureAnswer, MeasureCommand, Measurements, candidate_path
from edgeops.contracts.topics import parse_topic, presence_topic, unit_topic
from edgeops.contracts.wire import encode
from edgeops.control import measuring
from edgeops.control.models import AskedMeasurement
from edgeops.control.retention import MEASUREMENTS_S, prune
from edgeops.trust import reported as statements

DIGEST = "sha256:" + "ab" * 32
CANDIDATE = Candidate(target=candidate_path("lines", DIGEST), digest=DIGEST)


class Link:
    """What would go to the broker."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.connected = True

    def publish(self, topic: str, payload: bytes) -> object | None:
        if not self.connected:
            return None
        self.sent.append(topic)
        return object()


@pytest.fixture
def house(tmp_path: Path, registry_url: Path | str) -> Iterator[House]:
    """Two devices; the agent of the first one measures."""
    house = House(tmp_path, registry_url)
    house.say(house.sealed(report("dev-a", features=(MEASURE_FEATURE,))), house.sealed(report("dev-b")))
    yield house
    house.database.close()


def ask(house: House, name: str = "dev-a", **changes: Any) -> str:
    given: dict[str, Any] = {"threads": 0, "runs": 10, "valid_s": 600.0, "actor": "test", "now_s": NOW}
    return measuring.ask(house.database, FLEET, name, [CANDIDATE], **{**given, **changes})


def online(house: House, name: str, is_online: bool = True) -> None:
    house.say((presence_topic(FLEET, name), encode(Presence(online=is_online, boot_id="b1"))))


def send(house: House, link: Link, now_s: float = NOW) -> list[str]:
    link.sent = []
    measuring.send_waiting(house.database, FLEET, encode, link, now_s)  # type: ignore[arg-type]
    return [parse_topic(topic).id or "" for topic in link.sent]


def answer(house: House, id: str, *, by: str = "dev-a", topic_id: str = "", **changes: Any) -> tuple[str, bytes]:
    found = Measurements(
        source=Source.MEASURED_DEVICE, device=by, arch="x86_64", processor="", threads=1, at_s=NOW, bundles=()
    )
    said = MeasureAnswer(fleet=FLEET, connection=by, unit="self", id=id, measurements=found)
    said = msgspec.structs.replace(said, **changes)
    return unit_topic(FLEET, by, "self", "res", topic_id or id), statements.sign(said, house.identities[by].signer)


def row(house: House, id: str) -> AskedMeasurement:
    with house.database.read() as session:
        return session.get_one(AskedMeasurement, id)


def test_a_command_is_sent_to_a_device_that_is_there_again_and_again_until_it_is_answered(house: House):
    id, link = ask(house), Link()
    assert send(house, link) == []
    online(house, "dev-a")
    link.connected = False
    assert send(house, link) == []
    link.connected = True
    assert send(house, link) == [id]
    assert send(house, link, NOW + 1) == []
    assert send(house, link, NOW + measuring.SEND_AGAIN_AFTER_S + 1) == [id]
    envelope = answer(house, id)
    house.say(envelope)
    assert send(house, link, NOW + 200) == []
    kept = row(house, id)
    assert (kept.answer, kept.certificate_pem.encode()) == (envelope[1], house.identities["dev-a"].certificate_pem)
    # What was not answered in time is not sent, and forgotten after a year.
    late = ask(house)
    assert send(house, link, NOW + 601) == []
    prune(house.database, NOW + MEASUREMENTS_S)
    assert row(house, late).answer is None
    prune(house.database, NOW + 700 + MEASUREMENTS_S)
    with house.database.read() as session:
        assert session.scalars(select(AskedMeasurement)).all() == []


def test_the_first_answer_of_the_device_that_was_asked_counts_and_no_other(house: House):
    id = ask(house)
    code = {"measurements": None, "code": "E-MEASURE-REFUSED", "what": "busy"}
    by_another = (unit_topic(FLEET, "dev-a", "self", "res", id), answer(house, id, by="dev-b")[1])
    for number, (message, refusal) in enumerate(
        [
            (by_another, "E-TRUST-SIGNATURE"),
            (answer(house, "other-id", topic_id=id), "E-TRUST-DEVICE"),
            (answer(house, id, measurements=None), "E-WIRE-MALFORMED"),
            (answer(house, "never-asked"), "E-COMMAND-UNKNOWN"),
        ],
        start=1,
    ):
        house.say(message)
        count, last = house.rejected()
        assert (count, last.partition(":")[0]) == (number, refusal)
    house.say(answer(house, id, by="dev-b"))
    assert house.rejected("dev-b")[1].startswith("E-COMMAND-UNKNOWN")
    assert row(house, id).answer is None
    refusal = answer(house, id, **code)
    house.say(refusal)
    house.say(answer(house, id))
    assert row(house, id).answer == refusal[1]


def test_a_device_that_cannot_or_must_not_is_not_asked(house: House):
    for name, code in (("dev-b", "E-AGENT-FEATURE"), ("nobody", "E-DEVICE-UNKNOWN")):
        with pytest.raises(EdgeopsError) as caught:
            ask(house, name)
        assert caught.value.code == code
    for _ in range(measuring.MAX_OPEN_PER_DEVICE):
        ask(house)
    with pytest.raises(EdgeopsError) as caught:
        ask(house)
    assert caught.value.code == "E-COMMAND"
    # Those that expired do not count.
    assert ask(house, now_s=NOW + 601)


def test_the_command_says_what_was_asked(house: House):
    command = measuring.command_of(row(house, ask(house, threads=2)))
    assert command == MeasureCommand(
        fleet=FLEET,
        connection="dev-a",
        unit="self",
        id=command.id,
        issued_at_s=NOW,
        expires_at_s=NOW + 600,
        bundles=(CANDIDATE,),
        threads=2,
        runs=10,
    )
