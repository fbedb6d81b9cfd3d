"""Releases on a stick: taken without network, by the same path, with the same refusals; bad sticks change nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from adder_bundles import MODEL, small_bundle
from fake_fleet import Agent, FakeFleet, wait_for

from edgeops.agent import inbox, installing
from edgeops.agent.plan import with_local
from edgeops.agent.settings import Settings, TrialRules
from edgeops.agent.store import LocalChoice
from edgeops.agent.trust_desk import TrustDesk
from edgeops.contracts.deployment import Component, ComponentKind, DeploymentState
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases import assemble
from edgeops.releases.export import export
from edgeops.releases.publish import publish
from edgeops.trust.founding import make_fleet

pytestmark = pytest.mark.timeout(600)
QUICK = Settings(trial=TrialRules(confirm_after_s=0.2))
LATER_S = 8 * 86400.0


class Site(NamedTuple):
    """A fleet without servers, and an enrolled device whose agent is stopped. Copy the device before use."""

    home: Path
    device: Path
    sticks: dict[str, Path]


def make_stick(home: Path, folder: Path, version: str, **bundle: Any) -> Path:
    """Release a bundle and export it."""
    made = small_bundle(folder / f"bundle-{version}", **bundle)
    assemble.create(home, [made.directory], version=version)
    publish(home, MODEL, version)
    return export(home, MODEL, version, folder / f"{version}.edgeops").path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    fleet = FakeFleet(folder / "fleet")
    agent = Agent(fleet, folder / "device").start()
    agent.stop()
    fleet.stop()
    sticks = {
        version: make_stick(fleet.home, folder, version, add=float(number))
        for number, version in enumerate(("1.0.0", "1.1.0"), start=1)
    }
    make_fleet(folder / "other", "demo")
    sticks["other fleet"] = make_stick(folder / "other", folder / "x", "1.0.0", add=5.0)
    sticks["lying"] = make_stick(fleet.home, folder, "1.2.0", lie=0.5, add=3.0)
    sticks["profile"] = make_stick(fleet.home, folder, "1.3.0", profile="raspberry-pi-4")
    sticks["1.0.0 again"] = export(fleet.home, MODEL, "1.0.0", folder / "again.edgeops").path
    return Site(fleet.home, folder / "device", sticks)


@pytest.fixture
def device(site: Site, tmp_path: Path) -> Path:
    return Path(shutil.copytree(site.device, tmp_path / "device"))


def held(root: Path) -> dict[str, str]:
    """What a device has, but for verified metadata, which may move forward, and its log."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in ("trust", "lock", "log")
    }


def refused(device: Path, stick: Path, *codes: str) -> None:
    before = held(device)
    with pytest.raises(EdgeopsError) as caught:
        installing.install(device, stick, QUICK)
    assert caught.value.code in codes, caught.value
    assert held(device) == before


def test_a_stopped_agents_device_takes_a_release_and_serves_it_at_its_next_start(
    site: Site, device: Path, tmp_path: Path
):
    done = installing.install(device, site.sticks["1.0.0"], QUICK)
    assert (done.component, done.release, done.state, done.by_agent) == (MODEL, "1.0.0", "confirmed", False)
    done = installing.install(device, site.sticks["1.1.0"], QUICK)
    assert done.state is DeploymentState.CONFIRMED
    unit = json.loads((device / "unit.json").read_bytes())
    assert unit["numbers"] == {MODEL: 2}
    assert not list((device / "downloads").glob("*"))
    # Neither the older stick nor the older release on a newer one is taken.
    refused(device, site.sticks["1.0.0"], "E-TRUST-METADATA")
    refused(device, site.sticks["1.0.0 again"], "E-TRUST-DOWNGRADE")


def test_what_fails_its_self_test_on_a_stick_goes_back(site: Site, device: Path):
    installing.install(device, site.sticks["1.0.0"], QUICK)
    done = installing.install(device, site.sticks["lying"], QUICK)
    assert done.state is DeploymentState.FAILED
    assert done.failure is not None
    assert done.failure.code == "E-SELFTEST-GOLDEN"
    state = json.loads((device / "unit.json").read_bytes())
    assert state["numbers"] == {MODEL: 1}
    # The same again is not tried again.
    assert installing.install(device, site.sticks["lying"], QUICK).failure == done.failure


def test_an_older_release_is_taken_if_nobody_compares_numbers(
    site: Site, device: Path, monkeypatch: pytest.MonkeyPatch
):
    """The negative control of the downgrade above: only the number that was confirmed stands in its way.

    The stick is newer than anything that the device knows: its metadata is no rollback."""
    installing.install(device, site.sticks["1.1.0"], QUICK)
    refused(device, site.sticks["1.0.0 again"], "E-TRUST-DOWNGRADE")
    monkeypatch.setattr(TrustDesk, "_check", lambda *_: None)
    assert installing.install(device, site.sticks["1.0.0 again"], QUICK).state is DeploymentState.CONFIRMED


