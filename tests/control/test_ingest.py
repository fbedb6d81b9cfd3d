"""What devices say: only the truth of the right device counts, once and in order; nothing hostile breaks anything."""

from __future__ import annotations

import base64
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingest_house import NOW, House, progress, report, telemetry
from registry_fleet import FLEET
from sqlalchemy import select

from edgeops.contracts.deployment import (
    PROGRESS_TYPE,
    REPORTED_TYPE,
    TELEMETRY_TYPE,
    Presence,
    Reported,
)
from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.telemetry import MAX_WINDOWS_PER_BATCH, ShadowFigures, TelemetryBatch
from edgeops.contracts.topics import presence_topic, unit_topic
from edgeops.contracts.wire import encode
from edgeops.control.ingest import rollups
from edgeops.control.ingest.worker import Ingest
from edgeops.control.models import Boot, Device, EnrolmentTokenRow, ProgressEvent, Unit
from edgeops.control.retention import prune
from edgeops.control.telemetry_models import TelemetryTotal, TelemetryWindow
from edgeops.transport.mqtt import Message
from edgeops.trust import envelopes


@pytest.fixture
def house(tmp_path: Path, registry_url: Path | str) -> Iterator[House]:
    house = House(tmp_path, registry_url)
    yield house
    house.database.close()


def test_a_signed_report_is_taken_in(house: House) -> None:
    house.say(house.sealed(report(observed_generation=7, stale_s=3.0)))
    with house.database.read() as session:
        unit = session.get_one(Unit, ("dev-a", "self"))
        assert (unit.observed_generation, unit.boot_id, unit.seq) == (7, "b1", 1)
        assert msgspec.json.decode(unit.reported or b"", type=Reported).stale_s == 3.0
        device = session.get_one(Device, "dev-a")
        assert (device.last_seen_s, device.agent_version, device.rejected_messages) == (NOW, "0.1.0", 0)


def _unsigned(house: House) -> tuple[str, bytes]:
    return unit_topic(FLEET, "dev-a", "self", "reported"), encode(report())


def _signed_by_another(house: House) -> tuple[str, bytes]:
    return house.sealed(report(), by="dev-b")


def _of_another(house: House) -> tuple[str, bytes]:
    _, envelope = house.sealed(report("dev-b"))
    return unit_topic(FLEET, "dev-a", "self", "reported"), envelope


def _of_another_signed_by_itself(house: House) -> tuple[str, bytes]:
    _, envelope = house.sealed(report("dev-b"), by="dev-a")
    return unit_topic(FLEET, "dev-a", "self", "reported"), envelope


def _of_another_unit(house: House) -> tuple[str, bytes]:
    _, envelope = house.sealed(report())
    return unit_topic(FLEET, "dev-a", "mcu-1", "reported"), envelope


def _of_another_kind(house: House) -> tuple[str, bytes]:
    _, envelope = house.sealed(progress())
    return unit_topic(FLEET, "dev-a", "self", "reported"), envelope


def _one_bit_changed(house: House) -> tuple[str, bytes]:
    topic, envelope = house.sealed(report())
    fields = msgspec.json.decode(envelope)
    fields["payload"] = ("A" if fields["payload"][20] != "A" else "B").join(
        (fields["payload"][:20], fields["payload"][21:])
    )
    return topic, msgspec.json.encode(fields)


def _too_large(house: House) -> tuple[str, bytes]:
    return unit_topic(FLEET, "dev-a", "self", "reported"), b"x" * (600 << 10)


def _not_json(house: House) -> tuple[str, bytes]:
    return unit_topic(FLEET, "dev-a", "self", "reported"), b"\xff\x00{"


def _empty(house: House) -> tuple[str, bytes]:
    return unit_topic(FLEET, "dev-a", "self", "reported"), b""


def _huge_generation(house: House) -> tuple[str, bytes]:
    return house.sealed(report(observed_generation=1 << 60))


def _negative_seq(house: House) -> tuple[str, bytes]:
    return house.sealed(report(seq=-1))


def _own_desired(house: House) -> tuple[str, bytes]:
    return unit_topic(FLEET, "dev-a", "self", "desired"), b"{}"


def _bad_presence(house: House) -> tuple[str, bytes]:
    return presence_topic(FLEET, "dev-a"), b'{"online": 1}'


