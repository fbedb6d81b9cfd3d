"""What a fuzzer's bytes decide: numbers, members of a list, and changes of JSON and of raw bytes, always the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")
_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 1e308, -0.5, "", "a", "..", "../x", "/", "\0", "é" * 9,
    "%2e", "2100-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "9999-99-99", "A" * 70_000, [], [[]], {}, {"": None},
    ["a", "a"], "00" * 32, "sha256", "ed25519", "rsa", "root", "targets", "timestamp",
)  # fmt: skip


class Choices:
    """Reads decisions from bytes; where they end, every decision is the first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def number(self, below: int) -> int:
        """A number from 0, smaller than `below`."""
        value = 0
        for _ in range(1 if below <= 256 else 4):
            value = value << 8 | (self._data[self._place] if self._place < len(self._data) else 0)
            self._place += 1
        return value % below

    def one(self, of: Sequence[T]) -> T:
        """A member."""
        return of[self.number(len(of))]

    def rest(self) -> bytes:
        """All bytes that are left."""
        left, self._place = self._data[self._place :], len(self._data)
        return left

    def changed_bytes(self, data: bytes) -> bytes:
        """Bytes after a few changes: flips, cuts, repeats, insertions."""
        out = bytearray(data)
        for _ in range(self.number(4) + 1):
            place = self.number(max(1, len(out)))
            match self.number(5):
                case 0 if out:
                    out[place] ^= 1 << self.number(8)
                case 1:
                    del out[place : place + 1 + self.number(64)]
                case 2:
                    out[place:place] = out[place : place + 1 + self.number(64)]
                case 3:
                    out[place:place] = bytes([self.number(256)]) * (1 + self.number(16))
                case _:
                    del out[place:]
        return bytes(out)

    def changed_json(self, document: Any) -> Any:
        """A document after a few changes: members taken away, doubled, renamed, or of an odd value."""
        root = {"": copy.deepcopy(document)}
        for _ in range(self.number(4) + 1):
            holder, key = self._walk(root)
            match self.number(4):
                case 0:
                    holder[key] = copy.deepcopy(self.one(_ODD))
                case 1 if holder is not root and isinstance(holder, dict):
                    holder[str(self.one(_ODD))] = holder.pop(key)
                case 2 if holder is not root:
                    del holder[key]
                case _:
                    other, name = self._walk(root)
                    holder[key] = copy.deepcopy(other[name])
        return root.get("")

    def _walk(self, root: dict[str, Any]) -> tuple[Any, Any]:
        holder: Any = root
        key: Any = ""
        while True:
            child = holder[key]
            members: list[Any] = list(child) if isinstance(child, dict) else list(range(len(child))) if isinstance(
                child, list) else []  # fmt: skip
            if not members or self.number(4) == 0:
                return holder, key
            holder, key = child, self.one(members)


def as_json(document: Any) -> bytes:
    """JSON text; what JSON cannot hold is written as a string."""
    return json.dumps(document, default=str).encode()
