"""What a deployment has on the disk, which may refuse to take it: that stops no device."""

from __future__ import annotations

import logging
from collections.abc import Callable

from edgeops.agent.loop import Loop
from edgeops.agent.slots import Slots
from edgeops.agent.store import ComponentRecord, StateDirectory
from edgeops.contracts.errors import EdgeopsError

log = logging.getLogger(__name__)

DISK_RETRY_S = 30.0
DISK_ERRORS = frozenset({"E-DISK-FULL", "E-DISK-WRITE"})


class Keeping:
    """Record and slots of one component.

    Args:
        name: The component's name.
        state: The state directory.
        loop: The supervisor's loop.

    Raises:
        EdgeopsError: E-DISK-WRITE or E-DISK-FULL; E-NAME.
    """

    def __init__(self, name: str, state: StateDirectory, loop: Loop) -> None:
        self._state, self._loop = state, loop
        self.slots = Slots(state.component_dir(name))
        self.record = state.read_component(name, self.slots)

    def keep(self, record: ComponentRecord) -> None:
        """Take another record, and keep it."""
        self.record = record
        try:
            self._state.write_component(record)
        except EdgeopsError as error:
            # After a restart the step before is done once more; the reserve makes a full disk here unlikely.
            log.error("%s: the state could not be kept: %s", record.name, error)

    def durably(self, change: Callable[[], None]) -> None:
        """Change the slots. A disk that refuses does not stop the device: what is due is written once it can be."""
        try:
            change()
        except EdgeopsError as error:
            if error.code not in DISK_ERRORS:
                raise
            log.error("%s: %s; it is tried again", self.record.name, error)
            self._loop.after(DISK_RETRY_S, lambda: self.durably(self.slots.write_back))

    def made_room(self, full: EdgeopsError) -> bool:
        """Let the older bundle make room: it is kept for a quick return only. Say whether it did."""
        if self.slots.candidate not in self.slots.records:
            return False
        log.warning("%s: %s; the older bundle is removed", self.record.name, full.what)
        self.durably(self.slots.discard)
        return self.slots.candidate not in self.slots.records
