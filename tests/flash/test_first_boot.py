"""A card's first boot, for real: Debian's systemd and cloud-init run what `edgeops flash image` wrote."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adder_bundles import MODEL, PROFILE, small_bundle
from booted_board import BootedBoard, Lab, wait_for
from served_fleet import Serving
from test_card import KEY, base_image, tool

from edgeops.client.resources import DeviceInfo
from edgeops.flash import card, imaging
from edgeops.flash.firstboot import Network
from edgeops.releases import assemble
from edgeops.releases.export import export
from edgeops.releases.publish import publish
from edgeops.trust.publisher import Publisher
from hil.boards.arm64_root import debootstrap, made_once

PROGRAMS = {
    "debootstrap": "debootstrap", "dnsmasq": "dnsmasq-base", "mosquitto": "mosquitto", "ip": "iproute2",
    "journalctl": "systemd", "debugfs": "e2fsprogs", "mcopy": "mtools", "mkfs.vfat": "dosfstools", "sfdisk": "fdisk",
}  # fmt: skip
MISSING = [
    package
    for name, package in PROGRAMS.items()
    if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
]
pytestmark = [
    pytest.mark.full,
    pytest.mark.usefixtures("one_runtime"),
    pytest.mark.timeout(3000),
    pytest.mark.skipif(os.geteuid() != 0, reason="a board that boots needs root: namespaces, mounts and debootstrap"),
    pytest.mark.skipif(bool(MISSING), reason=f"apt-get install --yes {' '.join(MISSING)}"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the release of these tests is for x86-64: run it there"),
]
PACKAGES = (
    "ca-certificates", "cloud-init", "dbus", "iproute2", "locales", "netplan.io", "openssh-server", "python3", "sudo",
    "systemd-sysv",
)  # fmt: skip
SSID, WORD = 'Räume "1"', "se'cret \\ word"
ASK = """
import numpy as np
from edgeops.client.inference import open_model
with open_model("unix:/run/edgeops/adder.sock") as model:
    print(float(model.infer("adder", {"x": np.ones((1, 4), np.float32)})["y"][0, 0]))
