"""A real daemon of a rig before a real fleet's rollouts: what it passes goes on, what it fails reaches no device."""

from __future__ import annotations

import platform
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from adder_bundles import MODEL
from rig_bundles import mcu_bundle
from served_fleet import run as type_command
from served_fleet import wait_for
from standing_rig import QUICK, StandingRig
from test_web import Browser

from edgeops.contracts.enrolment import BrokerAddress
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.profile import Budgets
from edgeops.contracts.rig_runs import RigBundle, RigCommand
from edgeops.contracts.rigs import Verdict
from edgeops.contracts.rollouts import RolloutState
from edgeops.contracts.topics import unit_topic
from edgeops.control.broker.mosquitto import worker_identity
from edgeops.control.enrolment import CONTROL_IDENTITY
from edgeops.control.fleet_trust import FleetTrust
from edgeops.releases import rig_results
from edgeops.transport.mqtt import MqttLink, TlsFiles
from edgeops.trust import keys, rig_commands
from hil.reservation import Reservation

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the bundle is for x86-64: run it there")
Make = Callable[..., StandingRig]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    made: list[StandingRig] = []

    def one(releases: dict[str, dict[str, Any]], **options: Any) -> StandingRig:
        made.append(StandingRig(tmp_path, releases, **options))
        monkeypatch.setenv("EDGEOPS_CACHE", made[0].environment["EDGEOPS_CACHE"])
        return made[0]

    yield one
    for rig in made:
        rig.close()


def test_a_rig_before_a_rollout_lets_a_good_release_through_and_stops_a_bad_one(make: Make) -> None:
    # The checks that cost least; what bad answers are stopped by is shown on emulated boards, below.
    too_big = {"budgets": Budgets(size_mib=1e-6)}
    rig = make({"1.0.0": {}, "2.0.0": too_big}, options=("--check", "size"))
    rig.start()
    with pytest.raises(EdgeopsError) as caught:
        rig.roll_out("1.0.0")
    assert (caught.value.code, "key is not trusted" in caught.value.what) == ("E-RIG-UNFIT", True)
    rig.trust_key()
    planned = type_command(rig.serving, "rollout", "create", MODEL, "1.0.0", "--rig", "bench", "--plan")
    assert "group 0: rig bench runs it first, for generic-x86-64" in planned
    with Reservation("local"):
        good = rig.roll_out("1.0.0", rigs=("bench",))
        wait_for(lambda: "local is in use by process" in rig.rig_of(good).said, "the rig does not say that it waits")
        assert rig.api.rollout(good).state == RolloutState.RUNNING
        assert rig.device.generations == []
    assert rig.ended(good).state == RolloutState.SUCCEEDED
    assert rig.device.generations == [1]
    (evidence,) = rig.api.rollout_rigs(good)
    signed = rig_results.verified(rig.home, str(evidence.statement).encode(), "evidence")
    assert (signed.command, signed.fleet, evidence.verdict) == (evidence.id, "f1", "passed")
    (board,) = signed.boards
    assert (board.model, board.release, board.verdict.value) == (MODEL, "1.0.0", "passed")

    # Nobody asked for the rig here: the control plane wants it before every rollout.
    bad = rig.roll_out("2.0.0")
    assert rig.ended(bad).state == RolloutState.STOPPED
    assert rig.device.generations == [1]
    explained = type_command(rig.serving, "rollout", "explain", str(bad))
    for part in ("group 0: rig bench: board here (generic-x86-64): size", "E-SELFTEST-BUDGET", "failed"):
        assert part in explained
    noted = [entry for entry in rig.api.audit(50) if entry.action == "rollout.rig-verdict"]
    assert {(entry.actor, entry.detail["verdict"]) for entry in noted} == {
        ("rig/bench", "failed"),
        ("rig/bench", "passed"),
    }
    listed = type_command(rig.serving, "fleet", "rigs", "--json")
    assert [(one["rig"], one["online"], one["trusted"]) for one in listed] == [("bench", True, True)]
    assert [device.connection for device in rig.api.devices()] == ["edge-1"]


