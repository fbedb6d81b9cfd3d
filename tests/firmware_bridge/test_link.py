"""A whole device over its serial line: the firmware as a process, driven as in the field."""

from __future__ import annotations

import contextlib
import os
import random
import re
import struct
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_code import CRASH, FAIL, HANG, OTHER_KEY, PUBLIC_KEY, adder, signed

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge import blobs, frames, packets, refusals
from firmware_bridge.emulated import HostBoard
from firmware_bridge.link import ModelInfo, SmpLink, check_fit
from firmware_bridge.packets import Command, Op
from firmware_bridge.ports import SerialPort

pytestmark = pytest.mark.usefixtures("host_compiler")

NOT_CONFIRMED, INVALID = 2, 3
SECTOR = 4096
INPUT = bytes(range(16))


def link_to(board: HostBoard, **settings_of_link: Any) -> SmpLink:
    return SmpLink(SerialPort(board.url), **settings_of_link)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[HostBoard]:
    with HostBoard(tmp_path / "flash.bin", [PUBLIC_KEY]) as made:
        yield made


@pytest.fixture
def link(board: HostBoard) -> Iterator[SmpLink]:
    with link_to(board) as made:
        yield made


@pytest.fixture
def asks_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links with a short wait ask again soon, and all the same for as long as a busy machine needs."""
    monkeypatch.setattr("firmware_bridge.link._ATTEMPTS", 400)


def try_out(link: SmpLink, blob: bytes) -> bytes:
    """Upload a blob and begin its trial; return its identity."""
    link.upload(blob)
    link.test(blobs.identity(blob))
    link.reset()
    return blobs.identity(blob)


def install(link: SmpLink, blob: bytes) -> bytes:
    identity = try_out(link, blob)
    link.confirm(identity)
    return identity


def plus(output: bytes) -> int:
    """What the adder that runs adds."""
    (added,) = {(got - sent) % 256 for got, sent in zip(output, INPUT, strict=True)}
    return added


def test_a_fresh_device_answers_and_runs_nothing(link: SmpLink):
    assert link.echo("grüße") == "grüße"
    assert link.buffer_size() == frames.PACKET_MAX
    assert link.system_info() == "edgeops-mcu 1 host"
    assert link.images() == []
    info = link.model_info()
    assert (info.cpu, info.floor, info.model) == (blobs.Cpu.X86_64, 0, None)
    with pytest.raises(EdgeopsError, match="nothing there") as caught:
        link.infer(INPUT)
    assert caught.value.code == "E-MCU-REFUSED"


def test_a_blob_is_tried_confirmed_and_runs_after_every_reset(link: SmpLink, tmp_path: Path):
    identity = try_out(link, signed(adder(tmp_path, add=3), "1.2.3", 5))
    assert link.model_info().trial
    assert plus(link.infer(INPUT).output) == 3
    link.confirm(identity)
    for _ in range(2):
        link.reset()
        info = link.model_info()
        assert (info.model, info.version, info.counter, info.floor, info.trial) == ("adder", "1.2.3", 5, 5, False)
        assert info.hash == identity
        assert plus(link.infer(INPUT).output) == 3


def test_a_trial_that_is_not_confirmed_gives_the_old_blob_back(link: SmpLink, tmp_path: Path):
    install(link, signed(adder(tmp_path, add=1), counter=1))
    try_out(link, signed(adder(tmp_path, add=2), "2.0.0", counter=2))
    assert plus(link.infer(INPUT).output) == 2
    link.reset()
    info = link.model_info()
    assert (info.version, info.outcome, info.floor, info.trial) == ("1.0.0", NOT_CONFIRMED, 1, False)
    assert plus(link.infer(INPUT).output) == 1


def test_the_old_blob_can_come_back_without_an_upload(link: SmpLink, tmp_path: Path):
    old = install(link, signed(adder(tmp_path, add=1)))
    install(link, signed(adder(tmp_path, add=2), "2.0.0"))
    link.test(old)
    link.reset()
    link.confirm(old)
    assert plus(link.infer(INPUT).output) == 1


@pytest.mark.parametrize("harm", [HANG, CRASH], ids=["hangs", "crashes"])
def test_a_trial_that_hangs_or_crashes_resets_the_device_and_ends(harm: str, tmp_path: Path, asks_soon: None):
    with HostBoard(tmp_path / "flash.bin", [PUBLIC_KEY], ["EO_WATCHDOG_MS=400"]) as board:
        with link_to(board) as link:
            install(link, signed(adder(tmp_path, add=1)))
            try_out(link, signed(adder(tmp_path, add=2, extra=harm), "2.0.0"))
        with link_to(board, answer_within_s=0.5) as link:
            with pytest.raises(EdgeopsError):
                link.infer(INPUT)
            info = link.model_info()
            assert (info.version, info.outcome) == ("1.0.0", NOT_CONFIRMED)
            assert plus(link.infer(INPUT).output) == 1


def test_a_trial_that_nobody_confirms_in_time_ends_by_itself(tmp_path: Path, asks_soon: None):
    with HostBoard(tmp_path / "flash.bin", [PUBLIC_KEY]) as board, link_to(board) as link:
        install(link, signed(adder(tmp_path, add=1)))
    hasty = HostBoard(tmp_path / "flash.bin", [PUBLIC_KEY], ["EO_TRIAL_LIMIT_MS=300"])
    with hasty as board, link_to(board, answer_within_s=0.3) as link:
        try_out(link, signed(adder(tmp_path, add=2), "2.0.0"))
        while link.model_info().trial:
            pass
        assert (link.model_info().version, link.model_info().outcome) == ("1.0.0", NOT_CONFIRMED)


def test_a_model_that_fails_says_so_and_is_counted(link: SmpLink, tmp_path: Path):
    try_out(link, signed(adder(tmp_path, extra=FAIL)))
    with pytest.raises(EdgeopsError, match="E-MCU-REFUSED"):
        link.infer(INPUT)
    assert link.statistics("model")["failures"] == 1


def spare_identity(link: SmpLink, running: ModelInfo) -> bytes:
    """What the device calls the blob that does not run; if it sees none there, nobody's name."""
    return next((image.hash for image in link.images() if image.hash != running.hash), bytes(32))


