"""What the agent remembers: one locked directory of small files that survive power cuts, and damage to any of them."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from pathlib import Path
from typing import TypeVar

import msgspec

from edgeops import durable
from edgeops.agent.slots import Slots
from edgeops.contracts.deployment import (
    Component,
    ComponentKind,
    ComponentReport,
    DeploymentState,
    Desired,
    Failure,
    SelfTestFigures,
    Slot,
)
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.contracts.wire import Wire, decode, encode

log = logging.getLogger(__name__)

W = TypeVar("W", bound=Wire)

LOCK_WITHIN_S = 1.0
_LOCK_LOOK_EVERY_S = 0.01


class ComponentRecord(Wire, frozen=True, kw_only=True):
    """Where one component stands.

    Args:
        name: The component.
        kind: What it is.
        state: State of the transition table.
        generation: Newest generation that spoke of it.
        want: What that generation asks for.
        attempts: Self-tests and trials that were begun for it in this generation.
        step: Progress steps reported in this generation.
        failure: Why it was refused or failed; kept until something else is wanted.
        self_test: Figures of the last self-test that passed.
        held_reason: Why it waits.
        held_until_s: Device time at which it goes on.
        waited_s: How long it has waited, in this generation, for what the site holds it for.
        port: Port of its local endpoint; taken again after a restart.
        override_holds: That generation says not to wait.
        together: All components of its set that change in this generation, itself among them; empty: it goes its
            own way.
    """

    name: str
    kind: ComponentKind = ComponentKind.MODEL
    state: DeploymentState = DeploymentState.IDLE
    generation: int = 0
    want: Component | None = None
    attempts: int = 0
    step: int = 0
    failure: Failure | None = None
    self_test: SelfTestFigures | None = None
    held_reason: str | None = None
    held_until_s: float | None = None
    waited_s: float = 0.0
    port: int | None = None
    override_holds: bool = False
    together: tuple[str, ...] = ()


def report_of(record: ComponentRecord, slots: Slots, endpoint: str) -> ComponentReport:
    """Return how a component stands, for the fleet.

    Args:
        record: Where it stands.
        slots: What lies there.
        endpoint: Where it is served, if anything is.
    """
    held = record.state is DeploymentState.HELD
    return ComponentReport(
        name=record.name,
        kind=record.kind,
        state=record.state,
        generation=record.generation,
        active=_public(slots.active_slot),
        fallback=_public(slots.fallback_slot),
        failure=record.failure,
        self_test=record.self_test,
        held_reason=record.held_reason if held else None,
        held_until_s=record.held_until_s if held else None,
        endpoint=endpoint or None if slots.active is not None else None,
    )


def _public(slot: Slot | None) -> Slot | None:
    return None if slot is None else slot.public()


class LocalChoice(Wire, frozen=True, kw_only=True):
    """What a person chose at the device itself. It stands until the fleet wants something of a later generation."""

    component: Component
    generation: int


class UnitRecord(Wire, frozen=True, kw_only=True):
    """What must never go back.

    Args:
        generation: Newest generation that was accepted.
        numbers: Model → number of the release that was last confirmed; older ones need a signed downgrade.
        local: Component → what was chosen for it at the device.
    """

    generation: int = 0
    numbers: dict[str, int] = {}
    local: dict[str, LocalChoice] = {}


class StateDirectory:
    """The agent's state directory, used by one process at a time.

    Args:
        root: The directory; made if it is not there, for its owner only.

    Raises:
        EdgeopsError: E-STATE-LOCKED; another agent uses it. E-DISK-WRITE.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        durable.make_private_dir(root)
        self._lock = _lock(root / "lock")
        self.damaged: list[Path] = []

    def close(self) -> None:
        """Let another agent use the directory."""
        os.close(self._lock)

    @property
    def identity(self) -> Path:
        """Key, certificates and addresses."""
        return self.root / "identity"

    @property
    def trust(self) -> Path:
        """TUF metadata and the floor of the clock."""
        return self.root / "trust"

    @property
    def queue(self) -> Path:
        """Telemetry that was not sent yet."""
        return self.root / "queue"

    @property
    def commands(self) -> Path:
        """Commands of the fleet that have not expired, and what was gathered for them."""
        return self.root / "commands"

    @property
    def sockets(self) -> Path:
        """Unix sockets of the models, unless they lie elsewhere."""
        return self.root / "sockets"

    @property
    def downloads(self) -> Path:
        """Bundles that are on their way."""
        return self.root / "downloads"

    def component_dir(self, name: str) -> Path:
        """Return the directory of one component."""
        return self.root / "components" / check_name(name, "component")

    def components(self) -> list[str]:
        """Return the names of the components that have a directory."""
        parent = self.root / "components"
        return sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []

    def read_component(self, name: str, slots: Slots) -> ComponentRecord:
        """Return a component's record. A damaged one is told again by what lies in the slots."""
        record = self._read(self.component_dir(name) / "state.json", ComponentRecord)
        if record is not None and record.state is not DeploymentState.UNKNOWN:
            return record
        if slots.in_trial:
            return ComponentRecord(name=name, state=DeploymentState.TRIAL)
        return ComponentRecord(
            name=name, state=DeploymentState.IDLE if slots.active is None else DeploymentState.CONFIRMED
        )

    def write_component(self, record: ComponentRecord) -> None:
        """Keep a component's record.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
        """
        durable.write_file(self.component_dir(record.name) / "state.json", encode(record))

    def read_unit(self) -> UnitRecord:
        """Return the floors. If their file is damaged, the generation comes from the last desired state's."""
        record = self._read(self.root / "unit.json", UnitRecord) or UnitRecord()
        desired = self.read_desired()
        floor = max(record.generation, desired.generation if desired is not None else 0)
        return msgspec.structs.replace(record, generation=floor)

    def write_unit(self, record: UnitRecord) -> None:
        """Keep the floors.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
        """
        durable.write_file(self.root / "unit.json", encode(record))

    def read_desired(self) -> Desired | None:
        """Return the desired state that was accepted last."""
        return self._read(self.root / "desired.json", Desired)

    def write_desired(self, desired: Desired) -> None:
        """Keep an accepted desired state: after a restart it is pursued before there is a network.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
        """
        durable.write_file(self.root / "desired.json", encode(desired))

    def _read(self, path: Path, kind: type[W]) -> W | None:
        """Return a file's content; None if there is none, or if it is damaged: that is logged and noted."""
        try:
            return decode(path.read_bytes(), kind, what=str(path))
        except FileNotFoundError:
            return None
        except (OSError, EdgeopsError) as error:
            log.error("E-STATE-CORRUPT: %s: %s", path, error)
            if path not in self.damaged:
                self.damaged.append(path)
            return None


def is_locked(root: Path) -> bool:
    """Say whether an agent uses a state directory now."""
    try:
        fd = os.open(root / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def _lock(path: Path) -> int:
    try:
        # A disk that has become read-only is locked all the same: what it holds still serves.
        flags = os.O_RDONLY if path.exists() else os.O_RDWR | os.O_CREAT
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise durable.disk_error(error, path) from error
    deadline_s = time.monotonic() + LOCK_WITHIN_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            # Who only asks whether an agent runs, as `status` does, holds the lock for a moment.
            if time.monotonic() < deadline_s:
                time.sleep(_LOCK_LOOK_EVERY_S)
                continue
            os.close(fd)
            raise EdgeopsError(
                "E-STATE-LOCKED", f"{path.parent} is used by another agent", "Stop it, or name another directory."
            ) from error
        return fd
