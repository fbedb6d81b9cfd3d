"""A gateway with an emulated board behind a cable, and a fleet that knows both."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cables import Cable, SocketCable
from fake_fleet import AT_ONCE, DEVICE, FLEET, WITHIN_S, Agent, FakeFleet, wait_for
from mcu_bundles import MODEL, mcu_bundle
from securesystemslib.signer import CryptoSigner

from edgeops.contracts.deployment import Component, ComponentKind, ComponentReport, DeploymentState, Reported
from edgeops.contracts.release import TargetCustom, target_path
from edgeops.contracts.topics import unit_topic
from edgeops.releases import blob_signing
from edgeops.releases.bundles import pack
from edgeops.trust.publisher import NewTarget
from firmware_bridge.emulated import Board, QemuBoard
from firmware_bridge.link import ModelInfo, SmpLink
from firmware_bridge.ports import SerialPort

UNIT, PROFILE, MACHINE = "pump", "cortex-m4", "mps2-an386"
# A sector and a packet of a blob of 30 KB.
SECTOR_PERCENT = 25
DECLARED = AT_ONCE + '[[mcu]]\nname = "{unit}"\nport = "{port}"\nprofile = "{profile}"\ninstall_within_s = {within_s}\n'


class Site:
    """The gateway.

    Args:
        folder: Where all lies.
        within_s: How long an update may take.
        keys: Keys that the board's firmware holds beside the fleet's.
        cable: The cable, from a place and the board's end.
    """

    def __init__(
        self,
        folder: Path,
        *,
        within_s: float = 120,
        keys: Sequence[bytes] = (),
        cable: Callable[[Path, str], Cable | SocketCable] = Cable,
    ) -> None:
        self.fleet = FakeFleet(folder / "fleet")
        self.key = blob_signing.raw_public(self.fleet.publisher.blob_signer())
        self.board: Board = QemuBoard(MACHINE, folder / "flash.bin", [self.key, *keys], ["EO_WATCHDOG_MS=2000"])
        self.board.power_on()
        self.cable = cable(folder / "tty-pump", self.board.url)
        self.generation = 0
        self._folder = folder
        state = folder / "gateway"
        state.mkdir(mode=0o700)
        declared = DECLARED.format(unit=UNIT, port=self.cable.path, profile=PROFILE, within_s=within_s)
        (state / "agent.toml").write_text(declared)
        self.agent = Agent(self.fleet, state, "--telemetry-window-s", "1").start()

    def close(self) -> None:
        self.agent.stop()
        self.cable.pull()
        self.board.close()
        self.fleet.stop()

    def release(
        self,
        number: int,
        *,
        counter: int = 1,
        signed: bool = True,
        signer: CryptoSigner | None = None,
        model: str = MODEL,
        **changes: Any,
    ) -> Component:
        bundle = mcu_bundle(self._folder / f"bundle-{number}", add=number, model=model, **changes)
        version = f"1.{number}.0"
        file = self._folder / f"{version}.edgeops"
        pack(bundle, file)
        signer = signer or self.fleet.publisher.blob_signer()
        trailer = self._trailer(file, version, counter, signer) if signed else ""
        custom = TargetCustom(
            model=model, version=version, number=number, profile=PROFILE, digest=bundle.digest, blob_trailer=trailer
        )
        path = target_path(model, version, PROFILE)
        self.fleet.publisher.publish([NewTarget(path, file, custom)])
        return Component(name=model, kind=ComponentKind.MODEL, release=version, target=path, digest=bundle.digest)

    def _trailer(self, file: Path, version: str, counter: int, signer: CryptoSigner) -> str:
        blob = blob_signing.blob_in(file)
        assert blob is not None
        return blob_signing.trailer(blob, version, counter, signer)

    def desire(self, *components: Component) -> None:
        self.generation += 1
        envelope = self.fleet.envelope(*components, unit=UNIT, generation=self.generation)
        link = self.fleet._link
        assert link.wait_connected(WITHIN_S)
        info = link.publish(unit_topic(FLEET, DEVICE, UNIT, "desired"), envelope, retain=True)
        assert info is not None
        info.wait_for_publish(WITHIN_S)

    def report(self) -> Reported | None:
        return next((one for one in reversed(self.fleet.reports) if one.unit == UNIT), None)

    def component(self, model: str = MODEL) -> ComponentReport | None:
        report = self.report()
        return next((one for one in report.components if one.name == model), None) if report is not None else None

    def wait_state(self, state: DeploymentState, model: str = MODEL) -> ComponentReport:
        def reached() -> ComponentReport | None:
            found = self.component(model)
            return found if found is not None and (found.state, found.generation) == (state, self.generation) else None

        found: ComponentReport = wait_for(reached, f"not {state}; see {self.agent.log}")
        return found

    def wait_problem(self, code: str) -> None:
        def told() -> bool:
            report = self.report()
            return report is not None and report.refused is not None and report.refused.code == code

        wait_for(told, f"no {code}: {self.report()}")

    def arrived(self) -> list[float]:
        """How much of the newest update was on the board, in percent, each time it was told."""
        return [
            one.percent
            for one in self.fleet.progress
            if (one.unit, one.generation, one.state) == (UNIT, self.generation, DeploymentState.SELF_TEST)
            and one.percent is not None
        ]

    def wait_arrived(self, percent: float) -> None:
        """Wait until so much of the newest update is on the board."""
        wait_for(lambda: any(told >= percent for told in self.arrived()), f"{self.arrived()}; see {self.agent.log}")

    def went_on(self) -> bool:
        """Whether the upload went on after each cut, where its last whole sector ended."""
        told = self.arrived()
        return all(later > earlier - SECTOR_PERCENT for earlier, later in itertools.pairwise(told))

    def runs(self) -> str | None:
        """The version that the board runs for good, asked behind the gateway's back, with its power cycled."""
        assert not self.on_board().trial
        self.board.power_off()
        self.board.power_on()
        return self.on_board().version

    def on_board(self) -> ModelInfo:
        """What the board says of itself, once the gateway is killed and its cable pulled."""
        self.agent.kill()
        self.cable.pull()
        with SmpLink(SerialPort(self.board.url)) as link:
            return link.model_info()
