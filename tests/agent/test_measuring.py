"""A device measures candidates when a signed command says so, and does nothing else for it: serving and updates go on.

A real agent, broker and repository; the commands and candidates are signed by the fleet's own keys, or are not.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest
from adder_bundles import MODEL, PROFILE, small_bundle
from fake_fleet import AT_ONCE, DEVICE, Agent, FakeFleet, wait_for
from securesystemslib.signer import CryptoSigner

from edgeops.contracts.deployment import Component, ComponentKind, DeploymentState
from edgeops.contracts.evidence import Source
from edgeops.contracts.measurement import Candidate, candidate_path
from edgeops.releases.bundles import Bundle

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FakeFleet]:
    fleet = FakeFleet(tmp_path / "fleet")
    yield fleet
    fleet.stop()


@pytest.fixture
def agent(fleet: FakeFleet, tmp_path: Path) -> Iterator[Agent]:
    """It serves a model that adds 1; a file of its site says that the application is busy while it is locked."""
    state = tmp_path / "device"
    state.mkdir(mode=0o700)
    (state / "agent.toml").write_text(f'{AT_ONCE}[holds]\nbusy_lock = "{tmp_path / "busy"}"\n')
    agent = Agent(fleet, state).start()
    fleet.desire(fleet.publish(small_bundle(tmp_path / "served", add=1.0), "1.0.0", 1))
    fleet.wait_state(DeploymentState.CONFIRMED)
    yield agent
    agent.stop()


def bundles(folder: Path, *numbers: float) -> list[Bundle]:
    return [small_bundle(folder / f"candidate-{number}", add=number) for number in numbers]


def slow_ones(folder: Path) -> list[Bundle]:
    """Candidates that take so long together that what ends them comes first, also where it comes late."""
    return [small_bundle(folder / f"slow-{number}", add=float(number), slow=True) for number in range(8)]


def fetched(fleet: FakeFleet) -> list[str]:
    return [path for path in fleet.requests if "/candidates/" in path]


def left_over(agent: Agent) -> list[str]:
    return [path.name for path in (agent.state / "measuring").iterdir() if path.suffix != ".json"]


def test_a_device_measures_what_a_signed_command_names_once_and_keeps_nothing_of_it(
    fleet: FakeFleet, agent: Agent, tmp_path: Path
):
    good, wrong = *bundles(tmp_path, 7.0), small_bundle(tmp_path / "wrong", add=8.0, lie=1.0)
    asked = fleet.offer(good, wrong)
    fleet.ask("c1", *asked)
    answer = fleet.wait_answer("c1")
    assert (answer.code, answer.connection) == ("", DEVICE)
    found = answer.measurements
    assert found is not None
    assert (found.source, found.device, found.threads) == (Source.MEASURED_DEVICE, DEVICE, 1)
    first, second = found.bundles
    assert [first.digest, second.digest] == [good.digest, wrong.digest]
    assert first.artifact_sha256 == good.manifest.files["model.onnx"].sha256
    assert first.measured is not None
    assert (first.measured.latency.runs, first.measured.golden_vectors) == (5, 3)
    assert first.measured.peak_memory_mib > 0
    assert first.runtime_version
    # One that answers wrongly has no figures, and does not cost the others theirs.
    assert second.measured is None
    assert second.failure.startswith("E-SELFTEST-GOLDEN")

    # The command comes again, as MQTT may have it: the same answer, and nothing is fetched or measured for it.
    before = fetched(fleet)
    assert len(before) == 2
    fleet.ask("c1", *asked)
    assert fleet.wait_answer("c1", number=2) == answer
    assert fetched(fleet) == before
    assert agent.added() == 1
    assert left_over(agent) == []
    report = fleet.component()
    assert report is not None
    assert (report.state, report.active and report.active.release) == (DeploymentState.CONFIRMED, "1.0.0")
    assert sorted(path.name for path in (agent.state / "components").iterdir()) == [MODEL]


def test_commands_that_nobody_may_give_have_nothing_fetched_or_measured(fleet: FakeFleet, agent: Agent, tmp_path: Path):
    asked = fleet.offer(*bundles(tmp_path, 7.0))
    refusals = {
        "forged": ({"signer": CryptoSigner.generate_ed25519()}, "E-TRUST-SIGNATURE"),
        "diverted": ({"connection": "device-2"}, "E-TRUST-DEVICE"),
        "late": ({"issued_at_s": 1000.0, "expires_at_s": 2000.0}, "E-TRUST-EXPIRED"),
        "endless": ({"runs": 10**9}, "E-WIRE-MALFORMED"),
    }
    for id, (changes, code) in refusals.items():
        fleet.ask(id, *asked, **changes)  # type: ignore[arg-type]
        fleet.wait_refused(code)
    assert fetched(fleet) == []
    assert not (agent.state / "measuring").exists()

    # Of what is signed as a command, only what a publisher has signed too is run.
    stranger = small_bundle(tmp_path / "stranger", add=9.0)
    unknown = Candidate(target=candidate_path(MODEL, stranger.digest), digest=stranger.digest)
    released = Candidate(target=f"{MODEL}/1.0.0/{PROFILE}.edgeops", digest=stranger.digest)
    mislabelled = Candidate(target=asked[0].target, digest=stranger.digest)
    for id, candidate, code in (
        ("unknown", unknown, "E-TRUST-TARGET"),
        ("released", released, "E-TRUST-TARGET"),
        ("mislabelled", mislabelled, "E-BUNDLE-DAMAGED"),
    ):
        fleet.ask(id, candidate)
        answer = fleet.wait_answer(id)
        assert (answer.code, answer.measurements) == (code, None), answer
    # Control: what a publisher has signed is.
    fleet.ask("good", *asked)
    assert fleet.wait_answer("good").measurements is not None
    assert agent.added() == 1


def test_a_candidate_cannot_be_desired(fleet: FakeFleet, agent: Agent, tmp_path: Path):
    """It has no release number, so that no control plane can have it served."""
    (candidate,) = fleet.offer(*bundles(tmp_path, 7.0))
    fleet.desire(
        Component(
            name=MODEL, kind=ComponentKind.MODEL, release="2.0.0", target=candidate.target, digest=candidate.digest
        )
    )
    report = fleet.wait_state(DeploymentState.REJECTED)
    assert report.failure is not None
    assert report.failure.code == "E-TRUST-TARGET"
    assert agent.added() == 1


def test_a_busy_device_measures_nothing_and_says_so(fleet: FakeFleet, agent: Agent, tmp_path: Path):
    asked = fleet.offer(*bundles(tmp_path, 7.0))
    with (tmp_path / "busy").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fleet.ask("c1", *asked)
        answer = fleet.wait_answer("c1")
    assert (answer.code, answer.what) == ("E-MEASURE-REFUSED", "the application is busy")
    assert fetched(fleet) == []
    # Control: afterwards it does.
    fleet.ask("c2", *asked)
    assert fleet.wait_answer("c2").measurements is not None


def test_an_update_goes_first_and_what_is_measured_gives_way(fleet: FakeFleet, agent: Agent, tmp_path: Path):
    slow = fleet.offer(*slow_ones(tmp_path))
    fleet.ask("c1", *slow, runs=1000)
    wait_for(lambda: (agent.state / "measuring" / "work" / "candidate").exists(), "it is not being measured")
    # A second one has to wait for its turn.
    fleet.ask("c2", slow[0])
    assert fleet.wait_answer("c2").what == "command c1 is measured now"
    fleet.desire(fleet.publish(small_bundle(tmp_path / "next", add=2.0), "1.1.0", 2))
    fleet.wait_state(DeploymentState.CONFIRMED)
    assert agent.added() == 2
    answer = fleet.wait_answer("c1")
    assert (answer.code, answer.what) == ("E-MEASURE-REFUSED", "an update begins")
    assert left_over(agent) == []


def test_a_killed_agent_leaves_no_measuring_process_and_answers_for_it_when_it_is_asked_again(
    fleet: FakeFleet, agent: Agent, tmp_path: Path
):
    slow = fleet.offer(*slow_ones(tmp_path))
    fleet.ask("c1", *slow, runs=1000)
    assert agent.process is not None
    pid = agent.process.pid
    wait_for(lambda: measuring_processes(pid), "it is not being measured")
    agent.kill()
    wait_for(lambda: not measuring_processes(pid), "a process measures for nobody")
    agent.start()
    fleet.ask("c1", *slow, runs=1000)
    answer = fleet.wait_answer("c1")
    assert (answer.code, answer.what) == ("E-MEASURE-REFUSED", "the agent ended while it measured")
    assert left_over(agent) == []
    assert agent.added() == 1


def measuring_processes(pid: int) -> list[int]:
    """Processes of the measuring harness that a process started; they name it."""
    found = []
    for place in Path("/proc").glob("[1-9]*"):
        try:
            command = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile
        if b"edgeops.runtimes.measure" in command and str(pid).encode() in command:
            found.append(int(place.name))
    return found
