"""Cards and images: what is written is there, and what must not be written to is left alone."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeops.contracts.errors import EdgeopsError
from edgeops.flash import card, firstboot, imaging
from edgeops.flash.card import Device
from edgeops.flash.firstboot import FirstBoot, Network
from edgeops.flash.payload import Payload
from edgeops.flash.system import read, read_system
from edgeops.profiles import registry

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MIB = 1 << 20
NEEDED = {"mcopy": "mtools", "mkfs.vfat": "dosfstools", "sfdisk": "fdisk", "debugfs": "e2fsprogs"}
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MISSING = [package for name, package in NEEDED.items() if not shutil.which(name, path=PATH)]
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"apt-get install --yes {' '.join(MISSING)}")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHIp3Yx4Zz8pVvVAbvEXAMPLEexampleEXAMPLEex me@host"
WISH = FirstBoot(
    hostname="pi-1", user="op", ssh_keys=(KEY,), network=Network("Räume \"1\"", "se'cret \\ word", "DE"),
    profile="raspberry-pi-4", name="pi-1", version="0.1.0-abc", sha256="ab" * 32, has_identity=False, has_release=True,
)  # fmt: skip


def tool(name: str, *words: object) -> str:
    path = shutil.which(name, path=PATH)
    assert path is not None
    done = subprocess.run([path, *map(str, words)], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout


def base_image(folder: Path, boot_mib: int = 40, label: str = "dos", system: Path | None = None) -> Path:
    """Make an image like Raspberry Pi OS's: a FAT boot partition with cmdline.txt, then one with a system, if given."""
    path = folder / "base.img"
    with path.open("wb") as file:
        file.truncate((boot_mib + 8) * MIB)
    kind = "c" if label == "dos" else "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"
    script = f"label: {label}\nstart=2048, size={(boot_mib - 2) * 2048}, type={kind}\nstart={boot_mib * 2048}, type=L\n"
    subprocess.run([shutil.which("sfdisk", path="/usr/sbin:/sbin") or "sfdisk", "-q", path], input=script, text=True,
                   check=True, capture_output=True)  # fmt: skip
    boot = folder / "boot.fat"
    with boot.open("wb") as file:
        file.truncate((boot_mib - 2) * MIB)
    tool("mkfs.vfat", "-F", "32", boot)
    cmdline = folder / "cmdline.txt"
    cmdline.write_text("console=serial0,115200 root=PARTUUID=1-02 rootwait systemd.run=/old.sh\n")
    tool("mcopy", "-i", boot, cmdline, "::cmdline.txt")
    with path.open("r+b") as file:
        file.seek(2048 * 512)
        file.write(boot.read_bytes())
    if system is not None:
        tool("mke2fs", "-q", "-t", "ext4", "-E", f"offset={boot_mib * MIB}", "-d", system, path, "6M")
    return path


STATUS = """\
Package: libc6
Status: install ok installed
Architecture: {arch}
Version: 2.41-12+deb13u1

Package: python3
Status: install ok installed
Architecture: {arch}
Version: {python}

Package: {third}
Status: install ok installed
Architecture: all
Version: 25.1.4-1

Package: netplan.io
Status: deinstall ok config-files
Architecture: {arch}
Version: 1.1.2-7
"""


