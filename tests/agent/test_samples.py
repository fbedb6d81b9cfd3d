"""Raw inputs leave a device only for a signed command, within its bounds, once, and if the owner lets them."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from adder_bundles import MODEL, small_bundle
from fake_fleet import AT_ONCE, DEVICE, FLEET, WITHIN_S, Agent, FakeFleet, wait_for
from securesystemslib.signer import CryptoSigner

from edgeops.agent import sampling
from edgeops.agent.channel import Draw
from edgeops.agent.logbook import read_logbook
from edgeops.agent.loop import Loop
from edgeops.agent.samples import MAX_KNOWN, SampleRules, SampleStore
from edgeops.agent.sampling import SampleDesk
from edgeops.client.inference import InferenceClient
from edgeops.contracts.deployment import DeploymentState
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.samples import (
    AnswerState,
    Sample,
    SamplesAnswer,
    SamplesCommand,
    SamplesWish,
    SampleTensor,
    pack_sample,
    unpack_samples,
)
from edgeops.contracts.topics import parse_topic, unit_topic
from edgeops.testkit.faults import FailingDisk, failing
from edgeops.testkit.power import cuts, recording
from edgeops.transport.mqtt import Message
from edgeops.trust import reported as statements
from edgeops.trust import samples as sample_commands
from edgeops.trust.device import DeviceIdentity

pytestmark = pytest.mark.timeout(600)
WEAKENED = Path(__file__).parent / "weakened"
ROWS = np.arange(48, dtype=np.float32).reshape(12, 1, 4)


class AskingFleet(FakeFleet):
    """Asks for samples, and hears the answers."""

    def __init__(self, folder: Path) -> None:
        self.answers: list[SamplesAnswer] = []
        # Leaf of a topic → all that was said there, as it was signed.
        self.heard: dict[str, list[bytes]] = {}
        super().__init__(folder)

    def _message(self, message: Message) -> None:
        topic = parse_topic(message.topic)
        if topic.leaf != "presence":
            signed = base64.b64decode(json.loads(message.payload)["payload"])
            self.heard.setdefault(topic.leaf, []).append(signed)
        if topic.leaf != "res":
            super()._message(message)
            return
        key = DeviceIdentity.public_key_from_certificate(self.certificates[topic.connection])
        answer = statements.verify(
            message.payload, SamplesAnswer, key=key, fleet=FLEET, connection=topic.connection, unit=topic.unit
        )
        assert answer.id == topic.id
        self.answers.append(answer)

    def ask(self, id: str, *, signer: Any = None, **changes: Any) -> bytes:
        """Publish a command; return its envelope."""
        now_s = time.time()
        wish: dict[str, Any] = {"model": MODEL, "count": 4, "max_bytes": 1 << 20, "within_s": 600.0}
        wish |= {name: changes.pop(name) for name in list(changes) if name in wish}
        parts = {"connection": DEVICE, "issued_at_s": now_s, "expires_at_s": now_s + 600}
        command = SamplesCommand(fleet=FLEET, unit="self", id=id, wish=SamplesWish(**wish), **{**parts, **changes})
        envelope = sample_commands.issue(command, signer or self.publisher.desired_signer())
        self.command(id, envelope)
        return envelope

    def command(self, id: str, envelope: bytes) -> None:
        assert self._link.wait_connected(WITHIN_S)
        info = self._link.publish(unit_topic(FLEET, DEVICE, "self", "cmd", id), envelope)
        assert info is not None
        info.wait_for_publish(WITHIN_S)

    def answered(self, id: str, state: AnswerState) -> SamplesAnswer:
        found: SamplesAnswer = wait_for(
            lambda: next((a for a in self.answers if a.id == id and a.state is state), None),
            f"{id} is not {state}: {self.answers}",
        )
        return found

    def whole(self, id: str) -> bytes:
        """Wait for all parts of an answer; return the whole."""

        def parts() -> dict[int, bytes] | None:
            found = {a.offset: a.data for a in self.answers if a.id == id and a.state is AnswerState.DONE}
            return found if sum(map(len, found.values())) == self.answered(id, AnswerState.DONE).total else None

        data = b"".join(part for _, part in sorted(wait_for(parts, "parts are missing").items()))
        assert hashlib.sha256(data).hexdigest() == self.answered(id, AnswerState.DONE).sha256
        return data


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[AskingFleet]:
    made = AskingFleet(tmp_path / "fleet")
    yield made
    made.stop()


@pytest.fixture
def agent(fleet: AskingFleet, tmp_path: Path) -> Iterator[Agent]:
    made = Agent(fleet, tmp_path / "device", "--telemetry-window-s", "1").start()
    fleet.desire(fleet.publish(small_bundle(tmp_path / "bundle", add=1.0), "1.0.0", 1))
    fleet.wait_state(DeploymentState.CONFIRMED)
    yield made
    made.stop()


def infer(agent: Agent, rows: Any) -> None:
    facts = agent.facts()
    assert facts is not None
    with InferenceClient(facts["endpoints"][MODEL]) as client:
        wait_for(client.ready, "it does not serve")
        for row in rows:
            client.infer(MODEL, {"x": row})


def gathered(data: bytes) -> list[list[float]]:
    found = []
    for sample in unpack_samples(data):
        tensor = sample.inputs["x"]
        assert (tensor.dtype, tensor.shape, sample.release) == ("float32", (1, 4), "1.0.0")
        found.append(np.frombuffer(tensor.data, "<f4").tolist())
    return found


def holds_inputs(agent: Agent) -> bool:
    """Whether any file of the device has an input of ROWS in it."""
    needles = [row.tobytes() for row in ROWS]
    files = [path for path in agent.state.rglob("*") if path.is_file()]
    return any(needle in path.read_bytes() for path in files for needle in needles if len(needle) >= 16)


def forms_of(row: Any) -> Iterator[bytes]:
    """How an input may stand in a message: as it is, in base64 wherever it begins, as numbers."""
    data = row.tobytes()
    yield data
    for before in range(3):
        text = base64.b64encode(bytes(before) + data + bytes(3))
        # Without the characters that hold bits of what is beside it.
        yield text[(before * 8 + 5) // 6 : (before + len(data)) * 8 // 6]
    yield ",".join(map(str, row.ravel().tolist())).encode()


def tells_inputs(messages: list[bytes]) -> bool:
    return any(form in message for message in messages for row in ROWS for form in forms_of(row))


def test_what_was_asked_for_comes_once_over_a_restart_and_nothing_more(
    fleet: AskingFleet, agent: Agent, tmp_path: Path
) -> None:
    infer(agent, ROWS[:3])
    assert not holds_inputs(agent)
    envelope = fleet.ask("cmd-1")
    fleet.answered("cmd-1", AnswerState.ACCEPTED)
    # The command is known already: it is answered, and not carried out again.
    fleet.command("cmd-1", envelope)
    infer(agent, ROWS[3:5])
    wait_for(lambda: holds_inputs(agent), "nothing is gathered")
    agent.stop()
    agent.start()
    wait_for(lambda: agent.facts() and agent.facts()["endpoints"], "it does not serve")  # type: ignore[index]
    # A worker that has just begun may answer some before it hears what is asked for.
    wait_for(
        lambda: infer(agent, ROWS[5:]) or AnswerState.DONE in {a.state for a in fleet.answers}, "too few are drawn"
    )
    answer = fleet.whole("cmd-1")
    whole = gathered(answer)
    assert len(whole) == 4
    assert whole[:2] == ROWS[3:5, 0].tolist()
    assert all(row in ROWS[5:, 0].tolist() for row in whole[2:])
    before = len(fleet.answers)
    fleet.command("cmd-1", envelope)
    infer(agent, ROWS[:4])
    time.sleep(1.0)
    assert gathered(fleet.whole("cmd-1")) == whole
    assert {answer.id for answer in fleet.answers[before:]} <= {"cmd-1"}
    told = [line["text"] for line in read_logbook(agent.state, 500)]
    assert any("cmd-1 asks for 4 requests of adder" in text for text in told)
    assert any("cmd-1: 4 requests are told to the fleet" in text for text in told)
    # In whatever else it says there is no input; and the same look finds them where they are.
    wait_for(lambda: "telemetry" in fleet.heard, "no window is told")
    others = [message for leaf, messages in fleet.heard.items() if leaf != "res" for message in messages]
    assert not tells_inputs(others)
    assert tells_inputs([answer])


def test_what_is_not_signed_for_this_device_or_has_expired_is_refused(fleet: AskingFleet, agent: Agent) -> None:
    now_s = time.time()
    fleet.ask("forged", signer=CryptoSigner.generate_ed25519())
    fleet.wait_refused("E-TRUST-SIGNATURE")
    fleet.ask("late", issued_at_s=now_s - 7200, expires_at_s=now_s - 3600)
    fleet.wait_refused("E-TRUST-EXPIRED")
    fleet.ask("other", connection="device-2")
    fleet.wait_refused("E-TRUST-DEVICE")
    renamed = fleet.ask("first", model="nothing-here")
    fleet.command("second", renamed)
    infer(agent, ROWS)
    assert fleet.answered("first", AnswerState.REFUSED).code == "E-INFER-MODEL"
    time.sleep(0.5)
    assert {answer.id for answer in fleet.answers} == {"first"}
    assert not holds_inputs(agent)


def test_without_the_signature_check_whoever_asks_gets_inputs(
    fleet: AskingFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control."""
    monkeypatch.setenv("PYTHONPATH", str(WEAKENED))
    monkeypatch.setenv("EDGEOPS_TEST_WITHOUT", "statement_signatures")
    agent = Agent(fleet, tmp_path / "device").start()
    try:
        fleet.desire(fleet.publish(small_bundle(tmp_path / "bundle", add=1.0), "1.0.0", 1))
        fleet.wait_state(DeploymentState.CONFIRMED)
        fleet.ask("forged", signer=CryptoSigner.generate_ed25519())
        fleet.answered("forged", AnswerState.ACCEPTED)
        infer(agent, ROWS)
        assert gathered(fleet.whole("forged")) == ROWS[:4, 0].tolist()
    finally:
        agent.stop()


