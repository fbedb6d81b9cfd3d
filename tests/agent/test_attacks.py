"""The attacks of the threat model on a real agent: processes, a broker and servers over TLS.

Each is tried twice: on the agent as it is, and, as a negative control, on one without the check that stops it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import fake_fleet
import pytest
from adder_bundles import MODEL, PROFILE, small_bundle
from fake_fleet import DEVICE, FLEET, Agent, FakeFleet, wait_for
from securesystemslib.signer import CryptoSigner

from edgeops.contracts.deployment import Component, ComponentKind, DeploymentState
from edgeops.contracts.release import TargetCustom, target_path
from edgeops.releases.bundles import pack
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.founding import make_fleet
from edgeops.trust.publisher import NewTarget, Publisher

pytestmark = pytest.mark.timeout(600)
WEAKENED = Path(__file__).parent / "weakened"


class Scene:
    """A fleet, and one device that serves release 2, which adds 2."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet = FakeFleet(folder / "fleet")
        self.agent: Agent | None = None

    def release(self, add: int) -> Component:
        bundle = small_bundle(self.folder / f"bundle-{add}", add=float(add))
        return self.fleet.publish(bundle, f"1.{add}.0", add)

    def begin(self, without: str | None) -> None:
        """Enrol and start an agent; without one check."""
        old = {name: os.environ.get(name) for name in ("PYTHONPATH", "EDGEOPS_TEST_WITHOUT")}
        if without is not None:
            os.environ.update(PYTHONPATH=str(WEAKENED), EDGEOPS_TEST_WITHOUT=without)
        try:
            self.agent = Agent(self.fleet, self.folder / "device").start()
        finally:
            for name, value in old.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        self.fleet.desire(self.release(2))
        self.fleet.wait_state(DeploymentState.CONFIRMED)

    def serves(self, add: int) -> bool:
        assert self.agent is not None
        return self.agent.added() == add

    def refused(self, code: str) -> bool:
        """Whether the device has told of a refusal: of the statement, of the component, or of the fetch."""
        component = self.fleet.component()
        told = [report.refused.code for report in self.fleet.reports if report.refused is not None]
        if component is not None:
            told += [component.failure.code] if component.failure is not None else []
            told += [(component.held_reason or "").partition(":")[0]]
        return code in told

    def trusted(self, role: str) -> int:
        document = json.loads((self.folder / "device" / "trust" / f"{role}.json").read_bytes())
        return int(document["signed"]["version"])

    def close(self) -> None:
        if self.agent is not None:
            self.agent.stop()
        self.fleet.stop()


class Attack(NamedTuple):
    """An attack.

    Args:
        act: Attacks; returns what says whether it has succeeded.
        code: What the device tells of it.
        without: The check that stops it.
        full: Whether it is left to the exhaustive tier.
    """

    act: Callable[[Scene], Callable[[], bool]]
    code: str
    without: str
    full: bool = True


def forged_desired(scene: Scene) -> Callable[[], bool]:
    """The broker asks for a released bundle in the control plane's name."""
    scene.fleet.generation += 1
    scene.fleet.send(scene.fleet.envelope(scene.release(3), signer=CryptoSigner.generate_ed25519()))
    return lambda: scene.serves(3)


def forged_command(scene: Scene) -> Callable[[], bool]:
    """The broker has the device measure in the control plane's name."""
    candidate = scene.fleet.offer(small_bundle(scene.folder / "candidate", add=7.0))
    scene.fleet.ask("c1", *candidate, signer=CryptoSigner.generate_ed25519())
    return lambda: any(answer.measurements is not None for answer in scene.fleet.answers)


def diverted_desired(scene: Scene) -> Callable[[], bool]:
    """The broker gives what was signed for another device."""
    scene.fleet.generation += 1
    scene.fleet.send(scene.fleet.envelope(scene.release(3), connection="device-2"))
    return lambda: scene.serves(3)


