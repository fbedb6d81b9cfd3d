"""Shuts a device out, at once and for good: registry, live MQTT session, artifacts, and every later connection.

mosquitto reads a new revocation list on SIGHUP and refuses new connections by it, but keeps sessions that are up. A
connection with a fresh certificate of the same name takes such a session over, since the name is the client id; the
device itself cannot come back.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cryptography import x509
from sqlalchemy import select

from edgeops import durable
from edgeops.contracts.enrolment import BrokerAddress
from edgeops.contracts.errors import EdgeopsError
from edgeops.control import audit
from edgeops.control.broker.mosquitto import CRL_NAME
from edgeops.control.database import Database
from edgeops.control.models import Device
from edgeops.transport.mqtt import MqttLink, TlsFiles
from edgeops.trust import certificates

log = logging.getLogger(__name__)

TAKE_OVER_WITHIN_S = 10.0


class Authority(Protocol):
    """What revocation needs of the fleet's CA."""

    ca_file: Path

    def revocation_list(self, revoked: dict[int, float]) -> bytes:
        """Return a signed list (PEM) of serial numbers and since when each is revoked."""

    def brief_client(self, connection: str) -> tuple[bytes, bytes]:
        """Return a certificate and key (PEM) of a device's name that hold for minutes."""


def revoke(database: Database, connection: str, *, actor: str, now_s: float) -> None:
    """Note that a device is revoked. Nothing that it says counts any more; revoking again changes nothing.

    Raises:
        EdgeopsError: E-DEVICE-UNKNOWN.
    """
    with database.write() as session:
        device = session.get(Device, connection, with_for_update=True)
        if device is None:
            raise EdgeopsError(
                "E-DEVICE-UNKNOWN", f"there is no device {connection[:80]!r}", "See `edgeops device list`."
            )
        if device.revoked_at_s is None:
            device.revoked_at_s, device.online = now_s, False
            audit.record(session, at_s=now_s, actor=actor, action="device.revoke", subject=f"device/{connection}")


def revoked_serials(database: Database) -> dict[int, float]:
    """Return the serial numbers of every revoked device's certificates, also of those it had before, and since when."""
    with database.read() as session:
        rows = session.execute(
            select(Device.certificate_pem, Device.older_certificates, Device.revoked_at_s).where(
                Device.revoked_at_s.is_not(None)
            )
        ).all()
    serials = {}
    for pem, older, at_s in rows:
        if at_s is None:
            continue
        if pem:
            serials[certificates.read(pem.encode(), what="device certificate").serial_number] = at_s
        serials |= {int(fact["serial"], 16): at_s for fact in older}
    return serials


class Gatekeeper:
    """Keeps revoked devices out of the broker and away from the artifacts.

    Args:
        database: The registry.
        authority: The fleet's CA.
        broker: Where mosquitto listens, as this machine reaches it; None: a broker without certificates.
        directory: Folder of mosquitto's files.
        broker_pid: Returns mosquitto's process now.
    """

    def __init__(
        self,
        database: Database,
        authority: Authority,
        broker: BrokerAddress | None,
        directory: Path,
        broker_pid: Callable[[], int | None],
    ) -> None:
        self._database, self._authority, self._broker = database, authority, broker
        self._directory, self._broker_pid = directory, broker_pid
        self._lock = threading.Lock()
        self._names = self._revoked_names()

    def is_revoked(self, connection: str) -> bool:
        """Whether a device is shut out; asked at every request of it."""
        return connection in self._names

    def shut_out(self, connection: str) -> None:
        """Carry a revocation out: artifacts first, then new connections to the broker, then the session that is up.

        Raises:
            EdgeopsError: E-BROKER; the session could not be taken over: the device may still be connected. It is
                refused at its next connection, and nothing that it says counts.
        """
        with self._lock:
            self._names = self._revoked_names()
            if self._broker is None:
                return
            self._write_list()
            pid = self._broker_pid()
            if pid is not None:
                os.kill(pid, signal.SIGHUP)
            self._take_over(connection)

    def _revoked_names(self) -> frozenset[str]:
        with self._database.read() as session:
            return frozenset(session.scalars(select(Device.connection).where(Device.revoked_at_s.is_not(None))))

    def _write_list(self) -> None:
        path = self._directory / CRL_NAME
        owner = path.stat()
        crl = self._authority.revocation_list(revoked_serials(self._database))
        # mosquitto lets everyone in where it cannot read its list: never give it one that is not whole.
        x509.load_pem_x509_crl(crl)
        durable.write_file(path, crl, mode=0o644)
        if os.geteuid() == 0:
            os.chown(path, owner.st_uid, owner.st_gid)

    def _take_over(self, connection: str) -> None:
        assert self._broker is not None
        certificate, key = self._authority.brief_client(connection)
        with tempfile.TemporaryDirectory(prefix="edgeops-revoke-") as name:
            folder = Path(name)
            durable.write_file(folder / "key.pem", key, mode=0o600)
            durable.write_file(folder / "certificate.pem", certificate)
            files = TlsFiles(self._authority.ca_file, folder / "certificate.pem", folder / "key.pem")
            link = MqttLink(
                self._broker, connection, on_message=lambda _: None, tls=files, session_expiry_s=0, keepalive_s=10
            )
            link.start()
            try:
                if not link.wait_connected(TAKE_OVER_WITHIN_S):
                    raise EdgeopsError(
                        "E-BROKER",
                        f"{connection} is revoked, but its live session could not be ended",
                        "Restart the control plane: no revoked device can connect again.",
                    )
            finally:
                link.stop()
        log.info("%s was shut out at %s", connection, time.strftime("%H:%M:%S"))