def damaged(blob: bytes, at: int) -> bytes:
    at %= len(blob)
    return blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]


BAD_BLOBS = {
    "another key": (lambda folder: signed(adder(folder), key=OTHER_KEY), "key that the firmware does not hold"),
    "a key id that lies": (
        lambda folder: adder(folder) + signed(adder(folder))[-160:-156] + blobs.key_id(PUBLIC_KEY)
        + signed(adder(folder), key=OTHER_KEY)[-152:], "signature is wrong",
    ),
    "a changed signature": (lambda folder: damaged(signed(adder(folder)), -1), "signature is wrong"),
    "a changed counter": (lambda folder: damaged(signed(adder(folder)), -152), "signature is wrong"),
    "a changed version": (lambda folder: damaged(signed(adder(folder)), -148), "signature is wrong"),
    "a changed header": (lambda folder: damaged(signed(adder(folder)), 96), "signature is wrong"),
    "changed code": (lambda folder: damaged(signed(adder(folder)), 170), "not the one that was signed"),
    "another processor": (lambda folder: signed(adder(folder, blobs.Cpu.CORTEX_M4)), "another processor"),
    "another ABI": (lambda folder: damaged(signed(adder(folder)), 6), "calling convention"),
    "too much memory": (lambda folder: signed(adder(folder, arena=2**20)), "too large"),
    "no signature": (lambda folder: adder(folder) + bytes(160), "no model blob"),
    "a trailer that is cut off": (lambda folder: signed(adder(folder))[:-80], "no model blob"),
    "a downgrade": (lambda folder: signed(adder(folder, add=9), counter=4), "below what the device has confirmed"),
    "not a blob": (lambda _: b"#!/bin/sh\nreboot\n" * 30, "no model blob"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BAD_BLOBS))
def test_a_blob_that_may_not_run_is_refused_and_changes_nothing(name: str, link: SmpLink, tmp_path: Path):
    make, why = BAD_BLOBS[name]
    install(link, signed(adder(tmp_path, add=1), counter=5))
    before = link.model_info()
    blob = make(tmp_path)
    link.upload(blob)
    with pytest.raises(EdgeopsError, match=why) as caught:
        link.test(spare_identity(link, before))
    assert caught.value.code == "E-MCU-REFUSED"
    link.reset()
    assert link.model_info() == before._replace(outcome=1)
    assert plus(link.infer(INPUT).output) == 1


