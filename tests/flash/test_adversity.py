"""Many boards at once, some of them bad, and fleets that take nobody: told apart, and nobody else is disturbed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adder_bundles import PROFILE
from click.testing import CliRunner
from fake_device import join
from loopback_board import Api, LoopbackBoard, code, flash, sshd
from served_fleet import Serving

from edgeops.cli import flash as cli
from edgeops.contracts.errors import EdgeopsError
from edgeops.flash import over_ssh
from edgeops.flash.over_ssh import Wish
from edgeops.trust.publisher import Publisher

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("built_once"),
    pytest.mark.skipif(os.geteuid() != 0, reason="boards need root: mounts of their own, and sshd"),
    pytest.mark.skipif(sshd() is None, reason="no sshd: apt-get install --yes openssh-server, or make test-system"),
    pytest.mark.skipif(
        shutil.which("gcc") is None, reason="a clock in 1970 is compiled: apt-get install --yes gcc libc6-dev"
    ),
]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("fleet") / "home"
    Publisher.init(home, "demo")
    serving = Serving(home, "auto")
    serving.start()
    yield serving
    serving.stop()


def one_by_one(serving: Serving, boards: dict[str, LoopbackBoard], folder: Path, *options: str) -> dict[str, Any]:
    """Flash a table of boards by the command; return status, output and what became of each, by its port."""
    known = folder / "known_hosts"
    known.write_text("".join((board.folder / "known_hosts").read_text() for board in boards.values()))
    result = CliRunner().invoke(
        cli.command,
        ["batch", str(folder / "plan.csv"), "--home", str(serving.home), "--known-hosts", str(known), *options],
    )
    assert isinstance(result.exception, EdgeopsError | None)
    return {"status": result.exception.exit_status if result.exception else 0, "error": str(result.exception),
            "out": result.stdout, "err": result.stderr}  # fmt: skip


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
        **{f"good-{good}-{number}": {} for number in range(good)},
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
            said = one_by_one(serving, boards, tmp_path, "--json", "--at-once", "4")
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
        said = one_by_one(serving, {"board": board}, tmp_path)
        assert said["status"] == 2
        assert f"two boards have the address 127.0.0.1:{board.port}" in said["error"]
        assert not board.exists("/opt/edgeops")


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
