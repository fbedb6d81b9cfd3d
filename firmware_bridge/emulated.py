"""Devices without hardware: the firmware built for this machine, or for an emulated board; flash is a file."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tty
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge.build import board_firmware, host_firmware
from firmware_bridge.qmp import Qmp

B = TypeVar("B", bound="Board")

EMULATOR = "qemu-system-arm"
_STOP_WITHIN_S = 10
FLASH_SIZE = 16 * 1024 * 1024


class Board:
    """A device as a process, on a serial line that stays while the device is off, as a cable's adapter does.

    Args:
        command: The device's program; its serial line is its standard input and output.
        launcher: Words before it, of a program that becomes it.
    """

    def __init__(self, command: Sequence[str], launcher: Sequence[str] = ()) -> None:
        self._command = [*launcher, *command]
        self._process: subprocess.Popen[bytes] | None = None
        self._line, self._device_end = os.openpty()
        tty.setraw(self._line)
        tty.setraw(self._device_end)
        self.url = os.ttyname(self._device_end)

    def __enter__(self: B) -> B:
        self.power_on()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the power and the line away."""
        self.power_off()
        os.close(self._line)
        os.close(self._device_end)

    def power_on(self) -> None:
        """Start the device."""
        self._start(self._command)

    def _start(self, command: Sequence[str], files: Sequence[int] = ()) -> None:
        self._process = subprocess.Popen(command, stdin=self._line, stdout=self._line, pass_fds=files)

    def power_off(self) -> None:
        """Take the power away, at whatever moment this is."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_WITHIN_S)
            self._process = None


class HostBoard(Board):
    """The firmware as a process of this machine.

    Args:
        flash: The file that is its flash; made if it is not there.
        keys: Raw Ed25519 public keys that it accepts.
        defines: C defines that differ from the firmware's own.

    Raises:
        EdgeopsError: As `build.host_firmware`.
    """

    def __init__(self, flash: Path, keys: Sequence[bytes], defines: Sequence[str] = ()) -> None:
        super().__init__([str(host_firmware(keys, defines)), str(flash)])


class QemuBoard(Board):
    """The firmware on a board that QEMU emulates.

    Args:
        machine: A key of `build.EMULATED_BOARDS`.
        flash: The file that is its flash; made if it is not there.
        keys: Raw Ed25519 public keys that it accepts.
        defines: C defines that differ from the firmware's own.
        count_instructions: Let virtual time be instructions: one takes 1 ns. Then durations repeat exactly.
        launcher: Words before the emulator's, of a program that becomes it.

    Raises:
        EdgeopsError: As `build.board_firmware`; E-DEPENDENCY; QEMU is not installed.
    """

    def __init__(
        self,
        machine: str,
        flash: Path,
        keys: Sequence[bytes],
        defines: Sequence[str] = (),
        *,
        count_instructions: bool = False,
        launcher: Sequence[str] = (),
    ) -> None:
        emulator = shutil.which(EMULATOR)
        if emulator is None:
            raise EdgeopsError(
                "E-DEPENDENCY", f"no {EMULATOR} on this machine", "apt-get install --yes qemu-system-arm"
            )
        firmware = board_firmware(machine, keys, defines)
        if not flash.exists():
            flash.write_bytes(b"\xff" * FLASH_SIZE)
        # fmt: off
        command = [
            emulator, "-M", f"{machine},memory-backend=nvm", "-kernel", str(firmware),
            "-object", f"memory-backend-file,id=nvm,mem-path={flash},size={FLASH_SIZE},share=on",
            "-display", "none", "-monitor", "none", "-chardev", "stdio,id=line,signal=off", "-serial", "chardev:line",
        ]
        # fmt: on
        super().__init__([*command, *(["-icount", "shift=0"] if count_instructions else [])], launcher)
        self._monitor: Qmp | None = None

    def power_on(self) -> None:
        """Start the emulator, with a monitor of its own."""
        if self._monitor is not None:
            self._monitor.close()
        ours, theirs = socket.socketpair()
        with theirs:
            monitor = ["-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"]
            self._start([*self._command, *monitor], (theirs.fileno(),))
        self._monitor = Qmp(ours)

    def power_off(self) -> None:
        """Kill the emulator."""
        super().power_off()
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def describe(self) -> str:
        """Return in words what the machine does now, by QEMU's own monitor; empty: it is off.

        Raises:
            EdgeopsError: As `Qmp.describe`.
        """
        return "" if self._monitor is None else self._monitor.describe()

    def ask(self, command: str) -> None:
        """Have QEMU do something by its monitor, such as `stop`: the machine hangs until `cont`.

        Raises:
            EdgeopsError: As `Qmp.ask`; E-MCU-SILENT, it is off.
        """
        if self._monitor is None:
            raise EdgeopsError("E-MCU-SILENT", "the board is off")
        self._monitor.ask(command)
