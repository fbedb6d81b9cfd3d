"""A board belongs to one run at a time, and to nobody once its holder is gone."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeops.contracts.errors import EdgeopsError
from hil.reservation import Reservation, resource_of
from hil.rig import Rig, SshSpec, read_rig

HOLD = """
import sys, time
from hil.reservation import Reservation
held = Reservation(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""

# A line has one holder on the whole machine, whatever the cache: this one is these tests' alone.
LINE = f"serial /dev/x-{os.getpid()}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEOPS_CACHE", str(tmp_path))


def hold(resource: str, cache: Path | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, **({"EDGEOPS_CACHE": str(cache)} if cache else {})}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, resource], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_run_is_refused_and_the_holder_is_named() -> None:
    holder = hold(LINE)
    try:
        with pytest.raises(EdgeopsError, match=f"process {holder.pid}") as caught:
            Reservation(LINE)
        assert caught.value.code == "E-HIL-BUSY"
        Reservation(LINE + "y").release()
    finally:
        holder.kill()
        holder.communicate()


def test_control_without_the_kernels_lock_the_second_run_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = hold("local")
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    try:
        Reservation("local").release()
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize(
    "resource",
    [
        f"ssh pi-{os.getpid()}.lab:22",
        pytest.param(LINE, marks=pytest.mark.boards),
        pytest.param(f"labgrid /lab-{os.getpid()}.yaml main", marks=pytest.mark.boards),
    ],
    ids=["ssh", "serial", "labgrid"],
)
def test_a_board_that_is_there_once_is_not_shared_by_users_with_caches_of_their_own(
    tmp_path: Path, resource: str
) -> None:
    """A CI's account and a person have a cache each, and one board."""
    holder = hold(resource, tmp_path / "another")
    try:
        with pytest.raises(EdgeopsError, match=f"process {holder.pid} of user {os.getuid()}") as caught:
            Reservation(resource)
        assert caught.value.code == "E-HIL-BUSY"
    finally:
        holder.kill()
        holder.communicate()
    with Reservation(resource, wait_s=60), pytest.raises(EdgeopsError):
        Reservation(resource)
    Reservation(resource).release()


def test_what_a_cache_has_of_its_own_is_held_in_that_cache_alone(tmp_path: Path) -> None:
    """Control: without a name in the kernel, another cache knows nothing of the holder."""
    holder = hold("arm64-user", tmp_path / "another")
    try:
        Reservation("arm64-user").release()
    finally:
        holder.kill()
        holder.communicate()


def test_a_killed_holder_holds_nothing() -> None:
    holder = hold(LINE)
    holder.kill()
    holder.communicate()
    with Reservation(LINE, wait_s=60), pytest.raises(EdgeopsError):
        Reservation(LINE)


def ssh(host: str) -> SshSpec:
    return SshSpec(name="pi", profile="raspberry-pi-4", host=host)


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
    pi = [resource_of(Rig(name="r", title="", boards=(board,)), board) for board in (ssh("Pi.Lab"), ssh("pi.lab"))]
    assert pi[0] == pi[1]
    assert resource("c", serial, f'port = "{tmp_path}/other"') != line
    target = resource("a", labgrid, f'environment = "{tmp_path}/lab.yaml"')
    assert resource("b", labgrid, f'environment = "{tmp_path}/same.yaml"') == target
    assert resource("c", labgrid, f'environment = "{tmp_path}/lab.yaml"', 'target = "second"') != target
