"""The agent updates itself: real wheels, real processes, and versions that are broken in each way that counts."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from adder_bundles import MODEL, small_bundle
from agent_wheels import build_wheel
from fake_fleet import AT_ONCE, Agent, FakeFleet, wait_for

from edgeops import __version__
from edgeops.agent import versions
from edgeops.agent.channel import Load
from edgeops.agent.loop import Loop
from edgeops.agent.self_update import AgentLife, AgentServing, _Try
from edgeops.client.inference import InferenceClient
from edgeops.contracts.deployment import AGENT_COMPONENT, Component, ComponentReport, DeploymentState
from edgeops.contracts.errors import EdgeopsError
from edgeops.testkit.faults import FailingDisk, failing

pytestmark = pytest.mark.timeout(600)
WEAKENED = Path(__file__).parent / "weakened"
# Short only where a trial has to run out.
TRIAL_S, SHORT_S = 60.0, 4.0
_RUN = "        for number in (signal.SIGTERM, signal.SIGINT):\n"
BROKEN = {
    "import": {"agent/supervisor.py": ("import json\n", "import json\nimport no_such_module\n")},
    "connect": {
        "transport/mqtt.py": ("    def start(self) -> None:\n", "    def start(self) -> None:\n        return\n")
    },
    "hangs": {"agent/supervisor.py": (_RUN, f"        threading.Event().wait(1000)\n{_RUN}")},
    "dies": {"agent/supervisor.py": (_RUN, f"        os._exit(9)\n{_RUN}")},
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wheels")
    made = {name: build_wheel(folder / name, "9.2.0", changes) for name, changes in BROKEN.items()}
    made |= {"good": build_wheel(folder, "9.1.0"), "later": build_wheel(folder, "9.3.0")}
    made["lies"] = folder / "lies"
    made["lies"].mkdir()
    shutil.copy(next(made["good"].iterdir()), made["lies"] / "edgeops-9.2.0-py3-none-any.whl")
    return made


class Site:
    """A fleet with one device, which serves a model."""

    def __init__(self, folder: Path, trial_s: float = TRIAL_S) -> None:
        self.fleet = FakeFleet(folder / "fleet")
        self.agent = Agent(self.fleet, folder / "device")
        self.numbers = 0
        self.configure(trial_s)
        self.agent.start()
        self.model = self.fleet.publish(small_bundle(folder / "model", add=1.0), "1.0.0", 1)
        self.fleet.desire(self.model)
        self.fleet.wait_state(DeploymentState.CONFIRMED)

    def configure(self, trial_s: float) -> None:
        (self.agent.state / "agent.toml").write_text(f"{AT_ONCE}[self_update]\ntrial_s = {trial_s}\n")

    def close(self) -> None:
        if self.agent.process is not None:
            for process in [psutil.Process(self.agent.process.pid), *self.tree()] if self.runs() else []:
                process.kill()
            self.agent.process.wait(30)
        self.fleet.stop()

    def runs(self) -> bool:
        return self.agent.process is not None and self.agent.process.poll() is None

    def tree(self) -> list[psutil.Process]:
        assert self.agent.process is not None
        return psutil.Process(self.agent.process.pid).children(recursive=True)

    def release(self, wheels: Path) -> Component:
        self.numbers += 1
        version = next(wheels.iterdir()).name.split("-")[1]
        return self.fleet.publish_agent(wheels, version, self.numbers)

    def update(self, wheels: Path, state: DeploymentState = DeploymentState.CONFIRMED) -> ComponentReport:
        self.fleet.desire(self.model, self.release(wheels))
        return self.fleet.wait_state(state, name=AGENT_COMPONENT)

    def wait_version(self, version: str) -> None:
        wait_for(lambda: self.fleet.reports[-1].agent_version == version, f"the agent is not {version}")

    def facts(self) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = json.loads((self.agent.state / "agent.json").read_text())
        except (OSError, ValueError):
            return {}
        return facts

    def added(self) -> float:
        """What the model adds; the agent may be in between two starts."""

        def ask() -> float | None:
            try:
                with InferenceClient(self.facts()["endpoints"][MODEL]) as client:
                    return float(client.infer(MODEL, {"x": np.zeros((1, 4), np.float32)})["y"][0, 0])
            except (EdgeopsError, OSError, ValueError, KeyError):
                return None

        added: float = wait_for(ask, "the model does not serve")
        return added

    def end(self) -> None:
        """End the agent as a service manager does."""
        assert self.agent.process is not None
        self.agent.process.terminate()
        assert self.agent.process.wait(30) == 0

    def start(self) -> None:
        self.agent.start_unwatched()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def test_a_new_version_takes_over_and_one_that_never_connects_gives_way(site: Site, wheels: dict[str, Path]) -> None:
    report = site.update(wheels["good"])
    assert report.active is not None
    assert (report.active.release, report.endpoint) == ("9.1.0", None)
    site.wait_version("9.1.0")
    assert site.added() == 1
    # Once it has proved itself it is the process, not a child.
    site.end()
    site.configure(SHORT_S)
    site.start()
    site.wait_version("9.1.0")
    assert site.agent.process is not None
    wait_for(lambda: site.facts().get("pid") == site.agent.process.pid, "there is a process too many")
    failed = site.update(wheels["connect"], DeploymentState.FAILED)
    assert failed.failure is not None
    assert (failed.failure.code, failed.failure.release) == ("E-TRIAL", "9.2.0")
    assert failed.active is not None
    assert failed.active.release == "9.1.0"
    assert site.fleet.reports[-1].agent_version == "9.1.0"
    assert site.added() == 1
    # The installed version comes back when none is wanted.
    site.fleet.desire(site.model)
    site.wait_version(__version__)
    assert site.added() == 1
    wait_for(lambda: site.fleet.component(AGENT_COMPONENT) is None or
             site.fleet.component(AGENT_COMPONENT).active is None, "its slots stay")  # fmt: skip


@pytest.mark.parametrize("kind", ["import", "lies"])
def test_a_version_that_cannot_be_used_is_never_started(site: Site, wheels: dict[str, Path], kind: str) -> None:
    report = site.update(wheels[kind], DeploymentState.FAILED)
    assert report.failure is not None
    assert report.failure.code == "E-SELFTEST-AGENT"
    assert report.active is None
    states = {one.state for one in site.fleet.progress if one.component == AGENT_COMPONENT}
    assert DeploymentState.TRIAL not in states
    assert len({one.boot_id for one in site.fleet.reports}) == 1, "the agent was started anew"
    assert site.added() == 1


@pytest.mark.parametrize(
    ("kind", "trial_s", "why"),
    [
        pytest.param("hangs", SHORT_S, "did not report within", marks=pytest.mark.full),
        ("dies", TRIAL_S, "ended 3 times"),
    ],
)
def test_a_version_that_does_not_get_up_is_taken_back(
    tmp_path: Path, wheels: dict[str, Path], kind: str, trial_s: float, why: str
) -> None:
    site = Site(tmp_path, trial_s)
    try:
        report = site.update(wheels[kind], DeploymentState.FAILED)
        assert report.failure is not None
        assert report.failure.code == "E-TRIAL"
        assert why in report.failure.what
        assert site.fleet.reports[-1].agent_version == __version__
        assert site.added() == 1
    finally:
        site.close()


@pytest.mark.parametrize(
    ("kind", "check"), [pytest.param("hangs", "agent_deadline", marks=pytest.mark.full), ("dies", "agent_starts")]
)
def test_without_the_check_a_broken_version_would_stay(
    tmp_path: Path, wheels: dict[str, Path], kind: str, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control."""
    monkeypatch.setenv("PYTHONPATH", str(WEAKENED))
    monkeypatch.setenv("EDGEOPS_TEST_WITHOUT", check)
    site = Site(tmp_path, SHORT_S)
    try:
        site.fleet.desire(site.model, site.release(wheels[kind]))
        began = len(site.fleet.reports)
        wait_for(lambda: any(one.state is DeploymentState.TRIAL for one in site.fleet.progress if
                             one.component == AGENT_COMPONENT), "no trial")  # fmt: skip
        time.sleep(versions._GRACE * SHORT_S + 3)
        assert site.fleet.reports[began:] == [] or site.fleet.reports[-1].agent_version == __version__
        report = site.fleet.component(AGENT_COMPONENT)
        assert report is None or report.state is not DeploymentState.FAILED
    finally:
        site.close()


