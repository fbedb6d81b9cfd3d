"""The demo with a microcontroller: an emulated Cortex-M4 on the serial line of a gateway, in rollouts beside Linux.

Data: scikit-learn's labelled digits, 1,797 scans of 8x8 pixels (UCI ML, "Optical Recognition of Handwritten Digits").
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeops.agent.gateway.model import LinkSession
from edgeops.cli.demo.commands import CommandLine
from edgeops.cli.demo.site import READY_WITHIN_S, Site, device_name, unit_name
from edgeops.client.inference import InferenceClient
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import open_bundle
from edgeops.runtimes.bundle_session import BundleSession
from edgeops.runtimes.protocol import Tensors
from firmware_bridge import blobs
from firmware_bridge.emulated import Board, QemuBoard
from firmware_bridge.link import SmpLink
from firmware_bridge.ports import SerialPort

MODEL = "digits"
GATEWAY, NEIGHBOUR, MCU = "raspberry-pi-4", "intel-nuc", "cortex-m4"
UNIT, MACHINE = "pump", "mps2-an386"
MCU_NAME = unit_name(device_name(GATEWAY), UNIT)
QUESTIONS = 50
_SEED = 7


class Digits(NamedTuple):
    """Labelled digits of both sides: pixels float32 [n, 64], labels int64 [n]."""

    train: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]


class Said(NamedTuple):
    """What one device made of the questions: a digit for each, how many are right; `release` as the device names it."""

    device: str
    release: str
    digits: list[int]
    right: int


class McuScenario(Site):
    """A gateway with a microcontroller, and a neighbour.

    Args:
        folder: See `Site`.
        commands: Runs edgeops commands.
    """

    def __init__(self, folder: Path, commands: CommandLine) -> None:
        profiles = (GATEWAY, NEIGHBOUR, MCU)
        super().__init__(folder, commands, model=MODEL, profiles=profiles, devices=profiles[:2])
        self._board: Board | None = None

    @functools.cached_property
    def data(self) -> Digits:
        """The digits, half of them to train.

        Raises:
            EdgeopsError: E-DEPENDENCY; scikit-learn is missing.
        """
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise EdgeopsError("E-DEPENDENCY", f"{error}", "pip install 'edgeops[sklearn]'") from error
        pixels, labels = load_digits(return_X_y=True)
        train, test, train_labels, test_labels = train_test_split(
            pixels.astype(np.float32), labels.astype(np.int64), test_size=0.5, random_state=_SEED, stratify=labels
        )
        return Digits(train, train_labels, test, test_labels)

    def prepare(self, version: str, samples: int) -> tuple[Path, float]:
        """Train a network on so many digits and hand it over; return the folder, and how often it is right itself."""
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import MinMaxScaler

        import edgeops

        data = self.data
        network = MLPClassifier((64, 32), max_iter=400, random_state=_SEED)
        model = make_pipeline(MinMaxScaler(), network).fit(data.train[:samples], data.train_labels[:samples])
        folder = self.folder / "handovers" / version
        folder.parent.mkdir(parents=True, exist_ok=True)
        edgeops.handover(model, data.train, out=folder, name=MODEL, evaluation=(data.test, data.test_labels))
        return folder, float(model.score(data.test, data.test_labels))

    @contextlib.contextmanager
    def powered_board(self) -> Iterator[Board]:
        """Have the board under power: its firmware is built with the key that signs the fleet's blobs."""
        key = self.commands.run("trust", "blob-key", "--home", str(self.home))["public_key"]
        with QemuBoard(MACHINE, self.folder / "flash.bin", [bytes.fromhex(key)]) as board:
            self._board = board
            yield board

    def declared(self, profile: str) -> str:
        """Return what `agent.toml` says: that of the gateway names the board's line."""
        text = super().declared(profile)
        if profile != GATEWAY or self._board is None:
            return text
        return f'{text}[[mcu]]\nname = "{UNIT}"\nport = "{self._board.url}"\nprofile = "{MCU}"\n'

    def enrol(self) -> list[str]:
        """Start the agents; return the names once all are online and the board is reached behind its gateway."""

        def reached() -> bool:
            unit = self.device(device_name(GATEWAY))["reported"].get(UNIT)
            return unit is not None and bool(unit["capabilities"])

        names = super().enrol()
        self.wait(reached, READY_WITHIN_S, f"{MCU_NAME} is not reached")
        return [*names, MCU_NAME]

    def ask(self) -> list[Said]:
        """Ask the Linux devices what the questions are."""
        answers = []
        for device, endpoint in self.find_endpoints().items():
            client = InferenceClient(endpoint)
            release = client.metadata(MODEL)["versions"][0]
            answers.append(self._judge(device, release, functools.partial(client.infer, MODEL)))
        return answers

    def ask_board(self, version: str) -> Said:
        """Ask the board on its own line, which its gateway gives back meanwhile: the board runs on without it.

        Args:
            version: The release that it should run; its bundle says what goes over the line and what comes back.
        """
        gateway = device_name(GATEWAY)
        self.commands.stop(gateway)
        assert self._board is not None
        bundle = open_bundle(self.bundle(version, MCU))
        header = blobs.read((bundle.directory / bundle.manifest.artifact).read_bytes())
        with SmpLink(SerialPort(self._board.url)) as link:
            session = BundleSession(LinkSession(link, header), bundle.manifest)
            said = self._judge(MCU_NAME, link.model_info().version or "nothing", session.run)
        (self.state(GATEWAY) / "agent.json").unlink(missing_ok=True)
        self.start_agent(GATEWAY)
        self.commands.wait_for(gateway, self.state(GATEWAY) / "agent.json", within_s=READY_WITHIN_S)
        return said

    def cut_power(self) -> None:
        """Take the board's power away, and give it back."""
        assert self._board is not None
        self._board.power_off()
        self._board.power_on()

    def _judge(self, device: str, release: str, answer: Callable[[Tensors], Tensors]) -> Said:
        data = self.data
        digits = []
        for pixels in data.test[:QUESTIONS]:
            (probabilities,) = answer({"features": pixels[None]}).values()
            digits.append(int(probabilities.argmax()))
        right = sum(one == label for one, label in zip(digits, data.test_labels[:QUESTIONS].tolist(), strict=True))
        return Said(device, release, digits, right)
