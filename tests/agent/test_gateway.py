"""A Linux agent with a microcontroller on its serial line: the unit is updated, refused and watched as any device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from adder_bundles import MODEL as LINUX_MODEL
from adder_bundles import small_bundle
from cables import Cable
from fake_fleet import AT_ONCE, DEVICE, FLEET, WITHIN_S, Agent, FakeFleet, wait_for
from mcu_bundles import MODEL, mcu_bundle
from model_code import CRASH, HANG

from edgeops.agent.config import read_config
from edgeops.contracts.deployment import Component, ComponentKind, ComponentReport, DeploymentState, Reported, Shadowing
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.profile import Budgets
from edgeops.contracts.release import TargetCustom, target_path
from edgeops.contracts.topics import unit_topic
from edgeops.releases import blob_signing
from edgeops.releases.bundles import pack
from edgeops.trust.publisher import NewTarget
from firmware_bridge.emulated import Board, HostBoard, QemuBoard
from firmware_bridge.link import SmpLink
from firmware_bridge.ports import SerialPort

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("arm_compiler", "emulator", "host_compiler")]

UNIT, PROFILE, MACHINE = "pump", "cortex-m4", "mps2-an386"
DECLARED = AT_ONCE + '[[mcu]]\nname = "{unit}"\nport = "{port}"\nprofile = "{profile}"\ninstall_within_s = {within_s}\n'


class Site:
    """A gateway with one board behind a cable, and a fleet that knows both."""

    def __init__(self, folder: Path, *, within_s: float = 120) -> None:
        self.fleet = FakeFleet(folder / "fleet")
        self.key = blob_signing.raw_public(self.fleet.publisher.blob_signer())
        self.board: Board = QemuBoard(MACHINE, folder / "flash.bin", [self.key], ["EO_WATCHDOG_MS=2000"])
        self.board.power_on()
        self.cable = Cable(folder / "tty-pump", self.board.url)
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

    def release(self, number: int, *, counter: int = 1, signed: bool = True, **changes: Any) -> Component:
        bundle = mcu_bundle(self._folder / f"bundle-{number}", add=number, **changes)
        version = f"1.{number}.0"
        file = self._folder / f"{version}.edgeops"
        pack(bundle, file)
        trailer = self._trailer(file, version, counter) if signed else ""
        custom = TargetCustom(
            model=MODEL, version=version, number=number, profile=PROFILE, digest=bundle.digest, blob_trailer=trailer
        )
        path = target_path(MODEL, version, PROFILE)
        self.fleet.publisher.publish([NewTarget(path, file, custom)])
        return Component(name=MODEL, kind=ComponentKind.MODEL, release=version, target=path, digest=bundle.digest)

    def _trailer(self, file: Path, version: str, counter: int) -> str:
        blob = blob_signing.blob_in(file)
        assert blob is not None
        return blob_signing.trailer(blob, version, counter, self.fleet.publisher.blob_signer())

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

    def component(self) -> ComponentReport | None:
        report = self.report()
        return next((one for one in report.components if one.name == MODEL), None) if report is not None else None

    def wait_state(self, state: DeploymentState) -> ComponentReport:
        def reached() -> ComponentReport | None:
            found = self.component()
            return found if found is not None and (found.state, found.generation) == (state, self.generation) else None

        found: ComponentReport = wait_for(reached, f"not {state}; see {self.agent.log}")
        return found

    def wait_problem(self, code: str) -> None:
        def told() -> bool:
            report = self.report()
            return report is not None and report.refused is not None and report.refused.code == code

        wait_for(told, f"no {code}: {self.report()}")

    def wait_passed(self, count: int) -> None:
        """Wait until so many bytes more went over the cable."""
        goal = self.cable.passed + count
        wait_for(lambda: self.cable.passed >= goal, "nothing goes over the cable")

    def runs(self) -> str | None:
        """The version that the board runs for good, asked behind the gateway's back, with its power cycled."""
        self.agent.kill()
        self.cable.pull()
        self.board.power_off()
        self.board.power_on()
        with SmpLink(SerialPort(self.board.url)) as link:
            info = link.model_info()
        assert not info.trial
        return info.version


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def test_a_unit_is_updated_refused_and_watched_beside_its_gateway(site: Site, tmp_path: Path):
    first, second, lying = site.release(1), site.release(2), site.release(3, lie=1.0)
    site.desire(first)
    linux = site.fleet.publish(small_bundle(tmp_path / "linux", add=4.0), "1.0.0", 1)
    site.fleet.desire(linux)
    report = site.wait_state(DeploymentState.CONFIRMED)
    assert report.active is not None
    assert (report.active.release, report.active.number, report.active.trailer) == ("1.1.0", 1, "")
    assert report.self_test is not None
    assert (report.self_test.vectors, report.self_test.max_abs_diff) == (4, 0.0)
    assert report.self_test.provider == f"edgeops-mcu 1 {MACHINE}"

    site.desire(second)
    report = site.wait_state(DeploymentState.CONFIRMED)
    assert report.fallback is not None
    assert report.fallback.release == "1.1.0"
    steps = [one for one in site.fleet.progress if one.unit == UNIT and one.generation == 2 and one.percent is None]
    assert [str(one.state) for one in steps] == ["downloading", "staged", "self-test", "trial", "confirmed"]

    site.desire(lying)
    report = site.wait_state(DeploymentState.FAILED)
    assert report.failure is not None
    assert (report.failure.code, report.failure.release) == ("E-SELFTEST-GOLDEN", "1.3.0")
    whole = site.report()
    assert whole is not None
    assert (whole.profile, whole.capabilities, whole.features) == (PROFILE, {"mcu": f"edgeops-mcu 1 {MACHINE}"}, ())
    assert site.agent.added(LINUX_MODEL) == 4
    windows = wait_for(
        lambda: [
            model
            for window in site.fleet.telemetry
            if window.unit == UNIT
            for model in window.models
            if model.digest == second.digest
        ],
        "no telemetry of the unit",
    )
    assert sum(window.requests for window in windows) > 0
    assert all(window.model == MODEL for window in windows)
    assert site.runs() == "1.2.0"


