"""A supervised child process: it dies with its parent, is started again when it dies, and its output is logged."""

from __future__ import annotations

import collections
import ctypes
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError
from edgeops.transport.mqtt import backoff_s

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
RESTART_FIRST_S = 0.2
RESTART_MAX_S = 30.0
STEADY_S = 30.0  # a child that lived this long starts the back-off anew
STOP_WITHIN_S = 10.0


class RunAs(NamedTuple):
    """User and group of a child; only root can ask for others than its own."""

    uid: int
    gid: int


class SupervisedChild:
    """One server process on one TCP port, kept running until `stop`.

    Its life hangs on the supervising thread: the kernel sends SIGTERM when that thread ends, also by SIGKILL.

    Args:
        name: Name for logs and errors.
        command: Program and arguments.
        host: Address on which it will accept connections.
        port: Port on which it will accept connections.
        directory: Its working directory; None: this process's own.
        run_as: User to run as; None: this process's own.
        on_death: Called when it ended by itself, before it is started again.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        host: str,
        port: int,
        directory: Path | None = None,
        run_as: RunAs | None = None,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self._name, self._command, self._host, self._port = name, list(command), host, port
        self._directory, self._run_as = directory, run_as
        self._on_death = on_death
        self._process: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._accepting = threading.Event()
        self._first_exit = threading.Event()
        self._last_lines: collections.deque[str] = collections.deque(maxlen=8)
        self._thread = threading.Thread(target=self._supervise, name=f"{name}-supervisor", daemon=True)
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Process id of the running child."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self, within_s: float = 20.0) -> None:
        """Start the child and wait until its port accepts connections.

        Raises:
            EdgeopsError: E-BROKER; it ended, or did not accept in time. Nothing is left running.
        """
        self._thread.start()
        deadline = time.monotonic() + within_s
        while not self._accepting.wait(0.05):
            if self._first_exit.is_set() or time.monotonic() > deadline:
                why = "ended" if self._first_exit.is_set() else f"did not accept connections within {within_s:.0f} s"
                self.stop()
                said = " | ".join(self._last_lines) or "it said nothing"
                raise EdgeopsError(
                    "E-BROKER",
                    f"{self._name} on {self._host}:{self._port} {why}: {said}",
                    "Check that the port is free and that the program is whole.",
                )

    def stop(self) -> None:
        """End the child (SIGTERM, then SIGKILL) and its supervision. Safe to call twice."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _supervise(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            began_s = time.monotonic()
            try:
                process = self._spawn()
            except OSError as error:
                self._last_lines.append(str(error))
            else:
                self._watch(process)
            if self._stopping.is_set():
                break
            self._first_exit.set()
            self._accepting.clear()
            self._on_death()
            attempt = 0 if time.monotonic() - began_s > STEADY_S else attempt + 1
            wait_s = backoff_s(attempt, first_s=RESTART_FIRST_S, max_s=RESTART_MAX_S)
            log.warning("%s ended (%s); starting it again in %.1f s", self._name, " | ".join(self._last_lines), wait_s)
            self._stopping.wait(wait_s)

    def _spawn(self) -> subprocess.Popen[str]:
        parent = os.getpid()

        def die_with_parent() -> None:
            # After setuid, which would clear it. The check closes the gap between fork and prctl.
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=self._directory,
            preexec_fn=die_with_parent,  # two system calls, no lock
            user=self._run_as.uid if self._run_as else None,
            group=self._run_as.gid if self._run_as else None,
            extra_groups=[] if self._run_as else None,
        )
        self._process = process
        self.starts += 1
        threading.Thread(target=self._read, args=(process,), name=f"{self._name}-log", daemon=True).start()
        return process

    def _watch(self, process: subprocess.Popen[str]) -> None:
        """Return when the child has ended; end it when asked to stop."""
        while process.poll() is None:
            if not self._accepting.is_set() and self._accepts():
                self._accepting.set()
            if self._stopping.wait(0.5 if self._accepting.is_set() else 0.05):
                process.terminate()
                try:
                    process.wait(STOP_WITHIN_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _accepts(self) -> bool:
        try:
            with socket.create_connection((self._host, self._port), timeout=1):
                return True
        except OSError:
            return False

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._last_lines.append(line.strip()[:300])
                log.debug("%s: %s", self._name, line.rstrip())
