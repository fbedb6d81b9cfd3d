"""A served fleet for tests: `edgeops serve` as its own process, small signed releases, and devices that joined."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_device import FakeDevice, join
from kept_ports import Kept

from edgeops.cli import root
from edgeops.client.api import Api
from edgeops.contracts.errors import EdgeopsError
from edgeops.control.broker import mosquitto
from edgeops.testkit.sealed_releases import publish_sealed_release
from edgeops.trust.publisher import Publisher

MODEL = "lines"
PROFILES = ("raspberry-pi-4", "intel-nuc", "jetson-orin-nano")
WITHIN_S = 90.0
BROKERS = ["iotcore"] + (["mosquitto"] if mosquitto.find_program() else [])
needs_mosquitto = pytest.mark.skipif(
    "mosquitto" not in BROKERS, reason="the program mosquitto is not installed: make system"
)


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.03)
    return value


class Serving:
    """`edgeops serve` as a process of its own."""

    def __init__(self, home: Path, broker: str, *options: str) -> None:
        self.home, self.broker, self.options = home, broker, options
        self.process: subprocess.Popen[str]
        self.ready: dict[str, Any] = {}
        self._kept = Kept()

    def command(self) -> list[str]:
        return [sys.executable, "-m", "edgeops"]

    def start(self) -> dict[str, Any]:
        self.process = subprocess.Popen(
            [*self.command(), "serve", "--home", str(self.home), "--broker", self.broker, *self.options],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait()}"
        self.ready = json.loads(line)
        assert json.loads((self.home / "serve.json").read_bytes()) == self.ready
        self._kept.release()
        return self.ready

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self._ended()

    def kill(self) -> None:
        self.process.kill()
        self._ended()

    def _ended(self) -> int:
        status = self.process.wait(WITHIN_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        # It finds its devices again, and they it, where it was: nobody else is to have its ports meanwhile.
        if self.ready:
            listeners = (self.ready[name].rpartition(":")[2] for name in ("api", "artifacts"))
            self._kept.hold(*map(int, listeners), self.ready["broker"]["port"])
        return status

    @property
    def api(self) -> Api:
        return Api.from_home(self.home)


def run(serving: Serving, *words: str) -> Any:
    """Type a command about a served fleet; return what it printed, read where it is JSON."""
    result = CliRunner().invoke(root, [words[0], words[1], "--home", str(serving.home), *words[2:]])
    if isinstance(result.exception, EdgeopsError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in words else result.stdout


def make_release(home: Path, version: str, profiles: tuple[str, ...] = PROFILES) -> None:
    """Publish a release that no device of these tests opens."""
    publish_sealed_release(home, home.parent / "bundles" / version, MODEL, version, profiles)


class Fleet:
    """Devices that joined a served fleet, one per profile."""

    def __init__(self, serving: Serving, directory: Path, **options: Any) -> None:
        key = Publisher(serving.home).desired_signer().public_key
        self.devices: dict[str, FakeDevice] = {}
        for profile in PROFILES:
            name = f"{profile}-1"
            token = serving.api.create_token(profile=profile)
            joined = join(directory / name, token.token, profile=profile, name=name)
            self.devices[name] = FakeDevice(directory / name, joined, key, **options).start()
        wait_for(lambda: all(d.online for d in serving.api.devices()), "not all came online")

    def stop(self) -> None:
        for device in self.devices.values():
            device.stop()
