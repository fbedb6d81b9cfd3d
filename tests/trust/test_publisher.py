"""The publisher's repository: what it takes to change it, and that no cut and no lost key leaves it broken."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fleet_device import FolderFetcher, bundle_target, device
from raw_repository import refused
from tuf.api.metadata import Metadata

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.testkit.power import Journal, Tree, cuts, recording
from edgeops.trust import keys, roles
from edgeops.trust.founding import KeyPlan, make_fleet
from edgeops.trust.publisher import NewTarget, Publisher
from edgeops.trust.tuf_client import TufClient

NOW_S = 1_900_000_000.0
DAY_S = 86400.0


class Fleet:
    """A fresh fleet with a clock that the test sets."""

    def __init__(self, folder: Path, **plan: object) -> None:
        self.folder, self.home, self.now_s = folder, folder / "home", NOW_S
        self.publisher = make_fleet(self.home, "demo", now=lambda: self.now_s, **plan)  # type: ignore[arg-type]
        self.first_root = self.publisher.root_bytes()

    def copied_to(self, folder: Path) -> Fleet:
        """The same fleet, with its files and its device copied."""
        for part in ("home", "old"):
            shutil.copytree(self.folder / part, folder / part)
        other = copy.copy(self)
        other.folder, other.home = folder, folder / "home"
        other.publisher = Publisher(other.home, now=lambda: self.now_s)
        return other

    def device(self, name: str = "device", *, first: bool = False) -> TufClient:
        return device(
            self.publisher,
            self.folder / name,
            self.home / "repository",
            now=lambda: self.now_s,
            root=self.first_root if first else None,
        )

    def bundle(self, **which: object) -> NewTarget:
        return bundle_target(self.folder, **which)  # type: ignore[arg-type]

    def metadata(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.home / "repository" / "metadata").iterdir()}


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_what_is_published_is_what_a_device_finds(fleet: Fleet):
    target = fleet.bundle()
    fleet.publisher.publish([target])
    client = fleet.device()
    client.refresh()
    found = client.target(target.path)
    assert found.custom == target.custom
    assert found.length == target.file.stat().st_size
    assert (fleet.home / "repository" / "targets" / found.remote_path).read_bytes() == target.file.read_bytes()
    with refused("E-TRUST-TARGET"):
        client.target("m/1.0.1/pi.edgeops")


def test_the_desired_key_comes_from_verified_targets_metadata_only(fleet: Fleet):
    """A key that merely lies in the publisher's folder, or in an unsigned delegation, is none."""
    client = fleet.device()
    client.refresh()
    signer = fleet.publisher.desired_signer()
    assert client.desired_keys() == {signer.public_key.keyid: signer.public_key}
    served = fleet.home / "repository" / "metadata" / "1.targets.json"
    forged: Metadata = Metadata.from_bytes(served.read_bytes())
    forged.signed.add_key(keys.generate().public_key, roles.DESIRED)
    served.write_bytes(forged.to_bytes())
    with refused("E-TRUST-METADATA"):
        fleet.device("fresh").refresh()
    client.refresh()
    assert list(client.desired_keys()) == [signer.public_key.keyid]


def test_a_target_that_is_described_as_another_is_refused(fleet: Fleet):
    """The publisher's own tools cannot make these: a thief of a model's key could."""
    good = fleet.bundle()
    assert good.custom is not None
    for index, wrong in enumerate(({"version": "2.0.0"}, {"model": "other"}, {"profile": "nuc"}, {"number": 0}, None)):
        path = f"m/1.0.{index}/pi.edgeops"
        custom = None
        if wrong is not None:
            custom = type(good.custom)(
                **{"model": "m", "version": f"1.0.{index}", "number": 1, "profile": "pi", "digest": "x", **wrong}
            )
        fleet.publisher.publish([NewTarget(path, good.file, custom)])
        client = fleet.device()
        client.refresh()
        with refused("E-TRUST-TARGET"):
            client.target(path)


def test_a_path_is_never_given_other_content(fleet: Fleet):
    target = fleet.bundle()
    fleet.publisher.publish([target])
    before = fleet.metadata()
    fleet.publisher.publish([target])
    assert fleet.metadata() == before
    target.file.write_bytes(b"other")
    with refused("E-RELEASE-EXISTS"):
        fleet.publisher.publish([fleet.bundle(version="1.1.0"), target])
    assert fleet.metadata() == before


