"""The demo's story, step by step. Each step acts by commands and returns what it found; nothing is shown here."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeops.cli.demo.commands import CommandLine
from edgeops.cli.demo.site import READY_WITHIN_S, Site
from edgeops.cli.demo.text_lines import Split, TextLines, text_lines, write_handover
from edgeops.cli.demo.traffic import Traffic
from edgeops.client.inference import InferenceClient

MODEL = "text-line-orientation"
PROFILES = ("raspberry-pi-4", "intel-nuc", "jetson-orin-nano")
GROUPS = "67%,100%"
_CHECKED_IMAGES = 50


class Answers(NamedTuple):
    """How one device answered real images: share of right answers over `images`, before and after it runs alone."""

    device: str
    images: int
    right: int


class Scenario(Site):
    """Three devices that classify text lines.

    Args:
        folder: See `Site`.
        commands: Runs edgeops commands.
    """

    def __init__(self, folder: Path, commands: CommandLine) -> None:
        super().__init__(folder, commands, model=MODEL, profiles=PROFILES, devices=PROFILES)

    @functools.cached_property
    def questions(self) -> Split:
        """Labelled images to ask devices: the evaluation side."""
        return text_lines(windows_per_line=1).evaluation

    def prepare(self, name: str, windows_per_line: int, seed: int) -> tuple[Path, TextLines]:
        """Write a hand-over: the published model, and text lines cropped from scans, varied by `seed`."""
        data = text_lines(windows_per_line=windows_per_line, seed=seed)
        return write_handover(self.folder / "handovers" / name, data), data

    def ask(self) -> list[Answers]:
        """Send real images to each device and count the right answers."""
        side = self.questions
        places = np.linspace(0, len(side.images) - 1, _CHECKED_IMAGES).astype(int)
        images, labels = side.images[places], side.labels[places]
        answers = []
        for device, endpoint in self.endpoints.items():
            client = InferenceClient(endpoint)
            self.wait(client.ready, READY_WITHIN_S, f"{device} does not serve")
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


def model_component(device: dict[str, Any]) -> dict[str, Any]:
    """Return how the demo's model stands on a device."""
    found: dict[str, Any] = next(
        component for unit in device["units"] for component in unit["components"] if component["name"] == MODEL
    )
    return found
