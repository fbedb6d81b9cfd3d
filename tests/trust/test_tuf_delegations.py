"""Who may publish what: delegations of every shape, each verified against the role that delegates it now."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw_repository import DAY, NOW, NOW_S, SIGNERS, RawRepository, kept, refused, version
from tuf.api.metadata import DelegatedRole, Delegations, SuccinctRoles, Targets

from edgeops.trust.tuf_client import LIMITS

A, B, C = SIGNERS[4:7]


@pytest.fixture
def repo() -> RawRepository:
    return RawRepository()


def publish_all(repo: RawRepository) -> None:
    for role in repo.roles.values():
        role.version += 1
    repo.publish(*repo.roles)


def asked_after_top(repo: RawRepository) -> list[str]:
    names = [name.removesuffix(".json").split(".", 1)[-1] for name in repo.fetcher.asked]
    return [name for name in names if name not in ("root", "timestamp", "snapshot", "targets")]


@pytest.mark.parametrize(
    ("edges", "order"),
    [
        (["targets>a"], "a"),
        (["targets>a", "targets>b"], "ab"),
        (["targets>a", "targets>b", "b>c"], "abc"),
        (["targets>a", "targets>b", "a>c", "a>d"], "acdb"),
        (["targets>a", "targets>b", "a>c", "c>d"], "acdb"),
        (["targets>a", "targets>b", "a>c!", "a>d"], "ac"),
        (["targets>a", "targets>b", "a>c!", "c>d"], "acd"),
        (["targets>a!", "targets>b", "a>c", "c>d"], "acd"),
        (["targets>a", "targets>b", "b>c", "c>d", "d>b"], "abcd"),
        (["targets>a", "a>a"], "a"),
        (["targets>a", "targets>b", "b>c", "a>c"], "acb"),
        (["targets>a", "a>targets2", "targets2>b"], ["a", "targets2", "b"]),
    ],
)
def test_roles_are_searched_depth_first_in_order_of_trust(
    repo: RawRepository, tmp_path: Path, edges: list[str], order: str | list[str]
):
    for edge in edges:
        delegator, role = edge.rstrip("!").split(">")
        repo.roles.setdefault(delegator, Targets(expires=repo.expires))
        repo.delegate(delegator, role, A, terminating=edge.endswith("!"))
    repo.publish(*repo.roles)
    client = repo.client(tmp_path / "d")
    client.refresh()
    with refused("E-TRUST-TARGET"):
        client.find("missing")
    assert asked_after_top(repo) == list(order)


@pytest.mark.parametrize(
    ("path", "found", "order"),
    [
        ("top", True, ""),
        ("x.md", True, "a"),
        ("releases/x/one", True, "bc"),
        ("releases/z/one", False, "b"),
        ("releases/x/deep/one", False, ""),
        ("releases", False, ""),
    ],
)
def test_a_role_speaks_only_for_paths_that_every_delegator_gave_it(
    repo: RawRepository, tmp_path: Path, path: str, found: bool, order: str
):
    repo.delegate("targets", "a", A, paths=("*.doc", "*.md"))
    repo.delegate("targets", "b", B, paths=("releases/*/*",))
    repo.delegate("b", "c", C, paths=("releases/x/*",))
    repo.add_target("targets", "top")
    for role in "abc":
        for name in ("x.md", "releases/x/one", "releases/z/one", "releases/x/deep/one"):
            if (role, name) in (("a", "x.md"), ("c", "releases/x/one"), ("c", "releases/z/one")):
                repo.add_target(role, name)
    publish_all(repo)
    client = repo.client(tmp_path / "d")
    client.refresh()
    if found:
        assert client.find(path).path == path
    else:
        with refused("E-TRUST-TARGET"):
            client.find(path)
    assert asked_after_top(repo) == list(order)


def test_an_arbitrary_target_by_a_delegated_key_holder_is_not_found(repo: RawRepository, tmp_path: Path):
    """The holder of one model's key lists another model's file: nobody asks that role for it."""
    repo.delegate("targets", "model-a", A, paths=("a/*/*",))
    repo.delegate("targets", "model-b", B, paths=("b/*/*",))
    repo.add_target("model-a", "b/1.0.0/pi.edgeops", b"evil")
    repo.add_target("model-a", "a/1.0.0/pi.edgeops", b"good")
    publish_all(repo)
    client = repo.client(tmp_path / "d")
    client.refresh()
    with refused("E-TRUST-TARGET"):
        client.find("b/1.0.0/pi.edgeops")
    assert client.find("a/1.0.0/pi.edgeops").length == 4


def test_cached_delegated_metadata_is_verified_again_when_its_delegator_changed(repo: RawRepository, tmp_path: Path):
    """A revoked key's metadata lies in the cache, whole and of the right version; it no longer counts."""
    repo.delegate("targets", "a", A)
    repo.add_target("a", "file")
    publish_all(repo)
    client = repo.client(tmp_path / "d")
    client.refresh()
    assert client.find("file")
    repo.roles["targets"].revoke_key(A.public_key.keyid, "a")
    repo.roles["targets"].add_key(B.public_key, "a")
    repo.roles["targets"].version += 1
    repo.publish("targets")
    for again in (client, repo.client(tmp_path / "d")):
        again.refresh()
        with refused("E-TRUST-METADATA"):
            again.find("file")
    # Control: signed by the new key, the same content is found.
    repo.signers["a"] = [B]
    repo.publish("a")
    again.refresh()
    assert again.find("file")