@pytest.mark.parametrize("path", ["x", "a/b", "a/b/c/d", "../b/c", "a/../c", "a//c", "A/1.0.0/c", "/a/b", "a/b/.c", ""])
def test_only_paths_of_model_version_file_are_published(fleet: Fleet, path: str):
    before = fleet.metadata()
    with refused("E-RELEASE-INVALID"):
        fleet.publisher.publish([NewTarget(path, fleet.bundle().file)])
    assert fleet.metadata() == before


def test_init_overwrites_nothing(fleet: Fleet, tmp_path: Path):
    before = {path: path.read_bytes() for path in fleet.home.rglob("*") if path.is_file()}
    with refused("E-CONFIG"):
        make_fleet(fleet.home, "other")
    for plan in (KeyPlan(1, 2), KeyPlan(2, 0)):
        with refused("E-CONFIG"):
            make_fleet(tmp_path / "new", "demo", root=plan)
    with refused("E-NAME"):
        make_fleet(tmp_path / "new", "De mo")
    assert not (tmp_path / "new").exists()
    assert before == {path: path.read_bytes() for path in fleet.home.rglob("*") if path.is_file()}
    with refused("E-TRUST-KEY"):
        Publisher(tmp_path / "new")


# Cuts


def operations(fleet: Fleet) -> dict[str, Callable[[], object]]:
    publisher = fleet.publisher
    return {
        "publish": lambda: publisher.publish([fleet.bundle(version="2.0.0", number=2)]),
        "first of a model": lambda: publisher.publish([fleet.bundle(model="new")]),
        "delegate": lambda: publisher.delegate("new"),
        "renew": lambda: publisher.renew(offline=True),
        "lend": lambda: publisher.lend(["m/1.0.0/pi.edgeops"], 90 * DAY_S),
        **{
            f"rotate {role}": lambda role=role: publisher.rotate(role)  # type: ignore[misc]
            for role in ("root", "targets", "snapshot", "timestamp", "desired-state", "model-m")
        },
    }


QUICK = ("publish", "first of a model", "lend", "rotate root", "rotate timestamp", "rotate desired-state")
NAMES = [
    *QUICK,
    *(
        pytest.param(name, marks=pytest.mark.full)
        for name in ("delegate", "renew", "rotate targets", "rotate snapshot", "rotate model-m")
    ),
]


def prepare(fleet: Fleet, name: str) -> None:
    """Half a year later, with only the online roles renewed."""
    if name == "renew":
        fleet.now_s = NOW_S + 190 * DAY_S
        fleet.publisher.renew()


def visible(tree: Tree, inode: int = 0, above: str = "") -> frozenset[tuple[str, bytes]]:
    """What a web server would show of a disk's content: files whose names begin with a dot are being written."""
    found: set[tuple[str, bytes]] = set()
    for (directory, name), child in tree.names.items():
        if directory == inode and not name.startswith("."):
            if child in tree.files:
                found.add((above + name, bytes(tree.files[child])))
            else:
                found |= visible(tree, child, f"{above}{name}/")
    return frozenset(found)


def different_cuts(journal: Journal) -> list[Tree]:
    """The trees that a cut may leave and that differ in what can be seen of them."""
    return list({visible(cut.tree): cut.tree for cut in cuts(journal)}.values())


