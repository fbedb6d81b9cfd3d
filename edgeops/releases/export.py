"""Writes a release as one file for devices without network: its signed metadata and its bundles."""

from __future__ import annotations

import io
import os
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import encode
from edgeops.releases import catalog
from edgeops.releases.bundles import EPOCH
from edgeops.releases.offline import INDEX_NAME, Index
from edgeops.trust.publisher import Publisher

_BLOCK = 1 << 20


class Exported(NamedTuple):
    """A file that was written: its size, and when its signed metadata ceases to allow changes."""

    path: Path
    length: int
    valid_until_s: float


def export(
    home: Path,
    model: str,
    version: str,
    to: Path,
    *,
    profiles: Sequence[str] = (),
    valid_for_s: float | None = None,
    now: Callable[[], float] = time.time,
) -> Exported:
    """Write one published release as a file: for all its profiles, or for these.

    Args:
        home: The fleet's home.
        model: The release's model.
        version: The release's version.
        to: File to write; an existing one is replaced at once.
        profiles: Profiles to take along; none: all.
        valid_for_s: How long devices may take it; None: as long as the served timestamp. The online keys sign for it.
        now: Clock.

    Raises:
        EdgeopsError: E-RELEASE-UNKNOWN; no such release, or none for such a profile. E-TRUST-KEY; not a fleet's home,
            or an online key is not here. E-TRUST-METADATA or E-TRUST-TARGET; the repository is damaged. E-DISK-FULL or
            E-DISK-WRITE.
    """
    publisher = Publisher(home, now=now)
    with publisher.changing():
        release = catalog.release(home, model, version)
        chosen = [target for target in release.targets if not profiles or target.profile in profiles]
        if missing := sorted(set(profiles) - {target.profile for target in chosen}):
            raise EdgeopsError("E-RELEASE-UNKNOWN", f"{model} {version} has no bundle for {', '.join(missing)}")
        paths = [target.path for target in chosen]
        if valid_for_s is None:
            until_s = publisher.valid_until_s(paths)
            metadata: dict[str, Path | bytes] = {path.name: path for path in publisher.metadata_files(paths)}
        else:
            metadata = {path.name: path for path in publisher.metadata_files(paths) if not _is_online(path.name)}
            loan = publisher.lend(paths, valid_for_s)
            metadata |= loan.files
            until_s = loan.valid_until_s
        files: dict[str, Path | bytes] = {f"metadata/{name}": file for name, file in metadata.items()}
        published = publisher.targets()
        for target in chosen:
            blob = publisher.target_file(target.path, published[target.path])
            files[f"targets/{target.path.rpartition('/')[0]}/{blob.name}"] = blob
        index = Index(fleet=publisher.fleet, model=model, version=version, targets=tuple(paths))
        _write(to, {INDEX_NAME: encode(index), **files})
        return Exported(to, to.stat().st_size, until_s)


def _is_online(name: str) -> bool:
    return name == "timestamp.json" or name.endswith(".snapshot.json")


def _write(to: Path, files: Mapping[str, Path | bytes]) -> None:
    temporary = to.parent / f".{to.name}.tmp"
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, file in sorted(files.items()):
                with (
                    archive.open(zipfile.ZipInfo(name, EPOCH), "w") as out,
                    io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as source,
                ):
                    while block := source.read(_BLOCK):
                        out.write(block)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
    except (RuntimeError, zipfile.LargeZipFile) as error:
        temporary.unlink(missing_ok=True)
        raise EdgeopsError("E-RELEASE-INVALID", f"{to}: {error}", "Export fewer profiles at a time.") from error
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise durable.disk_error(error, to) from error
    durable.rename(temporary, to)
