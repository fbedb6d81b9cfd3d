"""Tells alerts to webhooks, in the form of Alertmanager's API v2, signed, and again until they are taken.

Source of the form: Prometheus Alertmanager, OpenAPI v2, `postableAlerts`.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import urllib3

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Declared
from edgeops.control.database import Database
from edgeops.control.monitoring.alerts import Alert, Thresholds, alerts, look
from edgeops.transport.mqtt import backoff_s

log = logging.getLogger(__name__)

CONFIG_NAME = "alerts.toml"
SIGNATURE = "X-Edgeops-Signature"
LOOK_EVERY_S = 15.0
POST_WITHIN_S = 10.0
BATCH = 100
RETRY_MAX_S = 300.0
MIN_SECRET = 16


class Webhook(Declared, frozen=True, kw_only=True):
    """One receiver.

    Args:
        url: Where alerts are posted; Alertmanager's is `http://host:9093/api/v2/alerts`.
        secret_file: File whose content signs each post, beside `alerts.toml` unless absolute; empty: not signed.
    """

    url: str
    secret_file: str = ""


class AlertConfig(Declared, frozen=True, kw_only=True):
    """`alerts.toml` of a fleet's home.

    Args:
        repeat_s: How often an alert that goes on is told again; Alertmanager takes silence for an end.
        look_every_s: How often the registry is looked at.
        thresholds: From when on conditions are worth an alert.
        webhooks: Who is told.
    """

    repeat_s: float = 300.0
    look_every_s: float = LOOK_EVERY_S
    thresholds: Thresholds = Thresholds()
    webhooks: tuple[Webhook, ...] = ()


class Receiver(NamedTuple):
    """A webhook with its secret; empty: not signed."""

    url: str
    secret: bytes


def read_config(home: Path) -> tuple[AlertConfig, list[Receiver]]:
    """Read `alerts.toml`; where there is none, nobody is told.

    Raises:
        EdgeopsError: E-CONFIG; names the file, the key and what is wrong.
    """
    path = home / CONFIG_NAME
    if not path.exists():
        return AlertConfig(), []
    try:
        config = msgspec.toml.decode(path.read_bytes(), type=AlertConfig)
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise EdgeopsError("E-CONFIG", f"{path}: {error}", "See the reference of monitoring.") from error
    limits = config.thresholds
    if (
        min(config.repeat_s, config.look_every_s, limits.offline_after_s, limits.stuck_after_s, limits.certificate_days)
        <= 0
    ):
        raise EdgeopsError("E-CONFIG", f"{path}: a time is not above 0", "Give seconds, and days of certificates.")
    if not 0 < limits.drift <= 1:
        raise EdgeopsError("E-CONFIG", f"{path}: drift {limits.drift} is no total variation", "Give it above 0, to 1.")
    if not 0 < limits.psi < math.inf:
        raise EdgeopsError("E-CONFIG", f"{path}: psi {limits.psi} is no such index", "Give it above 0, such as 0.2.")
    return config, [_receiver(home, webhook, path) for webhook in config.webhooks]


def _receiver(home: Path, webhook: Webhook, path: Path) -> Receiver:
    if not webhook.url.startswith(("https://", "http://")):
        raise EdgeopsError("E-CONFIG", f"{path}: {webhook.url!r} is not an http or https URL")
    if not webhook.secret_file:
        return Receiver(webhook.url, b"")
    try:
        secret = (home / webhook.secret_file).read_bytes().strip()
    except OSError as error:
        raise EdgeopsError("E-CONFIG", f"{error.filename}: {error.strerror}", f"It is named in {path}.") from error
    if len(secret) < MIN_SECRET:
        raise EdgeopsError("E-CONFIG", f"{webhook.secret_file} has fewer than {MIN_SECRET} bytes", "Make a longer one.")
    return Receiver(webhook.url, secret)


def signature(secret: bytes, at_s: int, body: bytes) -> str:
    """Return the header that proves a post: `t=SECONDS,v1=HEX`, HMAC-SHA-256 over `SECONDS.BODY`."""
    digest = hmac.new(secret, b"%d." % at_s + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"


def posts(active: Sequence[Alert], ended: Sequence[Alert], *, now_s: float, repeat_s: float) -> list[bytes]:
    """Return the bodies that tell of alerts, at most 100 in each."""
    told = [_form(alert, now_s + 3 * repeat_s) for alert in active] + [_form(alert, now_s) for alert in ended]
    return [json.dumps(told[first : first + BATCH]).encode() for first in range(0, len(told), BATCH)]


def _form(alert: Alert, ends_s: float) -> dict[str, object]:
    return {
        "labels": {"alertname": alert.name, **dict(alert.labels)},
        "annotations": {"summary": alert.summary},
        "startsAt": _time(min(alert.since_s, ends_s)),
        "endsAt": _time(ends_s),
    }


def _time(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).isoformat(timespec="milliseconds")


class Messenger:
    """Posts to one receiver. What is told is the state of now: nothing is queued while it cannot be reached.

    Args:
        receiver: The receiver.
        repeat_s: How often alerts that go on are told again.
        clock: Seconds since 1970.
    """

    def __init__(self, receiver: Receiver, repeat_s: float, clock: Callable[[], float] = time.time) -> None:
        self._receiver, self._repeat_s, self._clock = receiver, repeat_s, clock
        self._pool = urllib3.PoolManager(timeout=POST_WITHIN_S, retries=False)
        self._told: dict[tuple[str, tuple[tuple[str, str], ...]], Alert] = {}
        self._due_s = 0.0
        self._failures = 0

    def tell(self, active: Sequence[Alert]) -> None:
        """Tell of what began, what ended, and what goes on, if something did or it is time again."""
        now_s = self._clock()
        now = {alert.key: alert for alert in active}
        changed = now.keys() != self._told.keys()
        if now_s < self._due_s and (self._failures or not changed):
            return
        ended = [alert for key, alert in self._told.items() if key not in now]
        for body in posts(active, ended, now_s=now_s, repeat_s=self._repeat_s):
            if not self._post(body, now_s):
                self._failures += 1
                self._due_s = now_s + backoff_s(self._failures, first_s=LOOK_EVERY_S, max_s=RETRY_MAX_S)
                return
        # Only what was taken counts as told: what ended meanwhile is told in the next attempt.
        self._told, self._failures, self._due_s = now, 0, now_s + self._repeat_s

    def _post(self, body: bytes, now_s: float) -> bool:
        headers = {"Content-Type": "application/json"}
        if self._receiver.secret:
            headers[SIGNATURE] = signature(self._receiver.secret, int(now_s), body)
        try:
            answer = self._pool.request("POST", self._receiver.url, body=body, headers=headers, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            log.warning("alerts cannot be told to %s: %s", self._receiver.url, error)
            return False
        if not 200 <= answer.status < 300:
            log.warning("%s refuses alerts with status %d", self._receiver.url, answer.status)
            return False
        return True


class Watchman:
    """The thread that looks at the registry and tells of what is wrong.

    Args:
        database: The registry.
        config: What is worth an alert.
        receivers: Who is told.
    """

    def __init__(self, database: Database, config: AlertConfig, receivers: Sequence[Receiver]) -> None:
        self._database, self._config = database, config
        self._messengers = [Messenger(receiver, config.repeat_s) for receiver in receivers]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End after the look at hand."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
            except EdgeopsError as error:
                log.error("alerts wait: %s", error)
            self._stopping.wait(self._config.look_every_s)

    def _look(self) -> None:
        if not self._messengers:
            return
        now_s = time.time()
        with self._database.read() as session:
            found = look(session, now_s)
        active = list(alerts(found, self._config.thresholds, now_s))
        for messenger in self._messengers:
            messenger.tell(active)