def check_whole(fleet: Fleet, repository: Path, scratch: Path) -> None:
    """Devices old and new, and the publisher, find a valid repository with everything that was published before."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    shutil.copytree(fleet.folder / "old", scratch / "old")
    for name in ("old", "new"):
        client = device(fleet.publisher, scratch / name, repository, now=lambda: fleet.now_s, root=fleet.first_root)
        client.refresh()
        assert client.target("m/1.0.0/pi.edgeops").custom.number == 1
        assert client.desired_keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_power_cut_at_any_point_leaves_a_valid_repository(
    fleet: Fleet, tmp_path: Path, name: str, proof: Callable[[str], None]
):
    """Every cut, with every loss that a disk may then show. Devices go on, and the same command completes."""
    fleet.publisher.publish([fleet.bundle()])
    old = fleet.device("old", first=True)
    old.refresh()
    old.target("m/1.0.0/pi.edgeops")
    prepare(fleet, name)
    act = operations(fleet)[name]
    with recording(fleet.home / "repository") as journal:
        act()
    trees = different_cuts(journal)
    assert len(trees) >= 2
    for tree in trees:
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        tree.write_to(tmp_path / "cut")
        check_whole(fleet, tmp_path / "cut", tmp_path / "scratch")
    proof(f"{len(trees)} different disks after a cut are valid repositories")


class FailingDisk:
    """Counts durable's calls, and lets one of them fail for lack of space."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.fail_at = 0, 0
        for name in ("write_file", "rename"):
            monkeypatch.setattr(durable, name, self._counted(getattr(durable, name)))

    def _counted(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object, **options: object) -> None:
            self.calls += 1
            if self.calls == self.fail_at:
                raise EdgeopsError("E-DISK-FULL", "no space")
            real(*args, **options)

        return call

    def arm(self, fail_at: int) -> None:
        self.calls, self.fail_at = 0, fail_at


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_write_at_each_call_leaves_a_valid_repository_and_a_retry_works(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    """The k-th durable call fails for lack of space, for every k; nothing is half changed, the next try succeeds."""
    base = Fleet(tmp_path)
    base.publisher.publish([base.bundle()])
    client = base.device("old", first=True)
    client.refresh()
    prepare(base, name)
    disk = FailingDisk(monkeypatch)
    operations(base.copied_to(tmp_path / "dry"))[name]()
    total = disk.calls
    assert total >= 2
    # Bins are written in a row, each like the other: a few of them stand for all.
    for k in sorted({*range(1, 4), total // 2, *range(total - 3, total + 1)} & set(range(1, total + 1))):
        fleet = base.copied_to(tmp_path / f"try-{k}")
        disk.arm(k)
        with refused("E-DISK-FULL"):
            operations(fleet)[name]()
        disk.arm(0)
        check_whole(fleet, fleet.home / "repository", tmp_path / "scratch")
        operations(fleet)[name]()
        check_whole(fleet, fleet.home / "repository", tmp_path / "scratch")


def test_timestamp_first_is_caught_as_the_mutant_that_it_is(fleet: Fleet, tmp_path: Path, proof: Callable[[str], None]):
    """Negative control: a publisher that wrote timestamp.json before what it names would break devices at a cut."""
    fleet.publisher.publish([fleet.bundle()])
    fleet.device("old", first=True).refresh()
    real = type(fleet.publisher._repository).commit
    with recording(fleet.home / "repository") as journal:
        type(fleet.publisher._repository).commit = lambda self, files: real(self, list(reversed(files)))  # type: ignore[method-assign]
        try:
            fleet.publisher.publish([fleet.bundle(version="2.0.0", number=2)])
        finally:
            type(fleet.publisher._repository).commit = real  # type: ignore[method-assign]
    broken = 0
    for tree in different_cuts(journal):
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        tree.write_to(tmp_path / "cut")
        try:
            check_whole(fleet, tmp_path / "cut", tmp_path / "scratch")
        except EdgeopsError:
            broken += 1
    assert broken > 0
    proof(f"mutant 'timestamp first' caught on {broken} disks")


# Tampering with the served folder


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "model-m", "bins-m-3"])
@pytest.mark.parametrize("damage", ["forged", "truncated", "missing"])
def test_the_publisher_signs_nothing_on_top_of_what_it_did_not_sign(fleet: Fleet, role: str, damage: str):
    """Whoever can write to the artifact server gets nothing signed that they put there."""
    fleet.publisher.publish([fleet.bundle()])
    folder = fleet.home / "repository" / "metadata"
    path = sorted(folder.glob("timestamp.json" if role == "timestamp" else f"*.{role}.json"))[-1]
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:50])
    else:
        metadata: Metadata = Metadata.from_bytes(path.read_bytes())
        metadata.signed.unrecognized_fields["x-evil"] = True
        path.write_bytes(metadata.to_bytes())
    before = fleet.metadata()
    for act in (
        lambda: fleet.publisher.publish([fleet.bundle(version="2.0.0", number=2)]),
        lambda: fleet.publisher.rotate("model-m"),
    ):
        with refused("E-TRUST-METADATA"):
            act()
    assert fleet.metadata() == before


