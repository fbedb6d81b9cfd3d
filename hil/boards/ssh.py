"""A Linux board that is reached by SSH, through one shared connection of the `ssh` program."""

from __future__ import annotations

import contextlib
import platform
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from edgeops.contracts.errors import EdgeopsError
from edgeops.profiles import registry
from hil.boards.processes import wait_until
from hil.boards.protocol import Done, broken, check_board
from hil.boards.switch import Switch
from hil.interrupts import held
from hil.rig import PowerSwitch, SshSpec
from hil.tools import SCP, SSH

B = TypeVar("B", bound="SshBoard")

_CONNECT_WITHIN_S = 15
_COPY_WITHIN_S = 600.0
_OFF_FOR_S = 2.0
_LINK_LOST = 255
_TAKEN = 75
# The leader of the group is the program itself: killing the group takes its workers along.
_START = """
cd "$1" || exit 1
shift
setsid "$@" >> console 2>&1 < /dev/null &
echo $! >> pids
echo $!
"""
# This machine has one run at a time on a board, so what another one of it left there is nobody's. Of another machine's
# nobody here can tell, so as long as it lives the board is taken.
_FOLDER = """
for old in /var/tmp/edgeops-hil-*; do
  [ -d "$old" ] && [ ! -L "$old" ] && [ -O "$old" ] || continue
  owner=$(cat "$old/owner" 2> /dev/null)
  for pid in $(cat "$old/pids" 2> /dev/null); do
    [ "$(readlink "/proc/$pid/cwd")" = "$old" ] || continue
    [ "$owner" = "$1" ] || { echo "$owner, process $pid"; exit 75; }
    kill -KILL "-$pid"
  done
  [ "$owner" != "$1" ] || rm -rf "$old"
done
new=$(mktemp -d /var/tmp/edgeops-hil-XXXXXX) && echo "$1" > "$new/owner" && echo "$new"
"""
_STOP = 'kill -TERM "$1"; for i in $(seq 100); do kill -0 "$1" || exit 0; sleep 0.2; done; kill -KILL "-$1"'


class Login(NamedTuple):
    """How to log in: host, port, user, and files for the key and for the host's key; None: what ssh finds itself."""

    host: str
    port: int
    user: str
    key_file: Path | None = None
    known_hosts: Path | None = None


