"""Verifies a published release as a whole: every byte against its signed description, and what it says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edgeops import durable
from edgeops.contracts.bundle import FileEntry
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.release import Release
from edgeops.contracts.wire import encode
from edgeops.releases import catalog
from edgeops.releases.bundles import file_digest
from edgeops.trust.publisher import Publisher

STATEMENT_NAME = "provenance.json"


class Verified(NamedTuple):
    """One part of a release: what it is, what was verified, and whether the release has it at all."""

    what: str
    detail: str
    there: bool = True


def verify(home: Path, release: Release) -> list[Verified]:
    """Verify a published release.

    Raises:
        EdgeopsError: The first thing that does not hold: E-TRUST-TARGET, E-TRUST-SIGNATURE, E-TRUST-METADATA,
            E-WIRE-MALFORMED; or E-DEPENDENCY, where the bill of materials cannot be checked here.
    """
    publisher = Publisher(home)
    found = list(_bundles(publisher, release))
    told = catalog.evidence(publisher, release.model, release.version)
    digests = {target.profile: target.digest for target in release.targets}
    for profile, digest in digests.items():
        one = told.get(profile)
        if one is None:
            found.append(Verified(f"evidence of {profile}", "none was published", there=False))
        elif one.bundle != digest:
            raise EdgeopsError("E-TRUST-TARGET", f"the evidence of {profile} speaks of {one.bundle}, not of {digest}")
        else:
            found.append(Verified(f"evidence of {profile}", f"signed, of {digest}"))
    bill = catalog.bill_of_materials(publisher, release)
    found.append(
        Verified("bill of materials", "none was published", there=False)
        if bill is None
        else Verified("bill of materials", f"signed, CycloneDX 1.6, {len(bill)} bytes, names every bundle")
    )
    origin = catalog.where_from(publisher, release)
    found.append(
        Verified("provenance", "none was published", there=False)
        if origin is None
        else Verified(
            "provenance", f"signed, of {len(origin.subject)} files, by {origin.predicate.run_details.builder.id}"
        )
    )
    return found


def write_documents(home: Path, release: Release, folder: Path) -> None:
    """Write the verified bill of materials and statement of provenance, as far as the release has them.

    Raises:
        EdgeopsError: As `verify`; E-DISK-FULL or E-DISK-WRITE.
    """
    publisher = Publisher(home)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise durable.disk_error(error, folder) from error
    bill, origin = catalog.bill_of_materials(publisher, release), catalog.where_from(publisher, release)
    if bill is not None:
        durable.write_file(folder / catalog.MATERIALS_NAME, bill)
    if origin is not None:
        durable.write_file(folder / STATEMENT_NAME, encode(origin))


def _bundles(publisher: Publisher, release: Release) -> Iterator[Verified]:
    targets = publisher.targets()
    for target in release.targets:
        signed = targets.get(target.path)
        entry = FileEntry(sha256=target.sha256, length=target.length)
        if signed is None or (signed.sha256, signed.length) != (entry.sha256, entry.length):
            raise EdgeopsError("E-TRUST-TARGET", f"{target.path} is not signed as the release describes it")
        file = publisher.target_file(target.path, signed)
        if not file.is_file() or file_digest(file) != entry:
            raise EdgeopsError(
                "E-TRUST-TARGET", f"{target.path} differs from its signed hash", "Restore the repository."
            )
        yield Verified(f"bundle of {target.profile}", f"{target.digest}, {target.length} bytes")
