"""Downloads that resume, from several servers, at a bounded rate; a file appears only whole, verified and durable."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import urllib3

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.transport.http import CHECK_HINT, MAX_TRIES, HttpClient, blocks_of
from edgeops.transport.mqtt import backoff_s
from edgeops.transport.sources import Pacer, Sources

_BLOCK = 1 << 16
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Cancelled(Exception):  # noqa: N818  not an error: somebody asked for it
    """A download was given up because its `cancelled` event was set; what had arrived is kept."""


class RemoteFile(NamedTuple):
    """A file on servers: path below each one's base URL, and the length in bytes and SHA-256 (lower-case hex) that it
    must have."""

    path: str
    length: int
    sha256: str


class Server(NamedTuple):
    """Where files are had: a client that trusts the server, and the URL below which they lie."""

    http: HttpClient
    base_url: str

    def url_of(self, remote: RemoteFile) -> str:
        """Return where a file lies."""
        return f"{self.base_url.rstrip('/')}/{remote.path}"


class Downloader:
    """Fetches files. Safe for use by several threads, each with a target of its own.

    Args:
        servers: In order of preference; none is trusted.
        max_bytes_per_s: Mean rate of all downloads together; None: no limit.
        backoff: Seconds to wait before round number n of all servers, from 0.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        max_bytes_per_s: float | None = None,
        backoff: Callable[[int], float] = backoff_s,
    ) -> None:
        self._servers, self._backoff = tuple(servers), backoff
        self._pacer, self._pacing = Pacer(max_bytes_per_s), threading.Lock()

    def download(
        self,
        remote: RemoteFile,
        target: Path,
        *,
        on_progress: Callable[[int], None] = lambda received: None,
        cancelled: threading.Event | None = None,
    ) -> None:
        """Fetch a file to `target`.

        What arrives is kept in `{target}.part`, and a later call goes on from there, also after a power cut and from
        another server. One that fails makes room for the next at once; after all have failed there is a wait. One
        whose bytes were wrong twice is asked no more.

        Args:
            remote: What to fetch.
            target: Where to.
            on_progress: Called with the number of bytes present.
            cancelled: Gives the download up when set.

        Raises:
            EdgeopsError: E-NET-UNREACHABLE or E-NET-RESPONSE; after all tries without progress. E-TRUST-TARGET; the
                bytes are not those that `sha256` names, twice from each server. E-DISK-FULL or E-DISK-WRITE.
            Cancelled: As asked.
        """
        part = part_of(target)
        cancelled = cancelled or threading.Event()
        most = _size(part)
        sources = Sources(len(self._servers), found=most > 0)
        failed, further = 0, False
        while True:
            index = sources.next
            before = 0 if sources.from_start(index) else _size(part)
            try:
                self._fetch_rest(index, sources, remote, part, on_progress, cancelled)
                _verify(remote, part)
                break
            except EdgeopsError as error:
                if error.code == "E-TRUST-TARGET":
                    durable.remove_tree(part)
                    before = most = 0
                    if not sources.lied():
                        raise
                elif error.code not in ("E-NET-UNREACHABLE", "E-NET-RESPONSE"):
                    raise
                have = _size(part)
                further, most = further or have > most, max(have, most)
                if not sources.failed(index, progressed=have > before):
                    continue
                failed, further = (0 if further else failed + 1), False
                if failed >= MAX_TRIES:
                    raise
                if cancelled.wait(self._backoff(failed)):
                    raise Cancelled from error
        durable.rename(part, target)

    def _fetch_rest(
        self,
        index: int,
        sources: Sources,
        remote: RemoteFile,
        part: Path,
        on_progress: Callable[[int], None],
        cancelled: threading.Event,
    ) -> None:
        """Bring `part` to its full length, in one request to one server, from what is there."""
        try:
            with part.open("ab") as out:
                have = out.tell()
                if have > remote.length:
                    have = _restart(out)
                if have < remote.length:
                    with contextlib.closing(self._append(index, sources, remote, out, have)) as lengths:
                        for length in lengths:
                            if cancelled.is_set():
                                raise Cancelled
                            on_progress(out.tell())
                            self._pace(length, cancelled)
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            raise durable.disk_error(error, part) from error

    def _append(
        self, index: int, sources: Sources, remote: RemoteFile, out: IO[bytes], have: int
    ) -> Generator[int, None, None]:
        """Write what a server gives, and give the length of each block that was written."""
        url = self._servers[index].url_of(remote)
        start = 0 if sources.from_start(index) else have
        response = self._servers[index].http.open(url, have=start)
        try:
            continues = start and response.status == 206 and _continues(response, start, remote.length)
            if not continues and response.status != 200:
                raise EdgeopsError("E-NET-RESPONSE", f"{url}: status {response.status}", CHECK_HINT)
            if not start:
                _restart(out)
            position = start if continues else 0
            for block in blocks_of(response, url):
                # A server that knows no ranges repeats what is here already.
                new = block[max(0, start - position) :]
                position += len(block)
                if position > remote.length:
                    _restart(out)
                    raise EdgeopsError("E-TRUST-TARGET", f"{url}: longer than {remote.length} bytes")
                if new:
                    sources.gave(index, all_of_it=not start)
                    out.write(new)
                yield len(block)
        finally:
            response.close()
        if position != remote.length:
            raise EdgeopsError("E-NET-RESPONSE", f"{url}: ended at {position} of {remote.length} bytes", CHECK_HINT)

    def _pace(self, length: int, cancelled: threading.Event) -> None:
        with self._pacing:
            wait_s = self._pacer.wait_s(length, time.monotonic())
        if wait_s > 0 and cancelled.wait(wait_s):
            raise Cancelled


def part_of(target: Path) -> Path:
    """Return where a download keeps what has arrived so far."""
    return target.with_name(target.name + ".part")


def _continues(response: urllib3.BaseHTTPResponse, have: int, length: int) -> bool:
    """Say whether an answer to a range request goes on exactly where we are, in a file of the right length."""
    matched = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return response.status == 206 and matched is not None and matched.group(1, 3) == (str(have), str(length))


def _restart(out: IO[bytes]) -> int:
    out.seek(0)
    out.truncate(0)
    return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _verify(remote: RemoteFile, part: Path) -> None:
    digest = hashlib.sha256()
    with part.open("rb") as source:
        while block := source.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != remote.sha256:
        raise EdgeopsError(
            "E-TRUST-TARGET", f"{remote.path}: SHA-256 is {digest.hexdigest()}, signed is {remote.sha256}"
        )
