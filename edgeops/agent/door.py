"""Who may ask a device's models over HTTP: anyone on the device; from elsewhere with a token or certificate, by TLS."""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeops.contracts.errors import EdgeopsError
from edgeops.transport import unix

if TYPE_CHECKING:
    # What `agent.toml` may say is much more than a worker has to hold.
    from edgeops.agent.settings import ServingRules

MIN_TOKEN_CHARACTERS = 20


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker asks of its HTTP clients.

    Args:
        token_sha256: Of the bearer token that each request must carry; empty: none.
        certificate: PEM file of the server's chain; empty: no TLS.
        key: PEM file of its key.
        client_ca: PEM file of the CAs that clients' certificates must come from; empty: clients need none.
    """

    token_sha256: bytes = b""
    certificate: str = ""
    key: str = ""
    client_ca: str = ""

    def context(self) -> ssl.SSLContext | None:
        """Return TLS settings; None: no TLS.

        Raises:
            EdgeopsError: E-CONFIG; a file is missing, unreadable or no certificate or key.
        """
        if not self.certificate:
            return None
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            raise EdgeopsError("E-CONFIG", f"[serving] {self.certificate}: {error}", "Correct agent.toml.") from error
        return context


def door_for(rules: ServingRules) -> Door:
    """Return what is asked of clients where models are served.

    Raises:
        EdgeopsError: E-CONFIG; an address that is none; one that others reach, without TLS and a token or CA; files
            that do not go together or cannot be read; a token that can be guessed, or that others can read.
    """
    try:
        address = ipaddress.ip_address(rules.address)
    except ValueError as error:
        raise _wrong(f"address: {error}", "Give an IP address, as 127.0.0.1.") from error
    if bool(rules.certificate) != bool(rules.key):
        raise _wrong("certificate and key go together", "Give both, or neither.")
    if rules.client_ca and not rules.certificate:
        raise _wrong("client_ca is for TLS", "Give certificate and key too.")
    if not address.is_loopback and not (rules.certificate and (rules.token_file or rules.client_ca)):
        raise _wrong(
            f"{address} can be reached from elsewhere, and anyone could ask",
            "Give certificate and key, and token_file or client_ca; or serve on 127.0.0.1.",
        )
    made = Door(
        token_sha256=_token(Path(rules.token_file)) if rules.token_file else b"",
        certificate=rules.certificate or "",
        key=rules.key or "",
        client_ca=rules.client_ca or "",
    )
    made.context()
    return made


def listen(address: str, ports: list[int], *, backlog: int) -> socket.socket:
    """Listen on the first port of an address that is free.

    Raises:
        EdgeopsError: E-CONFIG; none of the ports is free.
    """
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    problem: OSError | None = None
    for port in ports:
        try:
            listener = socket.create_server((address, port), family=family, backlog=backlog)
        except OSError as error:
            problem = error
            continue
        listener.setblocking(False)
        return listener
    raise EdgeopsError("E-CONFIG", f"ports {ports} of {address}: {problem}", "Choose a free port.")


def listen_both(
    rules: ServingRules, ports: list[int], socket_path: Path, backlog: int
) -> tuple[socket.socket, socket.socket, Path]:
    """Listen for HTTP and for frames; return both, and where the second one is.

    Raises:
        EdgeopsError: E-CONFIG; none of the ports is free, or no socket can be made.
    """
    http = listen(rules.address, ports, backlog=backlog)
    try:
        lines, where = unix.listen_or_elsewhere(socket_path, backlog=backlog)
    except EdgeopsError:
        http.close()
        raise
    lines.setblocking(False)
    return http, lines, where


def url(rules: ServingRules, port: int) -> str:
    """Return the address for clients on this device."""
    address = ipaddress.ip_address(rules.address)
    if address.is_unspecified:
        address = ipaddress.ip_address("::1" if address.version == 6 else "127.0.0.1")
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"{'https' if rules.certificate else 'http'}://{host}:{port}"


def _token(path: Path) -> bytes:
    try:
        token, mode = path.read_text(encoding="ascii").strip(), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(f"token_file {path}: {error}", "Write a token there, as of `openssl rand -hex 32`.") from error
    if mode & 0o007:
        raise _wrong(f"token_file {path}: every user of the device can read it", f"chmod o= {path}")
    if len(token) < MIN_TOKEN_CHARACTERS:
        what = f"token_file {path}: {len(token)} characters can be guessed"
        raise _wrong(what, f"Take {MIN_TOKEN_CHARACTERS} or more, as of `openssl rand -hex 32`.")
    return hashlib.sha256(token.encode()).digest()


def _wrong(what: str, next_step: str) -> EdgeopsError:
    return EdgeopsError("E-CONFIG", f"[serving] {what}", next_step)
