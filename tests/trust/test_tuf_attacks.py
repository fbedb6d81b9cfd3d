"""What a lying repository, mirror or key holder can try against a device's TUF client, and what the device keeps."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from raw_repository import DAY, NOW, NOW_S, SIGNERS, URL, RawRepository, kept, refused, version
from tuf.api.metadata import Metadata, MetaFile, Root, Targets

from edgeops.contracts.errors import EdgeopsError
from edgeops.trust.time import Clock
from edgeops.trust.tuf_client import LIMITS, TufClient

OTHER, MORE = SIGNERS[6], SIGNERS[7]


@pytest.fixture
def repo() -> RawRepository:
    return RawRepository()


def refuse_refresh(repo: RawRepository, device: Path, code: str, keeps: tuple[str, ...] = ()) -> None:
    """The device refuses, and what it kept of all other roles than `keeps` is as before."""
    before = kept(device)
    with refused(code):
        repo.client(device).refresh()
    after = kept(device)
    for name in (set(before) | set(after)) - {f"{role}.json" for role in keeps}:
        assert after.get(name) == before.get(name), name


# First root


def test_only_the_root_that_the_token_names_is_taken(repo: RawRepository, tmp_path: Path):
    client = repo.client(tmp_path / "honest")
    client.refresh()
    stranger = RawRepository()
    stranger.signers["root"] = [OTHER]
    (tmp_path / "device").mkdir()
    with refused("E-TRUST-ROOT"):
        client.bootstrap(stranger.root_bytes, hashlib.sha256(b"another").hexdigest())
    other = repo.client.__get__(stranger)(tmp_path / "device")
    with refused("E-TRUST-ROOT"):
        other.bootstrap(repo.root_bytes + b" ", hashlib.sha256(repo.root_bytes + b" ").hexdigest())
    assert version(tmp_path / "device", "root") == 1


def test_the_same_first_root_again_keeps_a_newer_one(repo: RawRepository, tmp_path: Path):
    """An enrolment that was cut and starts again does not roll the root back."""
    repo.client(tmp_path / "d").refresh()
    repo.next_root()
    repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", "root") == 2
    repo.client(tmp_path / "d")
    assert version(tmp_path / "d", "root") == 2


@pytest.mark.parametrize("damage", [b"", b"{}", b"\0" * 100, b"[" * 100_000])
def test_a_root_that_is_none_is_refused_although_the_token_names_it(repo: RawRepository, tmp_path: Path, damage: bytes):
    with refused("E-TRUST-ROOT"):
        repo.client(tmp_path / "d", root=damage)
    assert kept(tmp_path / "d") == {}


def test_a_root_not_signed_by_itself_is_refused(tmp_path: Path):
    repo = RawRepository()
    repo.signers["root"] = [OTHER]
    repo.publish_root()
    with refused("E-TRUST-ROOT"):
        repo.client(tmp_path / "d", root=repo.files["1.root.json"])


def test_without_a_first_root_nothing_is_asked(repo: RawRepository, tmp_path: Path):
    client = repo.client(tmp_path / "d")
    for name in ("root.json", "first-root"):
        (tmp_path / "d" / name).unlink()
    with refused("E-TRUST-ROOT"):
        client.refresh()
    assert repo.fetcher.asked == []


DAMAGES = [None, b"", b"\0" * 500, b"{", b'{"signatures": [], "signed": {"_type": "root", "version": 99}}']


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_root_is_fetched_again_from_the_one_that_the_token_named(
    repo: RawRepository, tmp_path: Path, damage: bytes | None
):
    """Else the device could be told nothing any more. The way to the newest root is walked as after enrolment."""
    repo.next_root()
    repo.client(tmp_path / "d", root=repo.files["2.root.json"]).refresh()
    repo.rotate("root", OTHER)
    repo.signers["root"] = [SIGNERS[0], OTHER]
    repo.next_root()
    client = repo.client(tmp_path / "d", root=repo.files["2.root.json"])
    client.refresh()
    root = tmp_path / "d" / "root.json"
    whole = root.read_bytes()
    assert version(tmp_path / "d", "root") == 3
    root.write_bytes(damage) if damage is not None else root.unlink()
    repo.fetcher.asked.clear()
    client.refresh()
    assert root.read_bytes() == whole
    assert repo.fetcher.asked[:4] == ["1.root.json", "2.root.json", "3.root.json", "4.root.json"]


@pytest.mark.parametrize("looks", [True, False])
def test_no_stranger_becomes_the_trust_of_a_device_whose_root_is_damaged(
    repo: RawRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: bool
):
    """Negative control: if the hash were not held against what comes, the first server would be believed."""
    repo.client(tmp_path / "d").refresh()
    stranger = RawRepository()
    stranger.signers = {role: [OTHER] for role in stranger.signers}
    for role in stranger.signers:
        stranger.rotate(role, OTHER)
    stranger.publish_root()
    stranger.publish("targets")
    before = kept(tmp_path / "d")
    (tmp_path / "d" / "root.json").write_bytes(b"")
    for name in ("timestamp.json", "snapshot.json", "targets.json"):
        (tmp_path / "d" / name).unlink()
    repo.files.clear()
    repo.files |= stranger.files
    if not looks:
        hashed = hashlib.sha256(repo.files["1.root.json"]).hexdigest()
        (tmp_path / "d" / "first-root").write_text(hashed)
    client = TufClient(tmp_path / "d", URL, repo.fetcher, Clock(tmp_path / "floor", system=lambda: NOW_S, build_s=0))
    if looks:
        with refused("E-TRUST-METADATA"):
            client.refresh()
        assert kept(tmp_path / "d") == {"root.json": b""}
    else:
        client.refresh()
        assert kept(tmp_path / "d")["root.json"] != before["root.json"]


# Keys and thresholds


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_metadata_signed_by_an_unknown_key_changes_nothing(repo: RawRepository, tmp_path: Path, role: str):
    repo.client(tmp_path / "d").refresh()
    repo.signers[role] = [OTHER]
    repo.roles["targets"].version += 1
    repo.publish("targets")
    newer = {"timestamp": (), "snapshot": ("timestamp",), "targets": ("timestamp", "snapshot")}[role]
    refuse_refresh(repo, tmp_path / "d", "E-TRUST-METADATA", keeps=newer)


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
@pytest.mark.parametrize("signatures", ["none", "broken", "no keyid"])
def test_unsigned_and_broken_signatures_are_refused(repo: RawRepository, tmp_path: Path, role: str, signatures: str):
    repo.client(tmp_path / "d").refresh()
    repo.root.version += role == "root"
    repo.publish_root()
    repo.roles["targets"].version += 1
    repo.publish("targets")
    name = {"timestamp": "timestamp.json", "root": "2.root.json"}.get(role, f"2.{role}.json")
    document = json.loads(repo.files[name])
    if signatures == "none":
        document["signatures"] = []
    elif signatures == "broken":
        document["signatures"][0]["sig"] = "00" * 64
    else:
        document["signatures"][0]["keyid"] = ""
    repo.files[name] = json.dumps(document).encode()
    refuse_refresh(repo, tmp_path / "d", "E-TRUST-METADATA", keeps=("timestamp", "snapshot", "targets"))
    assert version(tmp_path / "d", role) == 1


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_threshold_is_not_met_by_one_key_twice(repo: RawRepository, tmp_path: Path, role: str):
    """One signature listed twice, one key under two names, one signer twice: never two of two."""
    repo.client(tmp_path / "d").refresh()
    repo.root.add_key(MORE.public_key, role)
    repo.root.roles[role].threshold = 2
    repo.next_root()
    repo.roles["targets"].version += 1
    repo.signers[role] = [repo.signers[role][0]] * 2
    repo.publish("targets")
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", role) == 1
    name = "timestamp.json" if role == "timestamp" else f"2.{role}.json"
    document = json.loads(repo.files[name])
    document["signatures"].append(dict(document["signatures"][0]))
    repo.files[name] = json.dumps(document).encode()
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", role) == 1
    # Control: two different keys are two.
    repo.signers[role] = [repo.signers[role][0], MORE]
    repo.roles["targets"].version += 1
    repo.publish("targets")
    repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", role) == {"timestamp": 3, "snapshot": 3, "targets": 3}[role]


def test_one_key_under_two_key_ids_counts_once(repo: RawRepository, tmp_path: Path):
    """A root that lists a key again under another id is itself a lie: the id must be worth nothing."""
    repo.client(tmp_path / "d").refresh()
    keyid = repo.root.roles["snapshot"].keyids[0]
    twin = copy.deepcopy(repo.root.keys[keyid])
    twin.keyid = "f" * 64
    repo.root.keys[twin.keyid] = twin
    repo.root.roles["snapshot"].keyids.append(twin.keyid)
    repo.root.roles["snapshot"].threshold = 2
    repo.next_root()
    repo.publish_snapshot()
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", "snapshot") == 1


# Roots


def test_root_rotations_need_the_old_and_the_new_keys(repo: RawRepository, tmp_path: Path):
    old = repo.signers["root"][0]
    for signers in ([OTHER], [old]):
        repo.rotate("root", OTHER)
        repo.signers["root"] = signers
        repo.root.version = 2
        repo.publish_root()
        with refused("E-TRUST-METADATA"):
            repo.client(tmp_path / "d").refresh()
        assert version(tmp_path / "d", "root") == 1
    repo.signers["root"] = [old, OTHER]
    repo.publish_root()
    repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", "root") == 2


def test_many_rotations_in_one_refresh(repo: RawRepository, tmp_path: Path):
    for index in range(40):
        new = SIGNERS[index % 12]
        old = repo.signers["root"][0]
        repo.rotate("root", new)
        repo.signers["root"] = [old, new]
        repo.next_root()
        repo.signers["root"] = [new]
    repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", "root") == 41


@pytest.mark.parametrize("lie", [1, 3, 1000])
def test_a_root_of_another_version_than_its_name_is_refused(repo: RawRepository, tmp_path: Path, lie: int):
    repo.root.version = lie
    repo.files["2.root.json"] = repo.signed("root", repo.root)
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", "root") == 1


def test_endless_roots_end_at_the_limit(repo: RawRepository, tmp_path: Path):
    for _ in range(12):
        repo.next_root()
    repo.client(tmp_path / "d", limits=LIMITS._replace(roots=5)).refresh()
    assert version(tmp_path / "d", "root") == 6


def test_a_newer_root_is_kept_when_the_rest_fails(repo: RawRepository, tmp_path: Path):
    """A revoked key stays revoked although the refresh in which that was learnt failed."""
    repo.client(tmp_path / "d").refresh()
    old = repo.signers["timestamp"][0]
    repo.rotate("timestamp", OTHER)
    repo.next_root()
    repo.signers["timestamp"] = [old]
    repo.publish_timestamp()
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", "root") == 2
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").desired_keys()


# Rollback


def test_rollback_of_each_role_is_refused(repo: RawRepository, tmp_path: Path):
    first = dict(repo.files)
    repo.roles["targets"].version += 1
    repo.publish("targets")
    repo.client(tmp_path / "d").refresh()
    before = kept(tmp_path / "d")

    repo.files["timestamp.json"] = first["timestamp.json"]
    refuse_refresh(repo, tmp_path / "d", "E-TRUST-METADATA")

    # A timestamp key holder names an older snapshot.
    repo.timestamp.version = 5
    repo.timestamp.snapshot_meta = MetaFile(1)
    repo.files["timestamp.json"] = repo.signed("timestamp", repo.timestamp)
    refuse_refresh(repo, tmp_path / "d", "E-TRUST-METADATA")

    # A snapshot key holder names an older targets.
    repo.snapshot.version = 7
    repo.snapshot.meta["targets.json"] = MetaFile(1)
    repo.publish_snapshot()
    refuse_refresh(repo, tmp_path / "d", "E-TRUST-METADATA", keeps=("timestamp",))
    assert kept(tmp_path / "d")["targets.json"] == before["targets.json"]
    assert kept(tmp_path / "d")["snapshot.json"] == before["snapshot.json"]


def test_a_snapshot_that_forgets_a_role_is_refused(repo: RawRepository, tmp_path: Path):
    repo.delegate("targets", "a", OTHER)
    repo.publish("a", "targets")
    repo.client(tmp_path / "d").refresh()
    del repo.snapshot.meta["a.json"]
    repo.publish_snapshot()
    refuse_refresh(repo, tmp_path / "d", "E-TRUST-METADATA", keeps=("timestamp",))


def test_rollback_of_a_delegated_role_is_refused(repo: RawRepository, tmp_path: Path):
    repo.delegate("targets", "a", OTHER)
    repo.add_target("a", "file")
    repo.publish("a", "targets")
    old = repo.files["1.a.json"]
    repo.roles["a"].version = 2
    repo.publish("a")
    client = repo.client(tmp_path / "d")
    client.refresh()
    client.find("file")
    repo.files["2.a.json"] = old
    (tmp_path / "d" / "a.json").write_bytes(old)
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").find("file")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_fast_forward_is_recovered_by_new_keys(repo: RawRepository, tmp_path: Path, role: str):
    """A stolen key pushed a version far ahead; once the key is replaced, normal versions count again."""
    repo.timestamp.version = 10**9 if role == "timestamp" else repo.timestamp.version
    repo.snapshot.version = 10**9 if role == "snapshot" else repo.snapshot.version
    if role == "targets":
        repo.roles["targets"].version = 10**9
        repo.publish("targets")
    else:
        repo.publish_snapshot()
    repo.client(tmp_path / "d").refresh()
    assert (version(tmp_path / "d", role) or 0) >= 10**9
    # Control: without new keys the device rightly refuses to go back.
    repo.roles["targets"].version = repo.timestamp.version = repo.snapshot.version = 5
    repo.publish("targets")
    refuse_refresh(repo, tmp_path / "d", "E-TRUST-METADATA", keeps=("timestamp",))
    repo.rotate("snapshot", OTHER)
    repo.rotate("timestamp", MORE)
    repo.next_root()
    repo.publish("targets")
    repo.client(tmp_path / "d").refresh()
    assert (version(tmp_path / "d", role) or 0) < 100


# Freeze and expiry


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_expired_metadata_allows_no_change(repo: RawRepository, tmp_path: Path, role: str):
    repo.client(tmp_path / "d").refresh()
    old = NOW - DAY
    signed = {"root": repo.root, "timestamp": repo.timestamp, "snapshot": repo.snapshot, **repo.roles}[role]
    signed.expires = old
    if role == "root":
        repo.next_root()
    repo.roles["targets"].version += 1
    repo.publish("targets")
    with refused("E-TRUST-EXPIRED"):
        repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", "targets") == 1
    # Control: one that is signed anew is taken.
    signed.expires = NOW + DAY
    if role == "root":
        repo.next_root()
    repo.roles["targets"].version += 1
    repo.publish("targets")
    repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", "targets") == 3


def test_a_freeze_shows_when_the_timestamp_expires(repo: RawRepository, tmp_path: Path):
    """A mirror that serves the same old files for ever is noticed without any news."""
    repo.client(tmp_path / "d").refresh()
    client = repo.client(tmp_path / "d", now_s=NOW_S + 29 * 86400)
    client.refresh()
    assert client.expires_s() == NOW_S + 30 * 86400
    late = repo.client(tmp_path / "d", now_s=NOW_S + 31 * 86400)
    with refused("E-TRUST-EXPIRED"):
        late.refresh()
    assert late.expires_s() is None
    assert late.last_fresh_s == NOW_S + 29 * 86400
    with refused("E-TRUST-EXPIRED"):
        late.find("file")


def test_metadata_expires_in_a_process_that_runs_for_weeks(repo: RawRepository, tmp_path: Path):
    repo.add_target("targets", "file")
    repo.roles["targets"].version += 1
    repo.publish("targets")
    client = repo.client(tmp_path / "d")
    client.refresh()
    client.find("file")
    client._clock._system = lambda: NOW_S + 31 * 86400
    for use in (lambda: client.find("file"), client.desired_keys):
        with refused("E-TRUST-EXPIRED"):
            use()


def test_expired_cache_is_the_floor_for_newer_metadata(repo: RawRepository, tmp_path: Path):
    """Weeks offline: what is cached has expired, and yet nothing older than it is taken."""
    first = dict(repo.files)
    repo.publish_snapshot()
    repo.client(tmp_path / "d").refresh()
    later_s = NOW_S + 60 * 86400
    repo.root.expires = NOW + 90 * DAY
    repo.next_root()
    repo.files.update({"timestamp.json": first["timestamp.json"]})
    repo.timestamp.version, repo.timestamp.expires = 1, NOW + 90 * DAY
    repo.files["timestamp.json"] = repo.signed("timestamp", repo.timestamp)
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d", now_s=later_s).refresh()
    for signed in (repo.snapshot, repo.roles["targets"]):
        signed.expires = NOW + 90 * DAY
    repo.timestamp.version = 5
    repo.roles["targets"].version += 1
    repo.publish("targets")
    repo.client(tmp_path / "d", now_s=later_s).refresh()
    assert version(tmp_path / "d", "timestamp") == 6


@pytest.mark.parametrize("now_s", [0.0, 4.1e9, 1e13])
def test_a_wrong_clock_blocks_and_heals(repo: RawRepository, tmp_path: Path, now_s: float):
    """1970 and the far future: nothing is damaged by it, and with the right time all goes on."""
    client = repo.client(tmp_path / "d", now_s=now_s)
    if now_s == 0.0:
        client.refresh()
    else:
        with refused("E-TRUST-EXPIRED"):
            client.refresh()
    repo.client(tmp_path / "d").refresh()


# Mixed and wrong content


@pytest.mark.parametrize("hashes", [False, True])
def test_mix_and_match_is_refused(repo: RawRepository, tmp_path: Path, hashes: bool):
    """Each file is validly signed, but they were never published together."""
    repo.hashes = hashes
    repo.publish("targets")
    repo.client(tmp_path / "d").refresh()
    repo.roles["targets"].version += 1
    repo.publish("targets")
    older = repo.files["2.targets.json"]
    repo.roles["targets"].version += 1
    repo.publish("targets")
    repo.files["3.targets.json"] = older
    refuse_refresh(repo, tmp_path / "d", "E-TRUST-METADATA", keeps=("timestamp", "snapshot"))
    snapshots = [repo.files[f"{repo.snapshot.version - back}.snapshot.json"] for back in (0, 1)]
    repo.roles["targets"].version += 1
    repo.publish("targets")
    repo.files[f"{repo.snapshot.version}.snapshot.json"] = snapshots[1]
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", "targets") == 1


def test_metadata_of_another_hash_is_refused(repo: RawRepository, tmp_path: Path):
    repo.hashes = True
    repo.roles["targets"].version += 1
    repo.add_target("targets", "good")
    repo.publish("targets")
    del repo.roles["targets"].targets["good"]
    repo.add_target("targets", "evil")
    repo.files["2.targets.json"] = repo.signed("targets", repo.roles["targets"])
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", "targets") is None


@pytest.mark.parametrize("as_role", ["timestamp", "snapshot", "targets"])
def test_metadata_of_another_type_is_refused(repo: RawRepository, tmp_path: Path, as_role: str):
    """A valid signature over one kind of metadata does not make it another kind."""
    for role in ("timestamp", "snapshot", "targets"):
        repo.rotate(role, OTHER)
    repo.next_root()
    repo.publish("targets")
    name = "timestamp.json" if as_role == "timestamp" else f"{repo.snapshot.version}.snapshot.json"
    name = "1.targets.json" if as_role == "targets" else name
    wrong = repo.timestamp if as_role != "timestamp" else repo.snapshot
    wrong.version = 1 if as_role == "targets" else wrong.version
    repo.files[name] = repo.signed("targets", wrong)
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", "targets") is None


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json"])
@pytest.mark.parametrize("content", [None, b"", b"null", b"[1]", b"{" * 16_000, b"\xff\xfe", b'{"signed": {}}'])
def test_missing_and_malformed_metadata_is_an_error_with_a_code(
    repo: RawRepository, tmp_path: Path, name: str, content: bytes | None
):
    if content is None:
        del repo.files[name]
    else:
        repo.files[name] = content
    with refused("E-NET-RESPONSE" if content is None else "E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()


@pytest.mark.parametrize("field", ["version", "expires", "spec_version", "_type"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "x", "9999999999-01-01T00:00:00Z", [], {}])
def test_odd_values_are_an_error_with_a_code(repo: RawRepository, tmp_path: Path, field: str, value: object):
    document = json.loads(repo.files["1.targets.json"])
    document["signed"][field] = value
    repo.files["1.targets.json"] = json.dumps(document).encode()
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()


def test_unknown_fields_are_signed_and_kept(repo: RawRepository, tmp_path: Path):
    repo.root.unrecognized_fields["x-new"] = {"a": [1]}
    repo.next_root()
    repo.client(tmp_path / "d").refresh()
    assert version(tmp_path / "d", "root") == 2
    document = json.loads(repo.files["2.root.json"])
    document["signed"]["version"], document["signed"]["x-new"] = 3, {"a": [2]}
    repo.files["3.root.json"] = json.dumps(document).encode()
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()


def test_damaged_cache_is_fetched_again(repo: RawRepository, tmp_path: Path):
    """Every cached file truncated or zeroed: the device recovers from the server, its root apart."""
    repo.delegate("targets", "a", OTHER)
    repo.add_target("a", "file")
    repo.roles["targets"].version += 1
    repo.publish("a", "targets")
    client = repo.client(tmp_path / "d")
    client.refresh()
    client.find("file")
    whole = kept(tmp_path / "d")
    for name in ("timestamp.json", "snapshot.json", "targets.json", "a.json"):
        for damage in (b"", b"\0" * 500, whole[name][: len(whole[name]) // 2]):
            (tmp_path / "d" / name).write_bytes(damage)
            again = repo.client(tmp_path / "d")
            again.refresh()
            assert again.find("file").length == 7
            assert kept(tmp_path / "d") == whole


def test_the_cache_is_not_trusted_for_being_there(repo: RawRepository, tmp_path: Path):
    """Whoever can write the cache, but has no key, gets nothing into it that counts."""
    client = repo.client(tmp_path / "d")
    client.refresh()
    forged: Metadata = Metadata.from_bytes((tmp_path / "d" / "targets.json").read_bytes())
    assert isinstance(forged.signed, Targets)
    repo.add_target("targets", "evil")
    forged.signed.targets.update(repo.roles["targets"].targets)
    (tmp_path / "d" / "targets.json").write_bytes(forged.to_bytes())
    del repo.files["1.targets.json"]
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").find("evil")
    with refused("E-NET-RESPONSE"):
        repo.client(tmp_path / "d").refresh()


# Sizes and time


@pytest.mark.parametrize(
    ("name", "limit"),
    [("2.root.json", "root"), ("timestamp.json", "timestamp"), ("1.snapshot.json", "snapshot"),
     ("1.targets.json", "targets")],
)  # fmt: skip
def test_endless_data_is_cut_at_the_limit(repo: RawRepository, tmp_path: Path, name: str, limit: str):
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 65536
            yield b" " * 65536

    real = repo.fetcher._fetch
    repo.fetcher._fetch = lambda url: endless() if url.endswith(f"/{name}") else real(url)  # type: ignore[method-assign]
    with refused("E-WIRE-SIZE"):
        repo.client(tmp_path / "d").refresh()
    assert taken <= getattr(LIMITS, limit) + 2 * 65536


def test_a_length_in_signed_metadata_is_the_limit(repo: RawRepository, tmp_path: Path):
    repo.hashes = True
    repo.publish("targets")
    repo.files["1.targets.json"] += b" " * 1000
    with refused("E-WIRE-SIZE"):
        repo.client(tmp_path / "d").refresh()


def test_slow_data_is_given_up(repo: RawRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server that drips a byte now and then holds a device for a bounded time only."""
    clock_s = [0.0]
    monkeypatch.setattr("edgeops.trust.tuf_client.time.monotonic", lambda: clock_s[0])

    def drip() -> Iterator[bytes]:
        while True:
            clock_s[0] += 1
            yield b" "

    real = repo.fetcher._fetch
    slow: Callable[[str], Iterator[bytes]] = lambda url: drip() if url.endswith("timestamp.json") else real(url)  # noqa: E731
    repo.fetcher._fetch = slow  # type: ignore[method-assign]
    with refused("E-NET-RESPONSE"):
        repo.client(tmp_path / "d").refresh()
    assert clock_s[0] < 2 * LIMITS.grace_s


def test_network_errors_keep_their_code(repo: RawRepository, tmp_path: Path):
    for error, code in (
        (EdgeopsError("E-NET-RESPONSE", "captive portal"), "E-NET-RESPONSE"),
        (ConnectionResetError(), "E-NET-UNREACHABLE"),
    ):
        repo.fetcher._fetch = lambda url, error=error: (_ for _ in ()).throw(error)  # type: ignore[method-assign]
        with refused(code):
            repo.client(tmp_path / "d").refresh()


def test_a_root_of_the_right_type_only(repo: RawRepository, tmp_path: Path):
    assert isinstance(Metadata.from_bytes(repo.root_bytes).signed, Root)
    repo.files["2.root.json"] = repo.files["1.targets.json"]
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()
