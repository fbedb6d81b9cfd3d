"""Reasons to wait: decided purely, read from the kernel's files, and obeyed by a deployment until they are over."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from adder_bundles import MODEL, small_bundle
from deployment_rig import DeploymentRig
from fake_fleet import AT_ONCE, Agent, FakeFleet, wait_for
from hypothesis import given
from hypothesis import strategies as st

from edgeops.agent import deployment as deployment_module
from edgeops.agent import waiting
from edgeops.agent.conditions import DeviceProbe
from edgeops.agent.config import read_config
from edgeops.agent.downloads import DownloadRules
from edgeops.agent.fetching import FetchJob, FetchRequest, Staged
from edgeops.agent.holds import Conditions, HoldRules, decide, next_opening
from edgeops.agent.plan import Wish
from edgeops.agent.slots import Slots
from edgeops.agent.waiting import Waiting
from edgeops.client.inference import InferenceClient
from edgeops.contracts.deployment import Component, ComponentKind, DeploymentState, Slot
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import pack
from edgeops.transport.download import Cancelled

NAME = "adder"


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


def held(rules: HoldRules, *, waited_s: float = 0, downloading: bool = False, **seen: object) -> str | None:
    hold = decide(rules, Conditions(**{"now_s": 0.0, **seen}), waited_s=waited_s, downloading=downloading)  # type: ignore[arg-type]
    return None if hold is None else hold.reason


@pytest.mark.parametrize(
    ("now", "opens"),
    [
        ("2026-01-05T21:30", None),  # 22:30 in Berlin
        ("2026-01-05T20:30", "2026-01-05T21:00"),
        ("2026-01-06T03:59", None),  # the window of the day before passes midnight
        ("2026-01-06T04:00", "2026-01-06T21:00"),
        ("2026-07-06T19:59", "2026-07-06T20:00"),  # summer: an hour earlier by UTC
        ("2026-07-06T20:00", None),
    ],
)
def test_windows_are_in_the_sites_local_time(now: str, opens: str | None):
    rules = HoldRules(time_zone="Europe/Berlin", windows=("22:00-05:00",))
    assert next_opening(rules, at(now)) == (None if opens is None else at(opens))


def test_windows_on_chosen_days_open_on_those_days_only():
    rules = HoldRules(windows=("sat,sun 00:00-24:00", "wed 12:00-13:00"))
    assert next_opening(rules, at("2026-01-05T10:00")) == at("2026-01-07T12:00")  # a Monday
    assert next_opening(rules, at("2026-01-10T23:59")) is None
    assert next_opening(rules, at("2026-01-12T00:00")) == at("2026-01-14T12:00")


@given(
    now_s=st.floats(0, 4e9),
    start=st.integers(0, 1439),
    end=st.integers(0, 1439),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]),
)
def test_a_window_always_opens_again_and_is_open_then(now_s: float, start: int, end: int, zone: str):
    """No device waits for ever: the next opening lies within two days and a bit, and holds nothing then."""
    rules = HoldRules(time_zone=zone, windows=(f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}",))
    opens_s = next_opening(rules, now_s)
    if opens_s is not None:
        assert now_s < opens_s <= now_s + 2 * 86400
        assert next_opening(rules, opens_s) is None or zone != "UTC"


def test_each_limit_holds_beyond_it_and_not_at_it_and_never_where_the_device_cannot_tell():
    rules = HoldRules(max_temperature_c=70, min_battery_percent=30, min_memory_mib=100, metered_interfaces=("wwan0",))
    assert held(rules) is None
    assert held(rules, temperature_c=70.0, battery_percent=30.0, memory_available_mib=100.0) is None
    assert held(rules, temperature_c=71.0) == "temperature 71 C, limit 70 C"
    assert held(rules, battery_percent=29.0) == "battery 29 %, needed 30 %"
    assert held(rules, memory_available_mib=99.0) == "memory 99 MiB available, needed 100 MiB"
    assert held(rules, default_interface="wwan0") is None
    assert held(rules, default_interface="wwan0", downloading=True) == "metered link wwan0"
    assert held(rules, default_interface="eth0", temperature_c=99.0, downloading=True) is None


def test_a_busy_application_holds_up_to_its_deadline():
    rules = HoldRules(busy_deadline_s=60)
    hold = decide(rules, Conditions(now_s=1000, busy=True), waited_s=20, downloading=False)
    assert hold == ("the application is busy", 1040)
    assert held(rules, busy=True, waited_s=60) is None


def test_the_kernels_files_are_read_and_those_that_are_not_there_hold_nothing(tmp_path: Path):
    probe = DeviceProbe(HoldRules(), lambda: 7.0, tmp_path, tmp_path)
    assert probe() == Conditions(now_s=7.0)
    supplies, zones = tmp_path / "sys/class/power_supply", tmp_path / "sys/class/thermal"
    for path, text in {
        zones / "thermal_zone0/temp": "41000\n",
        zones / "thermal_zone1/temp": "72500\n",
        zones / "thermal_zone2/temp": "off\n",
        supplies / "BAT0/type": "Battery\n",
        supplies / "BAT0/capacity": "55\n",
        supplies / "AC/type": "Mains\n",
        supplies / "AC/online": "0\n",
        tmp_path / "proc/meminfo": "MemTotal: 4096 kB\nMemAvailable: 2048 kB\n",
        tmp_path / "proc/net/route": (
            "Iface Destination Gateway Flags RefCnt Use Metric Mask\n"
            "wwan0 00000000 0101A8C0 0003 0 0 700 00000000 0 0 0\n"
            "eth0 00000000 0101A8C0 0003 0 0 100 00000000 0 0 0\n"
            "eth0 0001A8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n"
        ),
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert probe() == Conditions(7.0, False, 72.5, 55.0, 2.0, "eth0")
    (supplies / "AC/online").write_text("1\n")
    assert probe().battery_percent is None


def test_the_applications_lock_is_seen_while_it_is_held(tmp_path: Path):
    lock = tmp_path / "busy"
    probe = DeviceProbe(HoldRules(busy_lock=str(lock)), lambda: 0.0, tmp_path)
    assert not probe().busy
    lock.touch()
    assert not probe().busy
    with lock.open() as application:
        fcntl.flock(application, fcntl.LOCK_SH)
        assert probe().busy
    assert not probe().busy


@pytest.mark.parametrize(
    "text",
    [
        "[holds]\nwindow = ['22:00-05:00']",
        "[holds]\nwindows = ['22-05']",
        "[holds]\nwindows = ['22:00-25:00']",
        "[holds]\nwindows = ['xxx 22:00-23:00']",
        "[holds]\ntime_zone = 'Mars/Olympus'",
        "[holds]\nbusy_deadline_s = 'long'",
        "[holds",
        "[downloads]\nmirrors = ['http://10.0.0.1/targets']",
        "[downloads]\nmax_kib_per_s = 0",
        "[downloads]\nmax_kib_per_s = nan",
        "[downloads]\nstart_within_s = -1",
        "[downloads]\nstart_within_s = nan",
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused_at_the_start(text: str, tmp_path: Path):
    (tmp_path / "agent.toml").write_text(text)
    with pytest.raises(EdgeopsError) as caught:
        read_config(tmp_path)
    assert caught.value.code == "E-CONFIG"


def test_every_key_of_the_configuration_is_in_the_reference():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "agent.md").read_text()
    for field in (*msgspec.structs.fields(HoldRules), *msgspec.structs.fields(DownloadRules)):
        assert f"`{field.name}`" in page, field.name


class Scene:
    """A device that serves 1.1.0 and waits with 1.2.0 while `rig.seen` is too hot, or on a metered link."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, tuple[Path, Slot]] = {}
        self.components = []
        for number in (1, 2, 3):
            bundle = small_bundle(folder / str(number), add=float(number))
            pack(bundle, folder / f"{number}.edgeops")
            slot = Slot(release=f"1.{number}.0", digest=bundle.digest, number=number)
            self.files[bundle.digest] = (folder / f"{number}.edgeops", slot)
            self.components.append(
                Component(name=NAME, kind=ComponentKind.MODEL, release=slot.release, target="t", digest=slot.digest)
            )
        rules = HoldRules(max_temperature_c=70, metered_interfaces=("wwan0",))
        self.rig = DeploymentRig(folder / "device", NAME, self.files, holds=rules)
        self.rig.start()
        self.rig.pursue(self.components[0], 1)
        assert self.rig.settle() is DeploymentState.CONFIRMED

    def restart(self, rules: HoldRules, seen: Conditions) -> None:
        """Another life of the agent on the same disk."""
        self.rig.close()
        self.rig = DeploymentRig(self.folder / "device", NAME, self.files, holds=rules)
        self.rig.seen = seen
        self.rig.start()

    def run_while_held(self) -> None:
        """Let time pass; a hold is looked at many times."""
        for _ in range(50):
            self.rig.loop.post(self.rig.loop.stop)
            self.rig.loop.run()
            time.sleep(0.001)

    @property
    def served(self) -> str:
        assert self.rig.serving.current is not None
        return self.rig.serving.current.release


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(deployment_module, "HOLD_LOOK_EVERY_S", 0.001)
    scene = Scene(tmp_path)
    yield scene
    scene.rig.close()


