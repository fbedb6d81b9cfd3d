"""What tests of labgrid's boards stand on: environment files, and a coordinator with an exporter on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from edgeops.compiler.toolchain import LABGRID
from firmware_bridge.build import board_firmware
from firmware_bridge.emulated import FLASH_SIZE
from hil.boards.arm64_vm import vm_folder
from hil.boards.labgrid_process import INSTALL
from hil.boards.mcu import emulated_key
from hil.tools import QEMU_AARCH64, QEMU_IMG

needs_labgrid = pytest.mark.skipif(not LABGRID.installed, reason=f"no labgrid {LABGRID.version} here: {INSTALL}")

# A power switch that notes what it is told: on, off.
SWITCH = """
      ExternalPowerDriver:
        cmd_on: sh -c 'echo on >> {folder}/power'
        cmd_off: sh -c 'echo off >> {folder}/power'
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def mcu_environment(folder: Path, machine: str = "mps2-an386", cpu: str = "cortex-m4") -> Path:
    """Write an environment file of a Cortex-M board that labgrid's own QEMUDriver runs; its key is beside it."""
    key = emulated_key()
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    firmware = board_firmware(machine, [key.public_key().public_bytes_raw()])
    (folder / "flash").write_bytes(b"\xff" * FLASH_SIZE)
    (folder / "labgrid.yaml").write_text(f"""
targets:
  main:
    drivers:
      QEMUDriver:
        qemu_bin: qemu
        machine: {machine},memory-backend=nvm
        cpu: {cpu}
        memory: 16M
        kernel: firmware
        extra_args: "-object memory-backend-file,id=nvm,mem-path={folder}/flash,size={FLASH_SIZE},share=on"
tools:
  qemu: qemu-system-arm
images:
  firmware: {firmware}
""")
    return folder / "labgrid.yaml"


def ssh_environment(folder: Path, port: int, key: Path, *, drivers: str = SWITCH, extra: str = "") -> Path:
    """Write an environment file of a board with sshd on loopback; by default with a power switch that takes notes."""
    (folder / "labgrid.yaml").write_text(f"""
targets:
  main:
    resources:
      NetworkService:
        address: 127.0.0.1
        username: root
        port: {port}
    drivers:
      SSHDriver:
        keyfile: {key}
{drivers.format(folder=folder)}
{extra}
""")
    return folder / "labgrid.yaml"


def vm_environment(folder: Path) -> Path:
    """Write an environment file of an arm64 machine that labgrid's own QEMUDriver runs, with a disk of its own.

    Its host key is in `known_hosts` beside it.
    """
    home, port = vm_folder(), free_port()
    kind, key, *_ = (home / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    shutil.copyfile(home / "login.key", folder / "login.key")
    (folder / "login.key").chmod(0o600)
    subprocess.run(
        [QEMU_IMG.find(), "create", "-q", "-f", "qcow2", "-b", home / "disk.ext4", "-F", "raw", folder / "disk.qcow2"],
        check=True,
    )
    network = f"-netdev user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22 -device virtio-net-pci,netdev=net"
    (folder / "labgrid.yaml").write_text(f"""
targets:
  main:
    resources:
      NetworkService:
        address: 127.0.0.1
        username: root
        port: {port}
    drivers:
      QEMUDriver:
        qemu_bin: qemu
        machine: virt
        cpu: cortex-a53
        memory: 1024M
        kernel: kernel
        disk: disk
        boot_args: rw console=ttyAMA0
        extra_args: "-initrd {home}/initrd.img -smp 2 -no-reboot {network} -device virtio-rng-pci"
      SSHDriver:
        keyfile: {folder}/login.key
tools:
  qemu: {QEMU_AARCH64.find()}
images:
  kernel: {home}/vmlinuz
  disk: {folder}/disk.qcow2
""")
    return folder / "labgrid.yaml"


def place_environment(folder: Path, coordinator: int, key: Path) -> Path:
    """Write an environment file of a board at the place `bench` of a coordinator."""
    (folder / "labgrid.yaml").write_text(f"""
targets:
  main:
    resources:
      RemotePlace:
        name: bench
    drivers:
      SSHDriver:
        keyfile: {key}
{SWITCH.format(folder=folder)}
options:
  coordinator_address: 127.0.0.1:{coordinator}
""")
    return folder / "labgrid.yaml"


def _program(name: str) -> list[str]:
    return [str(LABGRID.path / "bin/python"), str(LABGRID.path / "bin" / name)]


class Coordinator:
    """labgrid's coordinator and one exporter, on loopback, with a place `bench` that has a board's sshd."""

    def __init__(self, folder: Path, board_port: int) -> None:
        self.port = free_port()
        self._folder = folder
        (folder / "exports.yaml").write_text(
            f"group:\n  NetworkService:\n    address: 127.0.0.1\n    username: root\n    port: {board_port}\n"
        )
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Coordinator:
        try:
            self._start("labgrid-coordinator", "-l", f"127.0.0.1:{self.port}")
            self._until("places")
            self._start("labgrid-exporter", "-c", f"127.0.0.1:{self.port}", "-n", "lab", "exports.yaml")
            self.client("-p", "bench", "create")
            self.client("-p", "bench", "add-match", "lab/group/NetworkService")
            self._until("resources", says="lab/group/NetworkService")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def client(self, *words: str) -> str:
        """Run labgrid's own client, as this machine's user."""
        done = self._client(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def holder(self) -> str:
        """Who holds the place; empty: nobody."""
        for line in self.client("-p", "bench", "show").splitlines():
            name, _, value = line.strip().partition(": ")
            if name == "acquired":
                return "" if value == "None" else value
        raise AssertionError("the client says nothing of who holds it")

    def _client(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*_program("labgrid-client"), "-x", f"127.0.0.1:{self.port}", *words],
            capture_output=True, text=True, timeout=60, check=False, cwd=self._folder,
        )  # fmt: skip

    def _start(self, program: str, *words: str) -> None:
        with (self._folder / f"{program}.log").open("ab") as log:
            self._processes.append(
                subprocess.Popen([*_program(program), *words], stdout=log, stderr=log, cwd=self._folder)
            )

    def _until(self, command: str, says: str = "") -> None:
        deadline_s = time.monotonic() + 60
        while (done := self._client(command)).returncode != 0 or says not in done.stdout:
            assert time.monotonic() < deadline_s, f"{command}: {done.stdout}{done.stderr}"
            time.sleep(0.2)


@contextlib.contextmanager
def held(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill a process at the end, if it still runs."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, 9)
        process.wait()