def repeated_desired(scene: Scene) -> Callable[[], bool]:
    """The broker repeats an older statement, one that allowed a downgrade."""
    first = scene.release(1)
    second = scene.release(3)
    old = scene.fleet.desire(
        Component(
            name=first.name, kind=first.kind, release=first.release, target=first.target, digest=first.digest,
            allow_downgrade=True,
        )
    )  # fmt: skip
    scene.fleet.wait_state(DeploymentState.CONFIRMED)
    scene.fleet.desire(second)
    scene.fleet.wait_state(DeploymentState.CONFIRMED)
    scene.fleet.send(old)
    return lambda: scene.serves(1)


def late_desired(scene: Scene) -> Callable[[], bool]:
    """The broker held back a statement until it had expired."""
    scene.fleet.generation += 1
    now_s = time.time()
    late = scene.fleet.envelope(scene.release(3), issued_at_s=now_s - 7200, expires_at_s=now_s - 3600)
    scene.fleet.send(late)
    return lambda: scene.serves(3)


def foreign_repository(scene: Scene) -> Callable[[], bool]:
    """Network, broker and artifact server together: a repository of their own keys, valid in itself, and a desired
    state signed by the key that it names."""
    fleet = scene.fleet
    evil = make_fleet(scene.folder / "evil", FLEET)
    bundle = small_bundle(scene.folder / "evil-bundle", add=9.0)
    pack(bundle, scene.folder / "evil.edgeops")
    custom = TargetCustom(model=MODEL, version="9.0.0", number=90, profile=PROFILE, digest=bundle.digest)
    target = NewTarget(target_path(MODEL, "9.0.0", PROFILE), scene.folder / "evil.edgeops", custom)
    evil.publish([target])
    for _ in range(3):  # ahead of the honest one in every version
        evil.rotate(f"model-{MODEL}")
    for file in (scene.folder / "evil" / "repository").rglob("*"):
        if file.is_file() and not file.name.endswith("root.json"):
            path = file.relative_to(scene.folder / "evil" / "repository").as_posix()
            fleet.changed_paths[f"/{path}"] = file.read_bytes()
    fleet.generation += 1
    wish = Component(
        name=MODEL, kind=ComponentKind.MODEL, release="9.0.0", target=target.path, digest=bundle.digest
    )  # fmt: skip
    fleet.send(fleet.envelope(wish, signer=evil.desired_signer()))
    return lambda: scene.serves(9)


def exchanged_bundle(scene: Scene) -> Callable[[], bool]:
    """The artifact server gives another bundle of the same length under a released one's name."""
    wanted = scene.release(3)
    evil = small_bundle(scene.folder / "evil-bundle", add=9.0)
    pack(evil, scene.folder / "evil.edgeops")
    folder = scene.fleet.home / "repository" / "targets"
    (file,) = (folder / wanted.target).parent.glob("*.edgeops")
    data = (scene.folder / "evil.edgeops").read_bytes()
    assert len(data) == file.stat().st_size
    scene.fleet.changed_paths[f"/targets/{file.relative_to(folder).as_posix()}"] = data
    scene.fleet.desire(wanted)
    return lambda: scene.serves(9)


def rolled_back_metadata(scene: Scene) -> Callable[[], bool]:
    """The artifact server goes back to what it had before the newest releases."""
    folder = scene.fleet.home / "repository" / "metadata"
    old = (folder / "timestamp.json").read_bytes()
    scene.fleet.desire(scene.release(3))
    scene.fleet.wait_state(DeploymentState.CONFIRMED)
    newest = scene.trusted("timestamp")
    third = scene.release(4)
    scene.fleet.changed_paths["/metadata/timestamp.json"] = old
    scene.fleet.desire(third)
    return lambda: scene.trusted("timestamp") < newest


