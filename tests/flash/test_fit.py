"""Whether a board can be served is decided from facts; what cannot be is refused with what to do."""

from __future__ import annotations

import concurrent.futures
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgeops.contracts.enrolment import EnrolmentToken
from edgeops.contracts.errors import EdgeopsError
from edgeops.flash import facts, fit, payload
from edgeops.flash.batch import read_plan
from edgeops.flash.facts import Board, Python
from edgeops.flash.payload import platforms
from edgeops.profiles import registry

PI = Board(
    arch="aarch64", os="Debian GNU/Linux 12 (bookworm)", glibc=(2, 36), model="Raspberry Pi 4 Model B Rev 1.5",
    pythons=(Python((3, 11), "/usr/bin/python3.11"),), memory_mib=3792, disk_mib=20000, l4t=None, jetpack="", cuda="",
    tensorrt="", onnxruntime="", power_mode="", clocks="ondemand", accelerators=(), systemd=252, systemd_runs=True,
    root="sudo", clock_s=1_790_000_000, versions=(), current="",
)  # fmt: skip
ORIN = PI._replace(
    model="NVIDIA Jetson Orin Nano Developer Kit", os="Ubuntu 22.04.4 LTS", glibc=(2, 35), l4t=(36, 4),
    pythons=(Python((3, 10), "/usr/bin/python3.10"),), cuda="/usr/local/cuda-12.6", power_mode="NV Power Mode: 15W",
)  # fmt: skip


def choose(board: Board, profile: str = "raspberry-pi-4", **given: Any) -> fit.Choice:
    return fit.choose(board, registry.load(profile), **given)


def test_this_machine_answers_the_script() -> None:
    said = subprocess.run(["sh", "-c", facts.SCRIPT, "sh", "/opt"], capture_output=True, check=True, timeout=60).stdout
    board = facts.read(said)
    assert board.arch == subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()
    assert board.glibc is not None
    assert board.memory_mib > 100
    assert board.pythons
    assert all(Path(python.path).exists() for python in board.pythons)


@pytest.mark.parametrize("said", [b"", b"\xff\xfe", b"arch=", b"Password:", b"x" * 100_000])
def test_what_is_no_answer_is_refused(said: bytes) -> None:
    with pytest.raises(EdgeopsError) as caught:
        facts.read(said)
    assert caught.value.code == "E-FLASH-BOARD"


def test_odd_values_are_no_facts() -> None:
    board = facts.read(
        b"arch=x\nkernel=6\nmemory_kib=lots\nglibc=musl\npython=3.11 relative/python\npython=3.12 /usr/p\n"
    )
    assert (board.memory_mib, board.glibc, board.pythons) == (0, None, (Python((3, 12), "/usr/p"),))


@pytest.mark.parametrize(
    ("board", "profile"),
    [
        (PI, "raspberry-pi-4"), (PI._replace(model="Raspberry Pi 5 Model B"), "raspberry-pi-5"),
        (ORIN, "jetson-orin-nano"),
        (PI._replace(model="Raspberry Pi Zero 2 W"), "raspberry-pi-zero-2w"), (PI._replace(model=""), "generic-arm64"),
        (PI._replace(model="", arch="x86_64"), "generic-x86-64"),
        (PI._replace(model="NVIDIA Jetson Orin NX"), "jetson-orin-nx"),
    ],
)  # fmt: skip
def test_a_board_says_what_it_is(board: Board, profile: str) -> None:
    assert fit.guess_profile(board, registry.names()) == profile


