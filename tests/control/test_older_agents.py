"""What agents of earlier versions say: today's control plane enrols them, believes them, and knows how they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from registry_fleet import open_registry
from sqlalchemy import select

from edgeops.contracts.deployment import REPORTED_TYPE, DeploymentState, Reported
from edgeops.contracts.enrolment import EnrolmentToken, EnrolRequest, EnrolResponse
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import decode
from edgeops.control import enrolment
from edgeops.control.enrolment import FirstTrust, TokenScope, issue_token
from edgeops.control.ingest.worker import Ingest
from edgeops.control.models import Device, ProgressEvent, Unit
from edgeops.control.telemetry_models import TelemetryWindow
from edgeops.transport.mqtt import Message
from edgeops.trust import envelopes
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.device import DeviceIdentity

FLEET = "demo"
VERSIONS = Path(__file__).parents[1] / "golden" / "versions"
RECORDED = sorted(path for path in VERSIONS.iterdir() if path.is_dir())


@pytest.fixture(params=RECORDED, ids=lambda path: path.name)
def recorded(request: pytest.FixtureRequest) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((request.param / "messages.json").read_text())
    return content


def said(recorded: dict[str, Any]) -> list[Message]:
    heard = [message for message in recorded["messages"] if "topic" in message]
    return [Message(message["topic"], message["payload"].encode(), False, lambda: None) for message in heard]


def test_all_that_it_says_is_believed_and_taken_in(recorded: dict[str, Any], tmp_path: Path):
    """It enrols with the request that it sent, so its messages are verified by its own key."""
    database = open_registry(tmp_path)
    authority = FleetAuthority.create(tmp_path / "ca", FLEET)
    now_s = recorded["recorded_at_s"]
    token = issue_token(
        database, FirstTrust("https://x", FLEET, authority.ca_sha256, "0" * 64), TokenScope(), actor="test", now_s=now_s
    )
    asked = decode(json.dumps(recorded["enrolment"]["request"]), EnrolRequest, what="request")
    asked = msgspec.structs.replace(asked, secret=EnrolmentToken.from_text(token.text).secret)
    joined = enrolment.enrol(database, authority, asked, now_s=now_s)
    assert joined.connection == recorded["connection"]
    ingest = Ingest(database, FLEET, lambda: None)
    messages = said(recorded)
    ingest.take(messages, now_s=now_s)
    assert (ingest.accepted, ingest.refused) == (len(messages), 0)
    with database.read() as session:
        device = session.get_one(Device, joined.connection)
        assert device.rejected_messages == 0
        assert device.agent_version == asked.agent_version
        unit = session.get_one(Unit, (joined.connection, "self"))
        reported = decode(unit.reported or b"", Reported, what="reported")
        assert {part.name: part.state for part in reported.components} == {
            "adder": DeploymentState.CONFIRMED, "second": DeploymentState.FAILED,
        }  # fmt: skip
        assert unit.observed_generation == 4
        assert len(session.scalars(select(TelemetryWindow)).all()) >= 4
        steps = session.scalars(select(ProgressEvent.state)).all()
        assert {"downloading", "self-test", "trial", "confirmed", "failed"} <= {str(step) for step in steps}
    database.close()


def test_what_it_was_answered_can_still_be_read(recorded: dict[str, Any]):
    answer = decode(json.dumps(recorded["enrolment"]["response"]), EnrolResponse, what="answer")
    assert answer.connection == recorded["connection"]


def test_a_report_that_asks_for_more_than_it_says_would_be_noticed(recorded: dict[str, Any]):
    """Negative control: a new field without a default cuts off every older agent."""

    class Demanding(Reported, frozen=True, kw_only=True):
        mood: str

    report = next(message.payload for message in said(recorded) if message.topic.endswith("/reported"))
    certificate = recorded["enrolment"]["response"]["certificate_pem"].encode()
    key = DeviceIdentity.public_key_from_certificate(certificate)
    payload = envelopes.unseal(report, REPORTED_TYPE, {key.keyid: key})
    assert decode(payload, Reported, what="report").connection == recorded["connection"]
    with pytest.raises(EdgeopsError) as caught:
        decode(payload, Demanding, what="report")
    assert caught.value.code == "E-WIRE-MALFORMED"