@pytest.mark.full
def test_kills_anywhere_in_an_update_leave_an_agent(site: Site, wheels: dict[str, Path]) -> None:
    """SIGKILL of all processes, then a start: again and again while the new version is on its way."""
    site.fleet.desire(site.model, site.release(wheels["good"]))
    for number in range(6):
        time.sleep(0.4 * (number + 1))
        for process in [*site.tree(), psutil.Process(site.agent.process.pid)]:  # type: ignore[union-attr]
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        site.agent.process.wait(30)  # type: ignore[union-attr]
        site.start()
    wait_for(lambda: (said := site.fleet.component(AGENT_COMPONENT)) and
             said.state in (DeploymentState.CONFIRMED, DeploymentState.FAILED), "it is stuck")  # fmt: skip
    assert site.added() == 1
    site.update(wheels["later"])
    site.wait_version("9.3.0")


@pytest.mark.full
def test_a_damaged_version_is_passed_over_and_installed_again(site: Site, wheels: dict[str, Path]) -> None:
    site.update(wheels["good"])
    site.wait_version("9.1.0")
    site.end()
    slot = next((site.agent.state / "components" / AGENT_COMPONENT / "slots").glob("[ab]"))
    versions.mark_of(slot).write_bytes(b"\0" * 30)
    boots = len(site.fleet.reports)
    site.start()
    wait_for(lambda: any(one.agent_version == __version__ for one in site.fleet.reports[boots:]), "nobody stood in")
    site.wait_version("9.1.0")
    assert site.added() == 1


