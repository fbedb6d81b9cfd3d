"""What lets the TUF client fetch its metadata over the device's own HTTPS client."""

from __future__ import annotations

from collections.abc import Iterator

from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from edgeops.transport.http import HttpClient


class TufFetcher(FetcherInterface):
    """Fetches TUF metadata with a client's trust and identity."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client

    def _fetch(self, url: str) -> Iterator[bytes]:
        status, blocks = self._client.stream(url)
        if status != 200:
            raise DownloadHTTPError(f"{url}: status {status}", status)
        return blocks


class NoFetcher(FetcherInterface):
    """Fetches nothing: for a look at what is there."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise DownloadError(f"{url}: nothing is fetched here")
