"""A whole arm64 machine that QEMU emulates: Debian's kernel, systemd and sshd. Its power cut is a real one."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from pathlib import Path

from edgeops.flash.payload import put_code
from hil.boards.arm64_root import (
    CODE,
    SITE,
    SUITE,
    call,
    debootstrap,
    ensure_emulation,
    install_packages,
    made_once,
)
from hil.boards.ssh import Login, SshBoard
from hil.interrupts import held
from hil.rig import Arm64VmSpec
from hil.tools import MKE2FS, QEMU_AARCH64, QEMU_IMG, SSH_KEYGEN, ending_with_us

_PACKAGES = (
    "ca-certificates", "dbus", "initramfs-tools", "iproute2", "linux-image-cloud-arm64", "openssh-server", "procps",
    "python3", "python3-venv", "sudo", "systemd-resolved", "systemd-sysv", "systemd-timesyncd", "udev",
)  # fmt: skip
_IMAGE, _KEY = "disk.ext4", "login.key"
_DISK_SIZE = "3G"
_STOP_WITHIN_S = 20
_NETWORK = "[Match]\nName=e*\n\n[Network]\nDHCP=yes\n"
_RECIPE = "1"  # of what is written below; another one makes another image


def vm_folder() -> Path:
    """Return the folder with image, kernel and keys; makes it if it is not there, which takes many minutes.

    Raises:
        EdgeopsError: E-DEPENDENCY or E-TOOLCHAIN.
    """
    ensure_emulation()
    return made_once("arm64-vm", (SUITE, _RECIPE, _DISK_SIZE, *_PACKAGES), _make)


def _make(folder: Path) -> None:
    debootstrap(folder / "root", _PACKAGES)
    _make_disk(folder, folder / "root")


def _make_disk(folder: Path, root: Path) -> None:
    """Take kernel and disk out of a root folder, with keys to log in; the root folder is gone then."""
    for name in ("vmlinuz", "initrd.img"):
        found = sorted((root / "boot").glob(f"{name}-*"))[-1]
        shutil.copyfile(found, folder / name)
    call([SSH_KEYGEN.find(), "-q", "-t", "ed25519", "-N", "", "-f", str(folder / _KEY)])
    call([SSH_KEYGEN.find(), "-A", "-f", str(root)])
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    shutil.copyfile(folder / f"{_KEY}.pub", root / "root/.ssh/authorized_keys")
    (root / "etc/hostname").write_text("board\n")
    (root / "etc/fstab").write_text("/dev/vda / ext4 errors=remount-ro 0 1\n")
    (root / "etc/systemd/network/20-wired.network").write_text(_NETWORK)
    wanted = root / "etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
    wanted.unlink(missing_ok=True)
    wanted.symlink_to("/lib/systemd/system/systemd-networkd.service")
    shutil.copyfile(root / "etc/ssh/ssh_host_ed25519_key.pub", folder / "host.pub")
    call([MKE2FS.find(), "-q", "-t", "ext4", "-d", str(root), str(folder / _IMAGE), _DISK_SIZE])
    shutil.rmtree(root)


class Arm64VmBoard(SshBoard):
    """The machine; each run begins with the same disk, and its changes live as long as the run.

    Args:
        spec: From the rig.
        scratch: A folder for this run's files.

    Raises:
        EdgeopsError: As `vm_folder`.
    """

    cut = "SIGKILL of the emulator: what was not flushed is lost"

    def __init__(self, spec: Arm64VmSpec, scratch: Path) -> None:
        self._home = vm_folder()
        self._scratch, self._memory_mib = scratch, spec.memory_mib
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._ssh_port = free.getsockname()[1]
        kind, key, *_ = (self._home / "host.pub").read_text().split()
        known_hosts = scratch / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{self._ssh_port} {kind} {key}\n")
        login_key = scratch / _KEY
        shutil.copyfile(self._home / _KEY, login_key)
        login_key.chmod(0o600)
        login = Login("127.0.0.1", self._ssh_port, "root", login_key, known_hosts)
        super().__init__(spec.name, spec.profile, login, "/usr/bin/python3", spec.boot_within_s)
        self._disk = scratch / "disk.qcow2"
        backing = str(self._home / _IMAGE)
        call([QEMU_IMG.find(), "create", "-q", "-f", "qcow2", "-b", backing, "-F", "raw", str(self._disk)])
        self._emulator: subprocess.Popen[bytes] | None = None
        self._serial = scratch / f"{spec.name}.console"
        self._is_prepared = False

    def edgeops(self, *arguments: str) -> tuple[str, ...]:
        """Return the words that run an edgeops command."""
        return ("/usr/bin/env", f"PYTHONPATH={CODE}:{SITE}", "/usr/bin/python3", "-m", "edgeops", *arguments)

    def power_on(self) -> None:
        """Boot, and at the first time bring this installation's code and the agent's packages."""
        self.boot()
        if not self._is_prepared:
            packages = self._scratch / "packages"
            install_packages(packages / "site")
            put_code(packages / "code")
            self.copy(packages, "/opt/edgeops")
            self._is_prepared = True

    def boot(self) -> None:
        """Boot the machine as it is.

        Raises:
            EdgeopsError: E-HIL-BOARD; it does not answer in its time.
        """
        if self._emulator is None:
            with held(), self._serial.open("ab") as console:
                self._emulator = subprocess.Popen(
                    ending_with_us(self._command()), stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
                )
        super().power_on()

    def power_off(self) -> None:
        """Kill the emulator."""
        self._drop_link()
        if self._emulator is not None:
            self._emulator.kill()
            self._emulator.wait(_STOP_WITHIN_S)
            self._emulator = None
        self._pids.clear()

    def console(self) -> str:
        """Return the end of its serial console, then of what its programs printed."""
        with contextlib.suppress(FileNotFoundError):
            return self._serial.read_bytes()[-32768:].decode(errors="replace") + super().console()
        return super().console()

    def _command(self) -> list[str]:
        network = f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self._ssh_port}-:22"
        return [
            QEMU_AARCH64.find(), "-M", "virt", "-cpu", "cortex-a53", "-smp", "2", "-m", str(self._memory_mib),
            "-accel", "tcg,thread=multi", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot",
            "-kernel", str(self._home / "vmlinuz"), "-initrd", str(self._home / "initrd.img"),
            "-append", "root=/dev/vda rw console=ttyAMA0",
            "-drive", f"if=none,id=disk,file={self._disk},format=qcow2", "-device", "virtio-blk-pci,drive=disk",
            "-netdev", network, "-device", "virtio-net-pci,netdev=net", "-device", "virtio-rng-pci",
        ]  # fmt: skip