@pytest.mark.full
def test_a_daemon_or_run_that_is_killed_over_a_board_gives_it_back_and_the_command_is_run_anew(make: Make) -> None:
    rig = make({"1.0.0": {}}, options=(*QUICK, "--check", "soak", "--soak", "12"))
    daemon = rig.start()
    rig.trust_key()
    rollout = rig.roll_out("1.0.0")
    wait_for(lambda: "here: soak" in rig.rig_of(rollout).said, "the run does not get to the soak")
    running = rig.run_process()
    # The agent on the board, and its worker.
    wait_for(lambda: len(running.children(recursive=True)) >= 2, "the board runs no agent")
    on_board = [running, *running.children(recursive=True)]
    running.kill()
    wait_for(lambda: not any(alive(process) for process in on_board), "the board still has power")
    # The daemon has it run anew; now the daemon dies.
    wait_for(lambda: "here: soak" in rig.rig_of(rollout).said, "the run is not begun anew")
    running = rig.run_process()
    wait_for(lambda: len(running.children(recursive=True)) >= 2, "the board runs no agent")
    on_board = [running, *running.children(recursive=True)]
    daemon.send_signal(signal.SIGKILL)
    daemon.wait(30)
    wait_for(lambda: not any(alive(process) for process in on_board), "the board still has power")
    Reservation("local", wait_s=30).release()
    wait_for(lambda: not rig.rig_of(rollout).online, "nobody noticed")
    assert rig.device.generations == []
    rig.start()
    assert rig.ended(rollout).state == RolloutState.SUCCEEDED
    assert [one.attempt for one in rig.api.rollout_rigs(rollout)] == [1]


@pytest.mark.full
def test_a_rollout_that_asks_anew_is_answered_for_its_newest_asking(make: Make) -> None:
    rig = make({"1.0.0": {}})
    rig.start()
    rig.trust_key()
    with Reservation("local"):
        rollout = rig.roll_out("1.0.0", rig_timeout_s=25.0)
        paused = rig.ended(rollout)
        assert (paused.state, rig.device.generations) == (RolloutState.PAUSED, [])
        assert "rig bench: no verdict in 25 s; last: waits: board here: local is in use" in paused.reason
        wait_for(lambda: not rig.api.rigs()[0].doing, "what has expired is not given up")
        rig.api.resume_rollout(rollout)
        wait_for(lambda: rig.rig_of(rollout).attempt == 2, "it is not asked anew")
    # Its time may be over before the board is free: then a person resumes again.
    while rig.ended(rollout).state == RolloutState.PAUSED:
        rig.api.resume_rollout(rollout)
    runs = rig.api.rollout_rigs(rollout)
    assert rig.api.rollout(rollout).state == RolloutState.SUCCEEDED
    assert [one.verdict for one in runs] == [*[""] * (len(runs) - 1), "passed"]
    assert all(one.given_up_at_s is not None for one in runs[:-1])


@pytest.mark.full
def test_a_real_daemon_obeys_nobody_but_its_fleet(make: Make) -> None:
    """Whoever runs the broker can send it anything; the last command shows what the fleet's own signature does."""
    rig = make({"1.0.0": {}})
    rig.start()
    trust = FleetTrust(rig.home)
    (release,) = trust.releases()
    (target,) = release.targets
    now_s = time.time()
    good = RigCommand(
        fleet="f1", connection="bench", unit="self", id="c1", issued_at_s=now_s, expires_at_s=now_s + 600, rollout=1,
        attempt=1, model=MODEL, version="1.0.0",
        bundles=(RigBundle(profile=target.profile, target=target.path, digest=target.digest),),
    )  # fmt: skip
    changed = msgspec.structs.replace
    refused = {
        "E-TRUST-SIGNATURE": rig_commands.issue(good, keys.generate()),
        "E-TRUST-DEVICE": trust.sign_rig(changed(good, connection="lab")),
        "E-TRUST-EXPIRED": trust.sign_rig(changed(good, issued_at_s=now_s - 600, expires_at_s=now_s - 1)),
        "E-WIRE-MALFORMED": b"{}",
    }
    name = worker_identity(CONTROL_IDENTITY, "rollout", 1)
    mine, broker = trust.worker_identity(name), msgspec.convert(rig.serving.ready["broker"], BrokerAddress)
    tls = TlsFiles(trust.ca_file, mine.certificate, mine.key) if broker.tls else None
    link = MqttLink(broker, name, on_message=lambda message: None, tls=tls)
    link.start()
    try:
        assert link.wait_connected(60)
        accepted = rig.folder / "state" / "rig-commands"
        for code, envelope in refused.items():
            link.publish(unit_topic("f1", "bench", "self", "cmd", "c1"), envelope)
            log = rig.folder / "daemon.log"
            wait_for(lambda code=code, log=log: f"refused: {code}" in log.read_text(), f"nothing was said of {code}")
        assert not accepted.exists()
        # Signed, and of bytes that nobody has released: it answers that, and runs nothing.
        other = changed(good, id="c2", rollout=2, bundles=(changed(good.bundles[0], digest="sha256:" + "0" * 64),))
        link.publish(unit_topic("f1", "bench", "self", "cmd", "c2"), trust.sign_rig(other))
        wait_for(lambda: b"E-TRUST-TARGET" in read(accepted / "c2.json"), "it does not say what is wrong")
        # Control: what the fleet has signed and released is run.
        link.publish(unit_topic("f1", "bench", "self", "cmd", "c1"), trust.sign_rig(good))
        wait_for(lambda: b'"statement":"{' in read(accepted / "c1.json"), "it is not run")
    finally:
        link.stop()