def test_a_pi_gets_its_runtimes_and_a_jetson_keeps_its_own() -> None:
    chosen = choose(PI)
    assert (chosen.python.version, chosen.system_packages) == ((3, 11), False)
    assert {"agent", "litert"} <= set(chosen.extras)
    plain = choose(ORIN, "jetson-orin-nano")
    assert "onnxruntime" in plain.extras
    assert any("TensorRT" in note for note in plain.notes)
    own = ORIN._replace(onnxruntime="1.20.0 TensorrtExecutionProvider CUDAExecutionProvider CPUExecutionProvider")
    chosen = choose(own, "jetson-orin-nano")
    assert chosen.system_packages
    assert "onnxruntime" not in chosen.extras
    assert any("15W" in note for note in chosen.notes)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"arch": "armv7l"}, "is armv7l"), ({"root": ""}, "sudo asks for a password"), ({"glibc": None}, "no glibc"),
        ({"pythons": ()}, "Python none"), ({"pythons": (Python((3, 8), "/p"),)}, "Python 3.8"),
        ({"l4t": (35, 5)}, "JetPack 5"), ({"memory_mib": 128}, "128 MiB"), ({"glibc": (2, 17)}, "glibc is 2.17"),
    ],
)  # fmt: skip
def test_a_board_that_cannot_be_served_is_refused_with_what_to_do(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(EdgeopsError, match=says) as caught:
        choose(PI._replace(**changed))
    assert caught.value.code == "E-FLASH-BOARD"
    assert caught.value.next_step


def test_space_is_looked_at_before_the_first_byte() -> None:
    assert choose(PI._replace(disk_mib=700), size_mib=500)
    with pytest.raises(EdgeopsError, match="699 MiB are free, 500"):
        choose(PI._replace(disk_mib=699), size_mib=500)
    assert any("clock is wrong" in note for note in choose(PI._replace(clock_s=3)).notes)


def test_an_unsupported_profile_says_why() -> None:
    with pytest.raises(EdgeopsError) as caught:
        choose(ORIN, "jetson-xavier-nx")
    assert caught.value.code == "E-PROFILE-UNSUPPORTED"


def test_wheels_are_no_newer_than_the_boards_glibc() -> None:
    tags = platforms("aarch64", (2, 31))
    assert tags[0] == "manylinux_2_31_aarch64"
    assert "manylinux_2_32_aarch64" not in tags
    assert "manylinux2014_aarch64" in tags


def test_a_fleet_that_only_this_machine_reaches_is_named() -> None:
    def note(server: str, host: str) -> str:
        hashes = {"ca_sha256": "a" * 64, "root_sha256": "b" * 64}
        return fit.server_note(EnrolmentToken(server=server, fleet="f", secret="s" * 43, **hashes).to_text(), host)

    assert "127.0.0.1, which is the board itself" in note("https://127.0.0.1:8443", "pi.lab")
    assert note("https://localhost:8443", "")
    assert note("https://[::1]:8443", "10.0.0.2")
    assert not note("https://control.lab:8443", "pi.lab")
    assert not note("https://127.0.0.1:8443", "127.0.0.1")
    assert not fit.server_note("eo1.none", "pi.lab")


def test_boards_of_one_kind_share_one_payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight at the same time: resolved once for each kind, and once more where it went wrong."""
    made: list[tuple[int, int]] = []

    def build(board: Board, choice: fit.Choice, *_: Any) -> payload.Payload:
        made.append(choice.python.version)
        if len(made) == 1:
            raise EdgeopsError("E-FLASH-WHEELS", "no network for a moment")
        return payload.Payload(tmp_path, "1", "ab", 1, ())

    monkeypatch.setattr(payload, "build", build)
    packer = payload.Packer()
    with pytest.raises(EdgeopsError):
        packer.build(PI, choose(PI), tmp_path, str)
    others = PI._replace(pythons=(Python((3, 12), "/usr/bin/python3.12"),))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        boards = [PI, others] * 4
        assert len(set(pool.map(lambda one: packer.build(one, choose(one), tmp_path, str), boards))) == 1
    assert sorted(made) == [(3, 11), (3, 11), (3, 12)]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("name\na\n", r":1: columns"), ("host,color\na,red\n", r":1: columns"), ("host\n", "0 boards"),
        ("host,port\na,99999\n", r":2: host"), ("host\na\na\n", "two boards have the address"),
        ("host,name\na,x\nb,x\n", "two boards have the name x"), ("host,name\na\n", r":2: another number"),
        ("host,port\na,\nA,22\n", "two boards have the address a:22"), ("host,key\na,/no/key\n", r":2: no key"),
        ("host,name\na,b,c\n", r":2: another number"), ("host,name\n,x\n", r":2: host"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused_with_its_line(tmp_path: Path, table: str, says: str) -> None:
    path = tmp_path / "plan.csv"
    path.write_text(table)
    with pytest.raises(EdgeopsError, match=says) as caught:
        read_plan(path)
    assert caught.value.code == "E-CONFIG"


def test_a_good_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.csv"
    path.write_bytes("\ufeffhost,port,profile,name\npi.lab,2222,raspberry-pi-4,pi-1\n10.0.0.2,,,\n".encode())
    first, second = read_plan(path)
    assert (first.host, first.port, first.profile, first.name, first.line) == (
        "pi.lab",
        2222,
        "raspberry-pi-4",
        "pi-1",
        2,
    )
    assert (second.host, second.port, second.profile, second.name) == ("10.0.0.2", None, "", "")
