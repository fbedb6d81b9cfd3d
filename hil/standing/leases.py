"""Whether somebody still waits for what a rig was asked: who does asks again and again."""

from __future__ import annotations

# A control plane asks again every half minute, or minute; so many missed in a row are no accident.
LEASE_S = 300.0


class Leases:
    """When each command was heard last. Times are of one monotonic clock.

    Args:
        now_s: Now: from here on silence counts.
    """

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._heard: dict[str, float] = {}

    def heard(self, id: str, now_s: float) -> None:
        """Note that a command came, for the first time or again."""
        self._heard[id] = now_s

    def away(self, now_s: float) -> None:
        """Note that nothing could come: the silence of a broker that is away says nothing."""
        self._since_s = now_s

    def is_over(self, id: str, now_s: float) -> bool:
        """Whether nobody waits for a command any more: its rollout was aborted, or another one took its place."""
        return now_s - max(self._since_s, self._heard.get(id, self._since_s)) > LEASE_S

    def forget(self, id: str) -> None:
        """Forget a command."""
        self._heard.pop(id, None)