def test_a_blob_that_rots_while_it_waits_for_its_trial_is_not_run(board: HostBoard, tmp_path: Path):
    with link_to(board) as link:
        install(link, signed(adder(tmp_path, add=1)))
        blob = signed(adder(tmp_path, add=2), "2.0.0")
        link.upload(blob)
        link.test(blobs.identity(blob))
        board.power_off()
        flash = tmp_path / "flash.bin"
        flash.write_bytes(flash.read_bytes().replace(blob[:200], damaged(blob[:200], 190)))
        board.power_on()
        info = link.model_info()
        assert (info.version, info.outcome, info.trial) == ("1.0.0", INVALID, False)


def big(tmp_path: Path, add: int = 2, size: int = 60_000) -> bytes:
    """A signed blob whose code ends in incompressible filling."""
    small = adder(tmp_path, add=add)
    code = small[blobs.HEADER_SIZE :] + random.Random(add).randbytes(size)
    return signed(blobs.pack(blobs.read(small), code), "2.0.0")


def test_an_upload_goes_on_where_the_power_went(board: HostBoard, tmp_path: Path):
    blob = big(tmp_path)
    with link_to(board) as link:
        install(link, signed(adder(tmp_path, add=1)))

        def cut(done: int, _size: int) -> None:
            if done > 30_000:
                board.power_off()
                link._answer_within_s = 0.1  # nobody is there who would be late

        with pytest.raises(EdgeopsError, match="E-MCU-SILENT"):
            link.upload(blob, on_progress=cut)
    board.power_on()
    with link_to(board) as link:
        assert plus(link.infer(INPUT).output) == 1
        steps: list[int] = []
        link.upload(blob, on_progress=lambda done, _size: steps.append(done))
        assert 30_000 - SECTOR <= steps[0] <= 36_000, "it went on near where it ended"
        link.test(blobs.identity(blob))
        link.reset()
        assert plus(link.infer(INPUT).output) == 2


def test_an_upload_survives_resets_under_way(link: SmpLink, tmp_path: Path):
    blob = big(tmp_path)
    resets = iter((10_000, 40_000))
    due = [next(resets)]

    def reset(done: int, _size: int) -> None:
        if due and done > due[0]:
            due[:] = [mark for mark in (next(resets, None),) if mark is not None]
            link.reset()

    link.upload(blob, on_progress=reset)
    assert not due
    link.test(blobs.identity(blob))


def test_the_same_blob_again_takes_no_time_and_another_one_begins_anew(link: SmpLink, tmp_path: Path):
    blob, other = big(tmp_path), big(tmp_path, add=7)
    link.upload(blob)
    steps: list[int] = []
    link.upload(blob, on_progress=lambda done, _size: steps.append(done))
    assert steps == [len(blob)]
    link.upload(other)
    assert [image.hash for image in link.images()] == [blobs.identity(other)]


def test_what_runs_a_trial_is_neither_overwritten_nor_erased(link: SmpLink, tmp_path: Path):
    install(link, signed(adder(tmp_path, add=1)))
    try_out(link, signed(adder(tmp_path, add=2), "2.0.0"))
    for act in (link.erase, lambda: link.upload(big(tmp_path, add=5))):
        with pytest.raises(EdgeopsError, match="runs a trial"):
            act()
    assert plus(link.infer(INPUT).output) == 2


def test_only_what_runs_can_be_confirmed(link: SmpLink, tmp_path: Path):
    install(link, signed(adder(tmp_path, add=1)))
    blob = signed(adder(tmp_path, add=2), "2.0.0")
    link.upload(blob)
    for identity in (blobs.identity(blob), bytes(32)):
        with pytest.raises(EdgeopsError, match="E-MCU-REFUSED"):
            link.confirm(identity)
    link.reset()
    assert plus(link.infer(INPUT).output) == 1


class NoisyPort:
    """A line that changes, loses and invents bytes, both ways."""

    name = "noisy"

    def __init__(self, port: SerialPort, seed: int) -> None:
        self._port, self._random = port, random.Random(seed)
        self.harmed = 0

    def _harm(self, data: bytes) -> bytes:
        if not data or self._random.random() > 0.08:
            return data
        self.harmed += 1
        at = self._random.randrange(len(data))
        return data[:at] + self._random.choice((b"", b"\x06", b"\n", b"\xff\x00", b"noise\n")) + data[at + 1 :]

    def read(self, timeout_s: float) -> bytes:
        return self._harm(self._port.read(timeout_s))

    def write(self, data: bytes) -> None:
        self._port.write(self._harm(data))

    def close(self) -> None:
        self._port.close()


