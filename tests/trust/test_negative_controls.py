"""Each attack succeeds once the one check that stops it is removed: what is tested is the check, not an accident."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fleet_device import bundle_target, device
from raw_repository import DAY, NOW, NOW_S, SIGNERS, RawRepository, refused, version
from tuf.api.metadata import DelegatedRole, Metadata, MetaFile, Root, Signed, Targets, Timestamp, VerificationResult

from edgeops.contracts.deployment import DESIRED_TYPE, Desired
from edgeops.contracts.wire import encode
from edgeops.trust import authority, certificates, desired, envelopes, repository, tuf_client
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.device import DeviceIdentity
from edgeops.trust.founding import make_fleet
from edgeops.trust.publisher import NewTarget, Publisher
from edgeops.trust.time import Clock
from edgeops.trust.tuf_client import TufClient

STRANGER = SIGNERS[6]


@pytest.fixture
def repo() -> RawRepository:
    return RawRepository()


def test_without_signature_checks_a_strangers_targets_would_be_taken(
    repo: RawRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    repo.signers["targets"] = [STRANGER]
    repo.add_target("targets", "evil")
    repo.roles["targets"].version += 1
    repo.publish("targets")
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()
    monkeypatch.setattr(Root, "verify_delegate", lambda *_: None)
    client = repo.client(tmp_path / "d")
    client.refresh()
    assert client.find("evil")


def test_without_the_delegators_keys_a_strangers_delegated_role_would_be_taken(
    repo: RawRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    repo.delegate("targets", "a", SIGNERS[4])
    repo.signers["a"] = [STRANGER]
    repo.add_target("a", "evil")
    repo.roles["targets"].version += 1
    repo.publish("a", "targets")
    client = repo.client(tmp_path / "d")
    client.refresh()
    with refused("E-TRUST-METADATA"):
        client.find("evil")
    monkeypatch.setattr(Targets, "verify_delegate", lambda *_: None)
    assert client.find("evil")


def test_without_expiry_checks_a_freeze_would_go_unnoticed(
    repo: RawRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    late_s = NOW_S + 31 * 86400
    repo.client(tmp_path / "d").refresh()
    with refused("E-TRUST-EXPIRED"):
        repo.client(tmp_path / "d", now_s=late_s).refresh()
    monkeypatch.setattr(Signed, "is_expired", lambda *_: False)
    repo.client(tmp_path / "d", now_s=late_s).refresh()


def test_without_the_cached_floor_a_rollback_would_be_taken(repo: RawRepository, tmp_path: Path):
    old = repo.files["timestamp.json"]
    repo.publish_snapshot()
    repo.client(tmp_path / "d").refresh()
    repo.files["timestamp.json"] = old
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()
    for name in ("timestamp.json", "snapshot.json"):
        (tmp_path / "d" / name).unlink()
    repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", "timestamp") == 1


def test_a_mix_is_taken_only_with_a_snapshot_that_names_it(repo: RawRepository, tmp_path: Path):
    older = repo.files["1.targets.json"]
    repo.roles["targets"].version += 1
    repo.publish("targets")
    repo.files["2.targets.json"] = older
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()
    # The one fact that the check compares, as a snapshot key holder would forge it.
    repo.snapshot.meta["targets.json"] = MetaFile(1)
    repo.files["1.targets.json"] = older
    repo.publish_snapshot()
    for name in ("snapshot.json", "targets.json"):
        (tmp_path / "d" / name).unlink(missing_ok=True)
    repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", "targets") == 1


def test_without_the_limit_endless_data_would_be_read_on(repo: RawRepository, tmp_path: Path):
    repo.files["timestamp.json"] += b" " * 20_000
    with refused("E-WIRE-SIZE"):
        repo.client(tmp_path / "d").refresh()
    limits = repo.client(tmp_path / "d")._limits._replace(timestamp=1 << 20)
    repo.client(tmp_path / "d", limits=limits).refresh()
    assert version(tmp_path / "d", "timestamp") == 1


def test_without_the_tokens_hash_an_impostors_root_would_be_taken(repo: RawRepository, tmp_path: Path):
    """The impostor's repository is whole and valid in itself: only the hash tells it apart."""
    impostor = RawRepository()
    impostor.rotate("root", STRANGER)
    impostor.publish_root()
    root = impostor.files["1.root.json"]
    (tmp_path / "d").mkdir()
    clock = Clock(tmp_path / "d" / "floor", system=lambda: NOW_S, build_s=0)
    client = TufClient(tmp_path / "d", "http://repository/metadata", impostor.fetcher, clock)
    with refused("E-TRUST-ROOT"):
        client.bootstrap(root, hashlib.sha256(repo.root_bytes).hexdigest())
    client.bootstrap(root, hashlib.sha256(root).hexdigest())
    client.refresh()
    assert version(tmp_path / "d", "root") == 1