def trixie(
    folder: Path,
    arch: str = "arm64",
    python: str = "3.13.5-1",
    third: str = "cloud-init",
    fstab: str = "",
    seed: str = "",
) -> Path:
    """Write the files of a system by which an image says what it holds."""
    texts = {
        "var/lib/dpkg/status": STATUS.format(arch=arch, python=python, third=third),
        "usr/lib/os-release": 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n', "etc/fstab": fstab,
        "etc/cloud/cloud.cfg.d/99_x.cfg": seed,
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def small_payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Payload:
    """Packages that no first boot of these tests unpacks."""
    file = tmp_path / "payload.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        archive.add(__file__, "edgeops/x.py")
    payload = Payload(file, "0.1.0-abc", card.sha256_of(file), 1, ())
    monkeypatch.setattr(imaging, "build", lambda *_: payload)
    return payload


def asked(tmp_path: Path, **changed: Any) -> imaging.Card:
    (tmp_path / "release").write_bytes(b"release" * 1000)
    values = {
        "base": tmp_path / "base.img", "out": tmp_path / "card.img", "form": "cloud-init", "profile": "raspberry-pi-4",
        "hostname": "pi-1", "name": "pi-1", "user": "op", "ssh_keys": (KEY,), "network": WISH.network,
        "has_identity": False, "stick": tmp_path / "release", **changed,
    }  # fmt: skip
    return imaging.Card(**values)


def make(tmp_path: Path, *, secret: str = "eo1.secret", vouched: list[str] | None = None, **changed: Any) -> str:
    """Make a card; `vouched` tells whether its secret was asked for."""

    def vouch() -> Path:
        if vouched is not None:
            vouched.append(secret)
        file = tmp_path / "secret"
        file.write_text(secret)
        return file

    return imaging.make(asked(tmp_path, **changed), tmp_path, vouch, lambda _what: True, lambda _line: None)


@needs_tools
@pytest.mark.parametrize("label", ["dos", "gpt"])
@pytest.mark.parametrize("form", ["cloud-init", "firstrun"])
def test_an_image_holds_what_the_first_boot_needs(
    tmp_path: Path, small_payload: Payload, form: str, label: str
) -> None:
    base = base_image(tmp_path, label=label)
    before = card.sha256_of(base)
    said = make(tmp_path, form=form)
    assert card.sha256_of(base) == before
    image = tmp_path / "card.img"
    assert card.sha256_of(image) in said
    boot = card.boot_partition(image)
    back = tmp_path / "back"
    tool("mcopy", "-i", boot.drive, "::edgeops/payload.tar.gz", back)
    assert card.sha256_of(back) == small_payload.sha256
    assert card.read_text(boot, "edgeops/token") == "eo1.secret"
    script = card.read_text(boot, "edgeops/install.sh")
    assert script is not None
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    assert small_payload.sha256 in script
    cmdline = card.read_text(boot, "cmdline.txt")
    assert cmdline is not None
    if form == "cloud-init":
        assert "systemd.run=/old.sh" in cmdline
        assert card.read_text(boot, "user-data") is not None
    else:
        assert cmdline.count("systemd.run=") == 1
        assert "rootwait systemd.run=/boot/firmware/firstrun.sh" in cmdline


def test_cloud_init_is_told_network_login_and_service() -> None:
    texts = firstboot.files(WISH, "cloud-init")
    head, _, body = texts["user-data"].partition("\n")
    assert head == "#cloud-config"
    config = json.loads(body)
    assert config["users"][0]["ssh_authorized_keys"] == [KEY]
    assert config["ssh_pwauth"] is False
    assert "install.sh" in config["write_files"][0]["content"]
    network = json.loads(texts["network-config"])
    assert network["wifis"]["wlan0"]["access-points"] == {'Räume "1"': {"password": "se'cret \\ word"}}


def test_raspberry_pi_os_is_told_the_same() -> None:
    texts = firstboot.files(WISH, "firstrun", "root=x rootwait")
    config = tomllib.loads(texts["custom.toml"])
    assert config["wlan"] == {
        "ssid": "Räume \"1\"", "password": "se'cret \\ word", "password_encrypted": False, "country": "DE",
    }  # fmt: skip
    assert config["ssh"]["authorized_keys"] == [KEY]
    assert config["system"] == {"hostname": "pi-1"}
    with pytest.raises(EdgeopsError, match=r"no cmdline\.txt"):
        firstboot.files(WISH, "firstrun", None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hostname": "pi_1"}, {"hostname": "a; reboot"}, {"user": "Root!"}, {"ssh_keys": ("not a key",)},
        {"ssh_keys": (KEY + "\nroot",)}, {"network": Network("x" * 33, None, "DE")},
        {"network": Network("x", "short", "DE")}, {"network": Network("x", "long enough", "Germany")},
    ],
)  # fmt: skip
def test_what_no_board_can_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(EdgeopsError) as caught:
        firstboot.files(WISH._replace(**wrong), "cloud-init")
    assert caught.value.code == "E-CONFIG"


def test_words_for_the_shell_stay_words(tmp_path: Path) -> None:
    """A name with quotes and commands runs nothing: the script is tried with a shell that prints its words."""
    script = firstboot.install_script(WISH._replace(name="x'; touch HACKED; '"))
    line = next(line for line in script.splitlines() if "install-service" in line)
    said = subprocess.run(
        ["sh", "-c", f"set -- {line}; for word; do echo \"[$word]\"; done"], capture_output=True, text=True, check=True,
        cwd=tmp_path,
    ).stdout  # fmt: skip
    assert "[x'; touch HACKED; ']" in said
    assert list(tmp_path.iterdir()) == []


