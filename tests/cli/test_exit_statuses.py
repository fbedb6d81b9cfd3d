"""What a program that runs edgeops can rely on: one table of exit statuses, in code and docs alike."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgeops.contracts.errors import ERROR_CODES, EXIT_STATUSES, INTERRUPTED, Fault

ROOT = Path(__file__).parents[2]


def table(page: str) -> dict[int, str]:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / page).read_text(), re.MULTILINE)
    return {int(status): meaning for status, meaning in rows}


@pytest.mark.parametrize("page", ["docs/guide/ci.md", "docs/reference/errors.md"])
def test_the_docs_list_exactly_the_statuses_of_the_code(page: str):
    assert table(page) == EXIT_STATUSES


def test_every_error_code_ends_with_a_listed_status():
    assert {entry.fault.value for entry in ERROR_CODES.values()} <= EXIT_STATUSES.keys()
    assert EXIT_STATUSES.keys() == {0, INTERRUPTED, *(fault.value for fault in Fault)}


def ended(*words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys; from edgeops.cli import main; sys.argv = ['edgeops', *{words!r}]; {before}main()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("fault", list(Fault))
def test_a_command_ends_with_the_status_of_its_error(fault: Fault):
    code = next(code for code, entry in ERROR_CODES.items() if entry.fault is fault)
    failing = (
        "import edgeops.plugins as p; import edgeops.contracts.errors as e\n"
        f"def fail(*_): raise e.EdgeopsError({code!r}, 'what', 'next')\n"
        "p.load = fail\n"
    )
    done = ended("profile", "list", before=f"exec({failing!r}); ")
    assert (done.returncode, done.stderr) == (fault.value, f"error {code}: what\n  next\n")


def test_wrong_words_help_and_interrupts_have_theirs():
    assert ended("--help").returncode == ended("compile", "--help").returncode == ended("--version").returncode == 0
    assert ended("no-such-command").returncode == Fault.USAGE.value
    wrong = ended("compile", "--no-such-option")
    assert (wrong.returncode, "No such option" in wrong.stderr) == (Fault.USAGE.value, True)
    stopping = "import edgeops.plugins as p\ndef fail(*_): raise KeyboardInterrupt\np.load = fail\n"
    assert ended("profile", "list", before=f"exec({stopping!r}); ").returncode == INTERRUPTED
    defect = "import edgeops.plugins as p\ndef fail(*_): raise ZeroDivisionError\np.load = fail\n"
    assert ended("profile", "list", before=f"exec({defect!r}); ").returncode == Fault.INTERNAL.value
