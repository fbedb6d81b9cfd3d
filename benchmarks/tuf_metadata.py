"""How much metadata a device fetches at 100,000 targets: `python benchmarks/tuf_metadata.py [--targets N --models M]`.

Describes that many targets in a real signed repository (their files are left out: only metadata is measured), then
lets a device with an empty cache find one target, and the same device follow one later release. Bytes are counted at
the fetcher.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import TargetFile
from tuf.ngclient.fetcher import FetcherInterface

from edgeops.contracts.release import TargetCustom, target_path
from edgeops.trust.edition import Edition
from edgeops.trust.founding import make_fleet
from edgeops.trust.keys import KeyStore
from edgeops.trust.publisher import Publisher
from edgeops.trust.repository import Repository
from edgeops.trust.time import Clock
from edgeops.trust.tuf_client import TufClient

PROFILES = ("generic-arm64", "generic-x86-64", "intel-nuc", "jetson-orin-nano", "raspberry-pi-4")


class CountingFetcher(FetcherInterface):
    """Serves a repository's metadata from disk and counts bytes by file."""

    def __init__(self, metadata: Path) -> None:
        self._metadata = metadata
        self.fetched: dict[str, int] = {}

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self._metadata / url.rpartition("/")[2]
        if not path.is_file():
            raise DownloadHTTPError(f"{path.name}: 404", 404)
        self.fetched[path.name] = path.stat().st_size
        return iter([path.read_bytes()])


def described(model: str, minor: int) -> list[TargetFile]:
    """Return one release's bundles as the publisher describes them."""
    version = f"1.{minor}.0"
    digest = hashlib.sha256(f"{model}{minor}".encode()).hexdigest()
    files = []
    for profile in PROFILES:
        custom = TargetCustom(
            model=model, version=version, number=minor + 1, profile=profile, digest=f"sha256:{digest}"
        )
        path = target_path(model, version, profile)
        files.append(TargetFile(1_000_000, {"sha256": digest}, path, {"custom": msgspec.to_builtins(custom)}))
    return files


def add(home: Path, publisher: Publisher, model: str, files: list[TargetFile]) -> None:
    """Publish descriptions in one edition."""
    repository = Repository(home / "repository", publisher.root_sha256())
    edition = Edition(repository.load(), KeyStore([home / "keys"]), time.time())
    edition.add(model, files)
    repository.commit(edition.sealed())


def main() -> None:
    """Publish, fetch, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=int, default=100_000)
    parser.add_argument("--models", type=int, default=10)
    wish = parser.parse_args()
    releases = wish.targets // wish.models // len(PROFILES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        publisher = make_fleet(folder / "home", "benchmark")
        began_s = time.monotonic()
        for number in range(wish.models):
            model = f"model-{number}"
            publisher.delegate(model)
            files = [file for minor in range(releases) for file in described(model, minor)]
            add(folder / "home", publisher, model, files)
        published_s = time.monotonic() - began_s
        metadata = folder / "home" / "repository" / "metadata"
        fetcher = CountingFetcher(metadata)
        (folder / "device").mkdir()
        device = TufClient(folder / "device", "http://x/metadata", fetcher, Clock(folder / "floor"))
        device.bootstrap(publisher.root_bytes(), publisher.root_sha256())
        device.refresh()
        device.target(target_path("model-0", "1.0.0", PROFILES[0]))
        first = dict(fetcher.fetched)
        fetcher.fetched.clear()
        add(folder / "home", publisher, "model-0", described("model-0", releases))
        device.refresh()
        device.target(target_path("model-0", f"1.{releases}.0", PROFILES[0]))
        total = sum(path.stat().st_size for path in metadata.iterdir())
        print(f"targets {wish.targets}, models {wish.models}, published in {published_s:.0f} s")
        print(f"all metadata ever written on the server: {total:,} bytes")
        for title, fetched in (("first fetch", first), ("after one more release", fetcher.fetched)):
            print(f"{title}: {sum(fetched.values()):,} bytes in {len(fetched)} files")
            for part, size in sorted(fetched.items(), key=lambda item: -item[1]):
                print(f"  {size:>9,}  {part}")


if __name__ == "__main__":
    main()
