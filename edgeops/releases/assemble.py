"""Assembles a release draft: one model, one bundle per profile, every byte checked, evidence beside."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from edgeops import durable
from edgeops.contracts.bundle import BundleManifest
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Evidence
from edgeops.contracts.names import check_version
from edgeops.contracts.release import Release, ReleaseTarget, target_path
from edgeops.contracts.wire import decode, encode
from edgeops.releases import catalog
from edgeops.releases.bundles import Bundle, file_digest, open_bundle, pack, unpack
from edgeops.releases.catalog import DRAFTS, EVIDENCE, MAX_EVIDENCE_BYTES, RELEASE_NAME, UNPUBLISHED, draft_dir

_EVIDENCE_NAME = "evidence.json"


class _Part(NamedTuple):
    manifest: BundleManifest
    digest: str


def create(
    home: Path,
    bundles: Sequence[Path],
    *,
    version: str,
    model: str | None = None,
    notes: str = "",
    now: Callable[[], float] = time.time,
) -> Release:
    """Make a draft: the bundles packed, and the evidence that lies beside them. Nothing is signed or published yet.

    Args:
        home: The fleet's home.
        bundles: Bundle directories or packed files; `evidence.json` beside one is taken if it speaks of its digest.
        version: The release's version.
        model: The model that the bundles must be of; None: whatever they all are.
        notes: For people.
        now: Clock.

    Returns:
        The draft; its number is 0 until it is published.

    Raises:
        EdgeopsError: E-RELEASE-EXISTS; published already, or a draft. E-RELEASE-INVALID; not one model, or two bundles
            for one profile. E-BUNDLE-DAMAGED or E-BUNDLE-INVALID. E-NAME. E-TRUST-KEY; not a fleet's home.
            E-DISK-FULL or E-DISK-WRITE.
    """
    check_version(version)
    if not bundles:
        raise EdgeopsError("E-RELEASE-INVALID", "a release needs at least one bundle")
    drafts = home / DRAFTS
    durable.make_private_dir(drafts)
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=drafts) as name:
        making = Path(name) / "draft"
        (making / EVIDENCE).mkdir(parents=True)
        parts = [_take(path, making, Path(name) / f"unpacked-{index}") for index, path in enumerate(bundles)]
        model = _one_model(parts, model)
        _check_new(home, model, version)
        release = Release(
            model=model,
            version=version,
            number=UNPUBLISHED,
            created_at_s=now(),
            targets=tuple(
                _target(making, version, part) for part in sorted(parts, key=lambda part: part.manifest.profile)
            ),
            notes=notes,
        )
        durable.write_file(making / RELEASE_NAME, encode(release))
        durable.fsync_tree(making)
        (drafts / model).mkdir(exist_ok=True)
        durable.rename(making, draft_dir(home, model, version))
    return release


def _take(path: Path, making: Path, scratch: Path) -> _Part:
    """Check a bundle, pack it into the draft, and take its evidence."""
    bundle = open_bundle(path) if path.is_dir() else unpack(path, scratch)
    profile = bundle.manifest.profile
    packed = making / f"{profile}.edgeops"
    if packed.exists():
        raise EdgeopsError("E-RELEASE-INVALID", f"two bundles for profile {profile}", "Name one bundle per profile.")
    # Packed anew: the bytes follow from the bundle alone, whoever packed it before.
    pack(bundle, packed)
    evidence = _evidence(path.resolve().parent / _EVIDENCE_NAME, bundle)
    if evidence is not None:
        durable.write_file(making / EVIDENCE / f"{profile}.json", evidence)
    return _Part(bundle.manifest, bundle.digest)


def _evidence(path: Path, bundle: Bundle) -> bytes | None:
    """Return the evidence beside a bundle if it speaks of exactly this one."""
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_EVIDENCE_BYTES:
        raise EdgeopsError("E-WIRE-SIZE", f"{path}: larger than {MAX_EVIDENCE_BYTES} bytes")
    data = path.read_bytes()
    return data if decode(data, Evidence, what=str(path)).bundle == bundle.digest else None


def _one_model(parts: Sequence[_Part], model: str | None) -> str:
    models = sorted({part.manifest.model for part in parts})
    if len(models) != 1 or model not in (None, models[0]):
        raise EdgeopsError(
            "E-RELEASE-INVALID",
            f"bundles of {', '.join(models)}" + (f", not of {model}" if model else ""),
            "A release has one model.",
        )
    return models[0]


def _check_new(home: Path, model: str, version: str) -> None:
    if any(release.version == version for release in catalog.releases(home, model=model)):
        raise EdgeopsError("E-RELEASE-EXISTS", f"{model} {version} is published", "Choose another version.")
    if draft_dir(home, model, version).exists():
        raise EdgeopsError(
            "E-RELEASE-EXISTS", f"there is a draft {model} {version}", "Publish it, or choose another version."
        )


def _profile(part: _Part) -> str:
    return part.manifest.profile


def _target(making: Path, version: str, part: _Part) -> ReleaseTarget:
    packed = file_digest(making / f"{part.manifest.profile}.edgeops")
    return ReleaseTarget(
        profile=part.manifest.profile,
        digest=part.digest,
        path=target_path(part.manifest.model, version, part.manifest.profile),
        length=packed.length,
        sha256=packed.sha256,
    )