HOT, METERED = Conditions(now_s=0, temperature_c=80), Conditions(now_s=0, default_interface="wwan0")


@pytest.mark.parametrize(("seen", "reason"), [(HOT, "temperature"), (METERED, "metered")])
def test_an_update_waits_with_its_reason_and_goes_on_when_it_is_over(scene: Scene, seen: Conditions, reason: str):
    scene.rig.seen = seen
    scene.rig.pursue(scene.components[1], 2)
    scene.run_while_held()
    report = scene.rig.deployment.report()
    assert report.state is DeploymentState.HELD
    assert report.held_reason is not None
    assert report.held_reason.startswith(reason)
    assert scene.served == "1.1.0"
    scene.rig.seen = Conditions(now_s=0)
    scene.run_while_held()
    assert scene.rig.settle() is DeploymentState.CONFIRMED
    assert scene.served == "1.2.0"


@pytest.mark.parametrize(("keep_every_s", "lives"), [(waiting.KEEP_EVERY_S, 4), (float("inf"), 6)], ids=["", "control"])
def test_a_deadline_comes_also_on_a_device_that_is_restarted_before_it(
    scene: Scene, keep_every_s: float, lives: int, monkeypatch: pytest.MonkeyPatch
):
    """A watchdog, a flat battery, a nightly reboot: an application that never ends being busy does not win by them."""
    clock_s = [1000.0]
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: clock_s[0]))
    monkeypatch.setattr(waiting, "KEEP_EVERY_S", keep_every_s)
    monkeypatch.setattr(deployment_module, "HOLD_LOOK_EVERY_S", 0.02)
    rules, busy = HoldRules(busy_deadline_s=400), Conditions(now_s=time.time(), busy=True)
    scene.restart(rules, busy)
    scene.rig.pursue(scene.components[1], 2)
    held = 0
    for _ in range(lives):
        scene.run_while_held()
        held += scene.rig.deployment.record.state is DeploymentState.HELD
        clock_s[0] += 100
        scene.run_while_held()
        scene.restart(rules, busy)
    scene.run_while_held()
    assert held == lives, "it was disturbed before the deadline"
    # Control: where a wait is not kept, it begins anew in each life, and the update never comes.
    still = keep_every_s == float("inf")
    assert (scene.rig.deployment.record.state is DeploymentState.HELD) is still
    assert still or scene.rig.settle() is DeploymentState.CONFIRMED
    assert scene.served == ("1.1.0" if still else "1.2.0")


