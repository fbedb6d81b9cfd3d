"""Our end of labgrid: a process of its own environment, asked by lines of JSON; nothing it says is taken unchecked.

One request at a time. The process has a session of its own, so an interrupt reaches it only as the end of its input,
upon which it switches the board off and gives its places back. One that hangs is killed with all that it started, and
another one switches off and gives back what it held.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import secrets
import select
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec

from edgeops.compiler.toolchain import LABGRID
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Wire, decode
from hil.boards.protocol import broken
from hil.reservation import lock_folder

T = TypeVar("T", bound=Wire)

INSTALL = f"edgeops toolchain install {LABGRID.name}"
WORKER = Path(__file__).with_name("labgrid_worker.py")
_MAX_ANSWER = 1 << 20
_OPEN_WITHIN_S = 120.0
_OFF_WITHIN_S = 120.0
_CLOSE_WITHIN_S = 240.0
_END_WITHIN_S = 20.0
_ASK_AGAIN_S = 1.0
_CODES = {"busy": "E-HIL-BUSY", "environment": "E-HIL-RIG", "board": "E-HIL-BOARD"}
_STEPS = {
    "busy": "Wait for it to end, or give --wait; `labgrid-client release` frees a place that nobody uses.",
    "environment": "See labgrid's environment file, and docs/reference/hil.md.",
    "board": "Look at the board, its cables and its power.",
}


class Nothing(Wire, frozen=True, kw_only=True):
    """It is done."""


class Opened(Wire, frozen=True, kw_only=True):
    """A target was made: its power driver (empty: none), the places held, and the pseudo terminal of its line."""

    protocol: Literal[1]
    power: str
    places: tuple[str, ...]
    line: Annotated[str, msgspec.Meta(pattern="^(/dev/pts/[0-9]+)?$")]


class Connected(Wire, frozen=True, kw_only=True):
    """Where a shared connection by SSH is found."""

    control: str
    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    user: str


class Printed(Wire, frozen=True, kw_only=True):
    """The end of what the board printed."""

    text: str


class _Failure(Wire, frozen=True, kw_only=True):
    kind: Literal["busy", "environment", "board"]
    what: str


class _Answer(Wire, frozen=True, kw_only=True):
    id: int
    ok: msgspec.Raw = msgspec.Raw(b"null")
    error: _Failure | None = None


class Bench(NamedTuple):
    """What of an environment file is wanted.

    Args:
        name: The board's, for errors.
        environment: labgrid's environment file.
        target: The target in it.
        known_hosts: File with the board's host key.
        state: Of the target's strategy, in which the board runs; empty: its power is switched, no more.
        line: Whether to bring its console to a pseudo terminal.
    """

    name: str
    environment: Path
    target: str
    known_hosts: str = ""
    state: str = ""
    line: bool = False


class LabgridProcess:
    """A target of labgrid's; its board is off and its places are held as long as this is open.

    Args:
        bench: Which.
        folder: A new folder with a short path for its sockets and its log.
        wait_s: How long to wait for places that others hold.
        command: The process; None: labgrid's own environment.

    Raises:
        EdgeopsError: E-DEPENDENCY; labgrid's environment is not installed. E-HIL-BUSY; a place is held by another.
            E-HIL-RIG; the environment file is wrong. E-HIL-BOARD.
    """

    def __init__(self, bench: Bench, folder: Path, wait_s: float = 0.0, command: Sequence[str] | None = None) -> None:
        self._bench, self._folder = bench, folder
        self._command = list(command) if command is not None else worker_command()
        self._log = folder / "log"
        self._alone = threading.RLock()
        self._number = 0
        self._buffer = b""
        self._process: subprocess.Popen[bytes] | None = None
        self.opened = self._open(wait_s)

    def call(self, do: str, kind: type[T], within_s: float) -> T:
        """Ask, and wait for the answer.

        Raises:
            EdgeopsError: E-HIL-BOARD; it cannot be done, there is no answer in time or none that can be read, or the
                process is gone.
        """
        with self._alone:
            if self._process is None:
                raise self._lost("is not running")
            return self._ask(do, kind, within_s, {})

    def switch_off(self) -> None:
        """Take the board's power; where the process cannot, another one does.

        Raises:
            EdgeopsError: E-HIL-BOARD; that one could not, either.
        """
        with self._alone:
            try:
                self.call("off", Nothing, _OFF_WITHIN_S)
            except EdgeopsError:
                self._replace()
                self.call("off", Nothing, _OFF_WITHIN_S)

    def close(self) -> None:
        """Switch the board off and give its places back; where the process cannot, another one does.

        Raises:
            EdgeopsError: E-HIL-BOARD; that one could not, either.
        """
        with self._alone:
            try:
                self.call("close", Nothing, _CLOSE_WITHIN_S)
            except EdgeopsError:
                self._replace()
                self.call("close", Nothing, _CLOSE_WITHIN_S)
            finally:
                self._end()

    def _replace(self) -> None:
        self._kill()
        self.opened = self._open(0.0)

    def _open(self, wait_s: float) -> Opened:
        parameters = {**self._bench._asdict(), "environment": str(self._bench.environment), "owner": _owner()}
        deadline_s = time.monotonic() + wait_s
        self._start()
        try:
            while True:
                try:
                    return self._ask("open", Opened, _OPEN_WITHIN_S, parameters)
                except EdgeopsError as error:
                    if error.code != "E-HIL-BUSY" or time.monotonic() >= deadline_s:
                        raise
                time.sleep(_ASK_AGAIN_S)
        except BaseException:
            self._end()
            raise

    def _start(self) -> None:
        environment = {**os.environ, "TMPDIR": str(self._folder)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment,
                start_new_session=True,
            )  # fmt: skip
        self._buffer = b""

    def _ask(self, do: str, kind: type[T], within_s: float, parameters: dict[str, object]) -> T:
        self._number += 1
        deadline_s = time.monotonic() + within_s
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"id": self._number, "do": do, **parameters}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._lost(f"takes no requests: {error}") from error
        # What is left of a request that an interrupt cut short is passed over.
        while (answer := self._read(self._line(do, deadline_s), _Answer)).id < self._number:
            pass
        if answer.id != self._number:
            raise self._lost(f"answers request {answer.id}, asked was {self._number}")
        if answer.error is not None:
            what = f"{self._bench.name}: labgrid: {do}: {answer.error.what}"
            raise EdgeopsError(_CODES[answer.error.kind], what, _STEPS[answer.error.kind])
        return self._read(bytes(answer.ok), kind)

    def _read(self, data: bytes, kind: type[T]) -> T:
        try:
            return decode(data, kind, what="labgrid's answer")
        except EdgeopsError as error:
            raise self._lost(f"answers wrongly: {error.what}") from error

    def _line(self, do: str, deadline_s: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if len(self._buffer) > _MAX_ANSWER:
                raise self._lost(f"answers {do} by more than {_MAX_ANSWER} bytes")
            if not select.select([output], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
                raise broken(self._bench.name, f"labgrid: {do}: no answer in time", self._said())
            data = os.read(output, 1 << 16)
            if not data:
                raise self._lost("ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _end(self) -> None:
        """End the process by the end of its input; kill it if that is not enough."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_WITHIN_S)
        self._kill()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # emulators and the like that it started go with it
        process.wait()
        for end in (process.stdin, process.stdout):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.close()

    def _lost(self, what: str) -> EdgeopsError:
        return broken(self._bench.name, f"labgrid's process {what}", self._said())

    def _said(self) -> str:
        try:
            return self._log.read_bytes()[-500:].decode(errors="replace").strip()
        except FileNotFoundError:
            return ""


def worker_command() -> list[str]:
    """Return how labgrid's end is started.

    Raises:
        EdgeopsError: E-DEPENDENCY; its environment is not installed.
    """
    if not LABGRID.installed:
        raise EdgeopsError("E-DEPENDENCY", f"labgrid's own environment is not installed ({LABGRID.path})", INSTALL)
    # Isolated: neither this folder nor the user's packages are looked through for modules.
    return [str(LABGRID.path / "bin" / "python"), "-I", str(WORKER)]


def _owner() -> str:
    """Return by which name this user's runs hold places.

    One name for all that share a folder of locks: of those, one at a time has a board.
    """
    file = lock_folder() / "labgrid-owner"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        kept.seek(0)
        token = kept.read(16)
        if not token:
            token = secrets.token_hex(4)
            kept.write(token)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}-edgeops-{token}".replace("/", "-")
