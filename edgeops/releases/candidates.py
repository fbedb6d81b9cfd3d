"""Candidates: bundles that are published to be measured on a device, signed like a release and never one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.measurement import CANDIDATES, MAX_CANDIDATES, Candidate, candidate_path
from edgeops.releases.bundles import Bundle, pack
from edgeops.trust.publisher import NewTarget, Publisher

KEPT_S = 7 * 86400.0


def offer(
    home: Path, bundles: Sequence[Bundle], *, key_folders: Sequence[Path] = (), now: Callable[[], float] = time.time
) -> list[Candidate]:
    """Publish candidates, all or none; those of the same models that were published long ago are taken away.

    They have no release number, so that no desired state can name them.

    Args:
        home: The fleet's home.
        bundles: What is to be measured.
        key_folders: Folders with private keys beside `home/keys`.
        now: Clock.

    Returns:
        What to ask a device for, in the same order.

    Raises:
        EdgeopsError: E-RELEASE-INVALID; too many. E-TRUST-KEY; a needed key is not here. E-TRUST-METADATA or
            E-TRUST-TARGET; the repository is damaged. E-DISK-FULL or E-DISK-WRITE.
    """
    if not 0 < len(bundles) <= MAX_CANDIDATES:
        raise EdgeopsError("E-RELEASE-INVALID", f"{len(bundles)} candidates; 1 to {MAX_CANDIDATES} are possible")
    publisher = Publisher(home, key_folders=key_folders, now=now)
    found = [
        Candidate(target=candidate_path(bundle.manifest.model, bundle.digest), digest=bundle.digest)
        for bundle in bundles
    ]
    with publisher.changing(), tempfile.TemporaryDirectory(prefix=".candidates-", dir=home) as scratch:
        published = publisher.targets()
        new: list[NewTarget] = []
        for index, (bundle, candidate) in enumerate(zip(bundles, found, strict=True)):
            if candidate.target not in published and candidate.target not in {target.path for target in new}:
                file = Path(scratch) / f"{index}.edgeops"
                pack(bundle, file)
                new.append(NewTarget(candidate.target, file))
        if new:
            publisher.publish(new)
        wanted = {candidate.target for candidate in found}
        for model in {bundle.manifest.model for bundle in bundles}:
            _withdraw_old(publisher, model, wanted, now() - KEPT_S)
    return found


def _withdraw_old(publisher: Publisher, model: str, wanted: set[str], before_s: float) -> None:
    old = []
    for path, target in publisher.targets().items():
        if path.startswith(f"{model}/{CANDIDATES}/") and path not in wanted:
            file = publisher.target_file(path, target)
            if not file.exists() or file.stat().st_mtime < before_s:
                old.append(path)
    if old:
        publisher.withdraw(model, old)