def test_a_rolled_back_file_in_the_served_folder_is_noticed(fleet: Fleet):
    fleet.publisher.publish([fleet.bundle()])
    folder = fleet.home / "repository" / "metadata"
    newest = sorted(folder.glob("*.targets.json"))[-1]
    newest.write_bytes((folder / "1.targets.json").read_bytes())
    with refused("E-TRUST-METADATA"):
        fleet.publisher.targets()


# Keys


def test_thresholds_need_that_many_keys(tmp_path: Path):
    """2 of 3 for root and targets: with one key here nothing moves, with two it does."""
    fleet = Fleet(tmp_path, root=KeyPlan(3, 2), targets=KeyPlan(3, 2), scheme="ecdsa")
    fleet.publisher.publish([fleet.bundle()])
    stick = tmp_path / "stick"
    stick.mkdir()
    for name in ("root-1", "root-2", "targets-1", "targets-2"):
        for suffix in (".pem", ".pub"):
            (fleet.home / "keys" / f"{name}{suffix}").rename(stick / f"{name}{suffix}")
    before = fleet.metadata()
    one = Publisher(fleet.home, now=lambda: NOW_S)
    for act in (lambda: one.rotate("timestamp"), lambda: one.delegate("new"), lambda: one.rotate("desired-state")):
        with refused("E-TRUST-KEY"):
            act()
    assert fleet.metadata() == before
    two = Publisher(fleet.home, key_folders=[stick], now=lambda: NOW_S)
    two.rotate("timestamp")
    two.delegate("new")
    client = fleet.device(first=True)
    client.refresh()
    assert client.target("m/1.0.0/pi.edgeops")
    root: Metadata = Metadata.from_bytes(two.root_bytes())
    assert {len(root.signed.roles[role].keyids) for role in ("root", "targets")} == {3}
    assert all(key.keytype == "ecdsa" for key in (root.signed.keys[k] for k in root.signed.roles["root"].keyids))


