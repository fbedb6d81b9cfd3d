"""The whole control plane as one process: broker, ingest, rollouts, publication, REST API and artifacts."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeops import durable
from edgeops.__about__ import __version__
from edgeops.contracts.enrolment import BrokerAddress
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.topics import SHARED_LEAVES
from edgeops.contracts.wire import Wire, decode, encode
from edgeops.control.access import Doorkeeper
from edgeops.control.addresses import check_addresses
from edgeops.control.api.app import api_app
from edgeops.control.api.artifacts import artifacts_app
from edgeops.control.api.base import ControlApi
from edgeops.control.api.limits import REQUESTS_PER_S
from edgeops.control.api.resources import BrokerHealth, Health
from edgeops.control.backup import DATABASE_NAME
from edgeops.control.broker.start import BrokerKind, BrokerTls, RunningBroker, is_free, local_host, start_broker
from edgeops.control.connections import MAX_OPEN, MAX_OPEN_PER_ADDRESS, Listening, room
from edgeops.control.database import Database
from edgeops.control.enrolment import CONTROL_IDENTITY, FirstTrust
from edgeops.control.fleet_trust import FleetTrust, Identity
from edgeops.control.http import HttpServers, Listener, bind
from edgeops.control.ingest.worker import TAKEN, Ingest, ingest_filters, nobody_is_online
from edgeops.control.monitoring.metrics import FleetCollector, exposition
from edgeops.control.monitoring.webhooks import Watchman, read_config
from edgeops.control.own_certificates import OwnCertificates, Users
from edgeops.control.publishing import DesiredPublisher, send_commands
from edgeops.control.retention import prune
from edgeops.control.revocation import Gatekeeper, revoked_serials
from edgeops.control.roles import READY_NAME, Role, RoleWorker, check_role
from edgeops.control.rollout.engine import RolloutEngine
from edgeops.transport.mqtt import SESSION_WITHOUT_END_S, MqttLink, TlsFiles

log = logging.getLogger(__name__)

TOKEN_NAME = "api.token"  # noqa: S105  a file's name
PORTS_NAME = "ports.json"
RECEIVE_MAXIMUM = 1000
UPKEEP_EVERY_S = 3600.0
CONNECT_WITHIN_S = 20.0
WATCH_EVERY_S = 0.5


class Ready(Wire, frozen=True, kw_only=True):
    """Where a control plane that is ready serves."""

    ready: bool
    api: str
    artifacts: str
    broker: BrokerAddress
    broker_kind: str
    broker_pid: int | None
    fleet: str
    pid: int


class _Ports(Wire, frozen=True, kw_only=True):
    """The ports of the last time: devices keep the addresses that they were given when they joined."""

    api: int = 0
    artifacts: int = 0
    broker: int = 0


class ServeOptions(NamedTuple):
    """How to serve.

    Args:
        home: The fleet's home.
        host: Address that all listeners bind.
        advertise: Name or address by which devices reach this machine; None: `host`.
        port: Port of the REST API; 0: the one of the last time, or a free one.
        broker: Which broker.
        database: SQLAlchemy URL of the registry; None: an SQLite file in the home.
        approval: No rollout starts that a second person has not approved.
        web: Serve the web page beside the REST API.
        requests_per_s: How many requests an API token may make each second, in the long run.
        role: `all`, or one part of a control plane that is split over one PostgreSQL; see `roles`.
        rigs: Every rollout that is made waits for these rigs.
        connections: How many connections each listener may have open, where the system's files are enough for them.
        connections_per_address: How many of those of the REST API may be of one address.
    """

    home: Path
    host: str = "127.0.0.1"
    advertise: str | None = None
    port: int = 0
    broker: BrokerKind = "auto"
    database: str | None = None
    approval: bool = False
    role: Role = "all"
    web: bool = False
    requests_per_s: float = REQUESTS_PER_S
    rigs: tuple[str, ...] = ()
    connections: int = MAX_OPEN
    connections_per_address: int = MAX_OPEN_PER_ADDRESS


class ControlPlane:
    """All parts of a control plane. `start`, then `stop`; after a failed `start`, `stop` ends what was running.

    Args:
        options: How to serve.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._home = options.home.resolve()
        self._advertised = options.advertise or options.host
        self._stack = ExitStack()
        self._trust: FleetTrust
        self._database: Database
        self._broker: RunningBroker
        self._link: MqttLink
        self._ingest: Ingest
        self._engine: RolloutEngine | None = None
        self._publisher: DesiredPublisher | None = None
        self._http: HttpServers
        self._upkeep: Upkeep
        self._watchman: Watchman
        self._gatekeeper: Gatekeeper
        self._collector: FleetCollector

    def start(self) -> Ready:
        """Start every part and wait until all serve.

        Raises:
            EdgeopsError: E-CONFIG or E-TRUST-KEY; the home is not set up. E-STATE-LOCKED; another control plane serves
                it. E-BROKER, E-BROKER-ADDRESS, E-DEPENDENCY; the broker cannot be started.
        """
        home, options, stack = self._home, self._options, self._stack
        if not home.is_dir():
            raise EdgeopsError("E-CONFIG", f"there is no fleet home {home}", "Make one: `edgeops trust init`.")
        stack.enter_context(_lock(home))
        (home / READY_NAME).unlink(missing_ok=True)
        self._trust = FleetTrust(home)
        self._database = Database(options.database or home / DATABASE_NAME)
        stack.callback(self._database.close)
        self._database.migrate()

        last = _last_ports(home)
        most = room(options.connections)
        if most < options.connections:
            log.warning("%d connections a listener: the system allows no more files (ulimit -n)", most)
        api_socket = _bind_again(options.host, options.port, last.api, most, options.connections_per_address)
        stack.callback(api_socket.close)
        artifacts_socket = _bind_again(options.host, 0, last.artifacts, most, None)
        stack.callback(artifacts_socket.close)
        hosts = sorted({self._advertised, options.host, "localhost", "127.0.0.1"})
        server = self._trust.server_identity(hosts)
        self._nobody_is_online()
        self._broker = self._start_broker(server, last.broker)
        stack.callback(self._broker.child.stop)
        ports = _Ports(
            api=api_socket.getsockname()[1],
            artifacts=artifacts_socket.getsockname()[1],
            broker=self._broker.address.port,
        )
        durable.write_file(home / PORTS_NAME, encode(ports))

        with_certificates = self._broker.kind == "mosquitto"
        self._gatekeeper = Gatekeeper(
            self._database,
            self._trust,
            self._broker_here() if with_certificates else None,
            home / "broker",
            lambda: self._broker.child.pid,
        )
        self._start_workers()
        ready = Ready(
            ready=True,
            api=f"https://{_in_url(self._advertised)}:{ports.api}",
            artifacts=f"https://{_in_url(self._advertised)}:{ports.artifacts}",
            broker=self._broker.address,
            broker_kind=self._broker.kind,
            broker_pid=self._broker.child.pid,
            fleet=self._trust.fleet,
            pid=os.getpid(),
        )
        apps = [
            self._api_listener(self._control_api(ready), api_socket),
            Listener(
                artifacts_app(home / "repository", self._gatekeeper.is_revoked), artifacts_socket, self._trust.ca_file
            ),
        ]
        self._http = HttpServers(apps, server.certificate, server.key)
        stack.callback(self._http.stop)
        self._http.start()
        users = Users(
            self._http, self._link, home / "broker" if with_certificates else None, lambda: self._broker.child.pid
        )
        own = OwnCertificates(self._trust, hosts, server.certificate, users)
        self._upkeep = Upkeep(self._trust, self._database, own)
        self._upkeep.start()
        stack.callback(self._upkeep.stop)
        durable.write_file(home / READY_NAME, encode(ready))
        stack.callback((home / READY_NAME).unlink, missing_ok=True)
        return ready

    def stop(self) -> None:
        """End every part, the last started first; what is not yet done is found in the registry at the next start."""
        self._stack.close()

    @property
    def alive(self) -> bool:
        """Whether every part still works; if not, the process should end and be started anew."""
        workers = (self._ingest, self._engine, self._publisher, self._http, self._upkeep, self._watchman)
        return all(worker.alive for worker in workers if worker is not None)

    def _start_broker(self, server: Identity, port: int) -> RunningBroker:
        return start_broker(
            self._options.broker,
            self._home / "broker",
            fleet=self._trust.fleet,
            control_identity=CONTROL_IDENTITY,
            bind_host=self._options.host,
            advertised_host=self._advertised,
            port=port if port and is_free(self._options.host, port) else 0,
            tls=BrokerTls(
                self._trust.ca_pem,
                server.certificate.read_bytes(),
                server.key.read_bytes(),
                self._trust.revocation_list(revoked_serials(self._database)),
            ),
            on_death=self._nobody_is_online,
        )

    def _nobody_is_online(self) -> None:
        """Note that the broker begins anew: who is connected will say so."""
        try:
            nobody_is_online(self._database, time.time())
        except EdgeopsError as error:
            log.error("who is online could not be reset: %s", error)

    def _start_workers(self) -> None:
        stack, trust = self._stack, self._trust
        leaves: Sequence[str] = TAKEN
        if self._options.role == "all":
            self._publisher = DesiredPublisher(
                self._database,
                trust.fleet,
                trust.sign,
                trust.sign_samples,
                trust.desired_keyid,
                lambda: self._link,
                send_commands=lambda link: send_commands(self._database, trust, link),
            )
            self._engine = RolloutEngine(self._database, self._publisher.wake)
        else:
            leaves = [leaf for leaf in TAKEN if leaf not in SHARED_LEAVES]
        persistent = self._broker.kind == "mosquitto"
        self._ingest = Ingest(
            self._database, trust.fleet, self._on_commit, live_presence_only=persistent, rig_keys=trust.rig_keys
        )
        self._watchman = Watchman(self._database, *read_config(self._home))
        self._collector = FleetCollector(
            self._database,
            lambda: (self._ingest.accepted, self._ingest.refused),
            lambda: self._link.connected,
            time.time,
        )
        identity = trust.control_identity()
        address = self._broker_here()
        self._link = MqttLink(
            address,
            CONTROL_IDENTITY,
            on_message=self._ingest.receive,
            on_connect=self._on_connect,
            subscriptions=ingest_filters(trust.fleet, leaves),
            tls=TlsFiles(trust.ca_file, identity.certificate, identity.key) if address.tls else None,
            session_expiry_s=SESSION_WITHOUT_END_S,
            receive_maximum=RECEIVE_MAXIMUM,
            keepalive_s=60,
            manual_ack=True,
        )
        for worker in (self._ingest, self._engine, self._publisher, self._watchman):
            if worker is not None:
                worker.start()
                stack.callback(worker.stop)
        self._link.start()
        stack.callback(self._link.stop)
        if not self._link.wait_connected(CONNECT_WITHIN_S):
            raise EdgeopsError("E-BROKER", f"no connection to {self._broker.kind} within {CONNECT_WITHIN_S:.0f} s")

    def _broker_here(self) -> BrokerAddress:
        """Return where the broker listens: the control plane is on its machine, devices come by another address."""
        return msgspec.structs.replace(self._broker.address, host=local_host(self._options.host))

    def _on_connect(self) -> None:
        self._ingest.new_session(kept=self._link.session_kept)
        if self._publisher is not None:
            self._publisher.wake_all()

    def _on_commit(self) -> None:
        if self._engine is not None:
            self._engine.wake()
        if self._publisher is not None:
            self._publisher.wake()

    def _control_api(self, ready: Ready) -> ControlApi:
        trust = self._trust
        return ControlApi(
            database=self._database,
            fleet=trust.fleet,
            trust=lambda: FirstTrust(ready.api, trust.fleet, trust.ca_sha256, trust.root_sha256()),
            issuer=trust,
            ca_pem=trust.ca_pem,
            root_json=trust.root_json,
            broker=ready.broker,
            artifacts_url=ready.artifacts,
            token=_token(self._home / TOKEN_NAME),
            approval=self._options.approval,
            rigs=self._options.rigs,
            releases=trust.releases,
            references=trust.drift_references,
            trusted_rigs=trust.rig_keys,
            wake=self._on_commit,
            shut_out=self._gatekeeper.shut_out,
            health=self._health,
            metrics=lambda: exposition(self._collector),
            requests_per_s=self._options.requests_per_s,
        )

    def _api_listener(self, control: ControlApi, bound: Listening) -> Listener:
        """Return the REST API, with the web page beside it if that was asked for.

        Raises:
            EdgeopsError: E-DEPENDENCY; NiceGUI is not installed.
        """
        app = api_app(control)
        if not self._options.web:
            return Listener(app, bound)
        try:
            from edgeops.control.web.door import PATH, beside
            from edgeops.control.web.pages import web_app
        except ImportError as error:
            raise EdgeopsError(
                "E-DEPENDENCY", f"the web page needs NiceGUI: {error}", "pip install 'edgeops[web]'"
            ) from error
        pages = web_app(self._database, Doorkeeper(self._database, control.token), control.fleet, control.releases)
        return Listener(
            beside(app, pages, lambda path: path == PATH or path.startswith(f"{PATH}/")), bound, lifespan=True
        )

    def _health(self) -> Health:
        connected = self._link.connected
        return Health(
            status="ok" if connected and self.alive else "degraded",
            fleet=self._trust.fleet,
            version=__version__,
            broker=BrokerHealth(
                kind=self._broker.kind, connected=connected, restarts=max(0, self._broker.child.starts - 1)
            ),
            messages_accepted=self._ingest.accepted,
            messages_refused=self._ingest.refused,
        )