@needs_tools
def test_no_room_and_no_boot_partition_leave_no_image(tmp_path: Path, small_payload: Payload) -> None:
    base_image(tmp_path)
    big = tmp_path / "big"
    big.write_bytes(os.urandom(60 * MIB))
    vouched: list[str] = []
    with pytest.raises(EdgeopsError) as caught:
        make(tmp_path, stick=big, vouched=vouched)
    assert caught.value.code == "E-FLASH-CARD"
    # Nobody was enrolled for a card that is none.
    assert vouched == []
    (tmp_path / "base.img").write_bytes(bytes(MIB))
    with pytest.raises(EdgeopsError, match="no disk image"):
        make(tmp_path)
    assert not (tmp_path / "card.img").exists()
    with pytest.raises(EdgeopsError) as caught:
        make(tmp_path, out=tmp_path / "base.img", base=tmp_path / "nothing.img")
    assert caught.value.code == "E-FLASH-CARD"


@needs_tools
def test_the_base_image_is_never_replaced_and_nobody_else_reads_the_secrets(
    tmp_path: Path, small_payload: Payload
) -> None:
    base = base_image(tmp_path)
    before = card.sha256_of(base)
    (tmp_path / "link.img").symlink_to(base)
    for out in ("base.img", "link.img", "no/folder/card.img", "."):
        vouched: list[str] = []
        with pytest.raises(EdgeopsError) as caught:
            make(tmp_path, out=tmp_path / out, vouched=vouched)
        assert (caught.value.code, vouched) == ("E-FLASH-CARD", [])
    assert card.sha256_of(base) == before
    (tmp_path / "card.img").write_bytes(b"an older one")
    (tmp_path / "card.img").chmod(0o644)
    make(tmp_path)
    assert (tmp_path / "card.img").stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".card.img*"))


def lsblk(**changed: Any) -> str:
    disk = {"name": "sdb", "type": "disk", "model": "SD Reader", "size": 1000, "ro": False, "mountpoints": [None]}
    return json.dumps({"blockdevices": [{**disk, **changed}]})


def test_a_system_disk_is_never_written_to(tmp_path: Path) -> None:
    def refused(**changed: Any) -> str:
        return card.read_lsblk(Path("/dev/sdb"), lsblk(**changed)).refused

    assert refused() == ""
    part = {"name": "sdb1", "type": "part", "mountpoints": ["/"], "fstype": "ext4"}
    assert "in use: /" in refused(children=[part])
    inner = {"name": "root", "type": "crypt", "mountpoints": ["/home"]}
    assert "/home" in refused(children=[{**part, "mountpoints": [], "children": [inner]}])
    assert "swap" in refused(children=[{**part, "mountpoints": [], "fstype": "swap"}])
    assert "part, not a whole disk" in refused(type="part")
    assert "write-protected" in refused(ro=True)
    for odd in ("", "{}", '{"blockdevices": []}', "[]"):
        with pytest.raises(EdgeopsError):
            card.read_lsblk(Path("/dev/sdb"), odd)
    image = tmp_path / "image"
    image.write_bytes(b"x" * 100)
    device = Device(tmp_path / "disk", "m", 1000, "it is in use: /")
    device.path.write_bytes(bytes(1000))
    with pytest.raises(EdgeopsError, match="in use"):
        card.write_device(image, device)
    assert device.path.read_bytes() == bytes(1000)


