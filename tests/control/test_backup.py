"""A fleet that was lost comes back from its backup, and no device is told anything older than it has seen."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import sqlite3
import tarfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from registry_fleet import add_devices, obey_all, open_registry, release
from served_fleet import MODEL, Fleet, Serving, wait_for
from sqlalchemy import select

from edgeops.client.rollout_resources import RolloutWish
from edgeops.contracts.errors import EdgeopsError
from edgeops.control.backup import backup, restore
from edgeops.control.models import AuditEntry, Device, Rollout
from edgeops.control.rollout import manage
from edgeops.control.rollout.execute import advance
from edgeops.control.rollout.policy import Policy
from edgeops.control.rollout.selection import Selection
from edgeops.control.schema import SCHEMA

NOW = 1_800_000_000.0
ALL = Policy(groups=("100%",))


def ended(serving: Serving, version: str) -> None:
    made = serving.api.create_rollout(RolloutWish(model=MODEL, version=version, start=True))
    wait_for(lambda: serving.api.rollout(made.id).state == "succeeded", f"{version} did not arrive")


def test_generations_go_on_above_all_that_devices_saw_after_the_backup(
    served: Serving, fleet: Fleet, tmp_path: Path
) -> None:
    ended(served, "1.0.0")
    backup(served.home, tmp_path / "fleet.backup")
    assert (tmp_path / "fleet.backup").stat().st_mode & 0o777 == 0o600
    ended(served, "1.1.0")
    seen = {device.connection: device.units[0].observed_generation for device in served.api.devices()}
    served.stop()
    home = tmp_path / "again"
    assert restore(tmp_path / "fleet.backup", home) == 3
    again = Serving(home, served.broker)
    again.start()
    try:
        # The ports are those of before, so the devices find it; what it wants is the release of the backup's time.
        def back() -> bool:
            devices = list(again.api.devices())
            return all(d.online and d.units[0].desired_generation > seen[d.connection] for d in devices)

        wait_for(back, "the devices did not come back")
        wait_for(
            lambda: {c.active_release for d in again.api.devices() for c in d.units[0].components} == {"1.0.0"},
            "the devices do not run what the registry wants",
        )
        ended(again, "1.1.0")
    finally:
        again.stop()


@pytest.fixture
def fleet_home(tmp_path: Path, published: Path) -> Path:
    """A home whose registry knows six devices that have a release."""
    home = Path(shutil.copytree(published, tmp_path / "home"))
    database = open_registry(home)
    add_devices(database, 6)
    rollout = manage.create(database, release("1.0.0"), ALL, Selection(), actor="op", now_s=NOW, start=True)
    advance(database, rollout, NOW)
    obey_all(database, NOW)
    advance(database, rollout, NOW + 1)
    database.close()
    return home


def rows(database: object) -> dict[str, list[tuple[object, ...]]]:
    with database.read() as session:  # type: ignore[attr-defined]
        return {
            table.name: sorted((tuple(map(str, row)) for row in session.execute(select(table))), key=str)
            for table in SCHEMA.sorted_tables
        }


def test_every_row_moves_to_another_kind_of_database_and_numbers_go_on(
    fleet_home: Path, registry_url: Path | str, tmp_path: Path
) -> None:
    backup(fleet_home, tmp_path / "fleet.backup")
    before = open_registry(fleet_home)
    if isinstance(registry_url, Path):
        restore(tmp_path / "fleet.backup", tmp_path / "again")
        after = open_registry(tmp_path / "again")
    else:
        restore(tmp_path / "fleet.backup", tmp_path / "again", database_url=registry_url)
        after = open_registry(registry_url)
        backup(tmp_path / "again", tmp_path / "second.backup", database_url=registry_url)
        restore(tmp_path / "second.backup", tmp_path / "third")
        third = open_registry(tmp_path / "third")
        assert rows(third) == rows(before)
        third.close()
        with pytest.raises(EdgeopsError, match="not empty"):
            restore(tmp_path / "fleet.backup", tmp_path / "fourth", database_url=registry_url)
        assert not (tmp_path / "fourth").exists()
    assert rows(after) == rows(before)
    made = manage.create(after, release("1.1.0", 2), ALL, Selection(), actor="op", now_s=NOW)
    with after.read() as session:
        assert made == max(session.scalars(select(Rollout.id))) == 2
        assert len(session.scalars(select(AuditEntry.id)).all()) == len(rows(before)["audit"]) + 1
    before.close()
    after.close()


def test_the_files_of_the_home_come_back_as_they_were(fleet_home: Path, tmp_path: Path) -> None:
    backup(fleet_home, tmp_path / "fleet.backup")
    restore(tmp_path / "fleet.backup", tmp_path / "again")

    def files(home: Path) -> dict[str, tuple[bytes, int]]:
        return {
            str(path.relative_to(home)): (path.read_bytes(), path.stat().st_mode & 0o777)
            for path in home.rglob("*")
            if path.is_file() and not path.name.startswith("control.sqlite")
        }

    assert files(tmp_path / "again") == files(fleet_home)
    assert any(name.startswith("keys/") for name in files(fleet_home))
    assert (tmp_path / "again").stat().st_mode & 0o777 == 0o700


def packed(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size) if member.isfile() else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, 1 if kind == tarfile.REGTYPE else 0
    return made


@pytest.mark.parametrize(
    "members",
    [
        (member("../escaped"),),
        (member("/tmp/edgeops-escaped"), member("home/../../escaped")),
        (member("home/link", tarfile.SYMTYPE, "/etc"), member("home/link/x")),
        (member("home/link", tarfile.LNKTYPE, "../x"),),
        (member("home/device", tarfile.CHRTYPE),),
        (member("something"),),
        (),
    ],
)
def test_a_file_that_is_no_backup_makes_nothing(tmp_path: Path, members: tuple[tarfile.TarInfo, ...]) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(EdgeopsError) as refused:
        restore(packed(tmp_path / "bad", *members), tmp_path / "in" / "home")
    assert refused.value.code == "E-STATE-CORRUPT"
    assert list((tmp_path / "in").iterdir()) == []
    assert not (tmp_path / "escaped").exists()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def damaged(data: bytes, at: int) -> bytes:
    """Flip the first bit from there on that means something: in runs of zeros some only name another source."""
    while True:
        changed = flipped(data, at)
        try:
            gzip.decompress(changed)
        except (OSError, EOFError, zlib.error):
            return changed
        at += 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: os.urandom(5000),
        lambda data: data[:1000],
        lambda data: data[:-1],
        lambda data: damaged(data, len(data) // 2),
        lambda data: flipped(data, len(data) - 6),
    ],
    ids=["empty", "foreign", "cut", "without its last byte", "one bit in the middle", "one bit of its checksum"],
)
def test_a_damaged_or_foreign_file_is_refused(
    fleet_home: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    backup(fleet_home, tmp_path / "fleet.backup")
    (tmp_path / "cut").write_bytes(spoil((tmp_path / "fleet.backup").read_bytes()))
    with pytest.raises(EdgeopsError) as refused:
        restore(tmp_path / "cut", tmp_path / "again")
    assert refused.value.code == "E-STATE-CORRUPT"
    assert not (tmp_path / "again").exists()


def test_nothing_is_overwritten(fleet_home: Path, tmp_path: Path) -> None:
    backup(fleet_home, tmp_path / "fleet.backup")
    for act in (
        lambda: backup(fleet_home, tmp_path / "fleet.backup"),
        lambda: backup(tmp_path, tmp_path / "other.backup"),
        lambda: restore(tmp_path / "fleet.backup", fleet_home),
    ):
        with pytest.raises(EdgeopsError) as refused:
            act()
        assert refused.value.code == "E-CONFIG"


def test_a_backup_of_every_earlier_version_is_restored(published: Path, tmp_path: Path) -> None:
    for recorded in sorted((Path(__file__).parent / "registries").glob("*.sql")):
        home = Path(shutil.copytree(published, tmp_path / f"home-{recorded.stem}"))
        with closing(sqlite3.connect(home / "control.sqlite")) as connection:
            connection.executescript(recorded.read_text())
        backup(home, tmp_path / f"{recorded.stem}.backup")
        assert restore(tmp_path / f"{recorded.stem}.backup", tmp_path / f"again-{recorded.stem}") == 3
        database = open_registry(tmp_path / f"again-{recorded.stem}")
        with database.read() as session:
            assert len(session.scalars(select(Device)).all()) == 3
        database.close()