def test_a_signed_override_goes_on_at_once_also_for_what_is_held_already(scene: Scene):
    scene.rig.seen = HOT
    scene.rig.pursue(scene.components[1], 2)
    scene.run_while_held()
    scene.rig.deployment.pursue(Wish(scene.components[1], 3, override_holds=True))
    assert scene.rig.settle() is DeploymentState.CONFIRMED
    assert scene.served == "1.2.0"
    # It is for that generation only.
    scene.rig.pursue(scene.components[2], 4)
    scene.run_while_held()
    assert (scene.rig.deployment.report().state, scene.served) == (DeploymentState.HELD, "1.2.0")


def test_a_held_update_is_superseded_and_what_is_confirmed_again_satisfies(scene: Scene):
    scene.rig.seen = HOT
    scene.rig.pursue(scene.components[1], 2)
    scene.run_while_held()
    scene.rig.pursue(scene.components[0], 3)
    assert (scene.rig.settle(), scene.served) == (DeploymentState.CONFIRMED, "1.1.0")


def test_a_deployment_that_does_not_ask_is_caught(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    """Negative control: without the question a hot device updates."""
    monkeypatch.setattr(Waiting, "reason", lambda self, record, *, downloading: None)
    with pytest.raises(AssertionError):
        test_an_update_waits_with_its_reason_and_goes_on_when_it_is_over(scene, HOT, "temperature")


@pytest.mark.timeout(600)
def test_a_real_agent_waits_for_its_application_and_obeys_an_operators_override(tmp_path: Path):
    fleet = FakeFleet(tmp_path / "fleet")
    agent = Agent(fleet, tmp_path / "device")
    lock = tmp_path / "busy"
    lock.touch()
    (agent.state / "agent.toml").write_text(f'{AT_ONCE}[holds]\nbusy_lock = "{lock}"\nbusy_deadline_s = 3600\n')
    try:
        agent.start()
        component = fleet.publish(small_bundle(tmp_path / "new", add=1.0), "1.1.0", 1)
        with lock.open() as application:
            fcntl.flock(application, fcntl.LOCK_EX)
            fleet.desire(component)
            report = fleet.wait_state(DeploymentState.HELD)
            assert report.held_reason == "the application is busy"
            assert report.held_until_s is not None
            fleet.desire(component, override_holds=True)
            fleet.wait_state(DeploymentState.CONFIRMED)
        assert agent.added() == 1
    finally:
        agent.stop()
        fleet.stop()


@pytest.mark.timeout(600)
def test_an_application_says_by_the_local_api_that_it_is_busy(tmp_path: Path):
    fleet = FakeFleet(tmp_path / "fleet")
    agent = Agent(fleet, tmp_path / "device").start()
    try:
        fleet.desire(fleet.publish(small_bundle(tmp_path / "old", add=1.0), "1.0.0", 1))
        fleet.wait_state(DeploymentState.CONFIRMED)
        facts = agent.facts()
        assert facts is not None
        with InferenceClient(facts["endpoints"][MODEL]) as client:
            for wrong in (-1, 3601, float("nan")):
                with pytest.raises(EdgeopsError, match="E-INFER-REQUEST"):
                    client.busy(wrong)
            client.busy(600)
            fleet.desire(fleet.publish(small_bundle(tmp_path / "new", add=2.0), "1.1.0", 2))
            assert fleet.wait_state(DeploymentState.HELD).held_reason == "the application is busy"
            assert agent.added() == 1
            client.busy(0)
        wait_for(lambda: agent.added() == 2, "the application was busy for ever")
    finally:
        agent.stop()
        fleet.stop()


def test_a_busy_application_that_dies_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    probe = DeviceProbe(HoldRules(), lambda: 0.0, tmp_path)
    probe.keep_undisturbed(60)
    assert probe().busy
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s + 61)
    assert not probe().busy


