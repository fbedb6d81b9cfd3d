"""What a profile has room for on a microcontroller: the limits of its blob, each with the line that sets it. Pure."""

from __future__ import annotations

import msgspec

from edgeops.compiler.candidates import Room
from edgeops.compiler.passes.mcu_blob import Limits
from edgeops.contracts.profile import Budgets, Profile

_MIB, _KIB = 1 << 20, 1 << 10


def room(model: str, profile: Profile, own: Budgets) -> Room:
    """Return what a model's blob may take.

    Args:
        model: The model's name.
        profile: The profile.
        own: The hand-over's budgets for it.
    """
    there = f"{profile.name}.toml"
    handover = f"handover.toml: budgets.{profile.name}"
    arena = [
        _limit(profile.memory.arena_kib, _KIB, f"{there}: memory.arena_kib"),
        _limit(profile.budgets.peak_memory_mib, _MIB, f"{there}: budgets.peak_memory_mib"),
        _limit(own.peak_memory_mib, _MIB, f"{handover}.peak_memory_mib"),
    ]
    flash = [
        _limit(profile.memory.flash_kib, _KIB, f"{there}: memory.flash_kib"),
        _limit(profile.budgets.size_mib, _MIB, f"{there}: budgets.size_mib"),
        _limit(own.size_mib, _MIB, f"{handover}.size_mib"),
    ]
    least_arena, least_flash = min(filter(None, arena), default=None), min(filter(None, flash), default=None)
    limits = Limits(
        arena_bytes=least_arena and least_arena[0],
        arena_line=least_arena[1] if least_arena else "",
        flash_bytes=least_flash and least_flash[0],
        flash_line=least_flash[1] if least_flash else "",
    )
    return Room(model, msgspec.to_builtins(limits))


def _limit(value: float | None, unit: int, line: str) -> tuple[int, str] | None:
    return None if value is None else (int(value * unit), f"{line} = {value:g}")
