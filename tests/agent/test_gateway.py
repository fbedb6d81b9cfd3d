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
from cables import SocketCable
from click.testing import CliRunner
from fake_fleet import wait_for
from mcu_bundles import MODEL
from mcu_site import MACHINE, PROFILE, UNIT, Site
from model_code import CRASH, HANG

from edgeops.agent.config import read_config
from edgeops.cli.mcu import command
from edgeops.contracts.deployment import DeploymentState, Shadowing
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.profile import Budgets
from firmware_bridge.emulated import HostBoard
from firmware_bridge.link import SmpLink
from firmware_bridge.ports import SerialPort

WEAKENED = Path(__file__).parent / "weakened"
pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("arm_compiler", "emulator", "host_compiler")]


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


@pytest.mark.full
def test_noise_unplugging_and_resets_in_mid_upload_cost_only_time(site: Site):
    site.desire(site.release(1))
    site.wait_state(DeploymentState.CONFIRMED)
    site.cable.noise = 0.01
    site.desire(site.release(2, padding=30_000))
    site.wait_arrived(30)
    site.cable.pull()
    site.wait_problem("E-MCU-PORT")
    site.cable.plug()
    site.wait_arrived(60)
    site.board.power_off()
    time.sleep(0.5)
    site.board.power_on()
    report = site.wait_state(DeploymentState.CONFIRMED)
    assert report.active is not None
    assert report.active.release == "1.2.0"
    assert site.went_on()
    assert site.runs() == "1.2.0"


@pytest.mark.full
def test_a_gateway_that_is_killed_goes_on_where_it_was(site: Site):
    site.desire(site.release(1))
    site.wait_state(DeploymentState.CONFIRMED)
    site.desire(site.release(2, padding=30_000))
    site.wait_arrived(60)
    site.agent.kill()
    site.agent.start()
    report = site.wait_state(DeploymentState.CONFIRMED)
    assert report.active is not None
    assert report.active.release == "1.2.0"
    assert site.went_on()
    assert site.runs() == "1.2.0"


@pytest.mark.full
def test_a_gateway_that_dies_when_its_board_has_kept_a_model_has_not_said_so_and_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    """Killed between the two: the board keeps the model, and the fleet is told at the next start."""
    site.desire(site.release(1))
    site.wait_state(DeploymentState.CONFIRMED)
    site.agent.stop()
    with monkeypatch.context() as changed:
        changed.setenv("PYTHONPATH", str(WEAKENED))
        changed.setenv("EDGEOPS_TEST_WITHOUT", "life_after_keeping")
        site.agent.start()
    site.desire(site.release(2))
    assert site.agent.process is not None
    site.agent.process.wait(120)
    info = site.on_board()
    assert (info.version, info.trial) == ("1.2.0", False)
    told = [one.components[0].state for one in site.fleet.reports if one.unit == UNIT and one.observed_generation == 2]
    assert told[-1] is DeploymentState.TRIAL
    assert DeploymentState.CONFIRMED not in told
    site.cable.plug()
    site.agent.start()
    report = site.wait_state(DeploymentState.CONFIRMED)
    assert report.active is not None
    assert report.active.release == "1.2.0"
    assert site.runs() == "1.2.0"


@pytest.mark.full
def test_a_gateway_that_dies_in_a_trial_leaves_the_board_on_trial_until_the_model_has_proved_itself(site: Site):
    """Its next start goes on with the trial: a board that keeps a model cannot go back to the one before by itself."""
    site.desire(site.release(1))
    site.wait_state(DeploymentState.CONFIRMED)
    site.agent.stop()
    usual = site.agent.options
    site.agent.options = (*usual, "--confirm-after-s", "120")
    site.agent.start()
    second = site.release(2)
    site.desire(second)
    site.wait_state(DeploymentState.TRIAL)
    site.agent.kill()
    site.fleet.telemetry.clear()
    site.agent.start()
    wait_for(
        lambda: [one for window in site.fleet.telemetry for one in window.models if one.digest == second.digest],
        f"the trial does not go on; see {site.agent.log}",
    )
    info = site.on_board()
    assert (info.version, info.trial) == ("1.2.0", True)
    site.cable.plug()
    site.agent.options = usual
    site.agent.start()
    site.wait_state(DeploymentState.CONFIRMED)
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


@pytest.mark.full
def test_of_several_models_that_are_wanted_a_board_holds_one_and_another_may_follow_it(site: Site):
    """Two that both believed the board theirs would take it from each other without end."""
    one, other = site.release(1), site.release(2, model="other")
    site.desire(one, other)
    site.wait_state(DeploymentState.CONFIRMED)
    refused = site.wait_state(DeploymentState.REJECTED, "other")
    assert refused.failure is not None
    assert refused.failure.code == "E-DESIRED-UNSUPPORTED"
    assert repr(MODEL) in refused.failure.what
    site.desire(other)
    site.wait_state(DeploymentState.CONFIRMED, "other")
    site.desire(one, other)
    refused = site.wait_state(DeploymentState.REJECTED)
    assert refused.failure is not None
    assert repr("other") in refused.failure.what
    assert site.runs() == "1.2.0"


@pytest.mark.full
def test_one_port_has_one_program_and_the_other_is_told(site: Site):
    """Whichever comes first; and who waited goes on when the port is free."""
    site.desire(site.release(1))
    site.wait_state(DeploymentState.CONFIRMED)
    late = CliRunner().invoke(command, ["probe", str(site.cable.path)])
    assert isinstance(late.exception, EdgeopsError)
    assert late.exception.code == "E-MCU-PORT"
    assert "end other programs that use this port" in late.exception.next_step
    site.agent.stop()
    with SmpLink(SerialPort(str(site.cable.path))) as first:
        assert first.model_info().version == "1.1.0"
        site.agent.start()
        site.wait_problem("E-MCU-PORT")
        site.desire(site.release(2))
        assert first.model_info().version == "1.1.0", "two programs on the line would garble this"
    report = site.wait_state(DeploymentState.CONFIRMED)
    assert report.active is not None
    assert report.active.release == "1.2.0"
    assert site.runs() == "1.2.0"


@pytest.mark.full
def test_a_line_behind_a_serial_server_is_as_good_as_a_port(tmp_path: Path):
    site = Site(tmp_path, cable=SocketCable)
    try:
        assert str(site.cable.path).startswith("socket://127.0.0.1:")
        site.desire(site.release(1))
        site.wait_state(DeploymentState.CONFIRMED)
        site.desire(site.release(2, padding=30_000))
        site.wait_arrived(60)
        site.cable.pull()
        site.wait_problem("E-MCU-PORT")
        site.cable.plug()
        site.wait_state(DeploymentState.CONFIRMED)
        assert site.went_on()
        assert site.runs() == "1.2.0"
    finally:
        site.close()


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
