"""Boards behind labgrid: its drivers switch the power, read the console, and bring SSH or the serial line to us."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge.link import ANSWER_WITHIN_S, SmpLink
from firmware_bridge.ports import SerialPort
from hil.boards.labgrid_process import Bench, Connected, LabgridProcess, Nothing, Printed
from hil.boards.mcu import SerialBoard, read_key
from hil.boards.protocol import broken
from hil.boards.ssh import Login, SshBoard
from hil.rig import LabgridMcuSpec, LabgridSpec

_SWITCH_WITHIN_S = 120.0
_CONNECT_WITHIN_S = 45.0
_CONSOLE_WITHIN_S = 30.0
_OFF_FOR_S = 2.0
_KNOWN_HOSTS = "~/.ssh/known_hosts"


class LabgridBoard(SshBoard):
    """A Linux board. All its connections go through the one that labgrid's SSHDriver opened.

    Args:
        spec: From the rig.
        _scratch: Not used.
        wait_s: How long to wait for a place that another holds.

    Raises:
        EdgeopsError: As `LabgridProcess`.
    """

    _master = ()

    def __init__(self, spec: LabgridSpec, _scratch: Path, wait_s: float = 0.0) -> None:
        super().__init__(spec.name, spec.profile, Login("", 22, ""), spec.python, spec.boot_within_s)
        known_hosts = Path(spec.known_hosts or _KNOWN_HOSTS).expanduser().absolute()
        bench = Bench(spec.name, _file(spec.environment), spec.target, str(known_hosts), spec.state or "")
        self._place = Path(tempfile.mkdtemp(prefix="eo-"))
        try:
            self._labgrid = _process(bench, self._place, wait_s)
        except BaseException:
            shutil.rmtree(self._private, ignore_errors=True)
            raise

    @property
    def cut(self) -> str:
        """How its power is cut."""
        power = self._labgrid.opened.power
        return f"labgrid's {power}" if power else super().cut

    def power_on(self) -> None:
        """Switch it on, if it has a switch, and wait until it answers as the board that it should be."""
        self._labgrid.call("on", Nothing, self._boot_within_s + _SWITCH_WITHIN_S)
        self._await_link()

    def power_off(self) -> None:
        """Switch it off; without a switch, kill what was started."""
        if not self._labgrid.opened.power:
            super().power_off()
            return
        self._labgrid.switch_off()
        time.sleep(_OFF_FOR_S)
        self._pids.clear()

    def console(self) -> str:
        """Return the end of its console, then of what its programs printed."""
        try:
            text = self._labgrid.call("console", Printed, _CONSOLE_WITHIN_S).text
        except EdgeopsError:
            text = ""
        return text + super().console()

    def close(self) -> None:
        """Stop what was started, switch it off, and give its places back."""
        if self._is_closed:
            return
        try:
            super().close()
        finally:
            _close(self._labgrid, self._place)

    def _connect(self) -> None:
        there = self._labgrid.call("connect", Connected, _CONNECT_WITHIN_S)
        if not Path(there.control).is_relative_to(self._place):
            raise broken(self.name, f"labgrid names a connection that is not this run's: {there.control}")
        if there.host.startswith("-") or there.user.startswith("-"):
            raise broken(self.name, f"labgrid names no host or user: {there.user}@{there.host}")
        self.login = Login(there.host, there.port, there.user)
        # A connection of one's own, beside labgrid's, would go to whatever answers: there is no way to make one.
        control = there.control.replace("%", "%%")
        options = ("BatchMode=yes", f"ControlPath={control}", "ProxyCommand=false")
        self._options = ["-F", "none", *(word for option in options for word in ("-o", option))]

    def _drop_link(self) -> None:
        with contextlib.suppress(EdgeopsError):
            self._labgrid.call("disconnect", Nothing, _SWITCH_WITHIN_S)


class LabgridMcuBoard(SerialBoard):
    """A microcontroller whose serial line is a console of labgrid's.

    Args:
        spec: From the rig.
        _scratch: Not used.
        wait_s: How long to wait for a place that another holds.

    Raises:
        EdgeopsError: As `LabgridProcess`. E-TRUST-KEY; the signing key cannot be read.
    """

    def __init__(self, spec: LabgridMcuSpec, _scratch: Path, wait_s: float = 0.0) -> None:
        super().__init__(spec.name, spec.profile, spec.boot_within_s, read_key(Path(spec.signing_key)))
        bench = Bench(spec.name, _file(spec.environment), spec.target, state=spec.state or "", line=True)
        self._folder = Path(tempfile.mkdtemp(prefix="eo-"))
        self._labgrid = _process(bench, self._folder, wait_s)

    @property
    def cut(self) -> str:
        """How its power is cut."""
        power = self._labgrid.opened.power
        return f"labgrid's {power}" if power else "a reset: it has no power switch"

    def power_on(self) -> None:
        """Switch it on, if it has a switch, and wait until the firmware answers."""
        self._labgrid.call("on", Nothing, self._boot_within_s + _SWITCH_WITHIN_S)
        self._await_answer()

    def power_off(self) -> None:
        """Switch it off; without a switch, reset it."""
        if self._labgrid.opened.power:
            self._labgrid.switch_off()
        else:
            with contextlib.suppress(EdgeopsError), self.link() as link:
                link.reset(back_within_s=self._boot_within_s)

    def console(self) -> str:
        """Return nothing: its only line is the one that it answers on."""
        return ""

    def link(self, answer_within_s: float = ANSWER_WITHIN_S) -> SmpLink:
        """Open its serial line; see `McuBoard`."""
        return SmpLink(SerialPort(self._labgrid.opened.line), answer_within_s=answer_within_s)

    def close(self) -> None:
        """Switch it off, and give its places back."""
        if not self._is_closed:
            self._is_closed = True
            _close(self._labgrid, self._folder)


def _file(name: str) -> Path:
    return Path(name).expanduser().absolute()


def _process(bench: Bench, folder: Path, wait_s: float) -> LabgridProcess:
    """Return the process; its folder is gone where there is none."""
    try:
        return LabgridProcess(bench, folder, wait_s)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _close(process: LabgridProcess, folder: Path) -> None:
    """End the process; its folder stays until it has, since its sockets are there."""
    try:
        process.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
