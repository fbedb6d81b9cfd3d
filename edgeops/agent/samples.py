"""Raw inputs that an operator asked for with a signed command: gathered within its bounds, told, and removed.

Without such a command nothing here runs, and no input is kept or leaves the device. What was asked for, by whom it was
signed and what left is in the agent's log and in one small file per command until the command expires.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.samples import MAX_PART_BYTES, MAX_SAMPLES_BYTES, AnswerState, SamplesCommand, SamplesWish
from edgeops.contracts.wire import Declared, Wire, decode, encode

log = logging.getLogger(__name__)

# Commands that a device remembers: ids of those that have not expired, so that none is carried out twice.
MAX_KNOWN = 64


class SampleRules(Declared, frozen=True, kw_only=True):
    """What the device's owner lets operators ask for.

    Args:
        allow: Whether inputs may leave the device at all.
        max_mib: How much one command may take.
    """

    allow: bool = True
    max_mib: Annotated[float, msgspec.Meta(gt=0, le=MAX_SAMPLES_BYTES / (1 << 20))] = 16.0


class SampleRecord(Wire, frozen=True, kw_only=True):
    """One command for samples, as it is remembered.

    Args:
        command: What was signed.
        until_s: Until when requests are drawn, by the time rule.
        taken: Requests so far.
        gathered: Bytes of them. More may lie on the disk, of a request that a power cut has left half there. None: the
            record is of an agent that did not say.
        state: `accepted` while requests are drawn, then `done`; `refused`.
        code: Why it was refused.
        what: Why, or what came of it, for people.
        total: Bytes that were gathered, once it is done.
        sha256: Of them.
        told: The broker has had all of it, and time to keep it: no input is left here.
    """

    command: SamplesCommand
    until_s: float
    taken: int = 0
    gathered: int | None = None
    state: AnswerState = AnswerState.ACCEPTED
    code: str = ""
    what: str = ""
    total: int = 0
    sha256: str = ""
    told: bool = False

    @property
    def wish(self) -> SamplesWish:
        """What was asked for."""
        return self.command.wish


class SampleStore:
    """The records and what was gathered, on the disk.

    Args:
        folder: Where; made if something is to be kept.
        rules: What the owner allows.
    """

    def __init__(self, folder: Path, rules: SampleRules) -> None:
        self._folder, self._rules = folder, rules
        self.records: dict[str, SampleRecord] = {}
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            try:
                record = decode(path.read_bytes(), SampleRecord, what=str(path))
            except (OSError, EdgeopsError) as error:
                log.error("E-STATE-CORRUPT: %s: %s", path, error)
                with contextlib.suppress(EdgeopsError):  # a disk that may only be read stops no agent
                    durable.remove_tree(path.with_suffix(".data"))
                continue
            self.records[record.command.id] = self._checked(record)

    def _checked(self, record: SampleRecord) -> SampleRecord:
        """Return a record that says what lies there: damage to the inputs, or their loss, ends their command."""
        if record.told or record.state is AnswerState.REFUSED:
            return record
        path = self.data_path(record)
        try:
            data = path.read_bytes() if path.exists() else b""
        except OSError as error:
            log.error("E-STATE-CORRUPT: %s: %s", path, error)
            data = b""
        if record.state is AnswerState.DONE:
            whole = hashlib.sha256(data[: record.total]).hexdigest() == record.sha256
        else:
            whole = len(data) >= (record.gathered or 0)
        if whole:
            return record
        return msgspec.structs.replace(
            record, state=AnswerState.REFUSED, code="E-STATE-CORRUPT", what="the inputs were damaged on the device",
            total=0, sha256="",
        )  # fmt: skip

    def accept(self, command: SamplesCommand, serves: Callable[[str], bool], now_s: float) -> SampleRecord:
        """Take a verified command up, or refuse it; the record is on the disk before anything else happens.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE; it is not taken up.
        """
        wish = command.wish
        record = SampleRecord(command=command, until_s=now_s + wish.within_s, gathered=0)
        try:
            self._check(wish, serves, now_s)
        except EdgeopsError as error:
            record = msgspec.structs.replace(record, state=AnswerState.REFUSED, code=error.code, what=error.what)
        durable.make_private_dir(self._folder)
        self.keep(record)
        return record

    def _check(self, wish: SamplesWish, serves: Callable[[str], bool], now_s: float) -> None:
        if not self._rules.allow:
            raise EdgeopsError("E-SAMPLES-FORBIDDEN", "agent.toml: [samples] allow = false")
        if wish.max_bytes > self._rules.max_mib * (1 << 20):
            raise EdgeopsError("E-SAMPLES-FORBIDDEN", f"agent.toml: at most {self._rules.max_mib:g} MiB of samples")
        if not serves(wish.model):
            raise EdgeopsError("E-INFER-MODEL", f"there is no model {wish.model} here")
        if len(self.records) >= MAX_KNOWN:
            raise EdgeopsError("E-COMMAND", f"{MAX_KNOWN} commands are remembered; ask once some have expired")
        if any(r.wish.model == wish.model and r.state is AnswerState.ACCEPTED for r in self.records.values()):
            raise EdgeopsError("E-COMMAND", f"samples of {wish.model} are being gathered for another command")

    def keep(self, record: SampleRecord) -> None:
        """Write a record.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
        """
        durable.write_file(self._folder / f"{record.command.id}.json", encode(record), mode=0o600)
        self.records[record.command.id] = record

    def add(self, record: SampleRecord, sample: bytes) -> SampleRecord:
        """Keep a sample, if it is within the bounds; a command whose bounds are reached is done.

        An empty one stands for a request that is larger than the rest of them.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE; it is not kept.
        """
        wish = record.wish
        if not sample or len(sample) > self.room(record):
            return self.end(record, f"{record.taken} requests; the next one goes beyond {wish.max_bytes} bytes")
        gathered = self._gathered(record)
        durable.append(self.data_path(record), sample, mode=0o600, after=gathered)
        record = msgspec.structs.replace(record, taken=record.taken + 1, gathered=gathered + len(sample))
        if record.taken >= wish.count:
            return self.end(record, f"{record.taken} requests")
        self.keep(record)
        return record

    def end(self, record: SampleRecord, what: str) -> SampleRecord:
        """Draw no more.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
        """
        path = self.data_path(record)
        data = path.read_bytes()[: self._gathered(record)] if path.exists() else b""
        digest = hashlib.sha256(data).hexdigest()
        record = msgspec.structs.replace(record, state=AnswerState.DONE, what=what, total=len(data), sha256=digest)
        self.keep(record)
        return record

    def forget_data(self, record: SampleRecord) -> None:
        """Remove the inputs: the broker has them. The record stays until the command expires.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
        """
        durable.remove_tree(self.data_path(record))
        self.keep(msgspec.structs.replace(record, told=True))

    def forget_expired(self, now_s: float) -> None:
        """Forget what has expired and has nothing left to tell.

        Raises:
            EdgeopsError: E-DISK-WRITE.
        """
        for id, record in list(self.records.items()):
            if record.told and now_s >= record.command.expires_at_s:
                durable.remove_tree(self.data_path(record))
                durable.remove_tree(self._folder / f"{id}.json")
                del self.records[id]

    def part(self, record: SampleRecord, offset: int) -> bytes:
        """Return what was gathered, from `offset` on, as much as one message carries."""
        if not record.total:
            return b""
        with self.data_path(record).open("rb") as file:
            file.seek(offset)
            return file.read(min(MAX_PART_BYTES, record.total - offset))

    def room(self, record: SampleRecord) -> int:
        """Return how many bytes may still be gathered."""
        return record.wish.max_bytes - self._gathered(record)

    def _gathered(self, record: SampleRecord) -> int:
        if record.gathered is not None:
            return record.gathered
        path = self.data_path(record)
        return path.stat().st_size if path.exists() else 0

    def data_path(self, record: SampleRecord) -> Path:
        """Return where the inputs of a command lie."""
        return self._folder / f"{record.command.id}.data"