def test_the_owner_may_forbid_it(fleet: AskingFleet, tmp_path: Path) -> None:
    state = tmp_path / "device"
    state.mkdir(mode=0o700)
    (state / "agent.toml").write_text(f"{AT_ONCE}[samples]\nallow = false\n")
    agent = Agent(fleet, state).start()
    try:
        fleet.desire(fleet.publish(small_bundle(tmp_path / "bundle", add=1.0), "1.0.0", 1))
        fleet.wait_state(DeploymentState.CONFIRMED)
        fleet.ask("cmd-1")
        assert fleet.answered("cmd-1", AnswerState.REFUSED).code == "E-SAMPLES-FORBIDDEN"
        infer(agent, ROWS)
        assert not holds_inputs(agent)
    finally:
        agent.stop()


def test_without_its_owners_rules_whoever_signs_gets_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control, of what the owner forbids and of how much one command may take."""
    for rules in (SampleRules(allow=False), SampleRules(max_mib=1e-4)):
        folder = tmp_path / f"{rules.max_mib}"
        record = SampleStore(folder, rules).accept(command("a", max_bytes=1 << 20), always, 0.0)
        assert (record.state, record.code) == (AnswerState.REFUSED, "E-SAMPLES-FORBIDDEN")
        with monkeypatch.context() as patched:
            patched.setattr(SampleStore, "_check", lambda *_: None)
            record = SampleStore(folder, rules).accept(command("b", max_bytes=1 << 20), always, 0.0)
        assert record.state is AnswerState.ACCEPTED


def command(id: str, *, expires_at_s: float = 1000.0, **bounds: Any) -> SamplesCommand:
    wish = SamplesWish(**{"model": MODEL, "count": 2, "max_bytes": 100, "within_s": 60.0, **bounds})
    return SamplesCommand(
        fleet=FLEET, connection=DEVICE, unit="self", id=id, issued_at_s=0.0, expires_at_s=expires_at_s, wish=wish
    )  # fmt: skip


def always(model: str) -> bool:
    return True


class Published:
    """What MQTT says of a message that has arrived."""

    def is_published(self) -> bool:
        return True


def test_requests_are_drawn_before_it_is_said_that_they_will_be(tmp_path: Path) -> None:
    """Who hears that a command is taken up asks at once, and each of these requests counts."""
    did: list[Any] = []
    uplink = SimpleNamespace(answer=lambda id, state, **_: (did.append(state), Published())[1])
    serving = SimpleNamespace(draw=did.append)
    store = SampleStore(tmp_path / "commands", SampleRules())
    desk = SampleDesk(Loop(), None, store, uplink, lambda model: serving, lambda: 0.0, did.append)  # type: ignore[arg-type,return-value]
    desk._accept(command("a"))
    assert did == [Draw("a", 2, 100, 1.0), AnswerState.ACCEPTED]


def test_inputs_are_kept_until_the_broker_has_surely_kept_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may die with what it has just acknowledged, and be away for long."""
    monkeypatch.setattr(sampling, "KEEP_ACKNOWLEDGED_S", 0.0)
    kept: list[float] = []
    surely = False

    def has_kept(acknowledged_s: float) -> bool:
        kept.append(acknowledged_s)
        return surely

    loop = Loop()
    uplink = SimpleNamespace(answer=lambda id, state, **_: Published(), has_kept=has_kept)
    store = SampleStore(tmp_path / "commands", SampleRules())
    desk = SampleDesk(loop, None, store, uplink, lambda model: None, lambda: 0.0, lambda error: None)  # type: ignore[arg-type]
    record = store.end(store.add(store.accept(command("a", count=9), always, 0.0), b"x"), "over")
    desk.start()

    def run_until(condition: Callable[[], bool]) -> None:
        def look() -> None:
            loop.stop() if condition() else loop.after(0.01, look)

        loop.post(look)
        loop.run()

    run_until(lambda: len(kept) > 5)
    assert len(set(kept)) == 1
    assert store.data_path(record).read_bytes() == b"x"
    surely = True
    run_until(lambda: store.records["a"].told)
    assert not store.data_path(record).exists()