def test_noise_unplugging_and_resets_in_mid_upload_cost_only_time(site: Site):
    site.desire(site.release(1))
    site.wait_state(DeploymentState.CONFIRMED)
    site.cable.noise = 0.01
    site.desire(site.release(2, padding=30_000))
    site.wait_passed(8_000)
    site.cable.pull()
    site.wait_problem("E-MCU-PORT")
    site.cable.plug()
    site.wait_passed(8_000)
    site.board.power_off()
    time.sleep(0.5)
    site.board.power_on()
    report = site.wait_state(DeploymentState.CONFIRMED)
    assert report.active is not None
    assert report.active.release == "1.2.0"
    # An upload from the beginning each time would have taken three times the blob, in base64.
    assert site.cable.passed < 2.5 * 30_000 * 4 / 3
    assert site.runs() == "1.2.0"


@pytest.mark.full
def test_a_gateway_that_is_killed_goes_on_where_it_was(site: Site):
    site.desire(site.release(1))
    site.wait_state(DeploymentState.CONFIRMED)
    site.desire(site.release(2, padding=30_000))
    site.wait_passed(10_000)
    site.agent.kill()
    site.agent.start()
    report = site.wait_state(DeploymentState.CONFIRMED)
    assert report.active is not None
    assert report.active.release == "1.2.0"
    assert site.runs() == "1.2.0"


@pytest.mark.full
def test_a_wrong_device_on_the_port_is_told_and_left_alone(site: Site, tmp_path: Path):
    site.desire(site.release(1))
    site.wait_state(DeploymentState.CONFIRMED)
    other = HostBoard(tmp_path / "other.bin", [site.key])
    with other:
        site.cable.plug(other.url)
        site.desire(site.release(2))
        site.wait_problem("E-MCU-ANSWER")
        report = site.report()
        assert report is not None
        assert report.refused is not None
        assert "cortex-m4" in report.refused.what
        site.cable.plug(site.board.url)
        site.wait_state(DeploymentState.CONFIRMED)
        with SmpLink(SerialPort(other.url)) as link:
            assert link.images() == [], "nothing was put on it"
    assert site.runs() == "1.2.0"


@pytest.mark.full
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"extra": HANG}, "E-MCU-"),
        ({"extra": CRASH}, "E-MCU-"),
        ({"signed": False}, "E-MCU-BLOB"),
        ({"budgets": Budgets(latency_p95_ms=1e-9)}, "E-SELFTEST-BUDGET"),
    ],
    ids=["hangs", "crashes", "unsigned", "too slow"],
)
def test_a_model_that_does_not_pass_leaves_the_one_before(tmp_path: Path, changes: dict[str, Any], code: str):
    site = Site(tmp_path, within_s=20)
    try:
        site.desire(site.release(1))
        site.wait_state(DeploymentState.CONFIRMED)
        site.desire(site.release(2, **changes))
        report = site.wait_state(DeploymentState.FAILED)
        assert report.failure is not None
        assert report.failure.code.startswith(code)
        assert report.active is not None
        assert report.active.release == "1.1.0"
        assert site.runs() == "1.1.0"
    finally:
        site.close()


@pytest.mark.full
def test_what_no_microcontroller_holds_is_rejected_with_its_reason(site: Site):
    first = site.release(1)
    site.desire(first)
    site.wait_state(DeploymentState.CONFIRMED)
    site.desire(msgspec.structs.replace(first, shadow=Shadowing(share=0.5, cpu=0.5)))
    report = site.wait_state(DeploymentState.REJECTED)
    assert report.failure is not None
    assert report.failure.code == "E-DESIRED-UNSUPPORTED"


BAD_RULES: dict[str, tuple[str, str]] = {
    "a name twice": ('[[mcu]]\nname = "a"\nport = "/x"\nprofile = "cortex-m4"\n' * 2, "appears twice"),
    "its own name": ('[[mcu]]\nname = "self"\nport = "/x"\nprofile = "cortex-m4"\n', "this device itself"),
    "no such profile": ('[[mcu]]\nname = "a"\nport = "/x"\nprofile = "cortex-m99"\n', "cortex-m99"),
    "no microcontroller": ('[[mcu]]\nname = "a"\nport = "/x"\nprofile = "intel-nuc"\n', "no microcontroller's"),
    "an unknown key": ('[[mcu]]\nname = "a"\nport = "/x"\nprofile = "cortex-m4"\nspeed = 9\n', "speed"),
    "no port": ('[[mcu]]\nname = "a"\nport = ""\nprofile = "cortex-m4"\n', "port"),
}


@pytest.mark.parametrize("name", BAD_RULES)
def test_wrong_declarations_are_refused(name: str, tmp_path: Path):
    text, why = BAD_RULES[name]
    (tmp_path / "agent.toml").write_text(text)
    with pytest.raises(EdgeopsError, match=why) as caught:
        read_config(tmp_path)
    assert caught.value.code == "E-CONFIG"
