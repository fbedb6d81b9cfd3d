"""The real control plane rolls releases out over a microcontroller behind a real gateway; QEMU ends the line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adder_bundles import PROFILE as LINUX
from adder_bundles import small_bundle
from cables import Cable
from mcu_bundles import MODEL, mcu_bundle
from served_fleet import BROKERS, Serving, run, wait_for

from edgeops.client.resources import UnitInfo
from edgeops.client.rollout_resources import GatesInfo, RolloutWish
from edgeops.contracts.deployment import DeploymentState
from edgeops.contracts.rollouts import RolloutState
from edgeops.releases import assemble, blob_signing, publish
from edgeops.trust.founding import make_fleet
from edgeops.trust.publisher import Publisher
from firmware_bridge.emulated import QemuBoard
from firmware_bridge.link import SmpLink
from firmware_bridge.ports import SerialPort

pytestmark = [pytest.mark.full, pytest.mark.timeout(600), pytest.mark.usefixtures("arm_compiler", "emulator")]

GATEWAY, UNIT, MCU, MACHINE = "gw", "pump", "cortex-m4", "mps2-an386"
NAME = f"{GATEWAY}/{UNIT}"
DECLARED = f'[downloads]\nstart_within_s = 0\n[[mcu]]\nname = "{UNIT}"\nport = "{{port}}"\nprofile = "{MCU}"\n'


class Plant:
    """A served fleet with one gateway, and a board on its line."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        make_fleet(self.home, "f1")
        key = blob_signing.raw_public(Publisher(self.home).blob_signer())
        self.board = QemuBoard(MACHINE, folder / "flash.bin", [key])
        self.board.power_on()
        self.cable = Cable(folder / "tty-pump", self.board.url)
        self.serving = Serving(self.home, BROKERS[-1])
        self.serving.start()
        self.log = folder / "gateway.log"
        self._agent: subprocess.Popen[bytes] | None = None

    def start_gateway(self) -> None:
        state = self.folder / "gateway"
        state.mkdir(mode=0o700)
        (state / "agent.toml").write_text(DECLARED.format(port=self.cable.path))
        token = self.folder / "token"
        token.write_text(self.serving.api.create_token(profile=LINUX).token)
        command = [
            sys.executable, "-m", "edgeops", "agent", "run", "--state", str(state), "--token-file", str(token),
            "--profile", LINUX, "--name", GATEWAY, "--telemetry-window-s", "1", "--confirm-after-s", "0.5", "--verbose",
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self._agent = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: self.serving.api.fleet().profiles.get(MCU) == 1, f"the unit is not known; see {self.log}")

    def stop_gateway(self) -> None:
        if self._agent is not None:
            self._agent.terminate()
            self._agent.wait(60)
            self._agent = None

    def close(self) -> None:
        self.stop_gateway()
        self.serving.stop()
        self.cable.pull()
        self.board.close()

    def release(self, version: str, add: int, *, linux: bool = True, **changes: Any) -> None:
        """Publish a release: y = x + add on both, or on the microcontroller alone."""
        folder = self.folder / "bundles" / version
        folder.mkdir(parents=True)
        bundles = [mcu_bundle(folder / MCU, add=add, **changes).directory]
        if linux:
            bundles.append(small_bundle(folder / LINUX, add=add, model=MODEL).directory)
        assemble.create(self.home, bundles, version=version)
        publish.publish(self.home, MODEL, version)

    def roll_out(self, version: str, end: RolloutState, **wish: Any) -> int:
        made = self.serving.api.create_rollout(RolloutWish(model=MODEL, version=version, start=True, **wish))
        reached = lambda: self.serving.api.rollout(made.id).state == end  # noqa: E731
        wait_for(reached, f"not {end}: {self.serving.api.rollout(made.id)}; see {self.log}")
        return made.id

    def unit(self) -> UnitInfo:
        return next(unit for unit in self.serving.api.device(GATEWAY).units if unit.unit == UNIT)

    def settled(self, state: DeploymentState, active: str) -> None:
        def there() -> bool:
            found = self.unit().components
            return [(one.state, one.active_release) for one in found] == [(state, active)]

        wait_for(there, f"not {state} with {active}: {self.unit()}; see {self.log}")

    def board_runs(self) -> str | None:
        """What the board runs for good, asked behind the gateway's back, with its power cycled."""
        self.stop_gateway()
        self.cable.pull()
        self.board.power_off()
        self.board.power_on()
        with SmpLink(SerialPort(self.board.url)) as link:
            info = link.model_info()
        assert not info.trial
        return info.version


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    made = Plant(tmp_path)
    try:
        made.start_gateway()
        yield made
    finally:
        made.close()