@pytest.mark.parametrize("signed_by", ["a", "b", "both"])
def test_a_role_delegated_twice_must_satisfy_the_delegator_on_the_way(
    repo: RawRepository, tmp_path: Path, signed_by: str
):
    """Verified by way of one delegator counts nothing by way of another, in one process too."""
    repo.delegate("targets", "a", A, paths=("a/*",))
    repo.delegate("targets", "b", B, paths=("b/*",))
    repo.delegate("a", "shared", A, paths=("*/*",))
    repo.delegate("b", "shared", B, paths=("*/*",))
    repo.signers["shared"] = {"a": [A], "b": [B], "both": [A, B]}[signed_by]
    repo.add_target("shared", "a/file")
    repo.add_target("shared", "b/file")
    publish_all(repo)
    client = repo.client(tmp_path / "d")
    client.refresh()
    for _ in range(2):
        for way in "ab":
            if signed_by in (way, "both"):
                assert client.find(f"{way}/file")
            else:
                with refused("E-TRUST-METADATA"):
                    client.find(f"{way}/file")


def test_a_role_delegated_twice_with_two_contents_is_never_confused(repo: RawRepository, tmp_path: Path):
    """A server gives each way its own file of one name and version: each lookup judges what it uses itself."""
    repo.delegate("targets", "a", A, paths=("a/*",))
    repo.delegate("targets", "b", B, paths=("b/*",))
    repo.delegate("a", "shared", A, paths=("*/*",))
    repo.delegate("b", "shared", B, paths=("*/*",))
    repo.add_target("shared", "b/file", b"by b")
    repo.signers["shared"] = [B]
    publish_all(repo)
    by_b = repo.files["2.shared.json"]
    repo.roles["shared"].targets.clear()
    repo.add_target("shared", "a/file", b"by a")
    repo.signers["shared"] = [A]
    by_a = repo.serve("shared", repo.roles["shared"])
    client = repo.client(tmp_path / "d")
    client.refresh()
    for _ in range(2):
        repo.files["2.shared.json"] = by_a
        assert client.find("a/file").length == 4
        with refused("E-TRUST-METADATA"):
            client.find("b/file")
        repo.files["2.shared.json"] = by_b
        assert client.find("b/file").length == 4
        with refused("E-TRUST-METADATA"):
            client.find("a/file")


def test_delegated_metadata_of_an_unknown_key_or_version_is_refused(repo: RawRepository, tmp_path: Path):
    repo.delegate("targets", "a", A)
    repo.add_target("a", "file")
    repo.roles["targets"].version += 1
    repo.publish("a", "targets")
    good = repo.files["1.a.json"]
    repo.signers["a"] = [B]
    forged = repo.serve("a", repo.roles["a"])
    repo.signers["a"] = [A]
    repo.roles["a"].version = 2
    newer = repo.signed("a", repo.roles["a"])
    for bad in (forged, newer, repo.files["2.targets.json"], repo.files["timestamp.json"], b"{}"):
        repo.files["1.a.json"] = bad
        client = repo.client(tmp_path / "d")
        client.refresh()
        with refused("E-TRUST-METADATA"):
            client.find("file")
        assert version(tmp_path / "d", "a") is None
    repo.files["1.a.json"] = good
    assert client.find("file")


