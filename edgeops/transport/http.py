"""HTTPS for devices: mutual TLS, size and time limits, retries with full jitter, and downloads that resume."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import urllib3

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.transport.mqtt import TlsFiles, backoff_s

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
MAX_TRIES = 6
MAX_CORRUPT = 2
_BLOCK = 1 << 16
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_CHECK_HINT = "Check the network and the server."


class Cancelled(Exception):  # noqa: N818  not an error: somebody asked for it
    """A download was given up because its `cancelled` event was set; what had arrived is kept."""


class RemoteFile(NamedTuple):
    """A file on a server: URL, and the length in bytes and SHA-256 (lower-case hex) that it must have."""

    url: str
    length: int
    sha256: str


def context_for(ca_pem: bytes) -> ssl.SSLContext:
    """Return TLS settings that trust servers of one CA (PEM), and no other.

    Raises:
        EdgeopsError: E-TRUST-KEY; not a certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    except (ValueError, ssl.SSLError) as error:
        raise EdgeopsError("E-TRUST-KEY", f"CA certificate: {error}", "Enrol the device again.") from error
    return context


def mutual_context(tls: TlsFiles) -> ssl.SSLContext:
    """Return TLS settings that trust servers of one CA, and show them our certificate.

    Raises:
        EdgeopsError: E-TRUST-KEY; a file is missing or unreadable.
    """
    try:
        context = context_for(tls.ca.read_bytes())
        context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise EdgeopsError("E-TRUST-KEY", f"{tls.certificate}: {error}", "Enrol the device again.") from error
    return context


