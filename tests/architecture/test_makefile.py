"""Tasks of the Makefile that have several parts: none hides another's failure."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("missing", ["", "agent", "serving loadgen"])
def test_each_part_of_bench_agent_runs_and_the_end_says_which_missed(tmp_path: Path, missing: str) -> None:
    """A stand-in for Python notes which part it is asked to run, and fails for some."""
    notes = tmp_path / "notes"
    (tmp_path / "python").write_text(
        f'#!/bin/sh\necho "$2" >> {notes}\nfor part in {missing}; do [ "$2" != "benchmarks.$part" ] || exit 1; done\n'
    )
    (tmp_path / "pip").write_text("#!/bin/sh\n")
    for name in ("python", "pip"):
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["make", "-s", "-o", "install", "-o", "system", "bench-agent", f"BIN={tmp_path}"],
        cwd=ROOT, env={**os.environ, "EDGEOPS_NO_APT": "1"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert notes.read_text().split() == ["benchmarks.agent", "benchmarks.serving", "benchmarks.loadgen"]
    assert (done.returncode == 0) is (not missing)
    if missing:
        assert f"failed, or above a target: {missing}" in done.stdout
