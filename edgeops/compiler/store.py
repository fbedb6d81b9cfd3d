"""The content-addressed cache of products: one folder per key, whole or not there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from edgeops import durable
from edgeops.contracts.bundle import FileEntry
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Wire, decode, encode
from edgeops.intake.cache import cache_dir
from edgeops.releases.bundles import file_digest

_RECORD = "product.json"


class Failure(Wire, frozen=True, kw_only=True):
    """Why a pass could not make its product: the same inputs will fail again."""

    code: str
    what: str


class Product(Wire, frozen=True, kw_only=True):
    """What a pass made: facts, notes and files, or the reason why it made nothing."""

    facts: tuple[str, ...] = ()
    notes: dict[str, Any] = {}
    files: dict[str, FileEntry] = {}
    failure: Failure | None = None

    def digest(self) -> str:
        """Return the hex SHA-256 of facts, notes and files."""
        return hashlib.sha256(encode(self)).hexdigest()


class Stored(NamedTuple):
    """A product and the folder that holds its files. Nobody writes there."""

    path: Path
    product: Product

    @property
    def notes(self) -> dict[str, Any]:
        """The product's notes."""
        return self.product.notes

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(entry.length for entry in self.product.files.values())


class Usage(NamedTuple):
    """What the cache holds: products and their bytes."""

    products: int
    size_bytes: int


class Store:
    """Products by key below one folder; safe for several processes at once."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_dir() / "compile"

    def lookup(self, key: str) -> Stored | None:
        """Return a product, or None. One whose files are missing or of another length is removed."""
        path = self._path(key)
        try:
            product = decode((path / _RECORD).read_bytes(), Product, what=str(path))
            for name, entry in product.files.items():
                if (path / name).stat().st_size != entry.length:
                    raise EdgeopsError("E-STATE-CORRUPT", f"{path / name}: length differs")
        except FileNotFoundError:
            if path.exists():
                durable.remove_tree(path)
            return None
        except EdgeopsError:
            durable.remove_tree(path)
            return None
        os.utime(path)
        return Stored(path, product)

    def put(self, key: str, make: Callable[[Path], Product]) -> Stored:
        """Make a product once: others that ask for the same key wait for it.

        Args:
            key: Hex digest of everything that the product depends on.
            make: Writes files into an empty folder and returns the product; `files` is filled in here.

        Raises:
            EdgeopsError: Whatever `make` raises; E-DISK-FULL or E-DISK-WRITE. Nothing is kept then.
        """
        with self._locked(key):
            found = self.lookup(key)
            if found is not None:
                return found
            path = self._path(key)
            temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
            try:
                temporary.mkdir(parents=True)
                product = make(temporary)
                names = sorted(
                    item.relative_to(temporary).as_posix() for item in temporary.rglob("*") if item.is_file()
                )
                product = Product(
                    facts=product.facts,
                    notes=product.notes,
                    files={name: file_digest(temporary / name) for name in names},
                    failure=product.failure,
                )
                (temporary / _RECORD).write_bytes(encode(product))
                temporary.rename(path)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                    raise
                raise durable.disk_error(error, path) from error
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            return Stored(path, product)

    def usage(self) -> Usage:
        """Return how much the cache holds."""
        products = [path for path in self.root.glob("??/*") if not path.name.startswith(".") and path.is_dir()]
        size = sum(item.stat().st_size for path in products for item in path.rglob("*") if item.is_file())
        return Usage(len(products), size)

    def clear(self, *, unused_s: float = 0.0) -> Usage:
        """Remove products that nobody used for `unused_s` seconds; return what was removed.

        Raises:
            EdgeopsError: E-DISK-WRITE.
        """
        before, limit = self.usage(), time.time() - unused_s
        for path in self.root.glob("??/*"):
            if path.is_dir() and path.stat().st_mtime <= limit:
                durable.remove_tree(path)
        after = self.usage()
        return Usage(before.products - after.products, before.size_bytes - after.size_bytes)

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / key[2:]

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = (path.parent / f".{path.name}.lock").open("w")
        except OSError as error:
            raise durable.disk_error(error, path) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
