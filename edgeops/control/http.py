"""The HTTPS listeners: both in one event loop on a thread of their own, on sockets that were bound before."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import socket
import ssl
import threading
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn

from edgeops.contracts.errors import EdgeopsError
from edgeops.control.connections import BoundedProtocol, Listening, room

log = logging.getLogger(__name__)

START_WITHIN_S = 20.0
GRACE_S = 1
RELOAD_WITHIN_S = 30.0
IDLE_S = 30
BACKLOG = 2048


class Listener(NamedTuple):
    """One HTTPS listener.

    Args:
        app: The ASGI app.
        bound: Its socket.
        client_ca: If given, only clients with a certificate of this CA come in.
        lifespan: Whether the app is to be told when it begins and ends.
    """

    app: Any
    bound: Listening
    client_ca: Path | None = None
    lifespan: bool = False


def bind(host: str, port: int, *, most: int | None = None, open_to: int | None = None) -> Listening:
    """Bind a TCP socket; port 0: a free one.

    Args:
        host: Its address.
        port: Its port.
        most: How many connections it may have; None: as many as a listener has unless somebody says otherwise.
        open_to: How many connections one address may have; None: as many as there may be.

    Raises:
        EdgeopsError: E-CONFIG; the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = Listening(family, most or room(), open_to)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise EdgeopsError("E-CONFIG", f"cannot listen on {host}:{port}: {error}", "Choose another port.") from error
    return bound


class _WithPeer(BoundedProtocol):
    """Tells apps who a client is by its certificate: `scope["edgeops.peer"]` is the common name, None without one."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        certificate = (tls.getpeercert() or {}) if tls is not None else {}
        names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
        self._peer = names[0] if len(names) == 1 else None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["edgeops.peer"] = self._peer  # type: ignore[typeddict-unknown-key]

    def shutdown(self) -> None:
        """End the connection once its answer is out; at once if it has nothing under way.

        TLS would wait for the client's goodbye, and one that keeps the connection for later gives none.
        """
        idle = self.cycle is None or self.cycle.response_complete
        super().shutdown()
        if idle and self.transport.get_write_buffer_size() == 0:
            self.transport.abort()


class HttpServers:
    """Serves listeners until stopped.

    Args:
        listeners: What to serve.
        certificate: PEM file of the server's certificate.
        key: PEM file of its key.
    """

    def __init__(self, listeners: list[Listener], certificate: Path, key: Path) -> None:
        self._sockets = [listener.bound for listener in listeners]
        self._servers = [uvicorn.Server(_config(listener, certificate, key)) for listener in listeners]
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Begin to serve; returns when both accept requests.

        Raises:
            EdgeopsError: E-CONFIG; the TLS files cannot be used. E-INTERNAL; it did not start in time.
        """
        self._thread.start()
        waited = threading.Event()
        for _ in range(int(START_WITHIN_S / 0.02)):
            if all(server.started for server in self._servers):
                return
            if not self._thread.is_alive():
                raise EdgeopsError("E-CONFIG", f"HTTPS could not start: {self._failure}")
            waited.wait(0.02)
        raise EdgeopsError("E-INTERNAL", f"HTTPS did not start within {START_WITHIN_S:.0f} s")

    @property
    def alive(self) -> bool:
        """Whether it serves."""
        return self._thread.is_alive()

    def reload_certificate(self, certificate: Path, key: Path) -> None:
        """Use a new server certificate for connections from now on."""
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def load() -> None:
            try:
                for server in self._servers:
                    context = server.config.ssl
                    assert isinstance(context, ssl.SSLContext)
                    context.load_cert_chain(certificate, key)
            except (OSError, ValueError) as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        # Where connections begin: between two of them, none finds the new certificate with its key still to come.
        if self._loop is not None and self.alive:
            try:
                self._loop.call_soon_threadsafe(load)
                done.result(RELOAD_WITHIN_S)
            except (RuntimeError, concurrent.futures.TimeoutError):
                log.warning("HTTPS ends, or stands still: the new certificate is for the next start")
        else:
            load()

    def stop(self) -> None:
        """Finish the requests at hand, then end."""
        for server in self._servers:
            server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(GRACE_S + 5)
        for bound in self._sockets:
            bound.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except (OSError, ssl.SSLError, ValueError) as error:
            self._failure = error
            log.error("HTTPS ended: %s", error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await asyncio.gather(
            *(server.serve(sockets=[bound]) for server, bound in zip(self._servers, self._sockets, strict=True))
        )


def _config(listener: Listener, certificate: Path, key: Path) -> uvicorn.Config:
    config = uvicorn.Config(
        listener.app,
        # uvicorn calls it as the class that it is of.
        http=functools.partial(_WithPeer, most_open=listener.bound.most),  # type: ignore[arg-type]
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
        ssl_ca_certs=str(listener.client_ca) if listener.client_ca is not None else None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if listener.client_ca is not None else ssl.CERT_NONE,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on" if listener.lifespan else "off",
        backlog=BACKLOG,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    config.load()
    assert isinstance(config.ssl, ssl.SSLContext)
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return config
