"""Boards on loopback become devices in one go: real sshd, packages and control plane, cuts at any step, bad boards."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gzip
import hashlib
import inspect
import io
import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adder_bundles import MODEL, PROFILE, small_bundle
from click.testing import CliRunner
from fake_device import join
from loopback_board import Api, LoopbackBoard, code, flash, sshd
from served_fleet import Serving

from edgeops.cli import flash as cli
from edgeops.contracts.errors import EdgeopsError
from edgeops.flash import over_ssh, payload, steps
from edgeops.flash.link import Link
from edgeops.flash.over_ssh import Wish
from edgeops.releases import assemble
from edgeops.releases.export import export
from edgeops.releases.publish import publish
from edgeops.trust.founding import make_fleet

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("built_once"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the board needs root: mounts of its own, and sshd"),
    pytest.mark.skipif(sshd() is None, reason="no sshd: apt-get install --yes openssh-server, or make test-system"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="clocks are compiled: apt-get install --yes gcc libc6-dev"),
]


@pytest.fixture
def board(tmp_path: Path) -> Iterator[LoopbackBoard]:
    with LoopbackBoard(tmp_path / "board") as board:
        yield board


@pytest.mark.full
def test_a_bare_board_becomes_a_device_that_serves_in_one_go(
    board: LoopbackBoard, tmp_path: Path, payloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    make_fleet(home, "demo")
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


def test_two_that_bring_one_file_at_once_bring_it_whole_and_half_of_an_earlier_run_is_gone_on_with(
    board: LoopbackBoard, tmp_path: Path
) -> None:
    data = os.urandom(3_000_000)
    file, sha256 = tmp_path / "file", hashlib.sha256(data).hexdigest()
    file.write_bytes(data)
    folder = board.root / "var/tmp/edgeops-flash-0"

    async def all_bring(number: int) -> list[list[int]]:
        sent = [list[int]() for _ in range(number)]
        async with contextlib.AsyncExitStack() as stack:
            links = [await stack.enter_async_context(Link(board.login)) for _ in range(number)]
            where = await steps.incoming(links[0])
            # All at once: none is done before the others begin.
            await asyncio.gather(
                *(
                    link.put(file, f"{where}/x", sha256, lambda done, _all, mine=mine: mine.append(done))
                    for link, mine in zip(links, sent, strict=True)
                )
            )
        return sent

    asyncio.run(all_bring(3))
    assert (folder / "x").read_bytes() == data
    assert [one.name for one in folder.iterdir()] == ["x"]
    (folder / "x").unlink()
    # One that is being sent is nobody else's to go on with; one that nobody has touched for a while is.
    part = folder / "x.0011aabb.part"
    part.write_bytes(data[:2_000_000])
    (sent,) = asyncio.run(all_bring(1))
    assert min(sent) < 2_000_000
    assert part.exists()
    (folder / "x").unlink()
    os.utime(part, (time.time() - 3600, time.time() - 3600))
    (sent,) = asyncio.run(all_bring(1))
    assert min(sent) > 2_000_000
    assert (folder / "x").read_bytes() == data
    assert not part.exists()


def test_a_strange_host_key_and_a_wrong_key_are_refused(board: LoopbackBoard, tmp_path: Path, payloads: Path) -> None:
    nobody = tmp_path / "nobody"
    nobody.write_text("")
    wish = Wish(start=False)
    assert code(lambda: flash(board, wish, None, payloads, known_hosts=nobody)) == "E-FLASH-LOGIN"
    assert code(lambda: flash(board, wish, None, payloads, fingerprint="SHA256:" + "A" * 43)) == "E-FLASH-LOGIN"
    assert code(lambda: flash(board, wish, None, payloads, key_file=board.folder / "other_key")) == "E-FLASH-LOGIN"
    assert code(lambda: flash(board, wish, None, payloads, port=9)) == "E-FLASH-LINK"
    # A key that nobody could use is no trouble of the network's, and is told before the board is asked.
    shutil.copy(board.folder / "login_key", tmp_path / "locked")
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", tmp_path / "locked"], check=True)
    (tmp_path / "none").write_text("no key at all")
    for unusable in ("locked", "none", "is not there"):
        with pytest.raises(EdgeopsError, match=f"private key .*{unusable}") as caught:
            flash(board, wish, None, payloads, key_file=tmp_path / unusable, port=9)
        assert caught.value.code == "E-FLASH-LOGIN"

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
    real = payload.build

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

    monkeypatch.setattr(payload, "build", broken)
    assert code(lambda: flash(board, Wish(token="eo1.none", start=False), None, payloads)) == "E-FLASH-BOARD"
    assert not board.exists("/opt/edgeops/current")
    assert not board.exists("/opt/edgeops/versions/0-broken")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("fleet") / "home"
    make_fleet(home, "demo")
    serving = Serving(home, "auto")
    serving.start()
    yield serving
    serving.stop()


def flash_batch(serving: Serving, boards: dict[str, LoopbackBoard], folder: Path, *options: str) -> dict[str, Any]:
    """Flash a table of boards by the command; return its status, its error and what it printed."""
    known = folder / "known_hosts"
    known.write_text("".join((board.folder / "known_hosts").read_text() for board in boards.values()))
    result = CliRunner().invoke(
        cli.command,
        ["batch", str(folder / "plan.csv"), "--home", str(serving.home), "--known-hosts", str(known), *options],
    )
    assert isinstance(result.exception, EdgeopsError | None)
    return {"status": result.exception.exit_status if result.exception else 0, "error": str(result.exception),
            "out": result.stdout}  # fmt: skip


@pytest.mark.parametrize("good", [1, pytest.param(3, marks=pytest.mark.full)])
def test_in_a_batch_bad_boards_are_told_apart_and_the_good_become_devices(
    good: int, serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(over_ssh, "TRIES", 2)
    monkeypatch.setattr(over_ssh, "_RETRY_FIRST_S", 0.05)
    monkeypatch.setenv("EDGEOPS_SSH_PASSWORD", "the right one")
    asked: dict[str, dict[str, Any]] = {
        "other-password": {"password": "another one"}, "small": {"opt_mib": 64}, "other-key": {}, "arm": {},
        "right-password": {"password": "the right one", "opt_mib": 64},
        **{f"good-{good}-{number}": {"clock_s": 60.0} for number in range(good)},
    }  # fmt: skip
    with contextlib.ExitStack() as all_boards:
        boards = {
            name: all_boards.enter_context(LoopbackBoard(tmp_path / name, **given)) for name, given in asked.items()
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            dead = free.getsockname()[1]
        rows = ["host,port,key,host_key,profile,name", f"127.0.0.1,{dead},,,,dead"]
        for name, board in boards.items():
            strange = "SHA256:" + "A" * 43 if name == "other-key" else ""
            profile = "raspberry-pi-4" if name == "arm" else ""
            rows.append(f"127.0.0.1,{board.port},{board.login.key_file},{strange},{profile},{name}")
        (tmp_path / "plan.csv").write_text("\n".join(rows) + "\n")
        devices = [name for name in boards if name.startswith("good")]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for name in devices:
                pool.submit(boards[name].start_service)
            said = flash_batch(serving, boards, tmp_path, "--json", "--at-once", "4")
        found = dict(zip(["dead", *boards], json.loads(said["out"]), strict=True))
        assert said["status"] == 4
        assert f"6 of {6 + good} failed: 127.0.0.1" in said["error"]
        assert {name: one["code"] for name, one in found.items()} == {
            "dead": "E-FLASH-LINK", "other-password": "E-FLASH-LOGIN", "small": "E-FLASH-BOARD",
            "other-key": "E-FLASH-LOGIN", "arm": "E-FLASH-BOARD", "right-password": "E-FLASH-BOARD",
            **dict.fromkeys(devices, ""),
        }  # fmt: skip
        assert "refuses root" in found["other-password"]["said"]
        assert "host key" in found["other-key"]["said"]
        assert "MiB are free" in found["small"]["said"]
        assert "MiB are free" in found["right-password"]["said"]
        assert "it is x86_64, profile raspberry-pi-4 is aarch64" in found["arm"]["said"]
        assert [found[name]["done"]["device"] for name in devices] == devices
        assert all("its clock is wrong" in " ".join(found[name]["done"]["notes"]) for name in devices)
        online = {device.connection for device in serving.api.devices() if device.online}
        assert set(devices) <= online
        assert not online & {"dead", *boards.keys() - set(devices)}
        for name in boards.keys() - set(devices):
            assert not boards[name].exists("/opt/edgeops"), name
            assert not boards[name].exists("/etc/edgeops"), name


def test_two_rows_for_one_board_are_refused_before_any_is_touched(serving: Serving, tmp_path: Path) -> None:
    with LoopbackBoard(tmp_path / "board") as board:
        row = f"127.0.0.1,{board.port},{board.login.key_file}\n"
        (tmp_path / "plan.csv").write_text("host,port,key\n" + row + row)
        said = flash_batch(serving, {"board": board}, tmp_path)
        assert said["status"] == 2
        assert f"two boards have the address 127.0.0.1:{board.port}" in said["error"]
        assert not board.exists("/opt/edgeops")


@pytest.mark.full
def test_a_board_in_1970_is_told_of_tokens_that_do_not_hold_and_joins_with_one_that_does(
    serving: Serving, tmp_path: Path, payloads: Path
) -> None:
    """Expired, used by another board, of no fleet; each time the board is left as it was, and goes on from there."""
    expired = serving.api.create_token(profile=PROFILE, name="old", valid_s=0.001).token
    used = serving.api.create_token(profile=PROFILE, name="first").token
    join(tmp_path / "first", used, profile=PROFILE, name="first")
    with LoopbackBoard(tmp_path / "board", clock_s=60.0) as board:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for token in (expired, used):
                running = pool.submit(board.start_service)
                with pytest.raises(EdgeopsError, match="unknown, used or expired") as caught:
                    flash(board, Wish(token=token, name="late"), Api(serving), payloads)
                assert caught.value.code == "E-TOKEN"
                running.result()
                board.stop_service()
                board.run("rm", "/etc/systemd/system/edgeops-agent.service")
                assert {one.connection for one in serving.api.devices()} >= {"first"}
                assert not board.exists("/var/lib/edgeops/identity/enrolment.json")
            pool.submit(board.start_service)
            done = flash(board, Wish(name="late"), Api(serving), payloads)
        assert (done.device, done.online) == ("late", True)
        assert any("its clock is wrong" in note for note in done.notes)
        board.stop_service()


def test_a_user_without_sudo_another_processor_and_a_full_disk_are_refused(tmp_path: Path, payloads: Path) -> None:
    with LoopbackBoard(tmp_path / "board", tmp_mib=4) as board:
        wish = Wish(token="eo1.none", start=False)
        with pytest.raises(EdgeopsError, match="sudo asks for a password") as caught:
            flash(board, wish, None, payloads, user="op")
        assert caught.value.code == "E-FLASH-BOARD"
        with pytest.raises(EdgeopsError, match="profile jetson-orin-nano is aarch64"):
            flash(board, wish._replace(profile="jetson-orin-nano"), None, payloads)
        with pytest.raises(EdgeopsError, match="Is there room"):
            flash(board, wish, None, payloads)
        assert not board.exists("/opt/edgeops")
    assert code(lambda: flash(board, wish, None, payloads)) == "E-FLASH-LINK"
