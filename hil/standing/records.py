"""What a rig was asked and has answered: a file each, so that no cut and no lost message repeats or loses it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rig_runs import RigAnswer, RigCommand
from edgeops.contracts.wire import Wire, decode, encode

log = logging.getLogger(__name__)

MAX_REMEMBERED = 256
_END = ".json"


class Record(Wire, frozen=True, kw_only=True):
    """A command that was accepted, and the answer to it; None: it still has to be run."""

    command: RigCommand
    answer: RigAnswer | None = None


class Records:
    """The commands that were accepted and have not expired.

    Args:
        directory: Where they lie.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def of(self, id: str) -> Record | None:
        """Return the record of a command; None: it was never accepted, or is forgotten."""
        return self._read(self._path(id))

    def accept(self, command: RigCommand, now_s: float) -> bool:
        """Keep a command before anything is begun for it; it takes the place of what its rollout asked before.

        Returns:
            Whether it is to be run: not if its rollout has asked anew since.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE; it is not accepted.
        """
        for path, record in list(self._all()):
            if record.command.rollout == command.rollout:
                if record.command.attempt > command.attempt:
                    return False
                self._remove(path)
        durable.make_private_dir(self._directory)
        self._forget(now_s)
        durable.write_file(self._path(command.id), encode(Record(command=command)), mode=0o600)
        return True

    def answered(self, command: RigCommand, answer: RigAnswer) -> None:
        """Keep an answer; a full disk costs that: the command would be run anew after a restart."""
        try:
            durable.write_file(self._path(command.id), encode(Record(command=command, answer=answer)), mode=0o600)
        except EdgeopsError as error:
            log.error("an answer could not be kept: %s", error)

    def forget(self, id: str) -> None:
        """Forget a command."""
        self._remove(self._path(id))

    def waiting(self, now_s: float) -> list[RigCommand]:
        """Return the commands that have to be run and have not expired, in the order in which they were issued."""
        found = [record.command for _, record in self._all() if record.answer is None]
        return sorted((one for one in found if one.expires_at_s > now_s), key=lambda one: (one.issued_at_s, one.id))

    def _forget(self, now_s: float) -> None:
        """Forget commands that no longer count, and the oldest beyond a number: what expired is refused anyway."""
        known = sorted(self._all(), key=lambda item: item[1].command.expires_at_s)
        for index, (path, record) in enumerate(known):
            if record.command.expires_at_s < now_s or index < len(known) - MAX_REMEMBERED:
                self._remove(path)

    def _path(self, id: str) -> Path:
        return self._directory / f"{id}{_END}"

    def _all(self) -> Iterator[tuple[Path, Record]]:
        if self._directory.is_dir():
            for path in sorted(self._directory.glob(f"*{_END}")):
                record = self._read(path)
                if record is not None:
                    yield path, record

    def _read(self, path: Path) -> Record | None:
        try:
            return decode(path.read_bytes(), Record, what=str(path))
        except FileNotFoundError:
            return None
        except (OSError, EdgeopsError, msgspec.DecodeError) as error:
            log.error("a command's record is lost: %s", error)
            self._remove(path)
            return None

    @staticmethod
    def _remove(path: Path) -> None:
        try:
            durable.remove_tree(path)
        except EdgeopsError as error:
            log.error("%s", error)
