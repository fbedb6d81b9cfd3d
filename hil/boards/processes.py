"""Boards whose programs are processes of this machine: itself, or an arm64 root folder under QEMU's user emulation."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import psutil

from hil.boards.protocol import Done, broken, check_board
from hil.interrupts import held
from hil.tools import ending_with_us

B = TypeVar("B", bound="ProcessBoard")

_STOP_WITHIN_S = 20.0
_CONSOLE_BYTES = 64 << 10


class ProcessBoard(ABC):
    """A Linux board whose power is the life of its processes.

    Args:
        name: In the rig.
        profile: Its device profile.
        scratch: A folder of this machine for consoles.
        boot_within_s: How long its first answer may take.
        machines: What `uname -m` may say.
    """

    cut = "SIGKILL of all processes of the agent"

    def __init__(self, name: str, profile: str, scratch: Path, boot_within_s: float, machines: Sequence[str]) -> None:
        self.name, self.profile = name, profile
        self._scratch, self._boot_within_s, self._machines = scratch, boot_within_s, tuple(machines)
        self._lasting: dict[str, subprocess.Popen[bytes]] = {}
        self._console = scratch / f"{name}.console"

    def __enter__(self: B) -> B:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with held():
            self.close()

    @abstractmethod
    def _words(self, words: Sequence[str]) -> list[str]:
        """Return how this machine runs a program of the board."""

    @abstractmethod
    def _host_path(self, path: str) -> Path:
        """Return where this machine finds a file of the board."""

    @property
    @abstractmethod
    def folder(self) -> str:
        """See `LinuxBoard`."""

    @abstractmethod
    def edgeops(self, *arguments: str) -> tuple[str, ...]:
        """See `LinuxBoard`."""

    def power_on(self) -> None:
        """Ask the board what it is."""
        self._host_path(self.folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        machine = self.run("uname", "-m", within_s=self._boot_within_s)
        if machine.status != 0:
            raise broken(self.name, f"uname: {machine.err.strip()}")
        check_board(self.name, machine.out.decode().strip(), self._machines)

    def power_off(self) -> None:
        """Kill all that it runs, at once."""
        roots = [process.pid for process in self._lasting.values() if process.poll() is None]
        victims = []
        for root in roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                victims += [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.suspend()  # nobody sees the others go
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        for process in self._lasting.values():
            process.wait(_STOP_WITHIN_S)
        psutil.wait_procs(victims, _STOP_WITHIN_S)
        self._lasting.clear()

    def console(self) -> str:
        """Return the end of what its lasting programs printed."""
        try:
            data = self._console.read_bytes()
        except FileNotFoundError:
            return ""
        return data[-_CONSOLE_BYTES:].decode(errors="replace")

    def close(self) -> None:
        """Power it off, and remove its folder."""
        self.power_off()
        shutil.rmtree(self._host_path(self.folder), ignore_errors=True)

    def run(self, *words: str, within_s: float = 120.0) -> Done:
        """Run a program to its end; see `LinuxBoard`."""
        process: subprocess.Popen[bytes] | None = None
        try:
            with held():
                process = subprocess.Popen(
                    ending_with_us(self._words(words)),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            out, err = process.communicate(timeout=within_s)
        except subprocess.TimeoutExpired as error:
            raise broken(self.name, f"{' '.join(words[:6])}: no end in {within_s:.0f} s") from error
        finally:
            if process is not None and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        return Done(process.returncode, out, err.decode(errors="replace"))

    def start(self, name: str, *words: str) -> None:
        """Start a program that lasts; see `LinuxBoard`."""
        with held(), self._console.open("ab") as console:
            self._lasting[name] = subprocess.Popen(
                ending_with_us(self._words(words)),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self, name: str) -> None:
        """Ask a program that was started to end."""
        process = self._lasting.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._lasting[name] = process
            self.power_off()

    def put(self, file: Path, name: str) -> str:
        """Copy a file into the board's folder."""
        target = f"{self.folder}/{name}"
        place = self._host_path(target)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if file.is_dir():
            shutil.copytree(file, place, dirs_exist_ok=True)
        else:
            shutil.copyfile(file, place)
        return target

    def reach(self, url: str) -> str:
        """Return the address itself: the board's loopback is this machine's."""
        return url

    def is_running(self, name: str) -> bool:
        """Say whether a program that was started still runs."""
        process = self._lasting.get(name)
        return process is not None and process.poll() is None


def wait_until(deadline_s: float, every_s: float = 0.1) -> bool:
    """Sleep a moment; return False once the deadline (monotonic) is over."""
    time.sleep(every_s)
    return time.monotonic() < deadline_s
