"""Which of several servers to ask for a file, and how fast to take it. Decides, and asks nobody."""

from __future__ import annotations

MAX_STRIKES = 2
_BEFORE = -1


class Sources:
    """The servers of one file, by their index, and who gave the bytes that are here.

    A lie shows only in the whole file. If several gave of it, nobody is blamed for it, but from then on each server is
    taken by itself, so that one that lies cannot spoil what the others give.

    Args:
        count: How many there are, in order of preference.
        found: Bytes of the file are here already: who gave them is not known.
    """

    def __init__(self, count: int, *, found: bool) -> None:
        self._strikes = [0] * count
        self._asked: set[int] = set()
        self._gave = {_BEFORE} if found else set()
        self._apart = False

    @property
    def next(self) -> int:
        """Whom to ask: the first that was not asked in this round and is not struck off."""
        return min(self._standing - self._asked)

    def from_start(self, index: int) -> bool:
        """Say whether what is here must not be gone on with from this one."""
        return self._apart and bool(self._gave - {index})

    def gave(self, index: int, *, all_of_it: bool) -> None:
        """Bytes come from this one now; with `all_of_it`, none of what is here is another's."""
        self._gave = {index} if all_of_it else self._gave | {index}

    def failed(self, index: int, *, progressed: bool) -> bool:
        """It gave an error, not all, or a lie. Return whether it is time to wait.

        Args:
            index: The server.
            progressed: More is here than before. Where servers are taken by themselves, such a one is asked again.
        """
        if self._apart and progressed:
            return True
        self._asked.add(index)
        if self._standing - self._asked:
            return False
        self._asked.clear()
        return True

    def lied(self) -> bool:
        """The whole file is not the right one, and is removed. Return whether anybody is left to ask."""
        if len(self._gave) == 1:
            for index in self._gave - {_BEFORE}:
                self._strikes[index] += 1
        self._gave, self._apart = set(), True
        return bool(self._standing)

    @property
    def _standing(self) -> set[int]:
        return {index for index, strikes in enumerate(self._strikes) if strikes < MAX_STRIKES}


class Pacer:
    """Keeps the mean rate of all downloads together under a limit. Not for use by several threads at a time.

    Args:
        max_bytes_per_s: The limit; None: none.
    """

    def __init__(self, max_bytes_per_s: float | None) -> None:
        self._rate = max_bytes_per_s
        self._free_s = 0.0

    def wait_s(self, length: int, now_s: float) -> float:
        """Return how long to wait after a block was taken, before the next is.

        Args:
            length: Bytes of the block.
            now_s: A clock that never goes back.
        """
        if self._rate is None:
            return 0.0
        self._free_s = max(self._free_s, now_s) + length / self._rate
        return self._free_s - now_s