"""


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def debian(request: pytest.FixtureRequest) -> Path:
    """A Debian as an image holds it."""

    def make(folder: Path) -> None:
        debootstrap(folder, PACKAGES, architecture="amd64", suite=request.param)
        (folder / "etc/machine-id").write_text("uninitialized\n")
        (folder / "var/log/journal").mkdir(exist_ok=True)
        # Systems with a boot partition for cloud-init say where it is; here it is a folder.
        for name in ("user-data", "meta-data", "network-config"):
            link = folder / "var/lib/cloud/seed/nocloud" / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(f"/boot/firmware/{name}")
        (folder / "etc/cloud/cloud.cfg.d/99_board.cfg").write_text("datasource_list: [NoCloud, None]\n")

    return made_once(f"first-boot-{request.param}", ("1", request.param, *PACKAGES), make)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab


class Fleet:
    """A control plane in the lab, with one release."""

    def __init__(self, folder: Path, lab: Lab) -> None:
        home = folder / "home"
        self.lab = lab
        Publisher.init(home, "demo")
        assemble.create(home, [small_bundle(folder / "bundle").directory], version="1.0.0")
        publish(home, MODEL, "1.0.0")
        self.stick = export(home, MODEL, "1.0.0", folder / "release.edgeops").path
        self.serving = Serving(home, "mosquitto", "--host", lab.address)
        with lab.inside():
            self.serving.start()

    def stop(self) -> None:
        self.serving.stop()

    def token(self, name: str) -> str:
        with self.lab.inside():
            return self.serving.api.create_token(profile=PROFILE, name=name).token

    def devices(self) -> dict[str, DeviceInfo]:
        with self.lab.inside():
            return {device.connection: device for device in self.serving.api.devices()}

    def is_online(self, name: str) -> bool:
        device = self.devices().get(name)
        return device is not None and device.online


@pytest.fixture
def fleet(tmp_path: Path, lab: Lab) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, lab)
    try:
        yield fleet
    finally:
        fleet.stop()


def write_card(folder: Path, debian: Path, cache: Path, **asked: Any) -> Path:
    """Make a card for that Debian; return what is then on its boot partition."""
    system = folder / "system"
    for name in ("var/lib/dpkg/status", "usr/lib/os-release", "etc/fstab", "etc/cloud/cloud.cfg.d/99_board.cfg"):
        if (debian / name).exists():
            (system / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(debian / name, system / name)
    said: list[str] = []
    values = {
        "base": base_image(folder, boot_mib=300, system=system), "out": folder / "card.img", "form": "cloud-init",
        "profile": PROFILE, "hostname": "board-1", "name": None, "user": "op", "ssh_keys": (KEY,), "network": None,
        "token": None, "identity": None, "stick": None, **asked,
    }  # fmt: skip
    imaging.make(imaging.Card(**values), cache, lambda _what: True, said.append)
    boot = folder / "boot"
    boot.mkdir()
    tool("mcopy", "-s", "-i", card.boot_partition(folder / "card.img").drive, "::*", boot)
    return boot


def answer(board: BootedBoard) -> float:
    said = board.said("runuser", "-u", "edgeops", "--", "/opt/edgeops/current/bin/python", "-c", ASK)
    return float(said)


def serves(board: BootedBoard) -> bool:
    return board.exists("/run/edgeops/adder.sock") and answer(board) == 2.0


def test_cloud_init_makes_a_board_a_device_that_serves(tmp_path: Path, debian: Path, lab: Lab, fleet: Fleet) -> None:
    boot = write_card(
        tmp_path, debian, tmp_path, name="pi-1", token=fleet.token("pi-1"), stick=fleet.stick,
        network=Network(SSID, WORD, "DE"),
    )  # fmt: skip
    with BootedBoard(tmp_path / "board", debian, boot, lab.socket(plugged=True)) as board:
        board.boot()
        wait_for(lambda: fleet.is_online("pi-1"), board.journal)
        wait_for(lambda: not (boot / "edgeops/token").exists() and serves(board), board.journal)
        check_system(board)
        assert not board.exists("/etc/edgeops/token")

        board.cut()
        wait_for(lambda: not fleet.is_online("pi-1"), board.journal)
        board.boot()
        wait_for(lambda: fleet.is_online("pi-1") and serves(board), board.journal)
        state = board.said("systemctl", "show", "--property=ConditionResult,ActiveState", "edgeops-firstboot.service")
        assert state.split() == ["ActiveState=inactive", "ConditionResult=no"]


def check_system(board: BootedBoard) -> None:
    """Look at what cloud-init has made of it."""
    status = json.loads(board.said("cloud-init", "status", "--wait", "--format=json"))
    assert status["status"] == "done", status
    assert status["errors"] == []
    assert "Valid" in board.said("cloud-init", "schema", "--system")
    assert board.said("hostname").strip() == "board-1"
    assert board.said("cat", "/home/op/.ssh/authorized_keys").strip() == KEY
    assert board.said("runuser", "-u", "op", "--", "sudo", "-n", "id", "-u").strip() == "0"
    assert "passwordauthentication no" in board.said("sshd", "-T")
    assert board.said("systemctl", "is-active", "ssh.service").strip() == "active"
    radio = board.said("cat", "/run/netplan/wpa-wlan0.conf")
    assert 'ssid=P"R\\xc3\\xa4ume \\"1\\""' in radio or f'ssid="{SSID}"' in radio
    assert f'psk="{WORD}"' in radio
    assert "country=DE" in radio
    assert f"{Lab.address.rpartition('.')[0]}." in board.said("ip", "-4", "addr", "show", "dev", "eth0")