@pytest.mark.parametrize(
    ("hostile", "code"),
    [
        (_unsigned, "E-WIRE-MALFORMED"),
        (_signed_by_another, "E-TRUST-SIGNATURE"),
        (_of_another, "E-TRUST-SIGNATURE"),
        (_of_another_signed_by_itself, "E-TRUST-DEVICE"),
        (_of_another_unit, "E-TRUST-DEVICE"),
        (_of_another_kind, "E-TRUST-SIGNATURE"),
        (_one_bit_changed, "E-TRUST-SIGNATURE"),
        (_too_large, "E-WIRE-SIZE"),
        (_not_json, "E-WIRE-MALFORMED"),
        (_empty, "E-WIRE-MALFORMED"),
        (_huge_generation, "E-WIRE-MALFORMED"),
        (_negative_seq, "E-WIRE-MALFORMED"),
        (_own_desired, "E-TOPIC"),
        (_bad_presence, "E-WIRE-MALFORMED"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_hostile_messages_change_nothing_and_are_counted_for_their_sender(
    house: House, hostile: Callable[[House], tuple[str, bytes]], code: str
) -> None:
    house.say(hostile(house))
    count, last = house.rejected()
    assert count == 1
    assert last.startswith(code)
    assert house.newest() == ("", 0)
    assert house.rejected("dev-b")[0] == 0
    house.say(house.sealed(report()))  # negative control: the valid one is accepted
    assert house.newest() == ("b1", 1)
    assert house.rejected()[0] == 1


def test_one_hostile_message_does_not_hold_the_batch(house: House) -> None:
    house.say(_not_json(house), house.sealed(report()), _signed_by_another(house), house.sealed(progress(2)))
    assert house.newest() == ("b1", 1)
    assert house.count(ProgressEvent) == 1
    assert house.rejected()[0] == 2


def test_unknown_devices_and_topics_are_refused_without_a_trace(house: House) -> None:
    house.say(
        (unit_topic(FLEET, "nobody", "self", "reported"), b"x"),
        (unit_topic("other", "dev-a", "self", "reported"), b"x"),
        ("eo/v1/f1/d/dev-a/reported", b"x"),
        ("$SYS/x", b"x"),
    )
    assert house.ingest.refused == 4
    with house.database.read() as session:
        assert sorted(session.scalars(select(Device.connection))) == ["dev-a", "dev-b"]


def test_a_revoked_device_is_heard_no_more(house: House) -> None:
    with house.database.write() as session:
        session.get_one(Device, "dev-a").revoked_at_s = NOW
    house.say(house.sealed(report()))
    assert house.newest() == ("", 0)
    house.say(house.sealed(report("dev-b")))  # negative control
    assert house.newest("dev-b") == ("b1", 1)


def test_reports_are_ordered_by_boot_and_sequence(house: House) -> None:
    older, newer = house.sealed(report(seq=4)), house.sealed(report(seq=5))
    house.say(newer, older)
    assert house.newest() == ("b1", 5)
    house.say(newer)  # retained, given again
    assert house.rejected()[0] == 0
    house.say(house.sealed(report(boot_id="b2", seq=1)))
    assert house.newest() == ("b2", 1)
    # A broker that keeps an old healthy report cannot bring it back.
    house.say(house.sealed(report(seq=99)))
    assert house.newest() == ("b2", 1)
    count, last = house.rejected()
    assert (count, last.split(":")[0]) == (1, "E-REPORT-STALE")


def test_without_what_is_kept_of_boots_and_numbers_an_old_report_would_be_believed(house: House) -> None:
    """Negative control."""
    older, newer = house.sealed(report(seq=4)), house.sealed(report(seq=5))
    house.say(newer, older, house.sealed(report(boot_id="b2", seq=1)))
    with house.database.write() as session:
        session.get_one(Unit, ("dev-a", "self")).seq = 0
        session.delete(session.get_one(Boot, ("dev-a", "self", "b1")))
    house.say(older)
    assert house.newest() == ("b1", 4)
    assert house.rejected() == (0, "")


def test_repeated_progress_and_telemetry_count_once(house: House) -> None:
    """Unacknowledged messages come again; also within one batch."""
    messages = [house.sealed(progress(1)), house.sealed(telemetry(1)), house.sealed(telemetry(2, (8.0,)))]
    house.say(*messages, *messages)
    house.say(*messages)
    assert house.count(ProgressEvent) == 1
    assert house.count(TelemetryWindow) == 2
    with house.database.read() as session:
        total = session.scalars(select(TelemetryTotal)).one()
        assert (total.requests, total.errors) == (3, {"E-RUNTIME-INPUT": 2})
        merged = msgspec.json.decode(total.latency_ms, type=QuantileSketch)
    assert merged == QuantileSketch.of([1.0, 2.0]).merge(QuantileSketch.of([8.0]))


def telemetry_batch(*numbers: int, **more: object) -> TelemetryBatch:
    windows = tuple(telemetry(number) for number in numbers)
    return TelemetryBatch(fleet=FLEET, connection="dev-a", unit="self", **{"windows": windows, **more})  # type: ignore[arg-type]


def requests_counted(house: House) -> int:
    with house.database.read() as session:
        return sum(total.requests for total in session.scalars(select(TelemetryTotal)))


def test_the_windows_of_a_batch_share_a_signature_and_count_once_each(house: House) -> None:
    house.say(house.sealed(telemetry_batch(1, 2, 3)))
    assert (house.count(TelemetryWindow), requests_counted(house)) == (3, 6)
    # The link broke before the broker's answer: some come again, alone and in another batch.
    house.say(house.sealed(telemetry(2)), house.sealed(telemetry_batch(3, 4)), house.sealed(telemetry_batch(1, 2, 3)))
    assert (house.count(TelemetryWindow), requests_counted(house)) == (4, 8)
    assert house.rejected() == (0, "")


def test_what_a_device_gave_up_never_becomes_more_than_a_column_holds(house: House) -> None:
    """Each window may say only so much: 2^53 in each was too much for SQLite after a minute, and ended the ingest."""
    with house.database.write() as session:
        session.get_one(Device, "dev-a").dropped_windows = (1 << 63) - (1 << 40)
    house.say(house.sealed(telemetry(1, dropped_windows=(1 << 53) - 1)))
    assert house.rejected()[0] == 1
    house.say(house.sealed(telemetry(2, dropped_windows=1_000_000_000)))
    assert (house.rejected()[0], house.count(TelemetryWindow)) == (1, 1)


UNSOUND = {
    "a sum that is none when it is added to": QuantileSketch(bins={"1": 2}, total=1.7e308, maximum=1.0),
    "a bin beyond every number": QuantileSketch(bins={"9999999": 2}, total=2.0, maximum=1.0),
    "a bin by another name": QuantileSketch(bins={"01": 2}, total=2.0, maximum=1.0),
    "a bin in other digits": QuantileSketch(bins={"\u0661": 2}, total=2.0, maximum=1.0),
    "a sum below nothing": QuantileSketch(bins={"1": 2}, total=-1.0, maximum=1.0),
    "a count below nothing": QuantileSketch(bins={"1": 2, "2": -1}, total=2.0, maximum=1.0),
}


def median_of_all(house: House) -> float | None:
    with house.database.read() as session:
        (traffic,) = rollups.traffic(session, "lines", since_s=0.0).values()
        return traffic.latency_ms.quantile(0.5)


def say_unsound(house: House, *names: str, as_shadow: bool = False) -> None:
    """A device says such latencies, of what serves or of its shadow, each twice; and then another one good ones."""
    for number, name in enumerate(2 * names):
        window = telemetry(number).models[0]
        shadow = ShadowFigures(compared=2, agreed=2, latency_ms=UNSOUND[name])
        more = {"shadow": shadow} if as_shadow else {"latency_ms": UNSOUND[name]}
        bad = msgspec.structs.replace(telemetry(number), models=(msgspec.structs.replace(window, **more),))
        house.say(house.sealed(bad))
    house.say(house.sealed(msgspec.structs.replace(telemetry(1), connection="dev-b")))
    assert median_of_all(house) == pytest.approx(1.0, rel=0.02)


def test_latencies_that_cannot_be_are_refused_before_they_spoil_a_sum(house: House) -> None:
    """What is summed up is read at each further window, by gates, lists and metrics: one device stopped them all."""
    say_unsound(house, *UNSOUND)
    assert house.rejected() == (2 * len(UNSOUND), "E-WIRE-MALFORMED: latencies that cannot be")
    assert house.rejected("dev-b") == (0, "")


def test_what_cannot_be_of_a_shadow_is_left_out(house: House) -> None:
    say_unsound(house, *UNSOUND, as_shadow=True)
    with house.database.read() as session:
        (traffic,) = rollups.traffic(session, "lines", since_s=0.0).values()
    assert (traffic.requests, traffic.shadow) == (2 * (2 * len(UNSOUND) + 1), None)


@pytest.mark.parametrize("what", list(UNSOUND)[:3])
def test_without_the_look_at_latencies_one_device_stops_all(
    house: House, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control."""
    monkeypatch.setattr(QuantileSketch, "is_sound", lambda self, most: True)
    with pytest.raises((msgspec.ValidationError, OverflowError, KeyError)):
        say_unsound(house, what)


@pytest.mark.parametrize("what", ["signed by another", "changed", "another device's window", "too many", "bad window"])
def test_forged_telemetry_is_counted_against_its_device_and_nowhere_else(house: House, what: str) -> None:
    """What a broker that lies can bring: none of it moves a rollout's gates."""
    if what == "signed by another":
        topic, payload = house.sealed(telemetry_batch(1, 2), by="dev-b")
    elif what == "changed":
        topic, payload = house.sealed(telemetry_batch(1, 2))
        envelope = msgspec.json.decode(payload)
        forged = encode(telemetry_batch(1, 2, 3))
        payload = msgspec.json.encode({**envelope, "payload": base64.b64encode(forged).decode()})
    elif what == "another device's window":
        stolen = msgspec.structs.replace(telemetry(1), connection="dev-b")
        topic, payload = house.sealed(telemetry_batch(windows=(telemetry(2), stolen)))
    elif what == "too many":
        topic, payload = house.sealed(telemetry_batch(*range(1, MAX_WINDOWS_PER_BATCH + 2)))
    else:
        topic, payload = house.sealed(telemetry_batch(windows=(telemetry(2), telemetry(-1))))
    house.say((topic, payload))
    assert (house.count(TelemetryWindow), requests_counted(house)) == (0, 0)
    assert house.rejected()[0] == 1
    assert house.rejected("dev-b")[0] == 0
    assert house.ingest.refused == 1


@pytest.mark.parametrize("kind", ["telemetry", "batch", "progress", "reported"])
def test_without_the_signature_check_a_broker_could_forge_health(
    house: House, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: the same forged words are believed once nobody looks at the signature."""
    forged = {
        "telemetry": telemetry(1), "batch": telemetry_batch(1, 2), "progress": progress(1), "reported": report()
    }[kind]  # fmt: skip
    message = house.sealed(forged, by="dev-b")
    house.say(message)
    assert house.rejected()[1].startswith("E-TRUST-SIGNATURE")
    assert house.count(TelemetryWindow) + house.count(ProgressEvent) == 0
    monkeypatch.setattr(envelopes.Envelope, "verify", lambda *_: {})
    house.say(message)
    assert house.rejected()[0] == 1
    if kind == "reported":
        assert house.newest() == ("b1", 1)
    else:
        assert house.count(TelemetryWindow) + house.count(ProgressEvent) == (2 if kind == "batch" else 1)


def test_presence_says_who_is_online(house: House) -> None:
    def online() -> bool:
        with house.database.read() as session:
            return session.get_one(Device, "dev-a").online

    house.say((presence_topic(FLEET, "dev-a"), encode(Presence(online=True, boot_id="b1"))))
    assert online()
    house.say((presence_topic(FLEET, "dev-a"), encode(Presence(online=False, boot_id="b1"))))
    assert not online()


@pytest.mark.parametrize("kept", [True, False], ids=["the broker queued what came since", "nothing came live"])
def test_retained_presence_counts_only_where_nothing_was_queued(house: House, kept: bool) -> None:
    """A device that comes before a new control plane subscribes is online; one that died while it was away is not."""
    ingest = Ingest(house.database, FLEET, lambda: None, live_presence_only=True)
    ingest.start()
    ingest.new_session(kept=kept)
    done = threading.Event()
    said = encode(Presence(online=True, boot_id="b1"))
    ingest.receive(Message(presence_topic(FLEET, "dev-a"), said, True, done.set))
    assert done.wait(60)
    ingest.stop()
    with house.database.read() as session:
        assert session.get_one(Device, "dev-a").online is not kept


def test_a_newer_agents_words_are_read(house: House) -> None:
    """An unknown state and unknown fields of a newer agent are no errors."""
    fields = msgspec.to_builtins(progress(1)) | {"state": "teleporting", "colour": "blue"}
    sealed = envelopes.seal(msgspec.json.encode(fields), PROGRESS_TYPE, house.identities["dev-a"].signer)
    house.say((unit_topic(FLEET, "dev-a", "self", "progress"), sealed))
    assert house.rejected()[0] == 0
    assert house.count(ProgressEvent) == 1


def test_a_gateways_units_are_bounded(house: House) -> None:
    for number in range(70):
        statement = msgspec.structs.replace(report(), unit=f"mcu-{number}")
        house.say(house.sealed(statement))
    with house.database.read() as session:
        assert len(session.scalars(select(Unit).where(Unit.connection == "dev-a")).all()) == 64
    assert house.rejected()[0] == 7


texts = st.text(max_size=20)
numbers = st.integers(-(2**70), 2**70) | st.floats() | st.none()
leaves = st.sampled_from(["reported", "progress", "telemetry"])


@given(
    leaf=leaves,
    change=st.dictionaries(
        st.sampled_from(
            ["boot_id", "seq", "at_s", "component", "components", "generation", "step", "state", "release", "models",
             "observed_generation", "percent", "code", "detail", "start_s", "refused", "unit", "agent_version"]
        ),
        texts | numbers | st.lists(texts, max_size=3) | st.dictionaries(texts, numbers, max_size=3),
        max_size=4,
    ),
)  # fmt: skip
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_signed_nonsense_of_a_device_breaks_the_ingest(house: House, leaf: str, change: dict[str, object]) -> None:
    """A device with a good key and a bad mind: its words are taken or refused, and the next device is served."""
    base, kind = {
        "reported": (report(), REPORTED_TYPE),
        "progress": (progress(), PROGRESS_TYPE),
        "telemetry": (telemetry(), TELEMETRY_TYPE),
    }[leaf]
    clean = {k: v for k, v in change.items() if not (isinstance(v, float) and not math.isfinite(v))}
    payload = json.dumps(msgspec.to_builtins(base) | clean).encode()
    sealed = envelopes.seal(payload, kind, house.identities["dev-a"].signer)
    before = house.ingest.accepted + house.ingest.refused
    house.say((unit_topic(FLEET, "dev-a", "self", leaf), sealed))
    assert house.ingest.accepted + house.ingest.refused == before + 1


def test_acknowledgements_of_a_lost_link_are_not_given_to_the_next(house: House) -> None:
    """Packet identifiers are used anew by a new session: an old one would acknowledge another message."""
    given: list[str] = []
    first = Message(*house.sealed(report()), False, lambda: given.append("old"))
    house.ingest.receive(first)
    house.ingest.new_session(kept=True)
    house.ingest.receive(Message(*house.sealed(progress(2)), False, lambda: given.append("new")))
    house.ingest.start()
    deadline = time.monotonic() + 60
    while not given and time.monotonic() < deadline:
        time.sleep(0.02)
    house.ingest.stop()
    assert given == ["new"]
    assert house.newest() == ("b1", 1)


def test_rejections_never_show_a_secret(house: House) -> None:
    secret = os.urandom(8).hex()
    house.say((unit_topic(FLEET, "dev-a", "self", "reported"), f'{{"payload": "{secret}"'.encode()))
    assert secret not in house.rejected()[1]


def test_what_is_past_its_time_is_pruned_and_totals_stay(house: House) -> None:
    day = 86400.0
    house.say(house.sealed(telemetry(1)), house.sealed(progress(1)))
    house.say(house.sealed(telemetry(2)), house.sealed(progress(2)), now_s=NOW + 80 * day)
    prune(house.database, NOW + 100 * day)
    assert (house.count(TelemetryWindow), house.count(ProgressEvent)) == (1, 1)
    with house.database.read() as session:
        assert session.scalars(select(TelemetryTotal)).one().requests == 4
        assert session.scalars(select(EnrolmentTokenRow)).all() == []