def test_a_command_that_expires_while_it_is_answered_once_more_ends_no_agent(tmp_path: Path) -> None:
    """It was told, and is given again; the broker is slow to take the answer, and the clock is set right meanwhile."""
    now_s = 0.0
    answers: list[str] = []
    uplink = SimpleNamespace(
        answer=lambda id, state, **_: (answers.append(id), SimpleNamespace(is_published=lambda: False))[1]
    )
    store = SampleStore(tmp_path / "commands", SampleRules())
    desk = SampleDesk(Loop(), None, store, uplink, lambda model: None, lambda: now_s, lambda error: None)  # type: ignore[arg-type]
    store.forget_data(store.end(store.accept(command("a"), always, now_s), "over"))
    desk._accept(command("a"))
    now_s = 2000.0
    for _ in range(2):
        desk._look_again()
    assert (answers, store.records, desk._sending) == (["a"], {}, {})


def test_bounds_of_count_and_bytes_end_it(tmp_path: Path) -> None:
    store = SampleStore(tmp_path / "commands", SampleRules())
    record = store.accept(command("a"), always, 0.0)
    record = store.add(record, b"x" * 40)
    assert record.state is AnswerState.ACCEPTED
    record = store.add(record, b"y" * 40)
    assert (record.state, record.taken, record.total) == (AnswerState.DONE, 2, 80)
    record = store.accept(command("b", count=9), always, 0.0)
    for _ in range(3):
        record = store.add(record, b"z" * 40) if record.state is AnswerState.ACCEPTED else record
    assert (record.state, record.taken, record.total) == (AnswerState.DONE, 2, 80)
    # A request that is larger than the rest is an empty one.
    record = store.add(store.accept(command("c"), always, 0.0), b"")
    assert (record.state, record.taken, record.total) == (AnswerState.DONE, 0, 0)


