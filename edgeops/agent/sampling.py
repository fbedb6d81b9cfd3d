"""Signed commands for samples: verified like desired state, each carried out once, answered until the broker has it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from paho.mqtt.client import MQTTMessageInfo

from edgeops.agent import channel
from edgeops.agent.loop import Loop, Timer
from edgeops.agent.samples import SampleRecord, SampleStore
from edgeops.agent.serving import ModelServing
from edgeops.agent.trust_desk import Postponed, TrustDesk
from edgeops.agent.uplink import KEEP_ACKNOWLEDGED_S, Uplink
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.samples import AnswerState, SamplesCommand

log = logging.getLogger(__name__)

MAX_WAITING = 16
LOOK_EVERY_S = 0.5


class SampleDesk:
    """Takes commands, draws samples for them, and answers.

    Args:
        loop: The supervisor's loop; all is done there but verification.
        trust: Verifies.
        store: What is remembered and gathered.
        uplink: Speaks to the fleet.
        serving_of: Returns how a model of this device is served; None: there is none of this name.
        now: The time rule, seconds.
        refused: Told of what cannot be believed.
    """

    def __init__(
        self,
        loop: Loop,
        trust: TrustDesk,
        store: SampleStore,
        uplink: Uplink,
        serving_of: Callable[[str], ModelServing | None],
        now: Callable[[], float],
        refused: Callable[[EdgeopsError], None],
    ) -> None:
        self._loop, self._trust, self._store, self._uplink = loop, trust, store, uplink
        self._serving_of, self._now, self._refused = serving_of, now, refused
        self._waiting: deque[tuple[str, bytes]] = deque(maxlen=MAX_WAITING)
        self._verifying = False
        # SamplesCommand → what of its answer is on its way: the next byte, and the message before it.
        self._sending: dict[str, tuple[int, MQTTMessageInfo | None]] = {}
        self._forget_at: dict[str, Timer] = {}
        self._look: Timer | None = None

    def start(self) -> None:
        """Go on with what was under way."""
        for record in list(self._store.records.values()):
            if record.state is AnswerState.ACCEPTED:
                self._draw(record)
            elif not record.told:
                self._sending[record.command.id] = (0, None)
        self._look_again()

    def take(self, id: str, envelope: bytes) -> None:
        """Take a command from its topic; verified on a thread: newer metadata may have to be fetched for it."""
        if all(envelope != other for _, other in self._waiting):
            self._waiting.append((id, envelope))
        self._verify()

    def connected(self) -> None:
        """The link was made anew: what the broker may have lost is told again."""
        for timer in self._forget_at.values():
            timer.cancel()
        self._forget_at.clear()
        for record in self._store.records.values():
            if not record.told:
                self._answer(record)

    def sampled(self, id: str, sample: bytes) -> None:
        """A worker has drawn a request."""
        record = self._store.records.get(id)
        if record is None or record.state is not AnswerState.ACCEPTED:
            return
        try:
            record = self._store.add(record, sample)
        except EdgeopsError as error:
            log.error("a sample could not be kept: %s", error)
            return
        if record.state is AnswerState.DONE:
            self._ended(record)

    # Steps

    def _verify(self) -> None:
        if self._verifying or not self._waiting:
            return
        self._verifying = True
        id, envelope = self._waiting.popleft()

        def work() -> None:
            outcome: SamplesCommand | EdgeopsError
            try:
                outcome = self._trust.samples_command(envelope, id)
            except EdgeopsError as error:
                outcome = error
            self._loop.post(lambda: self._verified(outcome))

        threading.Thread(target=work, name="verify command", daemon=True).start()

    def _verified(self, outcome: SamplesCommand | EdgeopsError) -> None:
        self._verifying = False
        if isinstance(outcome, Postponed):
            # The fleet tells it again while it is not answered.
            log.info("a command waits for metadata: %s", outcome.what)
        elif isinstance(outcome, EdgeopsError):
            log.warning("a command is refused: %s", outcome)
            self._refused(outcome)
        else:
            self._accept(outcome)
        self._verify()

    def _accept(self, command: SamplesCommand) -> None:
        known = self._store.records.get(command.id)
        if known is not None:
            log.info("command %s was given before; it is not carried out again", command.id)
            if known.state is not AnswerState.DONE or known.told:
                self._answer(known)
            return
        try:
            record = self._store.accept(command, lambda model: self._serving_of(model) is not None, self._now())
        except EdgeopsError as error:
            log.error("a command cannot be taken up: %s", error)
            return
        wish = record.wish
        log.warning(
            "command %s asks for %d requests of %s, %d bytes within %.0f s: %s %s",
            command.id, wish.count, wish.model, wish.max_bytes, wish.within_s, record.state, record.what,
        )  # fmt: skip
        # Before it is said: who hears that it is taken up may count on each request from then on.
        if record.state is AnswerState.ACCEPTED:
            self._draw(record)
        self._answer(record)

    def _draw(self, record: SampleRecord) -> None:
        left_s = record.until_s - self._now()
        serving = self._serving_of(record.wish.model)
        if left_s <= 0 or serving is None:
            self._time_over(record.command.id)
            return
        wish = record.wish
        serving.draw(channel.Draw(record.command.id, wish.count - record.taken, self._store.room(record), wish.share))
        self._loop.after(left_s, lambda: self._time_over(record.command.id))

    def _time_over(self, id: str) -> None:
        record = self._store.records.get(id)
        if record is None or record.state is not AnswerState.ACCEPTED:
            return
        try:
            self._ended(self._store.end(record, f"{record.taken} requests; its time is over"))
        except EdgeopsError as error:
            log.error("a command's end could not be kept: %s", error)
            self._loop.after(60.0, lambda: self._time_over(id))

    def _ended(self, record: SampleRecord) -> None:
        serving = self._serving_of(record.wish.model)
        if serving is not None:
            serving.draw(None)
        log.warning("command %s: %s are told to the fleet", record.command.id, record.what)
        self._answer(record)

    def _answer(self, record: SampleRecord) -> None:
        """Say how far a command is; one that is done is told in parts, one after the other."""
        self._sending[record.command.id] = (0, None)
        self._look_again()

    def _look_again(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None
        for id in list(self._sending):
            if id in self._store.records:
                self._send(self._store.records[id])
            else:
                del self._sending[id]  # it has expired since; what it brought was told before
        try:
            self._store.forget_expired(self._now())
        except EdgeopsError as error:
            log.error("%s", error)
        if self._sending:
            self._look = self._loop.after(LOOK_EVERY_S, self._look_again)

    def _send(self, record: SampleRecord) -> None:
        id = record.command.id
        offset, before = self._sending[id]
        if before is not None:
            try:
                if not before.is_published():
                    return
            except (RuntimeError, ValueError):  # paho's way to say that it did not take the message
                offset, before = 0, None
        total = 0 if record.told else record.total
        if before is not None and offset >= total:
            del self._sending[id]
            if record.state is not AnswerState.ACCEPTED and not record.told:
                self._forget_later(id, time.monotonic())
            return
        part = self._store.part(record, offset) if total else b""
        info = self._uplink.answer(
            id, record.state, code=record.code, what=record.what,
            offset=offset, total=total, sha256=record.sha256, data=part,
        )  # fmt: skip
        if info is None:
            del self._sending[id]  # `connected` begins anew
        else:
            self._sending[id] = (offset + len(part), info)

    def _forget_later(self, id: str, acknowledged_s: float) -> None:
        self._forget_at[id] = self._loop.after(KEEP_ACKNOWLEDGED_S, lambda: self._forget(id, acknowledged_s))

    def _forget(self, id: str, acknowledged_s: float) -> None:
        self._forget_at.pop(id, None)
        if not self._uplink.has_kept(acknowledged_s):
            self._forget_later(id, acknowledged_s)
            return
        try:
            self._store.forget_data(self._store.records[id])
        except EdgeopsError as error:
            log.error("samples could not be removed: %s", error)
            self._forget_later(id, acknowledged_s)
