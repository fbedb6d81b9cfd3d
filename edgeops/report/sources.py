"""Where a report's bundles come from: a compile's folder, a bundle, a published release; and what they are held to."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from edgeops.client.resources import DeviceInfo
from edgeops.contracts.deployment import ComponentKind
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.release import Release
from edgeops.releases import catalog, pieces
from edgeops.releases.pieces import Piece
from edgeops.report.differences import compared
from edgeops.report.gather import gather
from edgeops.report.model import Report
from edgeops.trust.publisher import Publisher

Compared = dict[str, tuple[str, Piece]]


def of_path(
    path: Path, before: Callable[[str], Compared] | None = None, *, now: Callable[[], float] = time.time
) -> Report:
    """Report on a bundle, or on all bundles of a compile.

    Args:
        path: A bundle's folder or file, or the folder that a compile wrote.
        before: Says for the model's name what to compare with, by profile.
        now: Clock.

    Raises:
        EdgeopsError: As `pieces.of_path` and `gather`.
    """
    found = pieces.of_path(path)
    return _report(found, None, None if before is None else before(found[0].manifest.model), now)


def of_release(
    home: Path, model: str, version: str, before: Compared | None = None, *, now: Callable[[], float] = time.time
) -> Report:
    """Report on a published release.

    Raises:
        EdgeopsError: E-RELEASE-UNKNOWN; not published. Otherwise as `pieces.of_release` and `gather`.
    """
    release, publisher = catalog.release(home, model, version), Publisher(home)
    report = _report(pieces.of_release(publisher, release), release, before, now)
    return msgspec.structs.replace(report, rigs=tuple(catalog.rig_results(publisher, release)))


def against_release(home: Path, model: str, version: str) -> Compared:
    """Return a published release's bundles to compare with.

    Raises:
        EdgeopsError: As `of_release`.
    """
    release = catalog.release(home, model, version)
    return _named(home, release, f"release {version}")


def release_before(home: Path, model: str, version: str) -> Compared:
    """Return the bundles of the release that was published before this one; empty: it is the first.

    Raises:
        EdgeopsError: As `of_release`.
    """
    number = catalog.release(home, model, version).number
    older = [one for one in catalog.releases(home, model=model) if one.number < number]
    return _named(home, older[-1], f"release {older[-1].version}, published before it") if older else {}


def deployed(home: Path, model: str, devices: Iterable[DeviceInfo]) -> Compared:
    """Return what most devices of each profile serve now, to compare with; devices that serve none do not count.

    Args:
        home: The fleet's home: releases are read from its signed repository.
        model: The model.
        devices: The fleet's devices, as its control plane tells.

    Raises:
        EdgeopsError: E-TRUST-TARGET, E-TRUST-METADATA or E-TRUST-SIGNATURE; the repository is damaged.
    """
    published = {one.version: one for one in catalog.releases(home, model=model)}
    found: Compared = {}
    cache: dict[str, Compared] = {}
    for profile, versions in served(model, devices).items():
        version, count = versions.most_common(1)[0]
        if version in published:
            bundles = cache.setdefault(version, _named(home, published[version], ""))
            if profile in bundles:
                said = f"release {version}, served by {count} of {versions.total()} devices that serve {model}"
                found[profile] = (said, bundles[profile][1])
    return found


def served(model: str, devices: Iterable[DeviceInfo]) -> dict[str, Counter[str]]:
    """Count by profile which releases of a model devices serve. Pure."""
    found: dict[str, Counter[str]] = {}
    for device in devices:
        for unit in device.units:
            for component in unit.components:
                active = component.active_release
                if component.name == model and component.kind == ComponentKind.MODEL and active is not None:
                    found.setdefault(unit.profile or device.profile, Counter())[active] += 1
    return found


def _named(home: Path, release: Release, words: str) -> Compared:
    return {one.manifest.profile: (words, one) for one in pieces.of_release(Publisher(home), release)}


def _report(
    found: Sequence[Piece],
    release: Release | None,
    before: Compared | None,
    now: Callable[[], float],
) -> Report:
    profiles = [piece.manifest.profile for piece in found]
    if twice := sorted({profile for profile in profiles if profiles.count(profile) > 1}):
        raise EdgeopsError("E-RELEASE-INVALID", f"two bundles for {', '.join(twice)}", "Name one of them.")
    report = gather(found, release=release, made_at_s=now())
    if not before:
        return report
    return compared(report, {piece.manifest.profile: piece for piece in found}, before)