def test_a_version_that_ends_again_and_again_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that had proved itself, and does not get up any more."""
    counts = [versions._count_start(tmp_path, "sha256:x") for _ in range(3) if _made(tmp_path)]
    assert counts == [1, 2, 3]
    assert versions._count_start(tmp_path, "sha256:y") == 1
    versions.calm(tmp_path)
    assert versions._count_start(tmp_path, "sha256:y") == 1
    (versions.directory_of(tmp_path) / "starts.json").write_bytes(b"\0\0")
    assert versions._count_start(tmp_path, "sha256:y") == 1


def test_a_version_is_tried_out_once_the_one_before_has_left_its_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer wish gives up what is installed, which ends a moment later: until then it writes to that slot."""
    at_work, together, installed = 0, 0, 0

    def install(self: object) -> None:
        nonlocal at_work, together, installed
        at_work += 1
        together = max(together, at_work)
        time.sleep(0.2)
        at_work -= 1
        installed += 1

    monkeypatch.setattr(_Try, "_install", install)
    monkeypatch.setattr(_Try, "_check", lambda self: None)
    loop, said = Loop(), []
    life = AgentLife(versions.Running(), tmp_path, lambda: False, lambda: None)
    events = SimpleNamespace(tested=lambda figures: (said.append("tested"), loop.stop()), test_failed=said.append)
    serving = AgentServing(loop, events, life)  # type: ignore[arg-type]
    for number in range(3):
        load = Load(directory=str(tmp_path / "a" / "bundle"), release=f"{number}.0.0", digest="d", ram_mib=1)
        loop.after(0.05 * number, lambda load=load: serving.try_out(load))
    loop.run()
    assert (together, installed, said) == (1, 2, ["tested"])


