"""Publishes a release draft: its bundles, its description and its evidence become signed targets, all at once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from edgeops import durable
from edgeops.contracts.bundle import AgentManifest, BundleManifest, FileEntry
from edgeops.contracts.deployment import AGENT_COMPONENT, EVIDENCE_TYPE
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Evidence
from edgeops.contracts.provenance import PAYLOAD_TYPE
from edgeops.contracts.release import Release, ReleaseTarget, TargetCustom
from edgeops.contracts.wire import decode, encode
from edgeops.releases import blob_signing, catalog, materials, provenance
from edgeops.releases.bundles import file_digest, packed_manifest
from edgeops.releases.catalog import EVIDENCE, RELEASE_NAME, RIG, draft_dir, read_draft
from edgeops.trust import envelopes
from edgeops.trust.publisher import NewTarget, Publisher


def publish(
    home: Path,
    model: str,
    version: str,
    *,
    key_folders: Sequence[Path] = (),
    with_materials: bool = True,
    run: str = "",
    blob_counter: int | None = None,
    now: Callable[[], float] = time.time,
) -> Release:
    """Sign and publish a draft. A cut at any point leaves the previous repository valid; try again, it goes on.

    Args:
        home: The fleet's home.
        model: The draft's model.
        version: The draft's version.
        key_folders: Folders with private keys beside `home/keys`.
        with_materials: Write a bill of materials, too, which needs the extra `sbom`.
        run: Address of the run that made the release, for its statement of provenance.
        blob_counter: Anti-rollback counter of microcontrollers' blobs: a device that confirmed one of them refuses all
            with a smaller one. None: the largest so far.
        now: Clock.

    Returns:
        The release with its number: one more than the newest of this model.

    Raises:
        EdgeopsError: E-RELEASE-UNKNOWN; no such draft. E-RELEASE-EXISTS; this version is published with other
            bundles. E-BUNDLE-DAMAGED; the draft was changed since it was made. E-TRUST-KEY; a needed key is not here.
            E-DEPENDENCY; the extra `sbom` is not installed.
            E-TRUST-METADATA or E-TRUST-TARGET; the repository is damaged. E-DISK-FULL or E-DISK-WRITE.
    """
    publisher = Publisher(home, key_folders=key_folders, now=now)
    folder = draft_dir(home, model, version)
    with publisher.changing():
        before = catalog.published(publisher, model=model)
        done = next((release for release in before if release.version == version), None)
        if done is not None and not folder.exists():
            raise EdgeopsError("E-RELEASE-EXISTS", f"{model} {version} is published", "Choose another version.")
        draft = read_draft(folder)
        if done is None:
            number = max((release.number for release in before), default=0) + 1
            done = msgspec.structs.replace(draft, number=number, created_at_s=now())
            if model not in publisher.models():
                publisher.delegate(model)
            with tempfile.TemporaryDirectory(prefix=".publish-", dir=home) as scratch:
                trailers = _trailers(done, folder, publisher, blob_counter)
                files = [*_bundles(done, folder, trailers), *_statements(done, folder, publisher, Path(scratch))]
                files += _origin(done, folder, publisher, Path(scratch), with_materials=with_materials, run=run)
                publisher.publish(files)
        elif done.targets != draft.targets:
            raise EdgeopsError("E-RELEASE-EXISTS", f"{model} {version} is published", "Choose another version.")
        durable.remove_tree(folder)
    return done


def _trailers(release: Release, folder: Path, publisher: Publisher, counter: int | None) -> dict[str, str]:
    """Return the signature of each microcontroller's blob, by profile."""
    found = {target.profile: blob_signing.blob_in(_checked(target, folder)) for target in release.targets}
    blobs = {profile: blob for profile, blob in found.items() if blob is not None}
    if not blobs:
        return {}
    least = blob_signing.highest_counter(target.custom for target in publisher.targets().values())
    if counter is not None and counter < least:
        raise EdgeopsError(
            "E-CONFIG",
            f"anti-rollback counter {counter}: {least} is published already",
            "Leave it out, or name a larger one.",
        )
    signer = publisher.blob_signer()
    return {
        profile: blob_signing.trailer(blob, release.version, least if counter is None else counter, signer)
        for profile, blob in blobs.items()
    }


