"""Images by the tools of others: esptool (ESP32, over serial) and pyocd (SWD). Each is an extra, run as a program."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge.flashers import NO_OPTIONS, Found, Options

_WITHIN_S = 600.0
_IMAGE = "IMAGE"
# Longer ones are sentences.
_LONGEST_FACT = 24


class _Tool(ABC):
    """A tool that is a Python module, and how it is asked.

    Args:
        target: A serial port (esptool), or a probe's id or empty (pyocd).
        options: Address and chip.
    """

    module = ""
    # What the tool says when a comparison found no difference; empty: its status says it.
    matches = ""

    def __init__(self, target: str, options: Options = NO_OPTIONS) -> None:
        self._target, self._address, self._chip = target, options.address, options.chip

    def probe(self) -> Found:
        """Ask the board; see `Flasher.probe`."""
        return self._found(self._run(self._probe_command()))

    def plan(self, image: bytes) -> list[str]:
        """Give the commands; `IMAGE` stands for the image's file."""
        if not image:
            raise EdgeopsError("E-MCU-BLOB", "the image is empty")
        return [f"{self.module} {' '.join(command)}" for command in (self._write_command(_IMAGE),)]

    def write(self, image: bytes, *, on_progress: Callable[[int, int], object] = lambda _done, _all: None) -> None:
        """Have the tool write; see `Flasher.write`."""
        self.plan(image)
        self._with_image(image, self._write_command)
        on_progress(len(image), len(image))

    def verify(self, image: bytes) -> None:
        """Have the tool compare; see `Flasher.verify`."""
        try:
            said = self._with_image(image, self._verify_command)
        except EdgeopsError as error:
            # Where its status says what it found, a tool that fails has found another image.
            if error.code != "E-MCU-REFUSED" or self.matches:
                raise
            raise EdgeopsError("E-MCU-ANSWER", f"the board has another image: {error.what}") from error
        if self.matches and self.matches not in said:
            raise EdgeopsError("E-MCU-ANSWER", f"the board has another image: {said.strip()[-200:]}")

    def reset(self) -> None:
        """Have the tool reset the board."""
        self._run(self._reset_command())

    @abstractmethod
    def _probe_command(self) -> Sequence[str]: ...

    @abstractmethod
    def _found(self, said: str) -> Found:
        """Read what the probe's command said."""

    @abstractmethod
    def _write_command(self, file: str) -> Sequence[str]: ...

    @abstractmethod
    def _verify_command(self, file: str) -> Sequence[str]: ...

    @abstractmethod
    def _reset_command(self) -> Sequence[str]: ...

    def _with_image(self, image: bytes, command: Callable[[str], Sequence[str]]) -> str:
        with tempfile.TemporaryDirectory(prefix="edgeops-flash-") as folder:
            file = Path(folder) / "image.bin"
            file.write_bytes(image)
            return self._run(command(str(file)))

    def _run(self, arguments: Sequence[str]) -> str:
        if importlib.util.find_spec(self.module) is None:
            raise EdgeopsError(
                "E-DEPENDENCY", f"{self.module} is not installed", f"pip install 'edgeops[{self.module}]'"
            )
        command = [sys.executable, "-m", self.module, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_WITHIN_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise EdgeopsError("E-MCU-SILENT", f"{self.module}: no end within {_WITHIN_S:.0f} s") from error
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or [f"status {done.returncode}"]
            raise EdgeopsError("E-MCU-REFUSED", f"{self.module}: {said[0][:300]}", "Check cable, port and boot mode.")
        return done.stdout


class EspTool(_Tool):
    """An ESP32 in its ROM's boot mode, over a serial port."""

    module = "esptool"

    def _base(self) -> list[str]:
        return ["--chip", self._chip or "auto", "--port", self._target]

    def _probe_command(self) -> Sequence[str]:
        return [*self._base(), "chip-id"]

    def _found(self, said: str) -> Found:
        told = [line.partition(":") for line in said.splitlines() if ": " in line]
        facts = {key.strip(): value.strip() for key, _, value in told if len(key) <= _LONGEST_FACT}
        return Found(facts.get("Chip type", "") or self._chip or self.module, facts)

    def _write_command(self, file: str) -> Sequence[str]:
        return [*self._base(), "write-flash", f"{self._address:#x}", file]

    def _verify_command(self, file: str) -> Sequence[str]:
        return [*self._base(), "verify-flash", f"{self._address:#x}", file]

    def _reset_command(self) -> Sequence[str]:
        return [*self._base(), "--after", "hard-reset", "chip-id"]


class PyOcd(_Tool):
    """A board on an SWD probe."""

    module = "pyocd"
    matches = " bytes match."

    def _base(self) -> list[str]:
        # It would wait for a probe without end.
        probe = ["--no-wait", *(["--uid", self._target] if self._target else [])]
        return [*probe, *(["--target", self._chip] if self._chip else [])]

    def _probe_command(self) -> Sequence[str]:
        return ["json", "--probes"]

    def _found(self, said: str) -> Found:
        try:
            probes = [(str(one["unique_id"]), str(one["info"])) for one in json.loads(said)["boards"]]
        except (ValueError, KeyError, TypeError) as error:
            raise EdgeopsError("E-MCU-ANSWER", f"pyocd lists no probes: {said.strip()[:200]!r}") from error
        wanted = [(name, info) for name, info in probes if self._target.lower() in name.lower()]
        if len(wanted) != 1:
            there = ", ".join(name for name, _ in probes) or "none"
            raise EdgeopsError(
                "E-MCU-PORT",
                f"{len(wanted)} debug probes are {self._target!r}; connected: {there}",
                "Connect it, and give its id, or so much of it that only one has.",
            )
        ((name, info),) = wanted
        return Found(self._chip or info, {"probe": name, "what": info})

    def _write_command(self, file: str) -> Sequence[str]:
        return ["load", *self._base(), "--format", "bin", "--base-address", f"{self._address:#x}", file]

    def _verify_command(self, file: str) -> Sequence[str]:
        size = Path(file).stat().st_size
        return ["commander", *self._base(), "--command", f"compare {self._address:#x} {size} {file}"]

    def _reset_command(self) -> Sequence[str]:
        return ["reset", *self._base()]
