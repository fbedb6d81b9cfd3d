"""The control plane's own certificates, renewed while it serves: no connection ends for it."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from edgeops.control.broker import mosquitto
from edgeops.control.fleet_trust import FleetTrust
from edgeops.control.http import HttpServers
from edgeops.transport.mqtt import MqttLink, TlsFiles
from edgeops.trust import certificates
from edgeops.trust.authority import SERVER_VALID_S

log = logging.getLogger(__name__)

# Both are issued together, at each start too.
RENEW_BEFORE_S = SERVER_VALID_S / 3


class Users(NamedTuple):
    """Who shows the certificates.

    Args:
        https: The listeners for people and devices.
        link: The control plane's own connection to the broker.
        broker_directory: mosquitto's files; None: a broker without certificates.
        broker_pid: Returns mosquitto's process now.
    """

    https: HttpServers
    link: MqttLink
    broker_directory: Path | None
    broker_pid: Callable[[], int | None]


class OwnCertificates:
    """Looks after the server certificate and the control plane's own as a client.

    Args:
        trust: The fleet's CA.
        hosts: Names and addresses of the server certificate.
        certificate: The server certificate in use.
        users: Who shows them.
    """

    def __init__(self, trust: FleetTrust, hosts: Sequence[str], certificate: Path, users: Users) -> None:
        self._trust, self._hosts, self._users = trust, list(hosts), users
        self._until_s = certificates.validity(certificate.read_bytes()).not_after_s

    def keep_up(self) -> None:
        """Renew them if they end before long.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE; those in use go on.
        """
        if self._until_s - time.time() > RENEW_BEFORE_S:
            return
        server, client, users = self._trust.server_identity(self._hosts), self._trust.control_identity(), self._users
        users.https.reload_certificate(server.certificate, server.key)
        if users.broker_directory is not None:
            mosquitto.replace_server_pair(
                users.broker_directory, server.certificate.read_bytes(), server.key.read_bytes()
            )
            # Only once both lie there: one of each would have the broker refuse all that connect.
            pid = users.broker_pid()
            if pid is not None:
                os.kill(pid, signal.SIGHUP)
        users.link.show(TlsFiles(self._trust.ca_file, client.certificate, client.key))
        self._until_s = certificates.validity(server.certificate.read_bytes()).not_after_s
        log.info("the control plane's certificates are renewed; they hold for %.0f days", self._days())

    def _days(self) -> float:
        return (self._until_s - time.time()) / 86400
