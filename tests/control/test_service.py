"""The whole control plane as one process, with real devices on the broker, over real TLS."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import urllib3
from fake_device import FakeDevice, join
from served_fleet import BROKERS, MODEL, Fleet, Serving, wait_for

from edgeops.client.api import Api
from edgeops.client.rollout_resources import GatesInfo, RolloutInfo, RolloutWish
from edgeops.contracts.rollouts import ENDED_STATES
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.publisher import Publisher


def ended(api: Api, rollout: int) -> RolloutInfo:
    """Wait until a rollout ends or pauses."""
    done = ENDED_STATES | {"paused"}
    return wait_for(lambda: r if (r := api.rollout(rollout)).state in done else None, "the rollout does not end")


def versions(api: Api) -> dict[str, tuple[str | None, str | None]]:
    """Device → (desired, active) release."""
    return {
        device.connection: (component.desired_release, component.active_release)
        for device in api.devices()
        for component in device.units[0].components
    }


@pytest.mark.parametrize("served", BROKERS, indirect=True)
def test_the_main_job_with_three_devices(served: Serving, fleet: Fleet) -> None:
    """1.0.0 to all, 1.1.0 in two groups, and 1.2.0, which every device refuses, stops before its second group."""
    api = served.api
    first = ended(api, api.create_rollout(RolloutWish(model=MODEL, version="1.0.0", start=True)).id)
    assert first.state == "succeeded"
    assert set(versions(api).values()) == {("1.0.0", "1.0.0")}

    second = api.create_rollout(RolloutWish(model=MODEL, version="1.1.0", groups=("67%", "100%")))
    assert second.state == "draft"
    assert set(versions(api).values()) == {("1.0.0", "1.0.0")}
    api.start_rollout(second.id)
    assert ended(api, second.id).state == "succeeded"
    assert set(versions(api).values()) == {("1.1.0", "1.1.0")}

    third = ended(
        api, api.create_rollout(RolloutWish(model=MODEL, version="1.2.0", groups=("67%", "100%"), start=True)).id
    )
    assert third.state == "stopped"
    for part in ("failure_max", "1 > 0", "E-SELFTEST-GOLDEN"):
        assert part in third.reason
    late = [member.connection for member in api.members(third.id) if member.group.startswith("2")]
    assert len(late) == 1
    assert versions(api)[late[0]] == ("1.1.0", "1.1.0")
    assert {active for _, active in versions(api).values()} == {"1.1.0"}
    assert fleet.devices[late[0]].generations[-1] == 2
    assert next(figure for figure in third.figures if figure.gate == "failure_max").holds is False
    refused = [device.units[0].components[0].failure for device in api.devices() if device.connection != late[0]]
    assert [(failure.code, failure.release) for failure in refused if failure] == [("E-SELFTEST-GOLDEN", "1.2.0")] * 2


def test_the_registry_may_be_postgresql(home: Path, tmp_path: Path, postgres: str) -> None:
    serving = Serving(home, BROKERS[0], "--database", postgres)
    serving.start()
    fleet = Fleet(serving, tmp_path / "devices", refuses=("1.2.0",))
    try:
        rollout = serving.api.create_rollout(
            RolloutWish(model=MODEL, version="1.0.0", groups=("34%", "100%"), start=True)
        )
        assert ended(serving.api, rollout.id).state == "succeeded"
        rollout = serving.api.create_rollout(
            RolloutWish(model=MODEL, version="1.2.0", groups=("34%", "100%"), start=True)
        )
        assert ended(serving.api, rollout.id).state == "stopped"
        assert not (home / "control.sqlite").exists()
    finally:
        fleet.stop()
        serving.stop()


def test_a_device_that_joins_later_gets_what_its_like_have(served: Serving, fleet: Fleet, tmp_path: Path) -> None:
    api = served.api
    assert ended(api, api.create_rollout(RolloutWish(model=MODEL, version="1.0.0", start=True)).id).state == "succeeded"
    token = api.create_token(profile="intel-nuc")
    joined = join(tmp_path / "late", token.token, profile="intel-nuc", name="intel-nuc-2")
    key = Publisher(served.home).desired_signer().public_key
    late = FakeDevice(tmp_path / "late", joined, key).start()
    late.wait_generation(1)
    wait_for(lambda: versions(api).get("intel-nuc-2") == ("1.0.0", "1.0.0"), "it did not get the release")
    late.stop()


def test_devices_that_go_are_offline_and_get_what_they_missed(served: Serving, fleet: Fleet) -> None:
    api = served.api
    name, sleeper = next(iter(fleet.devices.items()))
    sleeper.link._client.socket().shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
    sleeper.stop()
    wait_for(lambda: not api.device(name).online, "the last will did not arrive")
    rollout = api.create_rollout(RolloutWish(model=MODEL, version="1.0.0", gates=GatesInfo(timeout_s=10.0), start=True))
    # Two confirm; the third's profile has nobody who reported: inconclusive.
    assert ended(api, rollout.id).state == "paused"
    sleeper.start()
    sleeper.wait_generation(1)
    api.resume_rollout(rollout.id)
    assert ended(api, rollout.id).state == "succeeded"


def test_sigterm_ends_everything_and_a_new_start_goes_on(served: Serving, fleet: Fleet) -> None:
    """In the middle of a rollout: addresses stay, who returns is online, and the second group gets its release."""
    api, before = served.api, served.ready
    for device in fleet.devices.values():
        device.asleep = True
    rollout = api.create_rollout(RolloutWish(model=MODEL, version="1.0.0", groups=("67%", "100%"), start=True))
    early = [m.connection for m in wait_for(lambda: assigned(api, rollout.id), "the first group did not start")]
    for name in early:
        fleet.devices[name].wait_generation(1)
    broker_pid = before["broker_pid"]
    assert served.stop() == 0
    assert not (served.home / "serve.json").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(broker_pid, 0)
    (gone,) = set(fleet.devices) - set(early)
    fleet.devices[gone].stop()
    after = served.start()
    assert (after["api"], after["artifacts"], after["broker"]) == (before["api"], before["artifacts"], before["broker"])
    # A broker remembers that a device was online; one that went in the meantime must not be shown as such.
    wait_for(lambda: all(served.api.device(name).online for name in early), "they did not return")
    assert not served.api.device(gone).online
    fleet.devices[gone].start()
    finish(served, fleet, rollout.id)


def test_sigkill_in_the_middle_of_a_rollout_forgets_no_device(served: Serving, fleet: Fleet) -> None:
    """Killed twice, each time as soon as something new was to be said; the broker dies with its parent."""
    for device in fleet.devices.values():
        device.asleep = True
    rollout = served.api.create_rollout(
        RolloutWish(model=MODEL, version="1.0.0", groups=("34%", "67%", "100%"), start=True)
    )
    for _ in range(2):
        broker_pid = served.ready["broker_pid"]
        served.kill()
        wait_for(lambda pid=broker_pid: not alive(pid), "the broker outlived its parent")
        served.start()
        for device in fleet.devices.values():
            if device.generations and device.asleep:
                device.asleep = False
                wait_for(lambda d=device: d.link.connected, "a device did not return")
                device.obey()
    finish(served, fleet, rollout.id)


def assigned(api: Api, rollout: int) -> list[Any]:
    return [member for member in api.members(rollout) if member.generation is not None]


def finish(served: Serving, fleet: Fleet, rollout: int) -> None:
    for device in fleet.devices.values():
        device.asleep = False
        wait_for(lambda d=device: d.link.connected, "a device did not return")
        if device.desired is not None:
            device.obey()
    done = ended(served.api, rollout)
    assert done.state == "succeeded", done.reason
    assert set(versions(served.api).values()) == {("1.0.0", "1.0.0")}
    for device in fleet.devices.values():
        assert set(device.generations) == {1}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_broker_that_lost_everything_is_told_again(home: Path, tmp_path: Path) -> None:
    """iotcore keeps nothing over its death: retained desired state comes from the registry again."""
    serving = Serving(home, "iotcore")
    serving.start()
    fleet = Fleet(serving, tmp_path / "devices")
    try:
        for device in fleet.devices.values():
            device.asleep = True
        serving.api.create_rollout(RolloutWish(model=MODEL, version="1.0.0", start=True))
        for device in fleet.devices.values():
            device.wait_generation(1)
            device.stop()
        os.kill(serving.ready["broker_pid"], signal.SIGKILL)
        wait_for(lambda: serving.api.health().broker.restarts == 1, "it was not started again")
        for device in fleet.devices.values():
            device.generations.clear()
            device.start()
        for device in fleet.devices.values():
            device.wait_generation(1)
    finally:
        fleet.stop()
        serving.stop()


class TestArtifacts:
    """The second listener: only certificates of the fleet come in, and only published files go out."""

    def pool(self, context: ssl.SSLContext) -> urllib3.PoolManager:
        return urllib3.PoolManager(ssl_context=context, retries=False)

    def test_a_device_fetches_whole_and_in_parts(self, standing: Serving, standing_fleet: Fleet) -> None:
        pool = self.pool(standing_fleet.devices["intel-nuc-1"].tls_context())
        url = self.target_url(standing)
        whole = pool.request("GET", url)
        assert whole.status == 200
        part = pool.request("GET", url, headers={"Range": "bytes=1000-"})
        assert part.status == 206
        assert part.headers["Content-Range"] == f"bytes 1000-{len(whole.data) - 1}/{len(whole.data)}"
        assert part.data == whole.data[1000:]
        assert pool.request("GET", standing.ready["artifacts"] + "/metadata/timestamp.json").status == 200

    @pytest.mark.parametrize(
        "path",
        [
            "/targets/../keys/targets.pem",
            "/targets/..%2f..%2fkeys%2ftargets.pem",
            "/targets/%2e%2e/%2e%2e/api.token",
            "/metadata//etc/passwd",
            "/keys/targets.pem",
            "/api.token",
            "/targets/",
            "/metadata",
            "/",
            "/metadata/.hidden",
        ],
    )
    def test_nothing_but_published_files_goes_out(self, standing: Serving, standing_fleet: Fleet, path: str) -> None:
        (standing.home / "repository" / "metadata" / ".hidden").write_text("half-written")
        pool = self.pool(standing_fleet.devices["intel-nuc-1"].tls_context())
        # http.client sends the path as it is: urllib3 would tidy it up.
        answer = raw_get(pool, standing.ready["artifacts"], path)
        assert answer in (307, 404, 405)

    def test_without_a_fleet_certificate_nobody_comes_in(
        self, standing: Serving, standing_fleet: Fleet, tmp_path: Path
    ) -> None:
        ca = str(standing.home / "ca" / "ca.pem")
        anonymous = ssl.create_default_context(cafile=ca)
        other = FleetAuthority.create(tmp_path / "other-ca", "other")
        certificate, key = other.issue_client("edgeops-thief")
        (tmp_path / "thief.pem").write_bytes(certificate)
        (tmp_path / "thief.key").write_bytes(key)
        foreign = ssl.create_default_context(cafile=ca)
        foreign.load_cert_chain(tmp_path / "thief.pem", tmp_path / "thief.key")
        url = standing.ready["artifacts"] + "/metadata/timestamp.json"
        for context in (anonymous, foreign):
            with pytest.raises(urllib3.exceptions.HTTPError):
                self.pool(context).request("GET", url)
        good = self.pool(standing_fleet.devices["intel-nuc-1"].tls_context())
        assert good.request("GET", url).status == 200  # negative control

    @staticmethod
    def target_url(standing: Serving) -> str:
        path, target = next(iter(Publisher(standing.home).targets().items()))
        folder, _, name = path.rpartition("/")
        return f"{standing.ready['artifacts']}/targets/{folder}/{target.sha256}.{name}"


def raw_get(pool: urllib3.PoolManager, base: str, path: str) -> int:
    url = urllib3.util.parse_url(base)
    context = pool.connection_pool_kw["ssl_context"]
    plain = socket.create_connection((url.host, url.port), timeout=60)
    with context.wrap_socket(plain, server_hostname=url.host) as secure:
        secure.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = secure.recv(65536)
    return int(answer.split()[1])


def test_a_second_control_plane_on_one_home_is_refused(standing: Serving) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "edgeops", "serve", "--home", str(standing.home)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert second.returncode == 2
    assert "E-STATE-LOCKED" in second.stderr
    assert standing.api.health().status == "ok"


def test_a_folder_that_is_no_home_is_named(tmp_path: Path) -> None:
    for home in (tmp_path / "nowhere", tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "edgeops", "serve", "--home", str(home)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr.startswith("error E-")
        assert "Traceback" not in done.stderr


def test_iotcore_on_a_public_address_is_refused_and_leaves_nothing_running(home: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "edgeops", "serve", "--home", str(home), "--broker", "iotcore", "--host", "0.0.0.0",
            "--advertise", "control.lab",
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "E-BROKER-ADDRESS" in done.stderr
    assert not (home / "serve.json").exists()
