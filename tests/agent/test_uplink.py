"""Telemetry on its way: kept until the broker has it, and after a time without link told in few signed messages."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from edgeops.agent.backlog import TelemetryQueue
from edgeops.agent.enrolment import Enrolment
from edgeops.agent.loop import Loop
from edgeops.agent.uplink import (
    KEEP_ACKNOWLEDGED_S,
    MAX_IN_FLIGHT,
    REPORT_DELAY_S,
    UNHEARD_AGAIN_S,
    Uplink,
    compose_report,
    grouped,
)
from edgeops.contracts.deployment import TELEMETRY_BATCH_TYPE, TELEMETRY_TYPE
from edgeops.contracts.enrolment import BrokerAddress
from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.telemetry import MAX_BATCH_BYTES, MAX_WINDOWS_PER_BATCH, DeviceWindow, ModelWindow, Telemetry
from edgeops.contracts.wire import encode
from edgeops.control.ingest.statements import MAX_STATEMENT_BYTES, check_statement
from edgeops.transport.mqtt import Heard
from edgeops.trust import envelopes
from edgeops.trust import reported as statements

SIGNER = CryptoSigner.generate_ecdsa()
ENROLMENT = Enrolment(
    fleet="demo", connection="pi-1", profile="pi", server="https://x", artifacts_url="https://x",
    broker=BrokerAddress(host="x", port=1, tls=True),
)  # fmt: skip


SPEAKER = {"key": SIGNER.public_key, "fleet": "demo", "connection": "pi-1", "unit": "self"}


class Info:
    """What MQTT says of a message."""

    published = False

    def is_published(self) -> bool:
        return self.published


class Link:
    """Keeps what is published; its broker answers when it is told to."""

    def __init__(self) -> None:
        self.connected = False
        self.sent: list[tuple[str, bytes, Info]] = []
        self.somebody_listens = True
        self.connection = 0
        self.silent_since_s: float | None = None

    @property
    def heard(self) -> Heard:
        return Heard(self.connection, time.monotonic() if self.silent_since_s is None else self.silent_since_s)

    def was_heard(self, info: Info) -> bool:
        return self.somebody_listens

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> Info:
        self.sent.append((topic, payload, Info()))
        return self.sent[-1][2]

    def acknowledge(self) -> None:
        for _, _, info in self.sent:
            info.published = True

    def telemetry(self) -> list[bytes]:
        return [payload for topic, payload, _ in self.sent if topic.endswith("/telemetry")]


def uplink(folder: Path, link: Link, *, limit: int = 1000) -> tuple[Uplink, TelemetryQueue]:
    queue = TelemetryQueue(folder / "queue", limit)
    made = Uplink(Loop(), ENROLMENT, SIGNER, queue, lambda: 1.0)
    made.attach(link, lambda seq: None)  # type: ignore[arg-type,return-value]
    return made, queue


def told(payloads: list[bytes]) -> list[int]:
    return [window.seq for payload in payloads for window in statements.verify_telemetry(payload, **SPEAKER)]  # type: ignore[arg-type]


def test_a_window_alone_is_signed_for_itself(tmp_path: Path) -> None:
    link = Link()
    up, _ = uplink(tmp_path, link)
    link.connected = True
    up.keep_telemetry((), DeviceWindow(uptime_s=1), 0.0, 1.0)
    assert [envelopes.payload_type(payload) for payload in link.telemetry()] == [TELEMETRY_TYPE]


def test_a_backlog_shares_signatures_and_is_forgotten_a_while_after_the_broker_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Link()
    up, queue = uplink(tmp_path, link)
    count = 2 * MAX_IN_FLIGHT * MAX_WINDOWS_PER_BATCH + 1
    for _ in range(count):
        up.keep_telemetry((), DeviceWindow(uptime_s=1), 0.0, 1.0)
    assert link.telemetry() == []
    link.connected = True
    up.send_telemetry()
    up.send_telemetry()
    first = link.telemetry()
    assert [envelopes.payload_type(payload) for payload in first] == [TELEMETRY_BATCH_TYPE] * MAX_IN_FLIGHT
    assert len(queue) == count
    for _ in range(3):
        link.acknowledge()
        up.send_telemetry()
    assert told(link.telemetry()) == list(range(1, count + 1))
    assert len(link.telemetry()) == 2 * MAX_IN_FLIGHT + 1
    # The broker may die with them still: they are forgotten a while later.
    assert len(queue) == count
    later_s = time.monotonic() + KEEP_ACKNOWLEDGED_S
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    up.send_telemetry()
    assert len(queue) == 0
    assert len(link.telemetry()) == 2 * MAX_IN_FLIGHT + 1


def test_what_nobody_had_asked_for_is_kept_and_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link()
    up, queue = uplink(tmp_path, link)
    link.connected, link.somebody_listens = True, False
    up.keep_telemetry((), DeviceWindow(uptime_s=1), 0.0, 1.0)
    link.acknowledge()
    for _ in range(3):
        up.send_telemetry()
    assert told(link.telemetry()) == [1]
    later_s = time.monotonic() + UNHEARD_AGAIN_S
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    up.send_telemetry()
    assert told(link.telemetry()) == [1, 1]
    link.somebody_listens = True
    link.acknowledge()
    up.send_telemetry()
    assert len(queue) == 1
    done_s = later_s + KEEP_ACKNOWLEDGED_S
    monkeypatch.setattr(time, "monotonic", lambda: done_s)
    up.send_telemetry()
    assert len(queue) == 0
    assert told(link.telemetry()) == [1, 1]


def test_a_backlog_that_nobody_hears_is_not_told_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of it each time, twice as long after the last; what is measured now finds out that somebody is there."""
    link = Link()
    up, queue = uplink(tmp_path, link)
    for _ in range(40 * MAX_WINDOWS_PER_BATCH):
        up.keep_telemetry((), DeviceWindow(uptime_s=1), 0.0, 1.0)
    link.connected, link.somebody_listens = True, False
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)

    def day() -> None:
        nonlocal now_s
        for _ in range(24 * 60):
            now_s += 60.0
            link.acknowledge()
            up.send_telemetry()

    up.send_telemetry()
    day()
    # Four at first; then after 15, 30, 60 … 900 s, and every 900 s.
    assert len(link.telemetry()) <= MAX_IN_FLIGHT + 7 + 24 * 4
    assert len(queue) == 40 * MAX_WINDOWS_PER_BATCH
    before = len(link.telemetry())
    link.somebody_listens = True
    up.keep_telemetry((), DeviceWindow(uptime_s=1), 0.0, 1.0)
    assert told(link.telemetry()[before:]) == [40 * MAX_WINDOWS_PER_BATCH + 1]
    for _ in range(12):
        link.acknowledge()
        up.send_telemetry()
    assert sorted(set(told(link.telemetry()[before:]))) == list(range(1, 40 * MAX_WINDOWS_PER_BATCH + 2))


