"""A board belongs to one run at a time, and to nobody once its holder is gone."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from edgeops.contracts.errors import EdgeopsError
from hil.reservation import Reservation, resource_of
from hil.rig import read_rig

HOLD = """
import sys, time
from hil.reservation import Reservation
held = Reservation(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEOPS_CACHE", str(tmp_path))


def hold(resource: str) -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, resource], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_run_is_refused_and_the_holder_is_named() -> None:
    holder = hold("serial /dev/x")
    try:
        with pytest.raises(EdgeopsError, match=f"process {holder.pid}") as caught:
            Reservation("serial /dev/x")
        assert caught.value.code == "E-HIL-BUSY"
        Reservation("serial /dev/y").release()
    finally:
        holder.kill()
        holder.communicate()


def test_control_without_the_kernels_lock_the_second_run_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = hold("serial /dev/x")
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    try:
        Reservation("serial /dev/x").release()
    finally:
        holder.kill()
        holder.communicate()


def test_a_killed_holder_holds_nothing() -> None:
    holder = hold("serial /dev/x")
    holder.kill()
    holder.communicate()
    with Reservation("serial /dev/x", wait_s=60), pytest.raises(EdgeopsError):
        Reservation("serial /dev/x")


def test_two_rigs_that_name_one_piece_of_hardware_share_it(tmp_path: Path) -> None:
    (tmp_path / "line").touch()
    (tmp_path / "by-id").symlink_to("line")
    (tmp_path / "lab.yaml").touch()
    (tmp_path / "same.yaml").symlink_to("lab.yaml")

    def resource(name: str, *keys: str) -> str:
        lines = [f'name = "{name}"', 'title = "t"', "[[boards]]", f'name = "{name}"', 'profile = "cortex-m4"', *keys]
        (tmp_path / f"{name}.toml").write_text("\n".join([*lines, 'signing_key = "k"']))
        rig = read_rig(tmp_path / f"{name}.toml")
        return resource_of(rig, rig.boards[0])

    serial, labgrid = 'kind = "serial-mcu"', 'kind = "labgrid-mcu"'
    line = resource("a", serial, f'port = "{tmp_path}/line"')
    assert resource("b", serial, f'port = "{tmp_path}/by-id"') == line
    assert resource("c", serial, f'port = "{tmp_path}/other"') != line
    target = resource("a", labgrid, f'environment = "{tmp_path}/lab.yaml"')
    assert resource("b", labgrid, f'environment = "{tmp_path}/same.yaml"') == target
    assert resource("c", labgrid, f'environment = "{tmp_path}/lab.yaml"', 'target = "second"') != target