def expired_metadata(scene: Scene) -> Callable[[], bool]:
    """The artifact server holds back news: what it gives has expired."""
    wanted = scene.release(3)
    past = Publisher(scene.fleet.home, now=lambda: time.time() - 8 * 86400)
    past.rotate("model-adder")  # signs all that is newest, eight days ago
    scene.fleet.desire(wanted)
    return lambda: scene.serves(3)


def downgrade(scene: Scene) -> Callable[[], bool]:
    """Who has the key of desired state, and nothing more, wants an older release, with no word of a downgrade."""
    older, newer = scene.release(1), scene.release(3)
    scene.fleet.desire(newer)
    scene.fleet.wait_state(DeploymentState.CONFIRMED)
    scene.fleet.desire(older)
    return lambda: scene.serves(1)


def mislabelled_desired(scene: Scene) -> Callable[[], bool]:
    """Who can write the database shows people one release, and has the control plane sign the target of another."""
    real = scene.release(3)
    shown = Component(
        name=real.name, kind=real.kind, release="9.9.9", target=real.target, digest=real.digest
    )  # fmt: skip
    scene.fleet.desire(shown)
    return lambda: scene.serves(3)


def second_voice(scene: Scene) -> Callable[[], bool]:
    """A second control plane with the same keys wants something else in the same generation."""
    scene.fleet.send(scene.fleet.envelope(scene.release(3)))
    return lambda: scene.serves(3)


def impostor_server(scene: Scene) -> Callable[[], bool]:
    """Somebody on the network answers in the artifact server's place, with a certificate of a CA of their own."""
    fleet = scene.fleet
    fleet.stop_artifacts()
    own = FleetAuthority.create(scene.folder / "own-ca", FLEET)
    honest, fleet.server_pem, fleet.server_key = fleet.server_pem, *own.issue_server(["127.0.0.1"])
    wanted = scene.release(3)
    fleet.start_artifacts()
    fleet.server_pem = honest
    fleet.requests.clear()
    fleet.desire(wanted)
    return lambda: bool(fleet.requests)


def forge(scene: Scene, publisher: Publisher, role: str) -> Component:
    """Sign release 9.0.0 of the model into a role's bins, with the keys of a publisher's home; return its wish."""
    bundle = small_bundle(scene.folder / "evil-bundle", add=9.0)
    pack(bundle, scene.folder / "evil.edgeops")
    custom = TargetCustom(model=MODEL, version="9.0.0", number=90, profile=PROFILE, digest=bundle.digest)
    target = NewTarget(target_path(MODEL, "9.0.0", PROFILE), scene.folder / "evil.edgeops", custom)
    with publisher.changing():
        edition = publisher._edition()
        edition.add(role, [publisher._store(target)])
        publisher._repository.commit(edition.sealed())
    return Component(name=MODEL, kind=ComponentKind.MODEL, release="9.0.0", target=target.path, digest=bundle.digest)


def another_models_key(scene: Scene) -> Callable[[], bool]:
    """Who may publish another model releases this one, and has what wants it signed."""
    fleet = scene.fleet
    file = scene.folder / "other.edgeops"
    file.write_bytes(b"another model")
    custom = TargetCustom(model="other", version="1.0.0", number=1, profile=PROFILE, digest="sha256:0")
    fleet.publisher.publish([NewTarget(target_path("other", "1.0.0", PROFILE), file, custom)])
    fleet.desire(forge(scene, fleet.publisher, "other"))
    return lambda: scene.serves(9)


def revoked_key(scene: Scene) -> Callable[[], bool]:
    """A model's key was stolen and has been replaced; the thief has the artifact server, and signs on."""
    fleet, copy = scene.fleet, scene.folder / "stolen"
    shutil.copytree(fleet.home, copy)
    fleet.publisher.rotate(f"model-{MODEL}")
    wish = forge(scene, Publisher(copy), MODEL)
    for file in (copy / "repository").rglob("*"):
        honest = fleet.home / file.relative_to(copy)
        if file.is_file() and (not honest.exists() or f"-{MODEL}" in file.name):
            fleet.changed_paths[f"/{file.relative_to(copy / 'repository').as_posix()}"] = file.read_bytes()
    fleet.desire(wish)
    return lambda: scene.serves(9)