def test_offline_keys_are_encrypted_and_the_online_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The control plane publishes desired state and renews unattended; it cannot read the keys that release."""
    fleet = Fleet(tmp_path, secret=b"passphrase")
    fleet.publisher.publish([fleet.bundle()])
    for path in (fleet.home / "keys").glob("*.pem"):
        offline = path.stem in ("root", "targets", "model-m")
        assert (b"ENCRYPTED" in path.read_bytes()) == offline, path.name
    monkeypatch.delenv("EDGEOPS_KEY_PASSPHRASE", raising=False)
    control = Publisher(fleet.home, now=lambda: NOW_S + 5 * DAY_S)
    assert control.desired_signer()
    assert control.renew() == ["timestamp"]
    for act in (lambda: control.publish([fleet.bundle(version="2.0.0")]), lambda: control.rotate("timestamp")):
        with refused("E-TRUST-KEY"):
            act()
    monkeypatch.setenv("EDGEOPS_KEY_PASSPHRASE", "passphrase")
    Publisher(fleet.home, now=lambda: NOW_S + 5 * DAY_S).publish([fleet.bundle(version="2.0.0", number=2)])


@pytest.mark.parametrize("role", ["root", "targets", "model-m", "timestamp"])
def test_a_rotation_that_cannot_be_signed_leaves_no_key_behind(tmp_path: Path, role: str):
    """A mistyped passphrase, or offline keys that are elsewhere: the folder of keys is as before."""
    fleet = Fleet(tmp_path, secret=b"passphrase")
    fleet.publisher.publish([fleet.bundle()])
    before, metadata = sorted((fleet.home / "keys").iterdir()), fleet.metadata()
    with refused("E-TRUST-KEY"):
        Publisher(fleet.home, secret=b"mistyped", now=lambda: NOW_S).rotate(role)
    assert sorted((fleet.home / "keys").iterdir()) == before
    assert fleet.metadata() == metadata
    fleet.publisher.rotate(role)
    assert len(sorted((fleet.home / "keys").iterdir())) == len(before) + 2


def test_renewal_goes_by_half_of_the_life_left(fleet: Fleet):
    fleet.publisher.publish([fleet.bundle()])
    assert fleet.publisher.renew() == []
    before = fleet.metadata()
    fleet.now_s = NOW_S + 4 * DAY_S
    assert fleet.publisher.renew() == ["timestamp"]
    changed = {name for name, data in fleet.metadata().items() if before.get(name) != data}
    assert changed == {"timestamp.json"}
    fleet.now_s = NOW_S + 16 * DAY_S
    assert fleet.publisher.renew() == ["snapshot", "timestamp"]
    fleet.now_s = NOW_S + 190 * DAY_S
    renewed = fleet.publisher.renew(offline=True)
    assert {"root", "targets", "snapshot", "timestamp", "model-m", "bins-m-0"} <= set(renewed)
    client = fleet.device(first=True)
    fleet.now_s = NOW_S + 196 * DAY_S
    client.refresh()
    assert client.target("m/1.0.0/pi.edgeops")


def test_a_fleet_whose_metadata_has_expired_is_renewed(fleet: Fleet):
    """Nobody looked for two years: every role has expired, and one command brings the fleet back."""
    fleet.publisher.publish([fleet.bundle()])
    client = fleet.device()
    client.refresh()
    fleet.now_s = NOW_S + 800 * DAY_S
    with refused("E-TRUST-EXPIRED"):
        client.refresh()
    fleet.publisher.renew(offline=True)
    client.refresh()
    assert client.target("m/1.0.0/pi.edgeops")


def test_expiring_offline_roles_are_told_in_the_log(fleet: Fleet, caplog: pytest.LogCaptureFixture):
    fleet.now_s = NOW_S + 330 * DAY_S
    assert fleet.publisher.renew() == ["snapshot", "timestamp"]
    assert "role root expires in 35 days" in caplog.text


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp", "desired-state", "model-m"])
def test_a_rotated_key_is_worth_nothing_and_every_device_goes_on(fleet: Fleet, role: str):
    fleet.publisher.publish([fleet.bundle()])
    old = fleet.device("old", first=True)
    old.refresh()
    desired_before = old.desired_keys()
    gone, new = fleet.publisher.rotate(role)
    for name in ("old", "new"):
        client = fleet.device(name, first=True)
        client.refresh()
        assert client.target("m/1.0.0/pi.edgeops")
    rows = {row.role: row for row in fleet.publisher.status()}
    assert (rows[role].keys, rows[role].keys_here) == (1, 1)
    if role == "desired-state":
        assert set(desired_before) == {gone}
        assert set(client.desired_keys()) == {new} == {fleet.publisher.desired_signer().public_key.keyid}
    # The old private key is not needed for anything that follows.
    for path in (fleet.home / "keys").glob("*.pub"):
        if keys.load_public(path).keyid == gone:
            path.with_suffix(".pem").unlink()
            path.unlink()
    again = Publisher(fleet.home, now=lambda: fleet.now_s)
    again.publish([fleet.bundle(version="2.0.0", number=2)])
    client.refresh()
    assert client.target("m/2.0.0/pi.edgeops").custom.number == 2


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_lost_key_is_replaced_with_the_root_key(fleet: Fleet, role: str):
    """Losing an online key, or targets, loses no device: the root key names a new one."""
    fleet.publisher.publish([fleet.bundle()])
    fleet.device("old", first=True).refresh()
    for suffix in (".pem", ".pub"):
        (fleet.home / "keys" / f"{role}{suffix}").unlink()
    publisher = Publisher(fleet.home, now=lambda: fleet.now_s)
    publisher.rotate(role)
    for name in ("old", "new"):
        client = fleet.device(name, first=True)
        client.refresh()
        assert client.target("m/1.0.0/pi.edgeops")


def test_a_lost_root_cannot_be_replaced_and_nothing_is_written(fleet: Fleet):
    (fleet.home / "keys" / "root.pem").unlink()
    before = fleet.metadata()
    with refused("E-TRUST-KEY"):
        Publisher(fleet.home, now=lambda: NOW_S).rotate("root")
    assert fleet.metadata() == before


def test_rotate_names_what_it_cannot_find(fleet: Fleet):
    for role, old in (("nobody", None), ("root", "ffff"), ("model-x", None)):
        with refused("E-TRUST-KEY"):
            fleet.publisher.rotate(role, old=old)
    two = Fleet(fleet.folder / "two", root=KeyPlan(2, 1)) if (fleet.folder / "two").mkdir() is None else None
    assert two is not None
    with refused("E-TRUST-KEY"):
        two.publisher.rotate("root")
    root: Metadata = Metadata.from_bytes(two.publisher.root_bytes())
    assert two.publisher.rotate("root", old=root.signed.roles["root"].keyids[1][:12])


def test_a_model_is_delegated_to_its_own_publishers(fleet: Fleet):
    """Two people's keys, both needed: neither releases alone, and the key of another model does not help."""
    folders = []
    public = []
    for name in ("ann", "ben"):
        (fleet.folder / name).mkdir()
        signer = keys.generate()
        keys.save(signer, fleet.folder / name / "mine.pem")
        folders.append(fleet.folder / name)
        public.append(signer.public_key)
    both = Publisher(fleet.home, key_folders=folders, now=lambda: NOW_S)
    both.delegate("joint", public, threshold=2)
    with refused("E-CONFIG"):
        both.delegate("joint")
    for alone in ([folders[0]], [folders[1]], []):
        with refused("E-TRUST-KEY"):
            Publisher(fleet.home, key_folders=alone, now=lambda: NOW_S).publish([fleet.bundle(model="joint")])
    both.publish([fleet.bundle(model="joint")])
    client = fleet.device()
    client.refresh()
    assert client.target("joint/1.0.0/pi.edgeops")