def read(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.full
def test_a_wait_survives_control_plane_and_daemon_and_an_answer_is_given_again(make: Make) -> None:
    rig = make({"1.0.0": {}})
    daemon = rig.start()
    rig.trust_key()
    with Reservation("local"):
        rollout = rig.roll_out("1.0.0", rig_gone_s=600.0)
        wait_for(lambda: "in use" in rig.rig_of(rollout).said, "the rig was not asked")
        rig.serving.kill()
        rig.serving.start()
        assert rig.api.rollout(rollout).state == RolloutState.RUNNING
        wait_for(lambda: rig.rig_of(rollout).online, "the rig does not come back")
        daemon.terminate()
        assert daemon.wait(60) == 0
        rig.start()
        wait_for(lambda: "in use" in rig.rig_of(rollout).said, "it was forgotten")
        rig.serving.kill()
        # Nobody hears the verdict: it is kept, and said when it is asked for again.
    answers = rig.folder / "state" / "rig-commands"
    wait_for(lambda: any(b'"statement"' in path.read_bytes() for path in answers.glob("*.json")), "no verdict")
    rig.serving.start()
    assert rig.ended(rollout).state == RolloutState.SUCCEEDED
    (evidence,) = rig.api.rollout_rigs(rollout)
    assert (evidence.attempt, evidence.verdict, rig.device.generations) == (1, "passed", [1])


@pytest.mark.full
def test_a_rig_that_is_gone_pauses_the_rollout_and_is_asked_again_on_resume(make: Make) -> None:
    rig = make({"1.0.0": {}}, serve=("--web",))
    daemon = rig.start()
    rig.trust_key()
    daemon.terminate()
    daemon.wait(60)
    wait_for(lambda: not rig.api.rigs()[0].online, "its goodbye is not heard")
    rollout = rig.roll_out("1.0.0", rig_gone_s=1.0)
    paused = rig.ended(rollout)
    assert (paused.state, rig.device.generations) == (RolloutState.PAUSED, [])
    assert "rig bench: it is asked, and has not been connected for 1 s" in paused.reason
    page = Browser(rig.serving).get(
        f"/ui/rollouts/{rollout}", rig.api.create_api_token("looks", "viewer", valid_s=600).token
    )
    assert page.status == 200
    assert b'"rig":"bench","online":"no","stands":"waiting"' in page.data.replace(b"&quot;", b'"').replace(
        b'": "', b'":"'
    )
    rig.start()
    rig.api.resume_rollout(rollout)
    wait_for(lambda: rig.api.rollout(rollout).state == RolloutState.SUCCEEDED, "it does not go on")
    # It was sent what it had been asked as soon as it was there; by the resumption it ran that, or was asked anew.
    runs = rig.api.rollout_rigs(rollout)
    assert [one.attempt for one in runs] in ([1], [1, 2])
    assert (runs[-1].verdict, rig.device.generations) == ("passed", [1])
    # Shut out, it is asked for nothing and believed in nothing.
    rig.api.revoke_device("bench")
    with pytest.raises(EdgeopsError) as caught:
        rig.roll_out("1.0.0")
    assert caught.value.code == "E-RIG-UNFIT"


@pytest.mark.boards
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("arm_compiler", "emulator")
def test_a_release_goes_through_every_board_of_a_rig_with_an_emulated_microcontroller(
    make: Make, tmp_path: Path
) -> None:
    m4 = '\n[[boards]]\nname = "m4"\nkind = "qemu-cortex-m"\nmachine = "mps2-an386"\nprofile = "cortex-m4"\n'
    blob, liar = (mcu_bundle(tmp_path / name, **made).directory for name, made in (("good", {}), ("bad", {"lie": 3})))
    rig = make({"1.0.0": {"more": [blob]}, "2.0.0": {"more": [liar]}}, options=(*QUICK, "--check", "update"), boards=m4)
    rig.start()
    rig.trust_key()
    assert rig.api.rigs()[0].boards[1].profile == "cortex-m4"
    good = rig.roll_out("1.0.0", rig_timeout_s=400.0)
    assert rig.ended(good, within_s=400).state == RolloutState.SUCCEEDED
    (evidence,) = rig.api.rollout_rigs(good)
    assert evidence.result is not None
    passed = {(b.board, c.check) for b in evidence.result.boards for c in b.checks if c.verdict is Verdict.PASSED}
    assert {(name, check) for name in ("here", "m4") for check in ("golden", "update")} <= passed
    bad = rig.roll_out("2.0.0", rig_timeout_s=400.0)
    stopped = rig.ended(bad, within_s=400)
    assert (stopped.state, rig.device.generations) == (RolloutState.STOPPED, [1])
    assert "board m4 (cortex-m4): golden" in stopped.reason
    assert "board here" not in stopped.reason