def mixed_metadata(scene: Scene) -> Callable[[], bool]:
    """The artifact server gives, under the names of a role's newest metadata, what that role said before: a release
    that it does not like was never there."""
    folder = scene.fleet.home / "repository" / "metadata"
    before = set(folder.iterdir())
    wanted = scene.release(3)
    for file in set(folder.iterdir()) - before:
        number, _, name = file.name.partition(".")
        if name.startswith("bins-"):
            older = folder / f"{int(number) - 1}.{name}"
            scene.fleet.changed_paths[f"/metadata/{file.name}"] = older.read_bytes()
    scene.fleet.desire(wanted)
    return lambda: scene.refused("E-TRUST-TARGET")


def oversized_metadata(scene: Scene) -> Callable[[], bool]:
    """The artifact server makes a device load and keep far more than there is to say."""
    wanted = scene.release(3)
    honest = (scene.fleet.home / "repository" / "metadata" / "timestamp.json").read_bytes()
    scene.fleet.changed_paths["/metadata/timestamp.json"] = honest + b" " * (8 << 20)
    scene.fleet.desire(wanted)
    kept = scene.folder / "device" / "trust" / "timestamp.json"
    return lambda: kept.stat().st_size > 8 << 20


ATTACKS = {
    "forged desired state": Attack(forged_desired, "E-TRUST-SIGNATURE", "statement_signatures", full=False),
    "forged command": Attack(forged_command, "E-TRUST-SIGNATURE", "statement_signatures"),
    "diverted desired state": Attack(diverted_desired, "E-TRUST-DEVICE", "addressee"),
    "repeated desired state": Attack(repeated_desired, "E-TRUST-REPLAY", "generation"),
    "late desired state": Attack(late_desired, "E-TRUST-EXPIRED", "statement_expiry"),
    "foreign repository": Attack(foreign_repository, "E-TRUST-METADATA", "metadata_signatures", full=False),
    "exchanged bundle": Attack(exchanged_bundle, "E-TRUST-TARGET", "target_bytes", full=False),
    "rolled back metadata": Attack(rolled_back_metadata, "E-TRUST-METADATA", "metadata_floor"),
    "expired metadata": Attack(expired_metadata, "E-TRUST-EXPIRED", "expiry"),
    "downgrade": Attack(downgrade, "E-TRUST-DOWNGRADE", "downgrade"),
    "mislabelled desired state": Attack(mislabelled_desired, "E-TRUST-TARGET", "agreement"),
    "second voice": Attack(second_voice, "E-TRUST-REPLAY", "kept_desired"),
    "another models key": Attack(another_models_key, "E-TRUST-TARGET", "delegated_paths"),
    "revoked key": Attack(revoked_key, "E-TRUST-METADATA", "metadata_signatures"),
    "mixed metadata": Attack(mixed_metadata, "E-TRUST-METADATA", "snapshots_word"),
    "oversized metadata": Attack(oversized_metadata, "E-WIRE-SIZE", "size_limits"),
    "impostor server": Attack(impostor_server, "E-NET-UNREACHABLE", "server_certificate"),
}
PARAMETERS = [
    pytest.param(name, marks=[pytest.mark.full] if attack.full else []) for name, attack in ATTACKS.items()
]  # fmt: skip


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    # A connection for each request: an impostor is met at once, not after an honest connection's end.
    monkeypatch.setattr(fake_fleet._Handler, "protocol_version", "HTTP/1.0")
    made = Scene(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_real_agent_withstands_the_attack(scene: Scene, name: str):
    """It says why, and serves what it served."""
    attack = ATTACKS[name]
    scene.begin(None)
    has_succeeded = attack.act(scene)
    wait_for(lambda: scene.refused(attack.code), f"{attack.code} was not told")
    assert not has_succeeded()


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_attack_succeeds_without_the_one_check(scene: Scene, name: str):
    """The negative control: what stops it is that check, and not an accident of the scene."""
    attack = ATTACKS[name]
    scene.begin(attack.without)
    has_succeeded = attack.act(scene)
    wait_for(has_succeeded, f"it did not succeed without {attack.without}")


def enrolled_by_an_impostor(folder: Path) -> tuple[bool, str]:
    """Start a device whose token is honest, and whose server's address leads to somebody else with a fleet of their
    own; return whether it joined that one, and what it said."""
    honest, impostor = FakeFleet(folder / "honest"), FakeFleet(folder / "impostor")
    try:
        agent = Agent(honest, folder / "device")
        agent._token.write_text(honest.token(server=impostor._bootstrap.url))
        agent.start_unwatched()
        assert agent.process is not None
        process = agent.process
        wait_for(lambda: agent.facts() or process.poll() is not None, "it neither starts nor ends")
        joined = DEVICE in impostor.certificates
        agent.stop()
        return joined, agent.log.read_text()
    finally:
        honest.stop()
        impostor.stop()


@pytest.mark.full
def test_a_real_device_takes_no_impostor_for_its_first_trust(tmp_path: Path):
    joined, said = enrolled_by_an_impostor(tmp_path)
    assert not joined
    assert "E-TRUST-ROOT" in said
    assert not (tmp_path / "device" / "identity").exists()


@pytest.mark.full
def test_without_the_tokens_pins_it_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control."""
    monkeypatch.setenv("PYTHONPATH", str(WEAKENED))
    monkeypatch.setenv("EDGEOPS_TEST_WITHOUT", "token_pins")
    assert enrolled_by_an_impostor(tmp_path)[0]


@pytest.mark.full
def test_a_real_device_goes_on_after_a_stolen_online_key_was_replaced(scene: Scene):
    """Its thief pushed versions far ahead, so that all honest ones look rolled back."""
    scene.begin(None)
    home, copy = scene.fleet.home, scene.folder / "stolen"
    shutil.copytree(home, copy)
    thief = Publisher(copy)
    for _ in range(20):
        with thief.changing():
            edition = thief._edition()
            edition.touch("timestamp")
            thief._repository.commit(edition.sealed())
    timestamp = (copy / "repository" / "metadata" / "timestamp.json").read_bytes()
    scene.fleet.changed_paths["/metadata/timestamp.json"] = timestamp
    wanted = scene.release(3)
    scene.fleet.desire(wanted)
    pushed = json.loads(timestamp)["signed"]["version"]
    wait_for(lambda: scene.trusted("timestamp") == pushed, "the device did not see what the thief signed")
    # Control: with the honest server back, honest metadata is refused as a rollback until the key is replaced.
    scene.fleet.changed_paths.clear()
    scene.fleet.desire(wanted)
    wait_for(lambda: scene.refused("E-TRUST-METADATA"), "it was no attack")
    scene.fleet.publisher.rotate("timestamp")
    scene.fleet.desire(wanted)
    scene.fleet.wait_state(DeploymentState.CONFIRMED)
    assert scene.serves(3)


def test_the_one_check_that_is_missing_is_the_only_thing_that_is_missing(tmp_path: Path):
    """A name that is no check stops the process: no control passes because nothing was taken away."""
    environment = {**os.environ, "PYTHONPATH": str(WEAKENED), "EDGEOPS_TEST_WITHOUT": "no such check"}
    done = subprocess.run([sys.executable, "-c", ""], env=environment, capture_output=True)
    assert b"no such check" in done.stderr
    written = (WEAKENED / "sitecustomize.py").read_text()
    assert [attack.without for attack in ATTACKS.values() if f"\ndef {attack.without}()" not in written] == []
