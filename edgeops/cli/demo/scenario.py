"""The demo's story, step by step. Each step acts by commands and returns what it found; nothing is shown here."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeops.cli.demo.commands import CommandLine
from edgeops.cli.demo.text_lines import Split, TextLines, text_lines, write_handover
from edgeops.cli.demo.traffic import Traffic
from edgeops.client.inference import InferenceClient
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import open_bundle

MODEL = "text-line-orientation"
FLEET = "demo"
PROFILES = ("raspberry-pi-4", "intel-nuc", "jetson-orin-nano")
GROUPS = "67%,100%"
_READY_WITHIN_S = 60
_ROLLOUT_WITHIN_S = 180
_DAMAGE_WITHIN_S = 120
_CHECKED_IMAGES = 50

_SETTLED = ("confirmed", "failed", "rejected")

Say = Callable[[str], None]


class Answers(NamedTuple):
    """How one device answered real images: share of right answers over `images`, before and after it runs alone."""

    device: str
    images: int
    right: int


class Scenario:
    """One fleet of three emulated devices on this machine, in one folder.

    Args:
        folder: Where hand-overs, bundles, the fleet home and the devices' state go.
        commands: Runs edgeops commands.
    """

    def __init__(self, folder: Path, commands: CommandLine) -> None:
        self.folder = folder
        self.commands = commands
        self.home = folder / "home"
        self.endpoints: dict[str, str] = {}

    @functools.cached_property
    def questions(self) -> Split:
        """Labelled images to ask devices: the evaluation side."""
        return text_lines(windows_per_line=1).evaluation

    def prepare(self, name: str, windows_per_line: int, seed: int) -> tuple[Path, TextLines]:
        """Write a hand-over: the published model, and text lines cropped from scans, varied by `seed`."""
        data = text_lines(windows_per_line=windows_per_line, seed=seed)
        return write_handover(self.folder / "handovers" / name, data), data

    def compile(self, version: str, handover: Path) -> list[dict[str, Any]]:
        """Compile a hand-over for every profile; return a row per profile."""
        profiles = [word for profile in PROFILES for word in ("--profile", profile)]
        result: list[dict[str, Any]] = self.commands.run(
            "compile", str(handover), *profiles, "--out", str(self.bundles(version))
        )["profiles"]
        return result

    def bundles(self, version: str) -> Path:
        """Return the folder of a version's bundles."""
        return self.folder / "bundles" / version

    def init_trust(self) -> None:
        """Make the fleet's keys, its TUF repository and its certificate authority."""
        self.commands.run("trust", "init", "--home", str(self.home), "--fleet", FLEET)

    def release(self, version: str) -> dict[str, Any]:
        """Sign a version's bundles as a release and publish it."""
        bundles = [str(self.bundles(version) / profile / "bundle") for profile in PROFILES]
        self.commands.run("release", "create", "--home", str(self.home), "--version", version, *bundles)
        published: dict[str, Any] = self.commands.run("release", "publish", "--home", str(self.home), MODEL, version)
        return published

    def damage(self, good: str, bad: str) -> None:
        """Make version `bad` out of `good`: artifacts that answer slightly wrongly, in bundles that are whole."""
        for profile in PROFILES:
            source, target = (self.bundles(version) / profile / "bundle" for version in (good, bad))
            damage = [sys.executable, "-m", "edgeops.testkit.damage", str(source), str(target)]
            subprocess.run(damage, check=True, capture_output=True, timeout=_DAMAGE_WITHIN_S)
            open_bundle(target)

    def serve(self) -> dict[str, Any]:
        """Start the control plane."""
        self.commands.start("control", "serve", "--home", str(self.home))
        facts: dict[str, Any] = self.commands.wait_for("control", self.home / "serve.json", within_s=_READY_WITHIN_S)
        return facts

    def enrol(self) -> list[str]:
        """Start an agent per profile with a one-time token each; return the devices' names once all are online."""
        for profile in PROFILES:
            token = self.commands.run("device", "token", "--home", str(self.home), "--profile", profile)["token"]
            token_file = self.folder / "tokens" / profile
            token_file.parent.mkdir(mode=0o700, exist_ok=True)
            token_file.touch(mode=0o600)
            token_file.write_text(token)
            self.state(profile).mkdir(mode=0o700, parents=True, exist_ok=True)
            # Three devices need not spread their downloads.
            (self.state(profile) / "agent.toml").write_text("[downloads]\nstart_within_s = 0\n")
            self.commands.start(
                device_name(profile), "agent", "run", "--state", str(self.state(profile)),
                "--token-file", str(token_file), "--profile", profile, "--name", device_name(profile),
                "--telemetry-window-s", "3", "--confirm-after-s", "2",
            )  # fmt: skip
        names = [device_name(profile) for profile in PROFILES]
        self._wait(lambda: self._online() >= set(names), _READY_WITHIN_S, "the devices are offline")
        return names

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

    def devices(self) -> list[dict[str, Any]]:
        """Return what the control plane knows of all devices."""
        listed: list[dict[str, Any]] = self.commands.run("device", "list", "--home", str(self.home))
        return listed

    def settle(self) -> None:
        """Wait until no device is on its way any more: those of a stopped rollout's group finish what they began."""

        def settled() -> bool:
            shown = self.commands.run("device", "list", "--home", str(self.home), remember=False)
            return all(model_component(device)["state"] in _SETTLED for device in shown)

        self._wait(settled, _ROLLOUT_WITHIN_S, "the devices do not settle")

    def provider(self, name: str) -> str:
        """Return what runs the model on a device, as its self-test found it."""
        (unit,) = self.device(name)["reported"].values()
        (component,) = unit["components"]
        return str(component["self_test"]["provider"])

    def rollout(self, version: str, groups: str, say: Say) -> dict[str, Any]:
        """Roll a release out and watch until it ends; return how it stands then."""
        created = self.commands.run(
            "rollout", "create", "--home", str(self.home), MODEL, version, "--groups", groups, "--start"
        )
        status: dict[str, Any] = {}

        def ended() -> bool:
            shown = self.commands.run("rollout", "status", "--home", str(self.home), str(created["id"]), remember=False)
            status.update(shown)
            say(_progress(shown))
            return shown["state"] not in ("draft", "running")

        self._wait(ended, _ROLLOUT_WITHIN_S, f"the rollout of {version} does not end")
        self.settle()
        return status

    def find_endpoints(self) -> dict[str, str]:
        """Return each device's local inference address, as its agent tells it."""
        for profile in PROFILES:
            facts = self.commands.wait_for(device_name(profile), self.state(profile) / "agent.json", within_s=10)
            self.endpoints[device_name(profile)] = facts["endpoints"][MODEL]
        return self.endpoints

    def ask(self) -> list[Answers]:
        """Send real images to each device and count the right answers."""
        side = self.questions
        places = np.linspace(0, len(side.images) - 1, _CHECKED_IMAGES).astype(int)
        images, labels = side.images[places], side.labels[places]
        answers = []
        for device, endpoint in self.endpoints.items():
            client = InferenceClient(endpoint)
            right = 0
            for image, label in zip(images, labels, strict=True):
                (answer,) = client.infer(MODEL, {"image": image[None]}).values()
                right += int(answer.argmax() == label)
            answers.append(Answers(device, len(images), right))
        return answers

    @contextlib.contextmanager
    def traffic(self) -> Iterator[list[Traffic]]:
        """Keep requests flowing to all devices meanwhile."""
        side = self.questions
        flows = [Traffic(name, url, MODEL, side.images, side.labels).start() for name, url in self.endpoints.items()]
        try:
            yield flows
        finally:
            for flow in flows:
                flow.stop()

    @staticmethod
    def _wait(done: Callable[[], bool], within_s: float, otherwise: str) -> None:
        deadline = time.monotonic() + within_s
        while not done():
            if time.monotonic() > deadline:
                raise EdgeopsError("E-INTERNAL", f"{otherwise} after {within_s:.0f} s", "See the logs.")
            time.sleep(0.3)


def device_name(profile: str) -> str:
    """Return the name of a profile's device in the demo."""
    return f"{profile}-1"


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


def model_component(device: dict[str, Any]) -> dict[str, Any]:
    """Return how the demo's model stands on a device."""
    found: dict[str, Any] = next(
        component for unit in device["units"] for component in unit["components"] if component["name"] == MODEL
    )
    return found