class Upkeep:
    """What must be done now and then, on a thread of its own: renew what expires, prune the registry.

    Args:
        trust: The fleet's keys: TUF's timestamp and snapshot.
        database: The registry.
        own: The control plane's certificates.
    """

    def __init__(self, trust: FleetTrust, database: Database, own: OwnCertificates) -> None:
        self._trust, self._database, self._own = trust, database, own
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        """Do what is due, then look every hour."""
        self._keep_up()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(UPKEEP_EVERY_S):
            self._keep_up()

    def _keep_up(self) -> None:
        for what, act in (
            ("TUF metadata could not be renewed", self._trust.renew),
            ("the control plane's certificates could not be renewed", self._own.keep_up),
            ("the registry could not be pruned", lambda: prune(self._database, time.time())),
        ):
            try:
                act()
            except EdgeopsError as error:
                log.error("%s: %s", what, error)


def serve(options: ServeOptions, *, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. Call it from the main thread.

    Args:
        options: How.
        on_ready: Gets one line of JSON when all is ready.

    Raises:
        EdgeopsError: What `ControlPlane.start` or `RoleWorker.start` raises; E-CONFIG, the role needs PostgreSQL; or
            E-INTERNAL, a part has ended by a defect.
    """
    if options.role in ("all", "api"):
        check_addresses(options.host, options.advertise)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    check_role(options.role, options.database)
    plane: ControlPlane | RoleWorker
    if options.role in ("ingest", "rollout"):
        assert options.database is not None
        plane = RoleWorker(options.home, options.role, options.database, options.host)
    else:
        plane = ControlPlane(options)
    try:
        ready = plane.start()
        # What is there now stays: full collections would walk through it, for 100 ms in the middle of a request.
        gc.collect()
        gc.freeze()
        on_ready(encode(ready).decode())
        while not ended.wait(WATCH_EVERY_S):
            if not plane.alive:
                raise EdgeopsError(
                    "E-INTERNAL", "a part of the control plane has ended", "See its log; start it again."
                )
    finally:
        plane.stop()


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Hold the home for one control plane.

    Raises:
        EdgeopsError: E-STATE-LOCKED.
    """
    with (home / "serve.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EdgeopsError(
                "E-STATE-LOCKED", f"another control plane serves {home}", "Stop it first, or use another home."
            ) from error
        yield


def _token(path: Path) -> str:
    """Return the API's token; the first time, make one that only this user can read."""
    if not path.exists():
        durable.write_file(path, secrets.token_urlsafe(32).encode() + b"\n", mode=0o600)
    token = path.read_text(encoding="utf-8").strip()
    if len(token) < 16:
        raise EdgeopsError("E-CONFIG", f"{path} holds no token", "Remove it; a new one is made at the next start.")
    return token


def _last_ports(home: Path) -> _Ports:
    try:
        return decode((home / PORTS_NAME).read_bytes(), _Ports, what=PORTS_NAME)
    except FileNotFoundError:
        return _Ports()


def _bind_again(host: str, port: int, last: int, most: int, open_to: int | None) -> Listening:
    """Bind the port that was asked for; without one, that of the last time if it is free, else any."""
    return bind(host, port or (last if last and is_free(host, last) else 0), most=most, open_to=open_to)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
