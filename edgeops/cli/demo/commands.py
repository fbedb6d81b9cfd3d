"""The demo works by the commands that a person types: each runs as its own process and is kept for the list."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeops.contracts.errors import ERROR_CODES, EdgeopsError

_COMMAND_TIMEOUT_S = 600
_STOP_TIMEOUT_S = 20


class CommandLine:
    """Runs edgeops commands, finished ones and lasting ones, and remembers what was typed.

    Args:
        environment: Variables beside this process's own.
        logs: Folder for the lasting processes' output.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        self.typed: list[str] = []
        self._environment = {**os.environ, **(environment or {})}
        self._logs = logs
        self._lasting: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def run(self, *arguments: str, remember: bool = True) -> Any:
        """Run a command with `--json` and return what it printed.

        Raises:
            EdgeopsError: The command's own code; E-INTERNAL if it ended without one.
        """
        if remember:
            self._remember(arguments)
        done = subprocess.run(
            [sys.executable, "-m", "edgeops", *arguments, "--json"],
            capture_output=True,
            text=True,
            env=self._environment,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise _error_of(arguments, done.returncode, done.stderr)
        return json.loads(done.stdout)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command that lasts; its output goes to `{name}.log`."""
        self._remember(arguments)
        self._logs.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "edgeops", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )
        self._lasting[name] = process
        return process

    def log(self, name: str) -> str:
        """Return the end of a lasting command's output."""
        path = self._logs / f"{name}.log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    def wait_for(self, name: str, path: Path, *, within_s: float) -> Any:
        """Wait until a lasting command has written a JSON file; return its content.

        Raises:
            EdgeopsError: E-INTERNAL; the command ended, or the file did not come in time.
        """
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if path.exists():
                with contextlib.suppress(json.JSONDecodeError):
                    return json.loads(path.read_text())
            if self._lasting[name].poll() is not None:
                break
            time.sleep(0.1)
        raise EdgeopsError("E-INTERNAL", f"{name} is not ready: {self.log(name)}", f"See {self._logs / name}.log.")

    def stop(self, name: str) -> None:
        """Stop a lasting command, and wait for its end."""
        process = self._lasting.pop(name)
        process.send_signal(signal.SIGTERM)
        _wait_for_end(process)

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """Stop all lasting commands at the end, the newest first, whatever happens in between."""
        try:
            yield
        finally:
            for process in reversed(self._lasting.values()):
                process.send_signal(signal.SIGTERM)
            for process in reversed(self._lasting.values()):
                _wait_for_end(process)
            self._lasting.clear()

    def _remember(self, arguments: tuple[str, ...]) -> None:
        with self._lock:
            self.typed.append(" ".join(("edgeops", *arguments)))


def _wait_for_end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _error_of(arguments: tuple[str, ...], status: int, stderr: str) -> EdgeopsError:
    last = stderr.strip().removeprefix("error ")
    code, _, what = last.partition(": ")
    if code in ERROR_CODES:
        return EdgeopsError(code, what)
    return EdgeopsError("E-INTERNAL", f"edgeops {' '.join(arguments)}: exit status {status}: {last[-1500:]}")
