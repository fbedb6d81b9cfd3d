"""Where the bundles of a run come from: folders, packed files, or a release of a fleet's repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Evidence
from edgeops.contracts.wire import decode
from edgeops.intake import handover as intake
from edgeops.intake.handover import LoadedHandover
from edgeops.releases import catalog
from edgeops.releases.bundles import open_bundle, unpack
from edgeops.trust.publisher import Publisher
from hil.checks.plan import Subject

_EVIDENCE_NAME = "evidence.json"
_MAX_EVIDENCE_BYTES = 32 << 20


def of_bundles(paths: Sequence[Path], scratch: Path) -> dict[str, Subject]:
    """Return bundles as what a run is about, by profile.

    Args:
        paths: Folders or `.edgeops` files; the evidence beside one says what accuracy it had.
        scratch: A folder to unpack into.

    Raises:
        EdgeopsError: E-BUNDLE-DAMAGED or E-BUNDLE-INVALID. E-HIL-RIG; two bundles are for one profile.
    """
    subjects: dict[str, Subject] = {}
    for index, path in enumerate(paths):
        bundle = unpack(path, scratch / str(index)) if path.is_file() else open_bundle(path)
        profile = bundle.manifest.profile
        if profile in subjects:
            raise EdgeopsError("E-HIL-RIG", f"two bundles are for {profile}", "A board tests one at a time.")
        subjects[profile] = Subject(bundle.directory, accuracy=_accuracy(_beside(path), bundle.digest))
    return subjects


def of_release(home: Path, model: str, version: str, scratch: Path) -> dict[str, Subject]:
    """Return a published release of a fleet as what a run is about, by profile; every bundle is held against its
    signed description.

    Raises:
        EdgeopsError: E-RELEASE-UNKNOWN. E-TRUST-METADATA, E-TRUST-TARGET or E-BUNDLE-DAMAGED; it is not what was
            signed. E-TRUST-KEY; not a fleet's home.
    """
    publisher = Publisher(home)
    release, evidence = catalog.release(home, model, version), catalog.evidence(publisher, model, version)
    published = publisher.targets()
    subjects: dict[str, Subject] = {}
    for target in release.targets:
        file = publisher.target_file(target.path, published[target.path])
        bundle = unpack(file, scratch / target.profile, expect_digest=target.digest)
        accuracy = _accuracy(evidence.get(target.profile), bundle.digest)
        subjects[target.profile] = Subject(bundle.directory, release=version, accuracy=accuracy)
    return subjects


def with_context(
    subjects: Mapping[str, Subject], before: Mapping[str, Subject], labelled: LoadedHandover | None
) -> dict[str, Subject]:
    """Return subjects with what devices run now, and with labelled data."""
    return {
        profile: subject._replace(before=before[profile].bundle if profile in before else None, handover=labelled)
        for profile, subject in subjects.items()
    }


def read_labelled(folder: Path | None) -> LoadedHandover | None:
    """Return a hand-over with labelled data; None where none was given.

    Raises:
        EdgeopsError: As `intake.handover.read`. E-HANDOVER-MISSING; it has no labelled data.
    """
    if folder is None:
        return None
    found = intake.read(folder)
    if found.evaluation is None:
        raise EdgeopsError("E-HANDOVER-MISSING", f"{folder} has no evaluation data", "Add [evaluation] to it.")
    return found


def _beside(path: Path) -> Evidence | None:
    file = path.resolve().parent / _EVIDENCE_NAME
    if not file.is_file() or file.stat().st_size > _MAX_EVIDENCE_BYTES:
        return None
    return decode(file.read_bytes(), Evidence, what=str(file))


def _accuracy(evidence: Evidence | None, digest: str) -> float | None:
    """Return what the compile host measured of a bundle, if the evidence speaks of it."""
    if evidence is None or evidence.bundle != digest:
        return None
    chosen = next((candidate for candidate in evidence.candidates if candidate.chosen), None)
    metric = chosen.metric if chosen is not None else None
    return metric.artifact if metric is not None and metric.name == "accuracy" else None
