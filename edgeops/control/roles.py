"""Further processes of a control plane that is split over one PostgreSQL: workers that ingest, and that roll out.

The process with the role `api` owns the home, the broker, the REST API and what there is one of; any number of workers
stand beside it. They keep no state and elect nobody: rows and advisory locks of the database say who does what, and end
with the connection of a worker that dies.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from edgeops import durable
from edgeops.contracts.enrolment import BrokerAddress
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.topics import SHARED_LEAVES
from edgeops.contracts.wire import Wire, decode
from edgeops.control.broker.mosquitto import WORKERS_PER_ROLE, worker_identity
from edgeops.control.broker.start import local_host
from edgeops.control.database import Database
from edgeops.control.enrolment import CONTROL_IDENTITY
from edgeops.control.fleet_trust import FleetTrust
from edgeops.control.ingest.worker import Ingest, ingest_filters
from edgeops.control.publishing import DesiredPublisher, send_commands
from edgeops.control.rollout.engine import RolloutEngine
from edgeops.transport.mqtt import MqttLink, TlsFiles

Role = Literal["all", "api", "ingest", "rollout"]
READY_NAME = "serve.json"
# Workers are not woken by other processes: they look.
LOOK_EVERY_S = 1.0
_SERVED_WITHIN_S = 30.0
_CONNECT_WITHIN_S = 20.0
_RECEIVE_MAXIMUM = 1000


class _Thread(Protocol):
    @property
    def alive(self) -> bool: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


class WorkerReady(Wire, frozen=True, kw_only=True):
    """A worker that works: its role, its identity on the broker, and its process."""

    ready: bool
    role: str
    identity: str
    pid: int


class _Served(Wire, frozen=True, kw_only=True):
    broker: BrokerAddress
    broker_kind: str


def check_role(role: Role, database: str | None) -> None:
    """Refuse a control plane that cannot be split.

    Raises:
        EdgeopsError: E-CONFIG; it needs a database that several processes share.
    """
    if role != "all" and not (database or "").startswith("postgresql"):
        raise EdgeopsError(
            "E-CONFIG",
            f"--role {role} needs PostgreSQL: SQLite serves one process",
            "Give --database postgresql+psycopg://…, or leave --role out.",
        )


class RoleWorker:
    """One worker: `start`, then `stop`; after a failed `start`, `stop` ends what was running.

    Args:
        home: The fleet's home, which a process with the role `api` serves.
        role: Which work.
        database: SQLAlchemy URL of the registry.
        host: Address that the control plane's listeners bind.
    """

    def __init__(self, home: Path, role: Literal["ingest", "rollout"], database: str, host: str) -> None:
        self._home, self._role, self._url, self._host = home.resolve(), role, database, host
        self._stack = ExitStack()
        self._threads: list[_Thread] = []

    @property
    def alive(self) -> bool:
        """Whether every part still works."""
        return all(thread.alive for thread in self._threads)

    def start(self) -> WorkerReady:
        """Take the first identity of this role that is free, connect, and work.

        Raises:
            EdgeopsError: E-CONFIG; the home is not served, or not with mosquitto, or there are too many workers of
                this role. E-TRUST-KEY. E-BROKER; the broker is not reached.
        """
        served = self._served()
        identity = self._stack.enter_context(_first_free(self._home, self._role))
        trust = FleetTrust(self._home)
        database = Database(self._url)
        self._stack.callback(database.close)
        certificate = trust.worker_identity(identity)
        tls = TlsFiles(trust.ca_file, certificate.certificate, certificate.key)
        broker = msgspec.structs.replace(served.broker, host=local_host(self._host))
        make = self._ingest if self._role == "ingest" else self._rollout
        link = make(database, trust, broker, identity, tls)
        for thread in self._threads:
            thread.start()
            self._stack.callback(thread.stop)
        link.start()
        self._stack.callback(link.stop)
        if not link.wait_connected(_CONNECT_WITHIN_S):
            raise EdgeopsError("E-BROKER", f"no connection to the broker within {_CONNECT_WITHIN_S:.0f} s")
        return WorkerReady(ready=True, role=self._role, identity=identity, pid=os.getpid())

    def stop(self) -> None:
        """End; what is not yet done is found in the registry, or with the broker, by the next."""
        self._stack.close()

    def _served(self) -> _Served:
        """Return where the broker is, once the process that owns the home serves."""
        path, deadline_s = self._home / READY_NAME, time.monotonic() + _SERVED_WITHIN_S
        while True:
            try:
                served = decode(path.read_bytes(), _Served, what=READY_NAME)
                break
            except FileNotFoundError as error:
                if time.monotonic() > deadline_s:
                    raise EdgeopsError(
                        "E-CONFIG", f"nobody serves {self._home}", "Start `edgeops serve --role api` first."
                    ) from error
                time.sleep(LOOK_EVERY_S)
        if served.broker_kind != "mosquitto":
            raise EdgeopsError("E-CONFIG", f"workers need mosquitto, not {served.broker_kind}", "Install mosquitto.")
        return served

    def _ingest(
        self, database: Database, trust: FleetTrust, broker: BrokerAddress, identity: str, tls: TlsFiles
    ) -> MqttLink:
        ingest = Ingest(database, trust.fleet, lambda: None, live_presence_only=True)
        self._threads.append(ingest)
        return MqttLink(
            broker,
            identity,
            on_message=ingest.receive,
            on_connect=lambda: ingest.new_session(kept=True),
            subscriptions=[f"$share/ingest/{topic}" for topic in ingest_filters(trust.fleet, SHARED_LEAVES)],
            tls=tls,
            receive_maximum=_RECEIVE_MAXIMUM,
            keepalive_s=60,
            manual_ack=True,
        )

    def _rollout(
        self, database: Database, trust: FleetTrust, broker: BrokerAddress, identity: str, tls: TlsFiles
    ) -> MqttLink:
        publisher = DesiredPublisher(
            database,
            trust.fleet,
            trust.sign,
            trust.sign_samples,
            trust.desired_keyid,
            lambda: link,
            look_every_s=LOOK_EVERY_S,
            send_commands=lambda link: send_commands(database, trust, link),
        )
        engine = RolloutEngine(database, publisher.wake, look_every_s=LOOK_EVERY_S)
        link = MqttLink(
            broker, identity, on_message=lambda message: None, on_connect=publisher.wake_all, tls=tls, keepalive_s=60
        )
        self._threads += [engine, publisher]
        return link


@contextmanager
def _first_free(home: Path, role: str) -> Iterator[str]:
    """Hold the first identity that no other worker has: whoever is started anew gets the session of who died.

    Raises:
        EdgeopsError: E-CONFIG; all are taken.
    """
    folder = home / "workers"
    durable.make_private_dir(folder)
    for number in range(1, WORKERS_PER_ROLE + 1):
        with (folder / f"{role}-{number}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield worker_identity(CONTROL_IDENTITY, role, number)
            return
    raise EdgeopsError("E-CONFIG", f"{WORKERS_PER_ROLE} workers with role {role} run already", "Stop one of them.")