WANTED = Desired(
    fleet="demo",
    connection="pi-1",
    unit="self",
    generation=7,
    issued_at_s=NOW_S - 9,
    expires_at_s=NOW_S + 9,
    components=(),
)


def test_without_the_signature_check_a_brokers_own_desired_state_would_be_taken(monkeypatch: pytest.MonkeyPatch):
    forged = envelopes.seal(encode(WANTED), DESIRED_TYPE, STRANGER)
    honest = SIGNERS[0].public_key

    def verify() -> Desired:
        return desired.verify(
            forged, keys={honest.keyid: honest}, fleet="demo", connection="pi-1", unit="self",
            floor_generation=7, now_s=NOW_S,
        )  # fmt: skip

    with refused("E-TRUST-SIGNATURE"):
        verify()
    monkeypatch.setattr(envelopes.Envelope, "verify", lambda *_: {})
    assert verify() == WANTED


def test_without_the_ca_check_a_foreign_certificate_would_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = FleetAuthority.create(tmp_path / "own", "demo")
    foreign = FleetAuthority.create(tmp_path / "foreign", "demo")
    identity = DeviceIdentity.create(tmp_path / "d")
    pem = foreign.issue_device(identity.csr_pem("pi-1"), "pi-1")
    with refused("E-TRUST-SIGNATURE"):
        identity.install(pem, own.ca_pem)
    monkeypatch.setattr(certificates, "check_issued_by", lambda *_: None)
    identity.install(pem, own.ca_pem)


def test_an_intact_repository_passes_all_checks(repo: RawRepository, tmp_path: Path):
    """The control of the controls: with nothing wrong, nothing is refused."""
    assert isinstance(repo.timestamp, Timestamp)
    assert repo.timestamp.expires > NOW + DAY
    client = repo.client(tmp_path / "d")
    client.refresh()
    client.refresh()


# The publisher, keys and delegations


def test_without_its_own_checks_the_publisher_would_sign_on_top_of_a_forgery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    publisher = make_fleet(tmp_path / "home", "demo")
    publisher.publish([bundle_target(tmp_path)])
    folder = tmp_path / "home" / "repository" / "metadata"
    newest = max(folder.glob("*.targets.json"), key=lambda path: int(path.name.partition(".")[0]))
    forged: Metadata = Metadata.from_bytes(newest.read_bytes())
    forged.signed.unrecognized_fields["x-evil"] = True
    newest.write_bytes(forged.to_bytes())
    with refused("E-TRUST-METADATA"):
        publisher.delegate("other")
    monkeypatch.setattr(repository, "_verify", lambda *_, **__: None)
    publisher.delegate("other")
    signed = max(folder.glob("*.targets.json"), key=lambda path: int(path.name.partition(".")[0])).read_bytes()
    assert b"x-evil" in signed


