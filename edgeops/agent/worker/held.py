"""How much of what clients sent, or do not read, a worker keeps: many clients cost it no memory that it lacks."""

from __future__ import annotations


class Held:
    """Bytes that are kept for clients, all together.

    Args:
        most: How many there may be. What one client alone needs is kept in any case.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.taken = 0

    def is_full(self, *, own: int) -> bool:
        """Say whether others leave no room to a client for which `own` are kept."""
        return self.taken - own >= self._most

    def take(self, count: int, *, own: int = 0) -> bool:
        """Keep more for a client for which `own` are kept already; False: there is no room, and nothing was taken."""
        if self.taken > own and self.taken + count > self._most:
            return False
        self.taken += count
        return True

    def give(self, count: int) -> None:
        """Keep so many no more."""
        self.taken -= count