def unverified_get(url: str, *, max_bytes: int) -> bytes:
    """Return a document from a server that is not verified. Only for what is then held against a known hash.

    Raises:
        EdgeopsError: As `HttpClient.get`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
        return HttpClient(context, backoff=quick_backoff_s).get(url, max_bytes=max_bytes)


def quick_backoff_s(attempt: int) -> float:
    """Return a wait before a retry where a person waits too."""
    return backoff_s(attempt, first_s=0.2, max_s=2.0)


class HttpClient:
    """A client of HTTPS servers. Safe for use by several threads.

    Args:
        context: Whom to trust, and who we are.
        backoff: Seconds to wait before retry number n, from 0.
    """

    def __init__(self, context: ssl.SSLContext, *, backoff: Callable[[int], float] = backoff_s) -> None:
        self._backoff = backoff
        self._pool = urllib3.PoolManager(
            ssl_context=context,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            maxsize=2,
        )

    def get(self, url: str, *, max_bytes: int) -> bytes:
        """Return a small document, with retries.

        Raises:
            EdgeopsError: E-NET-UNREACHABLE; no answer after all tries. E-NET-RESPONSE; another status than 200.
                E-WIRE-SIZE; larger than `max_bytes`.
        """
        for failed in range(MAX_TRIES - 1):
            try:
                return self._small("GET", url, b"", {}, max_bytes)[1]
            except EdgeopsError as error:
                if error.code != "E-NET-UNREACHABLE":
                    raise
                time.sleep(self._backoff(failed))
        return self._small("GET", url, b"", {}, max_bytes)[1]

    def post_json(self, url: str, body: bytes, *, max_bytes: int) -> tuple[int, bytes]:
        """Send JSON once, without retries; return status and answer.

        Raises:
            EdgeopsError: E-NET-UNREACHABLE; no answer. E-WIRE-SIZE; it is larger than `max_bytes`.
        """
        return self._small("POST", url, body, {"Content-Type": "application/json"}, max_bytes, any_status=True)

    def stream(self, url: str) -> tuple[int, Iterator[bytes]]:
        """Ask once; return the status and the body's blocks.

        Raises:
            EdgeopsError: E-NET-UNREACHABLE; at once, or while blocks are taken.
        """
        response = self._request("GET", url, b"", {"Accept-Encoding": "identity"})
        return response.status, _blocks(response, url)

    def download(
        self,
        remote: RemoteFile,
        target: Path,
        *,
        on_progress: Callable[[int], None] = lambda received: None,
        cancelled: threading.Event | None = None,
    ) -> None:
        """Fetch a file to `target`; it appears there only whole, verified and durable.

        What arrives is kept in `{target}.part`, and a later call goes on from there, also after a power cut. A server
        that ignores ranges is read from the start.

        Args:
            remote: What to fetch.
            target: Where to.
            on_progress: Called with the number of bytes present.
            cancelled: Gives the download up when set.

        Raises:
            EdgeopsError: E-NET-UNREACHABLE or E-NET-RESPONSE; after all tries without progress. E-TRUST-TARGET; the
                bytes are not those that `sha256` names, after a second download too. E-DISK-FULL or E-DISK-WRITE.
            Cancelled: As asked.
        """
        part = part_of(target)
        cancelled = cancelled or threading.Event()
        corrupt = failed = 0
        while True:
            before = _size(part)
            try:
                self._fetch_rest(remote, part, on_progress, cancelled)
                _verify(remote, part)
                break
            except EdgeopsError as error:
                if error.code == "E-TRUST-TARGET":
                    durable.remove_tree(part)
                    corrupt += 1
                    if corrupt >= MAX_CORRUPT:
                        raise
                elif error.code not in ("E-NET-UNREACHABLE", "E-NET-RESPONSE"):
                    raise
                failed = 0 if _size(part) > before else failed + 1
                if failed >= MAX_TRIES:
                    raise
                if cancelled.wait(self._backoff(failed)):
                    raise Cancelled from error
        durable.rename(part, target)

    def _fetch_rest(
        self, remote: RemoteFile, part: Path, on_progress: Callable[[int], None], cancelled: threading.Event
    ) -> None:
        """Bring `part` to its full length, in one request, from what is there."""
        try:
            with part.open("ab") as out:
                have = out.tell()
                if have > remote.length:
                    have = _restart(out)
                if have < remote.length:
                    self._append(remote, out, have, on_progress, cancelled)
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            raise durable.disk_error(error, part) from error

    def _append(
        self,
        remote: RemoteFile,
        out: IO[bytes],
        have: int,
        on_progress: Callable[[int], None],
        cancelled: threading.Event,
    ) -> None:
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        response = self._request("GET", remote.url, b"", headers)
        try:
            if have and response.status in (200, 206, 416) and not _continues(response, have, remote.length):
                have = _restart(out)
            if response.status != (206 if have else 200):
                raise EdgeopsError("E-NET-RESPONSE", f"{remote.url}: status {response.status}", _CHECK_HINT)
            for block in _blocks(response, remote.url):
                if cancelled.is_set():
                    raise Cancelled
                have += len(block)
                if have > remote.length:
                    _restart(out)
                    raise EdgeopsError("E-TRUST-TARGET", f"{remote.url}: longer than {remote.length} bytes")
                out.write(block)
                on_progress(have)
        finally:
            response.close()
        if have != remote.length:
            raise EdgeopsError("E-NET-RESPONSE", f"{remote.url}: ended at {have} of {remote.length} bytes", _CHECK_HINT)

    def _small(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str], max_bytes: int, any_status: bool = False
    ) -> tuple[int, bytes]:
        response = self._request(method, url, body, headers)
        try:
            if response.status != 200 and not any_status:
                raise EdgeopsError("E-NET-RESPONSE", f"{url}: status {response.status}", _CHECK_HINT)
            data = b""
            for block in _blocks(response, url):
                data += block
                if len(data) > max_bytes:
                    raise EdgeopsError("E-WIRE-SIZE", f"{url}: the answer is larger than {max_bytes} bytes")
            return response.status, data
        finally:
            response.close()

    def _request(self, method: str, url: str, body: bytes, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        if not url.startswith("https://"):
            raise EdgeopsError("E-CONFIG", f"{url[:200]} is not an https:// address")
        try:
            return self._pool.request(
                method, url, body=body or None, headers=dict(headers), preload_content=False, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise _unreachable(url, error) from error


def part_of(target: Path) -> Path:
    """Return where a download keeps what has arrived so far."""
    return target.with_name(target.name + ".part")


def _blocks(response: urllib3.BaseHTTPResponse, url: str) -> Iterator[bytes]:
    try:
        yield from response.stream(_BLOCK, decode_content=False)
    except urllib3.exceptions.HTTPError as error:
        raise _unreachable(url, error) from error


def _unreachable(url: str, error: Exception) -> EdgeopsError:
    return EdgeopsError("E-NET-UNREACHABLE", f"{url}: {error}", _CHECK_HINT)


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
            "E-TRUST-TARGET", f"{remote.url}: SHA-256 is {digest.hexdigest()}, signed is {remote.sha256}"
        )
