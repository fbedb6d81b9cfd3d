"""What was released, read from the signed repository and from nowhere else; and the drafts that wait to be."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgeops.contracts.bundle import BundleManifest, DriftReference
from edgeops.contracts.deployment import EVIDENCE_TYPE
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Evidence
from edgeops.contracts.names import check_name, check_version
from edgeops.contracts.provenance import PAYLOAD_TYPE, Statement
from edgeops.contracts.release import Release
from edgeops.contracts.rigs import RigResult
from edgeops.contracts.wire import decode
from edgeops.releases import materials, provenance
from edgeops.releases.bundles import packed_manifest
from edgeops.releases.rig_results import verified
from edgeops.trust import envelopes
from edgeops.trust.publisher import PublishedTarget, Publisher

DRAFTS, RELEASE_NAME, EVIDENCE, RIG = "releases", "release.json", "evidence", "rig"
MATERIALS_NAME, PROVENANCE_NAME = "materials.cdx.json", "provenance.intoto.json"
UNPUBLISHED = 0
MAX_EVIDENCE_BYTES = 4 << 20
MAX_SEALED_EVIDENCE_BYTES = 2 * MAX_EVIDENCE_BYTES  # base64 and signatures
MAX_PROVENANCE_BYTES = 4 << 20


def releases(home: Path, *, model: str | None = None) -> list[Release]:
    """Return the published releases, of one model or of all, by model and number.

    Raises:
        EdgeopsError: E-TRUST-KEY; not a fleet's home. E-TRUST-METADATA or E-TRUST-TARGET; the repository is damaged.
    """
    return published(Publisher(home), model=model)


def release(home: Path, model: str, version: str) -> Release:
    """Return one published release.

    Raises:
        EdgeopsError: E-RELEASE-UNKNOWN. E-TRUST-KEY, E-TRUST-METADATA or E-TRUST-TARGET as `releases`.
    """
    for found in releases(home, model=model):
        if found.version == version:
            return found
    raise EdgeopsError("E-RELEASE-UNKNOWN", f"{model} {version} is not published", "See edgeops release list.")


def published(publisher: Publisher, *, model: str | None = None) -> list[Release]:
    """Return the releases of a repository, as `releases`.

    Raises:
        EdgeopsError: E-TRUST-METADATA or E-TRUST-TARGET; the repository is damaged.
    """
    found = [
        decode(_read(publisher, path, target), Release, what=path)
        for path, target in publisher.targets().items()
        if path.endswith(f"/{RELEASE_NAME}") and (model is None or path.startswith(f"{model}/"))
    ]
    return sorted(found, key=lambda item: (item.model, item.number))


def evidence(publisher: Publisher, model: str, version: str) -> dict[str, Evidence]:
    """Return the signed evidence of a release by profile.

    Raises:
        EdgeopsError: E-TRUST-SIGNATURE; not signed by a key that may publish the model. E-TRUST-METADATA or
            E-TRUST-TARGET; the repository is damaged.
    """
    keys = publisher.models().get(model, {})
    start, end = f"{model}/{version}/", f".{EVIDENCE}.json"
    return {
        path[len(start) : -len(end)]: decode(
            envelopes.unseal(_read(publisher, path, target), EVIDENCE_TYPE, keys, max_bytes=MAX_SEALED_EVIDENCE_BYTES),
            Evidence,
            what=path,
        )
        for path, target in publisher.targets().items()
        if path.startswith(start) and path.endswith(end)
    }


def rig_results(publisher: Publisher, release: Release) -> list[RigResult]:
    """Return what rigs found of a published release, by rig: of those that the fleet trusts today.

    Raises:
        EdgeopsError: E-TRUST-TARGET or E-TRUST-METADATA; the repository is damaged. E-WIRE-MALFORMED.
    """
    start, end = f"{release.model}/{release.version}/", f".{RIG}.json"
    found = []
    for path, target in sorted(publisher.targets().items()):
        if path.startswith(start) and path.endswith(end):
            try:
                found.append(verified(publisher.home, _read(publisher, path, target), path))
            except EdgeopsError as error:
                if error.code != "E-TRUST-SIGNATURE":
                    raise
    return found


def bill_of_materials(publisher: Publisher, release: Release) -> bytes | None:
    """Return the signed bill of materials of a published release; None: it was published without.

    Raises:
        EdgeopsError: E-TRUST-TARGET; it is not what was signed, or is of other bundles. E-WIRE-MALFORMED; it is none.
            E-DEPENDENCY; what checks its form is not installed. E-TRUST-METADATA.
    """
    path = f"{release.model}/{release.version}/{MATERIALS_NAME}"
    target = publisher.targets().get(path)
    if target is None:
        return None
    data = _read(publisher, path, target)
    materials.check_form(data, what=path)
    materials.check_names(data, release, what=path)
    return data


def where_from(publisher: Publisher, release: Release) -> Statement | None:
    """Return the signed statement of where a published release comes from; None: it was published without.

    Raises:
        EdgeopsError: E-TRUST-SIGNATURE; not signed by a key that may publish the model. E-TRUST-TARGET; it is of
            other files than the release's. E-WIRE-MALFORMED. E-TRUST-METADATA.
    """
    start = f"{release.model}/{release.version}"
    path, targets = f"{start}/{PROVENANCE_NAME}", publisher.targets()
    if path not in targets:
        return None
    payload = envelopes.unseal(
        _read(publisher, path, targets[path]),
        PAYLOAD_TYPE,
        publisher.models().get(release.model, {}),
        max_bytes=MAX_PROVENANCE_BYTES,
    )
    found = decode(payload, Statement, what=path)
    bill = f"{start}/{MATERIALS_NAME}"
    provenance.check(found, release, {bill: targets[bill].sha256} if bill in targets else {}, what=path)
    return found


def manifests(publisher: Publisher, release: Release) -> dict[str, BundleManifest]:
    """Return the manifests of a published release's bundles, by profile.

    Raises:
        EdgeopsError: E-TRUST-TARGET; a bundle's file is missing, or is not what was signed. E-TRUST-METADATA.
    """
    targets, found = publisher.targets(), {}
    for target in release.targets:
        if target.path not in targets:
            raise EdgeopsError("E-TRUST-TARGET", f"target {target.path} is not signed", "Restore the repository.")
        file = publisher.target_file(target.path, targets[target.path])
        try:
            found[target.profile] = packed_manifest(file, BundleManifest, target.digest)
        except EdgeopsError as error:
            raise EdgeopsError(
                "E-TRUST-TARGET", f"target {target.path}: {error.what}", "Restore the repository."
            ) from error
    return found


def drift_references(publisher: Publisher, release: Release) -> dict[str, DriftReference]:
    """Return what the bundles of a published release were compiled with, by profile; without those that do not say.

    Raises:
        EdgeopsError: As `manifests`.
    """
    found = manifests(publisher, release)
    return {profile: manifest.drift for profile, manifest in found.items() if manifest.drift is not None}


def drafts(home: Path) -> list[Release]:
    """Return the drafts that are not published yet, by model and version.

    Raises:
        EdgeopsError: E-STATE-CORRUPT; a draft is damaged. E-TRUST-KEY, E-TRUST-METADATA or E-TRUST-TARGET.
    """
    done = {(item.model, item.version) for item in releases(home)}
    found = [read_draft(path.parent) for path in sorted((home / DRAFTS).glob(f"[!.]*/*/{RELEASE_NAME}"))]
    return [item for item in found if (item.model, item.version) not in done]


def draft_dir(home: Path, model: str, version: str) -> Path:
    """Return the folder of a draft.

    Raises:
        EdgeopsError: E-NAME.
    """
    return home / DRAFTS / check_name(model, "model") / check_version(version)


def read_draft(folder: Path) -> Release:
    """Read a draft's description.

    Raises:
        EdgeopsError: E-RELEASE-UNKNOWN; there is none. E-STATE-CORRUPT; it is damaged.
    """
    try:
        return decode((folder / RELEASE_NAME).read_bytes(), Release, what=str(folder / RELEASE_NAME))
    except FileNotFoundError as error:
        raise EdgeopsError("E-RELEASE-UNKNOWN", f"there is no draft {folder}", "Run edgeops release create.") from error
    except EdgeopsError as error:
        raise EdgeopsError("E-STATE-CORRUPT", error.what, f"Remove {folder} and create it again.") from error


def _read(publisher: Publisher, path: str, target: PublishedTarget) -> bytes:
    """Return a small target's content, checked against its signed hash."""
    try:
        data = publisher.target_file(path, target).read_bytes()
    except OSError as error:
        raise EdgeopsError("E-TRUST-TARGET", f"target {path}: {error.strerror}", "Restore the repository.") from error
    if hashlib.sha256(data).hexdigest() != target.sha256:
        raise EdgeopsError("E-TRUST-TARGET", f"target {path} differs from its signed hash", "Restore the repository.")
    return data
