"""The daemon of a rig: takes signed commands of a fleet, runs one release at a time, and answers each command once."""

from __future__ import annotations

import logging
import secrets
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from securesystemslib.signer import Key

from edgeops import __version__
from edgeops.agent.downloads import DownloadRules
from edgeops.agent.enrolment import CLOCK_FILE, Enrolment
from edgeops.agent.fetching import downloader_for
from edgeops.agent.loop import Loop
from edgeops.agent.renewing import Renewer
from edgeops.agent.store import StateDirectory
from edgeops.agent.trust_desk import TrustDesk
from edgeops.contracts.deployment import Presence
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rig_runs import ROLLOUT_FEATURE, RigAnswer, RigBoard, RigCommand, RigDoing, RigReport
from edgeops.contracts.topics import SELF_UNIT, device_filters, parse_topic, presence_topic, unit_topic
from edgeops.contracts.wire import encode
from edgeops.transport.download import Cancelled
from edgeops.transport.http import HttpClient, mutual_context
from edgeops.transport.mqtt import LastWill, Message, MqttLink, TlsFiles
from edgeops.transport.tuf_fetcher import TufFetcher
from edgeops.trust import reported as statements
from edgeops.trust import rig_commands
from edgeops.trust.device import DeviceIdentity
from edgeops.trust.time import Clock
from edgeops.trust.tuf_client import TufClient
from hil.checks.plan import Effort
from hil.evidence import RigKey
from hil.rig import Rig, kind_of
from hil.standing import power
from hil.standing.answers import answer_with
from hil.standing.fetching import PASSING, BundleFetcher
from hil.standing.leases import Leases
from hil.standing.records import Records
from hil.standing.run import Job, Outcome
from hil.standing.runner import Run

log = logging.getLogger(__name__)

KEEPALIVE_S = 60
REPORT_DELAY_S = 0.2
LOOK_EVERY_S = 1.0
AGAIN_AFTER_S = 2.0
# For a server that is away.
RETRY_AFTER_S = 15.0
# A run that ended before it had found anything is tried once more.
MAX_TRIES = 2
MAX_VERIFYING = 8
MAX_SAID = 200


class Standing(NamedTuple):
    """How a rig stands before rollouts.

    Args:
        rig: What it is.
        file: Its file.
        effort: How much is done in each run.
        handovers: Folders with labelled data.
    """

    rig: Rig
    file: Path
    effort: Effort
    handovers: tuple[Path, ...] = ()


