"""Rig files: what is wrong is named with its line and key; what is right is one of the known kinds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeops.contracts.errors import EdgeopsError
from hil.boards.kinds import KINDS
from hil.doctor import examine
from hil.rig import BUILTIN_RIGS, find_rig, kind_of, read_rig

GOOD = """name = "bench"
title = "A bench"

[[boards]]
name = "one"
kind = "local"
profile = "generic-x86-64"

[[boards]]
name = "two"
kind = "qemu-cortex-m"
machine = "mps2-an386"
profile = "cortex-m4"

[[boards]]
name = "three"
kind = "labgrid"
profile = "raspberry-pi-4"
environment = "lab.yaml"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "bench.toml"
    path.write_text(text)
    return path


def test_a_good_rig_is_read_and_every_builtin_one_is_good(tmp_path: Path) -> None:
    assert [kind_of(board) for board in read_rig(write(tmp_path, GOOD)).boards] == [
        "local",
        "qemu-cortex-m",
        "labgrid",
    ]
    for path in BUILTIN_RIGS.glob("*.toml"):
        assert all(kind_of(board) in KINDS for board in read_rig(path).boards), path


@pytest.mark.parametrize(
    ("old", "new", "line", "key"),
    [
        ('machine = "mps2-an386"', 'machine = "mps2-an999"', 12, "machine"),
        ('machine = "mps2-an386"\n', "", 9, "machine"),
        ('profile = "cortex-m4"', 'profile = "cortex-m99"', 13, "cortex-m99"),
        ('profile = "cortex-m4"', 'profile = "intel-nuc"', 13, "intel-nuc"),
        ('kind = "local"', 'kind = "locale"', 6, "locale"),
        ('kind = "local"', 'kind = "local"\nboot_within_s = -1', 7, "boot_within_s"),
        ('kind = "local"', 'kind = "local"\nspeed = 3', 7, "speed"),
        ('name = "two"', 'name = "one"', 10, "one"),
        ('title = "A bench"', "title = 3", 2, "title"),
        ('title = "A bench"', 'title = "A bench', 2, "line 2"),
        ('environment = "lab.yaml"\n', "", 15, "environment"),
        ('environment = "lab.yaml"', 'environment = "lab.yaml"\nplace = "p"', 20, "place"),
        ('kind = "labgrid"', 'kind = "labgrid-mcu"', 15, "signing_key"),
        ('profile = "raspberry-pi-4"', 'profile = "cortex-m4"', 18, "cortex-m4"),
        ('name = "bench"', 'name = "other"', 1, "other"),
        ('name = "bench"', 'name = "bench"\npurposes = ["fun"]', 2, "purposes"),
    ],
)
def test_a_wrong_rig_is_refused_with_line_and_key(tmp_path: Path, old: str, new: str, line: int, key: str) -> None:
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(EdgeopsError, match=re.escape(key)) as caught:
        read_rig(path)
    assert caught.value.code == "E-HIL-RIG"
    assert caught.value.what.startswith(f"{path}:{line}: "), caught.value.what


SWITCHED = """name = "bench"
title = "b"
[[boards]]
name = "pi"
kind = "ssh"
profile = "raspberry-pi-4"
host = "pi.lab"
[boards.power]
on = ["switch", "on"]
off = ["switch", "off"]
[[boards]]
name = "here"
kind = "local"
profile = "generic-x86-64"
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "key"),
    [
        ('on = ["switch", "on"]', "on = []", 9, "power.on"),
        ('off = ["switch", "off"]', "off = 3", 10, "power.off"),
        ('off = ["switch", "off"]\n', "", 8, "off"),
        ('off = ["switch", "off"]', 'off = ["x"]\nagain = 1', 11, "again"),
        ('kind = "local"', 'kind = "locale"', 13, "locale"),
    ],
)
def test_a_wrong_switch_is_refused_with_its_own_line(tmp_path: Path, old: str, new: str, line: int, key: str) -> None:
    read_rig(write(tmp_path, SWITCHED))
    path = write(tmp_path, SWITCHED.replace(old, new, 1))
    with pytest.raises(EdgeopsError, match=re.escape(key)) as caught:
        read_rig(path)
    assert caught.value.what.startswith(f"{path}:{line}: "), caught.value.what


def test_a_rig_without_boards_is_refused_with_their_line(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "bench"\ntitle = "b"\nboards = []\n')
    with pytest.raises(EdgeopsError, match="boards") as caught:
        read_rig(path)
    assert caught.value.what.startswith(f"{path}:3: ")


def test_an_unknown_rig_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    assert find_rig("bench", (tmp_path,)) == tmp_path / "bench.toml"
    with pytest.raises(EdgeopsError, match=r"bench, .*this-machine") as caught:
        find_rig("nothing", (tmp_path,))
    assert caught.value.code == "E-HIL-RIG"


def test_the_doctor_names_what_a_board_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    text = GOOD.replace("qemu-cortex-m", "serial-mcu").replace('machine = "mps2-an386"', 'port = "/dev/nothing"')
    text = text.replace('port = "/dev/nothing"', 'port = "/dev/nothing"\nsigning_key = "/nowhere.pem"')
    local, serial, _ = examine(read_rig(write(tmp_path, text)))
    assert not local.missing
    assert serial.missing == "no /dev/nothing"
    emulated = examine(read_rig(write(tmp_path, GOOD)))[1]
    assert emulated.missing == "no qemu-system-arm"
    assert "apt-get install" in emulated.next_step
