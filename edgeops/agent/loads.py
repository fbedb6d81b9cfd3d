"""What is loaded from a component's slots, and whether there is room for two of its bundles at once."""

from __future__ import annotations

import logging

from edgeops.agent.channel import Load
from edgeops.agent.house import House
from edgeops.agent.room import fits_beside
from edgeops.agent.slots import SlotName, Slots

log = logging.getLogger(__name__)


class Loads:
    """The loads of one component.

    Args:
        name: The component's name.
        slots: Where its bundles are.
        house: What the device gives to what serves.
    """

    def __init__(self, name: str, slots: Slots, house: House) -> None:
        self._name, self._slots, self._house = name, slots, house

    def of(self, slot_name: SlotName) -> Load:
        """Return what serves a slot's bundle."""
        slot = self._slots.records[slot_name].slot
        return Load(
            directory=str(self._slots.bundle_path(slot_name)),
            release=slot.release,
            digest=slot.digest,
            ram_mib=self._house.ram_mib,
            threads=self._house.serving.threads,
            affinity=self._house.serving.affinity,
            cache_dir=str(self._slots.engines_path(slot_name)),
        )

    def fits_beside(self, slot_name: SlotName) -> bool:
        """Say whether a bundle can be loaded while the one that serves does so."""
        files = self._slots.bundle_path(slot_name)
        size_mib = sum(path.stat().st_size for path in files.rglob("*") if path.is_file()) / (1 << 20)
        fits = fits_beside(size_mib, self._house.conditions().memory_available_mib)
        if not fits:
            log.warning("%s: no room for two bundles: requests wait while it is changed", self._name)
        return fits
