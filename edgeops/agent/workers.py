"""A worker process as the supervisor sees it: started with an inherited socket, spoken to, and outlived."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

import msgspec

from edgeops.agent import channel
from edgeops.agent.cgroups import Groups
from edgeops.agent.channel import Framing, FromWorker
from edgeops.agent.loop import Loop
from edgeops.contracts.errors import EdgeopsError

_REAP_WITHIN_S = 5.0
_numbers = itertools.count(1)


class WorkerProcess:
    """One running worker. Must be made on the supervisor's main thread: the worker dies with the thread that made it.

    Args:
        loop: Where the callbacks run.
        listeners: The model's listening sockets, for HTTP and for frames.
        on_message: Called with each message of the worker.
        on_gone: Called once with how the process ended, after its last message.
        groups: Where it gets a control group of its own; None: nowhere.
        memory_mib: What that group may have at most.

    Raises:
        EdgeopsError: E-AGENT-WORKER; no process can be started.
    """

    def __init__(
        self,
        loop: Loop,
        listeners: Sequence[socket.socket],
        on_message: Callable[[WorkerProcess, object], None],
        on_gone: Callable[[WorkerProcess, str], None],
        *,
        groups: Groups | None = None,
        memory_mib: float = 0.0,
    ) -> None:
        self.number = next(_numbers)
        self._loop, self._on_message, self._on_gone = loop, on_message, on_gone
        try:
            self._channel, theirs = socket.socketpair()
        except OSError as error:
            raise _no_worker(error) from error
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "edgeops.agent.worker",
                    str(theirs.fileno()),
                    *(str(listener.fileno()) for listener in listeners),
                    str(os.getpid()),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *(listener.fileno() for listener in listeners)),
            )
        except OSError as error:
            self._channel.close()
            raise _no_worker(error) from error
        finally:
            theirs.close()
        self._group = groups.enclose(self._process.pid, memory_mib) if groups is not None else None
        try:
            threading.Thread(target=self._read, name=f"worker {self.number}", daemon=True).start()
        except RuntimeError as error:  # no more threads
            self._process.kill()
            self._process.wait()
            self._channel.close()
            raise _no_worker(error) from error

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: msgspec.Struct, descriptors: Sequence[int] = ()) -> None:
        """Tell the worker something. One that is gone is reported by `on_gone`, not here."""
        try:
            channel.send(self._channel, message, descriptors)
        except OSError:
            self._process.kill()

    def kill(self) -> None:
        """End it at once; `on_gone` follows."""
        self._process.kill()

    def _read(self) -> None:
        framing = Framing(FromWorker)
        problem = ""
        try:
            while data := self._channel.recv(1 << 16):
                for message in framing.feed(data):
                    self._post(message)
        except OSError:
            pass  # it died with words of ours unread; how, its status tells
        except EdgeopsError as error:
            problem = error.what
        try:
            status = self._process.wait(_REAP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._channel.close()
        if self._group is not None:
            self._group.end()
        ended = problem or _described(status)
        self._loop.post(lambda: self._on_gone(self, ended))

    def _post(self, message: object) -> None:
        self._loop.post(lambda: self._on_message(self, message))


def _no_worker(error: Exception) -> EdgeopsError:
    return EdgeopsError("E-AGENT-WORKER", f"a worker cannot be started: {error}", "Look at the device's memory.")


def _described(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
