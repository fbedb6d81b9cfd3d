"""A device that reads a publisher's own repository from disk, as over the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from raw_repository import URL
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from edgeops.contracts.release import TargetCustom
from edgeops.trust.publisher import NewTarget, Publisher
from edgeops.trust.time import Clock
from edgeops.trust.tuf_client import TufClient


class FolderFetcher(FetcherInterface):
    """Serves a repository's `metadata/` folder, and counts bytes."""

    def __init__(self, repository: Path) -> None:
        self.metadata = repository / "metadata"
        self.bytes = 0

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self.metadata / url.removeprefix(f"{URL}/")
        if not path.is_file():
            raise DownloadHTTPError(f"{path.name}: 404", 404)
        self.bytes += path.stat().st_size
        return iter([path.read_bytes()])


def device(
    publisher: Publisher, directory: Path, repository: Path, *, now: Callable[[], float], root: bytes | None = None
) -> TufClient:
    """A device that knows the publisher's newest root, or the one that is given, and its repository in `repository`."""
    import hashlib

    directory.mkdir(exist_ok=True)
    first = root or publisher.root_bytes()
    client = TufClient(directory, URL, FolderFetcher(repository), Clock(directory / "floor", system=now, build_s=0))
    client.bootstrap(first, hashlib.sha256(first).hexdigest())
    return client


def bundle_target(folder: Path, model: str = "m", version: str = "1.0.0", number: int = 1) -> NewTarget:
    """A file that is described as a bundle."""
    path = f"{model}/{version}/pi.edgeops"
    file = folder / path.replace("/", "-")
    file.write_bytes(f"bundle of {path}".encode())
    custom = TargetCustom(model=model, version=version, number=number, profile="pi", digest="sha256:" + "0" * 64)
    return NewTarget(path, file, custom)
