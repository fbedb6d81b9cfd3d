"""A bundle with what is said of it: read from where a compile put it, or from the signed repository."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from edgeops.contracts.bundle import MANIFEST_NAME, BundleManifest
from edgeops.contracts.deployment import AGENT_COMPONENT
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Evidence
from edgeops.contracts.release import Release
from edgeops.contracts.wire import decode
from edgeops.releases import catalog
from edgeops.releases.bundles import open_bundle, unpack
from edgeops.trust.publisher import Publisher

EVIDENCE_NAME = "evidence.json"
_BUNDLES = ("bundle", "rejected/bundle")


class Piece(NamedTuple):
    """A checked bundle's manifest and digest, and the evidence that speaks of exactly this digest, if there is any."""

    manifest: BundleManifest
    digest: str
    evidence: Evidence | None


def of_path(path: Path) -> tuple[Piece, ...]:
    """Read a bundle's folder or file, or the folder that a compile wrote: one piece per profile.

    Raises:
        EdgeopsError: E-BUNDLE-INVALID or E-BUNDLE-DAMAGED; it is none, or not whole. E-WIRE-SIZE or E-WIRE-MALFORMED;
            the evidence beside it cannot be read.
    """
    if path.is_dir() and not (path / MANIFEST_NAME).exists():
        compiled = [place / name for place in (path, *sorted(path.iterdir())) for name in _BUNDLES]
        found = tuple(_piece(one) for one in compiled if (one / MANIFEST_NAME).exists())
        if not found:
            raise EdgeopsError(
                "E-BUNDLE-INVALID",
                f"{path}: neither a bundle nor what a compile wrote",
                "Name a bundle, or the folder that `edgeops compile --out` named.",
            )
        return found
    return (_piece(path),)


def of_release(publisher: Publisher, release: Release) -> tuple[Piece, ...]:
    """Read the bundles' manifests and the signed evidence of a published release.

    Raises:
        EdgeopsError: E-RELEASE-INVALID; a release of the agent. E-TRUST-TARGET, E-TRUST-METADATA or
            E-TRUST-SIGNATURE; the repository is damaged, or the evidence is not signed by whom it should be.
    """
    if release.model == AGENT_COMPONENT:
        raise EdgeopsError("E-RELEASE-INVALID", f"{release.model} is no model", "Name a model's release.")
    said = catalog.evidence(publisher, release.model, release.version)
    digests = {target.profile: target.digest for target in release.targets}
    return tuple(
        Piece(manifest, digests[profile], _of_this(said.get(profile), digests[profile]))
        for profile, manifest in catalog.manifests(publisher, release).items()
    )


def evidence_beside(path: Path, digest: str) -> bytes | None:
    """Return the evidence beside a bundle's folder or file if it speaks of exactly this digest.

    Raises:
        EdgeopsError: E-WIRE-SIZE; too large. E-WIRE-MALFORMED; not evidence.
    """
    beside = path.resolve().parent / EVIDENCE_NAME
    if not beside.is_file():
        return None
    if beside.stat().st_size > catalog.MAX_EVIDENCE_BYTES:
        raise EdgeopsError("E-WIRE-SIZE", f"{beside}: larger than {catalog.MAX_EVIDENCE_BYTES} bytes")
    data = beside.read_bytes()
    return data if decode(data, Evidence, what=str(beside)).bundle == digest else None


def _piece(path: Path) -> Piece:
    if path.is_dir():
        manifest, digest = open_bundle(path)[1:]
    else:
        with tempfile.TemporaryDirectory(prefix="edgeops-bundle-") as folder:
            manifest, digest = unpack(path, Path(folder) / "bundle")[1:]
    data = evidence_beside(path, digest)
    if data is None and path.resolve().parent.name == "rejected":
        # What failed lies one folder deeper than its evidence.
        data = evidence_beside(path.resolve().parent, digest)
    return Piece(manifest, digest, None if data is None else decode(data, Evidence, what=str(path)))


def _of_this(evidence: Evidence | None, digest: str) -> Evidence | None:
    return evidence if evidence is not None and evidence.bundle == digest else None