def sample(number: int) -> bytes:
    tensor = SampleTensor(dtype="uint8", shape=(40,), data=bytes([number]) * 40)
    return pack_sample(Sample(at_s=float(number), release="1.0.0", digest="d", inputs={"x": tensor}))


def cut_while_gathering(tmp_path: Path) -> tuple[int, list[str]]:
    """Cut the power at each operation on the disk, gather on until the command is done; return how often, and what
    came of it beyond what was asked for."""
    folder, count = tmp_path / "state", 3
    folder.mkdir()
    wish = command("a", count=count, max_bytes=1000)
    with recording(folder) as journal:
        store = SampleStore(folder / "commands", SampleRules())
        record = store.accept(wish, always, 0.0)
        for number in range(2):
            record = store.add(record, sample(number))
    wrong, index = [], 0
    for index, cut in enumerate(cuts(journal)):
        place = tmp_path / "cuts" / str(index)
        cut.tree.write_to(place)
        store = SampleStore(place / "commands", SampleRules())
        record = store.records["a"] if "a" in store.records else store.accept(wish, always, 0.0)
        number = 10
        while record.state is AnswerState.ACCEPTED:
            record, number = store.add(record, sample(number)), number + 1
        data = store.part(record, 0)
        try:
            got = list(unpack_samples(data))
        except EdgeopsError as error:
            wrong.append(f"{cut.case} after {cut.after}: {error.what}")
            continue
        if len(got) != count or (len(data), hashlib.sha256(data).hexdigest()) != (record.total, record.sha256):
            wrong.append(f"{cut.case} after {cut.after}: {len(got)} requests, {count} were asked for")
    return index + 1, wrong


