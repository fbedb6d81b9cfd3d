"""Microcontrollers: emulated by QEMU with the reference firmware, or on a serial line of this machine."""

from __future__ import annotations

import contextlib
import fcntl
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.intake.cache import cache_dir
from firmware_bridge import blobs
from firmware_bridge.emulated import QemuBoard
from firmware_bridge.link import ANSWER_WITHIN_S, SmpLink
from firmware_bridge.ports import SerialPort
from hil.boards.protocol import broken, check_board
from hil.boards.switch import Switch
from hil.interrupts import held
from hil.rig import QemuMcuSpec, SerialMcuSpec
from hil.tools import ending_with_us

B = TypeVar("B", bound="SerialBoard")

_POLL_S = 0.5
_RAW_KEY_BYTES = 32


class SerialBoard(ABC):
    """What both have: a line, and a key that the firmware knows."""

    def __init__(self, name: str, profile: str, boot_within_s: float, key: Ed25519PrivateKey) -> None:
        self.name, self.profile = name, profile
        self._boot_within_s, self._key = boot_within_s, key
        self._is_closed = False

    def __enter__(self: B) -> B:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with held():
            self.close()

    @abstractmethod
    def link(self, answer_within_s: float = ANSWER_WITHIN_S) -> SmpLink:
        """Open its serial line; see `McuBoard`."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""

    def sign(self, blob: bytes, *, version: str, counter: int) -> bytes:
        """Return a blob with the trailer that this board's firmware accepts."""
        public = self._key.public_key().public_bytes_raw()
        return blob + blobs.sign(blob, version=version, counter=counter, public_key=public, signer=self._key.sign)

    def _await_answer(self) -> None:
        """Wait until the firmware answers as one of the profile's processor."""
        deadline_s = time.monotonic() + self._boot_within_s
        with self.link(_POLL_S) as link:
            while True:
                try:
                    cpu = link.model_info().cpu
                    break
                except EdgeopsError as error:
                    if error.code not in ("E-MCU-SILENT", "E-MCU-ANSWER") or time.monotonic() > deadline_s:
                        raise broken(self.name, error.what) from error
        known = {one.value: one.name.lower().replace("_", "-") for one in blobs.Cpu}
        check_board(self.name, known.get(cpu, f"processor {cpu}"), (self.profile,))


def read_key(file: Path) -> Ed25519PrivateKey:
    """Return the key whose public half a board's firmware holds.

    Raises:
        EdgeopsError: E-TRUST-KEY.
    """
    path = file.expanduser()
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise EdgeopsError("E-TRUST-KEY", f"{path}: {error}", "Name an unencrypted Ed25519 PEM file.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise EdgeopsError("E-TRUST-KEY", f"{path} is no Ed25519 key", "Name the key of the firmware.")
    return key


def emulated_key() -> Ed25519PrivateKey:
    """Return the key of this machine's emulated boards: one, so that their firmware is built once."""
    path = cache_dir() / "hil" / "emulated-mcu.key"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A run that was killed while it made the key left half of one: it can be made again, as all of a cache.
        if not path.exists() or path.stat().st_size != _RAW_KEY_BYTES:
            durable.write_file(path, Ed25519PrivateKey.generate().private_bytes_raw(), mode=0o600)
    return Ed25519PrivateKey.from_private_bytes(path.read_bytes())


class QemuMcuBoard(SerialBoard):
    """An emulated board with the reference firmware.

    Args:
        spec: From the rig.
        scratch: A folder for its flash.

    Raises:
        EdgeopsError: E-DEPENDENCY; QEMU or the compiler of the firmware is missing. E-TOOLCHAIN.
    """

    cut = "SIGKILL of the emulator; its flash is a file"

    def __init__(self, spec: QemuMcuSpec, scratch: Path) -> None:
        super().__init__(spec.name, spec.profile, spec.boot_within_s, emulated_key())
        public = self._key.public_key().public_bytes_raw()
        flash = scratch / f"{spec.name}.flash"
        self._board = QemuBoard(spec.machine, flash, [public], launcher=ending_with_us(()))

    def power_on(self) -> None:
        """Start the emulator, and wait until the firmware answers."""
        with held():
            self._board.power_off()
            self._board.power_on()
        self._await_answer()

    def power_off(self) -> None:
        """Kill the emulator."""
        self._board.power_off()

    def console(self) -> str:
        """Return what QEMU says of it: its only line is the one that it answers on."""
        try:
            return self._board.describe()
        except EdgeopsError as error:
            return error.what

    def link(self, answer_within_s: float = ANSWER_WITHIN_S) -> SmpLink:
        """Open its serial line; see `McuBoard`."""
        return SmpLink(SerialPort(self._board.url), answer_within_s=answer_within_s)

    def close(self) -> None:
        """Kill the emulator, and give its line back."""
        if not self._is_closed:
            self._is_closed = True
            self._board.__exit__()


class SerialMcuBoard(SerialBoard):
    """A microcontroller on a serial line.

    Args:
        spec: From the rig.
        scratch: Not used.

    Raises:
        EdgeopsError: E-TRUST-KEY; the signing key cannot be read.
    """

    def __init__(self, spec: SerialMcuSpec, scratch: Path) -> None:
        super().__init__(spec.name, spec.profile, spec.boot_within_s, read_key(Path(spec.signing_key)))
        self._port = spec.port
        self._switch = Switch(spec.name, spec.power) if spec.power is not None else None

    @property
    def cut(self) -> str:
        """How its power is cut."""
        return "its power switch" if self._switch else "a reset: it has no power switch"

    def power_on(self) -> None:
        """Switch it on, if it has a switch, and wait until the firmware answers."""
        if self._switch is not None:
            self._switch.on()
        self._await_answer()

    def power_off(self) -> None:
        """Switch it off; without a switch, reset it."""
        if self._switch is not None:
            self._switch.off()
        else:
            with contextlib.suppress(EdgeopsError), self.link() as link:
                link.reset(back_within_s=self._boot_within_s)

    def console(self) -> str:
        """Return nothing: its only line is the one that it answers on."""
        return ""

    def link(self, answer_within_s: float = ANSWER_WITHIN_S) -> SmpLink:
        """Open its serial line; see `McuBoard`."""
        return SmpLink(SerialPort(self._port), answer_within_s=answer_within_s)

    def close(self) -> None:
        """Switch it off."""
        if self._switch is not None and not self._is_closed:
            self._is_closed = True
            self._switch.close()