def test_bins_double_as_targets_grow_and_devices_follow(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(roles, "TARGETS_PER_BIN", 2)
    first = fleet.bundle()
    fleet.publisher.publish([first])
    client = fleet.device()
    client.refresh()
    assert client.target(first.path)
    file = first.file
    fleet.publisher.publish([NewTarget(f"m/1.{n}.0/release.json", file) for n in range(1, 140)])
    assert len(fleet.publisher.targets()) == 140
    names = {path.name.split(".", 1)[1] for path in (fleet.home / "repository" / "metadata").glob("*.bins-m-*.json")}
    assert {"bins-m-f.json", "bins-m-7f.json"} <= names
    client.refresh()
    assert client.target(first.path)
    assert client.find("m/1.77.0/release.json")


@pytest.mark.parametrize("targets", [0, 1, 2048, 2049, 100_000, 10**9])
def test_bins_are_as_many_as_their_targets_need(targets: int):
    bits = roles.bits_for(targets)
    assert bits == roles.MAX_BITS or targets <= roles.TARGETS_PER_BIN << bits
    assert bits == roles.FIRST_BITS or targets > roles.TARGETS_PER_BIN << (bits - 1)
    assert roles.bits_for(0, present=9) == 9


def test_model_names_never_meet_other_roles(fleet: Fleet):
    """Models may be called like roles, like bins, or like each other's prefixes."""
    names = ["root", "targets", "timestamp", "desired-state", "bins-m", "m", "m-0", "m.targets", "model-m"]
    for name in names:
        fleet.publisher.publish([fleet.bundle(model=name)])
    client = fleet.device()
    client.refresh()
    for name in names:
        assert client.target(f"{name}/1.0.0/pi.edgeops").custom.model == name
    fleet.publisher.rotate("timestamp")
    client.refresh()


def test_two_publishers_at_once_lose_nothing(fleet: Fleet):
    """Each waits for the other: two processes' worth of publishing on one home."""
    targets = [fleet.bundle(version=f"{n}.0.0", number=n + 1) for n in range(8)]
    publishers = [Publisher(fleet.home, now=lambda: NOW_S) for _ in targets]
    fleet.publisher.delegate("m")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: publishers[index].publish([targets[index]]), range(8)))
    assert set(fleet.publisher.targets()) == {target.path for target in targets}


def test_what_a_device_fetches_is_counted(fleet: Fleet):
    fleet.publisher.publish([fleet.bundle()])
    fetcher = FolderFetcher(fleet.home / "repository")
    client = fleet.device()
    client._fetcher = fetcher
    client.refresh()
    client.target("m/1.0.0/pi.edgeops")
    first = fetcher.bytes
    client.refresh()
    assert 0 < fetcher.bytes - first < first / 3