def test_noise_on_the_line_costs_time_and_nothing_else(board: HostBoard, tmp_path: Path, asks_soon: None):
    port = NoisyPort(SerialPort(board.url), seed=5)
    blob = big(tmp_path, size=40_000)
    with SmpLink(port, answer_within_s=0.15) as link:
        link.upload(blob)
        link.test(blobs.identity(blob))
    assert port.harmed > 3
    with link_to(board) as link:
        assert link.statistics("smp")["damaged"] > 0
        link.reset()
        assert plus(link.infer(INPUT).output) == 2


class LosingPort:
    """A line that loses the first answers to a reset; the device never sees that."""

    name = "losing"

    def __init__(self, port: SerialPort, answers: int) -> None:
        self._port, self._left = port, answers
        self._heard = frames.FrameReceiver()
        self.resets = 0

    def read(self, timeout_s: float) -> bytes:
        data = self._port.read(timeout_s)
        for raw in self._heard.feed(data):
            packet = packets.decode(raw)
            if (packet.group, packet.number) == (packets.RESET.group, packets.RESET.number) and self._left:
                self._left -= 1
                return b""
        return data

    def write(self, data: bytes) -> None:
        (raw,) = frames.FrameReceiver().feed(data)
        sent = packets.decode(raw)
        self.resets += (sent.group, sent.number) == (packets.RESET.group, packets.RESET.number)
        self._port.write(data)

    def close(self) -> None:
        self._port.close()


@pytest.mark.parametrize("lost", [1, 2])
def test_a_reset_whose_answer_is_lost_does_not_end_the_trial_that_began(board: HostBoard, tmp_path: Path, lost: int):
    blob = signed(adder(tmp_path, add=3))
    port = LosingPort(SerialPort(board.url), answers=lost)
    with SmpLink(port, answer_within_s=1.0) as link:
        identity = try_out(link, blob)
        assert port.resets == 1
        info = link.model_info()
        assert (info.hash, info.trial) == (identity, True)
        link.confirm(identity)
        # Nothing waits for this one, so it can be repeated.
        link.reset()
        assert port.resets == 1 + lost
        assert link.model_info().hash == identity


