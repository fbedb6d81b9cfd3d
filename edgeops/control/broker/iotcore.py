"""iotcore: the pip-installable broker. It has neither client certificates nor access control: loopback only."""

from __future__ import annotations

import ipaddress
import json
import sys
from pathlib import Path

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.transport.mqtt import MAX_PACKET_BYTES


def check_loopback(host: str) -> None:
    """Refuse every address that another machine could reach.

    Raises:
        EdgeopsError: E-BROKER-ADDRESS.
    """
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise EdgeopsError(
            "E-BROKER-ADDRESS",
            f"iotcore would listen on {host} without client certificates or access control",
            "Install mosquitto, or bind a loopback address.",
        )


def configuration(host: str, port: int) -> str:
    """Return iotcore's TOML for one MQTT 5 listener.

    Raises:
        EdgeopsError: E-BROKER-ADDRESS; not a loopback address.
    """
    check_loopback(host)
    address = "127.0.0.1" if host == "localhost" else host
    return f"""\
# Written by edgeops at each start; changes are lost.
id = 0

[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10

[v5.1]
name = "v5"
listen = {json.dumps(f"[{address}]:{port}" if ":" in address else f"{address}:{port}")}
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = {2 * MAX_PACKET_BYTES}
max_inflight_count = 100
dynamic_filters = true
"""


def prepare(directory: Path, host: str, port: int) -> list[str]:
    """Write the configuration; return the command that runs the broker.

    Raises:
        EdgeopsError: E-BROKER-ADDRESS; not a loopback address. E-DISK-FULL or E-DISK-WRITE.
    """
    text = configuration(host, port)
    durable.make_private_dir(directory)
    path = directory / "iotcore.toml"
    durable.write_file(path, text.encode(), mode=0o600)
    return [sys.executable, "-P", "-m", "edgeops.control.broker.iotcore_process", str(path)]


def installed() -> bool:
    """Return whether the package is there."""
    import importlib.util

    return importlib.util.find_spec("iotcore") is not None