@pytest.mark.parametrize("looks", [True, False])
def test_a_link_that_becomes_metered_ends_a_download_that_is_under_way(
    looks: bool, scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    """It goes on where it was once the link is another one. Negative control: who looks only before a download goes on
    over the metered link."""
    monkeypatch.setattr(deployment_module, "WATCHDOG_EVERY_S", 0.005)
    monkeypatch.setattr(deployment_module, "FetchJob", FetchJob)
    if not looks:
        monkeypatch.setattr(Waiting, "interrupts", lambda self, record: None)
    scene.rig.deployment._job = None
    scene.rig.deployment._watch()
    fetch, given_up, begun = scene.rig.fetcher.fetch, threading.Event(), threading.Event()

    def slow(request: FetchRequest, slots: Slots, *, cancelled: threading.Event, **how: Any) -> Staged:
        if scene.rig.seen == METERED or not begun.is_set():
            begun.set()
            cancelled.wait(60.0)
            given_up.set()
            raise Cancelled
        return fetch(request, slots, cancelled=cancelled, **how)

    monkeypatch.setattr(scene.rig.fetcher, "fetch", slow)
    scene.rig.pursue(scene.components[1], 2)
    scene.run_while_held()
    assert scene.rig.deployment.record.state is DeploymentState.DOWNLOADING
    scene.rig.seen = METERED
    scene.run_while_held()
    if not looks:
        assert scene.rig.deployment.record.state is DeploymentState.DOWNLOADING
        assert not given_up.is_set()
        scene.rig.deployment._cancel()
        return
    assert given_up.wait(60.0)
    assert scene.rig.deployment.record.state is DeploymentState.HELD
    assert scene.rig.deployment.record.held_reason == "metered link wwan0"
    assert scene.served == "1.1.0"
    scene.rig.seen = Conditions(now_s=0)
    deadline_s = time.monotonic() + 60.0
    while scene.served != "1.2.0" and time.monotonic() < deadline_s:
        scene.run_while_held()
    assert scene.served == "1.2.0"
