"""Two slots per component: a bundle is staged in the free one, and one renamed file says which of them is active."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from edgeops import durable
from edgeops.contracts.deployment import AGENT_COMPONENT, Component, Slot
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Wire, decode, encode
from edgeops.releases.bundles import AgentBundle, Bundle, open_agent_bundle, open_bundle, unpack, unpack_agent

log = logging.getLogger(__name__)

SlotName = Literal["a", "b"]
_NAMES: tuple[SlotName, SlotName] = ("a", "b")
_RECORD, _BUNDLE, _ENGINES, _ACTIVE = "slot.json", "bundle", "engines", "active"


class SlotRecord(Wire, frozen=True, kw_only=True):
    """What lies in a slot.

    Args:
        slot: The bundle.
        confirmed: It has proved itself in a trial here.
        stands_in: Its trial was cut short by a newer wish while there was nothing else to serve: it serves, and is
            what the device returns to, until another has proved itself.
    """

    slot: Slot
    confirmed: bool
    stands_in: bool = False

    @property
    def keeps(self) -> bool:
        """Whether the device may return to it."""
        return self.confirmed or self.stands_in


def read_slot(directory: Path) -> Slot:
    """Return what a slot's directory says that it holds.

    Raises:
        EdgeopsError: E-BUNDLE-DAMAGED; it does not say.
    """
    path = directory / _RECORD
    try:
        return decode(path.read_bytes(), SlotRecord, what=str(path)).slot
    except (OSError, EdgeopsError) as error:
        raise EdgeopsError("E-BUNDLE-DAMAGED", f"{path}: {error}", "Install it again.") from error


class _Pointer(Wire, frozen=True, kw_only=True):
    slot: SlotName | None


class _Opens(Protocol):
    def __call__(self, directory: Path, *, expect_digest: str | None) -> Bundle | AgentBundle: ...


class _Unpacks(Protocol):
    def __call__(self, source: Path, directory: Path, *, expect_digest: str | None) -> Bundle | AgentBundle: ...


class Space(NamedTuple):
    """Bytes: needed for a deployment, and free on the disk."""

    needed: int
    free: int


class Slots:
    """The slots of one component, in `{directory}/slots/a` and `b`.

    Order is everything here: a slot's data is durable before its record, and its record before the flag that makes it
    active. So a cut leaves the old active bundle, or the new one, whole. The active slot is never written to, nor,
    while an unconfirmed bundle is active, the other one: it is what the device returns to.

    A disk that refuses a write does not stop the device: what was decided holds in memory, is due, and is written by
    `write_back`, which comes before any other change of the slots.

    Args:
        directory: The component's directory, called as it; made if it is not there.

    Raises:
        EdgeopsError: E-DISK-WRITE or E-DISK-FULL.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        is_agent = directory.name == AGENT_COMPONENT
        # The file and what is unpacked of it; an agent's wheels are compressed, and are installed beside.
        self._copies = 6 if is_agent else 2
        self._open: _Opens = open_agent_bundle if is_agent else open_bundle
        self._unpack: _Unpacks = unpack_agent if is_agent else unpack
        self._slots = directory / "slots"
        durable.make_private_dir(self._slots)
        self.records: dict[SlotName, SlotRecord] = {}
        for name in _NAMES:
            record = self._read_record(name)
            if record is not None:
                self.records[name] = record
        self.active: SlotName | None = self._read_active()
        self._due: list[SlotName] = []
        self._pointer_due = False

    @property
    def active_slot(self) -> Slot | None:
        """What serves."""
        return None if self.active is None else self.records[self.active].slot

    @property
    def in_trial(self) -> bool:
        """Whether what serves is on trial."""
        return self.active is not None and not self.records[self.active].keeps

    @property
    def fallback(self) -> SlotName | None:
        """The other slot, if a bundle lies there that the device may return to."""
        if self.active is None:
            return None
        other = _other(self.active)
        return other if other in self.records and self.records[other].keeps else None

    @property
    def fallback_slot(self) -> Slot | None:
        """What the device can return to without a download."""
        return None if self.fallback is None else self.records[self.fallback].slot

    @property
    def confirmed_slot(self) -> Slot | None:
        """The bundle that has proved itself: the active one, or in a trial the one to return to."""
        name = self.fallback if self.in_trial else self.active
        return self.records[name].slot if name is not None and self.records[name].confirmed else None

    @property
    def candidate(self) -> SlotName:
        """The slot for the next bundle.

        Raises:
            EdgeopsError: E-AGENT-STATE; in a trial no slot is free.
        """
        if self.in_trial:
            raise EdgeopsError("E-AGENT-STATE", f"{self._directory}: no slot is free during a trial")
        return "a" if self.active is None else _other(self.active)

    def bundle_path(self, name: SlotName) -> Path:
        """Return where a slot's bundle lies."""
        return self._slots / name / _BUNDLE

    def engines_path(self, name: SlotName) -> Path:
        """Return where a runtime may keep what it builds of a slot's bundle: it goes with the bundle."""
        return self._slots / name / _ENGINES

    def is_named(self, want: Component) -> bool:
        """Say whether the candidate slot says that it holds what is wanted."""
        record = self.records.get(self.candidate)
        return record is not None and (record.slot.release, record.slot.digest) == (want.release, want.digest)

    def holds_whole(self, slot: Slot) -> bool:
        """Say whether the candidate slot holds this release's bundle already, every byte of it."""
        name = self.candidate
        record = self.records.get(name)
        if record is None or record.slot != slot:
            return False
        try:
            self._open(self.bundle_path(name), expect_digest=slot.digest)
        except EdgeopsError as error:
            log.warning("slot %s is damaged and is filled again: %s", name, error.what)
            return False
        return True

    def space(self, length: int, present: int, reserve: int) -> Space:
        """Return what a deployment needs on the disk, and what is free.

        Args:
            length: Length of the bundle's file; a model's files together are no longer.
            present: How much of that file is here already.
            reserve: What must stay free.
        """
        stat = os.statvfs(self._slots)
        return Space(self._copies * length - present + reserve, stat.f_bavail * stat.f_frsize)

    def unpack(self, source: Path, slot: Slot) -> Path:
        """Unpack a bundle's file beside the slots, check every byte and make it durable; neither slot is touched.

        Returns:
            What `install` takes.

        Raises:
            EdgeopsError: E-BUNDLE-DAMAGED or E-BUNDLE-INVALID; the file is not the bundle that `slot` names.
                E-DISK-FULL or E-DISK-WRITE.
        """
        staging = self._slots / f".staging-{secrets.token_hex(4)}"
        try:
            durable.make_private_dir(staging)
            self._unpack(source, staging / _BUNDLE, expect_digest=slot.digest)
            durable.write_file(staging / _RECORD, encode(SlotRecord(slot=slot, confirmed=False)))
            # Data before flag: what the record names is durable before anything can point to it.
            durable.fsync_tree(staging)
        except EdgeopsError:
            durable.remove_tree(staging)
            raise
        return staging

    def install(self, staging: Path, slot: Slot) -> None:
        """Put what `unpack` made into the candidate slot.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE. E-AGENT-STATE; in a trial no slot is free.
        """
        name = self.candidate
        self.write_back()
        self.discard()
        durable.rename(staging, self._slots / name)
        self.records[name] = SlotRecord(slot=slot, confirmed=False)

    def doubt(self) -> None:
        """Have the candidate slot's bundle prove itself anew, though it did once.

        Raises:
            EdgeopsError: E-AGENT-STATE; the slot is empty. E-DISK-FULL or E-DISK-WRITE.
        """
        name = self.candidate
        self._check_filled(name)
        self._write_record(name, SlotRecord(slot=self.records[name].slot, confirmed=False))

    def switch(self, name: SlotName) -> None:
        """Make a slot active: one atomic rename. Again without effect.

        Raises:
            EdgeopsError: E-AGENT-STATE; nothing lies there. E-DISK-FULL or E-DISK-WRITE; the old one stays active.
        """
        self._check_filled(name)
        self.write_back()
        before = self.active
        if before != name:
            try:
                self._point_to(name)
            except EdgeopsError:
                self.active = before  # and due: the rename may have been done, and its fsync not
                raise

    def confirm(self) -> None:
        """Note that the active bundle has proved itself.

        Raises:
            EdgeopsError: E-AGENT-STATE; nothing is active. E-DISK-FULL or E-DISK-WRITE; it is due.
        """
        if self.active is None:
            raise EdgeopsError("E-AGENT-STATE", f"{self._directory}: nothing is active")
        self._write_record(self.active, SlotRecord(slot=self.records[self.active].slot, confirmed=True))

    def revert(self) -> None:
        """End a trial: make the bundle before it active again, or nothing if there is none. Else without effect.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE; it is so in memory, and due on the disk.
        """
        if self.in_trial:
            self._point_to(self.fallback)

    def give_way(self) -> None:
        """End a trial for a newer wish: back to the bundle before it; with none, what is on trial stands in.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE; it is so in memory, and due on the disk.
        """
        if self.active is not None and self.in_trial and self.fallback is None:
            slot = self.records[self.active].slot
            self._write_record(self.active, SlotRecord(slot=slot, confirmed=False, stands_in=True))
        else:
            self.revert()

    def abandon(self) -> None:
        """Give up a damaged active bundle: the other slot's becomes active, or nothing.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE; it is so in memory, and due on the disk.
        """
        doomed = self.active
        if doomed is None:
            return
        fallback = self.fallback
        del self.records[doomed]
        self._point_to(fallback)
        self._remove(doomed)

    def discard(self) -> None:
        """Remove what lies in the candidate slot, also a bundle that proved itself once.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE; E-AGENT-STATE in a trial.
        """
        self.write_back()
        self._remove(self.candidate)

    def clear(self) -> None:
        """Remove everything: the component is no longer wanted.

        Raises:
            EdgeopsError: E-DISK-WRITE.
        """
        if self.active is not None:
            self._point_to(None)
        for name in _NAMES:
            self._remove(name)

    def collect(self) -> None:
        """Remove what no slot needs: leftovers of cut deployments. Never touches a slot.

        Raises:
            EdgeopsError: E-DISK-WRITE.
        """
        for path in self._slots.iterdir():
            if path.name not in (*_NAMES, _ACTIVE):
                durable.remove_tree(path)

    def write_back(self) -> None:
        """Write what a failing disk refused before. Until then no slot is touched: the disk's flag may lead to it.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE; it is still due.
        """
        while self._due:
            name = self._due[0]
            if name in self.records:
                durable.write_file(self._slots / name / _RECORD, encode(self.records[name]))
            self._due.pop(0)
        if self._pointer_due:
            durable.write_file(self._slots / _ACTIVE, encode(_Pointer(slot=self.active)))
            self._pointer_due = False

    def _check_filled(self, name: SlotName) -> None:
        if name not in self.records:
            raise EdgeopsError("E-AGENT-STATE", f"{self._directory}: slot {name} is empty")

    def _write_record(self, name: SlotName, record: SlotRecord) -> None:
        if self.records[name] != record:
            self.records[name] = record
            self._due.append(name)
        self.write_back()

    def _remove(self, name: SlotName) -> None:
        durable.remove_tree(self._slots / name)
        self.records.pop(name, None)

    def _point_to(self, name: SlotName | None) -> None:
        self.active, self._pointer_due = name, True
        self.write_back()

    def _read_record(self, name: SlotName) -> SlotRecord | None:
        path = self._slots / name / _RECORD
        try:
            return decode(path.read_bytes(), SlotRecord, what=str(path))
        except OSError:
            return None
        except EdgeopsError as error:
            log.error("E-STATE-CORRUPT: %s", error.what)
            return None

    def _read_active(self) -> SlotName | None:
        path = self._slots / _ACTIVE
        try:
            name = decode(path.read_bytes(), _Pointer, what=str(path)).slot
            if name is None or name in self.records:
                return name
            log.error("E-STATE-CORRUPT: %s names slot %s, whose record is lost", path, name)
        except FileNotFoundError:
            pass
        except (OSError, EdgeopsError) as error:
            log.error("E-STATE-CORRUPT: %s: %s", path, error)
        # The flag is lost: what has proved itself is safest to serve, and among such the newer.
        safe = [(record.confirmed, record.slot.number, name) for name, record in self.records.items() if record.keeps]
        return max(safe)[2] if safe else None


def _other(name: SlotName) -> SlotName:
    return "b" if name == "a" else "a"