def test_no_power_cut_makes_it_more_than_was_asked_for_or_unreadable(
    tmp_path: Path, proof: Callable[[str], None]
) -> None:
    made, wrong = cut_while_gathering(tmp_path)
    assert wrong == []
    assert made > 10
    proof(f"{made} cuts while samples are gathered survived")


def test_what_a_cut_leaves_of_a_request_would_spoil_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proof: Callable[[str], None]
) -> None:
    """Negative control: what lies on the disk counts, whatever the record says."""
    monkeypatch.setattr(SampleStore, "_gathered", lambda self, record: _size(self.data_path(record)))
    _, wrong = cut_while_gathering(tmp_path)
    assert any("were asked for" in one for one in wrong)
    assert any("were asked for" not in one for one in wrong)
    proof(f"mutant 'what lies there counts' caught: {wrong[0]}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_what_an_older_agent_had_gathered_is_kept(tmp_path: Path) -> None:
    store = SampleStore(tmp_path / "commands", SampleRules())
    store.add(store.accept(command("a", max_bytes=1000), always, 0.0), sample(1))
    file = tmp_path / "commands" / "a.json"
    older = json.loads(file.read_bytes())
    del older["gathered"]
    file.write_text(json.dumps(older))
    store = SampleStore(tmp_path / "commands", SampleRules())
    record = store.add(store.records["a"], sample(2))
    assert [one.at_s for one in unpack_samples(store.part(record, 0))] == [1.0, 2.0]


@pytest.mark.parametrize(
    "damage", [b"\x00", b"\x00\x00\x00\x03abc", b"\x00\x00\x00\x05\x84\xa3\xff\xff\xff", sample(1)[:-1]]
)
def test_damaged_samples_are_told_as_such(damage: bytes) -> None:
    with pytest.raises(EdgeopsError) as caught:
        list(unpack_samples(sample(0) + damage))
    assert caught.value.code == "E-WIRE-MALFORMED"


@pytest.mark.parametrize("damage", [None, b"", b"xxx", b"y" * 80])
@pytest.mark.parametrize("count", [2, 3])
def test_damage_to_what_was_gathered_is_told_and_ends_its_command(
    damage: bytes | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It ended the agent at each start, or had it send nothing for ever: the inputs go before their record says so."""
    monkeypatch.setattr(sampling, "LOOK_EVERY_S", 0.01)
    store = SampleStore(tmp_path / "commands", SampleRules())
    record = store.accept(command("a", count=count), always, 0.0)
    for _ in range(2):
        record = store.add(record, b"x" * 40)
    path = store.data_path(record)
    path.write_bytes(damage) if damage is not None else path.unlink()
    said: list[dict[str, Any]] = []

    def answer(id: str, state: AnswerState, **rest: Any) -> Published:
        said.append({"state": state, **rest})
        return Published()

    loop, uplink = Loop(), SimpleNamespace(answer=answer, has_kept=lambda _: True)
    again = SampleStore(tmp_path / "commands", SampleRules())
    serving = SimpleNamespace(draw=lambda wish: None)
    desk = SampleDesk(loop, None, again, uplink, lambda model: serving, lambda: 0.0, lambda error: None)  # type: ignore[arg-type,return-value]
    desk.start()
    desk.connected()
    loop.after(0.5, loop.stop)
    loop.run()
    if count == 3 and damage is not None and len(damage) == 80:
        # What is gathered still is not looked into; the fleet holds the whole against its hash.
        assert {one["state"] for one in said} == {AnswerState.ACCEPTED}
        return
    assert {(one["state"], one["code"], one["total"], one["data"]) for one in said} == {
        (AnswerState.REFUSED, "E-STATE-CORRUPT", 0, b"")
    }
    assert len(said) <= 2


def test_a_record_that_cannot_be_read_stops_no_agent_on_a_disk_that_may_only_be_read(tmp_path: Path):
    store = SampleStore(tmp_path / "commands", SampleRules())
    record = store.add(store.accept(command("a"), always, 0.0), b"x" * 40)
    (tmp_path / "commands" / "a.json").write_bytes(b"")
    with failing(FailingDisk(tmp_path, errno.EROFS)) as disk:
        assert SampleStore(tmp_path / "commands", SampleRules()).records == {}
    assert disk.refused
    assert SampleStore(tmp_path / "commands", SampleRules()).records == {}
    assert not store.data_path(record).exists()


def test_ids_are_remembered_until_they_expire_and_no_longer(tmp_path: Path) -> None:
    store = SampleStore(tmp_path / "commands", SampleRules())
    for number in range(MAX_KNOWN):
        record = store.accept(command(f"c{number}"), always, 0.0)
        store.forget_data(store.end(record, "over"))
    assert store.accept(command("one-more"), always, 0.0).code == "E-COMMAND"
    store.forget_expired(999.0)
    assert len(SampleStore(tmp_path / "commands", SampleRules()).records) == MAX_KNOWN + 1
    store.forget_expired(1000.0)
    # What was refused but not told yet is kept.
    assert list(store.records) == ["one-more"]
    assert len(list((tmp_path / "commands").iterdir())) == 1


def test_a_damaged_record_takes_its_inputs_along(tmp_path: Path) -> None:
    store = SampleStore(tmp_path / "commands", SampleRules())
    record = store.add(store.accept(command("a", count=9), always, 0.0), b"input")
    assert store.data_path(record).exists()
    (tmp_path / "commands" / "a.json").write_bytes(b"{")
    assert SampleStore(tmp_path / "commands", SampleRules()).records == {}
    assert not store.data_path(record).exists()


@pytest.mark.parametrize(
    "bounds",
    [
        {"count": 0},
        {"count": 1001},
        {"max_bytes": 0},
        {"max_bytes": (16 << 20) + 1},
        {"within_s": 86401.0},
        {"share": 0.0},
    ],
)
def test_bounds_that_no_device_would_take_are_not_signed(bounds: dict[str, Any]) -> None:
    with pytest.raises(EdgeopsError) as caught:
        sample_commands.issue(command("a", **bounds), CryptoSigner.generate_ed25519())
    assert caught.value.code == "E-COMMAND"