def test_what_was_acknowledged_just_before_the_connection_was_lost_is_told_again(tmp_path: Path) -> None:
    link = Link()
    up, queue = uplink(tmp_path, link)
    link.connected = True
    for _ in range(3):
        up.keep_telemetry((), DeviceWindow(uptime_s=1), 0.0, 1.0)
        link.acknowledge()
        up.send_telemetry()
    assert told(link.telemetry()) == [1, 2, 3]
    up.connected()
    up.send_telemetry()
    assert told(link.telemetry())[3:] == [1, 2, 3]
    assert len(queue) == 3


def test_an_acknowledgement_that_was_not_looked_at_before_the_connection_was_lost_counts_for_it(tmp_path: Path) -> None:
    """The broker dies right after it acknowledged, and is back before the agent looks."""
    link = Link()
    up, queue = uplink(tmp_path, link)
    link.connected = True
    up.keep_telemetry((), DeviceWindow(uptime_s=1), 0.0, 1.0)
    link.acknowledge()
    up.connected()
    assert told(link.telemetry()) == [1, 1]
    assert len(queue) == 1


def test_what_was_acknowledged_is_kept_while_the_broker_is_not_heard_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died soon after, and is away for hours, or nobody has noticed yet: time alone says nothing."""
    link = Link()
    up, queue = uplink(tmp_path, link)
    link.connected = True
    up.keep_telemetry((), DeviceWindow(uptime_s=1), 0.0, 1.0)
    link.acknowledge()
    up.send_telemetry()
    link.silent_since_s = time.monotonic()
    later_s = time.monotonic() + 100 * KEEP_ACKNOWLEDGED_S
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    up.send_telemetry()
    assert len(queue) == 1
    # It is back, and the agent does not know of that yet when it looks.
    link.connection, link.silent_since_s = 1, None
    up.send_telemetry()
    assert len(queue) == 1
    up.connected()
    assert told(link.telemetry()) == [1, 1]
    link.acknowledge()
    up.send_telemetry()
    done_s = later_s + KEEP_ACKNOWLEDGED_S
    monkeypatch.setattr(time, "monotonic", lambda: done_s)
    up.send_telemetry()
    assert len(queue) == 0


def test_a_full_queue_gives_up_first_what_the_broker_has(tmp_path: Path) -> None:
    link = Link()
    up, queue = uplink(tmp_path, link, limit=4)
    link.connected = True
    for _ in range(6):
        up.keep_telemetry((), DeviceWindow(uptime_s=1), 0.0, 1.0)
        link.acknowledge()
        up.send_telemetry()
    assert len(queue) <= 4
    windows = [w for payload in link.telemetry() for w in statements.verify_telemetry(payload, **SPEAKER)]  # type: ignore[arg-type]
    assert all(window.dropped_windows == 0 for window in windows)


def test_groups_stay_within_their_bounds_and_in_order() -> None:
    def window(seq: int, length: int) -> Telemetry:
        return Telemetry(
            fleet="demo", connection="pi-1", unit="self", boot_id="b" * length, seq=seq, start_s=0, end_s=1, models=()
        )  # fmt: skip

    windows = [(seq, window(seq, 1 if seq % 7 else MAX_BATCH_BYTES // 3)) for seq in range(100)]
    groups = list(grouped(windows))
    assert [item for group in groups for item in group] == windows
    assert all(len(group) <= MAX_WINDOWS_PER_BATCH for group in groups)
    assert all(len(group) == 1 or sum(len(encode(part)) for _, part in group) <= MAX_BATCH_BYTES for group in groups)
    assert [len(group) for group in grouped([(1, window(1, 2 * MAX_BATCH_BYTES)), (2, window(2, 1))])] == [1, 1]


def served(model: str, classes: int = 0) -> ModelWindow:
    return ModelWindow(
        model=model, release="1.0.0", digest="sha256:0", latency_ms=QuantileSketch(), requests=1,
        class_mix=(1000,) * classes,
    )  # fmt: skip


def test_what_is_too_much_for_one_window_is_told_in_several(tmp_path: Path) -> None:
    """Each as large as a control plane takes; none of it ends the agent."""
    link = Link()
    up, queue = uplink(tmp_path, link)
    link.connected = True
    models = tuple(served(f"m{number}", 5_000 if number < 30 else 0) for number in range(200))
    up.keep_telemetry(models, DeviceWindow(uptime_s=1), 0.0, 1.0)
    windows = [w for payload in link.telemetry() for w in statements.verify_telemetry(payload, **SPEAKER)]  # type: ignore[arg-type]
    assert [model for window in windows for model in window.models] == list(models)
    assert [window.device is not None for window in windows] == [True] + [False] * (len(windows) - 1)
    assert len(windows) == len(queue) > 4
    assert max(map(len, link.telemetry())) <= MAX_STATEMENT_BYTES
    for window in windows:
        check_statement(window)


def test_a_model_that_is_too_much_for_one_window_gives_up_its_histograms(tmp_path: Path) -> None:
    link = Link()
    up, _ = uplink(tmp_path, link)
    link.connected = True
    up.keep_telemetry((served("huge", 500_000), served("small", 10)), None, 0.0, 1.0)
    windows = [w for payload in link.telemetry() for w in statements.verify_telemetry(payload, **SPEAKER)]  # type: ignore[arg-type]
    assert [(w.thinned, w.models[0].requests, len(w.models[0].class_mix)) for w in windows] == [
        (True, 1, 0),
        (False, 1, 10),
    ]


def test_a_window_that_no_message_can_carry_stands_in_nobodys_way(tmp_path: Path) -> None:
    """As an agent of before may have kept it."""
    link = Link()
    up, queue = uplink(tmp_path, link)
    queue.put(Telemetry(
        fleet="demo", connection="pi-1", unit="self", boot_id="b", seq=1, start_s=0, end_s=1,
        models=(served("huge", 500_000),),
    ))  # fmt: skip
    up.keep_telemetry((), DeviceWindow(uptime_s=1), 0.0, 1.0)
    link.connected = True
    up.send_telemetry()
    assert told(link.telemetry()) == [1]
    assert len(queue) == 1


def test_a_report_that_is_too_large_for_a_message_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link, loop = Link(), Loop()
    up = Uplink(loop, ENROLMENT, SIGNER, TelemetryQueue(tmp_path / "queue", 9), lambda: 1.0)
    words = {"a": "b" * (1 << 20)}
    up.attach(link, lambda seq: compose_report(
        ENROLMENT, boot_id="b", seq=seq, at_s=1.0, observed_generation=1, components=(), capabilities=words,
        stale_s=None, refused=None,
    ))  # type: ignore[arg-type]  # fmt: skip
    link.connected = True
    up.report()
    loop.after(2 * REPORT_DELAY_S, loop.stop)
    loop.run()
    assert "E-WIRE-SIZE" in caplog.text
    words.clear()
    up.report()
    loop.after(2 * REPORT_DELAY_S, loop.stop)
    loop.run()
    assert [topic.rpartition("/")[2] for topic, _, _ in link.sent] == ["reported"]