def test_a_rollout_reaches_the_unit_beside_its_gateway_and_a_gate_stops_a_bad_one(plant: Plant):
    plant.release("1.0.0", 1)
    first = plant.roll_out("1.0.0", RolloutState.SUCCEEDED)
    members = {f"{one.connection}/{one.unit}": one.state for one in plant.serving.api.members(first)}
    assert members == {f"{GATEWAY}/self": "confirmed", NAME: "confirmed"}
    told = plant.serving.api.device(GATEWAY)
    assert set(told.reported) == {"self", UNIT}
    on_board, on_linux = (told.reported[name]["components"][0]["self_test"] for name in (UNIT, "self"))
    assert {key: on_board[key] for key in ("provider", "vectors", "max_abs_diff")} == {
        "provider": f"edgeops-mcu 1 {MACHINE}", "vectors": 4, "max_abs_diff": 0.0,
    }  # fmt: skip
    assert on_linux["provider"] == "CPUExecutionProvider"

    # Only the unit, by what it is; the gateway keeps what it has.
    plant.release("1.1.0", 2, padding=30_000)
    assert run(plant.serving, "device", "label", NAME, "line=4") == f"{NAME}: line=4\n"
    second = plant.roll_out("1.1.0", RolloutState.SUCCEEDED, where=f"profile = {MCU} and label.line = 4")
    assert [one.unit for one in plant.serving.api.members(second)] == [UNIT]
    plant.settled(DeploymentState.CONFIRMED, "1.1.0")
    steps = [one for one in plant.serving.api.device(GATEWAY).progress if (one.unit, one.release) == (UNIT, "1.1.0")]
    steps.sort(key=lambda one: one.device_at_s)
    arrived = [one.percent for one in steps if one.state == "self-test" and one.percent is not None]
    assert len(arrived) >= 5, arrived
    assert arrived == sorted(arrived)
    assert arrived[-1] == 100
    assert {one.detail for one in steps if one.percent in arrived} >= {"on its way to the microcontroller"}

    def asked() -> int:
        found = plant.serving.api.telemetry(MODEL, devices=(NAME,))
        assert {(one.profile, one.release) for one in found} <= {(MCU, "1.0.0"), (MCU, "1.1.0")}
        return sum(one.requests for one in found if one.release == "1.1.0")

    wait_for(lambda: asked() > 0, "no telemetry of the unit")

    plant.release("1.2.0", 3, linux=False, lie=1.0)
    third = plant.roll_out("1.2.0", RolloutState.STOPPED)
    told_why = run(plant.serving, "rollout", "explain", str(third))
    assert NAME in told_why
    assert "E-SELFTEST-GOLDEN" in told_why
    plant.settled(DeploymentState.FAILED, "1.1.0")
    assert "failed E-SELFTEST-GOLDEN" in run(plant.serving, "device", "history", NAME)
    assert plant.board_runs() == "1.1.0"


def test_a_unit_that_is_unplugged_comes_to_what_is_desired_when_it_is_back(plant: Plant):
    plant.release("1.0.0", 1)
    plant.roll_out("1.0.0", RolloutState.SUCCEEDED)
    plant.release("1.1.0", 2, linux=False)
    plant.cable.pull()
    wait_for(lambda: (why := plant.unit().refused) and why.code == "E-MCU-PORT", "nothing is said of the cable")
    made = plant.serving.api.create_rollout(RolloutWish(model=MODEL, version="1.1.0", start=True))
    wait_for(lambda: plant.unit().desired_generation == 2, "nothing is desired of the unit")
    assert plant.serving.api.rollout(made.id).state == RolloutState.RUNNING
    plant.cable.plug()
    wait_for(lambda: plant.serving.api.rollout(made.id).state == RolloutState.SUCCEEDED, "it does not come to it")
    assert plant.board_runs() == "1.1.0"


def test_what_the_unit_says_of_its_inferences_trips_a_gate_and_it_goes_back(plant: Plant):
    plant.release("1.0.0", 1, linux=False)
    plant.roll_out("1.0.0", RolloutState.SUCCEEDED)
    plant.release("1.1.0", 2, linux=False)
    # No board is that quick; its self-test has no budget to hold it against.
    gates = GatesInfo(latency_p95_ms_max=1e-6)
    slow = plant.roll_out("1.1.0", RolloutState.REVERTED, gates=gates, bake_s=1.0, on_failure="revert")
    assert "latency_p95_ms_max" in run(plant.serving, "rollout", "explain", str(slow))
    plant.settled(DeploymentState.CONFIRMED, "1.0.0")
    assert plant.board_runs() == "1.0.0"
