"""A board on loopback becomes a device in one go: real sshd, packages and control plane, and cuts at any step."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import inspect
import io
import os
import re
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adder_bundles import MODEL, PROFILE, small_bundle
from loopback_board import Api, LoopbackBoard, code, flash, sshd
from served_fleet import Serving

from edgeops.contracts.errors import EdgeopsError
from edgeops.flash import over_ssh, steps
from edgeops.flash.link import Link
from edgeops.flash.over_ssh import Wish
from edgeops.releases import assemble
from edgeops.releases.export import export
from edgeops.releases.publish import publish
from edgeops.trust.publisher import Publisher

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("built_once"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the board needs root: mounts of its own, and sshd"),
    pytest.mark.skipif(sshd() is None, reason="no sshd: apt-get install --yes openssh-server, or make test-system"),
]


@pytest.fixture
def board(tmp_path: Path) -> Iterator[LoopbackBoard]:
    with LoopbackBoard(tmp_path / "board") as board:
        yield board


def test_a_bare_board_becomes_a_device_that_serves_in_one_go(
    board: LoopbackBoard, tmp_path: Path, payloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    Publisher.init(home, "demo")
    assemble.create(home, [small_bundle(tmp_path / "bundle").directory], version="1.0.0")
    publish(home, MODEL, "1.0.0")
    stick = export(home, MODEL, "1.0.0", tmp_path / "release.edgeops").path
    serving = Serving(home, "auto")
    serving.start()
    systemd = threading.Thread(target=board.start_service)
    systemd.start()
    try:
        fleet = Api(serving)
        wish = Wish(name="board-1", stick=stick)
        cuts = cut_each(board, monkeypatch, ("install_release",))
        done = flash(board, wish, fleet, payloads)
        assert (done.device, done.profile, done.online) == ("board-1", PROFILE, True)
        assert "confirmed" in done.release
        assert sorted(cuts) == both(("install_release",))
        (device,) = serving.api.devices()
        assert (device.connection, device.online) == ("board-1", True)
        # Again: nothing is sent, no token is asked for, and the same version is in use.
        before = board.run("readlink", "/opt/edgeops/current")
        again = flash(board, wish._replace(stick=None), None, payloads)
        assert (again.device, again.version) == ("board-1", done.version)
        assert board.run("readlink", "/opt/edgeops/current") == before
        assert not board.exists("/opt/edgeops/previous")
    finally:
        systemd.join()
        board.stop_service()
        serving.stop()
    check_hardened(board)
    assert "removed" in asyncio.run(go_back(board))
    assert not board.exists("/opt/edgeops")
    assert board.exists("/var/lib/edgeops/identity")


def check_hardened(board: LoopbackBoard) -> None:
    assert board.run("stat", "-c", "%a %U", "/var/lib/edgeops/identity").split() == ["700", "edgeops"]
    assert board.run("stat", "-c", "%a %U", "/etc/edgeops/token").split() == ["600", "edgeops"]
    assert not board.exists("/var/tmp/edgeops-flash-0/release.edgeops.partial")


async def go_back(board: LoopbackBoard, *, purge: bool = False) -> str:
    async with Link(board.login) as link:
        where = steps.Where()
        await steps.probe(link, where)
        return await steps.undo(link, where, purge=purge)


def cut_each(board: LoopbackBoard, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> list[str]:
    """Cut the connection once before and once after each of these steps; return those that were, as they are."""
    monkeypatch.setattr(over_ssh, "_RETRY_FIRST_S", 0.05)
    cuts: list[str] = []

    def cut(name: str) -> None:
        real = getattr(steps, name)

        async def cutting(*given: Any, **named: Any) -> Any:
            if f"{name} before" not in cuts:
                cuts.append(f"{name} before")
                board.drop_sessions()
                return await real(*given, **named)
            if f"{name} after" not in cuts:
                cuts.append(f"{name} after")
                await real(*given, **named)
                board.drop_sessions()
                raise EdgeopsError("E-FLASH-LINK", "lost after the work was done")
            return await real(*given, **named)

        monkeypatch.setattr(steps, name, cutting)

    for name in names:
        cut(name)
    return cuts


def both(names: tuple[str, ...]) -> list[str]:
    return sorted(f"{name} {when}" for name in names for when in ("before", "after"))


def test_a_connection_that_is_lost_at_any_step_costs_nothing(
    board: LoopbackBoard, payloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sending goes on where it stopped, too: see below. `install_release` is cut where a device is online."""
    names = ("probe", "bring", "unpack", "clean", "switch", "is_enrolled", "give_token", "trouble", "install_service")
    steps_of_flash = set(re.findall(r"\bsteps\.([a-z_]+)\(", inspect.getsource(over_ssh)))
    assert steps_of_flash == {*names, "install_release"}
    cuts = cut_each(board, monkeypatch, names)
    done = flash(board, Wish(token="eo1.none", start=False), None, payloads)
    assert sorted(cuts) == both(names)
    assert board.run("readlink", "/opt/edgeops/current").strip() == f"versions/{done.version}"
    said = board.run("/opt/edgeops/current/bin/edgeops", "--version")
    assert "edgeops, version" in said
    assert board.run("ls", "/opt/edgeops/versions").split() == [done.version]


