"""A person at the device, without a network: go back, allow no change, read the log, look for what is wrong."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adder_bundles import MODEL, small_bundle
from fake_fleet import Agent, FakeFleet, wait_for

from edgeops.agent import logbook
from edgeops.agent.freezing import Freeze, freeze, read_freeze, thaw
from edgeops.agent.holds import Conditions, Hold, HoldRules, decide
from edgeops.cli.agent import parse_duration_s
from edgeops.contracts.deployment import DeploymentState
from edgeops.contracts.errors import EdgeopsError

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FakeFleet]:
    fleet = FakeFleet(tmp_path / "fleet")
    yield fleet
    fleet.stop()


@pytest.fixture
def agent(fleet: FakeFleet, tmp_path: Path) -> Iterator[Agent]:
    """An agent that runs 1.0.0, which adds 1."""
    agent = Agent(fleet, tmp_path / "device").start()
    fleet.desire(fleet.publish(small_bundle(tmp_path / "b1", add=1.0), "1.0.0", 1))
    fleet.wait_state(DeploymentState.CONFIRMED)
    yield agent
    agent.stop()


def type_in(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeops", "agent", words[0], "--state", str(state), *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def update(fleet: FakeFleet, tmp_path: Path) -> None:
    """Bring 2.0.0, which adds 2."""
    fleet.desire(fleet.publish(small_bundle(tmp_path / "b2", add=2.0), "2.0.0", 2))
    wait_for(lambda: (one := fleet.component()) and one.active and one.active.release == "2.0.0", "no update")
    fleet.wait_state(DeploymentState.CONFIRMED)


def test_model_goes_back_without_a_network_until_the_fleet_wants_something_later(
    fleet: FakeFleet, agent: Agent, tmp_path: Path
) -> None:
    nothing = type_in(agent.state, "rollback", MODEL)
    assert "E-CONFIG" in nothing.stderr
    assert "no bundle to go back to" in nothing.stderr
    update(fleet, tmp_path)
    fleet.stop_artifacts()
    fleet.stop_broker()
    done = type_in(agent.state, "rollback", MODEL)
    assert "1.0.0 is confirmed; it serves" in done.stdout, done.stderr
    assert agent.added() == 1
    agent.kill()
    agent.start()
    wait_for(lambda: agent.facts() and agent.facts()["endpoints"], "it does not serve")
    assert agent.added() == 1, "it stands over a start"
    fleet.start_artifacts()
    fleet.start_broker()
    fleet.desire(fleet.publish(small_bundle(tmp_path / "b3", add=3.0), "3.0.0", 3))
    wait_for(lambda: agent.added() == 3, "the fleet's next wish did not count")


def test_model_goes_back_while_the_agent_is_stopped(fleet: FakeFleet, agent: Agent, tmp_path: Path) -> None:
    update(fleet, tmp_path)
    agent.stop()
    fleet.stop_artifacts()
    done = type_in(agent.state, "rollback", MODEL, "--json")
    assert json.loads(done.stdout)["state"] == "confirmed", done.stderr
    agent.start()
    wait_for(lambda: agent.facts() and agent.facts()["endpoints"], "it does not serve")
    assert agent.added() == 1


def test_frozen_device_changes_nothing_says_why_and_an_operator_may_override(
    fleet: FakeFleet, agent: Agent, tmp_path: Path
) -> None:
    assert "for 8h" in type_in(agent.state, "freeze", "--for", "8h", "--reason", "fair week").stdout
    second = fleet.publish(small_bundle(tmp_path / "b2", add=2.0), "2.0.0", 2)
    fleet.desire(second)
    report = fleet.wait_state(DeploymentState.HELD)
    assert report.held_reason == "frozen at the device: fair week"
    assert report.held_until_s is not None
    assert agent.added() == 1
    fleet.desire(second, override_holds=True)
    wait_for(lambda: agent.added() == 2, "the operator's word did not count")
    fleet.desire(fleet.publish(small_bundle(tmp_path / "b3", add=3.0), "3.0.0", 3))
    fleet.wait_state(DeploymentState.HELD)
    assert "allowed again" in type_in(agent.state, "freeze", "--off").stdout
    wait_for(lambda: agent.added() == 3, "it stayed frozen")
    assert "not frozen" in type_in(agent.state, "freeze", "--off").stdout


def test_freeze_ends_by_itself_and_a_damaged_one_holds(tmp_path: Path) -> None:
    freeze(tmp_path, Freeze(reason="fair", until_s=100.0))
    seen = Conditions(now_s=99.0, frozen=read_freeze(tmp_path))
    for downloading in (True, False):
        assert decide(HoldRules(), seen, waited_s=0, downloading=downloading) == Hold(
            "frozen at the device: fair", 100.0
        )
        assert decide(HoldRules(), seen._replace(now_s=100.0), waited_s=0, downloading=downloading) is None
    (tmp_path / "freeze.json").write_bytes(b"\0" * 20)
    assert read_freeze(tmp_path) == Hold("frozen at the device")
    assert thaw(tmp_path)
    assert read_freeze(tmp_path) is None


@pytest.mark.parametrize(("text", "seconds"), [("45m", 2700), ("8h", 28800), ("3d", 259200), ("90s", 90)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "8", "-3d", "0h", "8 hours", "nan d", "999d", "infd"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(EdgeopsError, match="is no time"):
        parse_duration_s(text)


def test_log_is_read_as_lines_and_as_json(agent: Agent) -> None:
    shown = type_in(agent.state, "logs", "-n", "100")
    assert "connected to the broker" in shown.stdout
    assert "enrolled as" in shown.stdout
    lines = [json.loads(line) for line in type_in(agent.state, "logs", "--json").stdout.splitlines()]
    assert {"at_s", "level", "part", "text"} <= set(lines[0])
    assert len(type_in(agent.state, "logs", "-n", "2").stdout.splitlines()) == 2
    following = subprocess.Popen(
        [sys.executable, "-m", "edgeops", "agent", "logs", "--state", str(agent.state), "-n", "1", "--follow"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert following.stdout is not None
    following.stdout.readline()
    agent.stop()
    agent.start()
    assert "connected" in next(line for line in following.stdout if "connected to the broker" in line)
    following.terminate()
    following.wait(60)
    following.stdout.close()


@pytest.fixture
def quiet_root() -> Iterator[logging.Logger]:
    """The root logger, left as it was."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    levels = [handler.level for handler in handlers]
    yield root
    for handler in root.handlers[:]:
        if handler not in handlers:
            handler.close()
            root.removeHandler(handler)
    root.setLevel(level)
    for handler, was in zip(handlers, levels, strict=True):
        handler.setLevel(was)


