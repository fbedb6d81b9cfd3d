"""A card's first boot, for real: Debian's systemd and cloud-init run what `edgeops flash image` wrote."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from adder_bundles import MODEL, PROFILE, small_bundle
from booted_board import BootedBoard, Lab, wait_for
from click.testing import CliRunner
from fake_device import join
from loopback_board import Api
from served_fleet import Serving
from test_card import base_image, tool

from edgeops.cli import flash as cli
from edgeops.client.resources import DeviceInfo
from edgeops.contracts.errors import EdgeopsError
from edgeops.flash import card, imaging, over_ssh, payload
from edgeops.flash.fit import choose
from edgeops.flash.link import Login
from edgeops.flash.over_ssh import Wish
from edgeops.flash.system import read_system
from edgeops.profiles import registry
from edgeops.releases import assemble
from edgeops.releases.export import export
from edgeops.releases.publish import publish
from edgeops.trust.founding import make_fleet
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
    pytest.mark.timeout(3000),
    pytest.mark.skipif(os.geteuid() != 0, reason="a board that boots needs root: namespaces, mounts and debootstrap"),
    pytest.mark.skipif(bool(MISSING), reason=f"apt-get install --yes {' '.join(MISSING)}"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the release of these tests is for x86-64: run it there"),
]
# debootstrap finds no virtual packages: cloud-init needs python3-cffi-backend by another name.
PACKAGES = (
    "ca-certificates", "cloud-init", "dbus", "iproute2", "locales", "netplan.io", "python3-cffi-backend",
    "openssh-server", "python3", "sudo", "systemd-sysv", "udev",
)  # fmt: skip
WAIT_ONLINE = "/lib/systemd/systemd-networkd-wait-online"
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
        # Each board gets an identity of its own, and by it an address.
        (folder / "etc/machine-id").write_text("uninitialized\n")
        (folder / "var/lib/dbus/machine-id").unlink(missing_ok=True)
        (folder / "var/log/journal").mkdir(exist_ok=True)
        # Systems with a boot partition for cloud-init say where it is; here it is a folder.
        for name in ("user-data", "meta-data", "network-config"):
            link = folder / "var/lib/cloud/seed/nocloud" / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(f"/boot/firmware/{name}")
        (folder / "etc/cloud/cloud.cfg.d/99_board.cfg").write_text(
            "datasource_list: [NoCloud, None]\nlocale: C.UTF-8\n"
        )
        # As systems for boards have it. cloud-init's fallback goes by permanent addresses: virtual cables have none.
        cable = folder / "etc/systemd/network/20-cable.network"
        cable.write_text("[Match]\nName=e*\n\n[Network]\nDHCP=yes\n")
        wanted = folder / "etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
        wanted.unlink(missing_ok=True)
        wanted.symlink_to("/lib/systemd/system/systemd-networkd.service")
        # No board of these tests has a radio: nobody waits for it for two minutes.
        waiting = folder / "etc/systemd/system/systemd-networkd-wait-online.service.d/board.conf"
        waiting.parent.mkdir(parents=True)
        waiting.write_text(f"[Service]\nExecStart=\nExecStart={WAIT_ONLINE} --timeout=5\n")

    return made_once(f"first-boot-{request.param}", ("2", request.param, *PACKAGES), make)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab


class Fleet:
    """A control plane in the lab, with one release."""

    def __init__(self, folder: Path, lab: Lab) -> None:
        home = folder / "home"
        self.lab = lab
        make_fleet(home, "demo")
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


@pytest.fixture
def card_maker(tmp_path: Path, debian: Path, monkeypatch: pytest.MonkeyPatch, one_runtime: None) -> CardMaker:
    """Makes cards by the command, in the lab; packages are resolved outside, where there is a network."""
    system = tmp_path / "system"
    for name in ("var/lib/dpkg/status", "usr/lib/os-release", "etc/fstab", "etc/cloud/cloud.cfg.d/99_board.cfg"):
        if (debian / name).exists():
            (system / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(debian / name, system / name)
    base = base_image(tmp_path, boot_mib=300, system=system)
    board = imaging.expected_board(registry.load(PROFILE), read_system(base))
    built = payload.build(board, choose(board, registry.load(PROFILE)), tmp_path)
    for module in (imaging, payload):
        monkeypatch.setattr(module, "build", lambda *_: built)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    return CardMaker(tmp_path, base)


class CardMaker(NamedTuple):
    """Where cards are made."""

    folder: Path
    base: Path

    def write(self, fleet: Fleet, name: str, *options: str) -> Path:
        """Make a card for a device of this name; return what is then on its boot partition."""
        out, key = self.folder / f"{name}.img", self.folder / "key.pub"
        words = ["image", "--base", str(self.base), "--out", str(out), "--profile", PROFILE, "--name", name,
                 "--hostname", "board-1", "--login", "op", "--ssh-key", str(key), "--home", str(fleet.serving.home),
                 "--release", str(fleet.stick), *options]  # fmt: skip
        with fleet.lab.inside():
            result = CliRunner().invoke(cli.command, words, env={"EDGEOPS_WIFI_PASSWORD": WORD})
        assert result.exit_code == 0, (result.output, result.exception)
        assert card.sha256_of(out) in result.stdout
        boot = self.folder / f"{name}-boot"
        boot.mkdir()
        tool("mcopy", "-s", "-i", card.boot_partition(out).drive, "::*", boot)
        for file in boot.rglob("*"):
            file.chmod(0o755)  # as FAT is mounted
        return boot


def answer(board: BootedBoard) -> float:
    said = board.said("runuser", "-u", "edgeops", "--", "/opt/edgeops/current/bin/python", "-c", ASK)
    return float(said)


def serves(board: BootedBoard) -> bool:
    return board.exists("/run/edgeops/adder.sock") and answer(board) == 2.0


def test_cloud_init_makes_a_board_a_device_and_its_twin_is_refused_until_it_is_flashed(
    tmp_path: Path, debian: Path, lab: Lab, fleet: Fleet, card_maker: CardMaker
) -> None:
    boot = card_maker.write(fleet, "pi-1", "--wifi", SSID, "--country", "DE")
    twin_boot = shutil.copytree(boot, tmp_path / "twin-boot")
    network, twin_network = lab.socket(), lab.socket()
    lab.plug(network)
    lab.plug(twin_network)
    with (
        BootedBoard(tmp_path / "board", debian, boot, network) as board,
        BootedBoard(tmp_path / "twin", debian, twin_boot, twin_network) as twin,
    ):
        board.boot()
        wait_for(lambda: fleet.is_online("pi-1"), board.journal)
        wait_for(lambda: not (boot / "edgeops/token").exists() and serves(board), board.journal)
        check_system(board, (tmp_path / "key.pub").read_text().strip())
        assert not board.exists("/etc/edgeops/token")
        assert not (boot / "edgeops/identity.tar.gz").exists()

        twin.boot()
        wait_for(lambda: "E-TOKEN" in twin.journal(), twin.journal)
        assert set(fleet.devices()) == {"pi-1"}
        assert fleet.is_online("pi-1")
        assert serves(board)

        board.cut()
        wait_for(lambda: not fleet.is_online("pi-1"), board.journal)
        board.boot()
        wait_for(lambda: fleet.is_online("pi-1") and serves(board), board.journal)
        state = board.said("systemctl", "show", "--property=ConditionResult,ActiveState", "edgeops-firstboot.service")
        assert sorted(state.split()) == ["ActiveState=inactive", "ConditionResult=no"]

        check_ssh(twin, fleet, tmp_path)
        wait_for(lambda: serves(twin), twin.journal)
        assert {name for name, device in fleet.devices().items() if device.online} == {"pi-1", "pi-2"}


def check_system(board: BootedBoard, key: str) -> None:
    """Look at what cloud-init has made of it."""
    status = json.loads(board.said("cloud-init", "status", "--wait", "--format=json"))
    assert (status["status"], status["errors"]) == ("done", [])
    assert "Valid" in board.said("cloud-init", "schema", "--system")
    assert board.said("hostname").strip() == "board-1"
    assert board.said("cat", "/home/op/.ssh/authorized_keys").strip() == key
    assert board.said("runuser", "-u", "op", "--", "sudo", "-n", "id", "-u").strip() == "0"
    assert "passwordauthentication no" in board.said("sshd", "-T")
    assert board.said("systemctl", "is-active", "ssh.service").strip() == "active"
    radio = board.said("cat", "/run/netplan/wpa-wlan0.conf")
    assert SSID in radio.replace('\\"', '"')  # newer netplans escape it
    assert WORD in radio
    assert "country=DE" in radio
    assert board.address().startswith(Lab.address.rpartition(".")[0])


def check_ssh(board: BootedBoard, fleet: Fleet, folder: Path) -> None:
    """Flash a board over its own sshd as a user who must become root by sudo, under its own systemd."""
    key = board.said("ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub")
    login = Login(board.address(), 22, "op", folder / "key", fingerprint=key.split()[1])
    used = fleet.token("third")
    with fleet.lab.inside():
        join(folder / "third", used, profile=PROFILE, name="third")
        with pytest.raises(EdgeopsError, match="unknown, used or expired") as caught:
            asyncio.run(over_ssh.flash(login, Wish(token=used, name="pi-2"), Api(fleet.serving), folder))
        assert caught.value.code == "E-TOKEN"
        done = asyncio.run(over_ssh.flash(login, Wish(name="pi-2", stick=fleet.stick), Api(fleet.serving), folder))
    assert (done.device, done.online) == ("pi-2", True)
    assert "confirmed" in done.release


def test_a_board_without_network_serves_at_its_first_boot_and_joins_when_there_is_one(
    tmp_path: Path, debian: Path, lab: Lab, fleet: Fleet, card_maker: CardMaker
) -> None:
    """The older way, too: the kernel's command line names a script that leaves a service behind, and restarts."""
    boot = card_maker.write(fleet, "alone", "--format", "firstrun", "--enrolled")
    assert not (boot / "edgeops/token").exists()
    network = lab.socket()
    with BootedBoard(tmp_path / "board", debian, boot, network) as board:
        first = (boot / "cmdline.txt").read_text().split()
        assert "systemd.run=/boot/firmware/firstrun.sh" in first
        board.boot(*(word for word in first if word.startswith("systemd.")))
        board.wait_off()
        assert not (boot / "firstrun.sh").exists()
        second = (boot / "cmdline.txt").read_text().split()
        assert second == first[: len(second)]
        assert not any(word.startswith("systemd.") for word in second)
        board.boot()
        wait_for(lambda: serves(board), board.journal)
        wait_for(lambda: not (boot / "edgeops/identity.tar.gz").exists(), board.journal)
        assert board.address() == ""
        assert not fleet.is_online("alone")
        assert board.said("stat", "-c", "%a %U", "/var/lib/edgeops/identity").split() == ["700", "edgeops"]
        lab.plug(network)
        wait_for(lambda: fleet.is_online("alone"), board.journal)
        assert serves(board)
