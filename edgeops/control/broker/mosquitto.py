"""mosquitto: its generated configuration, access control and files. Every device is held to its own topics."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

from edgeops import durable
from edgeops.contracts.topics import DOWN_LEAVES, PREFIX, UP_LEAVES
from edgeops.control.broker.child import RunAs
from edgeops.transport.mqtt import MAX_PACKET_BYTES

_EXTRA_DIRS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
_SYSTEM_USER = "mosquitto"
CRL_NAME = "crl.pem"
MAX_KEEPALIVE_S = 600


# A control plane may be split: so many workers of each role have identities of their own.
WORKER_ROLES, WORKERS_PER_ROLE = ("ingest", "rollout"), 16


def find_program() -> str | None:
    """Return the path of mosquitto, also where it lies outside an ordinary user's PATH; None if not installed."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(_EXTRA_DIRS))


def worker_identity(control_identity: str, role: str, number: int) -> str:
    """Return what a worker of a control plane is called on the broker."""
    return f"{control_identity}.{role}-{number}"


def access_rules(fleet: str, control_identity: str) -> str:
    """Return the ACL file: the control plane and its workers have all topics of the fleet, a device only its own, each
    way apart.

    `%u` is the common name of the client's certificate. One `readwrite` line for a device would let it overwrite its
    own desired state.
    """
    own = f"{PREFIX}/{fleet}/d/%u"
    lines = []
    numbers = range(1, WORKERS_PER_ROLE + 1)
    workers = [worker_identity(control_identity, role, number) for role in WORKER_ROLES for number in numbers]
    for identity in (control_identity, *workers):
        lines += [f"user {identity}", f"topic readwrite {PREFIX}/{fleet}/d/#", ""]
    lines += [f"pattern read {own}/+/{leaf}" + ("/+" if leaf == "cmd" else "") for leaf in DOWN_LEAVES]
    lines += [f"pattern write {own}/+/{leaf}" + ("/+" if leaf == "res" else "") for leaf in UP_LEAVES]
    lines.append(f"pattern write {own}/presence")
    return "\n".join(lines) + "\n"


def configuration(host: str, port: int, user: str) -> str:
    """Return mosquitto.conf for one TLS listener. Files are named relative to the folder that mosquitto is started in.

    Args:
        host: Address to bind.
        port: Port to bind.
        user: User that mosquitto is started as: it must not change to another.
    """
    return f"""\
# Written by edgeops at each start; changes are lost.
listener {port} {host}
cafile ca.pem
certfile server.pem
keyfile server.key
crlfile {CRL_NAME}
tls_version tlsv1.2
require_certificate true
# A client is who its certificate says, also as client id: no certificate can take over another's session.
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
acl_file acl
user {user}

persistence true
persistence_location data/
autosave_interval 30

# The defaults drop QoS 1 messages under fan-in although publishers were acknowledged.
max_inflight_messages 1000
max_queued_messages 200000
max_packet_size {MAX_PACKET_BYTES}
# What no client of edgeops does, no other does either: have messages kept for four steps, be silent for hours.
max_qos 1
max_keepalive {MAX_KEEPALIVE_S}
queue_qos0_messages false
set_tcp_nodelay true
sys_interval 0
connection_messages false
log_dest stderr
log_type error
log_type warning
log_type notice
"""


def prepare(
    directory: Path,
    *,
    fleet: str,
    control_identity: str,
    host: str,
    port: int,
    ca_pem: bytes,
    server_pem: bytes,
    server_key_pem: bytes,
    crl_pem: bytes,
) -> tuple[Path, RunAs | None]:
    """Write everything that mosquitto reads.

    Started by root, mosquitto does not run as root: its files are given to the system's user `mosquitto`, and it is
    started as that user in their folder, which it could not reach by its path where the fleet's home is private.

    Returns:
        The configuration file, and the user to start mosquitto as (None: this process's own).

    Raises:
        EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
    """
    directory = directory.resolve()
    durable.make_private_dir(directory)
    durable.make_private_dir(directory / "data")
    run_as = _unprivileged()
    user = _SYSTEM_USER if run_as else pwd.getpwuid(os.geteuid()).pw_name
    durable.write_file(directory / "ca.pem", ca_pem, mode=0o600)
    durable.write_file(directory / CRL_NAME, crl_pem)
    durable.write_file(directory / "server.pem", server_pem, mode=0o600)
    durable.write_file(directory / "server.key", server_key_pem, mode=0o600)
    durable.write_file(directory / "acl", access_rules(fleet, control_identity).encode(), mode=0o600)
    path = directory / "mosquitto.conf"
    durable.write_file(path, configuration(host, port, user).encode(), mode=0o600)
    owner = run_as or RunAs(os.geteuid(), os.getegid())
    if os.geteuid() == 0:
        for file in (directory, *directory.rglob("*")):
            os.chown(file, owner.uid, owner.gid, follow_symlinks=False)
    return path, run_as


def replace_server_pair(directory: Path, server_pem: bytes, server_key_pem: bytes) -> None:
    """Write another server certificate and key for mosquitto to read on SIGHUP, for the user it runs as.

    Raises:
        EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
    """
    for name, data in (("server.key", server_key_pem), ("server.pem", server_pem)):
        owner = (directory / name).stat()
        durable.write_file(directory / name, data, mode=0o600)
        if os.geteuid() == 0:
            os.chown(directory / name, owner.st_uid, owner.st_gid)


def _unprivileged() -> RunAs | None:
    """Return the system's mosquitto user, if this is root and there is one."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        return None
    return RunAs(entry.pw_uid, entry.pw_gid)