def test_this_machines_own_disk_is_refused() -> None:
    """The real lsblk, of the disk that / is on, where that is one."""
    source = subprocess.run(
        ["findmnt", "-no", "SOURCE", "/"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not re.fullmatch(r"/dev/\w+", source):
        pytest.skip(f"/ is on {source or 'nothing'}, which is no disk: run it on a machine with one")
    assert card.describe(Path(source)).refused


def test_a_card_is_read_back_and_a_small_or_bad_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, disk = tmp_path / "image", tmp_path / "disk"
    image.write_bytes(os.urandom(9 * MIB))
    disk.write_bytes(bytes(16 * MIB))
    digest = card.write_device(image, Device(disk, "card", 16 * MIB, ""))
    assert digest == card.sha256_of(image)
    assert disk.read_bytes()[: 9 * MIB] == image.read_bytes()
    with pytest.raises(EdgeopsError, match="larger card"):
        card.write_device(image, Device(disk, "card", 8 * MIB, ""))

    real = os.fsync

    def worn(descriptor: int) -> None:
        real(descriptor)
        with disk.open("r+b") as cells:
            cells.seek(5 * MIB)
            cells.write(b"\0")

    monkeypatch.setattr(card.os, "fsync", worn)
    with pytest.raises(EdgeopsError, match="reads back otherwise"):
        card.write_device(image, Device(disk, "card", 16 * MIB, ""))


def test_a_card_that_is_pulled_out_while_it_is_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, disk = tmp_path / "image", tmp_path / "disk"
    image.write_bytes(os.urandom(9 * MIB))
    disk.write_bytes(bytes(16 * MIB))
    real, files = os.write, len(list(Path("/proc/self/fd").iterdir()))

    def pulled(descriptor: int, data: Any) -> int:
        if os.lseek(descriptor, 0, os.SEEK_CUR) >= 4 * MIB:
            raise OSError(errno.ENXIO, "No such device or address")
        return real(descriptor, bytes(data[: 1 * MIB]))  # in parts, as the kernel may

    monkeypatch.setattr(card.os, "write", pulled)
    with pytest.raises(EdgeopsError, match="not usable now") as caught:
        card.write_device(image, Device(disk, "card", 16 * MIB, ""))
    assert caught.value.code == "E-DISK-WRITE"
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    monkeypatch.setattr(card.os, "write", lambda descriptor, data: real(descriptor, bytes(data[: 1 * MIB])))
    assert card.write_device(image, Device(disk, "card", 16 * MIB, "")) == card.sha256_of(image)


class Reader:
    """A reader of cards: a loop device of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = Path()

    def insert(self, name: str, size_mib: int = 16) -> None:
        """Put in a card with a file system; in the same reader, under the same name, as the one before."""
        file = self.folder / name
        with file.open("wb") as made:
            made.truncate(size_mib * MIB)
        tool("mke2fs", "-q", "-t", "ext4", file)
        self.path = Path(tool("losetup", *(["-f", "--show"] if self.path == Path() else [self.path]), file).strip()
                         or self.path)  # fmt: skip

    def take_out(self) -> None:
        tool("losetup", "-d", self.path)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    made, place = Reader(tmp_path), tmp_path / "tried"
    place.mkdir()
    try:
        made.insert("card")
    except (subprocess.CalledProcessError, AssertionError) as error:
        pytest.skip(f"no loop device here ({error}): run it as root, with the kernel's loop devices")
    try:
        tool("mount", "-o", "ro", made.path, place)
        tool("umount", place)
        yield made
    except subprocess.CalledProcessError as error:
        pytest.skip(f"nothing can be mounted here ({error}): run it where root may")
    finally:
        made.take_out()


@needs_tools
def test_a_card_that_was_mounted_or_changed_since_it_was_looked_at_is_not_written_to(
    tmp_path: Path, reader: Reader
) -> None:
    """A desktop mounts what is put in; a person changes cards while the command asks whether it may."""
    image = tmp_path / "image"
    image.write_bytes(os.urandom(3 * MIB + 512))
    looked_at = card.describe(reader.path)
    assert (looked_at.refused, looked_at.size) == ("", 16 * MIB)
    before = card.sha256_of(reader.path)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    tool("mount", "-o", "ro", reader.path, mounted)
    try:
        with pytest.raises(EdgeopsError, match="in use by now") as caught:
            card.write_device(image, looked_at)
        assert caught.value.code == "E-FLASH-CARD"
    finally:
        tool("umount", mounted)
    assert card.sha256_of(reader.path) == before
    reader.take_out()
    reader.insert("somebody's photographs")
    if not Path(f"/sys/block/{reader.path.name}/diskseq").exists():
        pytest.skip("this kernel does not count disks: Linux 5.15 or newer does")
    before = card.sha256_of(reader.path)
    with pytest.raises(EdgeopsError, match="another disk") as caught:
        card.write_device(image, looked_at)
    assert caught.value.code == "E-FLASH-CARD"
    assert card.sha256_of(reader.path) == before
    # Control: looked at again it is written to, and nobody can mount it while it is.
    tried: list[int] = []

    def mount(done: int, _all: int) -> None:
        if not tried and done:
            words = [shutil.which("mount") or "mount", str(reader.path), str(mounted)]
            tried.append(subprocess.run(words, capture_output=True, check=False).returncode)

    digest = card.write_device(image, card.describe(reader.path), mount)
    assert digest == card.sha256_of(image)
    assert reader.path.read_bytes()[: 3 * MIB + 512] == image.read_bytes()
    assert tried[0] != 0


@needs_tools
def test_a_card_is_made_for_the_system_that_it_holds(tmp_path: Path, small_payload: Payload) -> None:
    """Python, C library, mount point and processor come from the image's own files, read without a mount."""
    fstab = "PARTUUID=1-01 /boot/efi vfat defaults 0 2\n"
    base = base_image(tmp_path, system=trixie(tmp_path / "system", fstab=fstab))
    system = read_system(base)
    assert system is not None
    assert (system.title, system.arch, system.glibc, system.python, system.boot) == (
        "Debian GNU/Linux 13 (trixie)", "aarch64", (2, 41), (3, 13), "/boot/efi",
    )  # fmt: skip
    assert (system.has_cloud_init, system.has_netplan, system.is_seeded) == (True, False, False)
    board = imaging.expected_board(registry.load("raspberry-pi-4"), system)
    assert (board.glibc, [python.version for python in board.pythons]) == ((2, 41), [(3, 13)])
    make(tmp_path, network=None)
    boot = card.boot_partition(tmp_path / "card.img")
    script = card.read_text(boot, "edgeops/install.sh")
    assert script is not None
    assert "command -v python3.13" in script
    assert "/bin/sh /boot/efi/edgeops/install.sh" in (card.read_text(boot, "user-data") or "")
    assert card.read_text(boot, "network-config") is None
    # Nothing else tells this system's cloud-init where to look.
    assert card.label_of(boot) == "CIDATA"


@needs_tools
def test_a_boot_partition_that_is_looked_at_anyway_keeps_its_name(tmp_path: Path, small_payload: Payload) -> None:
    seed = "# seedfrom: nothing\ndatasource:\n  NoCloud:\n    fs_label: system-boot\n"
    fstab = "LABEL=system-boot /boot/firmware vfat defaults 0 1\n"
    base_image(tmp_path, system=trixie(tmp_path / "system", fstab=fstab, seed=seed))
    make(tmp_path, network=None)
    assert card.label_of(card.boot_partition(tmp_path / "card.img")) == ""


@needs_tools
@pytest.mark.parametrize(
    ("system", "asked_for", "says"),
    [
        ({"arch": "armhf"}, {}, "it is armv7l, profile raspberry-pi-4 is aarch64"),
        ({"python": "3.9.2-3"}, {"form": "firstrun"}, "it has Python 3.9"),
        ({"third": "raspi-config"}, {}, "no cloud-init"),
        ({}, {"network": Network("Lab", None, "DE")}, "no wireless network"),
        ({"fstab": "LABEL=BOOT /boot/firmware vfat x 0 1\n", "seed": "# fs_label: x\n"}, {}, "needs the label BOOT"),
    ],
)  # fmt: skip
def test_a_system_that_would_not_do_what_its_card_says_is_refused(
    tmp_path: Path, small_payload: Payload, system: dict[str, Any], asked_for: dict[str, Any], says: str
) -> None:
    base_image(tmp_path, system=trixie(tmp_path / "system", **system))
    with pytest.raises(EdgeopsError, match=says) as caught:
        make(tmp_path, **{"network": None, **asked_for})
    assert caught.value.next_step
    assert not (tmp_path / "card.img").exists()


@needs_tools
def test_a_card_with_an_identity_holds_no_token(tmp_path: Path, small_payload: Payload) -> None:
    base_image(tmp_path)
    make(tmp_path, has_identity=True, secret="packed")
    boot = card.boot_partition(tmp_path / "card.img")
    assert card.read_text(boot, "edgeops/identity.tar.gz") == "packed"
    assert card.read_text(boot, "edgeops/token") is None
    script = card.read_text(boot, "edgeops/install.sh")
    assert script is not None
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    assert "edgeops/token" not in script.replace("/etc/edgeops/token", "")


def test_what_is_no_systems_files_is_no_system() -> None:
    assert read("", "", "", ()) is None
    assert read("Package: libc6\nStatus: install ok installed\nArchitecture: mips\nVersion: 2.1\n", "", "", ()) is None
    said = STATUS.format(arch="amd64", python="3.11.2-1+b1", third="x").replace("2.41-12", "not a version")
    assert read(said, "", "", ()) is None
