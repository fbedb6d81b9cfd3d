"""A board that boots: systemd as the first process of a Debian in namespaces of its own, on a network of its own.

Debian's root folder is an overlay's lower layer; what a board writes lies in the upper one and outlives its power cuts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_SUBNET = "192.0.2"  # for documentation: nobody's
_WITHIN_S = 600.0
# As firmware and kernel leave a machine to systemd; sysfs is read-only: no device of this machine is touched.
_POWER_ON = """
set -e
folder=$1 lower=$2 boot=$3 serial=$4
shift 4
root=$folder/root
mkdir -p "$folder/upper" "$folder/work" "$root"
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/work" "$root"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/dev"
for name in null zero full random urandom tty; do
  touch "$root/dev/$name"
  mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mkdir -p "$root/boot/firmware"
mount --bind "$boot" "$root/boot/firmware"
cd "$root"
mkdir -p old
pivot_root . old
umount -l old
exec env -i container=board "container_uuid=$serial" PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd "$@"
"""


def wait_for(condition: Callable[[], object], what: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + _WITHIN_S
    while not condition():
        assert time.monotonic() < deadline_s, what()
        time.sleep(0.5)


class Lab:
    """A network that reaches nothing else: a place for the control plane with a DHCP server, and sockets for boards."""

    address = f"{_SUBNET}.1"

    def __init__(self, folder: Path) -> None:
        self.name = f"eo-lab-{os.getpid()}"
        self._folder, self._dhcp = folder, None
        self._boards: list[str] = []

    def __enter__(self) -> Lab:
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "set", "lo", "up")
        _ip("-n", self.name, "link", "add", "lab", "type", "bridge")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "lab")
        _ip("-n", self.name, "link", "set", "lab", "up")
        program = shutil.which("dnsmasq", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None
        with self.inside(), (self._folder / "dhcp.log").open("ab") as log:
            self._dhcp = subprocess.Popen(
                [program, "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=lab",
                 "--bind-interfaces", "--user=root", "--pid-file=", "--leasefile-ro",
                 f"--dhcp-range={_SUBNET}.10,{_SUBNET}.99,1h"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        if self._dhcp is not None:
            self._dhcp.kill()
            self._dhcp.wait()
        for name in (*self._boards, self.name):
            _ip("netns", "delete", name)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Have this thread, and what it starts, in the lab."""
        with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{self.name}").open() as lab:
            _enter(lab.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def socket(self) -> str:
        """Return a network for one board: its cable ends in the air."""
        name = f"{self.name}-{len(self._boards)}"
        self._boards.append(name)
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        port = f"port{len(self._boards)}"
        _ip("-n", self.name, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        return name

    def plug(self, network: str) -> None:
        """Let the cable of a board end in the lab."""
        _ip("-n", self.name, "link", "set", f"port{self._boards.index(network) + 1}", "master", "lab", "up")


class BootedBoard:
    """The board. Use it as a context manager: it is off at the end.

    Args:
        folder: For what it writes.
        debian: The system's root folder, with systemd; it is not changed.
        boot: What lies on its boot partition.
        network: As `Lab.socket` returns it.
    """

    def __init__(self, folder: Path, debian: Path, boot: Path, network: str) -> None:
        self._folder, self._debian, self._boot, self._network = folder, debian, boot, network
        parent = next(folder for folder in _CGROUPS if (folder / "cgroup.controllers").exists())
        self._group = parent / f"edgeops-{network}"
        self._serial = str(uuid.uuid4())
        self._machine: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)

    def __enter__(self) -> BootedBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def boot(self, *kernel: str) -> None:
        """Switch it on.

        Args:
            kernel: Words of the kernel's command line.
        """
        self._group.mkdir(exist_ok=True)
        entering = f"echo $$ > {self._group}/cgroup.procs"
        with (self._folder / "console.log").open("ab") as log:
            self._machine = subprocess.Popen(
                ["sh", "-c", f'{entering}; exec "$@"', "sh", "nsenter", f"--net=/run/netns/{self._network}",
                 "unshare", "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--kill-child",
                 "--propagation", "private", "sh", "-c", _POWER_ON, "sh",
                 str(self._folder), str(self._debian), str(self._boot), self._serial, *kernel],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def cut(self) -> None:
        """Cut its power."""
        if self._machine is not None:
            self._machine.send_signal(signal.SIGKILL)
            self.wait_off()

    def wait_off(self) -> None:
        """Wait until it has switched itself off, or begun to restart."""
        assert self._machine is not None
        self._machine.wait(_WITHIN_S)
        self._machine = None
        wait_for(lambda: not _processes(self._group), lambda: "processes outlive their machine")
        for inner in sorted(self._group.rglob("*/"), key=lambda path: -len(path.parts)):
            inner.rmdir()
        self._group.rmdir()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program on it."""
        assert self._machine is not None
        init = subprocess.run(["pgrep", "-P", str(self._machine.pid)], capture_output=True, text=True, check=False)
        entering = [
            "nsenter",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--cgroup",
            f"--target={init.stdout.strip()}",
        ]
        return subprocess.run(
            [*entering, "--", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", *words],
            capture_output=True, text=True, check=False, timeout=_WITHIN_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def said(self, *words: str) -> str:
        """Run a program on it that ends well; return what it printed."""
        done = self.run(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}\n{self.journal()}"
        return done.stdout

    def address(self) -> str:
        """Return its address in the lab; empty: it has none."""
        found = re.search(r"inet ([0-9.]+)", self.said("ip", "-4", "addr", "show", "dev", "eth0"))
        return found[1] if found else ""

    def exists(self, path: str) -> bool:
        return self.run("test", "-e", path).returncode == 0

    def journal(self) -> str:
        """Return the end of what it logged."""
        logs = self._folder / "upper/var/log/journal"
        done = subprocess.run(
            ["journalctl", "--quiet", "--no-pager", f"--directory={logs}", "--lines=120"], capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr + (self._folder / "console.log").read_text(errors="replace")[-4000:]


def _processes(group: Path) -> Sequence[str]:
    found: list[str] = []
    for file in group.rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            found += file.read_text().split()
    return found


def _enter(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
