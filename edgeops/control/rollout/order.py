"""Who comes first: an order of devices in which every beginning holds each profile by its share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple


class Candidate(NamedTuple):
    """A unit that a rollout is for."""

    connection: str
    unit: str
    profile: str


def fair_order(candidates: Iterable[Candidate], seed: str) -> list[Candidate]:
    """Order candidates so that a group cut from the beginning is a small picture of the fleet.

    Within a profile the order is by a hash with the seed: the same devices are not always the first to be tried.

    Args:
        candidates: All of them, in any order.
        seed: What makes this rollout's order its own: model and version.
    """
    by_profile: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_profile.setdefault(candidate.profile, []).append(candidate)
    placed: list[tuple[float, str, Candidate]] = []
    for members in by_profile.values():
        members.sort(key=lambda c: _hash(f"{seed}/{c.connection}/{c.unit}"))
        placed += [((index + 0.5) / len(members), _hash(f"{seed}/{c.profile}"), c) for index, c in enumerate(members)]
    return [candidate for _, _, candidate in sorted(placed)]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
