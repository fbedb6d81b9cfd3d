"""Chooses a broker, writes its files and starts it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from edgeops.contracts.enrolment import BrokerAddress
from edgeops.contracts.errors import EdgeopsError
from edgeops.control.broker import iotcore, mosquitto
from edgeops.control.broker.child import RunAs, SupervisedChild

log = logging.getLogger(__name__)

BrokerKind = Literal["auto", "mosquitto", "iotcore"]
_ATTEMPTS = 3


class BrokerTls(NamedTuple):
    """What mosquitto's listener needs: PEM texts. `crl_pem`: the CA's list of revoked certificates."""

    ca_pem: bytes
    server_pem: bytes
    server_key_pem: bytes
    crl_pem: bytes


class RunningBroker(NamedTuple):
    """A broker that accepts connections."""

    kind: str
    address: BrokerAddress
    child: SupervisedChild


def choose(kind: BrokerKind) -> Literal["mosquitto", "iotcore"]:
    """Return which broker to use: for `auto`, mosquitto where it is installed.

    Raises:
        EdgeopsError: E-DEPENDENCY; the broker that was asked for, or any for `auto`, is not installed.
    """
    if kind in ("auto", "mosquitto") and mosquitto.find_program() is not None:
        return "mosquitto"
    if kind == "mosquitto":
        raise EdgeopsError("E-DEPENDENCY", "mosquitto is not installed", "Install it: apt install mosquitto.")
    if not iotcore.installed():
        raise EdgeopsError(
            "E-DEPENDENCY", "no MQTT broker is installed", "apt install mosquitto, or pip install iotcore."
        )
    return "iotcore"


def start_broker(
    kind: BrokerKind,
    directory: Path,
    *,
    fleet: str,
    control_identity: str,
    bind_host: str,
    advertised_host: str,
    port: int,
    tls: BrokerTls,
    on_death: Callable[[], None] = lambda: None,
) -> RunningBroker:
    """Start a broker and wait until it accepts connections.

    Args:
        kind: Which one.
        directory: Where its files go.
        fleet: The fleet, for the access rules.
        control_identity: Common name of the control plane's own certificate.
        bind_host: Address to listen on.
        advertised_host: Name by which devices reach it.
        port: Port; 0: a free one.
        tls: Certificates of the TLS listener; iotcore has none.
        on_death: Called when it ended by itself, before it is started again.

    Raises:
        EdgeopsError: E-DEPENDENCY, E-BROKER-ADDRESS, E-BROKER, E-DISK-FULL or E-DISK-WRITE.
    """
    chosen = choose(kind)
    for attempt in range(_ATTEMPTS):
        if port and not is_free(bind_host, port):
            raise EdgeopsError(
                "E-BROKER", f"port {port} on {bind_host} is taken", "Stop what uses it, or give another."
            )
        use_port = port or free_port(bind_host)
        run_as: RunAs | None = None
        if chosen == "mosquitto":
            program = mosquitto.find_program()
            assert program is not None
            config, run_as = mosquitto.prepare(
                directory,
                fleet=fleet,
                control_identity=control_identity,
                host=bind_host,
                port=use_port,
                ca_pem=tls.ca_pem,
                server_pem=tls.server_pem,
                server_key_pem=tls.server_key_pem,
                crl_pem=tls.crl_pem,
            )
            command = [program, "-c", config.name]
        else:
            command = iotcore.prepare(directory, bind_host, use_port)
        child = SupervisedChild(chosen, command, local_host(bind_host), use_port, directory, run_as, on_death)
        try:
            child.start()
        except EdgeopsError:
            # Between choosing a free port and binding it, another program may have taken it.
            if port or attempt == _ATTEMPTS - 1:
                raise
            continue
        log.info("%s listens on %s:%d", chosen, bind_host, use_port)
        address = BrokerAddress(host=advertised_host, port=use_port, tls=chosen == "mosquitto")
        return RunningBroker(chosen, address, child)
    raise AssertionError("the last attempt raises or returns")


def local_host(bind_host: str) -> str:
    """Return where this machine itself reaches a listener."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind_host, bind_host)  # noqa: S104  compared, not bound


def free_port(host: str) -> int:
    """Return a TCP port that nothing listens on now."""
    with _probe(host) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def is_free(host: str, port: int) -> bool:
    """Return whether nothing listens on a TCP port; a connection that lingers there does not count."""
    with _probe(host) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _probe(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