class SshBoard:
    """A board that runs already, or that a switch gives power.

    Args:
        name: In the rig.
        profile: Its device profile.
        login: How to log in.
        python: Interpreter on the board that has edgeops.
        boot_within_s: From power to the first answer.
        power: Its switch; None: it has none, and a cut kills the programs that were started.
    """

    _master: tuple[str, ...] = ("-o", "ControlMaster=auto", "-o", "ControlPersist=120")

    def __init__(
        self, name: str, profile: str, login: Login, python: str, boot_within_s: float, power: PowerSwitch | None = None
    ) -> None:
        self.name, self.profile, self.login = name, profile, login
        self._python, self._boot_within_s = python, boot_within_s
        self._switch = Switch(name, power) if power is not None else None
        self._machine = registry.load(profile).cpu.arch
        # Short: addresses of Unix sockets are at most 107 bytes.
        self._private = Path(tempfile.mkdtemp(prefix="eo-"))
        self._pids: dict[str, str] = {}
        self._folder = ""
        self._is_closed = False
        self._options = [
            "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_WITHIN_S}", "-o", "StrictHostKeyChecking=yes",
            "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3", "-o", f"ControlPath={self._private}/c",
            *(("-i", str(login.key_file), "-o", "IdentitiesOnly=yes") if login.key_file else ()),
            *(("-o", f"UserKnownHostsFile={login.known_hosts}") if login.known_hosts else ()),
        ]  # fmt: skip

    @classmethod
    def of(cls, spec: SshSpec, _scratch: Path) -> SshBoard:
        """Return the board that a rig file describes."""
        files = [Path(name).expanduser() if name else None for name in (spec.key_file, spec.known_hosts)]
        login = Login(spec.host, spec.port, spec.user, *files)
        return cls(spec.name, spec.profile, login, spec.python, spec.boot_within_s, spec.power)

    def __enter__(self: B) -> B:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with held():
            self.close()

    @property
    def cut(self) -> str:
        """How its power is cut."""
        return "its power switch" if self._switch else "SIGKILL of all processes of the agent: it has no power switch"

    @property
    def folder(self) -> str:
        """A folder on the board for this run's files."""
        self._enter()
        return self._folder

    def _enter(self) -> None:
        """Make the run's folder, once; what another run of this machine left on the board is ended for it.

        Raises:
            EdgeopsError: E-HIL-BUSY; a run of another machine is there. E-HIL-BOARD.
        """
        if self._folder:
            return
        done = self.run("sh", "-c", _FOLDER, "sh", _machine())
        said = done.out.decode(errors="replace").strip()
        if done.status == _TAKEN:
            what = f"{self.name} is in use by a run of another machine: {said[:200]}"
            raise EdgeopsError("E-HIL-BUSY", what, "Wait for it to end; end that process where its run was killed.")
        if done.status != 0:
            raise broken(self.name, f"no folder for this run: {done.err.strip()}")
        self._folder = said

    def edgeops(self, *arguments: str) -> tuple[str, ...]:
        """Return the words that run an edgeops command."""
        return (self._python, "-m", "edgeops", *arguments)

    def power_on(self) -> None:
        """Switch it on, if it has a switch, and wait until it answers as the board that it should be."""
        if self._switch is not None:
            self._switch.on()
        self._await_link()
        self._enter()

    def power_off(self) -> None:
        """Switch it off; without a switch, kill what was started."""
        if self._switch is not None:
            self._drop_link()
            self._switch.off()
            time.sleep(_OFF_FOR_S)
        else:
            for pid in self._pids.values():
                with contextlib.suppress(EdgeopsError):
                    self.run("kill", "-KILL", f"-{pid}", within_s=_CONNECT_WITHIN_S)
        self._pids.clear()

    def console(self) -> str:
        """Return the end of what its lasting programs printed, if it still answers."""
        if not self._folder:
            return ""
        try:
            return self.run("tail", "-c", "65536", f"{self._folder}/console", within_s=20).out.decode(errors="replace")
        except EdgeopsError:
            return ""

    def close(self) -> None:
        """Stop what was started, remove the run's folder, and switch it off."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            for name in list(self._pids):
                self.stop(name)
            if self._folder:
                self.run("rm", "-rf", self._folder, within_s=60)
        except EdgeopsError:
            pass  # a board that is gone keeps its files: its next run has a folder of its own
        finally:
            try:
                if self._switch is None:
                    self.power_off()
                else:
                    self._drop_link()
                    self._switch.close()
                    time.sleep(_OFF_FOR_S)
            finally:
                self._drop_link()
                shutil.rmtree(self._private, ignore_errors=True)

    def run(self, *words: str, within_s: float = 120.0) -> Done:
        """Run a program to its end; see `LinuxBoard`."""
        return self._call([SSH.find(), *self._target(), "--", shlex.join(words)], within_s, " ".join(words[:6]))

    def start(self, name: str, *words: str) -> None:
        """Start a program that lasts; see `LinuxBoard`."""
        folder = self.folder
        with held():
            done = self.run("sh", "-c", _START, "sh", folder, *words, within_s=_CONNECT_WITHIN_S + 15)
            pid = done.out.decode().strip()
            if done.status != 0 or not pid.isdecimal():
                raise broken(self.name, f"{words[0]} cannot be started: {done.err.strip()}")
            self._pids[name] = pid

    def stop(self, name: str) -> None:
        """Ask a program that was started to end, and wait for it."""
        pid = self._pids.pop(name, None)
        if pid is not None:
            self.run("sh", "-c", _STOP, "sh", pid, within_s=60)

    def put(self, file: Path, name: str) -> str:
        """Copy a file or a folder into the board's folder."""
        return self.copy(file, f"{self.folder}/{name}")

    def copy(self, file: Path, target: str) -> str:
        """Copy a file or a folder to an absolute path of the board; return that."""
        self.run("mkdir", "-p", "--", target.rpartition("/")[0])
        source = f"{file}/." if file.is_dir() else str(file)
        if file.is_dir():
            self.run("mkdir", "-p", "--", target)
        words = [SCP.find(), "-q", "-r", "-P", str(self.login.port), *self._options, source]
        done = self._call(
            [*words, f"{self.login.user}@{self.login.host}:{target}"], _COPY_WITHIN_S, f"copy {file.name}"
        )
        if done.status != 0:
            raise broken(self.name, f"copy {file.name}: {done.err.strip()}")
        return target

    def reach(self, url: str) -> str:
        """Forward a loopback port of the board to one of this machine."""
        parts = urlsplit(url)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        forward = f"127.0.0.1:{port}:{parts.hostname}:{parts.port}"
        self._call([SSH.find(), *self._target(), "-O", "forward", "-L", forward], 30.0, "forward")
        return f"{parts.scheme}://127.0.0.1:{port}"

    def _target(self) -> list[str]:
        login = self.login
        return [*self._options, *self._master, "-p", str(login.port), f"{login.user}@{login.host}"]

    def _connect(self) -> None:
        """Open the shared connection; here its first user does."""

    def _await_link(self) -> None:
        deadline_s = time.monotonic() + self._boot_within_s
        while True:
            said = ""
            try:
                self._connect()
                done = self.run("uname", "-m", within_s=_CONNECT_WITHIN_S + 15)
            except EdgeopsError as error:
                said = error.what
            else:
                if done.status == 0:
                    check_board(self.name, done.out.decode().strip(), (self._machine,))
                    return
                said = done.err.strip()
            if "host key" in said.lower() or not wait_until(deadline_s, 1.0):
                raise broken(self.name, f"no answer by SSH in {self._boot_within_s:.0f} s: {said}")

    def _drop_link(self) -> None:
        with contextlib.suppress(EdgeopsError):
            self._call([SSH.find(), *self._target(), "-O", "exit"], 15.0, "leave")

    def _call(self, command: list[str], within_s: float, what: str) -> Done:
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=within_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise broken(self.name, f"{what}: no end in {within_s:.0f} s") from error
        except OSError as error:
            raise broken(self.name, f"{what}: {error}") from error
        said = done.stderr.decode(errors="replace")
        if done.returncode == _LINK_LOST and command[0].endswith("ssh"):
            raise broken(self.name, f"{what}: {said.strip()}")
        return Done(done.returncode, done.stdout, said)


def _machine() -> str:
    """Return which machine this is, for others that share a board with it."""
    try:
        identity = Path("/etc/machine-id").read_text().strip()
    except OSError:
        identity = ""
    return f"{platform.node()} {identity[:8]}".strip()
