"""A board on this machine: a real sshd with a root folder of its own, in which nothing of the machine can be changed.

/etc and /var/lib are overlays, /opt and /var/tmp are empty; what a unit file says is run as systemd would run it.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served_fleet import Serving

from edgeops.contracts.errors import EdgeopsError
from edgeops.flash import over_ssh
from edgeops.flash.link import Login
from edgeops.flash.over_ssh import Flashed, Wish
from edgeops.intake.cache import cache_dir

_ENTER = """
set -e
for name in etc var/lib; do
  mkdir -p "$1/$name/upper" "$1/$name/work"
  mount -t overlay overlay -o "lowerdir=/$name,upperdir=$1/$name/upper,workdir=$1/$name/work" "/$name"
done
for name in opt var/tmp; do
  mkdir -p "$1/$name"
  mount --bind "$1/$name" "/$name"
done
[ -z "$4" ] || mount -t tmpfs -o "size=$4m,mode=755" tmpfs /opt
[ -z "$5" ] || mount -t tmpfs -o "size=$5m,mode=1777" tmpfs /var/tmp
[ -z "$6" ] || printf 'root:%s\n' "$6" | chpasswd -c SHA512
getent passwd op > /dev/null || useradd --no-create-home --home-dir / --shell /bin/sh op
usermod --password '*' op
install -m 644 "${3%/*}/authorized_keys" /etc/ssh/board_keys
mkdir -p /run/sshd
getent passwd sshd > /dev/null || useradd --system --home-dir /run/sshd --shell /usr/sbin/nologin sshd
exec "$2" -D -e -f "$3"
"""
WITHIN_S = 120.0
UNIT = "etc/systemd/system/edgeops-agent.service"


def sshd() -> str | None:
    """Return where sshd is: installed, or unpacked by `make test-system`; None: nowhere."""
    unpacked = cache_dir() / "unpacked/openssh-server/usr/sbin"
    return shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:{unpacked}")


LOOPS_BACK = "needs root, ssh (apt-get install --yes openssh-client) and sshd (./.ci/unpack openssh-server sshd)"


def can_loop_back() -> bool:
    """Say whether there can be such a board here."""
    return os.geteuid() == 0 and sshd() is not None and shutil.which("ssh") is not None


# A clock of its own for each process that loads this: what it was set to, and the time that has gone by since.
_CLOCK = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *now) {
  int done = (int)syscall(SYS_clock_gettime, id, now);
  const char *shift = getenv("BOARD_CLOCK_SHIFT_S");
  if (done == 0 && shift && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += atol(shift);
  return done;
}
time_t time(time_t *kept) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (kept) *kept = now.tv_sec;
  return now.tv_sec;
}
int gettimeofday(struct timeval *now, void *zone) {
  struct timespec precise;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &precise);
  now->tv_sec = precise.tv_sec;
  now->tv_usec = precise.tv_nsec / 1000;
  return 0;
}
"""


def clock_at(clock_s: float, folder: Path) -> dict[str, str]:
    """Return variables by which programs have that time now, seconds since 1970."""
    library = folder / "clock.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-x", "c", "-", "-o", library]
    subprocess.run(command, input=_CLOCK, text=True, check=True, capture_output=True)
    return {"LD_PRELOAD": str(library), "BOARD_CLOCK_SHIFT_S": str(int(clock_s - time.time()))}


class Api:
    """The control plane, as flashing needs it."""

    def __init__(self, serving: Serving, **token: Any) -> None:
        self._api, self._token = serving.api, token

    def token(self, profile: str, name: str | None) -> str:
        return self._api.create_token(profile=profile, name=name, **self._token).token

    def online(self, name: str) -> bool:
        return any(device.connection == name and device.online for device in self._api.devices())


def code(act: Callable[[], object]) -> str:
    """Return the code of the error that this raises."""
    with pytest.raises(EdgeopsError) as caught:
        act()
    return caught.value.code


def flash(board: LoopbackBoard, wish: Wish, fleet: Api | None, cache: Path, **login: Any) -> Flashed:
    return asyncio.run(over_ssh.flash(board.login._replace(**login), wish, fleet, cache))


