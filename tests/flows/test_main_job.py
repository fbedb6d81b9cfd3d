"""The main job, end to end, by the commands that a person types: the demo's steps, and the aftermath of each."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_wheels import build_wheel

from edgeops.cli.demo.commands import CommandLine
from edgeops.cli.demo.scenario import GROUPS, MODEL, PROFILES, Scenario, model_component
from edgeops.cli.demo.site import device_name
from edgeops.contracts.deployment import AGENT_COMPONENT
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import open_bundle

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    folder = tmp_path_factory.mktemp("main-job")
    commands = CommandLine(folder / "logs")
    with commands.stopping():
        yield Scenario(folder, commands)


def versions(scenario: Scenario) -> dict[str, str | None]:
    return {device["connection"]: model_component(device)["active_release"] for device in scenario.devices()}


def states(scenario: Scenario) -> dict[str, str]:
    return {device["connection"]: model_component(device)["state"] for device in scenario.devices()}


DEVICES = {device_name(profile) for profile in PROFILES}


def test_1_real_text_lines_are_split_by_source_line(scenario: Scenario):
    _, data = scenario.prepare("any", windows_per_line=1, seed=7)
    assert data.calibration.lines + data.evaluation.lines > 80
    assert data.evaluation.images.shape[1:] == (48, 192, 3)
    assert set(data.evaluation.labels.tolist()) == {0, 1}


def test_2_compile_gives_a_whole_bundle_per_profile(scenario: Scenario):
    handover, _ = scenario.prepare("1.0.0", windows_per_line=1, seed=7)
    rows = scenario.compile("1.0.0", handover)
    assert {row["profile"] for row in rows} == set(PROFILES)
    runtimes = {row["profile"]: row["runtime"] for row in rows}
    # On the profile of this machine's own kind the faster of two wins, and they are close.
    assert runtimes.pop("intel-nuc") in ("openvino", "onnxruntime")
    assert runtimes == {"raspberry-pi-4": "litert", "jetson-orin-nano": "onnxruntime"}
    for row in rows:
        bundle = open_bundle(scenario.bundles("1.0.0") / row["profile"] / "bundle", expect_digest=row["digest"])
        assert bundle.manifest.inputs[0].dtype == "uint8"
        assert bundle.manifest.inputs[0].shape == (1, 48, 192, 3)
        assert row["agreement"] >= 0.97


def test_2_the_same_compile_gives_the_same_digest(scenario: Scenario, tmp_path: Path):
    rows = scenario.compile("again", scenario.folder / "handovers" / "1.0.0")
    first = {profile: open_bundle(scenario.bundles("1.0.0") / profile / "bundle").digest for profile in PROFILES}
    assert {row["profile"]: row["digest"] for row in rows} == first


def test_3_release_is_signed_and_its_keys_are_private(scenario: Scenario):
    scenario.init_trust()
    release = scenario.release("1.0.0")
    assert (release["model"], release["version"]) == (MODEL, "1.0.0")
    assert {target["profile"] for target in release["targets"]} == set(PROFILES)
    for key in (scenario.home / "keys").glob("*.pem"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(EdgeopsError) as caught:
        scenario.release("1.0.0")
    assert caught.value.code == "E-RELEASE-EXISTS"


def test_4_devices_enrol_with_their_own_keys(scenario: Scenario):
    scenario.serve()
    assert set(scenario.enrol()) == DEVICES
    keys = [(scenario.state(profile) / "identity" / "device.key") for profile in PROFILES]
    assert all(stat.S_IMODE(key.stat().st_mode) == 0o600 for key in keys)
    assert len({key.read_bytes() for key in keys}) == len(PROFILES)


def test_4_a_used_token_enrols_nobody_else(scenario: Scenario, tmp_path: Path):
    token = scenario.folder / "tokens" / PROFILES[0]
    thief = scenario.commands.start(
        "thief", "agent", "run", "--state", str(tmp_path / "thief"), "--token-file", str(token),
        "--profile", PROFILES[0], "--name", "thief",
    )  # fmt: skip
    assert thief.wait(60) != 0
    assert "E-TOKEN" in scenario.commands.log("thief")
    assert {device["connection"] for device in scenario.devices()} == DEVICES


def test_4_rollout_of_the_first_release_serves_right_answers(scenario: Scenario):
    status = scenario.rollout("1.0.0", "100%", say=lambda _: None)
    assert status["state"] == "succeeded", status["reason"]
    assert versions(scenario) == dict.fromkeys(DEVICES, "1.0.0")
    scenario.find_endpoints()
    for answer in scenario.ask():
        assert answer.right >= 0.9 * answer.images


def test_5_update_under_load_drops_no_request(scenario: Scenario):
    handover, _ = scenario.prepare("1.1.0", windows_per_line=3, seed=11)
    scenario.compile("1.1.0", handover)
    digests = [
        {open_bundle(scenario.bundles(version) / profile / "bundle").digest for profile in PROFILES}
        for version in ("1.0.0", "1.1.0")
    ]
    assert not digests[0] & digests[1]
    scenario.release("1.1.0")
    with scenario.traffic() as flows:
        status = scenario.rollout("1.1.0", GROUPS, say=lambda _: None)
    assert status["state"] == "succeeded", status["reason"]
    assert [sum(group["profiles"][p]["confirmed"] for p in group["profiles"]) for group in status["groups"]] == [2, 1]
    assert versions(scenario) == dict.fromkeys(DEVICES, "1.1.0")
    for flow in flows:
        assert flow.answered > 0
        assert not flow.failures, f"{flow.device}: {flow.failures}"
        assert flow.accuracy >= 0.9


def test_5_the_fleet_tells_what_it_served(scenario: Scenario):
    words = ("fleet", "telemetry", "--home", str(scenario.home), MODEL)
    of_all = {(one["release"], one["profile"]): one for one in scenario.commands.run(*words)}
    assert {profile for _, profile in of_all} == set(PROFILES)
    assert all(one["requests"] > 0 and one["latency_ms"]["p95"] > 0 for one in of_all.values())
    (device, *_) = DEVICES
    of_one = scenario.commands.run(*words, "--device", device, "--by", "quarter")
    assert of_one
    assert sum(one["requests"] for one in of_one) <= sum(one["requests"] for one in of_all.values())
    where = scenario.commands.run(*words, "--where", f"name = {device}")
    # The device goes on telling meanwhile.
    later = scenario.commands.run(*words, "--device", device)
    counts = [sum(one["requests"] for one in found) for found in (of_one, where, later)]
    assert counts == sorted(counts)
    assert counts[-1] < sum(one["requests"] for one in scenario.commands.run(*words))


def test_6_a_signed_but_wrong_release_is_refused_and_the_rollout_stops(scenario: Scenario):
    scenario.damage("1.1.0", "1.2.0")
    scenario.release("1.2.0")
    with scenario.traffic() as flows:
        status = scenario.rollout("1.2.0", GROUPS, say=lambda _: None)
    assert status["state"] == "stopped"
    assert "E-SELFTEST-GOLDEN" in status["reason"]
    assert versions(scenario) == dict.fromkeys(DEVICES, "1.1.0")
    assert sorted(states(scenario).values()) == ["confirmed", "failed", "failed"]
    assert status["groups"][1]["started_at_s"] is None
    for flow in flows:
        assert flow.answered > 0
        assert not flow.failures, f"{flow.device}: {flow.failures}"


def test_7_the_agents_update_themselves_by_the_same_rollout(scenario: Scenario, tmp_path: Path):
    wheels = build_wheel(tmp_path, "9.1.0")
    home = ("--home", str(scenario.home))
    folders = [word for profile in PROFILES for word in ("--wheels", f"{profile}={wheels}")]
    scenario.commands.run("release", "create-agent", *home, *folders)
    scenario.commands.run("release", "publish", *home, AGENT_COMPONENT, "9.1.0")
    created = scenario.commands.run("rollout", "create", *home, AGENT_COMPONENT, "9.1.0", "--groups", GROUPS, "--start")
    deadline_s = time.monotonic() + 480
    while (status := scenario.commands.run("rollout", "status", *home, str(created["id"])))["state"] == "running":
        assert time.monotonic() < deadline_s, status
        time.sleep(1)
    assert status["state"] == "succeeded", status["reason"]
    assert {device["agent_version"] for device in scenario.devices()} == {"9.1.0"}
    assert versions(scenario) == dict.fromkeys(DEVICES, "1.1.0")
    scenario.find_endpoints()
    for answer in scenario.ask():
        assert answer.right >= 0.9 * answer.images


def test_8_a_killed_agent_serves_what_it_had_without_the_control_plane(scenario: Scenario):
    """After SIGKILL of an agent, and with nobody to talk to, the device serves 1.1.0 again."""
    profile = PROFILES[0]
    facts = json.loads((scenario.state(profile) / "agent.json").read_text())
    control = json.loads((scenario.home / "serve.json").read_text())
    os.kill(control["pid"], signal.SIGTERM)
    os.kill(facts["pid"], signal.SIGKILL)
    time.sleep(1)
    (scenario.state(profile) / "agent.json").unlink()
    scenario.commands.start(
        device_name(profile), "agent", "run", "--state", str(scenario.state(profile)), "--profile", profile
    )
    scenario.find_endpoints()
    answer = next(item for item in scenario.ask() if item.device == device_name(profile))
    assert answer.right >= 0.9 * answer.images
