"""A fleet of emulated devices on this machine, by commands: what every demo does, whatever its model is."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeops.cli.demo.commands import CommandLine
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.topics import SELF_UNIT
from edgeops.releases.bundles import open_bundle

FLEET = "demo"
READY_WITHIN_S = 180
_ROLLOUT_WITHIN_S = 180
_DAMAGE_WITHIN_S = 300

_SETTLED = ("confirmed", "failed", "rejected")

Say = Callable[[str], None]


class Site:
    """One fleet in one folder.

    Args:
        folder: Where hand-overs, bundles, the fleet home and the devices' state go.
        commands: Runs edgeops commands.
        model: Name of the model.
        profiles: What it is compiled for.
        devices: Profiles of the devices, one each.
    """

    def __init__(
        self, folder: Path, commands: CommandLine, *, model: str, profiles: tuple[str, ...], devices: tuple[str, ...]
    ) -> None:
        self.folder = folder
        self.commands = commands
        self.model, self.profiles, self.device_profiles = model, profiles, devices
        self.home = folder / "home"
        self.endpoints: dict[str, str] = {}

    def compile(self, version: str, handover: Path) -> list[dict[str, Any]]:
        """Compile a hand-over for every profile; return a row per profile."""
        profiles = [word for profile in self.profiles for word in ("--profile", profile)]
        result: list[dict[str, Any]] = self.commands.run(
            "compile", str(handover), *profiles, "--out", str(self.bundles(version))
        )["profiles"]
        return result

    def bundles(self, version: str) -> Path:
        """Return the folder of a version's bundles."""
        return self.folder / "bundles" / version

    def bundle(self, version: str, profile: str) -> Path:
        """Return a version's bundle for a profile."""
        return self.bundles(version) / profile / "bundle"

    def init_trust(self) -> None:
        """Make the fleet's keys, its TUF repository and its certificate authority."""
        self.commands.run("trust", "init", "--home", str(self.home), "--fleet", FLEET)

    def release(self, version: str) -> dict[str, Any]:
        """Sign a version's bundles as a release and publish it."""
        bundles = [str(self.bundle(version, profile)) for profile in self.profiles]
        self.commands.run("release", "create", "--home", str(self.home), "--version", version, *bundles)
        published: dict[str, Any] = self.commands.run(
            "release", "publish", "--home", str(self.home), self.model, version
        )
        return published

    def damage(self, good: str, bad: str, profiles: tuple[str, ...] | None = None) -> None:
        """Make version `bad` out of `good`: artifacts that answer slightly wrongly, in bundles that are whole.

        Args:
            good: A compiled version.
            bad: The version to make.
            profiles: Those whose artifact is damaged; None: all. The others get what they had.
        """
        for profile in self.profiles:
            source, target = (self.bundle(version, profile) for version in (good, bad))
            if profiles is not None and profile not in profiles:
                shutil.copytree(source, target)
                continue
            damage = [sys.executable, "-m", "edgeops.testkit.damage", str(source), str(target)]
            subprocess.run(damage, check=True, capture_output=True, timeout=_DAMAGE_WITHIN_S)
            open_bundle(target)

    def serve(self) -> dict[str, Any]:
        """Start the control plane."""
        self.commands.start("control", "serve", "--home", str(self.home))
        facts: dict[str, Any] = self.commands.wait_for("control", self.home / "serve.json", within_s=READY_WITHIN_S)
        return facts

    def declared(self, profile: str) -> str:
        """Return what `agent.toml` of a device says: those of one machine need not spread their downloads."""
        return "[downloads]\nstart_within_s = 0\n"

    def enrol(self) -> list[str]:
        """Start an agent per device with a one-time token each; return the devices' names once all are online."""
        for profile in self.device_profiles:
            token = self.commands.run("device", "token", "--home", str(self.home), "--profile", profile)["token"]
            token_file = self.folder / "tokens" / profile
            token_file.parent.mkdir(mode=0o700, exist_ok=True)
            token_file.touch(mode=0o600)
            token_file.write_text(token)
            self.state(profile).mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.state(profile) / "agent.toml").write_text(self.declared(profile))
            self.start_agent(profile)
        names = [device_name(profile) for profile in self.device_profiles]
        self.wait(lambda: self._online() >= set(names), READY_WITHIN_S, "the devices are offline")
        return names

    def start_agent(self, profile: str) -> None:
        """Start a device's agent; it enrols where it has not."""
        self.commands.start(
            device_name(profile), "agent", "run", "--state", str(self.state(profile)),
            "--token-file", str(self.folder / "tokens" / profile), "--profile", profile,
            "--name", device_name(profile), "--telemetry-window-s", "3", "--confirm-after-s", "2",
        )  # fmt: skip

    def _online(self) -> set[str]:
        """Return who is online; a device that has not enrolled yet is not known at all."""
        listed = self.commands.run("device", "list", "--home", str(self.home), remember=False)
        return {device["connection"] for device in listed if device["online"]}

    def state(self, profile: str) -> Path:
        """Return the state folder of a profile's device."""
        return self.folder / "devices" / device_name(profile)

    def device(self, name: str) -> dict[str, Any]:
        """Return what the control plane knows of a device."""
        shown: dict[str, Any] = self.commands.run("device", "show", "--home", str(self.home), name, remember=False)
        return shown

    def devices(self, *, remember: bool = True) -> list[dict[str, Any]]:
        """Return what the control plane knows of all devices."""
        listed: list[dict[str, Any]] = self.commands.run("device", "list", "--home", str(self.home), remember=remember)
        return listed

    def components(self, devices: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return how the model stands on each unit that knows it, by the unit's name."""
        return {
            unit_name(device["connection"], unit["unit"]): component
            for device in devices
            for unit in device["units"]
            for component in unit["components"]
            if component["name"] == self.model
        }

    def settle(self) -> None:
        """Wait until no device is on its way any more: those of a stopped rollout's group finish what they began."""

        def settled() -> bool:
            found = self.components(self.devices(remember=False))
            return all(component["state"] in _SETTLED for component in found.values())

        self.wait(settled, _ROLLOUT_WITHIN_S, "the devices do not settle")

    def provider(self, device: str, unit: str = SELF_UNIT) -> str:
        """Return what runs the model on a unit, as its self-test found it."""
        (component,) = self.device(device)["reported"][unit]["components"]
        return str(component["self_test"]["provider"])

    def rollout(self, version: str, groups: str, say: Say) -> dict[str, Any]:
        """Roll a release out and watch until it ends; return how it stands then."""
        created = self.commands.run(
            "rollout", "create", "--home", str(self.home), self.model, version, "--groups", groups, "--start"
        )
        status: dict[str, Any] = {}

        def ended() -> bool:
            shown = self.commands.run("rollout", "status", "--home", str(self.home), str(created["id"]), remember=False)
            status.update(shown)
            say(_progress(shown))
            return shown["state"] not in ("draft", "running")

        self.wait(ended, _ROLLOUT_WITHIN_S, f"the rollout of {version} does not end")
        self.settle()
        return status

    def find_endpoints(self) -> dict[str, str]:
        """Return each device's local inference address, as its agent tells it."""
        for profile in self.device_profiles:
            file = self.state(profile) / "agent.json"
            facts = self.commands.wait_for(device_name(profile), file, within_s=READY_WITHIN_S)
            self.endpoints[device_name(profile)] = facts["endpoints"][self.model]
        return self.endpoints

    @staticmethod
    def wait(done: Callable[[], bool], within_s: float, otherwise: str) -> None:
        """Wait until something is so.

        Raises:
            EdgeopsError: E-INTERNAL; it is not, in time.
        """
        deadline = time.monotonic() + within_s
        while not done():
            if time.monotonic() > deadline:
                raise EdgeopsError("E-INTERNAL", f"{otherwise} after {within_s:.0f} s", "See the logs.")
            time.sleep(0.3)


def device_name(profile: str) -> str:
    """Return the name of a profile's device in a demo."""
    return f"{profile}-1"


def unit_name(connection: str, unit: str) -> str:
    """Return how people call a unit: a device by its own name, what is behind it with its gateway's before it."""
    return connection if unit == SELF_UNIT else f"{connection}/{unit}"


def _progress(rollout: dict[str, Any]) -> str:
    """Return how far a rollout is: devices per group."""
    groups = []
    for group in rollout["groups"]:
        counts = group["profiles"].values()
        there = sum(item["confirmed"] for item in counts)
        bad = sum(item["failed"] + item["rejected"] + item["timed_out"] for item in counts)
        total = there + bad + sum(item["running"] + item["held"] + item["silent"] for item in counts)
        groups.append(f"group {group['label']}: {there}/{total}" + (f", {bad} refused" if bad else ""))
    return f"{rollout['model']} {rollout['version']}: {'; '.join(groups)}"