def test_half_a_file_is_gone_on_with_and_a_wrong_half_is_not(board: LoopbackBoard, tmp_path: Path) -> None:
    data = os.urandom(700_000)
    file = tmp_path / "file"
    file.write_bytes(data)
    sent: list[int] = []

    async def put(there: bytes) -> None:
        async with Link(board.login) as link:
            folder = await steps.incoming(link)
            (board.root / folder[1:] / "x").write_bytes(there)
            await link.put(file, f"{folder}/x", hashlib.sha256(data).hexdigest(), lambda done, _all: sent.append(done))
            assert (board.root / folder[1:] / "x").read_bytes() == data

    asyncio.run(put(data[:500_000]))
    assert min(sent) > 500_000
    asyncio.run(put(b"something else" * 1000))
    asyncio.run(put(data + b"more"))


def test_a_strange_host_key_and_a_wrong_key_are_refused(board: LoopbackBoard, tmp_path: Path, payloads: Path) -> None:
    nobody = tmp_path / "nobody"
    nobody.write_text("")
    wish = Wish(start=False)
    assert code(lambda: flash(board, wish, None, payloads, known_hosts=nobody)) == "E-FLASH-LOGIN"
    assert code(lambda: flash(board, wish, None, payloads, fingerprint="SHA256:" + "A" * 43)) == "E-FLASH-LOGIN"
    assert code(lambda: flash(board, wish, None, payloads, key_file=board.folder / "other_key")) == "E-FLASH-LOGIN"
    assert code(lambda: flash(board, wish, None, payloads, port=9)) == "E-FLASH-LINK"

    async def looks() -> str:
        async with Link(board.login._replace(known_hosts=None, fingerprint=board.fingerprint)) as link:
            return (await link.run("id", "-u")).out

    assert asyncio.run(looks()) == "0\n"
    assert not board.exists("/opt/edgeops")


def test_somebody_elses_folder_is_not_written_to(board: LoopbackBoard) -> None:
    folder = board.root / "var/tmp/edgeops-flash-0"
    folder.symlink_to("/etc")

    async def look() -> str:
        async with Link(board.login) as link:
            return await steps.incoming(link)

    assert code(lambda: asyncio.run(look())) == "E-FLASH-BOARD"


def test_a_version_that_does_not_start_is_never_switched_to(
    board: LoopbackBoard, payloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = over_ssh.build

    def broken(*given: Any) -> Any:
        good = real(*given)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            info = tarfile.TarInfo("edgeops/__init__.py")
            archive.addfile(info, io.BytesIO(b""))
        data = gzip.compress(packed.getvalue())
        file = tmp_path / "broken.tar.gz"
        file.write_bytes(data)
        return good._replace(file=file, sha256=hashlib.sha256(data).hexdigest(), version="0-broken")

    monkeypatch.setattr(over_ssh, "build", broken)
    assert code(lambda: flash(board, Wish(token="eo1.none", start=False), None, payloads)) == "E-FLASH-BOARD"
    assert not board.exists("/opt/edgeops/current")
    assert not board.exists("/opt/edgeops/versions/0-broken")
