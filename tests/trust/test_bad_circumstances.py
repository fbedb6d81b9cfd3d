"""Trust on a bad day: disks that fail at every step, clocks years off, mirrors that lie, one key in two places."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from failing_disk import FailingDisk
from fleet_device import bundle_target, device
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_repository import DAY, NOW, NOW_S, SIGNERS, RawRepository, kept, refused, version

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.trust.device import DeviceIdentity
from edgeops.trust.founding import make_fleet
from edgeops.trust.publisher import Publisher
from edgeops.trust.time import Clock
from edgeops.trust.tuf_client import TufClient

YEAR_S = 365.25 * 86400
ROLES = ("root", "timestamp", "snapshot", "targets", "role")


@pytest.fixture
def repo() -> RawRepository:
    repo = RawRepository()
    repo.delegate("targets", "role", SIGNERS[4])
    repo.add_target("role", "file")
    repo.roles["targets"].version += 1
    repo.publish("role", "targets")
    return repo


def use(client: TufClient) -> None:
    client.refresh()
    client.find("file")


def attempt(act: Callable[[], object]) -> EdgeopsError | None:
    try:
        act()
    except EdgeopsError as error:
        return error
    return None


def change_everything(repo: RawRepository) -> None:
    """New versions of all roles, two roots among them."""
    old = repo.signers["root"]
    repo.rotate("root", SIGNERS[7])
    repo.signers["root"] = [*old, SIGNERS[7]]
    repo.next_root()
    repo.signers["root"] = [SIGNERS[7]]
    repo.next_root()
    for role in ("role", "targets"):
        repo.roles[role].version += 1
    repo.publish("role", "targets")


def fail_at_each_step(
    disk_folder: Path, code: int, act: Callable[[Path], object], check: Callable[[Path], object]
) -> int:
    """Let the disk fail from the k-th call on, for every k, on a copy each; return how many steps there were."""
    step = 0
    while True:
        step += 1
        folder = disk_folder.with_name(f"{disk_folder.name}-{step}")
        shutil.copytree(disk_folder, folder)
        disk = FailingDisk(folder, code)
        with disk.failing_from(step):
            error = attempt(lambda folder=folder: act(folder))
        if error is None:
            assert disk.calls < step
            return step - 1
        assert error.code == ("E-DISK-FULL" if code == errno.ENOSPC else "E-DISK-WRITE"), error
        check(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_at_any_step_of_the_client_leaves_a_device_that_goes_on(
    repo: RawRepository, tmp_path: Path, code: int
):
    """First contact, and an update of every role: the error has its code, nothing goes back, the next try succeeds."""
    empty, used = tmp_path / "empty", tmp_path / "used"
    empty.mkdir()

    def complete(folder: Path) -> None:
        use(repo.client(folder))
        assert [version(folder, role) for role in ROLES] == newest
        assert not list(folder.glob(".*.tmp"))

    newest = [1, 2, 2, 2, 1]
    assert fail_at_each_step(empty, code, lambda folder: use(repo.client(folder)), complete) >= 5 * 5
    use(repo.client(used))
    change_everything(repo)
    before, newest = newest, [3, 3, 3, 3, 2]

    def go_on(folder: Path) -> None:
        there = [version(folder, role) for role in ROLES]
        assert all(number is not None and number >= old for number, old in zip(there, before, strict=True)), there
        complete(folder)

    assert fail_at_each_step(used, code, lambda folder: use(repo.client(folder)), go_on) >= 6 * 5


@pytest.mark.parametrize("in_place", [False, True])
def test_writing_in_place_is_caught_as_the_mutant_that_it_is(
    repo: RawRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool
):
    """Negative control: where a file is not replaced at once a full disk costs the device its floor, and a mirror can
    take it back."""
    used, write = tmp_path / "used", durable.write_file
    use(repo.client(used))
    long_ago = dict(repo.files)
    change_everything(repo)
    use(repo.client(used))
    floor = version(used, "timestamp")
    assert floor is not None

    def full(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        if path.name != "timestamp.json":
            write(path, data, mode=mode)
            return
        if in_place:
            path.write_bytes(data[: len(data) // 2])
        raise EdgeopsError("E-DISK-FULL", "no space")

    change_everything(repo)
    monkeypatch.setattr(durable, "write_file", full)
    with refused("E-DISK-FULL"):
        use(repo.client(used))
    monkeypatch.undo()
    repo.files["timestamp.json"] = long_ago["timestamp.json"]
    with refused("E-TRUST-METADATA"):
        use(repo.client(used))
    after = version(used, "timestamp")
    assert after is not None
    assert (after < floor) is in_place


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_while_a_key_is_made_leaves_none_or_a_whole_one(tmp_path: Path, code: int):
    empty = tmp_path / "empty"
    empty.mkdir()

    def check(folder: Path) -> None:
        made = DeviceIdentity.create(folder / "identity")
        again = DeviceIdentity.create(folder / "identity")
        assert made.signer.public_key.keyid == again.signer.public_key.keyid

    assert fail_at_each_step(empty, code, lambda folder: DeviceIdentity.create(folder / "identity"), check) >= 4


# Clocks


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, NOW_S - 20 * YEAR_S, NOW_S - YEAR_S, NOW_S + YEAR_S, NOW_S + 70 * YEAR_S]),
                  st.booleans()), max_size=6
    )
)  # fmt: skip
def test_after_any_history_of_wrong_clocks_the_right_one_heals(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[float, bool]]
):
    """Jumps of years both ways, boots in 1970, a restart after each: nothing expired is taken, nothing sticks."""
    repo = RawRepository()
    folder = tmp_path_factory.mktemp("device")
    clock_s = NOW_S

    def boot(build_s: float = 0.0) -> tuple[TufClient, Clock]:
        repo.client(folder)
        clock = Clock(folder / "floor", system=lambda: clock_s, build_s=build_s)
        return TufClient(folder, "http://repository/metadata", repo.fetcher, clock), clock

    for jump_s, observes in history:
        clock_s = jump_s
        client, clock = boot()
        if clock.now() > repo.expires.timestamp():
            with refused("E-TRUST-EXPIRED"):
                client.refresh()
        else:
            client.refresh()
        if observes:
            clock.observe(NOW_S - 5)
            assert clock.now() >= NOW_S - 5
    clock_s = NOW_S
    client, clock = boot()
    client.refresh()
    assert clock.now() == NOW_S
    clock_s = (repo.expires + DAY).timestamp()
    with refused("E-TRUST-EXPIRED"):
        boot()[0].refresh()


# Mirrors


class History:
    """All that a repository ever served, by name; a mirror may give any of it, cut it, or say that there is nothing."""

    def __init__(self, repo: RawRepository) -> None:
        self.repo, self.seen = repo, dict[str, list[bytes]]()

    def note(self) -> None:
        for name, data in self.repo.files.items():
            told = self.seen.setdefault(name, [])
            if data not in told:
                told.append(data)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_mirror_that_lies_as_it_likes_moves_no_role_back_and_brings_nothing_foreign(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    repo = RawRepository()
    repo.delegate("targets", "role", SIGNERS[4])
    repo.add_target("role", "file")
    repo.publish("role", "targets")
    history = History(repo)
    history.note()
    folder = tmp_path_factory.mktemp("device")
    for _ in range(3):
        change_everything_but_keys(repo)
        history.note()
    honest = dict(repo.files)
    stranger = RawRepository().files["timestamp.json"]
    floor = dict.fromkeys(ROLES, 0)
    for _ in range(data.draw(st.integers(1, 4))):
        for name, told in history.seen.items():
            lies: list[bytes | None] = [*told, None, told[-1][: len(told[-1]) // 2], stranger, b"", b"{}"]
            lie = data.draw(st.sampled_from([honest[name], *lies]))
            repo.files.pop(name, None)
            if lie is not None:
                repo.files[name] = lie
        error = attempt(lambda: use(repo.client(folder)))
        assert error is None or error.code in ("E-TRUST-METADATA", "E-NET-RESPONSE", "E-TRUST-TARGET"), error
        for role in ("root", "timestamp", "snapshot", "targets"):
            there = version(folder, role) or 0
            assert there >= floor[role], role
            floor[role] = there
    repo.files.clear()
    repo.files.update(honest)
    use(repo.client(folder))
    assert all(kept(folder)[f"{role}.json"] in history.seen.get(f"{role}.json", []) + list(honest.values())
               for role in ROLES)  # fmt: skip


def change_everything_but_keys(repo: RawRepository) -> None:
    repo.next_root()
    for role in ("role", "targets"):
        repo.roles[role].version += 1
    repo.publish("role", "targets")


# Two publishers with the same keys, on machines that do not know of each other


def test_two_publishers_with_the_same_keys_confuse_no_device(tmp_path: Path):
    """A restored copy signs on beside the original. A device that meets both refuses what would take it back, visibly,
    and never mixes the two; it follows the one that goes on as soon as that is ahead."""
    now_s = NOW.timestamp()
    first = make_fleet(tmp_path / "one", "demo", now=lambda: now_s)
    first.publish([bundle_target(tmp_path, version="1.0.0", number=1)])
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    second = Publisher(tmp_path / "two", now=lambda: now_s)
    first.publish([bundle_target(tmp_path, version="1.1.0", number=2)])
    second.publish([bundle_target(tmp_path, version="1.2.0", number=2)])
    second.publish([bundle_target(tmp_path, version="1.3.0", number=3)])
    floor, refusals = 0, 0
    folder = tmp_path / "device"
    for turn in range(6):
        home = tmp_path / ("one", "two")[turn % 2]
        client = device(Publisher(home), folder, home / "repository", now=lambda: now_s, root=first.root_bytes())
        error = attempt(client.refresh)
        assert error is None or error.code == "E-TRUST-METADATA", error
        refusals += error is not None
        there = version(folder, "timestamp")
        assert there is not None
        assert there >= floor
        floor = there
    assert 0 < refusals < 6
    first.publish([bundle_target(tmp_path, version="1.4.0", number=3)])
    first.publish([bundle_target(tmp_path, version="1.5.0", number=4)])
    home = tmp_path / "one"
    client = device(first, folder, home / "repository", now=lambda: now_s, root=first.root_bytes())
    client.refresh()
    assert client.target("m/1.5.0/pi.edgeops").custom.number == 4
    with refused("E-TRUST-TARGET"):
        client.target("m/1.3.0/pi.edgeops")
