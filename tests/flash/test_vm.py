"""A bare arm64 machine becomes a device that serves in one go, and comes back from a power cut in mid-update."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from adder_bundles import MODEL, small_bundle
from served_fleet import Serving

from edgeops.client.resources import DeviceInfo
from edgeops.client.rollout_resources import RolloutWish
from edgeops.flash import over_ssh
from edgeops.flash.link import Login
from edgeops.flash.over_ssh import Wish
from edgeops.releases import assemble
from edgeops.releases.bundles import seal
from edgeops.releases.export import export
from edgeops.releases.publish import publish
from edgeops.trust.founding import make_fleet
from hil.boards.arm64_vm import Arm64VmBoard
from hil.rig import Arm64VmSpec

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]
PROFILE = "generic-arm64"
WITHIN_S = 1200.0
ASK = """
import numpy as np
from edgeops.client.inference import open_model
with open_model("unix:/run/edgeops/adder.sock") as model:
    print(float(model.infer("adder", {"x": np.ones((1, 4), np.float32)})["y"][0, 0]))
"""


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(1)


class Api:
    """The control plane, as flashing needs it."""

    def __init__(self, serving: Serving) -> None:
        self._api = serving.api

    def token(self, profile: str, name: str | None) -> str:
        return self._api.create_token(profile=profile, name=name).token

    def online(self, name: str) -> bool:
        return any(device.connection == name and device.online for device in self._api.devices())


def release(home: Path, folder: Path, version: str, add: float) -> None:
    bundle = small_bundle(folder / version, profile=PROFILE, add=add)
    seal(bundle.directory, msgspec.structs.replace(bundle.manifest, arch="aarch64"))
    assemble.create(home, [bundle.directory], version=version)
    publish(home, MODEL, version)


def tunnel(board: Arm64VmBoard, ports: list[int]) -> subprocess.Popen[bytes]:
    """Let the machine's loopback reach this one's: it has no other network."""
    login = board.login
    words = [word for port in ports for word in ("-R", f"127.0.0.1:{port}:127.0.0.1:{port}")]
    return subprocess.Popen(
        ["ssh", "-N", "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={login.known_hosts}", "-i",
         str(login.key_file), "-p", str(login.port), *words, f"{login.user}@{login.host}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_bare_arm64_machine_is_flashed_serves_and_survives_a_power_cut(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_fleet(home, "demo")
    release(home, tmp_path, "1.0.0", 1.0)
    stick = export(home, MODEL, "1.0.0", tmp_path / "release.edgeops").path
    serving = Serving(home, "mosquitto")
    facts = serving.start()
    ports = sorted({int(part.rpartition(":")[2]) for part in addresses(facts)})
    spec = Arm64VmSpec(name="vm", profile=PROFILE, boot_within_s=1200.0)
    with Arm64VmBoard(spec, tmp_path) as board:
        board.boot()
        link = tunnel(board, ports)
        try:
            known = board.login
            login = Login(known.host, known.port, known.user, known.key_file, known_hosts=known.known_hosts)
            wish = Wish(name="vm-1", stick=stick, online_within_s=WITHIN_S)
            said: list[str] = []
            done = asyncio.run(over_ssh.flash(login, wish, Api(serving), tmp_path / "payloads", said.append))
            print("\n".join(said), done)
            assert (done.device, done.profile, done.online) == ("vm-1", PROFILE, True)
            assert answer(board) == 2.0

            release(home, tmp_path, "2.0.0", 10.0)
            serving.api.create_rollout(RolloutWish(model=MODEL, version="2.0.0", start=True))
            time.sleep(8)
            board.power_off()
            link.kill()
            link.wait()
            board.boot()
            link = tunnel(board, ports)
            wait_for(lambda: runs(serving, "2.0.0"), "2.0.0 does not run")
            assert answer(board) == 11.0
        finally:
            link.kill()
            link.wait()
            serving.stop()


def addresses(facts: dict[str, object]) -> list[str]:
    found = []
    for value in facts.values():
        if isinstance(value, dict):
            found += [f"{value['host']}:{value['port']}"] if "port" in value else []
        elif isinstance(value, str) and value.startswith("https://"):
            found.append(value.rstrip("/"))
    return found


def runs(serving: Serving, version: str) -> bool:
    device: DeviceInfo = next(iter(serving.api.devices()))
    return any(
        component.name == MODEL and component.active_release == version and component.state == "confirmed"
        for unit in device.units
        for component in unit.components
    )


def answer(board: Arm64VmBoard) -> float:
    done = board.run("runuser", "-u", "edgeops", "--", "/opt/edgeops/current/bin/python", "-c", ASK, within_s=WITHIN_S)
    assert done.status == 0, done.err
    return float(done.out)
