"""The commands `device` and `rollout` against a served fleet: what they print, and how they exit."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from served_fleet import MODEL, Fleet, Serving, run, wait_for

from edgeops.cli import root
from edgeops.contracts.enrolment import EnrolmentToken
from edgeops.contracts.errors import EdgeopsError


def test_a_rollout_is_created_watched_and_seen_per_device(served: Serving, fleet: Fleet) -> None:
    created = run(served, "rollout", "create", MODEL, "1.1.0", "--groups", "67%,100%", "--json")
    assert created["state"] == "draft"
    run(served, "rollout", "start", str(created["id"]))
    shown = run(served, "rollout", "status", str(created["id"]), "--watch", "--json")
    assert shown["state"] == "succeeded"

    table = run(served, "device", "list").splitlines()
    assert table[0].split("\t")[:6] == ["device", "profile", "online", "model", "version", "state"]
    assert {tuple(line.split("\t")[1:6]) for line in table[1:]} == {
        (profile, "yes", MODEL, "1.1.0", "confirmed") for profile in ("raspberry-pi-4", "intel-nuc", "jetson-orin-nano")
    }

    stopped = run(served, "rollout", "create", MODEL, "1.2.0", "--groups", "67%,100%", "--start", "--json")
    with pytest.raises(EdgeopsError, match=r"E-ROLLOUT-STOPPED: .*failure_max.*E-SELFTEST-GOLDEN") as error:
        run(served, "rollout", "status", str(stopped["id"]), "--watch")
    assert error.value.exit_status == 3
    refusals = [line.split("\t")[-1] for line in run(served, "device", "list").splitlines()[1:]]
    assert sorted(refusals) == ["", "1.2.0 E-SELFTEST-GOLDEN", "1.2.0 E-SELFTEST-GOLDEN"]
    listing = run(served, "rollout", "status").splitlines()
    assert [line.split("\t")[3] for line in listing[1:]] == ["stopped", "succeeded"]


def test_pause_resume_and_abort(served: Serving, fleet: Fleet) -> None:
    for device in fleet.devices.values():
        device.asleep = True
    rollout = str(run(served, "rollout", "create", MODEL, "1.0.0", "--start", "--json")["id"])
    assert run(served, "rollout", "pause", rollout, "--json")["state"] == "paused"
    with pytest.raises(EdgeopsError, match="E-ROLLOUT-STATE"):
        run(served, "rollout", "pause", rollout)
    assert run(served, "rollout", "resume", rollout, "--json")["state"] == "running"
    assert run(served, "rollout", "abort", rollout, "--json")["state"] == "aborted"
    with pytest.raises(EdgeopsError, match="E-ROLLOUT-STOPPED"):
        run(served, "rollout", "status", rollout, "--watch")


def test_freeze_thaw_revert_and_the_audit_log(served: Serving, fleet: Fleet) -> None:
    for version in ("1.0.0", "1.1.0"):
        rollout = run(served, "rollout", "create", MODEL, version, "--start", "--json")["id"]
        run(served, "rollout", "status", str(rollout), "--watch")
    assert run(served, "fleet", "freeze", "--reason", "smoke", "--json")["frozen"]["reason"] == "smoke"
    with pytest.raises(EdgeopsError, match="E-FLEET-FROZEN"):
        run(served, "rollout", "create", MODEL, "1.0.0", "--start")
    assert "frozen by admin: smoke" in run(served, "fleet", "status")
    assert run(served, "fleet", "thaw", "--json")["frozen"] is None
    assert run(served, "rollout", "revert", str(rollout), "--json")["state"] == "reverted"
    for device in fleet.devices.values():
        device.wait_generation(3)
    did = [entry["action"] for entry in run(served, "fleet", "audit", "--json")]
    assert did[:3] == ["rollout.reverted", "fleet.thaw", "fleet.freeze"]
    assert did.count("device.enrol") == 3


def test_only_the_devices_that_are_selected_take_part(standing: Serving, standing_fleet: Fleet) -> None:
    made = run(standing, "rollout", "create", MODEL, "1.0.0", "--profile", "intel-nuc", "--json")
    assert [list(group["profiles"]) for group in made["groups"]] == [["intel-nuc"]]
    made = run(standing, "rollout", "create", MODEL, "1.0.0", "--device", "raspberry-pi-4-1", "--json")
    assert [list(group["profiles"]) for group in made["groups"]] == [["raspberry-pi-4"]]
    with pytest.raises(EdgeopsError, match="E-ROLLOUT-INVALID"):
        run(standing, "rollout", "create", MODEL, "1.0.0", "--label", "site=nowhere")
    with pytest.raises(EdgeopsError, match="E-CONFIG"):
        run(standing, "rollout", "create", MODEL, "1.0.0", "--label", "site")


def test_token_and_device_show(standing: Serving, standing_fleet: Fleet) -> None:
    text = run(standing, "device", "token", "--profile", "intel-nuc").strip()
    assert EnrolmentToken.from_text(text).server == standing.ready["api"]
    shown = run(standing, "device", "show", "intel-nuc-1", "--json")
    assert (shown["profile"], shown["online"]) == ("intel-nuc", True)
    assert "intel-nuc-1" in run(standing, "device", "show", "intel-nuc-1")
    wait_for(lambda: run(standing, "device", "show", "intel-nuc-1", "--json")["last_seen_s"], "it was never heard")
    with pytest.raises(EdgeopsError, match="E-DEVICE-UNKNOWN"):
        run(standing, "device", "show", "nobody")


def test_a_home_that_is_not_served_is_named(tmp_path: Path, published: Path) -> None:
    result = CliRunner().invoke(root, ["device", "list", "--home", str(published)])
    assert isinstance(result.exception, EdgeopsError)
    assert result.exception.code == "E-CONFIG"
    assert "edgeops serve" in result.exception.next_step
