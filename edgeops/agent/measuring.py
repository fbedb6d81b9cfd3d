"""Measures candidates for the compiler when a signed command says so; what serves goes on, and an update goes first.

A candidate comes through TUF, as what is released does, is measured beside the slots in a process of its own, and is
removed. The device answers each command once, signed by its key, however often the command or its answer is lost.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from edgeops import durable
from edgeops.agent.holds import decide
from edgeops.agent.house import House
from edgeops.agent.trust_desk import Postponed, TrustDesk
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Source
from edgeops.contracts.measurement import BundleFigures, MeasureAnswer, MeasureCommand, Measurements
from edgeops.contracts.topics import SELF_UNIT
from edgeops.contracts.wire import Wire, decode, encode
from edgeops.releases.bundles import unpack
from edgeops.transport.download import Cancelled
from edgeops.transport.mqtt import backoff_s

log = logging.getLogger(__name__)

DIRECTORY = "measuring"
MAX_WAITING = 4
MAX_REMEMBERED = 64
_TRIES, _RETRY_FIRST_S, _RETRY_MAX_S = 6, 2.0, 60.0
# What a measurement leaves of the memory that is available when it begins.
_SPARE_MEMORY_MIB = 64
_LEAST_MEMORY_MIB = 64
_WORK, _RECORD_END = "work", ".json"


class _Record(Wire, frozen=True, kw_only=True):
    """A command that was accepted, and the answer to it; None: it is still measured, or the agent ended meanwhile."""

    command: MeasureCommand
    answer: MeasureAnswer | None = None


class Measuring:
    """The measurements of one device: one at a time, never beside an update. All calls on the supervisor's loop.

    Args:
        house: What it shares with the deployments.
        desk: Verifies.
        profile: This device's profile.
        versions: Returns the runtimes that are here: name → version.
        updating: Whether a component is on its way to something new.
        say: Publishes an answer, signed; what does not arrive is said again when the command comes again.
        refuse: Told why a command was not believed.
    """

    def __init__(
        self,
        house: House,
        desk: TrustDesk,
        profile: str,
        *,
        versions: Callable[[], Mapping[str, str]],
        updating: Callable[[], bool],
        say: Callable[[MeasureAnswer], None],
        refuse: Callable[[EdgeopsError], None],
    ) -> None:
        self._house, self._desk, self._profile = house, desk, profile
        self._versions, self._updating = versions, updating
        self._say, self._refuse = say, refuse
        self._directory = house.state.root / DIRECTORY
        self._waiting: deque[tuple[str, bytes]] = deque(maxlen=MAX_WAITING)
        self._verifying = False
        self._tries = 0
        self._running = ""
        self._cancelled = threading.Event()
        self._disturbed_by = ""

    def start(self) -> None:
        """Remove what a measurement left that a power cut or a restart ended; it is answered as such."""
        self._remove(self._directory / _WORK)
        for path, record in list(self._records()):
            if record.answer is None:
                self._keep(path, record, self._no(record.command, "the agent ended while it measured"))

    def take(self, id: str, envelope: bytes) -> None:
        """Take a command from the broker; it is believed only once it is verified, on a thread."""
        if (id, envelope) not in self._waiting:
            self._waiting.append((id, envelope))
        self._tries = 0
        self._verify()

    def disturb(self, reason: str) -> None:
        """Give up what is measured now: something more important begins."""
        if self._running and not self._cancelled.is_set():
            self._disturbed_by = reason
            self._cancelled.set()

    # From the broker to a verified command

    def _verify(self) -> None:
        if self._verifying or not self._waiting:
            return
        self._verifying = True
        id, envelope = self._waiting.popleft()

        def work() -> None:
            outcome: MeasureCommand | EdgeopsError
            try:
                outcome = self._desk.measure_command(envelope, id)
            except EdgeopsError as error:
                outcome = error
            self._house.loop.post(lambda: self._verified(id, envelope, outcome))

        threading.Thread(target=work, name="verify command", daemon=True).start()

    def _verified(self, id: str, envelope: bytes, outcome: MeasureCommand | EdgeopsError) -> None:
        self._verifying = False
        if isinstance(outcome, MeasureCommand):
            try:
                self._obey(outcome)
            except EdgeopsError as error:
                log.error("a measurement could not be begun: %s", error)
        else:
            log.warning("a command is refused: %s", outcome)
            self._refuse(outcome)
            if isinstance(outcome, Postponed) and self._tries < _TRIES and not self._waiting:
                wait_s = max(1.0, backoff_s(self._tries, first_s=_RETRY_FIRST_S, max_s=_RETRY_MAX_S))
                self._tries += 1
                self._waiting.append((id, envelope))
                self._house.loop.after(wait_s, self._verify)
                return
        self._verify()

    def _obey(self, command: MeasureCommand) -> None:
        """Begin a measurement, or say again how it ended.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE; nothing is begun that could not be remembered.
        """
        path = self._directory / f"{command.id}{_RECORD_END}"
        known = self._read(path)
        if known is not None:
            if known.answer is not None:
                self._say(known.answer)
            return
        record = _Record(command=command)
        durable.make_private_dir(self._directory)
        self._forget_expired()
        durable.write_file(path, encode(record), mode=0o600)
        reason = f"command {self._running} is measured now" if self._running else self._held()
        if reason:
            self._keep(path, record, self._no(command, reason))
            return
        self._running, self._disturbed_by = command.id, ""
        self._cancelled = threading.Event()
        versions = dict(self._versions())

        def work() -> None:
            answer = self._answer(command, versions)
            self._house.loop.post(lambda: self._done(path, record, answer))

        threading.Thread(target=work, name="measure", daemon=True).start()

    def _done(self, path: Path, record: _Record, answer: MeasureAnswer) -> None:
        self._running = ""
        self._remove(self._directory / _WORK)
        self._keep(path, record, answer)

    def _held(self) -> str:
        """Return why nothing is measured now; "": it is."""
        if self._updating():
            return "an update is under way"
        seen = self._house.conditions()
        for downloading in (True, False):
            hold = decide(self._house.settings.holds, seen, waited_s=0.0, downloading=downloading)
            if hold is not None:
                return hold.reason
        return ""

    # The measurement, on a thread

    def _answer(self, command: MeasureCommand, versions: Mapping[str, str]) -> MeasureAnswer:
        # They load numpy, which a supervisor has no other use for.
        from edgeops.runtimes.measure import MeasuringCancelledError
        from edgeops.runtimes.measure_bundle import clocks, figures_of, power_mode, processor

        house, work = self._house, self._directory / _WORK
        threads = min(command.threads or house.serving.threads, len(os.sched_getaffinity(0)))
        figures: list[BundleFigures] = []
        try:
            durable.make_private_dir(work)
            targets = self._desk.candidates(command.bundles)
            for candidate, target in zip(command.bundles, targets, strict=True):
                if house.now() >= command.expires_at_s:
                    return self._no(command, f"the command expired when {len(figures)} bundles were measured")
                # An application that became busy, or a board that became hot, is not measured over.
                if figures and (reason := self._held()):
                    return self._no(command, reason)
                file, directory = work / "candidate.edgeops", work / "candidate"
                house.fetcher.fetch_candidate(
                    target, file, reserve=house.settings.reserve_mib << 20, cancelled=self._cancelled
                )
                bundle = unpack(file, directory, expect_digest=candidate.digest)
                durable.remove_tree(file)
                if bundle.manifest.profile != self._profile:
                    what = f"{target.path} is for {bundle.manifest.profile}, this device is a {self._profile}"
                    raise EdgeopsError("E-BUNDLE-PROFILE", what)
                figures.append(
                    figures_of(
                        directory,
                        candidate.digest,
                        bundle.manifest,
                        threads=threads,
                        runs=command.runs,
                        versions=versions,
                        memory_mib=self._memory_mib(),
                        cancelled=self._cancelled,
                    )
                )
                durable.remove_tree(directory)
        except (Cancelled, MeasuringCancelledError):
            return self._no(command, self._disturbed_by)
        except EdgeopsError as error:
            return self._no(command, error.what, code=error.code)
        found = Measurements(
            source=Source.MEASURED_DEVICE,
            device=house.connection,
            arch=platform.machine(),
            processor=processor(),
            threads=threads,
            at_s=house.now(),
            bundles=tuple(figures),
            power_mode=power_mode(),
            clocks=clocks(),
        )
        return self._of(command, measurements=found)

    def _memory_mib(self) -> int:
        """Return what a measuring process may take: no more than is to be had beside what serves."""
        available = self._house.conditions().memory_available_mib
        allowed = self._house.ram_mib if available is None else min(self._house.ram_mib, available - _SPARE_MEMORY_MIB)
        return max(_LEAST_MEMORY_MIB, int(allowed))

    def _no(self, command: MeasureCommand, what: str, *, code: str = "E-MEASURE-REFUSED") -> MeasureAnswer:
        return self._of(command, code=code, what=what[:500])

    @staticmethod
    def _of(
        command: MeasureCommand, *, measurements: Measurements | None = None, code: str = "", what: str = ""
    ) -> MeasureAnswer:
        return MeasureAnswer(
            fleet=command.fleet,
            connection=command.connection,
            unit=SELF_UNIT,
            id=command.id,
            measurements=measurements,
            code=code,
            what=what,
        )

    # What is remembered

    def _keep(self, path: Path, record: _Record, answer: MeasureAnswer) -> None:
        try:
            durable.write_file(path, encode(msgspec.structs.replace(record, answer=answer)), mode=0o600)
        except EdgeopsError as error:
            log.error("an answer could not be kept: %s", error)
        self._say(answer)

    def _records(self) -> Iterator[tuple[Path, _Record]]:
        if self._directory.is_dir():
            for path in sorted(self._directory.glob(f"*{_RECORD_END}")):
                record = self._read(path)
                if record is not None:
                    yield path, record

    def _read(self, path: Path) -> _Record | None:
        try:
            return decode(path.read_bytes(), _Record, what=str(path))
        except FileNotFoundError:
            return None
        except (OSError, EdgeopsError) as error:
            log.error("a command's record is lost: %s", error)
            self._remove(path)
            return None

    def _forget_expired(self) -> None:
        """Forget commands that no longer count, and the oldest beyond a number: what expired is refused anyway."""
        known = sorted(self._records(), key=lambda item: item[1].command.expires_at_s)
        for index, (path, record) in enumerate(known):
            if record.command.expires_at_s < self._house.now() or index < len(known) - MAX_REMEMBERED:
                self._remove(path)

    @staticmethod
    def _remove(path: Path) -> None:
        try:
            durable.remove_tree(path)
        except EdgeopsError as error:
            log.error("%s", error)
