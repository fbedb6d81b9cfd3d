"""Versions of the agent beside the installed one: which of them a start runs, and back from one that does not get up.

The installed version is the launcher: it runs what the slots of `edgeops-agent` say, in its own interpreter, with that
version's wheels before what is installed. A version that has proved itself replaces this process. One on trial is a
child of it, so that also a version that hangs or dies at its first line is seen, ended, and taken back.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeops import durable
from edgeops.agent.slots import SlotName, Slots
from edgeops.agent.store import StateDirectory, is_locked
from edgeops.contracts.deployment import AGENT_COMPONENT, DeploymentState, Failure
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Wire, decode, encode

log = logging.getLogger(__name__)

# How a version on trial ends that wants to be started anew, perhaps as another one.
RELAUNCH = 86
MAX_TRIAL_STARTS = 3
MAX_STARTS = 5
# A version that has run for so long is no crash loop.
CALM_AFTER_S = 60.0
_LOOK_EVERY_S = 0.2
# A version on trial that still runs judges itself; what it does not, is judged here, this much later.
_GRACE = 1.5
_STOP_WITHIN_S = 30.0
_RUNS, _BROKEN, _PATH = "EDGEOPS_AGENT_RUNS", "EDGEOPS_AGENT_BROKEN", "PYTHONPATH"
_INSTALLED_PATH = "EDGEOPS_AGENT_INSTALLED_PATH"
_CHILD = "EDGEOPS_AGENT_CHILD"
_PR_SET_PDEATHSIG = 1


class SiteMark(Wire, frozen=True, kw_only=True):
    """Lies in a slot once its wheels are installed there, whole."""

    digest: str


class Starts(Wire, frozen=True, kw_only=True):
    """How often a version was started without having run for a while."""

    digest: str = ""
    count: int = 0


class Running(NamedTuple):
    """What this process is.

    Args:
        digest: The version's bundle; empty: the installed one.
        broken: A version that does not get up and was passed over; empty: none.
    """

    digest: str = ""
    broken: str = ""


def directory_of(root: Path) -> Path:
    """Return where the agent's versions lie in a state directory."""
    return root / "components" / AGENT_COMPONENT


def site_of(slot: Path) -> Path:
    """Return where a slot's wheels are installed."""
    return slot / "site"


def mark_of(slot: Path) -> Path:
    """Return the file that says that they are installed whole."""
    return slot / "site.json"


def is_installed(slot: Path, digest: str) -> bool:
    """Say whether a slot's wheels are installed whole."""
    try:
        return decode(mark_of(slot).read_bytes(), SiteMark, what="site.json").digest == digest
    except (OSError, EdgeopsError):
        return False


