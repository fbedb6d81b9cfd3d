"""HTTPS for devices: mutual TLS, size and time limits, retries with full jitter."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping

import urllib3

from edgeops.contracts.errors import EdgeopsError
from edgeops.transport.mqtt import TlsFiles, backoff_s

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
# From its request on a server has so long to begin its answer, however it does: also header by header.
ANSWER_WITHIN_S = 60.0
# What has come is to have come at this speed on average, once somebody was patient for a while.
PATIENCE_S = 30.0
MIN_BYTES_PER_S = 256.0
MAX_TRIES = 6
_BLOCK = 1 << 16
CHECK_HINT = "Check the network and the server."


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
        self._pool.pool_classes_by_scheme = {"https": _Pool}

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
            EdgeopsError: E-NET-UNREACHABLE; at once, or while blocks are taken. E-NET-RESPONSE; as `blocks_of`.
        """
        response = self._request("GET", url, b"", {"Accept-Encoding": "identity"})
        return response.status, blocks_of(response, url)

    def open(self, url: str, *, have: int) -> urllib3.BaseHTTPResponse:
        """Ask once for a file from its byte `have` on. Whether the answer goes on there, the caller checks.

        Raises:
            EdgeopsError: E-NET-UNREACHABLE.
        """
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        return self._request("GET", url, b"", headers)

    def _small(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str], max_bytes: int, any_status: bool = False
    ) -> tuple[int, bytes]:
        response = self._request(method, url, body, headers)
        try:
            if response.status != 200 and not any_status:
                raise EdgeopsError("E-NET-RESPONSE", f"{url}: status {response.status}", CHECK_HINT)
            data = b""
            for block in blocks_of(response, url):
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


class _Connection(urllib3.connection.HTTPSConnection):
    """A connection that ends if an answer does not begin in time: a timeout alone counts anew from each byte."""

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 itself overrides it
        """Wait for the head of an answer."""
        over = threading.Event()
        timer = threading.Timer(ANSWER_WITHIN_S, _end, (self.sock, over))
        timer.daemon = True
        timer.start()
        try:
            response = super().getresponse()
        finally:
            timer.cancel()
        # The end of a connection reads like the end of the head.
        if over.is_set():
            raise ConnectionAbortedError(f"no answer within {ANSWER_WITHIN_S:.0f} s")
        return response


class _Pool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Connection


def _end(connection: socket.socket, over: threading.Event) -> None:
    over.set()
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def is_too_slow(received: int, waited_s: float) -> bool:
    """Say whether a server that has given so many bytes, for which it let us wait so long, is given up."""
    return waited_s > PATIENCE_S + received / MIN_BYTES_PER_S


def blocks_of(response: urllib3.BaseHTTPResponse, url: str) -> Iterator[bytes]:
    """Give the body of an answer in blocks, each as soon as anything has come.

    Raises:
        EdgeopsError: E-NET-UNREACHABLE; the connection broke or the server fell silent. E-NET-RESPONSE; it goes on,
            but so slowly that it would hold us for ever.
    """
    received, waited_s = 0, 0.0
    while True:
        began_s = time.monotonic()
        try:
            block = response.read1(_BLOCK, decode_content=False)
        except urllib3.exceptions.HTTPError as error:
            raise _unreachable(url, error) from error
        waited_s += time.monotonic() - began_s
        if not block:
            return
        received += len(block)
        if is_too_slow(received, waited_s):
            raise EdgeopsError("E-NET-RESPONSE", f"{url}: only {received} bytes in {waited_s:.0f} s", CHECK_HINT)
        yield block


def _unreachable(url: str, error: Exception) -> EdgeopsError:
    return EdgeopsError("E-NET-UNREACHABLE", f"{url}: {error}", CHECK_HINT)