def test_what_is_given_up_is_ended_at_once(tmp_path: Path) -> None:
    loop = Loop()
    trying = _Try.__new__(_Try)
    trying._slot, trying._cancelled, trying._process = tmp_path, threading.Event(), None
    loop.after(0.5, lambda: (trying.cancel(), loop.stop()))
    threading.Thread(target=loop.run, daemon=True).start()
    with pytest.raises(EdgeopsError, match="E-SELFTEST-AGENT"):
        trying._call([sys.executable, "-c", "import time; time.sleep(600)"], None, 300.0, "it sleeps")
    assert trying._process is not None
    assert trying._process.returncode == -signal.SIGKILL


class Became(Exception):
    """This process was replaced."""

    def __init__(self, environment: dict[str, str]) -> None:
        super().__init__(environment)
        self.runs, self.broken = (environment[f"EDGEOPS_AGENT_{name}"] for name in ("RUNS", "BROKEN"))


def _become(*what: Any) -> None:
    raise Became(what[2])


def versions_of(root: Path, active: str) -> dict[str, str]:
    """Two versions that are installed: `a` has proved itself, `b` has not. Return their digests."""
    slots = versions.directory_of(root) / "slots"
    digests = {name: f"sha256:{name}" for name in "ab"}
    for number, (name, digest) in enumerate(digests.items(), 1):
        (slots / name / "site").mkdir(parents=True)
        slot = {"release": f"{number}.0.0", "digest": digest, "number": number}
        (slots / name / "slot.json").write_text(json.dumps({"slot": slot, "confirmed": name == "a"}))
        (slots / name / "site.json").write_text(json.dumps({"digest": digest}))
    (slots / "active").write_text(json.dumps({"slot": active}))
    slots.chmod(0o700)
    return digests


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_writes_keeps_no_agent_from_starting(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be counted, and nothing served until somebody had made room."""
    digests = versions_of(tmp_path, "a")
    monkeypatch.setattr(versions.os, "execve", _become)
    with failing(FailingDisk(tmp_path, error)) as disk, pytest.raises(Became) as became:
        versions.become_current(tmp_path, 1.0)
    assert disk.refused
    assert (became.value.runs, became.value.broken) == (digests["a"], "")


def test_a_version_that_dies_on_a_disk_that_refuses_writes_is_left_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = versions_of(tmp_path, "b")
    started: list[str] = []

    class Child:
        def __init__(self, environment: dict[str, str]) -> None:
            started.append(environment["EDGEOPS_AGENT_RUNS"])

        def watch(self, proved: Callable[[], bool], within_s: float) -> int:
            return 1

    monkeypatch.setattr(versions, "_Child", Child)
    monkeypatch.setattr(versions.os, "execve", _become)
    with failing(FailingDisk(tmp_path, errno.EROFS)), pytest.raises(Became) as became:
        versions.become_current(tmp_path, 1.0)
    assert started == [digests["b"]] * versions.MAX_TRIAL_STARTS
    # Told that it does not get up, the version before takes it back: `AgentServing.serve`.
    assert (became.value.runs, became.value.broken) == (digests["a"], digests["b"])


def _made(root: Path) -> bool:
    versions.directory_of(root).mkdir(parents=True, exist_ok=True)
    return True


def test_wheels_of_a_version_go_before_what_is_installed(tmp_path: Path) -> None:
    slot = tmp_path / "a"
    first = versions.environment_for(slot, {"PYTHONPATH": "/installed", "HOME": "/"})
    assert first["PYTHONPATH"] == f"{slot}/site{os.pathsep}/installed"
    second = versions.environment_for(tmp_path / "b", first)
    assert second["PYTHONPATH"] == f"{tmp_path}/b/site{os.pathsep}/installed", "not on top of the version before"