class LoopbackBoard:
    """The board. Use it as a context manager.

    Args:
        folder: For its changes, keys and log.
        password: With which root may log in; empty: with the login's key alone.
        opt_mib: Room in /opt; None: that of the disk.
        tmp_mib: Room in /var/tmp; None: that of the disk.
        clock_s: What its clock shows now, seconds since 1970; None: the time.
    """

    def __init__(
        self, folder: Path, *, password: str = "", opt_mib: int | None = None, tmp_mib: int | None = None,
        clock_s: float | None = None,
    ) -> None:  # fmt: skip
        self._options = ["" if given is None else str(given) for given in (opt_mib, tmp_mib, password)]
        self.folder, self.root = folder, folder / "root"
        self.root.mkdir(parents=True)
        folder.chmod(0o755)
        self._environment = {} if clock_s is None else clock_at(clock_s, folder)
        for name in ("host_key", "login_key", "other_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", folder / "rsa_key"], check=True)
        # The last thing before sshd takes it: nobody else has it then.
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        kind, key, *_ = (folder / "host_key.pub").read_text().split()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")
        shutil.copyfile(folder / "login_key.pub", folder / "authorized_keys")
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/rsa_key\n"
            f"HostKey {folder}/host_key\nPidFile none\nUsePAM no\n"
            "AuthorizedKeysFile /etc/ssh/board_keys\nStrictModes no\n"
            f"PasswordAuthentication {'yes' if password else 'no'}\n"
            f"PermitRootLogin {'yes' if password else 'prohibit-password'}\nSubsystem sftp internal-sftp\n"
        )
        if self._environment:
            with (folder / "sshd_config").open("a") as file:
                file.write(
                    "SetEnv " + " ".join(f'"{name}={value}"' for name, value in self._environment.items()) + "\n"
                )
        if password:
            (folder / "authorized_keys").write_text("")
        program = sshd()
        assert program is not None
        self._program = program
        self._sshd: subprocess.Popen[bytes] | None = None
        self._service: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LoopbackBoard:
        self.power_on()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_service()
        self.power_off()

    @property
    def login(self) -> Login:
        return Login("127.0.0.1", self.port, "root", self.folder / "login_key", known_hosts=self.folder / "known_hosts")

    @property
    def fingerprint(self) -> str:
        said = subprocess.run(
            ["ssh-keygen", "-lf", self.folder / "host_key.pub"], check=True, capture_output=True, text=True
        )
        return said.stdout.split()[1]

    def power_on(self) -> None:
        with (self.folder / "sshd.log").open("ab") as log:
            self._sshd = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", _ENTER, "sh", str(self.root),
                 self._program, str(self.folder / "sshd_config"), *self._options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline_s = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline_s, (self.folder / "sshd.log").read_text()
                time.sleep(0.05)

    def power_off(self) -> None:
        """End sshd and all its sessions at once; what was written stays."""
        if self._sshd is None:
            return
        for child in subprocess.run(
            ["pgrep", "-P", str(self._sshd.pid)], capture_output=True, text=True, check=False
        ).stdout.split():
            subprocess.run(["kill", "-KILL", child], check=False, capture_output=True)
        self._sshd.kill()
        self._sshd.wait(60)
        self._sshd = None

    def drop_sessions(self) -> None:
        """Cut all connections; sshd itself goes on."""
        assert self._sshd is not None
        children = subprocess.run(
            ["pgrep", "-P", str(self._sshd.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        for child in children:
            subprocess.run(["kill", "-KILL", child], check=False, capture_output=True)

    def enter(self, *words: str) -> list[str]:
        """Return how a program is run inside."""
        assert self._sshd is not None
        return ["nsenter", "--mount", f"--target={self._sshd.pid}", "--", *words]

    def run(self, *words: str) -> str:
        return subprocess.run(self.enter(*words), check=True, capture_output=True, text=True, timeout=60).stdout

    def exists(self, path: str) -> bool:
        return subprocess.run(self.enter("test", "-e", path), check=False).returncode == 0

    def start_service(self, within_s: float = 120.0) -> None:
        """Run what the unit says once it is there, as the user that it names, as systemd would."""
        deadline_s = time.monotonic() + within_s
        while not self.exists(f"/{UNIT}"):
            assert time.monotonic() < deadline_s, "there is no unit"
            time.sleep(0.1)
        unit = self.run("cat", f"/{UNIT}")
        command = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        user = re.search(r"^User=(.*)$", unit, re.MULTILINE)
        state = re.search(r"^StateDirectory=(.*)$", unit, re.MULTILINE)
        assert command is not None
        assert user is not None
        assert state is not None
        self.run("install", "-d", "-m", "700", "-o", user[1], f"/var/lib/{state[1]}")
        with (self.folder / "agent.log").open("ab") as log:
            self._service = subprocess.Popen(
                self.enter("runuser", "-u", user[1], "--", *shlex.split(command[1])), stdout=log, stderr=log,
                env={**os.environ, **self._environment},
            )  # fmt: skip

    def stop_service(self) -> None:
        if self._service is not None:
            self._service.send_signal(signal.SIGTERM)
            try:
                self._service.wait(30)
            except subprocess.TimeoutExpired:
                self._service.kill()
                self._service.wait()
            self._service = None