class RigDaemon:
    """One rig's daemon. All but fetching and verifying runs on the loop, on the thread that calls `run`.

    Args:
        state: Its state directory, locked.
        enrolment: Who it is in the fleet.
        standing: What it does there.

    Raises:
        EdgeopsError: E-TRUST-KEY; identity or rig's key is damaged. E-DISK-WRITE or E-DISK-FULL. E-BROKER-ADDRESS.
    """

    def __init__(self, state: StateDirectory, enrolment: Enrolment, standing: Standing) -> None:
        self._enrolment, self._standing, self._rig = enrolment, standing, standing.rig
        self._loop, self._root = Loop(), state.root
        identity = DeviceIdentity.load(state.identity)
        self._signer = identity.signer
        self._key = RigKey.of_rig(self._rig.name)
        files = identity.tls_files()
        self._tls = TlsFiles(files.ca, files.certificate, files.key)
        self._tls_context = mutual_context(self._tls)
        self._clock = Clock(state.trust / CLOCK_FILE)
        http = HttpClient(self._tls_context)
        tuf = TufClient(state.trust, f"{enrolment.artifacts_url.rstrip('/')}/metadata", TufFetcher(http), self._clock)
        self._desk = TrustDesk(tuf, self._clock, fleet=enrolment.fleet, connection=enrolment.connection, profile="")
        downloader = downloader_for(DownloadRules(), http, enrolment.artifacts_url)
        self._fetcher = BundleFetcher(self._desk, downloader, state.root / "bundles")
        self._records = Records(state.root / "rig-commands")
        self._boot_id, self._seq = secrets.token_hex(8), 0
        self._doing: RigDoing | None = None
        self._reporting = False
        self._current: RigCommand | None = None
        self._given_up = threading.Event()
        self._run: Run | None = None
        self._tries: dict[str, int] = {}
        self._verifying: set[str] = set()
        self._leases = Leases(time.monotonic())
        will = LastWill(presence_topic(enrolment.fleet, enrolment.connection), self._presence(online=False))
        self._link = MqttLink(
            enrolment.broker,
            enrolment.connection,
            on_message=lambda message: self._loop.post(lambda: self._message(message)),
            on_connect=lambda: self._loop.post(self._connected),
            subscriptions=device_filters(enrolment.fleet, enrolment.connection),
            tls=self._tls if enrolment.broker.tls else None,
            will=will,
            keepalive_s=KEEPALIVE_S,
        )
        self._renewer = Renewer(self._loop, identity, enrolment, self._clock.now, self._renewed)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; boards are off and given back then."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._loop.post(self._loop.stop))
        threading.excepthook = lambda args: self._loop.post(lambda: _raise(args.exc_value))
        try:
            if self._records.waiting(self._clock.now()):
                power.cut(self._rig)  # the daemon before this one may have been killed over them
            self._link.start()
            self._renewer.look()
            self._look()
            self._loop.run()
        finally:
            self._stop()

    # From the broker to an accepted command

    def _message(self, message: Message) -> None:
        try:
            topic = parse_topic(message.topic)
        except EdgeopsError as error:
            log.warning("%s", error)
            return
        ours = (topic.fleet, topic.connection, topic.unit) == (
            self._enrolment.fleet,
            self._enrolment.connection,
            SELF_UNIT,
        )
        if not ours or topic.leaf != "cmd" or topic.id is None:
            return
        known = self._records.of(topic.id)
        if known is not None:
            self._leases.heard(topic.id, time.monotonic())
            if known.answer is not None:
                self._publish("res", known.answer, id=topic.id)
            return
        id, envelope = topic.id, message.payload
        if id in self._verifying or len(self._verifying) >= MAX_VERIFYING:
            return  # it comes again
        self._verifying.add(id)
        threading.Thread(target=lambda: self._verify(id, envelope), name="verify command", daemon=True).start()

    def _verify(self, id: str, envelope: bytes) -> None:
        """Verify a command, on a thread; one that is refused comes again as long as somebody waits for it."""

        def verified(keys: Mapping[str, Key], now_s: float) -> RigCommand:
            enrolment = self._enrolment
            return rig_commands.verify(
                envelope,
                keys=keys,
                fleet=enrolment.fleet,
                connection=enrolment.connection,
                unit=SELF_UNIT,
                id=id,
                now_s=now_s,
            )

        outcome: RigCommand | EdgeopsError
        try:
            outcome = self._desk.command(verified)
        except EdgeopsError as error:
            outcome = error
        self._loop.post(lambda: self._verified(id, outcome))

    def _verified(self, id: str, outcome: RigCommand | EdgeopsError) -> None:
        self._verifying.discard(id)
        if isinstance(outcome, EdgeopsError):
            log.warning("a command is refused: %s", outcome)
        elif self._records.of(id) is None:
            self._accept(outcome)

    def _accept(self, command: RigCommand) -> None:
        try:
            accepted = self._records.accept(command, self._clock.now())
        except EdgeopsError as error:
            log.error("a command is not accepted: %s", error)
            return
        if accepted:
            self._leases.heard(command.id, time.monotonic())
            log.info("rollout %d asks for %s %s", command.rollout, command.model, command.version)
            self._look_now()

    # One command after the other

    def _look(self) -> None:
        self._look_now()
        self._loop.after(LOOK_EVERY_S, self._look)

    def _look_now(self) -> None:
        """Begin the next command, and give up one that nobody waits for any more."""
        waiting = [one for one in self._records.waiting(self._clock.now()) if self._is_waited_for(one)]
        current = self._current
        if current is not None:
            if all(one.id != current.id for one in waiting):
                self._give_up()
            return
        if waiting:
            self._begin(waiting[0])
        elif self._doing is not None:
            self._say(None)

    def _is_waited_for(self, command: RigCommand) -> bool:
        """Whether somebody asks for it yet; what nobody asks for is forgotten, and run if it is asked for again."""
        if not self._link.connected:
            self._leases.away(time.monotonic())
        elif self._leases.is_over(command.id, time.monotonic()):
            log.warning("rollout %d does not ask for %s %s any more", command.rollout, command.model, command.version)
            self._records.forget(command.id)
            self._leases.forget(command.id)
            return False
        return True

    def _begin(self, command: RigCommand) -> None:
        self._current, self._given_up = command, threading.Event()
        given_up = self._given_up
        self._say("fetches the release")

        def work() -> None:
            outcome: dict[str, str] | EdgeopsError
            try:
                outcome = self._fetcher.fetch(command, given_up)
            except Cancelled:
                outcome = EdgeopsError("E-COMMAND", "nobody waits for it any more")
            except EdgeopsError as error:
                outcome = error
            self._loop.post(lambda: self._fetched(command, given_up, outcome))

        threading.Thread(target=work, name="fetch", daemon=True).start()

    def _fetched(self, command: RigCommand, given_up: threading.Event, outcome: dict[str, str] | EdgeopsError) -> None:
        if given_up.is_set():
            self._end()
        elif isinstance(outcome, dict):
            self._try(command, given_up, outcome)
        elif outcome.code in PASSING:
            self._wait(f"waits: {outcome.code}: {outcome.what}", RETRY_AFTER_S)
        else:
            self._answer(command, code=outcome.code, what=outcome.what)

    def _try(self, command: RigCommand, given_up: threading.Event, bundles: dict[str, str]) -> None:
        """Begin the run, once every board that it needs is free."""
        if given_up.is_set():
            self._end()
            return
        busy = power.in_use(self._rig, bundles)
        if busy:
            self._say(f"waits: {busy}")
            self._loop.after(AGAIN_AFTER_S, lambda: self._try(command, given_up, bundles))
            return
        job = Job(
            rig=str(self._standing.file),
            version=command.version,
            bundles=bundles,
            effort=self._standing.effort,
            handovers=tuple(map(str, self._standing.handovers)),
            wait_s=AGAIN_AFTER_S,
            outcome="",
            parent_pid=0,
        )
        self._say("begins")
        self._run = Run(
            self._loop, self._root, job, on_said=self._say, on_ended=lambda found: self._ended(command, given_up, found)
        )

    def _ended(self, command: RigCommand, given_up: threading.Event, found: Outcome | str) -> None:
        self._run = None
        if isinstance(found, str):
            # Killed, perhaps: nothing of it may go on with power.
            power.cut(self._rig)
        if given_up.is_set():
            self._end()
        elif isinstance(found, str):
            self._tries[command.id] = tries = self._tries.get(command.id, 0) + 1
            log.error("a run ended with %s before it had found anything", found)
            if tries < MAX_TRIES:
                self._wait("begins anew: the run was ended")
            else:
                what = f"the run ended {tries} times before it had found anything, at last with {found}"
                self._answer(command, code="E-HIL-BOARD", what=what)
        elif found.result is None:
            self._answer(command, code=found.code, what=found.what)
        elif any(check.code == "E-HIL-BUSY" for board in found.result.boards for check in board.checks):
            self._wait("waits: another run has taken a board")
        else:
            self._keep(command, answer_with(command, found.result, self._key, self._signer, self._clock.now()))

    def _answer(self, command: RigCommand, *, code: str, what: str) -> None:
        answer = RigAnswer(
            fleet=command.fleet,
            connection=command.connection,
            unit=SELF_UNIT,
            id=command.id,
            code=code,
            what=what[:500],
        )
        self._keep(command, answer)

    def _keep(self, command: RigCommand, answer: RigAnswer) -> None:
        log.info("rollout %d has its answer: %s", command.rollout, answer.code or "a verdict")
        self._records.answered(command, answer)
        self._publish("res", answer, id=command.id)
        self._end()

    def _give_up(self) -> None:
        """Give up what is under way: it expired, or its rollout asked anew."""
        if not self._given_up.is_set():
            self._given_up.set()
            if self._run is not None:
                self._run.interrupt()

    def _wait(self, said: str, for_s: float = AGAIN_AFTER_S) -> None:
        """Try again later what could not be run now."""
        self._say(said)
        self._fetcher.forget()
        self._loop.after(for_s, self._free)

    def _end(self) -> None:
        self._fetcher.forget()
        self._free()
        self._look_now()

    def _free(self) -> None:
        self._current = None

    # What it says

    def _connected(self) -> None:
        log.info("connected to the broker as %s", self._enrolment.connection)
        topic = presence_topic(self._enrolment.fleet, self._enrolment.connection)
        self._link.publish(topic, self._presence(online=True), retain=True)
        self._report()

    def _say(self, said: str | None) -> None:
        """Tell what is done for the command at hand; None: nothing."""
        current = self._current
        doing = None if said is None or current is None else RigDoing(id=current.id, said=said[:MAX_SAID])
        if doing != self._doing:
            self._doing = doing
            if not self._reporting:
                self._reporting = True
                self._loop.after(REPORT_DELAY_S, self._report)

    def _report(self) -> None:
        self._reporting = False
        self._seq += 1
        report = RigReport(
            fleet=self._enrolment.fleet,
            connection=self._enrolment.connection,
            unit=SELF_UNIT,
            boot_id=self._boot_id,
            seq=self._seq,
            at_s=self._clock.now(),
            version=__version__,
            boards=tuple(
                RigBoard(name=board.name, kind=kind_of(board), profile=board.profile) for board in self._rig.boards
            ),
            features=(ROLLOUT_FEATURE,),
            doing=self._doing,
        )
        self._publish("reported", report, retain=True)

    def _publish(self, leaf: str, said: RigReport | RigAnswer, *, id: str | None = None, retain: bool = False) -> None:
        """Sign and publish. Without a link it is left out: a report follows a connection, a command comes again."""
        topic = unit_topic(self._enrolment.fleet, self._enrolment.connection, SELF_UNIT, leaf, id)
        self._link.publish(topic, statements.sign(said, self._signer), retain=retain)

    def _presence(self, *, online: bool) -> bytes:
        return encode(Presence(online=online, boot_id=self._boot_id))

    def _renewed(self, identity: DeviceIdentity) -> None:
        """Speak with the new key from now on."""
        self._tls_context.load_cert_chain(self._tls.certificate, self._tls.key)
        self._link.show(self._tls)
        self._signer = identity.signer
        self._report()

    def _stop(self) -> None:
        self._given_up.set()
        if self._run is not None and not self._run.stop():
            power.cut(self._rig)
        topic = presence_topic(self._enrolment.fleet, self._enrolment.connection)
        info = self._link.publish(topic, self._presence(online=False), retain=True)
        if info is not None:
            try:
                info.wait_for_publish(2.0)
            except (RuntimeError, ValueError):  # paho's way to say that the link broke
                log.info("the broker was gone before the goodbye")
        self._link.stop()


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error