def test_without_the_threshold_one_key_would_be_enough(
    repo: RawRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    repo.root.add_key(STRANGER.public_key, "targets")
    repo.root.roles["targets"].threshold = 2
    repo.next_root()
    repo.add_target("targets", "by one")
    repo.roles["targets"].version += 1
    repo.publish("targets")
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()
    monkeypatch.setattr(VerificationResult, "verified", property(lambda self: bool(self.signed)))
    client = repo.client(tmp_path / "d")
    client.refresh()
    assert client.find("by one")


def test_without_the_paths_of_a_delegation_a_models_publisher_could_release_another(
    repo: RawRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    repo.delegate("targets", "model-a", SIGNERS[4], paths=("a/*/*",))
    repo.add_target("model-a", "b/1.0.0/pi.edgeops")
    repo.roles["targets"].version += 1
    repo.publish("model-a", "targets")
    client = repo.client(tmp_path / "d")
    client.refresh()
    with refused("E-TRUST-TARGET"):
        client.find("b/1.0.0/pi.edgeops")
    monkeypatch.setattr(DelegatedRole, "is_delegated_path", lambda *_: True)
    assert client.find("b/1.0.0/pi.edgeops")


def test_without_the_comparison_a_bundle_could_be_described_as_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    publisher = make_fleet(tmp_path / "home", "demo")
    good = bundle_target(tmp_path)
    assert good.custom is not None
    wrong = NewTarget("m/9.0.0/pi.edgeops", good.file, good.custom)
    publisher.publish([wrong])
    client = device(publisher, tmp_path / "d", tmp_path / "home" / "repository", now=time.time)
    client.refresh()
    with refused("E-TRUST-TARGET"):
        client.target(wrong.path)
    monkeypatch.setattr(tuf_client, "target_path", lambda *_: wrong.path)
    assert client.target(wrong.path).custom.version == "1.0.0"


@pytest.mark.parametrize("case", ["revoked", "delegated twice"])
def test_without_verifying_again_a_cached_role_would_go_on_being_believed(
    repo: RawRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
):
    old, new = SIGNERS[4], SIGNERS[5]
    repo.delegate("targets", "a", old, paths=("a/*",))
    repo.add_target("a", "a/file")
    repo.add_target("a", "b/file")
    repo.roles["targets"].version += 1
    repo.publish("a", "targets")
    client = repo.client(tmp_path / "d")
    client.refresh()
    assert client.find("a/file")
    if case == "revoked":
        repo.roles["targets"].revoke_key(old.public_key.keyid, "a")
        repo.roles["targets"].add_key(new.public_key, "a")
        path = "a/file"
    else:
        repo.delegate("targets", "b", SIGNERS[6], paths=("b/*",))
        repo.delegate("b", "a", new, paths=("b/*",))
        path = "b/file"
    repo.roles["targets"].version += 1
    repo.publish(*(["b"] if case != "revoked" else []), "targets")
    client.refresh()
    with refused("E-TRUST-METADATA"):
        client.find(path)
    verify = Targets.verify_delegate

    def forgetful(self: Targets, role: str, *rest: bytes) -> None:
        if role != "a":
            verify(self, role, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Targets, "verify_delegate", forgetful)
    assert client.find(path)


def test_without_a_passphrase_the_control_planes_machine_could_release(tmp_path: Path):
    for name, secret in (("encrypted", b"passphrase"), ("plain", None)):
        (tmp_path / name).mkdir()
        make_fleet(tmp_path / name / "home", "demo", secret=secret).publish([bundle_target(tmp_path / name)])
    thief = Publisher(tmp_path / "encrypted" / "home")
    with refused("E-TRUST-KEY"):
        thief.publish([bundle_target(tmp_path / "encrypted", version="2.0.0", number=2)])
    Publisher(tmp_path / "plain" / "home").publish([bundle_target(tmp_path / "plain", version="2.0.0", number=2)])


def test_without_the_two_kinds_of_names_a_device_could_be_the_control_plane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fleet = FleetAuthority.create(tmp_path / "ca", "demo")
    request = DeviceIdentity.create(tmp_path / "d").csr_pem("x")
    with refused("E-ENROLL"):
        fleet.issue_device(request, "edgeops-control")
    monkeypatch.setattr(authority, "CLIENT_PREFIX", "nobody-")
    assert certificates.common_name(fleet.issue_device(request, "edgeops-control")) == "edgeops-control"


def test_without_the_requests_own_signature_a_stolen_public_key_would_get_a_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fleet = FleetAuthority.create(tmp_path / "ca", "demo")
    victim = DeviceIdentity.create(tmp_path / "victim")
    der = bytearray(x509.load_pem_x509_csr(victim.csr_pem("pi-1")).public_bytes(Encoding.DER))
    der[-1] ^= 1  # whoever has no private key cannot sign
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    with refused("E-ENROLL"):
        fleet.issue_device(forged, "thief")

    class Believed:
        """A request whose signature nobody looks at."""

        is_signature_valid = True

        def public_key(self) -> object:
            return x509.load_pem_x509_csr(forged).public_key()

    monkeypatch.setattr(authority, "x509", SimpleNamespace(**{**vars(x509), "load_pem_x509_csr": lambda _: Believed()}))
    issued = fleet.issue_device(forged, "thief")
    assert certificates.public_key(issued).keyid == victim.signer.public_key.keyid
