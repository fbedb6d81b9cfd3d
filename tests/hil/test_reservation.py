"""A board belongs to one run at a time, and to nobody once its holder is gone."""

from __future__ import annotations

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
time.sleep(60)
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


def test_a_killed_holder_holds_nothing() -> None:
    holder = hold("serial /dev/x")
    holder.kill()
    holder.communicate()
    with Reservation("serial /dev/x", wait_s=5), pytest.raises(EdgeopsError):
        Reservation("serial /dev/x")


def test_two_rigs_that_name_one_piece_of_hardware_share_it(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(
            f'name = "{name}"\ntitle = "t"\n[[boards]]\nname = "x"\nkind = "serial-mcu"\nport = "/dev/{name}"\n'
            'signing_key = "k"\nprofile = "cortex-m4"\n'
        )
        (tmp_path / f"{name}-port").touch()
        rig = read_rig(tmp_path / f"{name}.toml")
        made.append(resource_of(rig, rig.boards[0]))
    assert made == ["serial /dev/a", "serial /dev/b"]
