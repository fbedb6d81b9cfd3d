"""What operators' own systems are told: metrics that a real Prometheus reads, alerts that reach a webhook."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import urllib3
from prometheus_client.parser import text_string_to_metric_families
from registry_fleet import FLEET, SpeakingDevice, add_devices, open_registry, release
from served_fleet import MODEL, Fleet, Serving, wait_for

from edgeops.client.rollout_resources import RolloutWish
from edgeops.contracts.bundle import DriftCalibration, DriftLevel
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rollouts import RolloutState
from edgeops.contracts.telemetry import DeviceWindow, Telemetry
from edgeops.contracts.wire import decode
from edgeops.control.groups.query import Facts
from edgeops.control.ingest.rollups import Traffic
from edgeops.control.models import Device
from edgeops.control.monitoring.alerts import Alert, Looked, Resting, Thresholds, Watched, alerts, look_at_values
from edgeops.control.monitoring.metrics import FleetCollector, exposition
from edgeops.control.monitoring.references import newest_references, shifts_of
from edgeops.control.monitoring.webhooks import SIGNATURE, Messenger, Receiver, posts, read_config, signature
from edgeops.control.rollout import manage
from edgeops.control.rollout.policy import Gates, Policy
from edgeops.control.rollout.selection import Selection
from edgeops.intake.cache import cache_dir

NOW = 1_800_000_000.0
DAY_S = 86_400.0
LIMITS = Thresholds(offline_after_s=900, stuck_after_s=3600, certificate_days=7)
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "monitoring.md"


def scrape(serving: Serving) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    ca, token = serving.home / "ca" / "ca.pem", (serving.home / "api.token").read_text().strip()
    pool = urllib3.PoolManager(ca_certs=str(ca), cert_reqs="CERT_REQUIRED", retries=False, timeout=60)
    answer = pool.request("GET", serving.ready["api"] + "/metrics", headers={"Authorization": f"Bearer {token}"})
    assert answer.status == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.data.decode())
        for sample in family.samples
    }


def test_metrics_say_what_the_fleet_is(served: Serving, fleet: Fleet) -> None:
    done = served.api.create_rollout(RolloutWish(model=MODEL, version="1.0.0", start=True))
    wait_for(lambda: served.api.rollout(done.id).state == "succeeded", "the rollout did not end")
    found = scrape(served)
    assert found["edgeops_devices", (("online", "yes"), ("profile", "intel-nuc"))] == 1
    assert found["edgeops_devices_health", (("health", "ok"),)] == 3
    assert found["edgeops_rollouts", (("state", "succeeded"),)] == 1
    assert found["edgeops_broker_connected", ()] == 1
    assert found["edgeops_messages_accepted_total", ()] >= 6
    assert found["edgeops_certificate_expiry_min_seconds", ()] > 30 * DAY_S
    named = {re.sub("_total$", "", name) for name, _ in found}
    written = set(re.findall(r"^\| `(edgeops_\w+)` \|", REFERENCE.read_text(), re.MULTILINE))
    assert named <= written


def test_metrics_are_for_those_who_may_read(standing: Serving) -> None:
    pool = urllib3.PoolManager(ca_certs=str(standing.home / "ca" / "ca.pem"), retries=False, timeout=60)
    assert pool.request("GET", standing.ready["api"] + "/metrics").status == 401


@pytest.fixture
def prometheus(standing: Serving, tmp_path: Path) -> Iterator[str]:
    """A real Prometheus that scrapes the standing control plane every second."""
    unpacked = cache_dir() / "unpacked/prometheus/usr/bin"
    program = shutil.which("prometheus", path=f"{os.environ['PATH']}:{unpacked}")
    if program is None:
        pytest.skip("no prometheus: apt-get install --yes prometheus, or make test-system")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    token = standing.api.create_api_token("prometheus", "viewer", valid_s=DAY_S).token
    (tmp_path / "token").write_text(token)
    example = re.search(r"```yaml\n(.*?)```", REFERENCE.read_text(), re.DOTALL)
    assert example is not None
    config = (
        example[1]
        .replace("control.example:8443", standing.ready["api"].removeprefix("https://"))
        .replace("/etc/prometheus/edgeops-ca.pem", str(standing.home / "ca" / "ca.pem"))
        .replace("/etc/prometheus/edgeops-token", str(tmp_path / "token"))
        .replace("30s", "1s")
    )
    (tmp_path / "prometheus.yml").write_text(config)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={tmp_path}/prometheus.yml",
                f"--storage.tsdb.path={tmp_path}/data",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
        yield f"http://{address}"
        process.terminate()
        process.wait(30)


def test_a_real_prometheus_scrapes_it_as_the_reference_says(prometheus: str, standing_fleet: Fleet) -> None:
    pool = urllib3.PoolManager(retries=False, timeout=5)

    def asked() -> Any:
        try:
            answer = pool.request("GET", f"{prometheus}/api/v1/query?query=sum(edgeops_devices)")
        except urllib3.exceptions.HTTPError:
            return None
        result = json.loads(answer.data)["data"]["result"] if answer.status == 200 else []
        return result and result[0]["value"][1]

    assert wait_for(asked, "Prometheus did not scrape it") == "3"


def watched(heard_ago_s: float = 10.0, **more: Any) -> Watched:
    facts = {"name": "pi-1", "profile": "raspberry-pi-4", "online": True, **more.pop("facts", {})}
    given = {"certificate_until_s": NOW + 90 * DAY_S, "waiting_since_s": None, "heard_s": NOW - heard_ago_s, **more}
    return Watched(Facts(**facts), **given)


@pytest.mark.parametrize(
    ("one", "kinds"),
    [
        (watched(), []),
        (watched(901, facts={"online": False, "health": "offline"}), ["EdgeopsDeviceOffline"]),
        (watched(899, facts={"online": False, "health": "offline"}), []),
        (watched(waiting_since_s=NOW - 3601), ["EdgeopsDeviceStuck"]),
        (watched(waiting_since_s=NOW - 3599), []),
        (watched(facts={"health": "failing", "states": {"lines": "failed"}}), ["EdgeopsDeviceFailing"]),
        (watched(facts={"health": "stale"}), ["EdgeopsDeviceStale"]),
        (watched(figures=DeviceWindow(uptime_s=1.0, disk_free_mib=101.0)), []),
        (watched(figures=DeviceWindow(uptime_s=1.0, disk_free_mib=99.0)), ["EdgeopsDeviceDiskFull"]),
        (watched(figures=DeviceWindow(uptime_s=1.0, throttled=("under-voltage",))), ["EdgeopsDeviceThrottled"]),
        (watched(certificate_until_s=NOW + 6 * DAY_S), ["EdgeopsCertificateExpiring"]),
        (watched(certificate_until_s=NOW - DAY_S), ["EdgeopsCertificateExpiring"]),
    ],
)
def test_each_condition_alerts_and_only_then(one: Watched, kinds: list[str]) -> None:
    found = list(alerts(Looked([one]), LIMITS, NOW))
    assert [alert.name for alert in found] == kinds
    assert all(dict(alert.labels) == {"device": "pi-1", "profile": "raspberry-pi-4"} for alert in found)


def test_rollouts_that_rest_are_told_of_and_old_stops_no_more() -> None:
    resting = [
        Resting(1, "lines 1.0.0", RolloutState.PAUSED, "paused by op", NOW - 9 * DAY_S),
        Resting(2, "lines 1.1.0", RolloutState.STOPPED, "failure_max", NOW - 60),
        Resting(3, "lines 1.2.0", RolloutState.STOPPED, "failure_max", NOW - 2 * DAY_S),
    ]
    found = [(alert.name, dict(alert.labels)["rollout"]) for alert in alerts(Looked(resting=resting), LIMITS, NOW)]
    assert found == [("EdgeopsRolloutPaused", "1"), ("EdgeopsRolloutStopped", "2")]


def test_a_release_that_sees_other_values_than_its_reference_drifts(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    profiles = ("raspberry-pi-4", "intel-nuc")
    pi, nuc = add_devices(database, 2, profiles=profiles)
    references = {name: {"input x": (90, 10), "confidence": (5, 95)} for name in profiles}
    manage.create(
        database, release("1.0.0"), Policy(groups=("100%",), gates=Gates(timeout_s=100)), Selection(), actor="op",
        now_s=NOW, start=True, references=references,
    )  # fmt: skip

    def drifting(device: str, requests: int, input_x: tuple[int, int], now_s: float) -> list[str]:
        """Return the profiles told of once a device has said what it saw."""
        SpeakingDevice(database, device, boot_id=f"at-{now_s}").served(
            "1.0.0", [1.0] * requests, now_s=now_s, errors={}, inputs={"x": input_x}, confidence=(50, 950)
        )
        with database.read() as session:
            shifted = look_at_values(session, now_s)
        found = list(alerts(Looked(shifted=shifted), LIMITS, now_s))
        assert {one.name for one in found} <= {"EdgeopsModelDrifting"}
        return [dict(one.labels)["profile"] for one in found]

    assert not drifting(pi, 1000, (890, 110), NOW), "as the reference has it"
    assert not drifting(nuc, 20, (2, 18), NOW + 1), "too few to be sure"
    assert drifting(nuc, 1000, (100, 900), NOW + 2) == ["intel-nuc"]
    assert not drifting(pi, 10, (9, 1), NOW + 3 * DAY_S), "it is over"
    database.close()


CALIBRATION = DriftCalibration(
    false_alarm=0.01, resamples=10,
    levels=tuple(DriftLevel(requests=n, psi={"input x": 20 / n}, js={"input x": 4 / n}) for n in (30, 300, 3000)),
)  # fmt: skip


def test_values_beyond_what_chance_does_in_both_halves_of_a_day_drift(registry_url: Path | str) -> None:
    database = open_registry(registry_url)
    (pi,) = add_devices(database, 1, profiles=("raspberry-pi-4",))
    reference = {"raspberry-pi-4": {"input x": (250, 250, 250, 250)}}
    limits = {"raspberry-pi-4": manage.DriftLimits(1000, CALIBRATION)}
    manage.create(
        database, release("1.0.0"), Policy(groups=("100%",), gates=Gates(timeout_s=100)), Selection(), actor="op",
        now_s=NOW, start=True, references=reference, limits=limits,
    )  # fmt: skip
    device = SpeakingDevice(database, pi)

    def drifting(input_x: tuple[int, ...], now_s: float, limits: Thresholds = LIMITS) -> list[str]:
        count = sum(input_x)
        device.served("1.0.0", [1.0] * (4 * count), now_s=now_s, errors={}, inputs={"x": input_x}, sampled=count)
        with database.read() as session:
            return [alert.summary for alert in alerts(Looked(shifted=look_at_values(session, now_s)), limits, now_s)]

    shifted = (160, 160, 40, 40)
    assert not drifting((100, 100, 100, 100), NOW)
    assert not drifting(shifted, NOW + DAY_S / 2 + 1800), "one half of the day is not both"
    (told,) = drifting(shifted, NOW + DAY_S + 3600)
    assert "input x of lines 1.0.0 on raspberry-pi-4 has PSI 0.4" in told
    assert not drifting(shifted, NOW + DAY_S + 3601, msgspec.structs.replace(LIMITS, psi=0.5)), "too small to matter"
    with database.read() as session:
        row = newest_references(session)["lines", "1.0.0", "raspberry-pi-4"]
        (item,) = shifts_of(row, Traffic(histograms={"input x": (16, 16, 4, 4)}, sampled=40))
        assert item.psi_limit is not None
        assert not item.alarms, "of 40 requests it would be chance"
    database.close()


def test_a_device_is_known_by_its_newest_figures_and_what_it_gave_up(registry_url: Path | str) -> None:
    registry = open_registry(registry_url)
    (name,) = add_devices(registry, 1)
    device = SpeakingDevice(registry, name)
    for end_s, celsius in ((NOW, 50.0), (NOW - 900, 80.0), (NOW + 9 * DAY_S, 60.0), (NOW + 1, 40.0), (NOW - 5, 90.0)):
        device.seq += 1
        window = DeviceWindow(uptime_s=1.0, temperature_c=celsius, throttled=("throttled",))
        device.say(
            Telemetry(
                fleet=FLEET, connection=name, unit="self", boot_id=device.boot_id, seq=device.seq, start_s=0.0,
                end_s=end_s, models=(), device=window, dropped_windows=2,
            ),
            NOW + 2,
        )  # fmt: skip
    with registry.read() as session:
        row = session.get_one(Device, name)
        assert decode(row.figures or b"", DeviceWindow, what="figures").temperature_c == 40.0
        assert (row.figures_at_s, row.dropped_windows) == (NOW + 1, 10)
    text = exposition(FleetCollector(registry, lambda: (0, 0), lambda: True, lambda: NOW)).decode()
    registry.close()
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["edgeops_devices_throttled", (("profile", "raspberry-pi-4"),)] == 1
    assert found["edgeops_device_temperature_max_celsius", (("profile", "raspberry-pi-4"),)] == 40.0
    assert found["edgeops_device_windows_dropped_total", ()] == 10


class Hook(http.server.ThreadingHTTPServer):
    """A receiver of alerts: it keeps what it takes, and refuses the first posts if asked to."""

    def __init__(self, refuse: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.refuse = refuse
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/api/v2/alerts"

    def told(self) -> list[dict[str, Any]]:
        return [alert for _, body in self.taken for alert in json.loads(body)]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        refused = self.server.refuse > 0
        self.server.refuse -= 1
        if not refused:
            self.server.taken.append((dict(self.headers), body))
        self.send_response(503 if refused else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.shutdown()
    hook.server_close()


def alert(name: str, since_s: float = NOW) -> Alert:
    return Alert(name, (("device", "pi-1"),), "summary", since_s)


def test_what_begins_and_ends_is_told_once_and_what_goes_on_is_repeated(hook: Hook) -> None:
    clock = [NOW]
    messenger = Messenger(Receiver(hook.url, b""), 300.0, lambda: clock[0])
    for at_s, active in ((0, ["A"]), (10, ["A"]), (20, ["A", "B"]), (30, ["B"]), (331, ["B"]), (340, [])):
        clock[0] = NOW + at_s
        messenger.tell([alert(name) for name in active])
    ends = [(one["labels"]["alertname"], one["endsAt"] > "2027-01-15T08:10") for one in hook.told()]
    assert ends == [("A", True), ("A", True), ("B", True), ("B", True), ("A", False), ("B", True), ("B", False)]


def test_what_was_refused_is_told_again_and_nothing_is_lost(hook: Hook) -> None:
    hook.refuse = 2
    clock = [NOW]
    messenger = Messenger(Receiver(hook.url, b""), 300.0, lambda: clock[0])
    messenger.tell([alert("A")])
    clock[0] += 600
    messenger.tell([alert("A")])
    assert hook.told() == []
    clock[0] += 600
    messenger.tell([alert("A"), alert("B")])
    assert [one["labels"]["alertname"] for one in hook.told()] == ["A", "B"]


def test_an_end_that_could_not_be_told_is_told_later(hook: Hook) -> None:
    clock = [NOW]
    messenger = Messenger(Receiver(hook.url, b""), 300.0, lambda: clock[0])
    messenger.tell([alert("A")])
    hook.refuse = 1
    clock[0] += 10
    messenger.tell([])
    clock[0] += 600
    messenger.tell([])
    assert [one["labels"]["alertname"] for one in hook.told()] == ["A", "A"]
    assert hook.told()[1]["endsAt"] == "2027-01-15T08:10:10.000+00:00"


def test_a_post_is_signed_and_a_changed_one_is_not_valid(hook: Hook) -> None:
    secret = b"sixteen bytes and more"
    Messenger(Receiver(hook.url, secret), 300.0, lambda: NOW).tell([alert("A")])
    headers, body = hook.taken[0]
    at, proof = re.fullmatch(r"t=(\d+),v1=([0-9a-f]{64})", headers[SIGNATURE]).groups()  # type: ignore[union-attr]
    assert proof == hmac.new(secret, f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    assert signature(secret, int(at), body.replace(b"pi-1", b"pi-2")) != headers[SIGNATURE]


def test_many_alerts_are_posted_in_parts() -> None:
    parts = posts([alert(str(number)) for number in range(250)], [], now_s=NOW, repeat_s=300)
    assert [len(json.loads(part)) for part in parts] == [100, 100, 50]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("repeat = 3", "repeat"),
        ("repeat_s = 0", "not above 0"),
        ("[thresholds]\ndrift = 1.5", "no total variation"),
        ("[thresholds]\npsi = 0", "no such index"),
        ("[[webhooks]]\nurl = 'ftp://x'", "not an http"),
        ("[[webhooks]]\nurl = 'http://x'\nsecret_file = 'none'", "No such file"),
        ("[[webhooks]]\nurl = 'http://x'\nsecret_file = 'short'", "fewer than 16"),
        ("[[webhooks", "alerts.toml"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "alerts.toml").write_text(text)
    (tmp_path / "short").write_text("x")
    with pytest.raises(EdgeopsError, match=says) as refused:
        read_config(tmp_path)
    assert refused.value.code == "E-CONFIG"


def test_a_stopped_rollout_reaches_the_webhook_of_a_serving_control_plane(
    home: Path, tmp_path: Path, hook: Hook
) -> None:
    (home / "webhook.secret").write_text("a secret of enough bytes")
    (home / "alerts.toml").write_text(
        f'look_every_s = 1\n[[webhooks]]\nurl = "{hook.url}"\nsecret_file = "webhook.secret"\n'
    )
    serving = Serving(home, "iotcore")
    serving.start()
    try:
        fleet = Fleet(serving, tmp_path / "devices", refuses=("1.2.0",))
        made = serving.api.create_rollout(RolloutWish(model=MODEL, version="1.2.0", start=True))
        wait_for(lambda: serving.api.rollout(made.id).state == "stopped", "it was not stopped")
        wait_for(
            lambda: (
                {"EdgeopsRolloutStopped", "EdgeopsDeviceFailing"} <= {one["labels"]["alertname"] for one in hook.told()}
            ),
            "nobody was told",
        )
        fleet.stop()
    finally:
        serving.stop()
