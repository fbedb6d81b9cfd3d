"""The slot store on a flash that loses power at every word write and sector erase: no device is ever bricked."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from firmware_bridge.build import powercut

pytestmark = pytest.mark.usefixtures("host_compiler")

# A mutant, and what the proof must find in it.
MUTANTS = {
    "SAME_SECTOR": "the confirmed blob is lost",
    "RESUME_MID_SECTOR": "the update cannot be finished",
    "TRIAL_UNRECORDED": "the life goes wrong without any cut",
}


def prove(
    mutant: str | None = None, *, sector: int, sectors: int, blob: int, word: int, stride: int = 1, second: int = 0
) -> dict[str, Any]:
    arguments = [str(value) for value in (sector, sectors, blob, word, stride, second)]
    done = subprocess.run([powercut(mutant), *arguments], capture_output=True, text=True, timeout=3000)
    result: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if result["bricks"] == 0 else 1), done.stderr
    return result


def test_a_cut_at_every_operation_bricks_nothing():
    """Every word write and sector erase, five kinds of damage each, and every 40th operation of the recovery."""
    result = prove(sector=256, sectors=4, blob=700, word=4, second=40)
    assert result["bricks"] == 0, result
    assert result["operations"] > 400
    assert result["cuts"] == 5 * result["operations"]
    assert result["second_cuts"] > result["cuts"]


def test_every_pair_of_cuts_bricks_nothing_on_flash_with_wide_words():
    result = prove(sector=256, sectors=4, blob=1000, word=32, second=1)
    assert result["bricks"] == 0, result
    assert result["second_cuts"] > 10 * result["cuts"]


@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_a_store_with_one_rule_broken_bricks(mutant: str):
    """Negative control: the proof finds what it looks for."""
    result = prove(mutant, sector=256, sectors=4, blob=700, word=4)
    assert result["bricks"] > 0
    assert result["first_brick"] == MUTANTS[mutant]


@pytest.mark.full
@pytest.mark.parametrize(
    ("sector", "sectors", "blob", "word", "second"),
    [(4096, 5, 18000, 4, 0), (4096, 5, 18000, 16, 97), (256, 4, 700, 4, 1), (512, 3, 1501, 8, 1), (256, 4, 1024, 4, 3)],
    ids=["real-size", "real-size-second-cuts", "every-pair", "every-pair-8", "full-slot"],
)
@pytest.mark.timeout(3000)
def test_exhaustive_cuts_brick_nothing(sector: int, sectors: int, blob: int, word: int, second: int):
    result = prove(sector=sector, sectors=sectors, blob=blob, word=word, second=second)
    assert result["bricks"] == 0, result
    assert result["cuts"] == 5 * result["operations"]
