"""An exported release as a repository for devices without network: the same metadata, verified the same way."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Wire, decode
from edgeops.releases.bundles import ZIP_ERRORS, check_archive_end
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
        except (*ZIP_ERRORS, OSError) as error:
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
        except (*ZIP_ERRORS, OSError) as error:
            raise EdgeopsError("E-RELEASE-INVALID", f"{self._path}: {name}: {error}", _HINT) from error
