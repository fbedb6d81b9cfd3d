"""Errors: stable codes, documented, and each with an exit status by whose fault it is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from edgeops.contracts.errors import ERROR_CODES, EdgeopsError, Fault

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"\bE-[A-Z0-9]+(?:-[A-Z0-9]+)*\b")


def test_every_code_in_the_source_is_registered_and_every_registered_code_is_used():
    files = subprocess.run(
        ["git", "ls-files", "edgeops/*.py", "firmware_bridge/*.py", "hil/*.py"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    used: set[str] = set()
    for name in files:
        if name != "edgeops/contracts/errors.py":
            used |= set(CODE.findall((ROOT / name).read_text()))
    assert used - set(ERROR_CODES) == set()
    assert set(ERROR_CODES) - used == set()


def test_every_code_is_in_the_reference():
    documented = set(CODE.findall((ROOT / "docs" / "reference" / "errors.md").read_text()))
    assert documented == set(ERROR_CODES)


def test_an_error_says_code_what_and_next_step():
    error = EdgeopsError("E-TOPIC", "no such topic", "Look it up.")
    assert str(error) == "E-TOPIC: no such topic\n  Look it up."
    assert error.exit_status == Fault.PEER.value