def test_a_reset_that_is_simply_repeated_ends_the_trial(
    board: HostBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Negative control."""
    monkeypatch.setattr(SmpLink, "_pending", lambda _: [])
    with SmpLink(LosingPort(SerialPort(board.url), answers=1), answer_within_s=1.0) as link:
        identity = try_out(link, signed(adder(tmp_path, add=3)))
        assert link.model_info().hash != identity
        assert link.model_info().outcome == NOT_CONFIRMED


def test_what_is_too_large_is_dropped_counted_and_forgotten(board: HostBoard):
    with link_to(board, answer_within_s=0.1) as link, pytest.raises(EdgeopsError, match="E-MCU-SILENT") as caught:
        link.echo("x" * frames.PACKET_MAX)
    asked = re.search(r"(\d+) requests, no answer", caught.value.what)
    assert asked is not None
    with link_to(board) as link:
        assert link.echo("y" * 2000) == "y" * 2000
        assert link.statistics("smp")["oversized"] == int(asked[1]) > 0


class Refused(Exception):
    """The device answered with an error."""


def ask(link: SmpLink, command: Command, values: dict[str, Any]) -> dict[str, Any]:
    try:
        return link.request(command, values)
    except EdgeopsError as error:
        if error.code == "E-MCU-REFUSED":
            raise Refused from error
        raise


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    group=st.sampled_from([0, 1, 2, 224, 65535]),
    number=st.integers(0, 8),
    op=st.sampled_from([Op.READ, Op.WRITE]),
    values=st.dictionaries(
        st.sampled_from(["d", "off", "data", "len", "sha", "hash", "confirm", "image", "name", "x"]),
        st.integers(-3, 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=8) | st.booleans() | st.none(),
    ),
)
def test_any_request_is_answered(link: SmpLink, group: int, number: int, op: Op, values: dict[str, Any]):
    """With what was asked or with an error: never with silence, never with a device that is gone."""
    with contextlib.suppress(Refused):
        assert isinstance(ask(link, Command(group, number, op), values), dict)
    assert link.echo("alive") == "alive"


def answer_of(values: dict[str, Any]) -> bytes:
    """The answer to a link's first echo."""
    body = cbor2.dumps(values)
    return frames.encode(struct.pack(">BBHHBB", 0x0B, 0, len(body), 0, 1, 0) + body)


class Answering:
    """A pseudo terminal whose other end answers every write with what it is told to."""

    def __init__(self, answer: bytes) -> None:
        self._here, device_end = os.openpty()
        tty.setraw(self._here)
        tty.setraw(device_end)
        self.url = os.ttyname(device_end)
        self._keep = device_end
        self._answer = answer
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            while os.read(self._here, 4096):
                os.write(self._here, self._answer)
        except OSError:
            return

    def unplug(self) -> None:
        os.close(self._keep)
        os.close(self._here)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "E-MCU-SILENT"),
        (b"login: ", "E-MCU-ANSWER"),
        (b"\x00\xff\x06\x09\x06" * 9, "E-MCU-ANSWER"),
        (frames.encode(b"\x0b\x00\x00\x01\x00\x00\x63\x00\xa0"), "E-MCU-ANSWER"),
        (frames.encode(packets.encode(packets.ECHO, 1, {"d": "x"})), "E-MCU-ANSWER"),
        (frames.encode(bytes([11, 0, 0, 1, 0, 0, 1, 0, 0xFF])), "E-MCU-ANSWER"),
        (frames.encode(bytes([11, 0, 0, 1, 0, 0, 1, 0, 0xA0])), "E-MCU-ANSWER"),
        (answer_of({"rc": 1 << 16000}), "E-MCU-ANSWER"),
        (answer_of({"err": {"group": 0, "rc": -(1 << 16000)}}), "E-MCU-ANSWER"),
        (answer_of({"r": cbor2.CBORTag(35, "(")}), "E-MCU-ANSWER"),
        (answer_of({"r": [[[[[[[[[[]]]]]]]]]]}), "E-MCU-ANSWER"),
        (answer_of({"rsn": "\x1b[2J", "rc": 1}), "E-MCU-REFUSED"),
    ],
    ids=[
        "nothing",
        "a console",
        "noise",
        "another answer",
        "an echoing line",
        "no map",
        "a map without the key",
        "a number without end",
        "an error without end",
        "a pattern",
        "nested",
        "an escape sequence",
    ],
)
def test_a_device_that_is_not_ours_is_told_apart(answer: bytes, code: str):
    port = Answering(answer)
    patience_s = 0.25 if answer else 0.05
    with SmpLink(SerialPort(port.url), answer_within_s=patience_s) as link, pytest.raises(EdgeopsError) as caught:
        link.echo("who is there?")
    assert caught.value.code == code
    assert "\x1b" not in caught.value.what
    port.unplug()


@pytest.mark.parametrize(
    ("key", "value"), [("len", -1), ("len", 1 << 40), ("ticks", -5), ("ticks", 1 << 60), ("hz", 0), ("hz", -1)]
)
def test_a_run_that_cannot_be_is_no_answer(
    link: SmpLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: int
):
    """A clock that stands still would be divided by, and an output without end waited for."""
    install(link, signed(adder(tmp_path, add=1)))
    assert plus(link.infer(INPUT).output) == 1
    request = link.request

    def garbled(command: packets.Command, values: dict[str, Any], **more: Any) -> dict[str, Any]:
        answer = request(command, values, **more)
        return {**answer, key: value} if command == packets.MODEL_RUN else answer

    monkeypatch.setattr(link, "request", garbled)
    with pytest.raises(EdgeopsError) as caught:
        link.infer(INPUT)
    assert caught.value.code == "E-MCU-ANSWER"


class Liar:
    """Stands in for `SmpLink.request` with a device that always answers, and whose answers lead nowhere.

    Args:
        answers: Command → its answers, one after the other; the last one is given again and again.
    """

    def __init__(self, answers: dict[Command, list[dict[str, Any]]]) -> None:
        self._answers = answers
        self.asked = 0

    def __call__(self, command: Command, values: dict[str, Any], **_: Any) -> dict[str, Any]:
        self.asked += 1
        assert self.asked < 5000, "it is asked without end"
        left = self._answers[command]
        return left.pop(0) if len(left) > 1 else left[0]


def lying_link(answers: dict[Command, list[dict[str, Any]]]) -> SmpLink:
    class NoPort:
        name = "liar"

    made = SmpLink(NoPort())  # type: ignore[arg-type]
    made.request = Liar({packets.PARAMETERS: [{"buf_size": 512}], **answers})  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize(
    "offsets",
    [[300], [0], [300, 200], [300, 200, 250, 200, 250] * 50],
    ids=["stuck", "at its begin", "back", "to and fro"],
)
def test_an_upload_that_comes_no_further_ends(offsets: list[int]):
    link = lying_link({packets.UPLOAD: [{"off": offset} for offset in offsets]})
    with pytest.raises(EdgeopsError) as caught:
        link.upload(bytes(4000))
    assert caught.value.code == "E-MCU-ANSWER"