def environment_for(slot: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which a slot's version runs: its wheels go before what is installed."""
    installed = environment.get(_INSTALLED_PATH, environment.get(_PATH, ""))
    path = os.pathsep.join(part for part in (str(site_of(slot).resolve()), installed) if part)
    # The working directory, which Python else puts first of all, has no part in it (from Python 3.11 on).
    return {**environment, _INSTALLED_PATH: installed, _PATH: path, "PYTHONSAFEPATH": "1"}


def become_current(root: Path, trial_s: float) -> Running:
    """Run the version that a state directory names. Returns only in the process that is to be the agent.

    Args:
        root: The state directory. Its lock must not be held.
        trial_s: A version on trial has so long to prove itself.

    A disk that refuses to be written to keeps no version from starting: what it holds still serves.
    """
    if (digest := os.environ.get(_RUNS)) is not None:
        return Running(digest, os.environ.get(_BROKEN, ""))
    if not directory_of(root).is_dir() or is_locked(root):
        return Running()
    slots = Slots(directory_of(root))
    if slots.active is None:
        return Running()
    broken = ""
    if slots.in_trial:
        broken = _try(root, slots.active, trial_s)
        slots = Slots(directory_of(root))
    return _run_proved(root, slots, broken)


def relaunch() -> None:
    """End this process, and start the version that the state directory names now. Does not return."""
    if is_child():
        sys.exit(RELAUNCH)
    environment = dict(os.environ)
    for name in (_RUNS, _BROKEN):
        environment.pop(name, None)
    installed = environment.pop(_INSTALLED_PATH, None)
    if installed is not None:
        environment[_PATH] = installed
        if not installed:
            del environment[_PATH]
    os.execve(sys.executable, _command(), environment)


def is_child() -> bool:
    """Say whether the process that started this one is the agent, too: this is a version on trial."""
    return bool(os.environ.get(_CHILD))


def calm(root: Path) -> None:
    """Note that this version runs: its starts so far were no crash loop."""
    try:
        durable.remove_tree(_starts_file(root))
    except EdgeopsError as error:
        log.error("%s", error)


def _run_proved(root: Path, slots: Slots, broken: str = "") -> Running:
    """Become the newest version that is installed whole and gets up; the installed one if there is none.

    Args:
        root: The state directory.
        slots: The versions.
        broken: One that does not get up; empty: none.
    """
    for name in (slots.active, slots.fallback):
        if name is None or slots.records[name].slot.digest == broken:
            continue
        slot, digest = slots.bundle_path(name).parent, slots.records[name].slot.digest
        if is_installed(slot, digest) and _count_start(root, digest) <= MAX_STARTS:
            environment = {**environment_for(slot, os.environ), _RUNS: digest, _BROKEN: broken}
            os.execve(sys.executable, _command(), environment)
        log.error("agent version %s is damaged, or does not get up", slots.records[name].slot.release)
        broken = broken or digest
    return Running("", broken)


def _try(root: Path, name: SlotName, trial_s: float) -> str:
    """Run a version on trial as a child until it has proved itself and ends, or has to be taken back.

    Returns:
        Its digest, if the disk does not take that it is taken back: whoever runs then does that. Else "".
    """
    slots = Slots(directory_of(root))
    slot, digest = slots.bundle_path(name).parent, slots.records[name].slot.digest
    environment = {**environment_for(slot, os.environ), _RUNS: digest, _CHILD: "1"}
    environment.pop("WATCHDOG_PID", None)  # the service manager knows this process; its child speaks for both
    why, started = "its wheels are not installed", 0
    while is_installed(slot, digest):
        started += 1
        if max(started, _count_start(root, digest)) > MAX_TRIAL_STARTS:
            why = f"the new agent ended {MAX_TRIAL_STARTS} times in its trial"
            break
        ended = _Child(environment).watch(lambda: not Slots(directory_of(root)).in_trial, _GRACE * trial_s)
        if ended is None:
            why = f"the new agent did not report within {trial_s:.0f} s"
            break
        if ended == RELAUNCH:
            relaunch()
        if not Slots(directory_of(root)).in_trial:
            sys.exit(ended)
        if ended == 0:
            # It was asked to end: that says nothing about it.
            calm(root)
            sys.exit(0)
    try:
        _take_back(root, why)
    except EdgeopsError as error:
        log.error("that could not be kept: %s", error)
        return digest
    return ""


def _take_back(root: Path, why: str) -> None:
    """Make the version before the active one again. The record comes first: a cut between has it done once more."""
    log.error("%s: back to the version before", why)
    state = StateDirectory(root)
    try:
        slots = Slots(directory_of(root))
        active = slots.active_slot
        record = state.read_component(AGENT_COMPONENT, slots)
        failure = Failure(code="E-TRIAL", what=why, release=active.release if active else "", at_s=time.time())
        state.write_component(
            msgspec.structs.replace(record, state=DeploymentState.ROLLING_BACK, failure=failure, attempts=0)
        )
        slots.revert()
        durable.remove_tree(_starts_file(root))
    finally:
        state.close()


class _Child:
    """The version on trial as a process, which gets the signals that this one gets and dies with it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(_command(), env=dict(environment), preexec_fn=_die_with_parent)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda got, frame: self._process.send_signal(got))

    def watch(self, proved: Callable[[], bool], within_s: float) -> int | None:
        """Wait for its end; return its status, or None: it did not prove itself in time, and was ended."""
        deadline_s: float | None = time.monotonic() + within_s
        while True:
            try:
                return self._process.wait(_LOOK_EVERY_S if deadline_s is not None else None)
            except subprocess.TimeoutExpired:
                if deadline_s is not None and proved():
                    deadline_s = None
                elif deadline_s is not None and time.monotonic() > deadline_s:
                    self._end()
                    return None

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _command() -> list[str]:
    return [sys.executable, "-m", "edgeops", *sys.argv[1:]]


def _count_start(root: Path, digest: str) -> int:
    """Note a start of a version, and return how many there were in a row, as far as the disk has taken that."""
    path = _starts_file(root)
    try:
        starts = decode(path.read_bytes(), Starts, what=str(path))
    except (OSError, EdgeopsError):
        starts = Starts()
    count = starts.count + 1 if starts.digest == digest else 1
    try:
        durable.write_file(path, encode(Starts(digest=digest, count=count)))
    except EdgeopsError as error:
        log.error("a start could not be counted: %s", error)
    return count


def _starts_file(root: Path) -> Path:
    return directory_of(root) / "starts.json"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
