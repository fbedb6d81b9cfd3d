"""What QEMU says of a machine that it emulates, by its machine protocol (QMP) over a socket that nobody else has."""

from __future__ import annotations

import json
import re
import socket
import time
from typing import Any

from edgeops.contracts.errors import EdgeopsError

_ANSWER_WITHIN_S = 5.0
_MAX_BYTES = 1 << 20
_REGISTER = re.compile(r"\b(R\d\d|XPSR)=([0-9a-fA-F]{8})")
_MODE = re.compile(r"^XPSR=.*?\b((?:priv|unpriv)-thread|handler)\b", re.MULTILINE)


class Qmp:
    """One emulator's monitor.

    Args:
        end: Our end of the socket; closed by `close`.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._buffer = b""
        self._is_ready = False

    def close(self) -> None:
        """Leave it."""
        self._end.close()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Return what a command returns.

        Raises:
            EdgeopsError: E-MCU-SILENT; no answer in time, or it has ended. E-MCU-ANSWER; it refuses, or answers no QMP.
        """
        deadline_s = time.monotonic() + _ANSWER_WITHIN_S
        if not self._is_ready:
            if "QMP" not in self._message(deadline_s):
                raise EdgeopsError("E-MCU-ANSWER", "QEMU's monitor does not greet by QMP")
            self._command("qmp_capabilities", {}, deadline_s)
            self._is_ready = True
        return self._command(command, arguments, deadline_s)

    def describe(self) -> str:
        """Return in words what the machine does now: whether it runs, and where its processor is.

        Raises:
            EdgeopsError: As `ask`.
        """
        status = str(self.ask("query-status").get("status"))
        registers = str(self.ask("human-monitor-command", **{"command-line": "info registers"}))
        return read_state(status, registers)

    def _command(self, command: str, arguments: dict[str, Any], deadline_s: float) -> Any:
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        try:
            self._end.settimeout(max(0.01, deadline_s - time.monotonic()))
            self._end.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise EdgeopsError("E-MCU-SILENT", f"QEMU's monitor: {error}") from error
        while "event" in (answer := self._message(deadline_s)):
            pass
        if "return" not in answer:
            raise EdgeopsError("E-MCU-ANSWER", f"QEMU's monitor: {command}: {str(answer.get('error', answer))[:300]}")
        return answer["return"]

    def _message(self, deadline_s: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            left_s = deadline_s - time.monotonic()
            try:
                self._end.settimeout(max(0.01, left_s))
                data = self._end.recv(1 << 16)
            except OSError as error:
                raise EdgeopsError("E-MCU-SILENT", f"QEMU's monitor: {error}") from error
            if not data or len(self._buffer) > _MAX_BYTES:
                raise EdgeopsError("E-MCU-SILENT", "QEMU has ended" if not data else "QEMU's monitor has no end")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            found = json.loads(line)
        except ValueError as error:
            raise EdgeopsError("E-MCU-ANSWER", f"QEMU's monitor: {line[:80]!r}") from error
        if not isinstance(found, dict):
            raise EdgeopsError("E-MCU-ANSWER", f"QEMU's monitor: {line[:80]!r}")
        return found


def read_state(status: str, registers: str) -> str:
    """Say what QEMU's `info registers` of a Cortex-M tells. Pure.

    Args:
        status: What QEMU calls the machine's state.
        registers: Its text.
    """
    found = dict(_REGISTER.findall(registers))
    mode = _MODE.search(registers)
    where = [
        f"{name} 0x{found[key].lower()}" for name, key in (("pc", "R15"), ("lr", "R14"), ("sp", "R13")) if key in found
    ]
    if (number := int(found.get("XPSR", "0"), 16) & 0x1FF) != 0:
        where.append(f"in the handler of exception {number}")
    elif mode is not None:
        where.append(mode[1])
    return ", ".join([f"QEMU: {status}", *where])
