"""A real HTTPS server that cuts connections, lies and forgets, as told request by request."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from edgeops.trust.authority import FleetAuthority

Behaviour = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request; behaviours answer it."""

    protocol_version = "HTTP/1.1"
    server: MisbehavingServer  # type: ignore[assignment]

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        script = self.server.script
        behave = script.pop(0) if len(script) > 1 else script[0]
        behave(self)

    def start(self) -> int:
        value = self.headers.get("Range")
        return int(value.removeprefix("bytes=").rstrip("-")) if value else 0

    def head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class MisbehavingServer(ThreadingHTTPServer):
    """Serves `content`; the last behaviour of `script` stays."""

    daemon_threads = True

    def __init__(self, content: bytes, script: list[Behaviour]) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.content, self.script = content, script
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_address[1]}/file"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that goes away is what these tests do


@contextmanager
def serving(
    content: bytes, script: list[Behaviour], authority: FleetAuthority, folder: Path
) -> Iterator[MisbehavingServer]:
    """Run a server with a certificate of the fleet's CA."""
    certificate, key = authority.issue_server(["127.0.0.1"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server.pem").write_bytes(certificate)
    (folder / "server.key").write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    server = MisbehavingServer(content, script)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def well(request: Request) -> None:
    """As HTTP says, ranges included."""
    content, start = request.server.content, request.start()
    if start >= len(content):
        request.head(416, 0, Content_Range=f"bytes */{len(content)}")
    elif start:
        request.head(206, len(content) - start, Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.wfile.write(content[start:])
    else:
        request.head(200, len(content))
        request.wfile.write(content)


def cut_after(count: int) -> Behaviour:
    """Close the connection after so many bytes of the body."""

    def behave(request: Request) -> None:
        content, start = request.server.content, request.start()
        if start:
            request.head(206, len(content) - start, Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            request.head(200, len(content))
        request.wfile.write(content[start : start + count])
        request.wfile.flush()
        request.close_connection = True
        request.connection.close()

    return behave


def ignore_range(request: Request) -> None:
    """Answer with everything, whatever was asked for."""
    request.head(200, len(request.server.content))
    request.wfile.write(request.server.content)


def changed_byte(request: Request) -> None:
    """The right length, one wrong byte."""
    content = bytearray(request.server.content)
    content[len(content) // 2] ^= 1
    request.head(200, len(content))
    request.wfile.write(content)


def longer(request: Request) -> None:
    """More than was signed."""
    request.head(200, len(request.server.content) + 1000)
    request.wfile.write(request.server.content + b"x" * 1000)


def shorter(request: Request) -> None:
    """Less, with a Content-Length that agrees."""
    request.head(200, 10)
    request.wfile.write(request.server.content[:10])


def wrong_range(request: Request) -> None:
    """206, but from the start."""
    content = request.server.content
    request.head(206, len(content), Content_Range=f"bytes 0-{len(content) - 1}/{len(content)}")
    request.wfile.write(content)


def status(code: int) -> Behaviour:
    """Only a status."""
    return lambda request: request.head(code, 0)


def drip(request: Request) -> None:
    """Right, but a few bytes at a time, and never silent for long."""
    content, start = request.server.content, request.start()
    if start:
        request.head(206, len(content) - start, Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}")
    else:
        request.head(200, len(content))
    with contextlib.suppress(OSError):
        for position in range(start, len(content), 10):
            request.wfile.write(content[position : position + 10])
            request.wfile.flush()
            time.sleep(0.01)


def drip_head(request: Request) -> None:
    """An answer that never begins, and is never silent for long."""
    with contextlib.suppress(OSError):
        request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while True:
            request.wfile.write(b"x")
            request.wfile.flush()
            time.sleep(0.01)
