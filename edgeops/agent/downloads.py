"""How bundles are fetched: from which mirrors, how fast, and when after something new is wanted. Pure."""

from __future__ import annotations

import hashlib

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Declared


class DownloadRules(Declared, frozen=True, kw_only=True):
    """Table `[downloads]` of the agent's configuration.

    Args:
        mirrors: Base URLs asked for bundles before the fleet's own server, in this order. They hold what that server
            has below `/targets`, and are not trusted: what they give is held against the signed hash.
        mirrors_ca: PEM file of the CAs that mirrors' certificates come from; empty: the fleet's own CA, and the
            device shows its certificate.
        max_kib_per_s: Mean rate of all downloads together.
        start_within_s: Devices of a fleet begin to fetch a new release spread over so many seconds.
    """

    mirrors: tuple[str, ...] = ()
    mirrors_ca: str = ""
    max_kib_per_s: float | None = None
    start_within_s: float = 10.0


def start_delay_s(connection: str, generation: int, within_s: float) -> float:
    """Return how long a device waits before it fetches what a generation wants: the same at each asking, at least 0
    and less than `within_s`; over a fleet evenly spread, and for each generation in another order."""
    drawn = hashlib.sha256(f"{connection} {generation}".encode()).digest()
    return within_s * int.from_bytes(drawn[:6], "big") / (1 << 48)


def check(rules: DownloadRules) -> None:
    """Find out whether rules can be followed.

    Raises:
        EdgeopsError: E-CONFIG; a mirror is no https:// address, or a figure is not possible.
    """
    for url in rules.mirrors:
        if not url.startswith("https://"):
            raise EdgeopsError("E-CONFIG", f"downloads.mirrors: {url[:200]!r} is no https:// address")
    if rules.max_kib_per_s is not None and not rules.max_kib_per_s > 0:
        raise EdgeopsError("E-CONFIG", f"downloads.max_kib_per_s: {rules.max_kib_per_s} is not above 0")
    if not 0 <= rules.start_within_s <= 86400:
        raise EdgeopsError("E-CONFIG", f"downloads.start_within_s: {rules.start_within_s} is not within a day")
