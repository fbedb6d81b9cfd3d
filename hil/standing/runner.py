"""A run as the daemon sees it: a process that says how far it is, can be interrupted, and leaves no power on."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from edgeops import durable
from edgeops.agent.loop import Loop
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import decode, encode
from hil.boards.guardian import is_guardian
from hil.boards.labgrid_process import WORKER
from hil.standing.run import Job, Outcome

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36
# Boards are stopped, switched off and given back in this time.
_STOP_WITHIN_S, _KILL_WITHIN_S = 60.0, 10.0
_POWER_WITHIN_S = 120.0
_JOB, _OUTCOME = "job.json", "outcome.json"


class Run:
    """One run. Must be made on the daemon's main thread: the process is interrupted when the thread ends that made it.

    Args:
        loop: Where the callbacks run.
        folder: For its files; they are made anew.
        job: What to run; `outcome` and `parent_pid` are filled in.
        on_said: Called with each line that tells how far it is.
        on_ended: Called once: with what was found, or with how the process ended before that.
    """

    def __init__(
        self,
        loop: Loop,
        folder: Path,
        job: Job,
        on_said: Callable[[str], None],
        on_ended: Callable[[Outcome | str], None],
    ) -> None:
        self._loop, self._on_said, self._on_ended = loop, on_said, on_ended
        self._outcome = folder / _OUTCOME
        durable.remove_tree(self._outcome)
        job = msgspec.structs.replace(job, outcome=str(self._outcome), parent_pid=os.getpid())
        durable.write_file(folder / _JOB, encode(job), mode=0o600)
        # What the run leaves when it is killed becomes this process's child, and is found by that.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hil.standing.run", str(folder / _JOB)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, name="run", daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def interrupt(self) -> None:
        """Have it power its boards off, give them back and end; what it found is nothing then."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)

    def stop(self) -> bool:
        """Interrupt it and wait until it has ended, and end what it left; say whether it ended by itself."""
        self.interrupt()
        try:
            ended_itself = self._process.wait(_STOP_WITHIN_S) >= 0
        except subprocess.TimeoutExpired:
            log.error("the run does not end; it is killed")
            self._process.kill()
            self._process.wait(_KILL_WITHIN_S)
            ended_itself = False
        end_children()
        return ended_itself

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                said = line.decode(errors="replace").strip()
                self._loop.post(lambda said=said: self._on_said(said))  # type: ignore[misc]  # bound now
        status = self._process.wait()
        self._loop.post(lambda: self._end(status))

    def _end(self, status: int) -> None:
        end_children()
        how = f"signal {-status}" if status < 0 else f"status {status}"
        try:
            outcome: Outcome | str = decode(self._outcome.read_bytes(), Outcome, what=str(self._outcome))
        except FileNotFoundError:
            outcome = how
        except (OSError, EdgeopsError) as error:
            outcome = f"{how}; {error}"
        self._on_ended(outcome)


def end_children() -> None:
    """Kill what a run left: the programs of boards that are processes of this machine.

    What takes a board's power and gives its places back, since it hears no more of the run, is let do so first.
    """
    left = psutil.Process().children(recursive=True)
    kept = [process for process in left if _sees_to_power(process)]
    spared = {one for process in kept for one in (process, *_below(process))}
    for process in left:
        if process not in spared:
            log.error("a run left process %d; it is killed", process.pid)
            _kill(process)
    for process in psutil.wait_procs(kept, _POWER_WITHIN_S)[1]:
        log.error("process %d takes no board's power; it is killed", process.pid)
        for one in (*_below(process), process):
            _kill(one)
    psutil.wait_procs(left, _KILL_WITHIN_S)


def _sees_to_power(process: psutil.Process) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return is_guardian(command) or str(WORKER) in command


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