@pytest.mark.parametrize("hashes", [False, True])
def test_expired_delegated_metadata_is_refused_also_from_the_cache(repo: RawRepository, tmp_path: Path, hashes: bool):
    repo.hashes = hashes
    repo.delegate("targets", "a", A)
    repo.add_target("a", "file")
    repo.roles["a"].expires = NOW + 2 * DAY
    publish_all(repo)
    client = repo.client(tmp_path / "d")
    client.refresh()
    assert client.find("file")
    later = repo.client(tmp_path / "d", now_s=NOW_S + 3 * 86400)
    later.refresh()
    with refused("E-TRUST-EXPIRED"):
        later.find("file")
    repo.roles["a"].expires, repo.roles["a"].version = NOW + 9 * DAY, 3
    repo.publish("a")
    later.refresh()
    assert later.find("file")


def test_a_delegated_role_that_the_snapshot_does_not_know_is_refused(repo: RawRepository, tmp_path: Path):
    repo.delegate("targets", "a", A)
    repo.roles["targets"].version += 1
    repo.publish("targets")
    repo.serve("a", repo.roles["a"])
    client = repo.client(tmp_path / "d")
    client.refresh()
    with refused("E-TRUST-METADATA"):
        client.find("file")


def test_deep_graphs_end_at_the_limit(repo: RawRepository, tmp_path: Path):
    parent = "targets"
    for index in range(60):
        repo.delegate(parent, f"r{index}", A)
        parent = f"r{index}"
    repo.add_target(parent, "file")
    publish_all(repo)
    client = repo.client(tmp_path / "d")
    client.refresh()
    with refused("E-TRUST-TARGET"):
        client.find("file")
    assert len(asked_after_top(repo)) <= LIMITS.delegations
    # Control: within the limit it is found.
    far = repo.client(tmp_path / "far", limits=LIMITS._replace(delegations=100))
    far.refresh()
    assert far.find("file")


@pytest.mark.parametrize("role", ["?", "#", "/a", "../a", "..", "a%2fb", "a b", "ä", "con", "a\\b", "%", "a" * 200])
def test_odd_role_names_stay_within_the_cache_and_are_quoted(repo: RawRepository, tmp_path: Path, role: str):
    repo.delegate("targets", role, A)
    repo.add_target(role, "file")
    publish_all(repo)
    outside = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    client = repo.client(tmp_path / "x" / "d") if (tmp_path / "x").mkdir() is None else None
    assert client is not None
    client.refresh()
    assert client.find("file")
    written = [path for path in tmp_path.rglob("*.json") if path not in outside]
    assert {path.parent for path in written} == {tmp_path / "x" / "d"}
    assert len(kept(tmp_path / "x" / "d")) == 5


def test_a_role_name_too_long_for_a_file_is_an_error_with_a_code(repo: RawRepository, tmp_path: Path):
    repo.delegate("targets", "a" * 300, A)
    repo.add_target("a" * 300, "file")
    publish_all(repo)
    client = repo.client(tmp_path / "d")
    client.refresh()
    with refused("E-DISK-WRITE"):
        client.find("file")


@pytest.mark.parametrize("name", ["root", "timestamp", "snapshot", "targets", ""])
def test_a_delegated_role_cannot_take_a_top_level_name(repo: RawRepository, tmp_path: Path, name: str):
    delegations = Delegations({A.public_key.keyid: A.public_key}, roles={})
    assert delegations.roles is not None
    delegations.roles[name] = DelegatedRole(name, [A.public_key.keyid], 1, False, paths=["*"])
    repo.roles["targets"].delegations = delegations
    repo.roles["targets"].version += 1
    repo.publish("targets")
    with refused("E-TRUST-METADATA"):
        repo.client(tmp_path / "d").refresh()


def test_hash_bins_hold_exactly_the_paths_of_their_number(repo: RawRepository, tmp_path: Path):
    """A target listed in another bin than its own is not found; `roles` and bins never stand together."""
    repo.delegate("targets", "m", A, paths=("m/*",))
    succinct = SuccinctRoles([A.public_key.keyid], 1, 2, "bins-m")
    repo.roles["m"].delegations = Delegations({A.public_key.keyid: A.public_key}, succinct_roles=succinct)
    for name in succinct.get_roles():
        repo.roles[name] = Targets(expires=repo.expires)
        repo.signers[name] = [A]
    right = succinct.get_role_for_target("m/file")
    wrong = next(name for name in succinct.get_roles() if name != right)
    repo.add_target(wrong, "m/file")
    publish_all(repo)
    client = repo.client(tmp_path / "d")
    client.refresh()
    with refused("E-TRUST-TARGET"):
        client.find("m/file")
    repo.add_target(right, "m/file")
    publish_all(repo)
    client.refresh()
    assert client.find("m/file")
    assert version(tmp_path / "d", wrong) is None
