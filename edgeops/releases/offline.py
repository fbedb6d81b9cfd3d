"""A release as one file for devices without network: the same signed metadata and targets, verified the same way."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgspec
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Wire, decode, encode
from edgeops.releases import catalog
from edgeops.releases.bundles import EPOCH, check_archive_end
from edgeops.trust.publisher import Publisher
from edgeops.trust.tuf_client import Target

URL = "offline://repository"
INDEX_NAME = "index.json"
MAX_ENTRIES = 4096
MAX_INDEX_BYTES = 1 << 20
MAX_METADATA_BYTES = 8 << 20
_PART = r"/[A-Za-z0-9][A-Za-z0-9._-]{0,200}"
_NAME = re.compile(rf"(metadata{_PART}|targets({_PART}){{3}}|index\.json)")
_BLOCK = 1 << 20
_HINT = "Export it again with edgeops release export."


class Index(Wire, frozen=True, kw_only=True):
    """What a file holds, for finding one's way: nothing of it is believed without the signed metadata."""

    fleet: str
    model: str
    version: str
    targets: tuple[str, ...]
    schema_version: int = msgspec.field(default=1, name="schema")


class Exported(NamedTuple):
    """A file that was written: its size, and when its signed metadata ceases to allow changes."""

    path: Path
    length: int
    valid_until_s: float


def export(home: Path, model: str, version: str, to: Path, *, profiles: Sequence[str] = ()) -> Exported:
    """Write one published release as a file: for all its profiles, or for these.

    Args:
        home: The fleet's home.
        model: The release's model.
        version: The release's version.
        to: File to write; an existing one is replaced at once.
        profiles: Profiles to take along; none: all.

    Raises:
        EdgeopsError: E-RELEASE-UNKNOWN; no such release, or none for such a profile. E-TRUST-KEY; not a fleet's home.
            E-TRUST-METADATA or E-TRUST-TARGET; the repository is damaged. E-DISK-FULL or E-DISK-WRITE.
    """
    publisher = Publisher(home)
    with publisher.changing():
        release = catalog.release(home, model, version)
        chosen = [target for target in release.targets if not profiles or target.profile in profiles]
        if missing := sorted(set(profiles) - {target.profile for target in chosen}):
            raise EdgeopsError("E-RELEASE-UNKNOWN", f"{model} {version} has no bundle for {', '.join(missing)}")
        index = Index(
            fleet=publisher.fleet, model=model, version=version, targets=tuple(target.path for target in chosen)
        )
        published = publisher.targets()
        files = {f"metadata/{path.name}": path for path in publisher.metadata_files([item.path for item in chosen])}
        for target in chosen:
            blob = publisher.target_file(target.path, published[target.path])
            folder = target.path.rpartition("/")[0]
            files[f"targets/{folder}/{blob.name}"] = blob
        _write(to, encode(index), files)
        return Exported(to, to.stat().st_size, publisher.valid_until_s())


class OfflineRepository(FetcherInterface):
    """An exported file as a repository: a fetcher for `TufClient` (its metadata URL is `metadata_url`).

    Use it as a context manager. Nothing in it is trusted: metadata passes through the TUF client, and a target's bytes
    are held against their signed description.

    Args:
        path: The file.

    Raises:
        EdgeopsError: E-RELEASE-INVALID; not such a file.
    """

    metadata_url = f"{URL}/metadata"

    def __init__(self, path: Path) -> None:
        self._path = path
        check_archive_end(path, max_entries=MAX_ENTRIES)
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise EdgeopsError("E-RELEASE-INVALID", f"{path}: {error}", _HINT) from error
        self._entries = {info.filename: info for info in self._archive.infolist()}
        for info in self._archive.infolist():
            if not _NAME.fullmatch(info.filename) or info.compress_type != zipfile.ZIP_STORED:
                self._archive.close()
                raise EdgeopsError("E-RELEASE-INVALID", f"{path}: entry {info.filename[:100]!r} is not allowed", _HINT)

    def __enter__(self) -> OfflineRepository:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._archive.close()

    @property
    def index(self) -> Index:
        """What the file says that it holds.

        Raises:
            EdgeopsError: E-RELEASE-INVALID; it does not say.
        """
        try:
            return decode(b"".join(self._blocks(INDEX_NAME, MAX_INDEX_BYTES)), Index, what=f"{self._path}: index")
        except KeyError as error:
            raise EdgeopsError("E-RELEASE-INVALID", f"{self._path}: no {INDEX_NAME}", _HINT) from error
        except EdgeopsError as error:
            raise EdgeopsError("E-RELEASE-INVALID", error.what, _HINT) from error

    def save(self, target: Target, to: Path) -> None:
        """Write a target's file, durably, if its bytes are those of its signed description.

        Raises:
            EdgeopsError: E-TRUST-TARGET; it is not in the file, or differs. E-DISK-FULL or E-DISK-WRITE.
        """
        digest, length = hashlib.sha256(), 0
        temporary = to.parent / f".{to.name}.tmp"
        try:
            with temporary.open("wb") as out:
                for block in self._blocks(f"targets/{target.remote_path}", target.length):
                    digest.update(block)
                    length += len(block)
                    out.write(block)
                out.flush()
                os.fsync(out.fileno())
        except KeyError as error:
            temporary.unlink()
            raise EdgeopsError("E-TRUST-TARGET", f"{self._path} does not hold {target.path}", _HINT) from error
        except EdgeopsError:
            temporary.unlink()
            raise
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise durable.disk_error(error, to) from error
        if (digest.hexdigest(), length) != (target.sha256, target.length):
            temporary.unlink()
            raise EdgeopsError("E-TRUST-TARGET", f"{target.path} in {self._path} differs from what was signed", _HINT)
        durable.rename(temporary, to)

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(f"{URL}/")
        if name not in self._entries:
            raise DownloadHTTPError(f"{name} is not in {self._path}", 404)
        return self._blocks(name, MAX_METADATA_BYTES)

    def _blocks(self, name: str, max_bytes: int) -> Iterator[bytes]:
        """Yield an entry's content.

        Raises:
            KeyError: There is none.
            EdgeopsError: E-RELEASE-INVALID; damaged, or larger than allowed.
        """
        info = self._entries[name]
        left = max_bytes
        try:
            with self._archive.open(info) as entry:
                while block := entry.read(min(_BLOCK, left + 1)):
                    left -= len(block)
                    if left < 0:
                        raise EdgeopsError("E-RELEASE-INVALID", f"{self._path}: {name} is larger than allowed", _HINT)
                    yield block
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            raise EdgeopsError("E-RELEASE-INVALID", f"{self._path}: {name}: {error}", _HINT) from error


def _write(to: Path, index: bytes, files: dict[str, Path]) -> None:
    temporary = to.parent / f".{to.name}.tmp"
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo(INDEX_NAME, EPOCH), index)
            for name in sorted(files):
                with archive.open(zipfile.ZipInfo(name, EPOCH), "w") as out, files[name].open("rb") as source:
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