def test_an_upload_that_loses_many_answers_but_comes_further_goes_on():
    """On a noisy line the device often has more than it could say."""
    lost = EdgeopsError("E-MCU-REFUSED", f"the device refuses: {refusals.OFFSET}")
    link = lying_link({})
    offsets, told = iter(range(100, 4001, 100)), []

    def noisy(command: Command, values: dict[str, Any], **_: Any) -> dict[str, Any]:
        if command == packets.PARAMETERS:
            return {"buf_size": 512}
        if values["off"]:
            raise lost
        return {"off": next(offsets)}

    link.request = noisy  # type: ignore[method-assign]
    link.upload(bytes(4000), on_progress=lambda done, _: told.append(done))
    assert told == list(range(100, 4001, 100))


def test_a_device_that_echoes_something_else_is_not_back():
    link = lying_link({packets.IMAGE_STATE: [{"images": []}], packets.RESET: [{}], packets.ECHO: [{"r": "front"}]})
    with pytest.raises(EdgeopsError) as caught:
        link.reset(back_within_s=0.0)
    assert caught.value.code == "E-MCU-ANSWER"


def test_what_a_device_calls_itself_cannot_speak_to_a_terminal_or_fill_a_report():
    link = lying_link({packets.SYSTEM_INFO: [{"output": "edgeops-mcu \x1b]0;x\x07\r\n" + "y" * 2000}]})
    said = link.system_info()
    assert said.startswith("edgeops-mcu \ufffd]0;x\ufffd\ufffd\ufffdyyy")
    assert len(said) == 200


def test_a_model_with_impossible_tensors_is_no_answer():
    """Who measures it would make an input of that size."""
    numbers = dict.fromkeys(("abi", "cpu", "ram", "slot", "floor", "outcome", "out"), 1)
    link = lying_link({packets.MODEL_INFO: [{**numbers, "trial": False, "in": 1 << 40}]})
    with pytest.raises(EdgeopsError) as caught:
        link.model_info()
    assert caught.value.code == "E-MCU-ANSWER"


@pytest.mark.parametrize("count", [-1, 1 << 60])
def test_counters_that_cannot_be_are_no_answer(count: int):
    link = lying_link({packets.STATISTICS: [{"fields": {"inferences": count}}]})
    with pytest.raises(EdgeopsError) as caught:
        link.statistics("model")
    assert caught.value.code == "E-MCU-ANSWER"


def test_one_program_holds_a_port(board: HostBoard):
    with link_to(board) as link:
        with pytest.raises(EdgeopsError, match="other programs") as caught:
            SerialPort(board.url)
        assert caught.value.code == "E-MCU-PORT"
        assert link.echo("still mine") == "still mine"
    with link_to(board) as link:
        assert link.echo("now mine") == "now mine"


def test_a_port_that_is_not_there_is_named(tmp_path: Path):
    for url in (str(tmp_path / "ttyUSB0"), "nonsense://x"):
        with pytest.raises(EdgeopsError) as caught:
            SerialPort(url)
        assert caught.value.code == "E-MCU-PORT"


def test_an_unplugged_device_is_an_error_of_the_port():
    port = Answering(b"")
    with SmpLink(SerialPort(port.url), answer_within_s=0.05) as link:
        port.unplug()
        with pytest.raises(EdgeopsError) as caught:
            link.echo("anybody?")
    assert caught.value.code == "E-MCU-PORT"


def test_a_blob_that_cannot_fit_is_known_before_the_upload(link: SmpLink, tmp_path: Path):
    info = link.model_info()
    fits = blobs.read(adder(tmp_path))
    check_fit(fits, 500, info)
    for header, size, why in (
        (fits._replace(cpu=blobs.Cpu.CORTEX_M7), 500, "CORTEX_M7"),
        (fits, info.slot + 1, "a slot has"),
        (fits._replace(arena_size=info.ram), 500, "bytes of RAM"),
    ):
        with pytest.raises(EdgeopsError, match=why) as caught:
            check_fit(header, size, info)
        assert caught.value.code == "E-MCU-BLOB"