def test_log_stays_within_its_bound_private_and_survives_a_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_root: logging.Logger
) -> None:
    monkeypatch.setattr(logbook, "_FILE_BYTES", 20_000)
    logbook.open_logbook(tmp_path)
    for number in range(2000):
        logging.getLogger("edgeops.agent.test").info("line %d with an é", number)
    files = list((tmp_path / "log").iterdir())
    assert sum(file.stat().st_size for file in files) <= 40_000
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    with (tmp_path / "log" / "agent.jsonl").open("a") as file:
        file.write('{"at_s": 1, "te')
    said = logbook.read_logbook(tmp_path, 3)
    assert [one["text"] for one in said][-1] == "line 1999 with an é"
    assert len(logbook.read_logbook(tmp_path, 10_000)) > 100, "the older file is read too"


def test_full_disk_costs_the_line_and_nothing_else(
    tmp_path: Path, quiet_root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "agent.jsonl").symlink_to("/dev/full")
    logbook.open_logbook(tmp_path)
    logging.getLogger("edgeops.agent.test").info("lost")
    assert "Traceback" not in capsys.readouterr().err
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "log").write_text("a file in its place")
    logbook.open_logbook(tmp_path)


def findings(state: Path) -> tuple[int, dict[str, Any]]:
    done = type_in(state, "doctor", "--json")
    return done.returncode, {one["subject"]: one for one in json.loads(done.stdout)}


def test_a_freeze_shows_on_the_device(agent: Agent) -> None:
    """Nothing fresh has come for a month: it says so, by the time rule, and serves on."""

    def told(days: float) -> tuple[float | None, str]:
        bend = f"import time; real = time.time; time.time = lambda: real() + {days * 86400}"
        run = "import sys; import edgeops.cli.agent as cli; cli.command(sys.argv[1:])"
        command = [sys.executable, "-c", f"{bend}; {run}", "status", "--state", str(agent.state)]
        said = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=90, check=True).stdout
        shown = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
        stale_s: float | None = json.loads(said)["stale_s"]
        return stale_s, shown

    stale_s, shown = told(30)
    assert stale_s == pytest.approx(30 * 86400, abs=300)
    assert "stale" in shown
    # Control: today it is fresh.
    stale_s, shown = told(0)
    assert stale_s is None
    assert "stale" not in shown
    assert agent.added() == 1


def test_doctor_finds_nothing_on_a_device_that_is_well_and_each_fault_where_it_is(
    fleet: FakeFleet, agent: Agent
) -> None:
    status, found = findings(agent.state)
    faults = {name for name, one in found.items() if not one["good"]}
    assert faults <= {"control plane"}, "this fleet's server is away after the enrolment"
    assert found[f"model {MODEL}"]["found"] == "serves 1.0.0, confirmed"
    fleet.stop_broker()
    fleet.stop_artifacts()
    freeze(agent.state, Freeze(reason="test"))
    (agent.state / "agent.toml").write_text("holds = 3")
    agent.stop()
    agent.state.chmod(0o755)
    status, found = findings(agent.state)
    assert status == 4
    faults = {name for name, one in found.items() if not one["good"]}
    assert {"agent", "broker", "artifacts", "changes", "agent.toml", "state directory"} <= faults
    assert all(found[name]["next_step"] for name in faults)
    agent.state.chmod(0o700)
    (agent.state / "agent.toml").unlink()
    (agent.state / "identity" / "device.pem").write_bytes(b"damaged")
    _, found = findings(agent.state)
    assert not found["certificate"]["good"]
    assert "E-CONFIG" in type_in(agent.state.parent, "doctor").stderr