def _checked(target: ReleaseTarget, folder: Path) -> Path:
    file = folder / f"{target.profile}.edgeops"
    if not file.is_file() or file_digest(file) != FileEntry(sha256=target.sha256, length=target.length):
        raise EdgeopsError("E-BUNDLE-DAMAGED", f"{file} was changed since the draft was made", "Create it again.")
    return file


def _bundles(release: Release, folder: Path, trailers: dict[str, str]) -> Iterator[NewTarget]:
    for target in release.targets:
        file = _checked(target, folder)
        custom = TargetCustom(
            model=release.model,
            version=release.version,
            number=release.number,
            profile=target.profile,
            digest=target.digest,
            blob_trailer=trailers.get(target.profile, ""),
        )
        yield NewTarget(target.path, file, custom)


def _statements(release: Release, folder: Path, publisher: Publisher, scratch: Path) -> Iterator[NewTarget]:
    """Give the release's description, and the evidence of each bundle signed as a statement of its own."""
    start = f"{release.model}/{release.version}"
    description = scratch / RELEASE_NAME
    description.write_bytes(encode(release))
    yield NewTarget(f"{start}/{RELEASE_NAME}", description)
    for target in release.targets:
        found = folder / EVIDENCE / f"{target.profile}.json"
        if found.is_file():
            sealed = scratch / f"{target.profile}.{EVIDENCE}.json"
            signer = publisher.model_signer(release.model)
            sealed.write_bytes(
                envelopes.seal(found.read_bytes(), EVIDENCE_TYPE, signer, max_bytes=catalog.MAX_SEALED_EVIDENCE_BYTES)
            )
            yield NewTarget(f"{start}/{sealed.name}", sealed)

    for found in sorted((folder / RIG).glob("*.json")):
        # As the rig signed it: the repository vouches for these bytes, the rig for what they say.
        yield NewTarget(f"{start}/{found.stem}.{RIG}.json", found)


def _origin(
    release: Release, folder: Path, publisher: Publisher, scratch: Path, *, with_materials: bool, run: str
) -> Iterator[NewTarget]:
    """Give the bill of materials, and the signed statement of where all of it comes from."""
    parts = [_part(release, target, folder) for target in release.targets]
    start, others = f"{release.model}/{release.version}", {}
    if with_materials:
        bill = scratch / catalog.MATERIALS_NAME
        bill.write_bytes(materials.bill_of_materials(release, parts))
        others[f"{start}/{bill.name}"] = file_digest(bill).sha256
        yield NewTarget(f"{start}/{bill.name}", bill)
    statement = provenance.statement(release, parts, others, fleet=publisher.fleet, run=run)
    sealed, signer = scratch / catalog.PROVENANCE_NAME, publisher.model_signer(release.model)
    sealed.write_bytes(envelopes.seal(encode(statement), PAYLOAD_TYPE, signer, max_bytes=catalog.MAX_PROVENANCE_BYTES))
    yield NewTarget(f"{start}/{sealed.name}", sealed)


def _part(release: Release, target: ReleaseTarget, folder: Path) -> materials.Part:
    file = folder / f"{target.profile}.edgeops"
    manifest = (
        packed_manifest(file, AgentManifest, target.digest)
        if release.model == AGENT_COMPONENT
        else packed_manifest(file, BundleManifest, target.digest)
    )
    said = folder / EVIDENCE / f"{target.profile}.json"
    evidence = decode(said.read_bytes(), Evidence, what=str(said)) if said.is_file() else None
    return materials.Part(target, manifest, evidence)
