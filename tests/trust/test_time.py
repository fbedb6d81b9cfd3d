"""The one time rule: never behind what was proven, never stuck because a clock was wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_repository import refused

from edgeops.__about__ import BUILD_TIME_S
from edgeops.trust.time import Clock, trusted_now

Y1970, Y2027, Y2100 = 0.0, 1_800_000_000.0, 4_102_444_800.0
BUILD = 1_790_000_000.0


@pytest.mark.parametrize(
    ("system", "floor", "issued", "now"),
    [
        (Y1970, 0, 0, BUILD),
        (Y1970, Y2027, 0, Y2027),
        (Y1970, 0, Y2027, Y2027),
        (Y1970, Y2027 + 5, Y2027, Y2027 + 5),
        (Y2027, 0, 0, Y2027),
        (Y2027, Y2027 - 9, Y2027 - 3, Y2027),
        (Y2027 - 86400, Y2027, 0, Y2027),
        (Y2100, Y2027, 0, Y2100),
        (-1e9, 0, 0, BUILD),
        (BUILD, BUILD, BUILD, BUILD),
    ],
)
def test_the_table_of_the_time_rule(system: float, floor: float, issued: float, now: float):
    assert trusted_now(system_s=system, build_s=BUILD, floor_s=floor, newest_issued_s=issued) == now


@given(st.lists(st.floats(-1e12, 1e12), min_size=4, max_size=4))
def test_it_is_never_behind_any_of_its_four_sources(sources: list[float]):
    now = trusted_now(system_s=sources[0], build_s=sources[1], floor_s=sources[2], newest_issued_s=sources[3])
    assert now == max(sources)


def test_a_restart_in_1970_keeps_what_was_proven(tmp_path: Path):
    Clock(tmp_path / "floor", system=lambda: Y2027).observe(Y2027 - 60)
    assert Clock(tmp_path / "floor", system=lambda: Y1970).now() == Y2027 - 60
    # Control: without the floor it would be build time.
    assert Clock(tmp_path / "other", system=lambda: Y1970).now() == BUILD_TIME_S


def test_a_clock_that_jumped_to_2100_is_wrong_only_while_it_is_wrong(tmp_path: Path):
    system = [Y2027]
    clock = Clock(tmp_path / "floor", system=lambda: system[0])
    system[0] = Y2100
    assert clock.now() == Y2100
    clock.observe(Y2027)
    system[0] = Y2027 + 10
    assert clock.now() == Y2027 + 10
    assert Clock(tmp_path / "floor", system=lambda: Y2027 + 20).now() == Y2027 + 20


def test_a_clock_that_jumps_back_does_not_bring_expired_things_back(tmp_path: Path):
    system = [Y2027]
    clock = Clock(tmp_path / "floor", system=lambda: system[0])
    clock.observe(Y2027)
    system[0] = Y1970
    assert clock.now() == Y2027


def test_an_older_statement_never_lowers_the_floor(tmp_path: Path):
    clock = Clock(tmp_path / "floor", system=lambda: Y1970)
    clock.observe(Y2027)
    written = (tmp_path / "floor").read_bytes()
    clock.observe(Y2027 - 1000)
    clock.observe(math.nan)
    assert clock.now() == Y2027
    assert (tmp_path / "floor").read_bytes() == written


def test_a_stolen_online_key_cannot_push_a_device_past_the_root(tmp_path: Path):
    """A statement signed for 2100 raises the floor to the root's expiry at most; a renewed root lies beyond it."""
    clock = Clock(tmp_path / "floor", system=lambda: Y2027)
    root_expires = Y2027 + 365 * 86400
    clock.limit(root_expires)
    clock.observe(Y2100)
    assert clock.now() == root_expires
    again = Clock(tmp_path / "floor", system=lambda: Y2027)
    assert again.now() == root_expires
    # Control: without the limit the device would live in 2100 for ever.
    unlimited = Clock(tmp_path / "unlimited", system=lambda: Y2027)
    unlimited.observe(Y2100)
    assert Clock(tmp_path / "unlimited", system=lambda: Y2027).now() == Y2100


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b"{}", b'{"floor_s": "x"}', b"[1]", b"\xff"])
def test_a_damaged_floor_starts_from_build_time(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture):
    (tmp_path / "floor").write_bytes(damage)
    clock = Clock(tmp_path / "floor", system=lambda: Y1970)
    assert clock.now() == BUILD_TIME_S
    assert "floor is lost" in caplog.text
    clock.observe(Y2027)
    assert Clock(tmp_path / "floor", system=lambda: Y1970).now() == Y2027


def test_a_floor_that_cannot_be_written_still_holds_until_restart(tmp_path: Path):
    clock = Clock(tmp_path / "missing" / "floor", system=lambda: Y1970)
    with refused("E-DISK-WRITE"):
        clock.observe(Y2027)
    assert clock.now() == Y2027