def rewritten(stick: Path, to: Path, change: Callable[[str, bytes], bytes | None], method: int = 0) -> Path:
    with zipfile.ZipFile(stick) as old, zipfile.ZipFile(to, "w", method) as new:
        for info in old.infolist():
            if (data := change(info.filename, old.read(info))) is not None:
                new.writestr(info.filename, data)
    return to


def flipped(kind: str) -> Callable[[str, bytes], bytes | None]:
    def change(name: str, data: bytes) -> bytes:
        place = len(data) // 2
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] if name.startswith(kind) else data

    return change


@pytest.mark.parametrize(
    "running",
    [pytest.param(False, id="stopped"), pytest.param(True, id="running", marks=pytest.mark.full)],
)
def test_bad_sticks_are_refused_and_change_nothing(site: Site, device: Path, tmp_path: Path, running: bool):
    good = site.sticks["1.1.0"]
    installing.install(device, site.sticks["1.0.0"], QUICK)
    sticks: list[tuple[Path, tuple[str, ...]]] = [
        (site.sticks["other fleet"], ("E-TRUST-TARGET", "E-TRUST-METADATA")),
        (site.sticks["profile"], ("E-BUNDLE-PROFILE",)),
        (rewritten(good, tmp_path / "t1", flipped("targets/")), ("E-TRUST-TARGET",)),
        (rewritten(good, tmp_path / "t2", flipped("metadata/")), ("E-TRUST-TARGET", "E-TRUST-METADATA")),
        (rewritten(good, tmp_path / "t3", flipped("index.json")), ("E-RELEASE-INVALID", "E-TRUST-TARGET")),
        (rewritten(good, tmp_path / "t4", lambda name, data: b"\0" * (64 << 20) if "/1.1.0/" in name else data,
                   zipfile.ZIP_DEFLATED), ("E-RELEASE-INVALID",)),
        (rewritten(good, tmp_path / "t5", lambda name, data: b" " * (9 << 20) if "timestamp" in name else data),
         ("E-RELEASE-INVALID", "E-TRUST-TARGET", "E-WIRE-SIZE")),
    ]  # fmt: skip
    data = good.read_bytes()
    for index, cut in enumerate((0, 10, len(data) // 2, len(data) - 1)):
        path = tmp_path / f"cut-{index}"
        path.write_bytes(data[:cut])
        sticks.append((path, ("E-RELEASE-INVALID", "E-BUNDLE-DAMAGED", "E-BUNDLE-INVALID")))
    process = None
    if running:
        process = subprocess.Popen([sys.executable, "-m", "edgeops", "agent", "run", "--state", str(device)])
        wait_for(lambda: (device / "agent.json").exists(), "no agent")
    try:
        for stick, codes in sticks[:: 3 if running else 1]:
            refused(device, stick, *codes)
    finally:
        if process is not None:
            process.terminate()
            assert process.wait(60) == 0
    # Control: the good one of the same making is taken.
    assert installing.install(device, good, QUICK).release == "1.1.0"


def test_a_stick_is_worth_nothing_after_its_time(site: Site, device: Path, monkeypatch: pytest.MonkeyPatch):
    now = installing.Clock.now
    monkeypatch.setattr(installing.Clock, "now", lambda self: now(self) + LATER_S)
    refused(device, site.sticks["1.0.0"], "E-TRUST-EXPIRED")
    monkeypatch.undo()
    assert installing.install(device, site.sticks["1.0.0"], QUICK).state is DeploymentState.CONFIRMED


def test_only_the_enrolled_devices_own_user_installs(site: Site, device: Path, tmp_path: Path):
    with pytest.raises(EdgeopsError, match="is not enrolled"):
        installing.install(tmp_path / "nowhere", site.sticks["1.0.0"], QUICK)
    if os.geteuid() == 0:
        os.chown(device, 12345, -1)
        refused(device, site.sticks["1.0.0"], "E-CONFIG")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FakeFleet]:
    fleet = FakeFleet(tmp_path / "fleet")
    yield fleet
    fleet.stop()


def test_a_running_agent_takes_a_stick_without_network_and_later_obeys_the_fleet_again(
    fleet: FakeFleet, tmp_path: Path
):
    first = make_stick(fleet.home, tmp_path, "1.0.0", add=1.0)
    for number in (2, 3):
        make_stick(fleet.home, tmp_path, f"{number}.0.0", add=float(number))
    second = export(fleet.home, MODEL, "2.0.0", tmp_path / "usb.edgeops").path
    bundles = [item for item in fleet.publisher.targets().items() if item[1].custom is not None]

    def component(version: str) -> Component:
        custom = next(t.custom for _, t in bundles if t.custom is not None and t.custom.version == version)
        path = next(p for p, t in bundles if t.custom == custom)
        return Component(name=MODEL, kind=ComponentKind.MODEL, release=version, target=path, digest=custom.digest)

    agent = Agent(fleet, tmp_path / "device").start()
    try:
        fleet.desire(component("1.0.0"))
        fleet.wait_state(DeploymentState.CONFIRMED)
        fleet.stop_broker()
        fleet.stop_artifacts()
        command = [
            sys.executable,
            "-m",
            "edgeops",
            "agent",
            "install",
            str(second),
            "--state",
            str(agent.state),
            "--json",
        ]
        told = subprocess.run(command, capture_output=True, timeout=120, check=True)
        assert json.loads(told.stdout)["by_agent"] is True
        assert agent.added() == 2
        refused(agent.state, first, "E-TRUST-METADATA")
        # Neither a restart nor the old desired state, told once more, undoes it.
        agent.stop()
        agent.start()
        wait_for(lambda: agent.facts()["endpoints"], "it does not serve")  # type: ignore[index]
        assert agent.added() == 2
        fleet.start_artifacts()
        boots = len(fleet.reports)
        fleet.start_broker()
        wait_for(lambda: len(fleet.reports) > boots, "the device did not come back")
        assert agent.added() == 2
        fleet.desire(component("3.0.0"))
        fleet.wait_state(DeploymentState.CONFIRMED)
        assert agent.added() == 3
    finally:
        agent.stop()


def test_a_local_choice_stands_until_a_later_generation():
    fleets, chosen, other = (
        Component(name=name, kind=ComponentKind.MODEL, release=release, target="t", digest="d")
        for name, release in (("a", "1.0.0"), ("a", "2.0.0"), ("b", "1.0.0"))
    )
    local = {"a": LocalChoice(component=chosen, generation=7)}
    assert with_local((fleets, other), 7, local) == [other, chosen]
    assert with_local((fleets, other), 6, local) == [other, chosen]
    assert with_local((fleets, other), 8, local) == [fleets, other]
    assert with_local((), 7, local) == [chosen]
    assert with_local((fleets,), 7, {}) == [fleets]


def test_a_second_voice_in_one_generation_is_refused_and_told(fleet: FakeFleet, tmp_path: Path):
    """Two control planes with the same keys: what was accepted stands, and the report says that there is another."""
    releases = []
    for number in (1, 2):
        bundle = small_bundle(tmp_path / f"bundle-{number}", add=float(number))
        releases.append(fleet.publish(bundle, f"{number}.0.0", number))
    first, second = releases
    agent = Agent(fleet, tmp_path / "device").start()
    try:
        fleet.desire(first)
        fleet.wait_state(DeploymentState.CONFIRMED)
        fleet.send(fleet.envelope(second))
        assert fleet.wait_refused("E-TRUST-REPLAY").refused is not None
        assert agent.added() == 1
        # Signed anew by the same voice it passes; a later generation ends the quarrel.
        fleet.send(fleet.envelope(first))
        wait_for(lambda: fleet.reports[-1].refused is None, "what was signed anew was refused")
        fleet.desire(second)
        fleet.wait_state(DeploymentState.CONFIRMED)
        assert agent.added() == 2
    finally:
        agent.stop()


@pytest.mark.parametrize("state", ["self-test", "trial"])
def test_an_installation_that_is_killed_goes_on_without_the_stick(site: Site, device: Path, state: str):
    """What was verified and copied is enough: the agent that starts next, without network, brings it to its end.

    Where it is killed before all was copied, the file must be installed once more.
    """
    stick = site.sticks["1.1.0"]
    record = device / "components" / MODEL / "state.json"
    # Its trial lasts until it is killed, however late this process gets to that.
    code = (
        "import sys; from edgeops.agent import settings; rules = settings.TrialRules(confirm_after_s=100.0);"
        "settings.Settings.__new__.__defaults__ = tuple(settings.Settings()._replace(trial=rules));"
        "import edgeops.cli.agent as cli; cli.command(sys.argv[1:])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, "install", str(stick), "--state", str(device)])

    def reached() -> bool:
        return record.exists() and json.loads(record.read_bytes())["state"] in (state, "trial")

    wait_for(reached, f"it does not come to {state}")
    process.kill()
    process.wait(60)
    agent = subprocess.Popen(
        [sys.executable, "-m", "edgeops", "agent", "run", "--state", str(device), "--confirm-after-s", "0.5"]
    )
    try:
        wait_for(lambda: json.loads(record.read_bytes())["state"] == "confirmed", "it was not confirmed")
    finally:
        agent.terminate()
        assert agent.wait(60) == 0
    assert json.loads((device / "unit.json").read_bytes())["numbers"] == {MODEL: 2}


def test_who_is_done_leaves_the_answers_of_others(tmp_path: Path):
    """Two installations at once; and what a client left that was killed long ago goes."""
    (tmp_path / "stick").write_bytes(b"x")
    first, second, killed = (inbox.submit(tmp_path, tmp_path / "stick") for _ in range(3))
    for file in (first, second, killed):
        inbox.answer(file, inbox.Answer(component=file.stem))
    for path in killed.parent.glob(f"{killed.stem}*"):
        os.utime(path, (0, 0))
    for file in (first, second):
        said = inbox.take_answer(file)
        assert said is not None
        assert said.component == file.stem
        inbox.withdraw(tmp_path, file)
    assert list(killed.parent.iterdir()) == []
